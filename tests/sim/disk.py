"""A disk in memory: what was not synced is gone after a crash, up to some point that chance picks.

The log keeps what was acknowledged, and a prefix of what was not. The state keeps what its process
wrote, or, where the power went, what was checkpointed last.
"""

from __future__ import annotations

import random
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

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
from swarmd.domain.errors import Unavailable
from swarmd.state.machine import Machine, Place, read_place
from swarmd.state.queries import QUERIES, Query, T
from swarmd.state.schema import migrate
from swarmd.state.store import Delivered, Slot, SnapshotFile, decode_slots, hash_file

OnDone = Callable[[], None]


@dataclass
class Disk:
    """One node's, across its lives."""

    rng: random.Random
    sync_s: tuple[float, float] = (0.0005, 0.003)
    stored: MemoryStorage = field(default_factory=MemoryStorage)
    facts: dict[str, bytes] = field(default_factory=dict)
    boot: int = 0
    state: sqlite3.Connection = field(default_factory=lambda: _database(None))
    checkpoint: bytes | None = None
    log: SimLog | None = None
    acknowledge_early: bool = False
    """A fault for mutants: writes count as done before they are."""

    def lose_power(self) -> None:
        """What the state had not checkpointed is gone; the log begins where it ends or before."""
        self.state.close()
        self.state = _database(self.checkpoint)


def _database(content: bytes | None) -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    if content is not None:
        conn.deserialize(content)
    migrate(conn)
    return conn


class SimTicket:
    def __init__(self, on_done: OnDone | None) -> None:
        self.on_done = on_done
        self._event = trio.Event()
        self.entries: Sequence[Entry] = ()
        self.hard_state: HardState | None = None
        self.snapshot: SnapshotMeta | None = None
        self.compact: int | None = None
        self.fact: tuple[str, bytes] | None = None

    @property
    def done(self) -> bool:
        return self._event.is_set()

    async def wait(self) -> None:
        await self._event.wait()

    def finish(self) -> None:
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
        self._wake = trio.Event()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting:
                await trio.sleep(self._disk.rng.uniform(*self._disk.sync_s))
                group = list(self._waiting)
                for ticket in group:
                    self._write(ticket)
                    self._waiting.popleft()
                for ticket in group:
                    ticket.finish()

    def crash(self) -> None:
        """Of what was under way a prefix is on disk."""
        for _ in range(self._disk.rng.randint(0, len(self._waiting))):
            self._write(self._waiting.popleft())
        self._waiting.clear()

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

    def _hand_over(self, ticket: SimTicket) -> SimTicket:
        self._waiting.append(ticket)
        self._wake.set()
        return ticket

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
        return sum(len(e.data) for t in self._waiting for e in t.entries)

    # Write

    def append(
        self, entries: Sequence[Entry] = (), hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None, on_done: OnDone | None = None,
    ) -> SimTicket:  # fmt: skip
        ticket = SimTicket(on_done)
        ticket.entries, ticket.hard_state, ticket.snapshot = entries, hard_state, snapshot
        return self._hand_over(ticket)

    def restore(self, snapshot: SnapshotMeta, on_done: OnDone | None = None) -> SimTicket:
        return self.append(snapshot=snapshot, on_done=on_done)

    def compact(
        self, upto: int, conf_state: ConfState, *, checkpointed: int, on_done: OnDone | None = None
    ) -> SimTicket:
        assert upto <= checkpointed
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

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._machine = Machine(disk.state)
        self.place = self._machine.place
        self.last_at = self._machine.last_at
        self._waiting: deque[tuple[Sequence[Slot], Place, Delivered]] = deque()
        self._wake = trio.Event()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            await trio.sleep(self._disk.rng.uniform(0, 0.001))
            self._apply_waiting()

    def _apply_waiting(self) -> None:
        while self._waiting:
            slots, upto, done = self._waiting.popleft()
            applied = self._machine.apply(decode_slots(slots), upto)
            self.place = self._machine.place
            self.last_at = self._machine.last_at
            done(applied, upto)

    def submit(self, slots: Sequence[Slot], upto: Place, done: Delivered) -> None:
        self._waiting.append((slots, upto, done))
        self._wake.set()

    async def read(self, query: Query[T]) -> T:
        await trio.lowlevel.checkpoint()
        answer: T = QUERIES[type(query)](self._disk.state, query)
        return answer

    async def copy_to(self, path: Path) -> SnapshotFile:
        await trio.lowlevel.checkpoint()
        path.write_bytes(self._disk.state.serialize())
        size, digest = hash_file(path)
        return SnapshotFile(path, self._machine.place, size, digest)

    async def check_copy(self, path: Path) -> SnapshotFile:
        await trio.lowlevel.checkpoint()
        try:
            conn = _database(path.read_bytes())
            place = read_place(conn)
            conn.close()
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"the copy is damaged: {error}") from error
        size, digest = hash_file(path)
        return SnapshotFile(path, place, size, digest)

    async def make_durable(self) -> int:
        await trio.sleep(self._disk.rng.uniform(*self._disk.sync_s))
        self._disk.checkpoint = self._disk.state.serialize()
        return self._machine.place.index

    async def install(self, file: SnapshotFile) -> None:
        await trio.lowlevel.checkpoint()
        self._apply_waiting()
        content = file.path.read_bytes()
        self._disk.state.close()
        self._disk.state = _database(content)
        self._disk.checkpoint = content
        self._machine = Machine(self._disk.state)
        self.place = self._machine.place
        self.last_at = self._machine.last_at
