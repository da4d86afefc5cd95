"""Heartbeats: a leader's word that it still leads, with the reads that its answers confirm.

A peer is never told of a commit beyond what it is known to have.
"""

from __future__ import annotations

from mesh.raft.core import Core
from mesh.raft.messages import MessageKind


def broadcast(core: Core) -> None:
    broadcast_with(core, core.reads.last_context)


def broadcast_with(core: Core, context: bytes) -> None:
    committed = core.log.committed
    for peer, progress in core.tracker.peers.items():
        if peer == core.id:
            continue
        commit = min(progress.match, committed)
        core.send(MessageKind.HEARTBEAT, peer, commit=commit, context=context)
        progress.sent_commit = commit
