"""Reads by ReadIndex: the leader names an index, once it is sure that it still leads.

Before it has committed an entry of its own term a leader does not know what is committed, and be
it the only voter: how far the log was committed is on no disk for certain.
"""

from __future__ import annotations

from mesh.raft import heartbeats, trace
from mesh.raft.config import ReadOnly
from mesh.raft.core import Core
from mesh.raft.errors import MessageRefused, ReadDropped
from mesh.raft.messages import Message, MessageKind
from mesh.raft.quorum import VoteResult
from mesh.raft.reads import ReadState
from mesh.raft.types import NOBODY


def on_read_as_leader(core: Core, message: Message, at_once: bool = True) -> None:
    if not message.context:
        raise MessageRefused(f"a read of node {message.sender} has no context")
    if core.alone and _committed_in_own_term(core):
        _answer(core, message, core.log.committed)
    elif len(core.reads) >= core.config.max_pending_reads:
        if core.trace is not None:
            core.trace(trace.ReadOverLimit(len(core.reads)))
        if message.sender in (NOBODY, core.id):
            raise ReadDropped(f"{len(core.reads)} reads wait for a quorum already")
    elif not _committed_in_own_term(core):
        core.reads.postponed.append(message)
    else:
        _begin(core, message, at_once)


def on_read_as_follower(core: Core, message: Message) -> None:
    if core.lead == NOBODY:
        if core.trace is not None:
            core.trace(trace.ReadWithoutLeader(core.term))
        raise ReadDropped(f"there is no leader in term {core.term}")
    if message.sender not in (NOBODY, core.id):
        # Its sender asked the wrong node, and will ask again.
        return
    core.send(MessageKind.READ_INDEX, core.lead, context=message.context)


def on_read_without_leader(core: Core, message: Message) -> None:
    if core.trace is not None:
        core.trace(trace.ReadWithoutLeader(core.term))
    raise ReadDropped(f"there is no leader in term {core.term}")


def on_read_response(core: Core, message: Message) -> None:
    core.read_states.append(ReadState(message.index, message.context))


def release_postponed(core: Core) -> None:
    """The leader knows now what is committed."""
    if core.reads.postponed and _committed_in_own_term(core):
        postponed, core.reads.postponed = core.reads.postponed, []
        for message in postponed:
            _begin(core, message)


def confirm(core: Core, message: Message) -> None:
    """A peer's answer to a heartbeat that carried a read."""
    if core.config.read_only is not ReadOnly.SAFE or not message.context:
        return
    acks = core.reads.acknowledge(message.sender, message.context)
    if core.tracker.won_by(acks) is not VoteResult.WON:
        return
    for read in core.reads.release_up_to(message.context):
        _answer(core, read.request, read.index)


def _begin(core: Core, message: Message, at_once: bool = True) -> None:
    if core.alone or core.config.read_only is ReadOnly.LEASE:
        _answer(core, message, core.log.committed)
        return
    core.reads.add(message, core.log.committed)
    core.reads.acknowledge(core.id, message.context)
    if at_once:
        heartbeats.broadcast_with(core, message.context)


def _answer(core: Core, request: Message, index: int) -> None:
    if request.sender in (NOBODY, core.id):
        core.read_states.append(ReadState(index, request.context))
    else:
        core.send(
            MessageKind.READ_INDEX_RESPONSE, request.sender, index=index, context=request.context
        )


def _committed_in_own_term(core: Core) -> bool:
    return core.log.term_or_zero(core.log.committed) == core.term
