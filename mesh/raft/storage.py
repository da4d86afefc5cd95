"""What the core asks of a disk, and a disk in memory for tests and the simulated world.

What the core was told to be stored is there when it asks. Nothing is stored behind its back but a
later first index: the application may compact what it has applied at any time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mesh.raft.errors import Compacted, SnapshotOutOfDate, Unavailable
from mesh.raft.sizes import fitting
from mesh.raft.types import NO_LIMIT, ConfState, Entry, HardState, Snapshot, SnapshotMeta


class Storage(Protocol):
    """The stable part of the log: a snapshot, and the entries after it without a gap.

    Each call is answered from memory or a page cache; it never waits for a write under way.
    """

    def initial_state(self) -> tuple[HardState, ConfState]:
        """What was durable when the node started."""
        ...

    def entries(self, lo: int, hi: int, bytes_max: int) -> Sequence[Entry]:
        """Entries lo to hi - 1, at least one, then as many as fit. Compacted, Unavailable."""
        ...

    def term(self, index: int) -> int:
        """Also of the entry just before the first: the snapshot's. Compacted, Unavailable."""
        ...

    def first_index(self) -> int: ...

    def last_index(self) -> int: ...

    def snapshot(self) -> Snapshot:
        """The latest one; SnapshotTemporarilyUnavailable while one is being made."""
        ...


class MemoryStorage:
    """A disk that forgets on power off. `append` overwrites from the first index it is given."""

    def __init__(self) -> None:
        self.hard_state = HardState()
        self._snapshot = Snapshot()
        # The term and the index of what lies just before the first entry.
        self._base = SnapshotMeta()
        self._entries: list[Entry] = []

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self.hard_state, self._snapshot.meta.conf_state

    def entries(self, lo: int, hi: int, bytes_max: int = NO_LIMIT) -> Sequence[Entry]:
        if lo <= self._base.index:
            raise Compacted(f"entry {lo} was compacted, the first kept is {self.first_index()}")
        if hi > self.last_index() + 1:
            raise Unavailable(f"entries up to {hi - 1} were asked for, {self.last_index()} is last")
        start = self._base.index + 1
        return fitting(self._entries, bytes_max, lo - start, hi - start)

    def term(self, index: int) -> int:
        if index < self._base.index:
            raise Compacted(f"entry {index} was compacted")
        if index == self._base.index:
            return self._base.term
        if index > self.last_index():
            raise Unavailable(f"entry {index} was asked for, {self.last_index()} is last")
        return self._entries[index - self._base.index - 1].term

    def first_index(self) -> int:
        return self._base.index + 1

    def last_index(self) -> int:
        return self._base.index + len(self._entries)

    def snapshot(self) -> Snapshot:
        return self._snapshot

    def set_hard_state(self, state: HardState) -> None:
        self.hard_state = state

    def append(self, entries: Sequence[Entry]) -> None:
        """Write these in the place of whatever had their indexes, or a later one."""
        if not entries:
            return
        keep = entries[0].index - self.first_index()
        if keep > len(self._entries):
            raise Unavailable(
                f"entry {entries[0].index} would leave a gap after {self.last_index()}"
            )
        if keep < 0:
            entries = entries[-keep:]
            keep = 0
            if not entries:
                return
        self._entries[keep:] = entries

    def apply_snapshot(self, snapshot: Snapshot) -> None:
        """Replace the whole log by this snapshot."""
        if snapshot.meta.index <= self._snapshot.meta.index:
            raise SnapshotOutOfDate(
                f"a snapshot at {snapshot.meta.index} came after one at {self._snapshot.meta.index}"
            )
        self._snapshot = snapshot
        self._base = snapshot.meta
        self._entries.clear()

    def create_snapshot(self, index: int, conf_state: ConfState, data: bytes = b"") -> Snapshot:
        """A snapshot of the machine as of this entry, which must be kept in the log."""
        if index <= self._snapshot.meta.index:
            raise SnapshotOutOfDate(f"there is a snapshot at {self._snapshot.meta.index} already")
        self._snapshot = Snapshot(SnapshotMeta(index, self.term(index), conf_state), data)
        return self._snapshot

    def compact(self, index: int) -> None:
        """Drop the entries up to this one; its term stays known."""
        if index <= self._base.index:
            raise Compacted(f"entry {index} was compacted already")
        term = self.term(index)
        del self._entries[: index - self._base.index]
        self._base = SnapshotMeta(index, term)
