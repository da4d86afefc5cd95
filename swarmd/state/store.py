"""The store: one thread that writes, with group commit, and a few connections that read.

What it is handed was agreed on: it is on the log's disk before, and applied in the log's order."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import msgspec
import trio

from swarmd.domain.errors import Unavailable
from swarmd.state.commands import VERSION, Batch, Entry
from swarmd.state.machine import Applied, Machine, Place, read_place
from swarmd.state.queries import QUERIES, Query, T
from swarmd.state.schema import migrate
from swarmd.state.versions import check_known, in_force_in

log = logging.getLogger(__name__)

Delivered = Callable[[Sequence[Applied], Place], None]

TEND_EVERY_S = 0.5
WAL_PAGES_MAX = 2000


def _nobody(applied: Sequence[Applied], place: Place) -> None:
    """For work that nobody waits for."""


@dataclass(frozen=True)
class StoreSettings:
    readers: int = 2
    batch_max: int = 256
    """Requests that share a transaction, about."""
    read_s_max: float = 5.0
    durable: bool = False
    """fsync here too. Not needed where a log in front does that: what is lost is applied again."""
    version: int = VERSION
    """The newest version of the machine that is applied."""


class Slot(msgspec.Struct, frozen=True, gc=False):
    """One entry of the log, as it was agreed on; without data it changes nothing."""

    index: int
    term: int
    data: bytes


class SnapshotFile(msgspec.Struct, frozen=True):
    """A copy of the state in a file of its own, whole and fsynced."""

    path: Path
    place: Place
    size_bytes: int
    sha256: str


class StateStore(Protocol):
    """What a replica needs of whatever keeps its state."""

    @property
    def place(self) -> Place:
        """How far it is applied, as far as was told."""

    @property
    def last_at(self) -> int: ...

    def submit(self, slots: Sequence[Slot], upto: Place, done: Delivered) -> None:
        """Have entries applied, in the order of the calls; `done` is told what became of them."""

    async def read(self, query: Query[T]) -> T:
        """Answer from one moment of what is applied."""

    async def copy_to(self, path: Path) -> SnapshotFile:
        """A copy of what is applied by now, while work goes on."""

    async def check_copy(self, path: Path) -> SnapshotFile:
        """Read a copy that came from elsewhere. Unavailable: it is damaged, or none. Outdated: it
        is newer than what is known here."""

    async def make_durable(self) -> int:
        """Answers up to which index everything is on disk for certain; 0: not known now."""

    async def install(self, file: SnapshotFile) -> None:
        """Put a copy in the place of the state. Who reads waits meanwhile; what was submitted
        before is applied before, to what is then gone."""


class Store:
    """A StateStore in a file. One owner calls `submit` and `install`, in the log's order."""

    def __init__(self, path: Path, settings: StoreSettings) -> None:
        self._path = path
        self._settings = settings
        self._waiting: deque[_Work] = deque()
        self._wake = threading.Event()
        self._stopping = False
        self._failed: BaseException | None = None
        self._limiter = trio.CapacityLimiter(settings.readers)
        self._idle: list[sqlite3.Connection] = []
        self._failure_seen = trio.Event()
        self._moved = trio.Event()
        self._files = trio.Lock()
        """Whoever opens the file besides the writer and the readers holds it: the last to close
        an SQLite file takes away the log that lies beside its name."""
        self.place = Place(0, 0)
        self.last_at = 0

    def submit(self, slots: Sequence[Slot], upto: Place, done: Delivered) -> None:
        self._hand_over(_Work(slots, upto, done))

    def _hand_over(self, work: _Work) -> None:
        if self._failed is not None or self._stopping:
            raise Unavailable("the state is closed; this node is stopping")
        self._waiting.append(work)
        self._wake.set()

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
        while self._idle:
            self._idle.pop().close()

    async def copy_to(self, path: Path) -> SnapshotFile:
        async with self._files:
            return await trio.to_thread.run_sync(_copy, self._path, path)

    async def check_copy(self, path: Path) -> SnapshotFile:
        return await trio.to_thread.run_sync(check_copy, path, self._settings.version)

    async def make_durable(self) -> int:
        async with self._files:
            return (await trio.to_thread.run_sync(_checkpoint, self._path))[0]

    async def install(self, file: SnapshotFile) -> None:
        tokens = [object() for _ in range(self._settings.readers)]
        installed = trio.Event()

        def done(applied: Sequence[Applied], place: Place) -> None:
            installed.set()

        with trio.CancelScope(shield=True):
            async with self._files:
                for token in tokens:
                    await self._limiter.acquire_on_behalf_of(token)
                try:
                    await trio.to_thread.run_sync(self._close_readers)
                    self._hand_over(_Work((), file.place, done, file.path))
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_cancel_after, self._failure_seen, nursery.cancel_scope)
                        await installed.wait()
                        nursery.cancel_scope.cancel()
                finally:
                    for token in tokens:
                        self._limiter.release_on_behalf_of(token)

    def _write_forever(self, conn: sqlite3.Connection, token: trio.lowlevel.TrioToken) -> None:
        machine = Machine(conn, self._settings.version)
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    file = self._waiting[0].install
                    if self._waiting[0].restart_wal:
                        self._waiting.popleft()
                        conn.execute("PRAGMA wal_checkpoint(PASSIVE)")
                    elif file is not None:
                        work = self._waiting.popleft()
                        conn.close()
                        conn = _put_in_place(file, self._path, self._settings.version)
                        machine = Machine(conn, self._settings.version)
                        nothing: list[Applied] = []
                        token.run_sync_soon(self._deliver, [(work, nothing)], machine.last_at)
                    else:
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
        taken: list[tuple[_Work, list[Entry]]] = []
        entries: list[Entry] = []
        while self._waiting and not self._waiting[0].alone:
            if len(entries) >= self._settings.batch_max:
                break
            work = self._waiting.popleft()
            mine = decode_slots(work.slots)
            entries += mine
            taken.append((work, mine))
        upto = taken[-1][0].upto
        if upto.conf is None:
            confs = (work.upto.conf for work, _ in reversed(taken) if work.upto.conf is not None)
            upto = Place(upto.index, upto.term, next(confs, None))
        applied = machine.apply(entries, upto)
        delivery, start = [], 0
        for work, mine in taken:
            delivery.append((work, applied[start : start + len(mine)]))
            start += len(mine)
        token.run_sync_soon(self._deliver, delivery, machine.last_at)

    def _deliver(self, delivery: list[tuple[_Work, list[Applied]]], last_at: int) -> None:
        self.last_at = last_at
        for work, applied in delivery:
            upto = work.upto
            self.place = Place(upto.index, upto.term, upto.conf or self.place.conf)
            work.done(applied, work.upto)
        self._moved.set()

    async def _tend(self) -> None:
        """Carry SQLite's log into the file beside the writer, which must not stand still for it.
        A log that has grown is then begun anew: for that the writer carries over the little that
        came meanwhile."""
        tended = self.place.index
        while True:
            if self.place.index == tended:
                self._moved = trio.Event()
                await self._moved.wait()
            await trio.sleep(TEND_EVERY_S)
            tended = self.place.index
            async with self._files:
                _, pages = await trio.to_thread.run_sync(_checkpoint, self._path)
            if pages > WAL_PAGES_MAX and not self._stopping and self._failed is None:
                self._hand_over(_Work((), self.place, _nobody, restart_wal=True))

    async def _watch_failure(self) -> None:
        await self._failure_seen.wait()
        assert self._failed is not None
        log.critical("the state cannot be written", extra={"reason": repr(self._failed)})
        raise self._failed


