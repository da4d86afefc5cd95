"""The core's structs in the words of etcd's transcripts. Text is made here, never in the core."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from mesh.raft import (
    APPEND_THREAD,
    APPLY_THREAD,
    NOBODY,
    AnyChange,
    Change,
    ChangeKind,
    Entry,
    EntryKind,
    HardState,
    Message,
    MessageKind,
    ProgressState,
    ProgressView,
    Ready,
    Role,
    Snapshot,
    Transition,
    decode_change,
)
from mesh.raft.membership import Membership

K = MessageKind
KINDS = {
    K.PROPOSE: "MsgProp",
    K.APPEND: "MsgApp",
    K.APPEND_RESPONSE: "MsgAppResp",
    K.VOTE: "MsgVote",
    K.VOTE_RESPONSE: "MsgVoteResp",
    K.PRE_VOTE: "MsgPreVote",
    K.PRE_VOTE_RESPONSE: "MsgPreVoteResp",
    K.SNAPSHOT: "MsgSnap",
    K.HEARTBEAT: "MsgHeartbeat",
    K.HEARTBEAT_RESPONSE: "MsgHeartbeatResp",
    K.TRANSFER_LEADER: "MsgTransferLeader",
    K.TIMEOUT_NOW: "MsgTimeoutNow",
    K.READ_INDEX: "MsgReadIndex",
    K.READ_INDEX_RESPONSE: "MsgReadIndexResp",
    K.STORAGE_APPEND: "MsgStorageAppend",
    K.STORAGE_APPEND_RESPONSE: "MsgStorageAppendResp",
    K.STORAGE_APPLY: "MsgStorageApply",
    K.STORAGE_APPLY_RESPONSE: "MsgStorageApplyResp",
}
ROLES = {
    Role.FOLLOWER: "StateFollower",
    Role.PRE_CANDIDATE: "StatePreCandidate",
    Role.CANDIDATE: "StateCandidate",
    Role.LEADER: "StateLeader",
}
PROGRESS_STATES = {
    ProgressState.PROBE: "StateProbe",
    ProgressState.REPLICATE: "StateReplicate",
    ProgressState.SNAPSHOT: "StateSnapshot",
}
ENTRY_KINDS = {
    EntryKind.NORMAL: "EntryNormal",
    EntryKind.CONF_CHANGE: "EntryConfChange",
    EntryKind.CONF_CHANGE_V2: "EntryConfChangeV2",
}
CHANGE_KINDS = {
    ChangeKind.ADD_NODE: "ConfChangeAddNode",
    ChangeKind.REMOVE_NODE: "ConfChangeRemoveNode",
    ChangeKind.UPDATE_NODE: "ConfChangeUpdateNode",
    ChangeKind.ADD_LEARNER: "ConfChangeAddLearnerNode",
}
TRANSITIONS = {
    Transition.AUTO: "ConfChangeTransitionAuto",
    Transition.IMPLICIT: "ConfChangeTransitionJointImplicit",
    Transition.EXPLICIT: "ConfChangeTransitionJointExplicit",
}
LETTERS = {
    "v": ChangeKind.ADD_NODE,
    "l": ChangeKind.ADD_LEARNER,
    "r": ChangeKind.REMOVE_NODE,
    "u": ChangeKind.UPDATE_NODE,
}
THREADS = {NOBODY: "None", APPEND_THREAD: "AppendThread", APPLY_THREAD: "ApplyThread"}


def ready(given: Ready) -> str:
    lines = []
    if given.soft_state is not None:
        lines.append(f"Lead:{given.soft_state.lead} State:{ROLES[given.soft_state.role]}")
    if given.hard_state is not None:
        lines.append(f"HardState {hard_state(given.hard_state)}")
    if given.read_states:
        states = " ".join(
            f"{{{read.index} {go_quote(read.context)}}}" for read in given.read_states
        )
        lines.append(f"ReadStates [{states}]")
    if given.entries:
        lines += ["Entries:", *map(entry, given.entries)]
    if given.snapshot is not None:
        lines.append(f"Snapshot {snapshot(given.snapshot)}")
    if given.committed_entries:
        lines += ["CommittedEntries:", *map(entry, given.committed_entries)]
    if given.messages:
        lines += ["Messages:", *map(message, given.messages)]
    if not lines:
        return "<empty Ready>"
    return "\n".join([f"Ready MustSync={go_bool(given.must_sync)}:", *lines])


def message(given: Message, indent: str = "", *, responses: bool = True) -> str:
    text = (
        f"{indent}{target(given.sender)}->{target(given.to)} {KINDS[given.kind]} "
        f"Term:{given.term} Log:{given.log_term}/{given.index}"
    )
    if given.reject:
        text += f" Rejected (Hint: {given.reject_hint})"
    if given.commit:
        text += f" Commit:{given.commit}"
    if given.vote:
        text += f" Vote:{given.vote}"
    if len(given.entries) == 1:
        text += f" Entries:[{entry(given.entries[0])}]"
    elif given.entries:
        inside = "".join(f"\n{indent}  {entry(one)}" for one in given.entries)
        text += f" Entries:[{inside}\n{indent}]"
    if given.snapshot is not None and not given.snapshot.empty:
        text += f"\n{indent}  Snapshot: {snapshot(given.snapshot)}"
    if responses and given.responses:
        inside = "".join(f"\n{message(one, indent + '  ')}" for one in given.responses)
        text += f" Responses:[{inside}\n{indent}]"
    return text


def entry(given: Entry) -> str:
    said = changes(given) if given.kind is not EntryKind.NORMAL else go_quote(given.data)
    return f"{given.term}/{given.index} {ENTRY_KINDS[given.kind]} {said}".rstrip()


def changes(given: Entry) -> str:
    change = decode_change(given)
    assert change is not None
    letters = {kind: letter for letter, kind in LETTERS.items()}
    return " ".join(f"{letters[one.kind]}{one.node_id}" for one in change.as_v2().changes)


def parse_changes(text: str) -> tuple[Change, ...]:
    return tuple(Change(LETTERS[word[0]], int(word[1:])) for word in text.split())


def change(given: AnyChange) -> str:
    both = given.as_v2()
    steps = (
        f" changes:{{type:{CHANGE_KINDS[one.kind]} node_id:{one.node_id}}}" for one in both.changes
    )
    return f"transition:{TRANSITIONS[both.transition]}{''.join(steps)}"


def hard_state(given: HardState) -> str:
    vote = f" Vote:{given.vote}" if given.vote else ""
    return f"Term:{given.term}{vote} Commit:{given.commit}"


def snapshot(given: Snapshot) -> str:
    meta = given.meta
    state = meta.conf_state
    return (
        f"Index:{meta.index} Term:{meta.term} ConfState:Voters:{_go_list(state.voters)} "
        f"VotersOutgoing:{_go_list(state.voters_outgoing)} Learners:{_go_list(state.learners)} "
        f"LearnersNext:{_go_list(state.learners_next)} AutoLeave:{go_bool(state.auto_leave)}"
    )


def membership(given: Membership) -> str:
    text = f"voters={_ids(given.voters)}"
    if given.outgoing:
        text += f"&&{_ids(given.outgoing)}"
    if given.learners:
        text += f" learners={_ids(given.learners)}"
    if given.learners_next:
        text += f" learners_next={_ids(given.learners_next)}"
    return text + (" autoleave" if given.auto_leave else "")


def progress(given: ProgressView) -> str:
    text = f"{PROGRESS_STATES[given.state]} match={given.match} next={given.next}"
    if given.learner:
        text += " learner"
    if given.paused:
        text += " paused"
    if given.pending_snapshot:
        text += f" pendingSnap={given.pending_snapshot}"
    if not given.active:
        text += " inactive"
    if given.inflight:
        text += f" inflight={given.inflight}"
        text += "[full]" if given.inflight_full else ""
    return text


def progress_map(given: Mapping[int, ProgressView]) -> str:
    return "".join(f"{node}: {progress(view)}\n" for node, view in sorted(given.items()))


def target(node: int) -> str:
    return THREADS.get(node) or f"{node:x}"


def go_bool(value: bool) -> str:
    return "true" if value else "false"


def go_quote(data: bytes) -> str:
    """As %q: what prints stands for itself, the rest is escaped."""
    short = {'"': '\\"', "\\": "\\\\", "\a": "\\a", "\b": "\\b", "\f": "\\f", "\n": "\\n",
             "\r": "\\r", "\t": "\\t", "\v": "\\v"}  # fmt: skip
    said = ""
    for char in data.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if char in short:
            said += short[char]
        elif 0xDC80 <= code <= 0xDCFF:
            said += f"\\x{code - 0xDC00:02x}"
        elif char.isprintable():
            said += char
        elif code < 0x80:
            said += f"\\x{code:02x}"
        else:
            said += f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
    return f'"{said}"'


def _go_list(ids: Iterable[int]) -> str:
    return f"[{' '.join(map(str, ids))}]"


def _ids(ids: Iterable[int]) -> str:
    return f"({' '.join(map(str, sorted(ids)))})"
