"""The swarm itself: who is in it, who leads, and whether this node can serve. Needs no quorum."""

from __future__ import annotations

import msgspec

from swarmd.cluster.handle import Cluster, local_reads
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import SwarmError
from swarmd.domain.nodes import Node, NodeKind, Usage
from swarmd.ops import raft
from swarmd.state.commands import PutSetting
from swarmd.state.queries import GetSetting, GetStanding, ListNodes, UsageOf

ADMIN_KEY = "admin_key"


class Health(msgspec.Struct, frozen=True):
    healthy: bool
    database: bool
    leader: str | None
    detail: str


class NodeView(msgspec.Struct, frozen=True):
    name: str
    address: str
    mesh: tuple[str, ...]
    """Where other nodes reach it."""
    status: str
    """alive, suspect, dead or left."""
    role: str
    """voter, learner or agent."""
    rtt_ms: float | None
    """Of this node's round trips to it, smoothed."""
    id: str
    version: str
    slots: int
    used_slots: int
    cpus: float
    memory_bytes: int
    gpus: int
    labels: dict[str, str]


class SwarmStatus(msgspec.Struct, frozen=True):
    cluster_id: str
    leader: str | None
    term: int
    nodes: tuple[NodeView, ...]
    standing: str
    """In words: whether writes can go on, and what would stop them."""


async def health(cluster: Cluster) -> Health:
    try:
        with local_reads():
            await cluster.read(GetStanding())
    except SwarmError as error:
        return Health(False, False, None, error.message)
    leader = cluster.leadership().leader
    if leader is None:
        return Health(False, True, None, "no leader is known")
    return Health(True, True, leader, "ok")


async def status(cluster: Cluster) -> SwarmStatus:
    """As this node sees it, leader or not."""
    with local_reads():
        nodes = await cluster.read(ListNodes())
        used = {node.id: await cluster.read(UsageOf(node.id)) for node in nodes}
    leadership = cluster.leadership()
    names = {node.id: node.name for node in nodes}
    leader = None if leadership.leader is None else names.get(leadership.leader)
    views = tuple(_view(cluster, node, used[node.id]) for node in nodes)
    words = raft.standing(cluster)
    return SwarmStatus(cluster.cluster_id, leader, leadership.term, views, words)


def _view(cluster: Cluster, node: Node, used: Usage) -> NodeView:
    seen, capacity = cluster.peer(node.id), node.capacity
    return NodeView(
        name=node.name,
        address=node.addresses[0] if node.addresses else "",
        mesh=node.mesh,
        status=seen.state,
        role=seen.role.value,
        rtt_ms=None if seen.rtt_ms is None else round(seen.rtt_ms, 3),
        id=node.id,
        version=node.version,
        slots=capacity.slots,
        used_slots=used.slots,
        cpus=capacity.cpus,
        memory_bytes=capacity.memory_bytes,
        gpus=sum(device.startswith("gpu") for device in capacity.devices),
        labels=node.labels,
    )


async def node_names(cluster: Cluster, *, drones: bool = False) -> dict[str, str]:
    """The name of each node by its id; with `drones` of these too."""
    kinds = (NodeKind.MEMBER, NodeKind.DRONE) if drones else (NodeKind.MEMBER,)
    return {node.id: node.name for node in await cluster.read(ListNodes(kinds))}


async def known_admin_key(cluster: Cluster) -> str | None:
    known = await cluster.read(GetSetting(ADMIN_KEY))
    return None if known is None else known.decode()


async def admin_key(cluster: Cluster, made: str) -> str:
    """The swarm's own key, the same on every node: `made` is taken where there is none yet."""
    known = await known_admin_key(cluster)
    if known is None:
        command = PutSetting(ADMIN_KEY, made.encode(), only_new=True)
        known = (await cluster.propose(command, SYSTEM)).decode()
    return known
