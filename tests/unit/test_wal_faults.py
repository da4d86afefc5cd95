"""What disks do to the durable log: torn and garbled writes, missing and older files, kill -9.

Each leaves either exactly what was written up to some point, with all that was acknowledged, or a
refusal that names the file. Never a hole, never a mended file.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mesh import wal_tail, wal_writer
from mesh.raft.types import Entry, HardState
from mesh.wal import LogSettings, RaftLog, find_put_back
from mesh.wal_errors import LogDamaged, LogError
from mesh.wal_sqlite import open_log

ROOT = Path(__file__).parents[2]
FILE_ONLY = LogSettings(recent_bytes_max=0)
FRAME = 4096 + wal_tail.FRAME_HEADER_BYTES


def entry(index: int, size: int = 300) -> Entry:
    return Entry(1 + index // 50, index, random.Random(index).randbytes(size))


def everything(log: RaftLog) -> list[Entry]:
    found: list[Entry] = []
    while log.first_index() + len(found) <= log.last_index():
        found += log.entries(log.first_index() + len(found), log.last_index() + 1)
    return found


@asynccontextmanager
async def reopened(path: Path) -> AsyncIterator[RaftLog]:
    """As a caller sees it who wants the error itself."""
    try:
        async with open_log(path, FILE_ONLY, create=False) as log:
            yield log
    except* LogError as group:
        error = group.exceptions[0]
        assert isinstance(error, LogError)
        raise error from None


@dataclass
class Crashed:
    """Copies of both files as they lay there after the last answer."""

    folder: Path
    acknowledged: list[tuple[int, int]]
    """How many frames -wal held when an entry was answered, and which."""

    @property
    def frames(self) -> int:
        return self.acknowledged[-1][0]

    def copy(self, to: Path) -> Path:
        shutil.copytree(self.folder, to)
        return to / "raft.db"

    def safe_at(self, offset: int) -> int:
        """The last entry that lies wholly before this offset of -wal."""
        whole = (offset - wal_tail.HEADER_BYTES) // FRAME
        return max((index for frames, index in self.acknowledged if frames <= whole), default=0)


@pytest.fixture(params=[1000, 40], ids=["one-generation", "written-over"])
async def crashed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Crashed:
    monkeypatch.setattr(wal_writer, "WAL_PAGES_MAX", request.param)
    path = tmp_path / "raft.db"
    wal = tmp_path / "raft.db-wal"
    acknowledged: list[tuple[int, int]] = []
    before = 10**9
    async with open_log(path, LogSettings(idle_s=60), create=True) as log:
        for index in range(1, 151):
            one = entry(index)
            await log.append([one], HardState(one.term, 1, index - 1)).wait()
            # Frames of a generation that begins anew make those before safe in the file itself.
            frames = wal_tail.examine(wal).frames
            if frames < before:
                acknowledged = [(0, last) for _, last in acknowledged]
            acknowledged.append((frames, index))
            before = frames
        folder = tmp_path / "crashed"
        folder.mkdir()
        for name in ("raft.db", "raft.db-wal"):
            shutil.copy(tmp_path / name, folder)
    return Crashed(folder, acknowledged)


async def test_a_torn_end_leaves_exactly_what_was_written_before(
    crashed: Crashed, tmp_path: Path
) -> None:
    dice = random.Random(5)
    end = wal_tail.HEADER_BYTES + crashed.frames * FRAME
    for number in range(25):
        path = crashed.copy(tmp_path / f"torn-{number}")
        offset = dice.randint(wal_tail.HEADER_BYTES, end)
        wal = path.with_name("raft.db-wal")
        raw = wal.read_bytes()
        if number % 2:
            wal.write_bytes(raw[:offset])
        else:
            wal.write_bytes(raw[:offset] + dice.randbytes(len(raw) - offset))
        if wal_tail.examine(wal).damage:
            # What lies behind is of a generation before: it looks like nothing of this one.
            raise AssertionError("a torn end was taken for damage")
        async with reopened(path) as log:
            found = everything(log)
            assert found == [entry(index) for index in range(1, len(found) + 1)]
            assert len(found) >= crashed.safe_at(offset)
            assert log.hard_state.term >= (found[-1].term if found else 0)
            # And life goes on from there.
            following = entry(len(found) + 1)
            hard = log.hard_state
            term = max(following.term, hard.term)
            await log.append(
                [Entry(term, following.index, b"new")],
                HardState(term, hard.vote if term == hard.term else 0, hard.commit),
            ).wait()
        shutil.rmtree(path.parent)


async def test_the_last_write_may_be_half_there(crashed: Crashed, tmp_path: Path) -> None:
    """Any sectors of the last transaction may be missing: nobody was told of it."""
    dice = random.Random(6)
    start = wal_tail.HEADER_BYTES + crashed.acknowledged[-2][0] * FRAME
    end = wal_tail.HEADER_BYTES + crashed.frames * FRAME
    for number in range(20):
        path = crashed.copy(tmp_path / f"half-{number}")
        wal = path.with_name("raft.db-wal")
        raw = bytearray(wal.read_bytes())
        sectors = range(-(-start // 512) * 512, end - 512, 512)
        for at in dice.sample(sectors, dice.randint(1, len(sectors))):
            raw[at : at + 512] = dice.randbytes(512)
        wal.write_bytes(raw)
        async with reopened(path) as log:
            assert everything(log) == [entry(index) for index in range(1, 150)]


async def test_what_was_acknowledged_and_is_broken_is_no_torn_end(
    crashed: Crashed, tmp_path: Path
) -> None:
    dice = random.Random(7)
    # The last two transactions may be all that tells; everything before them must be caught.
    end = wal_tail.HEADER_BYTES + (crashed.frames - 8) * FRAME
    for number in range(25):
        path = crashed.copy(tmp_path / f"broken-{number}")
        wal = path.with_name("raft.db-wal")
        raw = bytearray(wal.read_bytes())
        at = dice.randrange(wal_tail.HEADER_BYTES, end) if number else 5
        raw[at] ^= 1 << dice.randrange(8)
        wal.write_bytes(raw)
        with pytest.raises(LogDamaged, match=r"raft\.db") as refused:
            async with reopened(path):
                pass
        assert "broken" in refused.value.message
        assert "under a new id" in refused.value.message
        assert wal.read_bytes() == raw, "it was left as it is"


async def test_a_missing_half_is_noticed(crashed: Crashed, tmp_path: Path) -> None:
    path = crashed.copy(tmp_path / "no-wal")
    path.with_name("raft.db-wal").unlink()
    for _ in range(2):
        with pytest.raises(LogDamaged, match=r"raft\.db-wal is missing or empty"):
            async with reopened(path):
                pass
    path = crashed.copy(tmp_path / "empty-wal")
    path.with_name("raft.db-wal").write_bytes(b"")
    with pytest.raises(LogDamaged, match=r"raft\.db-wal is missing or empty"):
        async with reopened(path):
            pass
    path = crashed.copy(tmp_path / "no-db")
    path.unlink()
    with pytest.raises(LogDamaged, match="the file that it belongs to is not"):
        async with open_log(path, create=True):
            pass


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"no log at all" * 1000])
async def test_a_file_that_is_no_log_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "raft.db"
    path.write_bytes(content)
    with pytest.raises(LogError, match=r"raft\.db"):
        async with open_log(path, create=True):
            pass
    assert path.read_bytes() == content


async def test_garbled_pages_never_pass_for_entries(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    folder.mkdir()
    entries = [entry(index, size=20_000 if index % 40 == 0 else 200) for index in range(1, 801)]
    async with open_log(folder / "raft.db", create=True) as log:
        log.append([], HardState(20, 3))
        for start in range(0, 800, 8):
            ticket = log.append(entries[start : start + 8])
        log.append([], HardState(20, 3, 800))
        await ticket.wait()
        await log.set_fact("cluster", b"c-1").wait()
    dice = random.Random(8)
    size = (folder / "raft.db").stat().st_size
    refusals = 0
    for number in range(60):
        here = tmp_path / f"garbled-{number}"
        shutil.copytree(folder, here)
        raw = bytearray((here / "raft.db").read_bytes())
        at = dice.randrange(size) if number > 10 else dice.randrange(100)
        length = dice.choice((1, 4, 512, 4096))
        raw[at : at + length] = dice.randbytes(len(raw[at : at + length]))
        (here / "raft.db").write_bytes(raw)
        try:
            async with reopened(here / "raft.db") as log:
                assert log.hard_state == HardState(20, 3, 800)
                assert log.fact("cluster") == b"c-1"
                assert log.last_index() == 800
                assert everything(log) == entries
        except LogDamaged as refused:
            refusals += 1
            assert str(here / "raft.db") in refused.message
            assert (here / "raft.db").read_bytes()[at : at + length] == raw[at : at + length]
        shutil.rmtree(here)
    assert refusals > 40


async def test_what_is_broken_while_it_runs_is_found_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "raft.db"
    async with open_log(path, create=True) as log:
        await log.append(
            [entry(index, size=5000) for index in range(1, 41)], HardState(1, 1)
        ).wait()
    async with reopened(path) as log:
        raw = path.read_bytes()
        at = raw.index(entry(20, size=5000).data[:64])
        with path.open("r+b") as file:
            file.seek(at)
            file.write(b"xyz")
        with pytest.raises(LogDamaged, match="checksum"):
            everything(log)


async def test_a_hole_or_a_falling_term_is_refused(tmp_path: Path) -> None:
    for number, (statement, words) in enumerate((
        ("DELETE FROM runs WHERE first = 5", "after entry 4 comes 6"),
        ("DELETE FROM runs WHERE first = 1", "after entry 0 comes 2"),
        ("DELETE FROM runs WHERE first > 8", "committed and it ends at 8"),
        ("UPDATE runs SET term = 9 WHERE first = 5", "term falls from 9"),
        ("UPDATE runs SET data = x'90' WHERE first = 5", "checksum of entries 5"),
        ("UPDATE runs SET data = 'text' WHERE first = 5", "no such thing"),
        ("UPDATE facts SET value = x'930901'", "checksum of a fact"),
        ("UPDATE facts SET value = '930901'", "checksum of a fact"),
        ("DELETE FROM facts WHERE name = 'log:hard'", "log:hard is missing"),
        ("DROP TABLE runs", "raft.db"),
    )):  # fmt: skip
        path = tmp_path / str(number) / "raft.db"
        path.parent.mkdir()
        async with open_log(path, create=True) as log:
            log.append([], HardState(4, 1))
            for index in range(1, 11):
                await log.append([Entry(3, index, b"x")]).wait()
            await log.append([], HardState(4, 1, 10)).wait()
        conn = sqlite3.connect(path)
        with conn:
            conn.execute(statement)
        conn.close()
        with pytest.raises(LogError, match=words):
            async with reopened(path):
                pass


async def test_an_older_copy_opens_and_does_not_fit_what_is_known(tmp_path: Path) -> None:
    path = tmp_path / "raft.db"
    async with open_log(path, create=True) as log:
        await log.append([entry(index) for index in range(1, 20)], HardState(1, 1, 10)).wait()
    shutil.copy(path, tmp_path / "older")
    async with open_log(path, create=False) as log:
        await log.append([entry(20)], HardState(1, 1, 20)).wait()
        assert find_put_back(log, applied_index=20, applied_term=1) is None
    shutil.copy(tmp_path / "older", path)
    async with open_log(path, create=False) as log:
        found = find_put_back(log, applied_index=20, applied_term=1)
        assert found is not None
        assert found.which == "log"


_APPENDER = """
import sys, trio
from pathlib import Path
from mesh.raft.types import ConfState, Entry, HardState
from mesh.wal import LogSettings
from mesh.wal_sqlite import open_log

