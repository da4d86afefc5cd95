"""The swarm itself: who is in it, who leads, and whether this node can serve. Needs no quorum."""

from __future__ import annotations

import msgspec

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import SwarmError
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
    status: str
    """alive, suspect, dead or left."""
    role: str
    """voter, learner or agent."""
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


async def health(cluster: Cluster) -> Health:
    try:
        await cluster.read(GetStanding())
    except SwarmError as error:
        return Health(False, False, None, error.message)
    leader = cluster.leadership().leader
    if leader is None:
        return Health(False, True, None, "no leader is known")
    return Health(True, True, leader, "ok")


async def status(cluster: Cluster) -> SwarmStatus:
    views = []
    leader_name = None
    leadership = cluster.leadership()
    for node in await cluster.read(ListNodes()):
        used = await cluster.read(UsageOf(node.id))
        if node.id == leadership.leader:
            leader_name = node.name
        capacity = node.capacity
        views.append(
            NodeView(
                name=node.name,
                address=node.addresses[0] if node.addresses else "",
                status="alive",
                role="voter",
                id=node.id,
                version=node.version,
                slots=capacity.slots,
                used_slots=used.slots,
                cpus=capacity.cpus,
                memory_bytes=capacity.memory_bytes,
                gpus=sum(device.startswith("gpu") for device in capacity.devices),
                labels=node.labels,
            )
        )
    return SwarmStatus(cluster.cluster_id, leader_name, leadership.term, tuple(views))


async def node_names(cluster: Cluster) -> dict[str, str]:
    """The name of each node by its id."""
    return {node.id: node.name for node in await cluster.read(ListNodes())}


async def admin_key(cluster: Cluster, made: str) -> str:
    """The swarm's own key, the same on every node: `made` is taken where there is none yet."""
    known = await cluster.read(GetSetting(ADMIN_KEY))
    if known is None:
        command = PutSetting(ADMIN_KEY, made.encode(), only_new=True)
        known = await cluster.propose(command, SYSTEM)
    return known.decode()
