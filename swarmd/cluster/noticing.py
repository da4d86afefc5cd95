"""Noticing: that the swarm has no place for this node, which it learns from refusals alone.

One that was removed is told so by nobody, for nobody talks to it any more; and where another
process runs under its id, a copy's most likely, members keep to the one that was there first. What
it sees is that whoever answers refuses it, time after time, and nobody lets it in.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Protocol

import trio

from mesh.doubles import DOUBLE
from mesh.timing import beat
from mesh.wires import WireError, Wires
from swarmd.cluster.replica import PING
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

log = logging.getLogger(__name__)

SHUT_OUT = "shut_out"
ROUNDS = {SHUT_OUT: 2, DOUBLE: 3}
LOOK_EVERY_S = 1.0
ASK_S_MAX = 1.0
ASKED_MAX = 16


class Doubled(Unavailable):
    """Another process is this node."""


class Noticing(Protocol):
    """The node, as far as this needs it."""

    node: Node
    removed: trio.Event

    @property
    def acquainted(self) -> Collection[NodeId]:
        """Nodes of the swarm that it knows, from an earlier start too."""


async def notice_refusals(cluster: Noticing, wires: Wires, data_dir: Path) -> None:
    """Until it is cancelled, or the node is out. Raises Doubled."""
    rounds = Counter[str]()
    while rounds[SHUT_OUT] < ROUNDS[SHUT_OUT]:
        await beat(LOOK_EVERY_S)
        others = [n for n in cluster.acquainted if n != cluster.node.id]
        if any(map(wires.linked, others)):
            rounds.clear()
            continue
        refused: dict[str, str] = {}
        for node_id in others[:ASKED_MAX]:
            refused.update(await _refused(wires, node_id))
        # What lets this node in has a stream to it from then on.
        out = not any(map(wires.linked, others))
        for code in ROUNDS:
            rounds[code] = rounds[code] + 1 if out and code in refused else 0
        if rounds[DOUBLE] >= ROUNDS[DOUBLE]:
            log.error(
                "another process runs under this node's id, and the members keep to that one",
                extra={"node_id": cluster.node.id, "reason": refused[DOUBLE]},
            )
            raise _doubled(data_dir)
    cluster.removed.set()


async def _refused(wires: Wires, node_id: NodeId) -> dict[str, str]:
    """With which code, and the words."""
    try:
        await wires.call(node_id, PING, b"", ASK_S_MAX)
    except WireError as error:
        return {str(error.facts.get("refused", "")): error.message}
    return {}


def _doubled(data_dir: Path) -> Doubled:
    return Doubled(
        "another process runs under this node's id, and the members of the swarm keep to that one:"
        f" was the data directory copied? Move {data_dir} away here and join as a new node, under"
        " another name, with a token (`swarmd token` on a member); or, where this is to be the"
        " node, stop the other first"
    )
