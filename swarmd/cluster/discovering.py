"""Finding the swarm on the LAN, where a node is told to look: members say where they are, and who
has the swarm's token, or is of it, hears them.

What is heard is where to dial, no more: the token or the certificate says who is there.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping

import trio

from mesh.discovery import discover, open_beacon
from mesh.swim import Rng
from mesh.wires import NotAllowed
from swarmd.cluster.neighbours import Neighbours
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

log = logging.getLogger(__name__)

MARK_BYTES = 16
SEEK_S_MAX = 20.0
"""Several times as long as a member takes to answer."""
LOOK_EVERY_S = 5.0
LOOK_S_MAX = 3.0
ANEW_S = 60.0
"""So often the interfaces are looked at: one may have come up."""


def mark_of(pin: bytes) -> bytes:
    """What a swarm is known by on the wire: of it its token cannot be told."""
    return hashlib.sha256(b"swarmd discovery 1" + pin).digest()[:MARK_BYTES]


async def find_members(pin: bytes, *, loopback_only: bool) -> tuple[str, ...]:
    """Where those of the swarm with this authority say they are. Unavailable: none says so."""
    try:
        found = await discover(mark_of(pin), timeout_s=SEEK_S_MAX, loopback_only=loopback_only)
    except NotAllowed as refusal:
        raise Unavailable(str(refusal)) from refusal
    if not found:
        where = "on this host" if loopback_only else "on the networks of this host"
        raise Unavailable(
            f"no member of the token's swarm was heard {where} within {SEEK_S_MAX:g} s: start one"
            " of them with --discover too, or give this one --join with the address of a member"
        )
    log.info("members were heard", extra={"addresses": ", ".join(found)})
    return tuple(found)


async def stay_found(
    node: Node,
    pin: bytes,
    members: Callable[[], Mapping[NodeId, Node]],
    neighbours: Neighbours,
    *,
    loopback_only: bool,
    rng: Rng,
) -> None:
    """Say where this node is; while another is missing, hear whether it is somewhere else now."""
    mark, told = mark_of(pin), False
    while True:
        with trio.move_on_after(ANEW_S):
            try:
                async with open_beacon(mark, node.mesh, rng=rng, loopback_only=loopback_only):
                    told = False
                    while True:
                        await trio.sleep(LOOK_EVERY_S)
                        missing = (m for m in members() if m != node.id)
                        if any(neighbours.state(m) in (None, "dead") for m in missing):
                            heard = await discover(
                                mark, timeout_s=LOOK_S_MAX, loopback_only=loopback_only
                            )
                            neighbours.heard(at for at in heard if at not in node.mesh)
            except NotAllowed as refusal:
                if not told:
                    log.warning("nobody finds this node by itself", extra={"reason": str(refusal)})
                told = True
                await trio.sleep_forever()
