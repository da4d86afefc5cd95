"""Changes of members take effect when they are applied, on each node at its own time."""

from __future__ import annotations

from mesh.raft import replication
from mesh.raft.changer import Changer
from mesh.raft.confchange import ConfChangeV2
from mesh.raft.core import Core
from mesh.raft.trace import Role
from mesh.raft.types import NOBODY, ConfState


def apply_change(core: Core, change: ConfChangeV2) -> ConfState:
    """Switch to what a committed change leads to; it goes into the next snapshot."""
    core.adopt(*Changer(core.tracker, core.log.last_index).apply(change))
    members = core.tracker.membership
    state = members.conf_state()
    if core.role is not Role.LEADER:
        return state
    own = core.own_progress
    if own is None or own.learner:
        # It goes on leading, without a voice of its own, until somebody takes over: to send
        # what is committed is better than to leave a gap.
        if core.config.step_down_on_removal:
            core.become_follower(core.term, NOBODY)
        return state
    if not members.voters:
        return state
    # With fewer voters more may be committed; else those who are new are sent their first.
    if not replication.advance_commit(core):
        for peer, progress in core.tracker.peers.items():
            if peer != core.id:
                replication.send_append(core, peer, progress, even_empty=False)
    if core.transferee not in members.all_voters:
        core.transferee = NOBODY
    return state
