"""The words of the log: entries, hard state, snapshots and who votes as of one of them.

Node ids are whole numbers above 0; 0 stands for nobody. Nothing here is ever changed in place.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated

import msgspec

NOBODY = 0
NO_LIMIT = 2**63 - 1

# What comes off a wire or a disk may hold anything: no number below 0 gets past the decoder, so
# that nothing from outside can speak in the name of a local thread (their ids are below 0).
Count = Annotated[int, msgspec.Meta(ge=0, le=NO_LIMIT)]


class EntryKind(IntEnum):
    NORMAL = 0
    CONF_CHANGE = 1
    CONF_CHANGE_V2 = 2


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    term: Count
    index: Count
    data: bytes = b""
    kind: EntryKind = EntryKind.NORMAL


class HardState(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What must be on disk before any answer leaves. `commit` is a hint and may lag."""

    term: Count = 0
    vote: Count = NOBODY
    commit: Count = 0


class ConfState(msgspec.Struct, frozen=True, array_like=True):
    """Who votes and who learns, as of some index. The ids of each are in rising order."""

    voters: tuple[Count, ...] = ()
    learners: tuple[Count, ...] = ()
    voters_outgoing: tuple[Count, ...] = ()
    learners_next: tuple[Count, ...] = ()
    auto_leave: bool = False


class SnapshotMeta(msgspec.Struct, frozen=True, array_like=True):
    index: Count = 0
    term: Count = 0
    conf_state: ConfState = ConfState()


class Snapshot(msgspec.Struct, frozen=True, array_like=True):
    """`data` is whatever the application needs to find the content: here a name, never the bytes
    of a state that may be gigabytes."""

    meta: SnapshotMeta = SnapshotMeta()
    data: bytes = b""

    @property
    def empty(self) -> bool:
        return self.meta.index == 0
