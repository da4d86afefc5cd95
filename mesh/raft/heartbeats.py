"""Heartbeats: a leader's word that it still leads, with the reads that its answers confirm.

A peer is never told of a commit beyond what it is known to have.
"""

from __future__ import annotations

from collections.abc import Iterator

from mesh.raft.core import Core
from mesh.raft.messages import MessageKind
from mesh.raft.progress import Progress


def broadcast(core: Core) -> None:
    broadcast_with(core, core.reads.last_context)


def broadcast_with(core: Core, context: bytes) -> None:
    for peer, progress in core.tracker.peers.items():
        if peer != core.id:
            _send(core, peer, progress, context)


def send_to_waiting(core: Core) -> None:
    for peer, progress in _waiting(core):
        _send(core, peer, progress, core.reads.last_context)


def anybody_waits(core: Core) -> bool:
    """For a heartbeat alone: what it was sent was lost, or has come to nothing, and its answer to a
    heartbeat says that it is there. One that was not heard of for long has time."""
    return any(True for _ in _waiting(core))


def _waiting(core: Core) -> Iterator[tuple[int, Progress]]:
    for peer, progress in core.tracker.peers.items():
        if peer != core.id and progress.active and progress.waits:
            yield peer, progress


def _send(core: Core, peer: int, progress: Progress, context: bytes) -> None:
    commit = min(progress.match, core.log.committed)
    core.send(MessageKind.HEARTBEAT, peer, commit=commit, context=context)
    progress.sent_commit = commit
