"""The follower's side of the log: what a leader's messages change in it.

What is acknowledged leaves only once it is on disk, and a committed entry is never replaced.
"""

from __future__ import annotations

from mesh.raft import trace
from mesh.raft.changer import Changer
from mesh.raft.config import ReadOnly
from mesh.raft.core import Core
from mesh.raft.errors import LogLost
from mesh.raft.log import check_run
from mesh.raft.membership import Tracker
from mesh.raft.messages import Message, MessageKind
from mesh.raft.trace import LogPoint, Role
from mesh.raft.types import NOBODY, Snapshot


def on_append(core: Core, message: Message) -> None:
    check_run(message.index, message.log_term, message.entries, message.term)
    _heed(core, message)
    log, leader = core.log, message.sender
    if message.index <= log.committed:
        _check_agreed(log.term_or_zero(message.index), message)
    if message.index < log.committed:
        # An old message: what is committed agrees with every leader to come.
        core.send(MessageKind.APPEND_RESPONSE, leader, index=log.committed)
        return
    agreed = log.maybe_append(message.index, message.log_term, message.entries, message.commit)
    if agreed is not None:
        core.send(MessageKind.APPEND_RESPONSE, leader, index=agreed)
        return
    if core.trace is not None:
        prev = LogPoint(message.log_term, message.index)
        core.trace(trace.AppendRejected(log.term_or_zero(message.index), prev, leader))
    hint, hint_term = log.conflict_by_term(min(message.index, log.last_index), message.log_term)
    core.send(
        MessageKind.APPEND_RESPONSE,
        leader,
        index=message.index,
        reject=True,
        reject_hint=hint,
        log_term=hint_term,
    )


def _check_agreed(term: int, message: Message) -> None:
    """Every leader has all that was committed, unless the log was gone on with by hand, without
    this node. An entry that is not kept any more says nothing."""
    if term not in (0, message.log_term):
        raise LogLost(
            f"entry {message.index} is of term {message.log_term} for the leader, but is committed"
            f" here with term {term}"
        )


def on_heartbeat(core: Core, message: Message) -> None:
    _heed(core, message)
    core.log.commit_to(message.commit)
    core.send(MessageKind.HEARTBEAT_RESPONSE, message.sender, context=message.context)


def on_snapshot(core: Core, message: Message) -> None:
    _heed(core, message)
    snapshot = message.snapshot or Snapshot()
    restored = restore(core, snapshot)
    if core.trace is not None:
        kind = trace.SnapshotAccepted if restored else trace.SnapshotIgnored
        core.trace(kind(core.log.committed, LogPoint(snapshot.meta.term, snapshot.meta.index)))
    index = core.log.last_index if restored else core.log.committed
    core.send(MessageKind.APPEND_RESPONSE, message.sender, index=index)


def restore(core: Core, snapshot: Snapshot) -> bool:
    """Begin anew from this snapshot. False where it holds nothing that is not here."""
    meta, log = snapshot.meta, core.log
    if meta.index <= log.committed:
        return False
    members = meta.conf_state
    if core.id not in {
        *members.voters, *members.learners, *members.voters_outgoing, *members.learners_next
    }:  # fmt: skip
        if core.trace is not None:
            core.trace(trace.SnapshotRefused(as_leader=False))
        return False
    point = LogPoint(meta.term, meta.index)
    if log.matches(meta.index, meta.term):
        if core.trace is not None:
            core.trace(trace.CommitFastForwarded(log.committed, log.last, point))
        log.commit_to(meta.index)
        return False
    tracker = Tracker(core.config.max_inflight_msgs, core.config.max_inflight_bytes)
    outcome = Changer(tracker, meta.index).restore(members)
    log.restore(snapshot)
    core.tracker = tracker
    core.restored_index = meta.index
    core.adopt(*outcome)
    if core.trace is not None:
        core.trace(trace.SnapshotRestored(log.committed, log.last, point))
    return True


def forget_leader(core: Core) -> None:
    """The application knows that the leader is gone: vote for others from now on."""
    if core.role is not Role.FOLLOWER:
        return
    if core.config.read_only is ReadOnly.LEASE:
        if core.trace is not None:
            core.trace(trace.ForgetLeaderRefused())
    elif core.lead != NOBODY:
        if core.trace is not None:
            core.trace(trace.LeaderForgotten(core.term, core.lead))
        core.lead = NOBODY


def on_transfer(core: Core, message: Message) -> None:
    """Only the leader can hand over: pass the wish on, in the name of whom it is for."""
    if core.lead == NOBODY:
        if core.trace is not None:
            core.trace(trace.TransferWithoutLeader(core.term))
        return
    core.outbox.append(Message(MessageKind.TRANSFER_LEADER, core.lead, message.sender, core.term))


def _heed(core: Core, message: Message) -> None:
    """Whoever sends these leads in this term."""
    if core.role is Role.FOLLOWER:
        core.election_elapsed = 0
        core.lead = message.sender
    else:
        core.become_follower(message.term, message.sender)
