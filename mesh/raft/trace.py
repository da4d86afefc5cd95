"""What happens inside the core, told as it happens. A listener only looks: it never calls back.

One class an event; the core never makes text of them.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import msgspec

from mesh.raft.confchange import AnyChange
from mesh.raft.membership import Membership
from mesh.raft.messages import MessageKind
from mesh.raft.progress import ProgressView


class Role(IntEnum):
    FOLLOWER = 0
    PRE_CANDIDATE = 1
    CANDIDATE = 2
    LEADER = 3


class Event(msgspec.Struct, frozen=True):
    """The root of all events."""


Trace = Callable[[Event], None]


class LogPoint(msgspec.Struct, frozen=True):
    """The last entry of some log."""

    term: int
    index: int


# The node itself


class Started(Event, frozen=True):
    peers: tuple[int, ...]
    term: int
    commit: int
    applied: int
    last: LogPoint


class BecameRole(Event, frozen=True):
    role: Role
    term: int


class ConfigSwitched(Event, frozen=True):
    membership: Membership


class TermRaised(Event, frozen=True):
    """A message came with a higher term."""

    term: int
    kind: MessageKind
    sender: int
    message_term: int


class StaleMessageIgnored(Event, frozen=True):
    term: int
    kind: MessageKind
    sender: int
    message_term: int


class StaleAppendAckIgnored(Event, frozen=True):
    """Storage finished a write of an earlier term: a later one may still overwrite it."""

    term: int
    kind: MessageKind
    message_term: int


# Elections


class ElectionStarted(Event, frozen=True):
    term: int


class ElectionNotStarted(Event, frozen=True):
    """Of a node that leads already."""


class Unpromotable(Event, frozen=True):
    """This node is no voter, or waits for a snapshot."""


class ElectionHeldBack(Event, frozen=True):
    """There are committed changes of members that are not applied yet."""

    term: int


class VoteRequested(Event, frozen=True):
    kind: MessageKind
    voter: int
    term: int
    last: LogPoint


class VoteReceived(Event, frozen=True):
    kind: MessageKind
    voter: int
    term: int
    granted: bool


class VotesCounted(Event, frozen=True):
    kind: MessageKind
    granted: int
    rejected: int


class VoteDecided(Event, frozen=True):
    """What this node said to somebody's request for its vote."""

    kind: MessageKind
    granted: bool
    term: int
    vote: int
    last: LogPoint
    candidate: int
    candidate_last: LogPoint


class VoteIgnored(Event, frozen=True):
    """A leader was heard of too recently."""

    kind: MessageKind
    term: int
    vote: int
    last: LogPoint
    candidate: int
    candidate_last: LogPoint
    remaining_ticks: int


class QuorumLost(Event, frozen=True):
    """A leader that hears no quorum steps down."""


class TimeoutNowReceived(Event, frozen=True):
    term: int
    sender: int


class TimeoutNowIgnored(Event, frozen=True):
    term: int
    role: Role
    sender: int


class LeaderForgotten(Event, frozen=True):
    term: int
    leader: int


class ForgetLeaderRefused(Event, frozen=True):
    """Leases rest on the leader being remembered."""


# Proposals and reads


class ProposalWithoutLeader(Event, frozen=True):
    term: int


class ProposalNotForwarded(Event, frozen=True):
    term: int
    leader: int


class ProposalDuringTransfer(Event, frozen=True):
    term: int
    transferee: int


class ProposalOverLimit(Event, frozen=True):
    """Too many bytes of proposals are not applied yet."""


class ChangeIgnored(Event, frozen=True):
    """An empty entry takes the place of a change of members that may not be made now."""

    change: AnyChange
    membership: Membership
    reason: ChangeProblem
    pending_index: int
    applied: int


class ChangeProblem(IntEnum):
    ANOTHER_PENDING = 0
    ALREADY_JOINT = 1
    NOT_JOINT = 2


class AutoLeaveStarted(Event, frozen=True):
    membership: Membership


class AutoLeaveDeferred(Event, frozen=True):
    membership: Membership
    reason: str


class ReadWithoutLeader(Event, frozen=True):
    term: int


class ReadOverLimit(Event, frozen=True):
    pending: int


# Replication


class AppendRejected(Event, frozen=True):
    """This node has no such entry before the ones that it was sent."""

    local_term: int
    prev: LogPoint
    sender: int


class RejectionReceived(Event, frozen=True):
    kind: MessageKind
    hint: LogPoint
    sender: int
    rejected_index: int


class ProgressDecreased(Event, frozen=True):
    peer: int
    progress: ProgressView


class StrangerIgnored(Event, frozen=True):
    """The sender is no member (any more)."""

    sender: int


class PeerUnreachable(Event, frozen=True):
    peer: int
    progress: ProgressView


class TransferStarted(Event, frozen=True):
    term: int
    transferee: int


class TransferToSame(Event, frozen=True):
    term: int
    transferee: int


class TransferAborted(Event, frozen=True):
    term: int
    transferee: int


class TransferToSelf(Event, frozen=True):
    pass


class TransferToLearner(Event, frozen=True):
    pass


class TransferWithoutLeader(Event, frozen=True):
    term: int


class TimeoutNowSent(Event, frozen=True):
    """`at_once` where the peer was up to date when the transfer was asked for."""

    transferee: int
    at_once: bool


# Snapshots


class SnapshotNotSent(Event, frozen=True):
    """The peer is silent (`active` False), or the snapshot is being made."""

    peer: int
    active: bool


class SnapshotSent(Event, frozen=True):
    first_index: int
    commit: int
    snapshot: LogPoint
    peer: int
    progress: ProgressView


class ReplicationPaused(Event, frozen=True):
    peer: int
    progress: ProgressView


class ReplicationResumed(Event, frozen=True):
    peer: int
    progress: ProgressView


class SnapshotReported(Event, frozen=True):
    peer: int
    succeeded: bool
    progress: ProgressView


class SnapshotRestored(Event, frozen=True):
    commit: int
    last: LogPoint
    snapshot: LogPoint


class SnapshotAccepted(Event, frozen=True):
    commit: int
    snapshot: LogPoint


class SnapshotIgnored(Event, frozen=True):
    commit: int
    snapshot: LogPoint


class CommitFastForwarded(Event, frozen=True):
    """The log held what the snapshot ends with."""

    commit: int
    last: LogPoint
    snapshot: LogPoint


class SnapshotRefused(Event, frozen=True):
    """Sent to a leader, or to a node that is not in it: neither should ever happen."""

    as_leader: bool


# The log


class LogRestoring(Event, frozen=True):
    commit: int
    applied: int
    applying: int
    offset: int
    offset_in_progress: int
    unstable_count: int
    snapshot: LogPoint


class ConflictFound(Event, frozen=True):
    index: int
    existing_term: int
    conflicting_term: int


class UnstableReplaced(Event, frozen=True):
    from_index: int


class UnstableTruncated(Event, frozen=True):
    before_index: int


class UnstableAckMissing(Event, frozen=True):
    """Storage finished a write of an entry that is no longer waited for."""

    index: int


class UnstableAckOfSnapshot(Event, frozen=True):
    index: int


class UnstableAckMismatched(Event, frozen=True):
    """Storage finished a write that has been replaced since."""

    acked: LogPoint
    kept: LogPoint
