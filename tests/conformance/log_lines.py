"""What etcd would have logged, made from the core's trace events: one entry of `LINES` an event."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.raft import trace
from mesh.raft.trace import ChangeProblem, LogPoint, Role
from tests.conformance import words

LEVELS = ("DEBUG", "INFO", "WARN", "ERROR", "FATAL", "NONE")
Line = tuple[str, str]


def line(node: int, event: trace.Event) -> Line:
    """The level and the text."""
    level, render = LINES[type(event)]
    return level, render(f"{node:x}", event)


def _became(node: str, e: trace.BecameRole) -> str:
    names = {
        Role.FOLLOWER: "follower",
        Role.PRE_CANDIDATE: "pre-candidate",
        Role.CANDIDATE: "candidate",
        Role.LEADER: "leader",
    }
    return f"{node} became {names[e.role]} at term {e.term}"


def _started(node: str, e: trace.Started) -> str:
    peers = ",".join(f"{peer:x}" for peer in e.peers)
    return (
        f"newRaft {node} [peers: [{peers}], term: {e.term}, commit: {e.commit}, "
        f"applied: {e.applied}, lastindex: {e.last.index}, lastterm: {e.last.term}]"
    )


def _vote_received(node: str, e: trace.VoteReceived) -> str:
    rejection = "" if e.granted else " rejection"
    return f"{node} received {words.KINDS[e.kind]}{rejection} from {e.voter:x} at term {e.term}"


def _vote(node: str, e: trace.VoteDecided | trace.VoteIgnored, what: str) -> str:
    return (
        f"{node} [{_point(e.last)}, vote: {e.vote:x}] {what} {e.candidate:x} "
        f"[{_point(e.candidate_last)}] at term {e.term}"
    )


def _vote_decided(node: str, e: trace.VoteDecided) -> str:
    kind = words.KINDS[e.kind]
    return _vote(node, e, f"cast {kind} for" if e.granted else f"rejected {kind} from")


def _vote_ignored(node: str, e: trace.VoteIgnored) -> str:
    said = _vote(node, e, f"ignored {words.KINDS[e.kind]} from")
    return f"{said}: lease is not expired (remaining ticks: {e.remaining_ticks})"


def _change_ignored(node: str, e: trace.ChangeIgnored) -> str:
    reasons = {
        ChangeProblem.ANOTHER_PENDING: (
            f"possible unapplied conf change at index {e.pending_index} (applied to {e.applied})"
        ),
        ChangeProblem.ALREADY_JOINT: "must transition out of joint config first",
        ChangeProblem.NOT_JOINT: "not in joint state; refusing empty conf change",
    }
    config = words.membership(e.membership)
    change = words.change(e.change)
    return f"{node} ignoring conf change {change} at config {config}: {reasons[e.reason]}"


def _timeout_now_sent(node: str, e: trace.TimeoutNowSent) -> str:
    peer = f"{e.transferee:x}"
    if e.at_once:
        return (
            f"{node} sends MsgTimeoutNow to {peer} immediately as {peer} already has up-to-date log"
        )
    return f"{node} sent MsgTimeoutNow to {peer} after received MsgAppResp"


def _restoring(node: str, e: trace.LogRestoring) -> str:
    return (
        f"log [committed={e.commit}, applied={e.applied}, applying={e.applying}, "
        f"unstable.offset={e.offset}, unstable.offsetInProgress={e.offset_in_progress}, "
        f"len(unstable.Entries)={e.unstable_count}] starts to restore snapshot {_snap(e.snapshot)}"
    )


def _mismatched(node: str, e: trace.UnstableAckMismatched) -> str:
    return (
        f"entry at (index,term)=({e.acked.index},{e.acked.term}) mismatched with entry at "
        f"({e.kept.index},{e.kept.term}) in unstable log; ignoring"
    )


def _rejection(node: str, e: trace.RejectionReceived) -> str:
    return (
        f"{node} received {words.KINDS[e.kind]}(rejected, hint: (index {e.hint.index}, "
        f"term {e.hint.term})) from {e.sender:x} for index {e.rejected_index}"
    )


def _not_sent(node: str, e: trace.SnapshotNotSent) -> str:
    if not e.active:
        return f"ignore sending snapshot to {e.peer:x} since it is not recently active"
    return (
        f"{node} failed to send snapshot to {e.peer:x} because snapshot is temporarily unavailable"
    )


def _reported(node: str, e: trace.SnapshotReported) -> str:
    outcome = "succeeded" if e.succeeded else "failed"
    return (
        f"{node} snapshot {outcome}, resumed sending replication messages to {e.peer:x} "
        f"[{words.progress(e.progress)}]"
    )


def _refused(node: str, e: trace.SnapshotRefused) -> str:
    why = "as leader" if e.as_leader else "but it is not in the ConfState"
    return f"{node} attempted to restore snapshot {why}; should never happen"


def _point(at: LogPoint) -> str:
    return f"logterm: {at.term}, index: {at.index}"


def _snap(at: LogPoint) -> str:
    return f"[index: {at.index}, term: {at.term}]"


def _log(e: Any) -> str:
    return f"[commit: {e.commit}, lastindex: {e.last.index}, lastterm: {e.last.term}]"


def _progress(e: Any) -> str:
    return f"[{words.progress(e.progress)}]"


# `n` is the node's id, `e` the event.
LINES: dict[type[trace.Event], tuple[str, Callable[[str, Any], str]]] = {
    trace.Started: ("INFO", _started),
    trace.BecameRole: ("INFO", _became),
    trace.ConfigSwitched: ("INFO", lambda n, e: (
        f"{n} switched to configuration {words.membership(e.membership)}")),
    trace.TermRaised: ("INFO", lambda n, e: (
        f"{n} [term: {e.term}] received a {words.KINDS[e.kind]} message with higher term from "
        f"{e.sender:x} [term: {e.message_term}]")),
    trace.StaleMessageIgnored: ("INFO", lambda n, e: (
        f"{n} [term: {e.term}] ignored a {words.KINDS[e.kind]} message with lower term from "
        f"{e.sender:x} [term: {e.message_term}]")),
    trace.StaleAppendAckIgnored: ("INFO", lambda n, e: (
        f"{n} [term: {e.term}] ignored entry appends from a {words.KINDS[e.kind]} message with "
        f"lower term [term: {e.message_term}]")),
    trace.ElectionStarted: ("INFO", lambda n, e: (
        f"{n} is starting a new election at term {e.term}")),
    trace.ElectionNotStarted: ("DEBUG", lambda n, e: f"{n} ignoring MsgHup because already leader"),
    trace.Unpromotable: ("WARN", lambda n, e: f"{n} is unpromotable and can not campaign"),
    trace.ElectionHeldBack: ("WARN", lambda n, e: (
        f"{n} cannot campaign at term {e.term} since there are still pending configuration "
        "changes to apply")),
    trace.VoteRequested: ("INFO", lambda n, e: (
        f"{n} [{_point(e.last)}] sent {words.KINDS[e.kind]} request to {e.voter:x} "
        f"at term {e.term}")),
    trace.VoteReceived: ("INFO", _vote_received),
    trace.VotesCounted: ("INFO", lambda n, e: (
        f"{n} has received {e.granted} {words.KINDS[e.kind]} votes and {e.rejected} "
        "vote rejections")),
    trace.VoteDecided: ("INFO", _vote_decided),
    trace.VoteIgnored: ("INFO", _vote_ignored),
    trace.QuorumLost: ("WARN", lambda n, e: (
        f"{n} stepped down to follower since quorum is not active")),
    trace.TimeoutNowReceived: ("INFO", lambda n, e: (
        f"{n} [term {e.term}] received MsgTimeoutNow from {e.sender:x} and starts an election "
        "to get leadership.")),
    trace.TimeoutNowIgnored: ("DEBUG", lambda n, e: (
        f"{n} [term {e.term} state {words.ROLES[e.role]}] ignored MsgTimeoutNow from "
        f"{e.sender:x}")),
    trace.LeaderForgotten: ("INFO", lambda n, e: (
        f"{n} forgetting leader {e.leader:x} at term {e.term}")),
    trace.ForgetLeaderRefused: ("ERROR", lambda n, e: (
        "ignoring MsgForgetLeader due to ReadOnlyLeaseBased")),
    trace.ProposalWithoutLeader: ("INFO", lambda n, e: (
        f"{n} no leader at term {e.term}; dropping proposal")),
    trace.ProposalNotForwarded: ("INFO", lambda n, e: (
        f"{n} not forwarding to leader {e.leader:x} at term {e.term}; dropping proposal")),
    trace.ProposalDuringTransfer: ("DEBUG", lambda n, e: (
        f"{n} [term {e.term}] transfer leadership to {e.transferee:x} is in progress; "
        "dropping proposal")),
    trace.ProposalOverLimit: ("WARN", lambda n, e: (
        f"{n} appending new entries to log would exceed uncommitted entry size limit; "
        "dropping proposal")),
    trace.ChangeIgnored: ("INFO", _change_ignored),
    trace.AutoLeaveStarted: ("INFO", lambda n, e: (
        "initiating automatic transition out of joint configuration "
        f"{words.membership(e.membership)}")),
    trace.AutoLeaveDeferred: ("DEBUG", lambda n, e: (
        "not initiating automatic transition out of joint configuration "
        f"{words.membership(e.membership)}: {e.reason}")),
    trace.ReadWithoutLeader: ("INFO", lambda n, e: (
        f"{n} no leader at term {e.term}; dropping index reading msg")),
    trace.ReadOverLimit: ("WARN", lambda n, e: (
        f"{n} has {e.pending} pending reads; dropping index reading msg")),
    trace.AppendRejected: ("DEBUG", lambda n, e: (
        f"{n} [logterm: {e.local_term}, index: {e.prev.index}] rejected MsgApp "
        f"[{_point(e.prev)}] from {e.sender:x}")),
    trace.RejectionReceived: ("DEBUG", _rejection),
    trace.ProgressDecreased: ("DEBUG", lambda n, e: (
        f"{n} decreased progress of {e.peer:x} to {_progress(e)}")),
    trace.StrangerIgnored: ("DEBUG", lambda n, e: f"{n} no progress available for {e.sender:x}"),
    trace.PeerUnreachable: ("DEBUG", lambda n, e: (
        f"{n} failed to send message to {e.peer:x} because it is unreachable {_progress(e)}")),
    trace.TransferStarted: ("INFO", lambda n, e: (
        f"{n} [term {e.term}] starts to transfer leadership to {e.transferee:x}")),
    trace.TransferToSame: ("INFO", lambda n, e: (
        f"{n} [term {e.term}] transfer leadership to {e.transferee:x} is in progress, ignores "
        f"request to same node {e.transferee:x}")),
    trace.TransferAborted: ("INFO", lambda n, e: (
        f"{n} [term {e.term}] abort previous transferring leadership to {e.transferee:x}")),
    trace.TransferToSelf: ("DEBUG", lambda n, e: (
        f"{n} is already leader. Ignored transferring leadership to self")),
    trace.TransferToLearner: ("DEBUG", lambda n, e: (
        f"{n} is learner. Ignored transferring leadership")),
    trace.TransferWithoutLeader: ("INFO", lambda n, e: (
        f"{n} no leader at term {e.term}; dropping leader transfer msg")),
    trace.TimeoutNowSent: ("INFO", _timeout_now_sent),
    trace.SnapshotNotSent: ("DEBUG", _not_sent),
    trace.SnapshotSent: ("DEBUG", lambda n, e: (
        f"{n} [firstindex: {e.first_index}, commit: {e.commit}] sent snapshot{_snap(e.snapshot)} "
        f"to {e.peer:x} {_progress(e)}")),
    trace.ReplicationPaused: ("DEBUG", lambda n, e: (
        f"{n} paused sending replication messages to {e.peer:x} {_progress(e)}")),
    trace.ReplicationResumed: ("DEBUG", lambda n, e: (
        f"{n} recovered from needing snapshot, resumed sending replication messages to "
        f"{e.peer:x} {_progress(e)}")),
    trace.SnapshotReported: ("DEBUG", _reported),
    trace.SnapshotRestored: ("INFO", lambda n, e: (
        f"{n} {_log(e)} restored snapshot {_snap(e.snapshot)}")),
    trace.SnapshotAccepted: ("INFO", lambda n, e: (
        f"{n} [commit: {e.commit}] restored snapshot {_snap(e.snapshot)}")),
    trace.SnapshotIgnored: ("INFO", lambda n, e: (
        f"{n} [commit: {e.commit}] ignored snapshot {_snap(e.snapshot)}")),
    trace.CommitFastForwarded: ("INFO", lambda n, e: (
        f"{n} {_log(e)} fast-forwarded commit to snapshot {_snap(e.snapshot)}")),
    trace.SnapshotRefused: ("WARN", _refused),
    trace.LogRestoring: ("INFO", _restoring),
    trace.ConflictFound: ("INFO", lambda n, e: (
        f"found conflict at index {e.index} [existing term: {e.existing_term}, "
        f"conflicting term: {e.conflicting_term}]")),
    trace.UnstableReplaced: ("INFO", lambda n, e: (
        f"replace the unstable entries from index {e.from_index}")),
    trace.UnstableTruncated: ("INFO", lambda n, e: (
        f"truncate the unstable entries before index {e.before_index}")),
    trace.UnstableAckMissing: ("INFO", lambda n, e: (
        f"entry at index {e.index} missing from unstable log; ignoring")),
    trace.UnstableAckOfSnapshot: ("INFO", lambda n, e: (
        f"entry at index {e.index} matched unstable snapshot; ignoring")),
    trace.UnstableAckMismatched: ("INFO", _mismatched),
}  # fmt: skip
