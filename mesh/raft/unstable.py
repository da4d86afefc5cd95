"""The part of the log that is not known to be on disk: entries, or a snapshot with entries after.

Entries before `in_progress` have been handed to storage. Storage writes in the order it was given
work, so an entry is stable only when the newest write of its index is, in this term.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.raft import trace
from mesh.raft.types import Entry, Snapshot


class Unstable:
    __slots__ = ("_trace", "entries", "in_progress", "offset", "snapshot", "snapshot_in_progress")

    def __init__(self, offset: int, listener: trace.Trace | None) -> None:
        """`offset` is the index of the first entry that storage has not got."""
        self.offset = offset
        self.in_progress = offset
        self.entries: list[Entry] = []
        self.snapshot: Snapshot | None = None
        self.snapshot_in_progress = False
        self._trace = listener

    def term(self, index: int) -> int | None:
        """None where this part of the log does not know."""
        at = index - self.offset
        if at >= 0:
            return self.entries[at].term if at < len(self.entries) else None
        snapshot = self.snapshot
        if snapshot is not None and snapshot.meta.index == index:
            return snapshot.meta.term
        return None

    def new_entries(self) -> tuple[Entry, ...]:
        """Those that storage has not been told of."""
        return tuple(self.entries[self.in_progress - self.offset :])

    @property
    def has_new_entries(self) -> bool:
        return len(self.entries) > self.in_progress - self.offset

    @property
    def new_snapshot(self) -> Snapshot | None:
        return None if self.snapshot_in_progress else self.snapshot

    def accept(self) -> None:
        """All of this has been handed to storage."""
        self.in_progress = self.offset + len(self.entries)
        if self.snapshot is not None:
            self.snapshot_in_progress = True

    def stable_to(self, index: int, term: int) -> None:
        """Storage has everything up to this entry, and nothing under way overwrites it."""
        kept = self.term(index)
        if kept is None:
            self._tell(trace.UnstableAckMissing(index))
        elif index < self.offset:
            self._tell(trace.UnstableAckOfSnapshot(index))
        elif kept != term:
            acked, here = trace.LogPoint(term, index), trace.LogPoint(kept, index)
            self._tell(trace.UnstableAckMismatched(acked, here))
        else:
            del self.entries[: index + 1 - self.offset]
            self.offset = index + 1
            self.in_progress = max(self.in_progress, self.offset)

    def stable_snapshot_to(self, index: int) -> None:
        if self.snapshot is not None and self.snapshot.meta.index == index:
            self.snapshot = None
            self.snapshot_in_progress = False

    def restore(self, snapshot: Snapshot) -> None:
        """The snapshot takes the place of all there was."""
        self.offset = self.in_progress = snapshot.meta.index + 1
        self.entries = []
        self.snapshot = snapshot
        self.snapshot_in_progress = False

    def append(self, entries: Sequence[Entry]) -> None:
        """Put these in the place of whatever had their indexes, or a later one."""
        start = entries[0].index
        at = start - self.offset
        if at == len(self.entries):
            self.entries.extend(entries)
        elif at <= 0:
            self._tell(trace.UnstableReplaced(start))
            self.entries = list(entries)
            self.offset = self.in_progress = start
        else:
            assert at < len(self.entries), "entries were appended behind a gap"
            self._tell(trace.UnstableTruncated(start))
            self.entries[at:] = entries
            # What storage was told of the replaced ones no longer counts.
            self.in_progress = min(self.in_progress, start)

    def _tell(self, event: trace.Event) -> None:
        if self._trace is not None:
            self._trace(event)
