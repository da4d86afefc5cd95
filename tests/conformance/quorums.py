"""The directives of etcd's files on quorum arithmetic: `committed` and `vote`."""

from __future__ import annotations

from mesh.raft.quorum import VoteResult, joint_commit, joint_vote, majority_commit, majority_vote
from mesh.raft.types import NO_LIMIT
from tests.conformance.datadriven import Directive

RESULTS = {
    VoteResult.LOST: "VoteLost",
    VoteResult.PENDING: "VotePending",
    VoteResult.WON: "VoteWon",
}


def handle(directive: Directive) -> str:
    incoming = _config(directive, "cfg")
    outgoing = _config(directive, "cfgj")
    # In the order in which they are named: each value belongs to the next voter not yet seen.
    voters = tuple(dict.fromkeys((*incoming, *outgoing)))
    joint = directive.values("cfgj") is not None
    if directive.command == "vote":
        words = zip(voters, directive.values("votes") or (), strict=True)
        votes = {voter: word == "y" for voter, word in words if word != "_"}
        result = joint_vote(incoming, outgoing, votes)
        assert joint or result is majority_vote(incoming, votes)
        return RESULTS[result]
    assert directive.command == "committed"
    known = zip(voters, directive.values("idx") or (), strict=True)
    indexes = {voter: int(word) for voter, word in known if word != "_"}

    def acked(voter: int) -> int:
        return indexes.get(voter, 0)

    index = joint_commit(incoming, outgoing, acked)
    assert joint or index == majority_commit(incoming, acked)
    assert index == joint_commit(outgoing, incoming, acked)
    assert index == joint_commit(incoming, outgoing or incoming, acked)
    return _describe(voters, indexes) + ("∞" if index == NO_LIMIT else str(index))


def _config(directive: Directive, key: str) -> tuple[int, ...]:
    values = directive.values(key)
    return tuple(map(int, values)) if values and values != ("zero",) else ()


def _describe(voters: tuple[int, ...], indexes: dict[int, int]) -> str:
    """A bar for each voter, as long as the number of voters that have less than it."""
    if not voters:
        return "<empty majority quorum>"
    width = len(voters)
    lines = [" " * width + "    idx"]
    for voter in sorted(voters):
        index = indexes.get(voter, 0)
        below = sum(indexes.get(other, 0) < index for other in voters)
        bar = "x" * below + ">" if voter in indexes else "?"
        lines.append(f"{bar:<{width + 1}} {index:>5}    (id={voter})")
    return "\n".join(lines) + "\n"
