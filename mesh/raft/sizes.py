"""How large entries are, and how many of them fit. One always fits, or nothing would ever move."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

from mesh.raft.types import NO_LIMIT, Entry

# Term, index, kind and framing, as a wire or a disk holds them, rounded up.
ENTRY_OVERHEAD_BYTES = 24
# Up to so many are looked at as a whole first: most often all of them fit.
WHOLE_COUNT_MAX = 1024

_data_of = attrgetter("data")


def payload_bytes(entries: Sequence[Entry]) -> int:
    """The proposals' own bytes: an empty entry weighs nothing."""
    return sum(map(len, map(_data_of, entries)))


def entries_bytes(entries: Sequence[Entry]) -> int:
    return payload_bytes(entries) + ENTRY_OVERHEAD_BYTES * len(entries)


def fitting(
    entries: Sequence[Entry], bytes_max: int, start: int = 0, stop: int | None = None
) -> tuple[Entry, ...]:
    """As many of entries[start:stop] as fit, and at least one where there is one."""
    stop = len(entries) if stop is None else stop
    if bytes_max >= NO_LIMIT or stop - start <= 1:
        return tuple(entries[start:stop])
    if stop - start <= WHOLE_COUNT_MAX:
        whole = tuple(entries[start:stop])
        if entries_bytes(whole) <= bytes_max:
            return whole
    left = bytes_max
    end = start
    while end < stop:
        left -= len(entries[end].data) + ENTRY_OVERHEAD_BYTES
        if left < 0:
            break
        end += 1
    return tuple(entries[start : max(end, start + 1)])
