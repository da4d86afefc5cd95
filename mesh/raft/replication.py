"""The leader's side of the log: what each peer is sent, and what its answers commit.

An entry is on its way to the peers while the leader's own write of it is; the leader counts
itself only once its disk has answered.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.raft import reading, trace
from mesh.raft.core import Core
from mesh.raft.errors import SnapshotTemporarilyUnavailable, StorageError
from mesh.raft.log import NO_TAIL
from mesh.raft.messages import Message, MessageKind
from mesh.raft.progress import Progress, ProgressState
from mesh.raft.trace import LogPoint
from mesh.raft.types import NOBODY, Entry


def append(core: Core, entries: Sequence[Entry]) -> None:
    """Put these at the end of the leader's own log. They bear its term and follow on it."""
    core.log.append(entries)
    # Said to itself, after the write: this is how the leader counts its own disk.
    core.send(MessageKind.APPEND_RESPONSE, core.id, index=core.log.last_index)


def broadcast_append(core: Core) -> None:
    for peer, progress in core.tracker.peers.items():
        if peer != core.id:
            send_append(core, peer, progress)


def send_append(core: Core, peer: int, progress: Progress, *, even_empty: bool = True) -> bool:
    """Send what comes next, or a snapshot where that is gone. False where nothing was sent."""
    if progress.paused:
        return False
    log = core.log
    prev = progress.next - 1
    try:
        prev_term = log.term(prev)
        # A peer with a full window gets an empty one, so that what was lost is noticed.
        full = progress.state is ProgressState.REPLICATE and progress.inflights.full
        tail = NO_TAIL if full else log.tail(prev + 1, core.config.max_size_per_msg)
    except StorageError:
        return _send_snapshot(core, peer, progress)
    _, entries, size_bytes = tail
    if not entries and not even_empty:
        return False
    core.send(
        MessageKind.APPEND,
        peer,
        log_term=prev_term,
        index=prev,
        commit=log.committed,
        entries=entries,
    )
    progress.sent_entries(len(entries), size_bytes)
    progress.sent_commit = log.committed
    return True


def advance_commit(core: Core) -> bool:
    """Commit what a quorum has, and tell everybody. False where nothing is new."""
    if not core.log.maybe_commit(core.tracker.committed(), core.term):
        return False
    reading.release_postponed(core)
    broadcast_append(core)
    return True


def on_append_response(core: Core, message: Message) -> None:
    progress = _progress_of(core, message)
    if progress is None:
        return
    progress.active = True
    if message.reject:
        _on_rejection(core, message, progress)
    else:
        _on_acknowledgement(core, message, progress)


def on_heartbeat_response(core: Core, message: Message) -> None:
    progress = _progress_of(core, message)
    if progress is None:
        return
    progress.active = True
    progress.flow_paused = False
    if progress.match < core.log.last_index or progress.state is ProgressState.PROBE:
        send_append(core, message.sender, progress)
    reading.confirm(core, message)


def on_unreachable(core: Core, peer: int) -> None:
    """An append to this peer was surely lost: go on more carefully."""
    progress = core.tracker.peers.get(peer)
    if progress is None:
        return
    if progress.state is ProgressState.REPLICATE:
        progress.become_probe()
    if core.trace is not None:
        core.trace(trace.PeerUnreachable(peer, progress.view()))


def on_snapshot_report(core: Core, peer: int, succeeded: bool) -> None:
    progress = core.tracker.peers.get(peer)
    if progress is None or progress.state is not ProgressState.SNAPSHOT:
        return
    if not succeeded:
        progress.pending_snapshot = 0
    progress.become_probe()
    # Once it succeeded its acknowledgement comes next; else a heartbeat's answer goes on.
    progress.flow_paused = True
    if core.trace is not None:
        core.trace(trace.SnapshotReported(peer, succeeded, progress.view()))


