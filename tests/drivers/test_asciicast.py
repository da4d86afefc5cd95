"""Recordings of terminals: whole lines within their bound, on a disk that fills and a writer that
dies."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from swarmd.domain.errors import Unavailable
from swarmd.drivers.asciicast import HELD_BYTES_MAX, Recording, drop, mend, open_recording, pieces

MIB = 1024 * 1024


async def begun(path: Path, bytes_max: int = MIB) -> Recording:
    return await open_recording(
        path, cols=80, rows=24, term="vt220", title="root@a", at_s=1_700_000_000,
        bytes_max=bytes_max,
    )  # fmt: skip


def lines(path: Path) -> list[Any]:
    data = path.read_bytes()
    assert data.endswith(b"\n")
    return [json.loads(line) for line in data.splitlines()]


async def test_it_has_a_head_and_each_moment_in_its_order(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    file = tmp_path / "a.cast"
    recording = await begun(file)
    await recording.shown('zwölf "\x1b[1m\r\n')
    await trio.sleep(1.5)
    recording.resized(100, 30)
    assert len(lines(file)) == 1  # the rest is held
    await recording.flush()
    assert len(lines(file)) == 3
    await trio.sleep(0.25)
    await recording.shown("\0")
    await recording.close()
    await recording.close()
    assert lines(file) == [
        {"version": 2, "width": 80, "height": 24, "timestamp": 1_700_000_000, "title": "root@a",
         "env": {"TERM": "vt220"}},
        [0.0, "o", 'zwölf "\x1b[1m\r\n'], [1.5, "r", "100x30"], [1.75, "o", "\0"],
    ]  # fmt: skip
    assert file.stat().st_mode & 0o777 == 0o600 and not recording.cut
    assert b"".join([piece async for piece in pieces(file)]) == file.read_bytes()


async def test_what_is_over_the_bound_is_left_out_and_its_last_line_says_so(tmp_path: Path) -> None:
    file = tmp_path / "a.cast"
    recording = await begun(file, 4096)
    for _ in range(100):
        await recording.shown("x" * 100)
    recording.resized(90, 20)
    await recording.close()
    assert recording.cut and file.stat().st_size <= 4096
    *_, last = lines(file)
    assert last[1] == "m" and "stops here: it has the 4096 bytes" in last[2]
    assert {line[1] for line in lines(file)[1:-1]} == {"o"}


async def test_much_is_not_held_in_memory(tmp_path: Path) -> None:
    file = tmp_path / "a.cast"
    recording = await begun(file, 10 * MIB)
    for _ in range(20):
        await recording.shown("x" * 32 * 1024)
        assert recording._size_bytes - file.stat().st_size < HELD_BYTES_MAX
    await recording.close()
    assert len(lines(file)) == 21


async def test_a_disk_that_takes_no_more_stops_it_after_a_whole_line(tmp_path: Path) -> None:
    file = tmp_path / "a.cast"
    recording = await begun(file)
    await recording.shown("first")
    await recording.flush()
    size_bytes = file.stat().st_size
    with files_up_to(size_bytes + 10):
        await recording.shown("second " * 10)
        await recording.flush()
    assert recording.cut
    await recording.shown("third")
    await recording.close()
    assert [line[2] for line in lines(file)[1:]] == ["first"]


async def test_without_a_place_for_it_there_is_none(tmp_path: Path) -> None:
    with files_up_to(50), pytest.raises(Unavailable, match="cannot be written"):
        await begun(tmp_path / "a.cast")
    assert not os.listdir(tmp_path)


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    """The kernel lets this process make no file longer; as a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.mark.parametrize(
    ("data", "kept"),
    [
        (b"", b""), (b"{}\n", b"{}\n"), (b"{}\n[1.0, ", b"{}\n"), (b"no line at all", b""),
        (b"{}\n" + b"x" * MIB, b"{}\n"), (b"\n" * 3 + b"\0" * 10, b"\n\n\n"),
    ],
)  # fmt: skip
def test_what_a_writer_left_that_died_ends_with_its_last_whole_line(
    tmp_path: Path, data: bytes, kept: bytes
) -> None:
    file = tmp_path / "a.cast"
    file.write_bytes(data)
    assert mend(file) == len(kept) and file.read_bytes() == kept
    assert os.listdir(tmp_path) == ["a.cast"]


def test_where_nothing_was_begun_there_is_nothing_to_mend_or_to_drop(tmp_path: Path) -> None:
    assert mend(tmp_path / "a.cast") is None
    drop(tmp_path / "a.cast")


def test_what_the_disk_does_not_let_go_of_stays_and_is_told_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.cast").mkdir()
    drop(tmp_path / "a.cast")
    assert "stays on the disk" in caplog.text and os.listdir(tmp_path) == ["a.cast"]
