"""Proposals: what may enter the leader's log, and where the others send theirs.

One change of members at a time: another is not appended before the last one is applied.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.raft import replication, trace
from mesh.raft.changer import Changer
from mesh.raft.confchange import AnyChange, ConfChangeV2, decode_change, encode_change
from mesh.raft.core import Core
from mesh.raft.errors import ChangeRefused, MessageRefused, ProposalDropped, RaftError
from mesh.raft.messages import Message, MessageKind
from mesh.raft.sizes import payload_bytes
from mesh.raft.trace import ChangeProblem, Role
from mesh.raft.types import NOBODY, Entry, EntryKind


def on_propose_as_leader(core: Core, message: Message) -> None:
    if not message.entries:
        raise MessageRefused("a proposal without entries")
    if core.own_progress is None:
        raise ProposalDropped("this node leads, but is no member any more")
    if core.transferee != NOBODY:
        if core.trace is not None:
            core.trace(trace.ProposalDuringTransfer(core.term, core.transferee))
        raise ProposalDropped(f"the lead is being handed over to {core.transferee}")
    pending_before = core.pending_change_index
    try:
        entries = _numbered(core, message.entries)
    except RaftError:
        core.pending_change_index = pending_before
        raise
    size = payload_bytes(entries)
    if (
        size
        and core.uncommitted_bytes
        and core.uncommitted_bytes + size > core.config.max_uncommitted_bytes
    ):
        core.pending_change_index = pending_before
        if core.trace is not None:
            core.trace(trace.ProposalOverLimit())
        raise ProposalDropped(
            f"{core.uncommitted_bytes} bytes are under way, {size} more would exceed "
            f"{core.config.max_uncommitted_bytes}"
        )
    core.uncommitted_bytes += size
    replication.append(core, entries)
    replication.broadcast_append(core)


def on_propose_as_follower(core: Core, message: Message) -> None:
    if core.lead == NOBODY:
        on_propose_without_leader(core, message)
    if core.config.disable_proposal_forwarding:
        if core.trace is not None:
            core.trace(trace.ProposalNotForwarded(core.term, core.lead))
        raise ProposalDropped(f"node {core.lead} leads in term {core.term}: propose there")
    core.outbox.append(
        Message(MessageKind.PROPOSE, core.lead, message.sender or core.id, entries=message.entries)
    )


def on_propose_without_leader(core: Core, message: Message) -> None:
    if core.trace is not None:
        core.trace(trace.ProposalWithoutLeader(core.term))
    raise ProposalDropped(f"there is no leader in term {core.term}")


def applied(core: Core, index: int, size_bytes: int = 0) -> None:
    """The machine has applied everything up to here; a joint configuration that is to leave by
    itself is left now."""
    core.log.applied_to(max(index, core.log.applied), size_bytes)
    members = core.tracker.membership
    if (
        not members.auto_leave
        or core.log.applied < core.pending_change_index
        or core.role is not Role.LEADER
    ):
        return
    kind, data = encode_change(ConfChangeV2())
    entry = Entry(0, 0, data, kind)
    try:
        on_propose_as_leader(core, Message(MessageKind.PROPOSE, core.id, core.id, entries=(entry,)))
    except ProposalDropped as refusal:
        # The next entry that is applied tries again.
        if core.trace is not None:
            core.trace(trace.AutoLeaveDeferred(members, str(refusal)))
    else:
        if core.trace is not None:
            core.trace(trace.AutoLeaveStarted(members))


def _numbered(core: Core, proposed: Sequence[Entry]) -> list[Entry]:
    """The proposals as they will stand in the log."""
    term, last = core.term, core.log.last_index
    entries: list[Entry] = []
    for index, entry in enumerate(proposed, last + 1):
        kind, data = entry.kind, entry.data
        if kind is not EntryKind.NORMAL:
            if _may_change(core, entry):
                core.pending_change_index = index
            else:
                kind, data = EntryKind.NORMAL, b""
        entries.append(Entry(term, index, data, kind))
    return entries


def _may_change(core: Core, entry: Entry) -> bool:
    change = decode_change(entry)
    assert change is not None
    if core.config.disable_conf_change_validation:
        return True
    problem = _problem_with(core, change)
    if problem is None:
        # All changes before it are applied, so what refuses it now would refuse it on every node
        # when it is committed, and then it is too late.
        try:
            Changer(core.tracker, core.log.last_index).apply(change.as_v2())
        except ChangeRefused as refusal:
            raise ProposalDropped(f"the change of members is refused: {refusal}") from refusal
        return True
    if core.trace is not None:
        core.trace(
            trace.ChangeIgnored(
                change=change,
                membership=core.tracker.membership,
                reason=problem,
                pending_index=core.pending_change_index,
                applied=core.log.applied,
            )
        )
    return False


def _problem_with(core: Core, change: AnyChange) -> ChangeProblem | None:
    joint = core.tracker.membership.joint
    leaves = not change.as_v2().changes
    if core.pending_change_index > core.log.applied:
        return ChangeProblem.ANOTHER_PENDING
    if joint and not leaves:
        return ChangeProblem.ALREADY_JOINT
    if not joint and leaves:
        return ChangeProblem.NOT_JOINT
    return None
