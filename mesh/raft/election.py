"""Elections: who stands, who votes for whom, and when a leader is believed to be alive.

A vote is given once a term, and only to a log that is at least as new as the voter's.
"""

from __future__ import annotations

from enum import Enum

from mesh.raft import replication, trace
from mesh.raft.core import Core
from mesh.raft.messages import VOTES, Message, MessageKind
from mesh.raft.quorum import VoteResult
from mesh.raft.trace import LogPoint, Role
from mesh.raft.types import NOBODY, Entry, EntryKind

# In the context of a vote request: the leader itself asked for this election, so no lease of
# its own stands against it.
TRANSFER_CONTEXT = b"CampaignTransfer"


class Campaign(Enum):
    PRE_VOTE = 0
    ELECTION = 1
    TRANSFER = 2


def start(core: Core, campaign: Campaign | None = None) -> None:
    """Stand for election, if this node may."""
    if core.role is Role.LEADER:
        _tell(core, trace.ElectionNotStarted())
    elif not core.promotable:
        _tell(core, trace.Unpromotable())
    elif _holds_unapplied_change(core):
        # Its members may no longer be the members.
        _tell(core, trace.ElectionHeldBack(core.term))
    else:
        _tell(core, trace.ElectionStarted(core.term))
        if campaign is None:
            campaign = Campaign.PRE_VOTE if core.config.pre_vote else Campaign.ELECTION
        _ask_for_votes(core, campaign)


def on_vote_request(core: Core, message: Message) -> None:
    """VOTE or PRE_VOTE, in this term or a later one."""
    pre = message.kind is MessageKind.PRE_VOTE
    free = (
        core.vote == message.sender
        or (core.vote == NOBODY and core.lead == NOBODY)
        or (pre and message.term > core.term)
    )
    granted = free and core.log.is_up_to_date(message.index, message.log_term)
    tell_decision(core, message, granted)
    answer = VOTES[message.kind]
    if granted:
        # A pre-vote is answered in the term it asks for, or the candidate would think it old.
        core.send(answer, message.sender, term=message.term)
        if not pre:
            core.election_elapsed = 0
            core.vote = message.sender
    else:
        core.send(answer, message.sender, term=core.term, reject=True)


def on_vote_response(core: Core, message: Message) -> None:
    _count(core, message.kind, message.sender, not message.reject)
    granted, rejected, result = core.tracker.tally()
    _tell(core, trace.VotesCounted(message.kind, granted, rejected))
    if result is VoteResult.WON:
        if core.role is Role.PRE_CANDIDATE:
            _ask_for_votes(core, Campaign.ELECTION)
        else:
            take_lead(core)
            replication.broadcast_append(core)
    elif result is VoteResult.LOST:
        core.become_follower(core.term, NOBODY)


def on_timeout_now(core: Core, message: Message) -> None:
    """The leader wants this node to lead. Nobody is asked first: the leader knows best."""
    if core.trace is not None:
        core.trace(trace.TimeoutNowReceived(core.term, message.sender))
    start(core, Campaign.TRANSFER)


def take_lead(core: Core) -> None:
    core.become_leader()
    # Nothing of earlier terms is committed before an entry of this one is.
    replication.append(core, [Entry(core.term, core.log.last_index + 1, b"", EntryKind.NORMAL)])
    _tell(core, trace.BecameRole(Role.LEADER, core.term))


def in_lease(core: Core) -> bool:
    """Was a leader heard of less than an election ago?"""
    return (
        core.config.check_quorum
        and core.lead != NOBODY
        and core.election_elapsed < core.config.election_tick
    )


def tell_decision(core: Core, message: Message, granted: bool) -> None:
    if core.trace is not None:
        core.trace(
            trace.VoteDecided(
                kind=message.kind,
                granted=granted,
                term=core.term,
                vote=core.vote,
                last=core.log.last,
                candidate=message.sender,
                candidate_last=LogPoint(message.log_term, message.index),
            )
        )


def _ask_for_votes(core: Core, campaign: Campaign) -> None:
    if campaign is Campaign.PRE_VOTE:
        core.become_pre_candidate()
        kind, term = MessageKind.PRE_VOTE, core.term + 1
    else:
        core.become_candidate()
        kind, term = MessageKind.VOTE, core.term
    context = TRANSFER_CONTEXT if campaign is Campaign.TRANSFER else b""
    last = core.log.last
    for voter in sorted(core.tracker.membership.all_voters):
        if voter == core.id:
            # Its own vote counts once it is on disk, like any other.
            core.send(VOTES[kind], voter, term=term)
            continue
        _tell(core, trace.VoteRequested(kind, voter, core.term, last))
        core.send(kind, voter, term=term, index=last.index, log_term=last.term, context=context)


def _count(core: Core, kind: MessageKind, voter: int, granted: bool) -> None:
    _tell(core, trace.VoteReceived(kind, voter, core.term, granted))
    core.tracker.record_vote(voter, granted)


def _holds_unapplied_change(core: Core) -> bool:
    log = core.log
    lo = max(log.applied + 1, log.first_index)
    while lo <= log.committed:
        page = log.slice(lo, log.committed + 1, core.config.max_size_per_msg)
        if any(entry.kind is not EntryKind.NORMAL for entry in page):
            return True
        lo += len(page)
    return False


def _tell(core: Core, event: trace.Event) -> None:
    # Elections are rare: their events are made whether or not anybody listens.
    if core.trace is not None:
        core.trace(event)
