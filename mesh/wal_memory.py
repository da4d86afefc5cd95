"""What the log keeps in memory: its newest entries, bounded in bytes, and where each term begins.

Both hold what is on disk and nothing else, without a gap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

from mesh.raft.sizes import ENTRY_OVERHEAD_BYTES
from mesh.raft.types import Entry

ENTRY_MEMORY_BYTES = 192
"""What an entry costs in memory besides its data: the objects, and its places in the lists."""


def entry_bytes(entry: Entry) -> int:
    return len(entry.data) + ENTRY_OVERHEAD_BYTES


class Recent:
    """The newest entries, from `first` on; older ones are let go as bytes_max asks."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._entries: list[Entry] = []
        self._ends: list[int] = []  # bytes up to and with each entry, counted from some past start
        self._start = 0
        self.first = 1

    @property
    def last(self) -> int:
        return self.first + len(self._entries) - 1

    @property
    def memory_bytes(self) -> int:
        data = self._ends[-1] - self._start if self._ends else 0
        return data + len(self._entries) * ENTRY_MEMORY_BYTES

    def reset(self, first: int) -> None:
        self._entries, self._ends, self._start, self.first = [], [], 0, first

    def extend(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        if entries[0].index != self.last + 1:
            self.reset(entries[0].index)
        before = self._ends[-1] if self._ends else self._start
        ends = accumulate(map(entry_bytes, entries), initial=before)
        next(ends)
        self._entries.extend(entries)
        self._ends.extend(ends)
        if self.memory_bytes > self._bytes_max:
            self._let_go()

    def cut(self, index: int) -> None:
        """Forget everything from `index` on."""
        keep = max(index - self.first, 0)
        del self._entries[keep:], self._ends[keep:]
        if not self._entries:
            self.reset(index)

    def drop(self, index: int) -> None:
        """Forget everything up to and with `index`."""
        gone = index - self.first + 1
        if gone >= len(self._entries):
            self.reset(max(index, self.last) + 1)
        elif gone > 0:
            self._start = self._ends[gone - 1]
            del self._entries[:gone], self._ends[:gone]
            self.first += gone

    def take(self, low: int, high: int, bytes_max: int, *, at_least_one: bool) -> list[Entry]:
        """From low up to high, which is not among them, as many as fit."""
        begin, end = low - self.first, high - self.first
        before = self._ends[begin - 1] if begin else self._start
        fit = bisect_right(self._ends, before + bytes_max, begin, end)
        return self._entries[begin : max(fit, begin + 1) if at_least_one else fit]

    def _let_go(self) -> None:
        # A part more than needed, so that this runs seldom: each time it moves the whole list.
        aim = self._bytes_max - self._bytes_max // 32
        excess = self.memory_bytes - aim
        gone = bisect_left(
            range(len(self._entries)),
            excess,
            key=lambda i: self._ends[i] - self._start + (i + 1) * ENTRY_MEMORY_BYTES,
        )
        self.drop(self.first + min(gone, len(self._entries) - 1))


class Terms:
    """Which term each index has, as the places where a new one begins. The first place is the
    point up to which the log is compacted."""

    def __init__(self, index: int = 0, term: int = 0) -> None:
        self._starts = [index]
        self._terms = [term]

    @property
    def newest(self) -> int:
        return self._terms[-1]

    def at(self, index: int) -> int:
        return self._terms[bisect_right(self._starts, index) - 1]

    def extend(self, runs: Iterable[tuple[int, int]]) -> None:
        """Each with the index it begins at, and its term."""
        for index, term in runs:
            if term != self._terms[-1]:
                self._starts.append(index)
                self._terms.append(term)

    def cut(self, index: int) -> None:
        """Forget everything from `index` on; never the point at the start."""
        keep = max(bisect_left(self._starts, index), 1)
        del self._starts[keep:], self._terms[keep:]

    def drop(self, index: int) -> None:
        """Begin at `index`."""
        gone = bisect_right(self._starts, index) - 1
        del self._starts[:gone], self._terms[:gone]
        self._starts[0] = index


def term_starts(entries: Sequence[Entry]) -> list[tuple[int, int]]:
    """Where a term begins in entries whose terms never fall."""
    if not entries or entries[0].term == entries[-1].term:
        return [(entries[0].index, entries[0].term)] if entries else []
    found = [(entries[0].index, entries[0].term)]
    found += (
        (entry.index, entry.term)
        for before, entry in pairwise(entries)
        if before.term != entry.term
    )
    return found
