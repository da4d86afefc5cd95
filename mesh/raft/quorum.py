"""What a majority has said: of one set of voters, or of two that must both agree.

An empty set agrees to everything: a joint configuration with one empty half is the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import IntEnum

from mesh.raft.types import NO_LIMIT


class VoteResult(IntEnum):
    """In the order in which one half of a joint quorum outweighs the other."""

    LOST = 0
    PENDING = 1
    WON = 2


def majority_commit(voters: Collection[int], acked: Callable[[int], int]) -> int:
    """The highest index that a majority has acknowledged."""
    if not voters:
        return NO_LIMIT
    indexes = sorted(map(acked, voters))
    return indexes[(len(indexes) - 1) // 2]


def majority_vote(voters: Collection[int], votes: Mapping[int, bool]) -> VoteResult:
    if not voters:
        return VoteResult.WON
    quorum = len(voters) // 2 + 1
    cast = [votes[voter] for voter in voters if voter in votes]
    yes = sum(cast)
    if yes >= quorum:
        return VoteResult.WON
    missing = len(voters) - len(cast)
    return VoteResult.PENDING if yes + missing >= quorum else VoteResult.LOST


def joint_commit(
    incoming: Collection[int], outgoing: Collection[int], acked: Callable[[int], int]
) -> int:
    if not outgoing:
        return majority_commit(incoming, acked)
    return min(majority_commit(incoming, acked), majority_commit(outgoing, acked))


def joint_vote(
    incoming: Collection[int], outgoing: Collection[int], votes: Mapping[int, bool]
) -> VoteResult:
    """Both halves must be won; one that is lost decides."""
    return min(majority_vote(incoming, votes), majority_vote(outgoing, votes))
