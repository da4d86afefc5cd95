"""The runner's small parts: spans, frames, orders, outputs, its imports and its start."""

from __future__ import annotations

import errno
import itertools
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.runner import hierarchy, outputs
from swarmd.runner.orders import Order
from swarmd.runner.outputs import Output
from swarmd.runner.spans import SPANS_MAX, Spans
from swarmd.runner.wire import FRAME_BYTES_MAX, BrokenFrameError, Decoder, encode

ROOT = Path(__file__).parents[2]


@given(st.lists(st.integers(0, 60)))
def test_spans_hold_what_a_set_holds(numbers: list[int]) -> None:
    spans = Spans()
    for number in numbers:
        spans.add(number)
    assert [n for n in range(62) if n in spans] == sorted(set(numbers))
    pairs = spans.pairs()
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(pairs))
    assert Spans(pairs).pairs() == pairs


def test_spans_forget_the_lowest_first() -> None:
    spans = Spans()
    for number in range(0, 4 * SPANS_MAX, 2):
        spans.add(number)
    assert len(spans.pairs()) == SPANS_MAX
    assert 0 not in spans and 4 * SPANS_MAX - 2 in spans


@given(st.lists(st.integers(1, 40), max_size=8))
def test_frames_come_whole_however_they_are_cut(cuts: list[int]) -> None:
    frames = [{"kind": "a", "text": "ü\n"}, {"kind": "b"}, {"kind": "c", "n": [1]}]
    data = b"".join(map(encode, frames))
    decoder, found, at = Decoder(), [], 0
    for cut in [*cuts, len(data)]:
        found += decoder.feed(data[at : at + cut])
        at += cut
    assert found == frames


@pytest.mark.parametrize(
    "junk", [b"{\n", b"[]\n", b"{}\n", b'{"kind":1}\n', b"[" * 9000 + b"\n", b"\xff\n",
             b"x" * (FRAME_BYTES_MAX + 1)],
)  # fmt: skip
def test_what_is_no_frame_is_told(junk: bytes) -> None:
    with pytest.raises(BrokenFrameError):
        Decoder().feed(junk)


@given(st.dictionaries(st.sampled_from([*Order.__slots__]), st.one_of(
    st.none(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.text(max_size=3)),
    st.dictionaries(st.text(max_size=2), st.text(max_size=2)),
)))  # fmt: skip
def test_an_order_is_understood_or_refused(raw: dict[str, object]) -> None:
    try:
        order = Order(raw, "tag", 0)
    except ValueError as exc:
        assert str(exc)
    else:
        assert order.argv and order.dir.startswith("/") and order.env[b"SWARMD_ATTEMPT"] == b"tag"


def test_a_file_is_cut_at_its_offsets_where_no_hole_can_be_punched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    size_max = 256 * 1024
    path = tmp_path / "stdout"
    data = os.urandom(3_000_000)
    for punch in (outputs.punch_hole, refuse):
        monkeypatch.setattr(outputs, "punch_hole", punch)
        output = Output(str(tmp_path), "stdout", size_max)
        for at in range(0, len(data), 50_000):
            os.write(output.job_end, data[at : at + 50_000])
            while output.take() > 0:
                assert path.stat().st_blocks * 512 <= size_max
        output.close()
        assert output.size == len(data) and not output.trouble
        cut = output.cut
        assert cut is not None
        now = path.read_bytes()
        assert len(now) == len(data)
        assert now[: cut[0]] == data[: cut[0]] and now[cut[1] :] == data[cut[1] :]
        assert not any(now[cut[0] : cut[1]])
        assert path.stat().st_blocks * 512 <= size_max
        assert [p.name for p in tmp_path.iterdir()] == ["stdout"]
        path.unlink()


def test_what_finds_no_room_is_dropped_and_told(tmp_path: Path) -> None:
    """The bound on a file's size stands for a full disk: both are told by write and splice."""
    output = Output(str(tmp_path), "stderr", None)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        for _ in range(5):
            os.write(output.job_end, b"x" * 60_000)
            while output.take() > 0:
                pass
        os.write(output.job_end, b"x")
        output.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (tmp_path / "stderr").stat().st_size == output.size == 100_000
    assert output.trouble == "stderr is not kept beyond byte 100000: File too large"


def test_an_output_that_stays_empty_makes_no_file(tmp_path: Path) -> None:
    output = Output(str(tmp_path), "stdout", None)
    assert output.take() == -1
    output.close_job_end()
    assert output.take() == 0
    output.close()
    assert not [*tmp_path.iterdir()]


def test_a_pipe_that_others_hold_is_let_go(tmp_path: Path) -> None:
    output = Output(str(tmp_path), "stdout", None)
    held = os.dup(output.job_end)
    os.write(held, b"last")
    output.close()
    with pytest.raises(BrokenPipeError):
        os.write(held, b"too late")
    os.close(held)
    assert (tmp_path / "stdout").read_bytes() == b"last"


def test_a_cgroup_is_found_below_a_mount_that_shows_a_part(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    mount = str(tmp_path)
    assert hierarchy.below(mount, "/", "/a/b") == f"{mount}/a/b"
    assert hierarchy.below(mount, "/x", "/x/a") == f"{mount}/a"
    assert hierarchy.below(mount, "/x", "/elsewhere") == mount
    assert hierarchy.below(mount, "/", "/../../gone") == mount


def test_the_runner_imports_nothing_of_ours_nor_what_is_heavy() -> None:
    script = (
        "import sys; sys.path.append(sys.argv[1]); import swarmd.runner.main\nprint(*sys.modules)"
    )
    found = subprocess.run(
        [sys.executable, "-I", "-S", "-c", script, str(ROOT)],
        capture_output=True, text=True, check=True, timeout=20,
    ).stdout.split()  # fmt: skip
    ours = [name for name in found if name.startswith(("swarmd", "api"))]
    assert all(name == "swarmd" or name.startswith("swarmd.runner") for name in ours)
    assert not {"subprocess", "asyncio", "logging", "threading", "trio", "msgspec"} & set(found)


def test_the_runner_starts_quickly_and_stays_small(tmp_path: Path) -> None:
    entry = ROOT / "swarmd" / "runner" / "__main__.py"
    command = [sys.executable, "-I", "-S", str(entry), "runner", "--data-dir", str(tmp_path)]
    took_s = []
    for _ in range(3):
        before_s = children_cpu_s()
        subprocess.run([*command, "--idle-s", "0", "--foreground"], check=True, timeout=60)
        took_s.append(children_cpu_s() - before_s)
    assert min(took_s) < 0.5  # it computes for 0.05, and hardly waits
    process = subprocess.Popen([*command, "--idle-s", "20", "--foreground"])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "runner.sock").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        status = Path(f"/proc/{process.pid}/status").read_text()
        assert int(status.split("VmRSS:")[1].split()[0]) < 20 * 1024
    finally:
        process.terminate()
        assert process.wait(30) == 0


def children_cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime
