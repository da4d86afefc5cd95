"""The directives of etcd's files on changes of members: `simple`, `enter-joint`, `leave-joint`."""

from __future__ import annotations

from mesh.raft.changer import Changer
from mesh.raft.errors import ChangeRefused
from mesh.raft.membership import Tracker
from tests.conformance import words
from tests.conformance.datadriven import Directive


class Memberships:
    def __init__(self) -> None:
        self._tracker = Tracker(10)
        # One more a directive, so that `next` tells in which one a progress began.
        self._round = 0

    def handle(self, directive: Directive) -> str:
        changer = Changer(self._tracker, self._round)
        self._round += 1
        changes = words.parse_changes(directive.input)
        try:
            match directive.command:
                case "simple":
                    outcome = changer.simple(changes)
                case "enter-joint":
                    auto_leave = directive.flag("autoleave")
                    outcome = changer.enter_joint(changes, auto_leave=auto_leave)
                case "leave-joint":
                    outcome = changer.leave_joint()
                case other:
                    raise AssertionError(f"unknown command {other}")
        except ChangeRefused as refusal:
            return str(refusal)
        self._tracker.adopt(*outcome)
        views = {node: progress.view() for node, progress in self._tracker.peers.items()}
        return f"{words.membership(self._tracker.membership)}\n{words.progress_map(views)}"
