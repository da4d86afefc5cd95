"""The durable log beside a plain file: what does SQLite cost, and is it the bottleneck?

    python -m bench.wal [--seconds 2] [--dir .] [--switch-ms 5]

Each append is one entry of its own, handed over by one task that keeps so many waiting; it counts
when its ticket is done, after fsync. The plain file writes the same groups, encoded and summed the
same way, with one write and one fdatasync: the least that a log of any form must do. "busy" is a
loop that never rests: what an append takes there is the wait for the interpreter's lock.
"""

from __future__ import annotations

import argparse
import os
import queue
import resource
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from bench.facts import machine, percentile, table
from mesh import wal_file
from mesh.raft.types import ConfState, Entry, HardState
from mesh.wal import LogSettings, RaftLog
from mesh.wal_sqlite import open_log

SIZES = (128, 16 * 1024)
SMALL_MEMORY = LogSettings(recent_bytes_max=1 << 20)


class Appends(Protocol):
    """As much of a log as this measures."""

    def append(
        self, entries: Sequence[Entry], hard_state: HardState | None = None, *,
        on_done: Callable[[], None] | None = None,
    ) -> Any: ...  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="the durable log beside a plain file")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    parser.add_argument("--dir", default=".", help="on the disk that is to be measured")
    parser.add_argument("--switch-ms", type=float, default=5.0, help="of sys.setswitchinterval")
    given = parser.parse_args()
    sys.setswitchinterval(given.switch_ms / 1000)
    print(machine())
    rows = []
    for size in SIZES:
        for waiting, busy in ((1, False), (1, True), (64, False), (64, True), (1024, False)):
            for title, opened in (("raft.db", open_sqlite), ("plain file", open_plain)):
                with tempfile.TemporaryDirectory(dir=given.dir) as name:
                    rows.append(trio.run(
                        measure_appends, title, opened, Path(name) / "log", waiting, size, busy,
                        given.seconds,
                    ))  # fmt: skip
    heads = ("log", "entry B", "waiting", "loop", "appends/s", "p50 ms", "p99 ms", "CPU us each")
    print(table(heads, rows))
    print()
    with tempfile.TemporaryDirectory(dir=given.dir) as name:
        print(table(("what", "figure"), trio.run(measure_rest, Path(name))))


async def measure_appends(
    title: str,
    opened: Callable[[Path], AbstractAsyncContextManager[Appends]],
    path: Path,
    waiting: int,
    size: int,
    busy: bool,
    seconds: float,
) -> tuple[object, ...]:
    took: list[float] = []
    data = os.urandom(size)
    async with opened(path) as log, trio.open_nursery() as nursery:
        log.append((), HardState(1, 1))
        if busy:
            nursery.start_soon(keep_loop_busy)
        answered = trio.Event()
        last = 0

        def hand_over() -> None:
            nonlocal last
            last += 1
            start = time.perf_counter()

            def done() -> None:
                took.append(time.perf_counter() - start)
                answered.set()

            # As the core does: each write comes with a commit index that has moved on.
            entry = Entry(1, last, data)
            log.append((entry,), HardState(1, 1, last - 1), on_done=done)

        before, cpu = time.perf_counter(), cpu_s()
        while time.perf_counter() - before < seconds:
            while last - len(took) < waiting:
                hand_over()
            await answered.wait()
            answered = trio.Event()
        elapsed, cpu = time.perf_counter() - before, cpu_s() - cpu
        count = len(took)
        while len(took) < last:
            await trio.sleep(0.001)
        nursery.cancel_scope.cancel()
    return (
        title, size, waiting, "busy" if busy else "idle", f"{count / elapsed:.0f}",
        f"{percentile(took, 0.5) * 1000:.2f}", f"{percentile(took, 0.99) * 1000:.2f}",
        "-" if busy else f"{cpu / count * 1e6:.0f}",
    )  # fmt: skip


async def keep_loop_busy() -> None:
    """Python that holds the interpreter's lock, 0.2 ms at a stretch: the other work of a daemon."""
    while True:
        end = time.perf_counter() + 0.0002
        while time.perf_counter() < end:
            pass
        await trio.lowlevel.checkpoint()


def cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@asynccontextmanager
async def open_sqlite(path: Path) -> AsyncIterator[Appends]:
    async with open_log(path, create=True) as log:
        yield log


