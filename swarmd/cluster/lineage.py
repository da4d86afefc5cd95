"""Lineage: of which swarm a node is, and which of its recoveries it has gone along with.

A recovery adds to the swarm's id where the log went on from, and a word of its own. Nodes talk only
with nodes of the very same lineage; who is of an earlier one either goes along, once, or stays.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId

log = logging.getLogger(__name__)

CLUSTER_ID = "cluster_id"
"""The setting, in the state."""
CLUSTER_FACT = "cluster"
"""The log's fact: what this node says on its wires."""
RECOVERIES_MAX = 16
SALT_BYTES = 4
UNLED_S = 8.0
"""Longer than an election takes: where there is a quorum of its own, a node goes along with nobody.
"""
LOOK_EVERY_S = 0.5
_MARK = "+"
_CLAIMS_MAX = 16


class Recovered(Unavailable):
    """The swarm was recovered without this node, which goes along: it has to start anew as of that
    lineage. `ahead`: it knows of entries that the recovered swarm has not."""

    def __init__(self, cluster_id: str, ahead: bool, seeds: tuple[str, ...]) -> None:
        super().__init__(
            f"the swarm was recovered without this node and is {cluster_id} now"
            + (": this node knows of entries that are lost there" if ahead else "")
        )
        self.cluster_id = cluster_id
        self.ahead = ahead
        self.seeds = seeds


def recovered_id(before: str, last: int, salt: bytes) -> str:
    return f"{before}{_MARK}{last:x}.{salt.hex()}"


def recoveries(cluster_id: str) -> int:
    return cluster_id.count(_MARK)


def descends(theirs: str, mine: str) -> bool:
    """Whether theirs is what a recovery, or several, made of mine."""
    return bool(mine) and theirs.startswith(mine + _MARK)


def forked_at(theirs: str, mine: str) -> int:
    """The last entry that was kept when theirs went on from mine. Garbled: 0."""
    step = theirs.removeprefix(mine + _MARK).partition(_MARK)[0].partition(".")[0]
    try:
        return int(step, 16)
    except ValueError:
        return 0


class Claims:
    """Who said, with a certificate, to be of which lineage that descends from this node's."""

    def __init__(self, cluster_id: str) -> None:
        self._mine = cluster_id
        self._by_node: dict[NodeId, str] = {}
        self.arrived = trio.Event()

    def be_of(self, cluster_id: str) -> None:
        self._mine = cluster_id

    def note(self, node_id: str, cluster_id: str) -> None:
        if descends(cluster_id, self._mine) and (
            NodeId(node_id) in self._by_node or len(self._by_node) < _CLAIMS_MAX
        ):
            self._by_node[NodeId(node_id)] = cluster_id
            self.arrived.set()

    def by(self, members: Callable[[NodeId], bool]) -> dict[NodeId, str]:
        return {n: c for n, c in self._by_node.items() if members(n)}


def newest(claims: dict[NodeId, str]) -> str | None:
    """The one lineage that all the others led to; None: they contradict each other."""
    longest = max(claims.values(), key=len)
    agree = all(c == longest or descends(longest, c) for c in claims.values())
    return longest if agree else None
