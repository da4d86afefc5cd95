"""The whole log: the stable part in `Storage`, the unstable part here, and three marks in it.

applied <= applying <= committed <= last_index always holds. An entry that is committed is never
replaced; one that is not may be.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.raft import trace
from mesh.raft.errors import Compacted, LogLost, MessageRefused, StorageError, Unavailable
from mesh.raft.sizes import entries_bytes, fitting, payload_bytes
from mesh.raft.storage import Storage
from mesh.raft.types import NO_LIMIT, Entry, Snapshot
from mesh.raft.unstable import Unstable

Tail = tuple[int, tuple[Entry, ...], int]
"""The index of the first entry, the entries, the size of their payload."""

NO_TAIL: Tail = (0, (), 0)


class Log:
    __slots__ = (
        "_applying_bytes",
        "_applying_bytes_max",
        "_applying_paused",
        "_tail",
        "_trace",
        "applied",
        "applying",
        "committed",
        "last_index",
        "last_term",
        "storage",
        "unstable",
    )

    def __init__(
        self, storage: Storage, *, applying_bytes_max: int, listener: trace.Trace | None
    ) -> None:
        self.storage = storage
        self._trace = listener
        self.last_index = storage.last_index()
        self.last_term = storage.term(self.last_index)
        self.committed = self.applying = self.applied = storage.first_index() - 1
        self.unstable = Unstable(self.last_index + 1, listener)
        self._tail: Tail | None = None
        # What is being applied: not a byte more is handed out until some of it is done.
        self._applying_bytes = 0
        self._applying_bytes_max = applying_bytes_max
        self._applying_paused = False

    @property
    def first_index(self) -> int:
        snapshot = self.unstable.snapshot
        return self.storage.first_index() if snapshot is None else snapshot.meta.index + 1

    @property
    def last(self) -> trace.LogPoint:
        return trace.LogPoint(self.last_term, self.last_index)

    # Reading

    def term(self, index: int) -> int:
        """Of an entry, or of the one just before the first. Compacted, Unavailable."""
        if index == self.last_index:
            return self.last_term
        if index > self.last_index:
            raise Unavailable(f"entry {index} was asked for, {self.last_index} is last")
        term = self.unstable.term(index)
        if term is not None:
            return term
        if index + 1 < self.first_index:
            raise Compacted(f"entry {index} was compacted")
        return self.storage.term(index)

    def term_or_zero(self, index: int) -> int:
        """0 for an entry that is not here."""
        try:
            return self.term(index)
        except (Compacted, Unavailable):
            return 0

    def matches(self, index: int, term: int) -> bool:
        """Is there such an entry? Then all before it agree as well."""
        try:
            return self.term(index) == term
        except (Compacted, Unavailable):
            return False

    def is_up_to_date(self, index: int, term: int) -> bool:
        """Is a log that ends so at least as new as this one? The term comes first."""
        return (term, index) >= (self.last_term, self.last_index)

    def tail(self, index: int, bytes_max: int) -> Tail:
        """From this entry on as many as fit, with their payload's size. Peers at the same point
        share it: `bytes_max` is the same for all of them."""
        if index > self.last_index:
            return NO_TAIL
        tail = self._tail
        if tail is None or tail[0] != index:
            entries = self.slice(index, self.last_index + 1, bytes_max)
            tail = self._tail = index, entries, payload_bytes(entries)
        return tail

    def slice(self, lo: int, hi: int, bytes_max: int = NO_LIMIT) -> tuple[Entry, ...]:
        """Entries lo to hi - 1, at least one, then as many as fit."""
        unstable = self.unstable
        offset = unstable.offset
        if lo >= offset:
            return fitting(unstable.entries, bytes_max, lo - offset, hi - offset)
        if lo < self.first_index:
            raise Compacted(f"entry {lo} was compacted")
        stored = tuple(self.storage.entries(lo, min(hi, offset), bytes_max))
        if hi <= offset or len(stored) < offset - lo:
            return stored
        left = bytes_max - entries_bytes(stored) if bytes_max < NO_LIMIT else NO_LIMIT
        if left <= 0:
            return stored
        rest = fitting(unstable.entries, left, 0, hi - offset)
        return stored if entries_bytes(rest) > left else stored + rest

    def conflict_by_term(self, index: int, term: int) -> tuple[int, int]:
        """The last entry up to `index` whose term is not above `term`, with its term (0 where it
        is not known): what comes after it cannot agree with a log that has `term` at `index`."""
        try:
            while index > 0:
                own = self.term(index)
                if own <= term:
                    return index, own
                index -= 1
        except StorageError:
            return index, 0
        return 0, 0

    # Writing

    def append(self, entries: Sequence[Entry]) -> None:
        """Put these in the place of whatever had their indexes, or a later one."""
        assert entries[0].index > self.committed, "a committed entry would be replaced"
        self.unstable.append(entries)
        self._tail = None
        self.last_index = entries[-1].index
        self.last_term = entries[-1].term

    def maybe_append(
        self, index: int, term: int, entries: Sequence[Entry], commit: int
    ) -> int | None:
        """Append what a leader sent, if this log has the entry that comes before. Returns the
        last index that surely agrees with the leader's log now; None where nothing is known.

        Entries that are here already stay, and so does all behind them: an old message must
        never cut off what a later one brought.
        """
        if not self.matches(index, term):
            return None
        agreed = index + len(entries)
        if entries:
            new = 0 if index == self.last_index else self._first_new(entries)
            if new < len(entries):
                if entries[new].index <= self.committed:
                    raise LogLost(
                        f"entry {entries[new].index} differs from the leader's, but is committed "
                        f"here (up to {self.committed})"
                    )
                self.append(entries[new:] if new else entries)
        self.commit_to(min(commit, agreed))
        return agreed

    def restore(self, snapshot: Snapshot) -> None:
        """The snapshot takes the place of the log; storage is yet to be told."""
        meta = snapshot.meta
        unstable = self.unstable
        if self._trace is not None:
            self._trace(
                trace.LogRestoring(
                    commit=self.committed,
                    applied=self.applied,
                    applying=self.applying,
                    offset=unstable.offset,
                    offset_in_progress=unstable.in_progress,
                    unstable_count=len(unstable.entries),
                    snapshot=trace.LogPoint(meta.term, meta.index),
                )
            )
        self.committed = meta.index
        unstable.restore(snapshot)
        self._tail = None
        self.last_index, self.last_term = meta.index, meta.term

    # Committing and applying

    def commit_to(self, index: int) -> None:
        if index <= self.committed:
            return
        if index > self.last_index:
            raise LogLost(
                f"entry {index} is committed and was acknowledged here, but the log ends at "
                f"{self.last_index}: it is older than what this node promised"
            )
        self.committed = index

    def maybe_commit(self, index: int, term: int) -> bool:
        """Only an entry of the leader's own term is committed by counting; those before follow."""
        if index <= self.committed or self.term_or_zero(index) != term:
            return False
        self.commit_to(index)
        return True

    def next_committed(self, *, allow_unstable: bool) -> tuple[Entry, ...]:
        """Entries that are to be applied next, as many as may be under way at once."""
        if not self.has_next_committed(allow_unstable=allow_unstable):
            return ()
        left = self._applying_bytes_max - self._applying_bytes
        return self.slice(self.applying + 1, self._appliable(allow_unstable) + 1, left)

    def has_next_committed(self, *, allow_unstable: bool) -> bool:
        if self._applying_paused or self.unstable.snapshot is not None:
            return False
        return self.applying < self._appliable(allow_unstable)

    def accept_applying(self, index: int, size_bytes: int, *, allow_unstable: bool) -> None:
        """The entries up to here have been handed out."""
        self.applying = index
        self._applying_bytes += size_bytes
        # Those that did not fit wait until what was handed out is done.
        self._applying_paused = (
            self._applying_bytes >= self._applying_bytes_max
            or index < self._appliable(allow_unstable)
        )

    def applied_to(self, index: int, size_bytes: int = 0) -> None:
        """The machine has applied everything up to here."""
        assert self.applied <= index <= self.committed, (
            f"applied to {index}, outside of {self.applied} to {self.committed}"
        )
        self.applied = index
        self.applying = max(self.applying, index)
        self._applying_bytes = max(self._applying_bytes - size_bytes, 0)
        self._applying_paused = self._applying_bytes >= self._applying_bytes_max

    def _appliable(self, allow_unstable: bool) -> int:
        if allow_unstable:
            return self.committed
        return min(self.committed, self.unstable.offset - 1)

    def _first_new(self, entries: Sequence[Entry]) -> int:
        """How many of these are here already."""
        for known, entry in enumerate(entries):
            if entry.index > self.last_index:
                return known
            if not self.matches(entry.index, entry.term):
                if self._trace is not None:
                    existing = self.term_or_zero(entry.index)
                    self._trace(trace.ConflictFound(entry.index, existing, entry.term))
                return known
        return len(entries)


def check_run(index: int, term: int, entries: Sequence[Entry], leader_term: int) -> None:
    """Refuse an append whose entries cannot follow on each other."""
    if not entries:
        return
    first, last = entries[0], entries[-1]
    if first.index != index + 1 or last.index != index + len(entries):
        raise MessageRefused(f"entries {first.index} to {last.index} do not follow on {index}")
    if first.term < term or last.term < first.term or last.term > leader_term:
        raise MessageRefused(
            f"terms {first.term} to {last.term} cannot lie between {term} and {leader_term}"
        )
