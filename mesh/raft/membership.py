"""Who votes and who learns, and what the leader knows of each of them.

`Membership` never changes, a change makes a new one. A node that votes in either half, or learns,
has a progress, and nobody else has.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mesh.raft import quorum
from mesh.raft.inflights import Inflights
from mesh.raft.progress import Progress
from mesh.raft.quorum import VoteResult
from mesh.raft.types import ConfState

Peers = dict[int, Progress]


class Membership(msgspec.Struct, frozen=True):
    """`outgoing` holds the old voters while a joint change is under way; a voter among them that
    is to become a learner waits in `learners_next` until they are gone."""

    voters: frozenset[int] = frozenset()
    outgoing: frozenset[int] = frozenset()
    learners: frozenset[int] = frozenset()
    learners_next: frozenset[int] = frozenset()
    auto_leave: bool = False

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def all_voters(self) -> frozenset[int]:
        return self.voters | self.outgoing if self.outgoing else self.voters

    def conf_state(self) -> ConfState:
        return ConfState(
            voters=_rising(self.voters),
            learners=_rising(self.learners),
            voters_outgoing=_rising(self.outgoing),
            learners_next=_rising(self.learners_next),
            auto_leave=self.auto_leave,
        )


class Tracker:
    """The members with their progress, and the votes of the election under way."""

    __slots__ = ("inflight_bytes_max", "inflight_messages_max", "membership", "peers", "votes")

    def __init__(self, inflight_messages_max: int, inflight_bytes_max: int = 0) -> None:
        self.inflight_messages_max = inflight_messages_max
        self.inflight_bytes_max = inflight_bytes_max
        self.membership = Membership()
        self.peers: Peers = {}
        self.votes: dict[int, bool] = {}

    def adopt(self, membership: Membership, peers: Peers) -> None:
        self.membership = membership
        # In rising order, so that whoever goes through the peers does so in the same order.
        self.peers = dict(sorted(peers.items()))

    def new_inflights(self) -> Inflights:
        return Inflights(self.inflight_messages_max, self.inflight_bytes_max)

    def start_over(self, own_id: int, last_index: int) -> None:
        """A new term: nothing is known of any peer's log but that of this node."""
        for peer, old in self.peers.items():
            self.peers[peer] = Progress(
                last_index + 1,
                self.new_inflights(),
                match=last_index if peer == own_id else 0,
                learner=old.learner,
            )

    def committed(self) -> int:
        peers = self.peers

        def match_of(voter: int) -> int:
            return peers[voter].match

        members = self.membership
        return quorum.joint_commit(members.voters, members.outgoing, match_of)

    def won_by(self, votes: dict[int, bool]) -> VoteResult:
        return quorum.joint_vote(self.membership.voters, self.membership.outgoing, votes)

    def quorum_active(self) -> bool:
        active = {peer: known.active for peer, known in self.peers.items()}
        return self.won_by(active) is VoteResult.WON

    def record_vote(self, voter: int, granted: bool) -> None:
        """The first word counts: one that is said again changes nothing."""
        self.votes.setdefault(voter, granted)

    def tally(self) -> tuple[int, int, VoteResult]:
        """Votes for, votes against, and what that means."""
        counted = [
            self.votes[peer]
            for peer, known in self.peers.items()
            if not known.learner and peer in self.votes
        ]
        granted = sum(counted)
        return granted, len(counted) - granted, self.won_by(self.votes)


def _rising(ids: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(ids))