def on_transfer(core: Core, message: Message) -> None:
    """Hand the lead over to the one in whose name this was sent, within an election timeout."""
    transferee = message.sender
    progress = _progress_of(core, message)
    if progress is None:
        return
    if progress.learner:
        _tell(core, trace.TransferToLearner())
        return
    if core.transferee != NOBODY:
        if core.transferee == transferee:
            _tell(core, trace.TransferToSame(core.term, transferee))
            return
        _tell(core, trace.TransferAborted(core.term, core.transferee))
        core.transferee = NOBODY
    if transferee == core.id:
        _tell(core, trace.TransferToSelf())
        return
    _tell(core, trace.TransferStarted(core.term, transferee))
    core.election_elapsed = 0
    core.transferee = transferee
    if progress.match == core.log.last_index:
        _send_timeout_now(core, transferee, at_once=True)
    else:
        send_append(core, transferee, progress)


def _on_rejection(core: Core, message: Message, progress: Progress) -> None:
    peer, hint = message.sender, message.reject_hint
    if core.trace is not None:
        core.trace(
            trace.RejectionReceived(
                message.kind, LogPoint(message.log_term, hint), peer, message.index
            )
        )
    if message.log_term:
        # All entries of its that bear a higher term than ours do at the hint cannot agree:
        # one message skips a whole term, not one entry.
        hint, _ = core.log.conflict_by_term(hint, message.log_term)
    if progress.retreat(message.index, hint):
        if core.trace is not None:
            core.trace(trace.ProgressDecreased(peer, progress.view()))
        if progress.state is ProgressState.REPLICATE:
            progress.become_probe()
        send_append(core, peer, progress)


def _on_acknowledgement(core: Core, message: Message, progress: Progress) -> None:
    peer, index = message.sender, message.index
    probing = progress.state is ProgressState.PROBE
    if not progress.acknowledge(index) and not (probing and progress.match == index):
        return
    if probing:
        progress.become_replicate()
    elif progress.state is ProgressState.REPLICATE:
        progress.inflights.free_up_to(index)
    elif progress.match + 1 >= core.log.first_index:
        # The log reaches back to where the peer is: however it got there, go on from there.
        if core.trace is not None:
            core.trace(trace.ReplicationResumed(peer, progress.view()))
        progress.become_probe()
        progress.become_replicate()
    own = peer == core.id
    if not advance_commit(core) and not own and progress.can_bump_commit(core.log.committed):
        send_append(core, peer, progress)
    if own:
        return
    while send_append(core, peer, progress, even_empty=False):
        pass
    if peer == core.transferee and progress.match == core.log.last_index:
        _send_timeout_now(core, peer, at_once=False)


def _send_snapshot(core: Core, peer: int, progress: Progress) -> bool:
    if not progress.active:
        _tell(core, trace.SnapshotNotSent(peer, active=False))
        return False
    try:
        snapshot = core.log.unstable.snapshot or core.log.storage.snapshot()
    except SnapshotTemporarilyUnavailable:
        _tell(core, trace.SnapshotNotSent(peer, active=True))
        return False
    meta = snapshot.meta
    assert not snapshot.empty, "the log is compacted, but storage has no snapshot"
    if core.trace is not None:
        core.trace(
            trace.SnapshotSent(
                first_index=core.log.first_index,
                commit=core.log.committed,
                snapshot=LogPoint(meta.term, meta.index),
                peer=peer,
                progress=progress.view(),
            )
        )
    progress.become_snapshot(meta.index)
    if core.trace is not None:
        core.trace(trace.ReplicationPaused(peer, progress.view()))
    core.send(MessageKind.SNAPSHOT, peer, snapshot=snapshot)
    return True


def _send_timeout_now(core: Core, transferee: int, *, at_once: bool) -> None:
    core.send(MessageKind.TIMEOUT_NOW, transferee)
    _tell(core, trace.TimeoutNowSent(transferee, at_once))


def _progress_of(core: Core, message: Message) -> Progress | None:
    progress = core.tracker.peers.get(message.sender)
    if progress is None:
        _tell(core, trace.StrangerIgnored(message.sender))
    return progress


def _tell(core: Core, event: trace.Event) -> None:
    if core.trace is not None:
        core.trace(event)
