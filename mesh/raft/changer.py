"""From one membership to the next: what may follow what, and whose progress is kept.

A result is a new membership with new peers; where a change is refused nothing has happened.
"""

from __future__ import annotations

from collections.abc import Iterable

from mesh.raft.confchange import AnyChange, Change, ChangeKind, ConfChangeV2
from mesh.raft.errors import ChangeRefused
from mesh.raft.inflights import Inflights
from mesh.raft.membership import Membership, Peers, Tracker
from mesh.raft.progress import Progress
from mesh.raft.types import NOBODY, ConfState

Outcome = tuple[Membership, Peers]


def conf_state_after(state: ConfState, change: AnyChange) -> ConfState:
    """The members after a committed change, from those before it: for the machine, which keeps
    them beside what it has applied. ChangeRefused where that change can never be applied."""
    tracker = Tracker(1)
    tracker.adopt(*Changer(tracker, 0).restore(state))
    membership, _ = Changer(tracker, 0).apply(change.as_v2())
    return membership.conf_state()


class Changer:
    """Applies changes to the tracker's membership; `last_index` is where new peers begin."""

    def __init__(self, tracker: Tracker, last_index: int) -> None:
        self._tracker = tracker
        self._last_index = last_index

    def apply(self, change: ConfChangeV2) -> Outcome:
        if change.leaves_joint:
            return self.leave_joint()
        if change.enters_joint:
            return self.enter_joint(change.changes, auto_leave=change.auto_leave)
        return self.simple(change.changes)

    def simple(self, changes: Iterable[Change]) -> Outcome:
        """At most one voter comes or goes: the old majority and the new one share a node."""
        old = self._tracker.membership
        if old.joint:
            raise ChangeRefused("can't apply simple config change in joint config")
        draft = self._draft()
        draft.apply(changes)
        if len(old.voters ^ draft.voters) > 1:
            raise ChangeRefused("more than one voter changed without entering joint config")
        return draft.outcome(auto_leave=old.auto_leave)

    def enter_joint(self, changes: Iterable[Change], *, auto_leave: bool) -> Outcome:
        """From now on both the old voters and the new ones must agree."""
        old = self._tracker.membership
        if old.joint:
            raise ChangeRefused("config is already joint")
        if not old.voters:
            raise ChangeRefused("can't make a zero-voter config joint")
        draft = self._draft()
        draft.outgoing = set(old.voters)
        draft.apply(changes)
        return draft.outcome(auto_leave=auto_leave)

    def leave_joint(self) -> Outcome:
        """The old voters go; those among them that were demoted become learners."""
        if not self._tracker.membership.joint:
            raise ChangeRefused("can't leave a non-joint config")
        draft = self._draft()
        for node in draft.learners_next:
            draft.learners.add(node)
            draft.own(node).learner = True
        draft.learners_next.clear()
        for node in draft.outgoing - draft.voters - draft.learners:
            del draft.peers[node]
        draft.outgoing.clear()
        return draft.outcome(auto_leave=False)

    def restore(self, state: ConfState) -> Outcome:
        """The membership that a snapshot or the disk holds."""
        draft = _Draft(Membership(), {}, self._tracker, self._last_index)
        draft.voters.update(state.voters)
        draft.outgoing.update(state.voters_outgoing)
        draft.learners.update(state.learners)
        draft.learners_next.update(state.learners_next)
        for node in (*state.voters, *state.voters_outgoing, *state.learners_next):
            draft.begin(node, learner=False)
        for node in state.learners:
            draft.begin(node, learner=True)
        return draft.outcome(auto_leave=state.auto_leave)

    def _draft(self) -> _Draft:
        tracker = self._tracker
        return _Draft(tracker.membership, tracker.peers, tracker, self._last_index)