async def main():
    async with open_log(Path(sys.argv[1]), LogSettings(idle_s=0.01), create=True) as log:
        last = log.last_index()
        await log.append([], HardState(log.hard_state.term + 1, 7)).wait()
        print("term", log.hard_state.term, flush=True)
        while True:
            batch = [Entry(log.hard_state.term, last + 1 + n, b"%d" % (last + 1 + n) * 50)
                     for n in range(1 + last % 7)]
            last = batch[-1].index
            ticket = log.append(batch, HardState(log.hard_state.term, 7, batch[0].index - 1))
            if last % 5 == 0:
                await ticket.wait()
                print("last", last, flush=True)
            if last % 97 == 0 and log.last_index() > log.first_index() + 400:
                at = log.last_index() - 300
                log.compact(at, ConfState((at,)), checkpointed=at)
            # A backlog never reaches the bound.
            if log.waiting_bytes > 100_000:
                await ticket.wait()

trio.run(main)
"""


async def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "raft.db"
    for boot, seconds in enumerate((0.9, 0.6, 0.8), 1):
        child = await trio.lowlevel.open_process(
            [sys.executable, "-c", _APPENDER, str(path)], stdout=subprocess.PIPE, cwd=ROOT
        )
        assert child.stdout is not None
        said = b""
        with trio.fail_after(60):
            while said.count(b"last") < 3:  # it is in the middle of it
                part = await child.stdout.receive_some(64)
                assert part, said
                said += part
        await trio.sleep(seconds)
        child.send_signal(signal.SIGKILL)
        with trio.fail_after(60):
            async for part in child.stdout:
                said += part
            await child.wait()
        lines = [line.split() for line in said.decode().splitlines(keepends=True)[:-1]]
        term = max((int(number) for what, number in lines if what == "term"), default=0)
        last = max((int(number) for what, number in lines if what == "last"), default=0)
        async with open_log(path, FILE_ONLY, create=False) as log:
            assert log.boot == 2 * boot
            assert log.hard_state.vote == 7
            assert log.hard_state.term >= term > 0
            assert log.last_index() >= last > 0
            assert log.compacted.conf_state.voters in ((), (log.compacted.index,))
            for each in everything(log):
                assert each.data == b"%d" % each.index * 50


def test_a_log_that_nobody_may_read_by_accident(tmp_path: Path) -> None:
    async def main() -> None:
        async with open_log(tmp_path / "raft.db", create=True) as log:
            await log.append([], HardState(1, 1)).wait()
            for file in await trio.to_thread.run_sync(lambda: [*tmp_path.iterdir()]):
                assert file.stat().st_mode & 0o077 == 0, file

    old = os.umask(0)
    try:
        trio.run(main)
    finally:
        os.umask(old)
