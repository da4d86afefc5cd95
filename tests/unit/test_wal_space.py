"""The durable log takes bounded room, gives it back, and stays quick while it does."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
import trio

from mesh import wal_writer
from mesh.raft.types import ConfState, Entry, HardState
from mesh.wal import LogSettings, RaftLog
from mesh.wal_sqlite import open_log
from mesh.wal_writer import WAL_BYTES_KEPT, WAL_PAGES_MAX

NOBODY_YET = ConfState()
SETTINGS = LogSettings(recent_bytes_max=200_000, idle_s=0.05)


async def grow(log: RaftLog, count: int, size: int, batch: int = 200) -> None:
    """Handed over without waiting for each, as far as the bound allows."""
    start = log.last_index() + 1
    for first in range(start, start + count, batch):
        entries = [Entry(1, index, b"x" * size) for index in range(first, first + batch)]
        ticket = log.append(entries)
        if log.waiting_bytes > 4 << 20:
            await ticket.wait()
    await ticket.wait()


async def until_settled(log: RaftLog) -> None:
    with trio.fail_after(30):
        while log._writer.leftover or log._writer.unsettled:  # type: ignore[attr-defined]
            await trio.sleep(0.01)


def runs(path: Path) -> int:
    conn = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        count: int = conn.execute("SELECT count(*) FROM runs").fetchone()[0]
        return count
    finally:
        conn.close()


def size(path: Path) -> int:
    return path.stat().st_size


async def test_room_is_used_again_after_compaction(tmp_path: Path) -> None:
    path = tmp_path / "raft.db"
    sizes = []
    async with open_log(path, SETTINGS, create=True) as log:
        await log.append([], HardState(1, 1)).wait()
        for _ in range(5):
            await grow(log, 4000, 1000)
            upto = log.last_index() - 100
            await log.compact(upto, NOBODY_YET, checkpointed=upto).wait()
            await until_settled(log)
            assert runs(path) < 10, "what was compacted is gone"
            sizes.append(size(path))
    assert max(sizes) < 1.2 * sizes[0]


async def test_the_write_ahead_file_is_bounded_under_load_and_when_idle(tmp_path: Path) -> None:
    path, wal = tmp_path / "raft.db", tmp_path / "raft.db-wal"
    async with open_log(path, SETTINGS, create=True) as log:
        await log.append([], HardState(1, 1)).wait()
        largest = 0
        for _ in range(10):
            await grow(log, 2000, 2000)
            largest = max(largest, size(wal))
            # A reader that never lets go for long is no hindrance.
            assert log.entries(1, 100, 100_000)
        group = 2 * SETTINGS.group_bytes_max
        assert largest < WAL_PAGES_MAX * 4120 + group
        await until_settled(log)
        assert size(wal) <= WAL_BYTES_KEPT
        # What is there is all in the file itself: with nothing to do, -wal holds next to nothing.
        before = size(path)
        assert before > 10 * 2000 * 2000
    assert not await trio.Path(wal).exists()
    assert size(path) <= 1.1 * before


async def test_one_large_write_does_not_leave_a_large_file(tmp_path: Path) -> None:
    path, wal = tmp_path / "raft.db", tmp_path / "raft.db-wal"
    async with open_log(path, SETTINGS, create=True) as log:
        await log.append([Entry(1, 1, b"x" * (WAL_BYTES_KEPT + 4_000_000))], HardState(1)).wait()
        await until_settled(log)
        await log.append([Entry(1, 2)]).wait()
        assert size(wal) <= WAL_BYTES_KEPT
        assert len(log.entries(1, 3)[0].data) == WAL_BYTES_KEPT + 4_000_000


async def test_writes_go_on_between_the_slices_of_a_compaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wal_writer, "SLICE_RUNS", 2)
    real, turns = wal_writer.LogWriter.delete_slice, threading.Semaphore(0)

    def delete_slice(writer: wal_writer.LogWriter) -> None:
        """One for each write of the test, however slow it is."""
        if turns.acquire(timeout=0.001):
            real(writer)

    monkeypatch.setattr(wal_writer.LogWriter, "delete_slice", delete_slice)
    async with open_log(tmp_path / "raft.db", SETTINGS, create=True) as log:
        await log.append([], HardState(1, 1)).wait()
        for index in range(1, 101):
            await log.append([Entry(1, index, b"x")]).wait()
        log.compact(99, NOBODY_YET, checkpointed=100)
        seen: list[int] = []
        with trio.fail_after(30):
            while log._writer.leftover or not seen:  # type: ignore[attr-defined]
                await log.append([Entry(1, log.last_index() + 1)]).wait()
                seen.append(runs(tmp_path / "raft.db"))
                turns.release()
        assert len(seen) > 3
        assert seen[0] > 80, "not all at once"
        assert seen[-1] < 80


@pytest.mark.parametrize("entry_bytes", [100, 16_000])
async def test_a_read_of_the_file_gives_a_bounded_part(tmp_path: Path, entry_bytes: int) -> None:
    async with open_log(tmp_path / "raft.db", SETTINGS, create=True) as log:
        await log.append([], HardState(1, 1)).wait()
        await grow(log, 2000, entry_bytes, batch=50)
        got = log.entries(1, 2001, 1 << 20)
        assert sum(len(each.data) for each in got) <= 1 << 20
        assert len(got) >= min(60, (1 << 20) // (entry_bytes + 24))
        assert [each.index for each in got] == list(range(1, len(got) + 1))
