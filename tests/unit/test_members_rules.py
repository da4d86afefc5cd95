"""What an operator may do with members, and what is refused: from a picture of the log alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mesh.keyring import Keyring, first_ring
from swarmd.cluster.handle import LogView, Progress
from swarmd.cluster.rotating import next_ring
from swarmd.control.removal import (
    check_promotion,
    check_removal,
    check_succession,
    successor,
)
from swarmd.domain.errors import Conflict, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

A, B, C, D, E, F = (NodeId(n) for n in "abcdef")
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
        remove(picture, leaving, there)
        return
    with pytest.raises(Conflict, match=words):
        remove(picture, leaving, there)


def remove(
    picture: LogView, leaving: NodeId, there: set[NodeId], names: Mapping[NodeId, str] = NAMES
) -> None:
    next_voter = successor(picture, leaving, 3, there)
    check_removal(picture, leaving, next_voter, there, names)


def test_the_last_is_not_removed_nor_the_only_one_that_knows_all() -> None:
    with pytest.raises(Conflict, match="last node of its swarm"):
        remove(view("a"), A, {A}, {A: "one"})
    with pytest.raises(Conflict, match="the only voter, and no learner has all"):
        remove(view("a", "b", behind=300), A, {A, B})
    with pytest.raises(Conflict, match="the only voter"):
        remove(view("a", "b", active=False), A, {A, B})


def test_who_votes_next_is_one_that_keeps_up() -> None:
    everyone = {A, B, C, D}
    assert successor(view("ab", "cd"), A, 3, everyone) == D
    assert successor(view("ab", "cd"), C, 3, everyone) is None
    assert successor(view("ab", "cd", behind=1000), A, 3, everyone) is None


@pytest.mark.parametrize(
    ("voters", "learners", "wanted", "reached", "then"),
    [
        ("abc", "d", 3, "abcd", D),
        # It gave its vote to another when it led: it goes, and nobody takes its place.
        ("abcd", "e", 3, "abcde", None),
        ("abcd", "e", 5, "abcde", E),
        ("ab", "c", 2, "abc", C),
        ("abc", "d", 2, "abcd", None),
        # More than are wanted, and without one more they would decide nothing.
        ("abcde", "f", 3, "abcf", F),
        ("abcd", "e", 3, "abce", None),
    ],
)
def test_a_vote_is_passed_on_only_where_it_is_wanted(
    voters: str, learners: str, wanted: int, reached: str, then: NodeId | None
) -> None:
    picture, there = view(voters, learners), set(map(NodeId, reached))
    assert successor(picture, A, wanted, there) == then


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


HERE, THERE = "10.0.0.3:8473", "10.0.0.9:8473"
NAMED = "n3.lan:8473"


@pytest.mark.parametrize(
    ("before", "state", "silent", "now", "source", "words"),
    [
        # A host that was set up anew.
        ((HERE,), "dead", True, (HERE,), "10.0.0.3:51234", ""),
        ((HERE,), "left", True, (HERE,), "10.0.0.3:51234", ""),
        ((THERE, HERE), "dead", True, (HERE,), "::ffff:10.0.0.3:51234", ""),
        (("[fe80::1]:8473",), "dead", True, ("[fe80::1]:8473",), "[fe80::1%eth0]:999", ""),
        ((NAMED,), "dead", True, (NAMED,), "10.0.0.77:1", ""),
        ((HERE,), "dead", True, (HERE,), "", ""),
        # Not known to be gone: it asks again.
        ((HERE,), "suspect", True, (HERE,), "10.0.0.3:1", "not known to be gone yet"),
        ((HERE,), "dead", False, (HERE,), "10.0.0.3:1", "not known to be gone yet"),
        # Alive, wherever this one is.
        ((HERE,), "alive", False, (HERE,), "10.0.0.3:1", "alive, at 10.0.0.3:8473"),
        ((HERE,), "alive", True, (THERE,), "10.0.0.9:1", "`swarmd leave` there frees"),
        # Elsewhere, or by a configuration that was copied.
        ((HERE,), "dead", True, (THERE,), "10.0.0.9:1", "`swarmd remove n3` on a member frees"),
        ((HERE,), "suspect", False, (THERE,), "", "`swarmd remove n3` on a member"),
        ((HERE,), "dead", True, (HERE,), "10.0.0.9:1", "asks from 10.0.0.9. If"),
        ((HERE,), "dead", True, ("10.0.0.3:9999",), "10.0.0.3:1", "is at 10.0.0.3:9999"),
        ((HERE,), "dead", True, (), "10.0.0.3:1", "is at an unknown place"),
        ((), "dead", True, (HERE,), "10.0.0.3:1", "was at an unknown place"),
        ((), "dead", True, (), "", "unknown place"),
    ],
)
def test_a_name_is_given_over_at_the_same_place_alone(
    before: tuple[str, ...], state: str, silent: bool, now: tuple[str, ...], source: str, words: str
) -> None:
    node = Node(C, "n3", mesh=before)
    if not words:
        check_succession(node, state, silent, now, source)
        return
    refusal = Unavailable if "yet" in words else Conflict
    with pytest.raises(refusal, match=words.replace("(", "\\(")):
        check_succession(node, state, silent, now, source)


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
