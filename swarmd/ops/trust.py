"""Trust: who may join the swarm, and the keys that its nodes share. A key itself is never shown."""

from __future__ import annotations

import msgspec
import trio

from swarmd.cluster.asks import ReadRing, RotateKeyring
from swarmd.cluster.handle import (
    LEADER,
    Cluster,
    MadeToken,
    RingView,
    Rotated,
    TrustPort,
    local_reads,
)
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Invalid, SwarmError, Unavailable
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.queries import ListNodes

TTL_S = 24 * 3600.0
TTL_S_MIN = 60.0
TTL_S_MAX = 90 * 24 * 3600.0
RING_S_MAX = 2.0
MEMBERS_MAX = 1000


async def make_token(
    cluster: Cluster, actor: Actor, ttl_s: float = TTL_S, rotate: bool = False
) -> MadeToken:
    """A token for nodes that are to join; with `rotate` those made before are good no longer."""
    if not TTL_S_MIN <= ttl_s <= TTL_S_MAX:
        raise Invalid(
            f"a token is good for {TTL_S_MIN:g} s to {TTL_S_MAX / 86400:g} days", field="ttl_s"
        )
    return await _port(cluster).make_token(ttl_s, alone=rotate, actor=actor)


async def drop_tokens(cluster: Cluster, actor: Actor) -> int:
    return await _port(cluster).drop_tokens(actor)


class RingHolder(msgspec.Struct, frozen=True):
    node: str
    generation: int | None
    """None: it did not say."""
    note: str = ""


class RingStatus(msgspec.Struct, frozen=True):
    ring: RingView
    nodes: tuple[RingHolder, ...]


async def keyring(cluster: Cluster) -> RingStatus:
    """Which keys this node has for the gossip, and how new those of the others are."""
    mine = await cluster.ask(cluster.node.id, ReadRing())
    with local_reads():
        nodes: list[Node] = await cluster.read(ListNodes((NodeKind.MEMBER,)))
    found: dict[str, RingHolder] = {}

    async def look(node: Node) -> None:
        found[node.name] = RingHolder(node.name, None, f"no answer within {RING_S_MAX:g} s")
        with trio.move_on_after(RING_S_MAX):
            try:
                seen = await cluster.ask(node.id, ReadRing())
                found[node.name] = RingHolder(node.name, seen.generation)
            except SwarmError as refusal:
                found[node.name] = RingHolder(node.name, None, refusal.message)

    async with trio.open_nursery() as nursery:
        for node in nodes[:MEMBERS_MAX]:
            nursery.start_soon(look, node)
    return RingStatus(mine, tuple(found[name] for name in sorted(found)))


async def rotate_keyring(cluster: Cluster, actor: Actor) -> Rotated:
    """Change the key that seals the gossip, or go on with a change that was cut short."""
    _port(cluster)
    return await cluster.ask(LEADER, RotateKeyring(actor))


def _port(cluster: Cluster) -> TrustPort:
    if cluster.trust is None:
        raise Unavailable("nodes of this swarm prove nothing to each other")
    return cluster.trust
