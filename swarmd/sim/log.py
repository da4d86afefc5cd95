"""The log of a simulated disk: the words of mesh.wal, kept in memory.

What was acknowledged is there after any crash, and of what was not a prefix.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import trio

from mesh.raft import (
    NO_LIMIT,
    ConfState,
    Entry,
    HardState,
    Snapshot,
    SnapshotMeta,
    SnapshotTemporarilyUnavailable,
)
from mesh.wal_errors import DiskFull, LogBusy, LogError, LogFailed, damaged
from swarmd.sim.disk import Disk

OnDone = Callable[[], None]


class SimTicket:
    def __init__(self, on_done: OnDone | None) -> None:
        self.on_done = on_done
        self._event: trio.Event | None = None
        self.done = False
        self.error: LogError | None = None
        self.entries: Sequence[Entry] = ()
        self.hard_state: HardState | None = None
        self.snapshot: SnapshotMeta | None = None
        self.compact: int | None = None
        self.fact: tuple[str, bytes] | None = None

    async def wait(self) -> None:
        if self.done or self.error is not None:
            await trio.lowlevel.checkpoint()
        else:
            self._event = self._event or trio.Event()
            await self._event.wait()
        if self.error is not None:
            raise self.error

    def finish(self, error: LogError | None = None) -> None:
        self.done, self.error = error is None, error
        if self._event is not None:
            self._event.set()
        if self.done and self.on_done is not None:
            self.on_done()


class SimLog:
    """The RaftLog of one life of a node."""

    def __init__(self, disk: Disk) -> None:
        """Raises LogDamaged, DiskFull."""
        path = Path(disk.name, "raft.db")
        if disk.bad_log is not None:
            raise damaged(path, disk.bad_log)
        if disk.full:
            raise _no_room(path)
        self._path = path
        self._disk = disk
        self._stored = disk.stored
        self.failed = trio.Event()
        self.failure: LogError | None = None
        """The log is over until the next start."""
        disk.boot += 1
        self.boot = disk.boot
        self._waiting: deque[SimTicket] = deque()
        self._syncing: deque[SimTicket] = deque()
        self._dead = False

    def crash(self) -> None:
        """Of what was under way a prefix is on disk."""
        if self._dead:
            return
        self._dead = True
        under_way = [*self._syncing, *self._waiting]
        for ticket in under_way[: self._disk.rng.randint(0, len(under_way))]:
            self._write(ticket)

    def close(self) -> None:
        """In good order: what was handed over is on disk."""
        if not self._dead:
            self._dead = True
            for ticket in (*self._syncing, *self._waiting):
                self._write(ticket)

    def _hand_over(self, ticket: SimTicket) -> SimTicket:
        if self.failure is not None:
            raise LogFailed(self.failure.message, **self.failure.facts)
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
            self._disk.timers.after(delay_s, partial(self._disk.gate, self._synced))

    def _synced(self) -> None:
        if self._dead:
            return
        if self._disk.full:
            self._fail(_no_room(self._path))
            return
        group, self._syncing = self._syncing, deque()
        for ticket in group:
            self._write(ticket)
        self._sync()
        for ticket in group:
            ticket.finish()

    def _fail(self, failure: LogError) -> None:
        """Nothing of what waits was acknowledged, nor will be: the process has to end."""
        self._dead, self.failure = True, failure
        for ticket in (*self._syncing, *self._waiting):
            ticket.finish(failure)
        self.failed.set()

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
        kept = self._disk.checkpointed
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


def _no_room(path: Path) -> DiskFull:
    return DiskFull(
        f"no room for the log {path}: database or disk is full. Nothing of the write was"
        " acknowledged. Free space on its file system, then start this node again; it loses"
        " nothing",
        file=str(path),
    )
