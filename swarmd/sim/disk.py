"""A disk in memory: what was not synced is gone after a crash, up to some point that chance picks.

The log keeps what was acknowledged, and a prefix of what was not. The state keeps what its process
wrote, or, where the power went, what was checkpointed last.
"""

from __future__ import annotations

import functools
import random
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from mesh.raft import (
    NO_LIMIT,
    ConfState,
    Entry,
    HardState,
    MemoryStorage,
    Snapshot,
    SnapshotMeta,
    SnapshotTemporarilyUnavailable,
)
from mesh.wal_errors import LogBusy
from swarmd.domain.errors import Unavailable
from swarmd.sim.clockwork import Timers
from swarmd.state.commands import VERSION
from swarmd.state.machine import Machine, Place, read_place
from swarmd.state.queries import QUERIES, Query, T
from swarmd.state.schema import migrate
from swarmd.state.store import Delivered, Slot, SnapshotFile, decode_slots, hash_file
from swarmd.state.versions import Outdated, check_known, in_force_in

OnDone = Callable[[], None]


class Watcher(Protocol):
    """Who checks what is applied, as it happens."""

    def applies(self, name: str, place: Place, slots: Sequence[Slot], upto: Place) -> None: ...

    def applied(self, name: str, place: Place, conn: sqlite3.Connection) -> None: ...

    def installed(self, name: str, place: Place) -> None: ...


@dataclass
class Disk:
    """One node's, across its lives."""

    name: str
    rng: random.Random
    timers: Timers
    watcher: Watcher
    sync_s: tuple[float, float] = (0.0005, 0.003)
    apply_s: tuple[float, float] = (0.0, 0.001)
    """How long what was agreed on waits for the state."""
    writes_max: int = 64
    """Writes of the log that wait; one more is LogBusy."""
    stored: MemoryStorage = field(default_factory=MemoryStorage)
    facts: dict[str, bytes] = field(default_factory=dict)
    boot: int = 0
    state: sqlite3.Connection = field(default_factory=lambda: _database(None))
    checkpoint: bytes | None = None
    busy: int = 0
    """How often the log was full."""

    def lose_power(self) -> None:
        """What the state had not checkpointed is gone; the log begins where it ends or before."""
        self.state.close()
        self.state = _database(self.checkpoint)


@functools.cache
def _empty() -> bytes:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(conn)
    # Which migration ran when is no part of what replicas agree on, but it is of a copy's bytes.
    conn.execute("UPDATE _sqlite_migrations SET applied_at = ''")
    conn.execute("VACUUM")
    content = conn.serialize()
    conn.close()
    return content


def _database(content: bytes | None) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None, cached_statements=512)
    conn.deserialize(_empty() if content is None else content)
    return conn


class SimTicket:
    def __init__(self, on_done: OnDone | None) -> None:
        self.on_done = on_done
        self._event: trio.Event | None = None
        self.done = False
        self.entries: Sequence[Entry] = ()
        self.hard_state: HardState | None = None
        self.snapshot: SnapshotMeta | None = None
        self.compact: int | None = None
        self.fact: tuple[str, bytes] | None = None

    async def wait(self) -> None:
        if self.done:
            await trio.lowlevel.checkpoint()
            return
        self._event = self._event or trio.Event()
        await self._event.wait()

    def finish(self) -> None:
        self.done = True
        if self._event is not None:
            self._event.set()
        if self.on_done is not None:
            self.on_done()


