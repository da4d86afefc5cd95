"""Every message and every tick, and who deals with it in which role.

A message of an earlier term changes nothing; one of a later term makes a follower of anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType

from mesh.raft import (
    election,
    following,
    heartbeats,
    proposals,
    reading,
    replication,
    trace,
)
from mesh.raft.core import Core
from mesh.raft.errors import MessageRefused
from mesh.raft.messages import TERMLESS, Message, MessageKind
from mesh.raft.sizes import ENTRY_OVERHEAD_BYTES, payload_bytes
from mesh.raft.trace import LogPoint, Role
from mesh.raft.types import NOBODY

K = MessageKind
Handler = Callable[[Core, Message], None]


def step(core: Core, message: Message) -> None:
    """Take one message. A ProposalDropped, ReadDropped or MessageRefused has changed nothing
    but perhaps the term; LogLost means that this node must stop."""
    kind, term = message.kind, message.term
    if term == 0:
        if kind not in TERMLESS:
            raise MessageRefused(f"{kind.name} of {message.sender} has no term")
    elif term > core.term:
        if not _enter_later_term(core, message):
            return
    elif term < core.term:
        _on_earlier_term(core, message)
        return
    handler = RULES[core.role].get(kind)
    if handler is not None:
        handler(core, message)


def tick(core: Core) -> None:
    core.election_elapsed += 1
    if core.role is Role.LEADER:
        _tick_leader(core)
    elif core.promotable and core.election_elapsed >= core.election_timeout:
        core.election_elapsed = 0
        election.start(core)


def ticks_to_act(core: Core) -> int:
    if core.role is Role.LEADER:
        if heartbeats.anybody_waits(core):
            return 1
        return min(
            core.config.heartbeat_tick - core.heartbeat_elapsed,
            core.config.election_tick - core.election_elapsed,
        )
    if core.promotable:
        return core.election_timeout - core.election_elapsed
    return core.config.election_tick


def _tick_leader(core: Core) -> None:
    core.heartbeat_elapsed += 1
    if core.election_elapsed >= core.config.election_tick:
        core.election_elapsed = 0
        if core.config.check_quorum:
            _check_quorum(core)
        # A transfer that takes longer than an election is given up: proposals go on.
        core.transferee = NOBODY
    if core.role is not Role.LEADER:
        return
    if core.heartbeat_elapsed >= core.config.heartbeat_tick:
        core.heartbeat_elapsed = 0
        heartbeats.broadcast(core)
    else:
        heartbeats.send_to_waiting(core)


def _check_quorum(core: Core) -> None:
    own = core.own_progress
    if own is not None:
        own.active = True
    if not core.tracker.quorum_active():
        if core.trace is not None:
            core.trace(trace.QuorumLost())
        core.become_follower(core.term, NOBODY)
    for peer, progress in core.tracker.peers.items():
        if peer != core.id:
            progress.active = False


def _enter_later_term(core: Core, message: Message) -> bool:
    """False where the message is to be ignored."""
    kind = message.kind
    if kind in (K.VOTE, K.PRE_VOTE):
        forced = message.context == election.TRANSFER_CONTEXT
        if not forced and election.in_lease(core):
            if core.trace is not None:
                core.trace(
                    trace.VoteIgnored(
                        kind=kind,
                        term=core.term,
                        vote=core.vote,
                        last=core.log.last,
                        candidate=message.sender,
                        candidate_last=LogPoint(message.log_term, message.index),
                        remaining_ticks=core.config.election_tick - core.election_elapsed,
                    )
                )
            return False
    if kind is K.PRE_VOTE or (kind is K.PRE_VOTE_RESPONSE and not message.reject):
        # The term that is only asked about is nobody's yet.
        return True
    if core.trace is not None:
        core.trace(trace.TermRaised(core.term, kind, message.sender, message.term))
    leads = kind in (K.APPEND, K.HEARTBEAT, K.SNAPSHOT)
    core.become_follower(message.term, message.sender if leads else NOBODY)
    return True


def _on_earlier_term(core: Core, message: Message) -> None:
    kind = message.kind
    config = core.config
    if kind in (K.HEARTBEAT, K.APPEND) and (config.check_quorum or config.pre_vote):
        # A leader that was cut off learns of the later term, or it would never step down: with
        # these options on nobody asks it for a vote.
        core.send(K.APPEND_RESPONSE, message.sender)
    elif kind is K.PRE_VOTE:
        # So that a candidate that is behind learns of the later term.
        election.tell_decision(core, message, granted=False)
        core.send(K.PRE_VOTE_RESPONSE, message.sender, term=core.term, reject=True)
    elif kind is K.STORAGE_APPEND_RESPONSE:
        if message.index and core.trace is not None:
            core.trace(trace.StaleAppendAckIgnored(core.term, kind, message.term))
        # The entries may be overwritten by a write of this term; a snapshot never is.
        _on_stable_snapshot(core, message)
    elif core.trace is not None:
        core.trace(trace.StaleMessageIgnored(core.term, kind, message.sender, message.term))


def _on_storage_append(core: Core, message: Message) -> None:
    if message.index:
        core.log.unstable.stable_to(message.index, message.log_term)
    _on_stable_snapshot(core, message)


def _on_stable_snapshot(core: Core, message: Message) -> None:
    if message.snapshot is not None:
        index = message.snapshot.meta.index
        core.log.unstable.stable_snapshot_to(index)
        proposals.applied(core, index)


def _on_storage_apply(core: Core, message: Message) -> None:
    entries = message.entries
    if entries:
        payload = payload_bytes(entries)
        size = payload + ENTRY_OVERHEAD_BYTES * len(entries)
        proposals.applied(core, entries[-1].index, size)
        core.uncommitted_bytes = max(core.uncommitted_bytes - payload, 0)


def _on_timeout_now_in_vain(core: Core, message: Message) -> None:
    if core.trace is not None:
        core.trace(trace.TimeoutNowIgnored(core.term, core.role, message.sender))


EVERYWHERE: dict[MessageKind, Handler] = {
    K.VOTE: election.on_vote_request,
    K.PRE_VOTE: election.on_vote_request,
    K.STORAGE_APPEND_RESPONSE: _on_storage_append,
    K.STORAGE_APPLY_RESPONSE: _on_storage_apply,
}
FROM_A_LEADER: dict[MessageKind, Handler] = {
    K.APPEND: following.on_append,
    K.HEARTBEAT: following.on_heartbeat,
    K.SNAPSHOT: following.on_snapshot,
}
STANDING: dict[MessageKind, Handler] = EVERYWHERE | FROM_A_LEADER | {
    K.PROPOSE: proposals.on_propose_without_leader,
    K.READ_INDEX: reading.on_read_without_leader,
    K.TIMEOUT_NOW: _on_timeout_now_in_vain,
}  # fmt: skip
# What a role has no rule for means nothing to it: an answer that came too late, most often.
RULES = MappingProxyType({
    Role.FOLLOWER: EVERYWHERE | FROM_A_LEADER | {
        K.PROPOSE: proposals.on_propose_as_follower,
        K.READ_INDEX: reading.on_read_as_follower,
        K.READ_INDEX_RESPONSE: reading.on_read_response,
        K.TRANSFER_LEADER: following.on_transfer,
        K.TIMEOUT_NOW: election.on_timeout_now,
    },
    Role.PRE_CANDIDATE: STANDING | {K.PRE_VOTE_RESPONSE: election.on_vote_response},
    Role.CANDIDATE: STANDING | {K.VOTE_RESPONSE: election.on_vote_response},
    Role.LEADER: EVERYWHERE | {
        K.PROPOSE: proposals.on_propose_as_leader,
        K.READ_INDEX: reading.on_read_as_leader,
        K.APPEND_RESPONSE: replication.on_append_response,
        K.HEARTBEAT_RESPONSE: replication.on_heartbeat_response,
        K.TRANSFER_LEADER: replication.on_transfer,
    },
})  # fmt: skip