@dataclass(slots=True, frozen=True)
class _Work:
    slots: Sequence[Slot]
    upto: Place
    done: Delivered
    install: Path | None = None
    restart_wal: bool = False

    @property
    def alone(self) -> bool:
        """It shares no transaction."""
        return self.install is not None or self.restart_wal


async def _cancel_after(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


def decode_slots(slots: Sequence[Slot]) -> list[Entry]:
    """The commands of entries, in their order."""
    entries: list[Entry] = []
    for slot in slots:
        if not slot.data:
            continue
        try:
            batch = _decode_batch(slot.data)
        except (ValueError, RecursionError) as error:
            raise Unavailable(
                "the log holds what this version of swarmd does not know; start a newer one",
                index=slot.index,
            ) from error
        entries += [
            Entry(slot.index, slot.term, batch.at, request.actor, request.command, request.id)
            for request in batch.requests
        ]
    return entries


@asynccontextmanager
async def open_store(path: Path, settings: StoreSettings) -> AsyncIterator[Store]:
    """The file is made and migrated where needed. A failure to write cancels the caller's scope
    with that error: a process that cannot keep its word must not go on giving it."""
    store = Store(path, settings)
    conn = await trio.to_thread.run_sync(_open_writer, path, settings)
    first = Machine(conn)
    store.place, store.last_at = first.place, first.last_at
    token = trio.lowlevel.current_trio_token()
    thread = threading.Thread(
        target=store._write_forever, args=(conn, token), name="state-writer", daemon=True
    )
    thread.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store._watch_failure)
        nursery.start_soon(store._tend)
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
    if not path.exists():
        _drop_rest(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        conn = _connect(path, query_only=False)
        mode = conn.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        assert mode == "wal", mode
        conn.execute(f"PRAGMA synchronous = {'FULL' if settings.durable else 'NORMAL'}")
        conn.execute("PRAGMA wal_autocheckpoint = 0")  # see Store._tend
        conn.execute("PRAGMA journal_size_limit = 67108864")
        migrate(conn, settings.version)
    except sqlite3.DatabaseError as error:
        raise Unavailable(
            f"the state in {path} cannot be opened: {error}. Put a backup in its place, or move it"
            " away to begin with an empty queue"
        ) from error
    return conn


def _put_in_place(file: Path, path: Path, version: int) -> sqlite3.Connection:
    """Nobody has the old file open: the last to close it took its log away."""
    _drop_rest(path)
    file.replace(path)
    sync_directory(path.parent)
    return _open_writer(path, StoreSettings(version=version))


def _drop_rest(path: Path) -> None:
    """SQLite would take what lies beside the name for this file's own, and mix it in."""
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def _copy(live: Path, path: Path) -> SnapshotFile:
    path.unlink(missing_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    source = _connect(live, query_only=True)
    try:
        copy = sqlite3.connect(path, isolation_level=None)
        try:
            copy.execute("PRAGMA synchronous = OFF")
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            place = read_place(copy)
        finally:
            copy.close()
    finally:
        source.close()
    size, digest = hash_file(path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)
    return SnapshotFile(path, place, size, digest)


def hash_file(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def check_copy(path: Path, version: int = VERSION) -> SnapshotFile:
    """Read a copy that came from elsewhere. Invalid content is refused with Unavailable, and with
    Outdated what is of a newer version than the one given."""
    size, digest = hash_file(path)
    try:
        conn = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
            place = read_place(conn)
            check_known(in_force_in(conn), version)
        finally:
            conn.close()
    except (sqlite3.DatabaseError, ValueError, TypeError) as error:
        # ValueError: what SQLite says of it has bytes of it, and those are no UTF-8.
        raise Unavailable(f"{path} is no state of a swarm: {error}") from error
    if found != "ok" or place.index == 0:
        raise Unavailable(f"{path} is damaged, or empty: {found}")
    return SnapshotFile(path, place, size, digest)


def _checkpoint(path: Path) -> tuple[int, int]:
    """Up to which index all is in the file itself, 0 where it cannot be said; and how many pages
    SQLite's own log has."""
    conn = _connect(path, query_only=False)
    try:
        index = read_place(conn).index
        busy, pages, moved = conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        return index if not busy and pages == moved else 0, pages
    finally:
        conn.close()


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def encode_batch(at: int, requests: Sequence[msgspec.Raw]) -> bytes:
    """The data of an entry, from requests that are encoded already."""
    return _ENCODER.encode((at, requests))


def encode_request(request: Any) -> bytes:
    return _ENCODER.encode(request)


def encoded_size(command: msgspec.Struct) -> int:
    return len(_ENCODER.encode(command))


_ENCODER = msgspec.msgpack.Encoder()
_decode_batch = msgspec.msgpack.Decoder(Batch).decode