class SimLog:
    """The RaftLog of one life of a node."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._stored = disk.stored
        disk.boot += 1
        self.boot = disk.boot
        self._waiting: deque[SimTicket] = deque()
        self._syncing: deque[SimTicket] = deque()
        self._dead = False

    def crash(self) -> None:
        """Of what was under way a prefix is on disk."""
        self._dead = True
        under_way = [*self._syncing, *self._waiting]
        for ticket in under_way[: self._disk.rng.randint(0, len(under_way))]:
            self._write(ticket)

    def _hand_over(self, ticket: SimTicket) -> SimTicket:
        if len(self._waiting) + len(self._syncing) >= self._disk.writes_max:
            self._disk.busy += 1
            raise LogBusy("too many writes wait for the disk")
        self._waiting.append(ticket)
        if not self._syncing:
            self._sync()
        return ticket

    def _sync(self) -> None:
        """One at a time: who comes meanwhile goes with the next."""
        if self._waiting:
            self._syncing, self._waiting = self._waiting, deque()
            delay_s = self._disk.rng.uniform(*self._disk.sync_s)
            self._disk.timers.after(delay_s, self._synced)

    def _synced(self) -> None:
        if self._dead:
            return
        group, self._syncing = self._syncing, deque()
        for ticket in group:
            self._write(ticket)
        self._sync()
        for ticket in group:
            ticket.finish()

    def _write(self, ticket: SimTicket) -> None:
        stored = self._stored
        if ticket.snapshot is not None:
            stored.apply_snapshot(Snapshot(ticket.snapshot))
        if ticket.entries:
            stored.append(ticket.entries)
        if ticket.hard_state is not None:
            stored.set_hard_state(ticket.hard_state)
        if ticket.compact is not None and ticket.compact >= stored.first_index():
            stored.compact(ticket.compact)
        if ticket.fact is not None:
            self._disk.facts[ticket.fact[0]] = ticket.fact[1]

    # Read

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._stored.initial_state()

    def entries(self, lo: int, hi: int, bytes_max: int = NO_LIMIT) -> Sequence[Entry]:
        return self._stored.entries(lo, hi, bytes_max)

    def term(self, index: int) -> int:
        return self._stored.term(index)

    def first_index(self) -> int:
        return self._stored.first_index()

    def last_index(self) -> int:
        return self._stored.last_index()

    def snapshot(self) -> Snapshot:
        raise SnapshotTemporarilyUnavailable("whoever owns the state has it")

    def fact(self, name: str) -> bytes | None:
        return self._disk.facts.get(name)

    @property
    def hard_state(self) -> HardState:
        return self._stored.hard_state

    @property
    def compacted(self) -> SnapshotMeta:
        index = self._stored.first_index() - 1
        return SnapshotMeta(index, self._stored.term(index))

    @property
    def waiting_bytes(self) -> int:
        return sum(len(e.data) for t in (*self._syncing, *self._waiting) for e in t.entries)

    # Write

    def append(
        self, entries: Sequence[Entry] = (), hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None, on_done: OnDone | None = None,
    ) -> SimTicket:  # fmt: skip
        ticket = SimTicket(on_done)
        ticket.entries, ticket.hard_state, ticket.snapshot = tuple(entries), hard_state, snapshot
        return self._hand_over(ticket)

    def restore(self, snapshot: SnapshotMeta, on_done: OnDone | None = None) -> SimTicket:
        return self.append(snapshot=snapshot, on_done=on_done)

    def compact(
        self, upto: int, conf_state: ConfState, *, checkpointed: int, on_done: OnDone | None = None
    ) -> SimTicket:
        assert upto <= checkpointed, (upto, checkpointed)
        kept = 0 if self._disk.checkpoint is None else _place_in(self._disk.checkpoint)
        assert upto <= kept, f"{upto} would go, and the state has {kept} on disk"
        ticket = SimTicket(on_done)
        ticket.compact = upto
        return self._hand_over(ticket)

    def set_fact(self, name: str, value: bytes, on_done: OnDone | None = None) -> SimTicket:
        ticket = SimTicket(on_done)
        ticket.fact = (name, value)
        return self._hand_over(ticket)

    def offer_snapshot(self, snapshot: Snapshot | None) -> None:
        raise AssertionError("not used here")

    def use_conf_state(self, conf_state: ConfState) -> None:
        raise AssertionError("not used here")


class SimStore:
    """The StateStore of one life of a node: the real machine, no thread."""

    def __init__(self, disk: Disk, version: int = VERSION) -> None:
        """Raises Outdated where the state is of a newer version."""
        self._disk = disk
        self._version = version
        migrate(disk.state, version)
        self._machine = Machine(disk.state, version)
        self.failed = trio.Event()
        self.failure: Outdated | None = None
        self.place = self._machine.place
        self.last_at = self._machine.last_at
        self._waiting: deque[tuple[Sequence[Slot], Place, Delivered]] = deque()
        self._submitted = self.place
        self._dead = False

    def crash(self) -> None:
        self._dead = True

    def submit(self, slots: Sequence[Slot], upto: Place, done: Delivered) -> None:
        self._disk.watcher.applies(self._disk.name, self._submitted, slots, upto)
        self._submitted = upto
        if not self._waiting:
            self._disk.timers.after(
                self._disk.rng.uniform(*self._disk.apply_s), self._apply_waiting
            )
        self._waiting.append((slots, upto, done))

    def _apply_waiting(self) -> None:
        """All that waits in one transaction, or a part of it."""
        while self._waiting and not self._dead:
            taken = [
                self._waiting.popleft()
                for _ in range(self._disk.rng.randint(1, len(self._waiting)))
            ]  # fmt: skip
            each = [decode_slots(slots) for slots, _, _ in taken]
            place = taken[-1][1]
            confs = (upto.conf for _, upto, _ in reversed(taken) if upto.conf is not None)
            upto = Place(place.index, place.term, next(confs, None))
            try:
                applied = self._machine.apply([e for mine in each for e in mine], upto)
            except Outdated as outdated:
                self.failure, self._dead = outdated, True
                self.failed.set()
                return
            self._disk.watcher.applied(self._disk.name, self._machine.place, self._disk.state)
            start = 0
            for mine, (_, place, done) in zip(each, taken, strict=True):
                self.place = Place(place.index, place.term, place.conf or self.place.conf)
                self.last_at = self._machine.last_at
                done(applied[start : start + len(mine)], place)
                start += len(mine)

    async def read(self, query: Query[T]) -> T:
        await trio.lowlevel.checkpoint()
        answer: T = QUERIES[type(query)](self._disk.state, query)
        return answer

    async def copy_to(self, path: Path) -> SnapshotFile:
        await trio.lowlevel.checkpoint()
        path.write_bytes(self._disk.state.serialize())  # noqa: ASYNC240 - nothing waits here
        size, digest = hash_file(path)
        return SnapshotFile(path, self._machine.place, size, digest)

    async def check_copy(self, path: Path) -> SnapshotFile:
        await trio.lowlevel.checkpoint()
        try:
            conn = _database(path.read_bytes())  # noqa: ASYNC240 - nothing waits here
            place = read_place(conn)
            check_known(in_force_in(conn), self._version)
            conn.close()
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"the copy is damaged: {error}") from error
        size, digest = hash_file(path)
        return SnapshotFile(path, place, size, digest)

    async def make_durable(self) -> int:
        content, index = self._disk.state.serialize(), self._machine.place.index
        await trio.sleep(self._disk.rng.uniform(*self._disk.sync_s))
        # A checkpoint that met a reader got through in part: it says so, and is tried again.
        if self._disk.rng.random() < 0.2:
            return 0
        self._disk.checkpoint = content
        return index

    async def install(self, file: SnapshotFile) -> None:
        await trio.lowlevel.checkpoint()
        self._apply_waiting()
        content = file.path.read_bytes()
        self._disk.state.close()
        self._disk.state = _database(content)
        self._disk.checkpoint = content
        self._machine = Machine(self._disk.state, self._version)
        self.place = self._submitted = self._machine.place
        self.last_at = self._machine.last_at
        self._disk.watcher.installed(self._disk.name, self.place)
        # Two files are not written at once: a crash may come between this one and the log.
        await trio.sleep(self._disk.rng.uniform(*self._disk.sync_s))


def _place_in(content: bytes) -> int:
    conn = _database(content)
    try:
        return read_place(conn).index
    finally:
        conn.close()
