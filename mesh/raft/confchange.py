"""Changes of the membership as they stand in the log, in a form of their own.

A change without content leaves the joint configuration. It is written as no bytes at all, so that
no limit on the size of proposals can ever keep a swarm in between.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from mesh.garbage import GARBAGE
from mesh.raft.errors import MessageRefused
from mesh.raft.types import NOBODY, Count, Entry, EntryKind


class ChangeKind(IntEnum):
    ADD_NODE = 0
    REMOVE_NODE = 1
    UPDATE_NODE = 2
    ADD_LEARNER = 3


class Transition(IntEnum):
    AUTO = 0
    """Joint only where more than one voter changes, and left by itself."""
    IMPLICIT = 1
    """Joint, and left by itself."""
    EXPLICIT = 2
    """Joint, until somebody proposes an empty change."""


class Change(msgspec.Struct, frozen=True, array_like=True):
    """One step of a change. Node 0 makes it nothing at all."""

    kind: ChangeKind
    node_id: Count


class ConfChange(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """The old form: a single step, never joint."""

    kind: ChangeKind
    node_id: Count = NOBODY
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        return ConfChangeV2(changes=(Change(self.kind, self.node_id),), context=self.context)


class ConfChangeV2(msgspec.Struct, frozen=True, array_like=True, omit_defaults=True):
    """Any number of steps that take effect at once."""

    transition: Transition = Transition.AUTO
    changes: tuple[Change, ...] = ()
    context: bytes = b""

    def as_v2(self) -> ConfChangeV2:
        return self

    @property
    def leaves_joint(self) -> bool:
        return self.transition is Transition.AUTO and not self.changes

    @property
    def enters_joint(self) -> bool:
        return self.transition is not Transition.AUTO or len(self.changes) > 1

    @property
    def auto_leave(self) -> bool:
        return self.transition is not Transition.EXPLICIT


AnyChange = ConfChange | ConfChangeV2

_encode = msgspec.msgpack.Encoder().encode
_decode_v1 = msgspec.msgpack.Decoder(ConfChange).decode
_decode_v2 = msgspec.msgpack.Decoder(ConfChangeV2).decode


def encode_change(change: AnyChange) -> tuple[EntryKind, bytes]:
    """The kind and the data of the entry that carries this change."""
    if isinstance(change, ConfChange):
        return EntryKind.CONF_CHANGE, _encode(change)
    empty = change == ConfChangeV2()
    return EntryKind.CONF_CHANGE_V2, b"" if empty else _encode(change)


def decode_change(entry: Entry) -> AnyChange | None:
    """The change that an entry carries; None where it carries none. MessageRefused if garbled."""
    try:
        match entry.kind:
            case EntryKind.CONF_CHANGE:
                return _decode_v1(entry.data)
            case EntryKind.CONF_CHANGE_V2:
                return _decode_v2(entry.data) if entry.data else ConfChangeV2()
            case _:
                return None
    except GARBAGE as error:
        raise MessageRefused(
            f"entry {entry.index} is marked as a change of members, but its data is none: {error}"
        ) from error
