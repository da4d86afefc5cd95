"""Noticing: a node that was removed is told so by nobody, for nobody talks to it any more.

What it sees is that whoever answers shuts it out, time after time, and nobody lets it in.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

import trio

from mesh.timing import beat
from mesh.wires import WireError, Wires
from swarmd.cluster.replica import PING
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

SHUT_OUT = "shut_out"
ROUNDS = 2
LOOK_EVERY_S = 1.0
ASK_S_MAX = 1.0
ASKED_MAX = 16


class Noticing(Protocol):
    """The node, as far as this needs it."""

    node: Node
    removed: trio.Event

    @property
    def acquainted(self) -> Collection[NodeId]:
        """Nodes of the swarm that it knows, from an earlier start too."""


async def notice_removal(cluster: Noticing, wires: Wires) -> None:
    """Until it is cancelled, or the node is out."""
    rounds = 0
    while rounds < ROUNDS:
        await beat(LOOK_EVERY_S)
        others = [n for n in cluster.acquainted if n != cluster.node.id]
        if any(map(wires.linked, others)):
            rounds = 0
            continue
        shut_out = 0
        for node_id in others[:ASKED_MAX]:
            shut_out += await _shuts_out(wires, node_id)
        # What lets this node in has a stream to it from then on.
        rounds = rounds + 1 if shut_out and not any(map(wires.linked, others)) else 0
    cluster.removed.set()


async def _shuts_out(wires: Wires, node_id: NodeId) -> bool:
    try:
        await wires.call(node_id, PING, b"", ASK_S_MAX)
    except WireError as error:
        return error.facts.get("refused") == SHUT_OUT
    return False
