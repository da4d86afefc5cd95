"""The store: one thread that writes, with group commit, and a few connections that read.

Whoever proposes waits until its entry is on disk; the thread takes all that wait at once."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from swarmd.domain.errors import Busy, Unavailable
from swarmd.state.commands import Entry
from swarmd.state.machine import Applied, Machine
from swarmd.state.queries import QUERIES, Query, T
from swarmd.state.schema import migrate

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoreSettings:
    readers: int = 2
    waiting_max: int = 4096
    """Entries that may wait for the disk; over it a proposal is refused, never queued."""
    batch_max: int = 256
    read_s_max: float = 5.0
    durable: bool = True
    """fsync before an entry is acknowledged. Off where a log in front of it does that."""


class Store:
    """`apply` is called by one owner, which numbers the entries; `read` by anyone."""

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self._path = path
        self._settings = settings
        self._waiting: deque[tuple[Entry, _Reply]] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._failed: BaseException | None = None
        self._limiter = trio.CapacityLimiter(settings.readers)
        self._idle: list[sqlite3.Connection] = []
        self._on_applied: Callable[[Sequence[Applied]], None] = lambda applied: None
        self._failure_seen = trio.Event()
        self.applied = 0
        self.last_at = 0

    async def apply(self, entry: Entry) -> Any:
        """Wait until the entry is applied and on disk; answer its value or raise its refusal.
        Once it is handed over it will be applied, also when the caller is cancelled."""
        reply = self.submit(entry)
        await reply.done.wait()
        if reply.refusal is not None:
            raise reply.refusal
        return reply.value

    def submit(self, entry: Entry) -> _Reply:
        self.check_room()
        reply = _Reply()
        self._waiting.append((entry, reply))
        self._wake.set()
        return reply

    def check_room(self) -> None:
        """Busy when too much waits already; asked before an entry is numbered."""
        if self._failed is not None or self._stopping:
            raise Unavailable("the state is closed; this node is stopping")
        if len(self._waiting) >= self._settings.waiting_max:
            raise Busy("too many writes wait for the disk; try again shortly")

    async def read(self, query: Query[T]) -> T:
        """Answer from one snapshot, on a reader's thread."""
        if self._stopping:
            raise Unavailable("the state is closed; this node is stopping")
        answer: T = await trio.to_thread.run_sync(self._read, query, limiter=self._limiter)
        return answer

    def _read(self, query: Query[Any]) -> Any:
        conn = self._idle.pop() if self._idle else _connect(self._path, query_only=True)
        # The deadline is counted in virtual machine steps, about 10 million of them a second.
        steps = [0]

        def over() -> bool:
            steps[0] += 1
            return steps[0] > self._settings.read_s_max * 100

        conn.set_progress_handler(over, 100_000)
        try:
            conn.execute("BEGIN")
            try:
                return QUERIES[type(query)](conn, query)
            finally:
                conn.execute("ROLLBACK")
        except sqlite3.OperationalError as error:
            if "interrupted" in str(error):
                raise Unavailable("the query took too long; ask for less of it") from error
            raise
        finally:
            conn.set_progress_handler(None, 0)
            self._idle.append(conn)

    def _close_readers(self) -> None:
        for reader in self._idle:
            reader.close()

    def on_applied(self, callback: Callable[[Sequence[Applied]], None]) -> None:
        """Called on Trio's thread after each commit, before those who wait are woken."""
        self._on_applied = callback

    def _write_forever(self, conn: sqlite3.Connection, token: trio.lowlevel.TrioToken) -> None:
        machine = Machine(conn)
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    self._write_batch(machine, token)
                if self._stopping:
                    return
        except BaseException as error:
            # The disk refused, or a rule broke: nothing of the batch was acknowledged, and
            # nothing may be from here on. The daemon ends and is started again.
            self._failed = error
            token.run_sync_soon(self._failure_seen.set)
        finally:
            conn.close()

    def _write_batch(self, machine: Machine, token: trio.lowlevel.TrioToken) -> None:
        size = min(len(self._waiting), self._settings.batch_max)
        batch = [self._waiting.popleft() for _ in range(size)]
        applied = machine.apply([entry for entry, _ in batch])
        for (_, reply), outcome in zip(batch, applied, strict=True):
            reply.value, reply.refusal = outcome.value, outcome.refusal
        token.run_sync_soon(self._deliver, batch, applied)

    def _deliver(self, batch: list[tuple[Entry, _Reply]], applied: list[Applied]) -> None:
        self._on_applied(applied)
        for _, reply in batch:
            reply.done.set()

    async def _watch_failure(self) -> None:
        await self._failure_seen.wait()
        assert self._failed is not None
        log.critical("the state cannot be written", extra={"reason": repr(self._failed)})
        raise self._failed


@dataclass(slots=True)
class _Reply:
    done: trio.Event = field(default_factory=trio.Event)
    value: Any = None
    refusal: Any = None


@asynccontextmanager
async def open_store(path: Path, settings: StoreSettings) -> AsyncIterator[Store]:
    """The file is made and migrated where needed. A failure to write cancels the caller's scope
    with that error: a process that cannot keep its word must not go on giving it."""
    store = Store(path, settings)
    conn = await trio.to_thread.run_sync(_open_writer, path, settings)
    first = Machine(conn)
    store.applied, store.last_at = first.applied, first.last_at
    token = trio.lowlevel.current_trio_token()
    thread = threading.Thread(
        target=store._write_forever, args=(conn, token), name="state-writer", daemon=True
    )
    thread.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store._watch_failure)
        try:
            yield store
        finally:
            with trio.CancelScope(shield=True):
                store._stopping = True
                store._wake.set()
                await trio.to_thread.run_sync(thread.join)
                # The last to close writes the log back into the file: not on the loop.
                await trio.to_thread.run_sync(store._close_readers)
            nursery.cancel_scope.cancel()


def _connect(path: Path, *, query_only: bool) -> sqlite3.Connection:
    conn = sqlite3.connect(
        path, isolation_level=None, check_same_thread=False, cached_statements=512, timeout=10
    )
    conn.execute("PRAGMA cache_size = -16384")
    conn.execute("PRAGMA mmap_size = 268435456")
    conn.execute("PRAGMA temp_store = MEMORY")
    if query_only:
        conn.execute("PRAGMA query_only = ON")
    return conn


def _open_writer(path: Path, settings: StoreSettings) -> sqlite3.Connection:
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        conn = _connect(path, query_only=False)
        mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        assert mode == "wal", mode
        conn.execute(f"PRAGMA synchronous = {'FULL' if settings.durable else 'NORMAL'}")
        conn.execute("PRAGMA wal_autocheckpoint = 2000")
        conn.execute("PRAGMA journal_size_limit = 67108864")
        migrate(conn)
    except sqlite3.DatabaseError as error:
        raise Unavailable(
            f"the state in {path} cannot be opened: {error}. Put a backup in its place, or move it"
            " away to begin with an empty queue"
        ) from error
    return conn


def encoded_size(command: msgspec.Struct) -> int:
    return len(_ENCODER.encode(command))


_ENCODER = msgspec.msgpack.Encoder()