class _Draft:
    """A membership in the making. Progress is copied before it is changed."""

    def __init__(self, old: Membership, peers: Peers, tracker: Tracker, last_index: int) -> None:
        self.voters = set(old.voters)
        self.outgoing = set(old.outgoing)
        self.learners = set(old.learners)
        self.learners_next = set(old.learners_next)
        self.peers = dict(peers)
        self._tracker = tracker
        self._last_index = last_index

    def apply(self, changes: Iterable[Change]) -> None:
        steps = {
            ChangeKind.ADD_NODE: self._make_voter,
            ChangeKind.ADD_LEARNER: self._make_learner,
            ChangeKind.REMOVE_NODE: self._remove,
            ChangeKind.UPDATE_NODE: self._leave_as_it_is,
        }
        for change in changes:
            if change.node_id != NOBODY:
                steps[change.kind](change.node_id)
        if not self.voters:
            raise ChangeRefused("removed all voters")

    def begin(self, node: int, *, learner: bool) -> None:
        """A new peer. It counts as active, so that its coming never costs the leader its quorum
        before it had a chance to speak."""
        if node in self.peers:
            return
        inflights: Inflights = self._tracker.new_inflights()
        # The last entry is probed for first: a fresh node refuses it, and its hint says the rest.
        start = max(self._last_index, 1)
        self.peers[node] = Progress(start, inflights, learner=learner, active=True)

    def own(self, node: int) -> Progress:
        """This node's progress as a copy that may be changed."""
        old = self.peers[node]
        new = Progress(old.next, old.inflights, match=old.match, active=old.active)
        new.sent_commit = old.sent_commit
        new.state = old.state
        new.pending_snapshot = old.pending_snapshot
        new.flow_paused = old.flow_paused
        new.learner = old.learner
        self.peers[node] = new
        return new

    def outcome(self, *, auto_leave: bool) -> Outcome:
        membership = Membership(
            voters=frozenset(self.voters),
            outgoing=frozenset(self.outgoing),
            learners=frozenset(self.learners),
            learners_next=frozenset(self.learners_next),
            auto_leave=auto_leave,
        )
        _check(membership, self.peers)
        return membership, self.peers

    def _make_voter(self, node: int) -> None:
        if node in self.peers:
            self.own(node).learner = False
        else:
            self.begin(node, learner=False)
        self.learners.discard(node)
        self.learners_next.discard(node)
        self.voters.add(node)

    def _make_learner(self, node: int) -> None:
        if node not in self.peers:
            self.begin(node, learner=True)
            self.learners.add(node)
            return
        if self.peers[node].learner:
            return
        progress = self.own(node)
        self._remove(node)
        self.peers[node] = progress
        # Nobody both votes and learns: an outgoing voter learns only once the old half is gone.
        if node in self.outgoing:
            self.learners_next.add(node)
        else:
            progress.learner = True
            self.learners.add(node)

    def _leave_as_it_is(self, node: int) -> None:
        """An update is for the application alone."""

    def _remove(self, node: int) -> None:
        if node not in self.peers:
            return
        self.voters.discard(node)
        self.learners.discard(node)
        self.learners_next.discard(node)
        if node not in self.outgoing:
            del self.peers[node]


def _check(membership: Membership, peers: Peers) -> None:
    """What holds of every membership; a snapshot from elsewhere must not break it either."""
    votes = membership.voters | membership.outgoing
    members = votes | membership.learners | membership.learners_next
    rules = {
        "a member has no progress, or a stranger has one": members == peers.keys(),
        "a voter is among the learners": not votes & membership.learners,
        "who is to learn next votes in the outgoing half": (
            membership.learners_next <= membership.outgoing
        ),
        "who is to learn next votes in the incoming half": not (
            membership.learners_next & membership.voters
        ),
        "a learner's progress does not say so": all(
            peers[node].learner == (node in membership.learners) for node in members & peers.keys()
        ),
        "only a joint config leaves by itself": membership.joint or not membership.auto_leave,
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise ChangeRefused(f"the configuration is broken: {'; '.join(broken)}")
