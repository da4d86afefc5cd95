"""What nodes say to each other, and a node to its own threads. A message is never changed.

Those of `AFTER_APPEND` promise that something is durable: they leave only once it is.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from mesh.raft.types import NOBODY, Count, Entry, HardState, Snapshot

# The threads of the node itself, as they stand in `to` and `sender`. The decoder refuses
# numbers below 0, so these names never come from a peer.
APPEND_THREAD = -1
APPLY_THREAD = -2


class MessageKind(IntEnum):
    PROPOSE = 1
    APPEND = 2
    APPEND_RESPONSE = 3
    VOTE = 4
    VOTE_RESPONSE = 5
    PRE_VOTE = 6
    PRE_VOTE_RESPONSE = 7
    SNAPSHOT = 8
    HEARTBEAT = 9
    HEARTBEAT_RESPONSE = 10
    TRANSFER_LEADER = 11
    TIMEOUT_NOW = 12
    READ_INDEX = 13
    READ_INDEX_RESPONSE = 14
    STORAGE_APPEND = 15
    STORAGE_APPEND_RESPONSE = 16
    STORAGE_APPLY = 17
    STORAGE_APPLY_RESPONSE = 18


class Message(msgspec.Struct, frozen=True, array_like=True, gc=False, omit_defaults=True):
    """One message. `term` is 0 where it has none of its own (a proposal on its way to the leader,
    work for the apply thread); `responses` are to be delivered once storage has done the work."""

    kind: MessageKind
    to: Count
    sender: Count = NOBODY
    term: Count = 0
    log_term: Count = 0
    index: Count = 0
    commit: Count = 0
    entries: tuple[Entry, ...] = ()
    reject: bool = False
    reject_hint: Count = 0
    vote: Count = NOBODY
    context: bytes = b""
    snapshot: Snapshot | None = None
    responses: tuple[Message, ...] = ()

    @property
    def hard_state(self) -> HardState | None:
        """Of a STORAGE_APPEND: what is to be written with the entries, None where unchanged."""
        if self.term == 0 and self.commit == 0 and self.vote == NOBODY:
            return None
        return HardState(self.term, self.vote, self.commit)


K = MessageKind

AFTER_APPEND = frozenset({K.APPEND_RESPONSE, K.VOTE_RESPONSE, K.PRE_VOTE_RESPONSE})
LOCAL = frozenset(
    {K.STORAGE_APPEND, K.STORAGE_APPEND_RESPONSE, K.STORAGE_APPLY, K.STORAGE_APPLY_RESPONSE}
)
# These mean something only from a peer that this node counts among its own.
FROM_PEERS = frozenset(
    {
        K.APPEND_RESPONSE,
        K.VOTE_RESPONSE,
        K.PRE_VOTE_RESPONSE,
        K.HEARTBEAT_RESPONSE,
        K.READ_INDEX_RESPONSE,
    }
)
TERMLESS = frozenset({K.PROPOSE, K.READ_INDEX, K.TRANSFER_LEADER, *LOCAL})
VOTES = {K.VOTE: K.VOTE_RESPONSE, K.PRE_VOTE: K.PRE_VOTE_RESPONSE}