@asynccontextmanager
async def open_plain(path: Path) -> AsyncIterator[Appends]:
    log = PlainFile(path, trio.lowlevel.current_trio_token())
    thread = threading.Thread(target=log.write_forever)
    thread.start()
    try:
        yield log
    finally:
        log.queue.put(None)
        await trio.to_thread.run_sync(thread.join)


class PlainFile:
    def __init__(self, path: Path, token: trio.lowlevel.TrioToken) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._token = token
        self.queue: queue.SimpleQueue[tuple[Any, ...] | None] = queue.SimpleQueue()

    def append(
        self, entries: Sequence[Entry], hard_state: HardState | None = None, *,
        on_done: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        self.queue.put((entries, hard_state, on_done))

    def write_forever(self) -> None:
        encode = msgspec.msgpack.Encoder().encode
        while (write := self.queue.get()) is not None:
            group = [write]
            while len(group) < 1024 and not self.queue.empty():
                if (write := self.queue.get()) is None:
                    self.queue.put(None)
                    break
                group.append(write)
            data = encode([entry for entries, _, _ in group for entry in entries])
            data += encode(group[-1][1])
            os.write(self._file, zlib.crc32(data).to_bytes(8, "big") + data)
            os.fdatasync(self._file)
            self._token.run_sync_soon(self._deliver, [done for _, _, done in group if done])
        os.close(self._file)

    def _deliver(self, group: Sequence[Callable[[], None]]) -> None:
        for done in group:
            done()


async def measure_rest(folder: Path) -> list[tuple[str, str]]:
    rows = []
    for title, entries_max in (("", wal_file.RUN_ENTRIES_MAX), (", each in a row of its own", 1)):
        wal_file.RUN_ENTRIES_MAX = entries_max
        rows += await measure_long(folder / f"long-{entries_max}", title, 1_000_000)
    path = folder / "large.db"
    async with open_log(path, SMALL_MEMORY, create=True) as log:
        log.append((), HardState(1, 1))
        for index in range(1, 2001):
            await log.append([Entry(1, index, b"x" * 16384)]).wait()
        rows.append(("1 MiB of 16 KiB entries read from the file, ms", old_reads_ms(log, 2000)))
    return rows


async def measure_long(path: Path, title: str, count: int) -> list[tuple[str, str]]:
    async with open_log(path, SMALL_MEMORY, create=True) as log:
        ticket = log.append((), HardState(1, 1))
        for first in range(1, count + 1, 64):
            while log.waiting_bytes > 4 << 20:
                await ticket.wait()
            ticket = log.append([Entry(1, index, b"x" * 128) for index in range(first, first + 64)])
        await ticket.wait()
        read = old_reads_ms(log, count)
    start = time.perf_counter()
    async with open_log(path, SMALL_MEMORY, create=False) as log:
        opened = time.perf_counter() - start
        # Appends go on while all but the newest is deleted.
        log.compact(log.last_index() - 1000, ConfState((1,)), checkpointed=log.last_index())
        took, began = list[float](), time.perf_counter()
        while log._writer.leftover or not took:  # type: ignore[attr-defined]
            start = time.perf_counter()
            last = log.last_index()
            await log.append([Entry(1, last + 1, b"x" * 128)], HardState(1, 1, last)).wait()
            took.append(time.perf_counter() - start)
        compacted = time.perf_counter() - began
    return [
        (f"1 MiB of 128 B entries read from the file{title}, ms", read),
        (f"opening {count:,} entries{title}, s", f"{opened:.2f}"),
        (f"compacting {count:,} entries{title}, s", f"{compacted:.2f}"),
        ("  an append meanwhile, p50 / p99 / max ms",
         " / ".join(f"{percentile(took, part) * 1000:.1f}" for part in (0.5, 0.99, 1))),
    ]  # fmt: skip


def old_reads_ms(log: RaftLog, count: int) -> str:
    took, last = [], log.last_index()
    for part in range(1, 40):
        first = 1 + (count // 2) * part // 40
        start = time.perf_counter()
        log.entries(first, last + 1, 1 << 20)
        took.append(time.perf_counter() - start)
    return f"{percentile(took, 0.5) * 1000:.2f} (max {max(took) * 1000:.2f})"


if __name__ == "__main__":
    main()
