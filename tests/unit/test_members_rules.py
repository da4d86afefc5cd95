"""What an operator may do with members, and what is refused: from a picture of the log alone."""

from __future__ import annotations

import pytest

from mesh.keyring import Keyring, first_ring
from swarmd.cluster.handle import LogView, Progress
from swarmd.cluster.rotating import next_ring
from swarmd.control.removal import check_promotion, check_removal, successor
from swarmd.domain.errors import Conflict
from swarmd.domain.jobs import NodeId

A, B, C, D = (NodeId(n) for n in "abcd")
NAMES = {n: f"node-{n}" for n in (A, B, C, D)}


def view(voters: str, learners: str = "", behind: int = 0, active: bool = True) -> LogView:
    progress = {NodeId(n): Progress(100, "replicate", True) for n in voters}
    progress |= {NodeId(n): Progress(100 - behind, "replicate", active) for n in learners}
    ids = tuple(map(NodeId, voters)), tuple(map(NodeId, learners))
    return LogView(3, 100, 100, 1, 100, *ids, False, progress)


@pytest.mark.parametrize(
    ("voters", "learners", "leaving", "reached", "words"),
    [
        ("abc", "", C, "abc", ""),
        ("abc", "", C, "ab", ""),
        ("abc", "", B, "ab", "1 of 2 voters would be there, and 2 are needed"),
        ("ab", "", A, "ab", ""),
        ("ab", "", A, "a", "0 of 1 voters would be there"),
        ("abc", "d", B, "abd", ""),
        ("abc", "d", D, "a", ""),
        ("a", "b", A, "ab", ""),
    ],
)
def test_a_removal_leaves_a_quorum_or_is_refused(
    voters: str, learners: str, leaving: NodeId, reached: str, words: str
) -> None:
    picture, there = view(voters, learners), set(map(NodeId, reached))
    if not words:
        check_removal(picture, leaving, there, NAMES)
        return
    with pytest.raises(Conflict, match=words):
        check_removal(picture, leaving, there, NAMES)


def test_the_last_is_not_removed_nor_the_only_one_that_knows_all() -> None:
    with pytest.raises(Conflict, match="last node of its swarm"):
        check_removal(view("a"), A, {A}, {A: "one"})
    with pytest.raises(Conflict, match="the only voter, and no learner has all"):
        check_removal(view("a", "b", behind=300), A, {A, B}, NAMES)
    with pytest.raises(Conflict, match="the only voter"):
        check_removal(view("a", "b", active=False), A, {A, B}, NAMES)


def test_who_votes_next_is_one_that_keeps_up() -> None:
    assert successor(view("ab", "cd"), A) == D
    assert successor(view("ab", "cd"), C) is None
    assert successor(view("ab", "cd", behind=1000), A) is None


def test_only_a_learner_that_keeps_up_is_promoted() -> None:
    check_promotion(view("abc", "d"), D, "d")
    for picture, words in (
        (view("abcd"), "votes already"),
        (view("abc"), "has no replica"),
        (view("abc", "d", active=False), "does not answer the leader"),
        (view("abc", "d", behind=400), "400 entries behind"),
    ):
        with pytest.raises(Conflict, match=words):
            check_promotion(picture, D, "d")


def test_a_rotation_is_read_off_the_ring_wherever_it_was_cut_short() -> None:
    old, new = bytes(32), bytes([1]) * 32
    ring: Keyring | None = first_ring(old)
    seen = []
    fresh = [new]
    while ring is not None:
        seen.append(ring)
        # Cut short here, the next call goes on with the same steps, and makes no further key.
        step = next_ring(ring, None if len(seen) > 1 else fresh.pop)
        ring = step
    assert [len(r.keys) for r in seen] == [1, 2, 2, 1]
    assert [r.generation for r in seen] == [1, 2, 3, 4]
    assert seen[1].primary == seen[0].primary != seen[2].primary == seen[3].primary
    assert seen[3].keys == (new,)
