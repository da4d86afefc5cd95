"""Who votes, by plan alone: no clock, no swarm."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from swarmd.cluster.handle import LogView, PeerView, Progress, Role
from swarmd.control.members import Change, VoterSettings, Watched, plan_members
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

SETTINGS = VoterSettings()
LONG_S = 3600.0


def ids(names: str) -> tuple[NodeId, ...]:
    return tuple(map(NodeId, names))


def plan(
    voters: str, learners: str = "", *, caught_up: str | None = None, gone: str = "",
    gone_s: float = LONG_S, joint: bool = False, settings: VoterSettings = SETTINGS,
) -> Change | None:  # fmt: skip
    view = LogView(5, 9, 9, 1, 9, ids(voters), ids(learners), joint, {})
    ready = learners if caught_up is None else caught_up
    ready_s = {n: 10.0 for n in ids(ready) if n not in gone}
    return plan_members(view, ready_s, dict.fromkeys(ids(gone), gone_s), settings)


def test_one_becomes_three_in_one_step() -> None:
    assert plan("a", "bc") == Change(voters=ids("bc"))
    assert plan("a", "bcd") == Change(voters=ids("bc"))
    assert plan("a", "b") == Change(voters=ids("b"))
    assert plan("abc", "def") is None


def test_five_vote_from_seven_on() -> None:
    assert plan("abc", "def") is None
    assert plan("abc", "defg") == Change(voters=ids("de"))
    assert plan("abc", "defg", settings=VoterSettings(voters=1, voters_many=1)) is None


def test_nobody_votes_who_lags_or_only_just_came() -> None:
    assert plan("a", "bc", caught_up="c") == Change(voters=ids("c"))
    view = LogView(5, 9, 9, 1, 9, ids("a"), ids("b"), False, {})
    assert plan_members(view, {NodeId("b"): 0.5}, {}, SETTINGS) is None
    assert plan_members(view, {NodeId("b"): 1.0}, {}, SETTINGS) == Change(voters=ids("b"))


def test_between_two_sets_of_voters_nothing_is_planned() -> None:
    assert plan("a", "bc", joint=True) is None
    assert plan("abc", "d", gone="c", joint=True) is None


def test_a_voter_that_is_gone_gives_its_vote_to_one_that_is_there() -> None:
    assert plan("abc", "d", gone="c") == Change(voters=ids("d"), learners=ids("c"))
    assert plan("abc", "de", gone="bd") == Change(voters=ids("e"), learners=ids("b"))
    # Not at the first moment of silence, and not where nobody is there to take it.
    assert plan("abc", "d", gone="c", gone_s=4.0) is None
    assert plan("abc", "d", gone="cd", gone_s=30.0) is None


@pytest.mark.parametrize(
    ("voters", "learners", "gone", "removed"),
    [
        ("abc", "", "c", "c"),
        ("abc", "d", "d", "d"),
        ("abc", "de", "de", "d"),
        ("abcde", "", "de", "d"),
        # Without these two nothing would be decided any more.
        ("abc", "", "bc", None),
        ("ab", "", "b", "b"),
        ("a", "b", "b", "b"),
    ],
)
def test_who_is_gone_for_long_is_taken_out_one_at_a_time(
    voters: str, learners: str, gone: str, removed: str | None
) -> None:
    expected = None if removed is None else Change(removed=ids(removed))
    assert plan(voters, learners, gone=gone) == expected
    assert plan(voters, learners, gone=gone, gone_s=599.0) is None


@dataclass
class Seen:
    """Of a swarm, whom its leader sees."""

    node: Node
    away: set[str] = field(default_factory=set)

    def peer(self, node_id: NodeId) -> PeerView:
        return PeerView(Role.VOTER, alive=node_id not in self.away)


def look(watched: Watched, seen: Seen, now: float, **progress: Progress) -> None:
    named = {NodeId(name): each for name, each in progress.items()}
    view = LogView(5, 900, 900, 1, 900, ids("ab"), ids("cd"), False, named)
    watched.look(cast(Any, seen), view, now, lag_max=256)


def test_time_away_counts_from_the_last_time_that_it_was_there() -> None:
    watched, seen = Watched(), Seen(Node(NodeId("a"), "a"))
    for now, away in ((0.0, "b"), (3.0, "bc"), (4.0, "c"), (6.0, "bc")):
        seen.away = {*away}
        look(watched, seen, now)
    assert watched.gone_s(7.0) == {"b": 1.0, "c": 4.0}


def test_a_learner_keeps_up_for_as_long_as_it_never_lags() -> None:
    watched, seen = Watched(), Seen(Node(NodeId("a"), "a"))
    there = Progress(900 - 256, "replicate", True)
    look(watched, seen, 0.0, c=there, d=there)
    look(watched, seen, 1.0, c=there, d=there)
    assert watched.caught_up_s(2.0) == {"c": 2.0, "d": 2.0}
    for lagging in (
        Progress(900 - 257, "replicate", True), Progress(900, "probe", True),
        Progress(900, "snapshot", True), Progress(900, "replicate", False),
    ):  # fmt: skip
        look(watched, seen, 3.0, c=there, d=lagging, b=there)
        assert watched.caught_up_s(4.0) == {"c": 4.0}
        look(watched, seen, 5.0, c=there, d=there)
        assert watched.caught_up_s(6.0) == {"c": 6.0, "d": 1.0}
