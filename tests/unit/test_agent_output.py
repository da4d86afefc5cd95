"""Cut output keeps its first lines and its end, says what is gone, and never passes its bound."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.agent.output import cut_file
from swarmd.domain.cutting import BYTES_MAX_LEAST, cut

NOTE = re.compile(
    rb"^\[\.\.\. (\d+) bytes(?: and (\d+) lines)? cut here;"
    rb" (\d+) bytes(?: and (\d+) lines)? in all \.\.\.\]\n",
    re.MULTILINE,
)


def parts(result: bytes) -> tuple[bytes, tuple[int, ...], bytes]:
    """What stands before the note, its numbers, and what stands after it."""
    (note,) = NOTE.finditer(result)
    numbers = tuple(int(n) for n in note.groups() if n is not None)
    return result[: note.start()], numbers, result[note.end() :]


def numbered(lines: int, width: int = 100) -> bytes:
    return b"".join(b"%0*d\n" % (width - 1, n) for n in range(lines))


def test_what_fits_is_left_alone() -> None:
    data = numbered(5000)
    assert cut(data, len(data)) is data
    assert cut(b"") == b""


def test_the_first_500_lines_and_the_end_are_kept() -> None:
    data = numbered(50_000)
    result = cut(data)
    head, (gone_bytes, gone_lines, all_bytes, all_lines), tail = parts(result)
    assert head == numbered(500)
    assert data.endswith(b"\n" + tail)
    assert (all_bytes, all_lines) == (5_000_000, 50_000)
    assert gone_bytes == all_bytes - len(head) - len(tail) == gone_lines * 100
    assert 1024 * 1024 - 400 <= len(result) <= 1024 * 1024


def test_500_long_lines_are_kept_while_they_fit() -> None:
    data = numbered(1500, width=2000)
    head, _, tail = parts(cut(data))
    assert head == numbered(500, width=2000)
    assert len(tail) == 24 * 2000 - 2000 or data.endswith(tail)


def test_first_lines_over_the_bound_leave_room_for_the_end() -> None:
    data = numbered(1500, width=9000)
    head, _, tail = parts(cut(data))
    assert data.startswith(head) and head.endswith(b"\n")
    assert 500_000 < len(head) <= 512 * 1024
    assert data.endswith(tail) and len(tail) > 500_000


def test_one_giant_line() -> None:
    data = "å".encode() * 2_000_000
    result = cut(data)
    head, numbers, tail = parts(result)
    assert numbers[1:] == (0, 4_000_000, 1)
    assert head.endswith(b"\n") and head[:-1].decode() == "å" * (512 * 1024 // 2)
    assert set(tail.decode()) == {"å"}
    assert len(result) > 1024 * 1024 - 400


def test_a_giant_line_after_a_short_one_and_before_a_short_one() -> None:
    data = b"begin\n" + b"x" * 3_000_000 + b"\nend\n"
    head, _, tail = parts(cut(data))
    assert head.startswith(b"begin\nxxx") and len(head) > 500_000
    assert tail.endswith(b"xxx\nend\n") and len(tail) > 500_000


def test_8_mib_of_newlines_do_not_hold_the_loop() -> None:
    data = b"\n" * (8 * 1024 * 1024)
    best = min(_timed(data) for _ in range(5))
    assert best < 0.02, "5 ms here; four times that on a busy machine"


def _timed(data: bytes) -> float:
    start = time.thread_time()
    cut(data)
    return time.thread_time() - start


def test_a_bound_without_room_is_a_mistake() -> None:
    with pytest.raises(AssertionError):
        cut(b"x", 100)


LINES = st.lists(
    st.one_of(
        st.text(max_size=30),
        st.integers(0, 4000).map("é€😀x".__mul__),
        st.just(""),
    ),
    max_size=900,
)


@given(lines=LINES, bytes_max=st.integers(BYTES_MAX_LEAST, 9000), end=st.sampled_from(["", "\n"]))
def test_any_text(lines: list[str], bytes_max: int, end: str) -> None:
    data = ("\n".join(lines) + end).encode()
    result = cut(data, bytes_max)
    if len(data) <= bytes_max:
        assert result == data
        return
    assert len(result) <= bytes_max
    result.decode()  # no character was split
    head, (gone_bytes, gone_lines, all_bytes, all_lines), tail = _parts_of(result, data)
    assert gone_bytes == len(data) - len(head) - len(tail)
    assert gone_lines == data[len(head) : len(data) - len(tail)].count(b"\n")
    assert all_bytes == len(data)
    assert all_lines == data.count(b"\n") + (not data.endswith(b"\n"))
    assert head.count(b"\n") <= 500


@given(
    pieces=st.lists(st.tuples(st.binary(max_size=40), st.integers(1, 200)), max_size=20),
    bytes_max=st.integers(BYTES_MAX_LEAST, 4000),
)
def test_any_bytes(pieces: list[tuple[bytes, int]], bytes_max: int) -> None:
    data = b"".join(piece * times for piece, times in pieces)
    result = cut(data, bytes_max)
    assert len(result) <= bytes_max
    if len(data) > bytes_max:
        _parts_of(result, data)
        # Little is wasted: a line's start at the end, the note, half a character.
        newlines = data.count(b"\n")
        assert newlines > 0 or len(result) > bytes_max - 200


def _parts_of(result: bytes, data: bytes) -> tuple[bytes, tuple[int, ...], bytes]:
    """`parts`, with the newline before the note taken off where the head had none."""
    head, numbers, tail = parts(result)
    if not data.startswith(head) or numbers[0] != len(data) - len(head) - len(tail):
        head = head.removesuffix(b"\n")
    assert data.startswith(head) and data.endswith(tail)
    return head, numbers, tail


# Files.


@given(lines=LINES, bytes_max=st.integers(BYTES_MAX_LEAST, 9000))
def test_a_file_is_cut_as_its_bytes_are(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], bytes_max: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"log-{os.getpid()}"
    path.write_bytes("\n".join(lines).encode())
    assert cut_file(path, bytes_max) == cut(path.read_bytes(), bytes_max)


def test_an_empty_file_and_one_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert cut_file(tmp_path / "empty") == b""
    with pytest.raises(FileNotFoundError):
        cut_file(tmp_path / "none")


def test_a_huge_sparse_file_is_not_read_through(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with path.open("wb") as file:
        file.write(numbered(600))
        file.truncate(200 * 1024**3)
        file.seek(0, os.SEEK_END)
        file.write(b"\nthe end\n")
    start = time.thread_time()
    head, numbers, tail = parts(cut_file(path))
    assert time.thread_time() - start < 0.5
    assert head == numbered(500)
    assert numbers == (200 * 1024**3 + 9 - len(head) - len(tail), 200 * 1024**3 + 9)
    assert tail.endswith(b"\0\nthe end\n")


def test_a_hole_is_where_the_cut_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\nsecond\n" + bytes(8192) + b"rest of a line\nlast\n")
    size = path.stat().st_size
    result = cut_file(path, cut=(13, 13 + 8192))
    head, numbers, tail = parts(result)
    assert (head, tail) == (b"first\nsecond\n", b"rest of a line\nlast\n")
    assert numbers == (8192, size)


def test_a_hole_within_characters(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = "€" * 5000
    path.write_bytes(text.encode())
    result = cut_file(path, cut=(4096, 8192))
    result.decode()
    head, (gone, _), tail = parts(result)
    assert head == ("€" * 1365 + "\n").encode()
    assert gone == 15_000 - (len(head) - 1) - len(tail)


@given(
    before=st.integers(0, 6000), hole=st.integers(1, 9000), after=st.integers(0, 6000),
    bytes_max=st.integers(BYTES_MAX_LEAST, 5000), line=st.integers(1, 300),
)  # fmt: skip
def test_nothing_of_a_hole_is_shown(
    tmp_path_factory: pytest.TempPathFactory,
    before: int, hole: int, after: int, bytes_max: int, line: int,
) -> None:  # fmt: skip
    path = tmp_path_factory.getbasetemp() / f"hole-{os.getpid()}"
    sides = numbered(before // line + after // line + 2, width=line + 1)
    path.write_bytes(sides[:before] + bytes(hole) + sides[before : before + after])
    result = cut_file(path, bytes_max, cut=(before, before + hole))
    assert len(result) <= bytes_max
    assert b"\0" not in result
    assert len(NOTE.findall(result)) == 1


@pytest.mark.parametrize("cut", [(-5, 3), (50, 10), (0, 10**12), (5000, 6000)])
def test_a_hole_that_makes_no_sense_does_no_harm(tmp_path: Path, cut: tuple[int, int]) -> None:
    path = tmp_path / "log"
    path.write_bytes(numbered(30))
    assert len(cut_file(path, BYTES_MAX_LEAST, cut=cut)) <= BYTES_MAX_LEAST
