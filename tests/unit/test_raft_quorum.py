"""Quorum arithmetic against what the words mean, tried out one index and one vote at a time."""

from __future__ import annotations

from itertools import product

from hypothesis import given
from hypothesis import strategies as st

from mesh.raft.quorum import VoteResult, joint_commit, joint_vote, majority_commit, majority_vote
from mesh.raft.types import NO_LIMIT

voters = st.frozensets(st.integers(1, 7), max_size=7)
acks = st.dictionaries(st.integers(1, 7), st.integers(0, 9))
ballots = st.dictionaries(st.integers(1, 7), st.booleans())


@given(voters, acks)
def test_a_majority_has_what_is_committed_and_no_more(
    who: frozenset[int], acked: dict[int, int]
) -> None:
    index = majority_commit(who, lambda voter: acked.get(voter, 0))
    if not who:
        assert index == NO_LIMIT
        return

    def has(at: int) -> bool:
        return 2 * sum(acked.get(voter, 0) >= at for voter in who) > len(who)

    assert index == max(at for at in range(10) if has(at))


@given(voters, ballots)
def test_a_vote_is_decided_when_no_ballot_to_come_can_change_it(
    who: frozenset[int], votes: dict[int, bool]
) -> None:
    waiting = [voter for voter in who if voter not in votes]
    ends = set()
    for rest in product((True, False), repeat=len(waiting)):
        final = votes | dict(zip(waiting, rest, strict=True))
        ends.add(2 * sum(final[voter] for voter in who) > len(who) or not who)
    expected = {
        frozenset({True}): VoteResult.WON,
        frozenset({False}): VoteResult.LOST,
        frozenset({True, False}): VoteResult.PENDING,
    }
    assert majority_vote(who, votes) is expected[frozenset(ends)]


@given(voters, voters, acks)
def test_both_halves_of_a_joint_quorum_must_have_it(
    incoming: frozenset[int], outgoing: frozenset[int], acked: dict[int, int]
) -> None:
    def of(voter: int) -> int:
        return acked.get(voter, 0)

    index = joint_commit(incoming, outgoing, of)
    assert index == min(majority_commit(incoming, of), majority_commit(outgoing, of))
    assert index == joint_commit(outgoing, incoming, of)


@given(voters, voters, ballots)
def test_one_lost_half_loses_a_joint_vote(
    incoming: frozenset[int], outgoing: frozenset[int], votes: dict[int, bool]
) -> None:
    halves = {majority_vote(incoming, votes), majority_vote(outgoing, votes)}
    result = joint_vote(incoming, outgoing, votes)
    assert (result is VoteResult.LOST) == (VoteResult.LOST in halves)
    assert (result is VoteResult.WON) == (halves == {VoteResult.WON})
