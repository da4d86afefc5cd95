"""Placement: which ready job goes to which node. Pure: what it is told in, assignments out.

Best first: by priority, then by submission. A job that fits nowhere does not hold up others of
another shape. A node is filled to its slots; beyond them it is given a few more only where its
jobs end so fast that it would wait for the next."""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, Usage, free_gpus, obstacles, shortages
from swarmd.state.commands import Assignment
from swarmd.state.queries import PlacementView
from swarmd.state.rows import Shape


@dataclass(slots=True)
class _Room:
    node: Node
    used: Usage
    ahead: int

    @property
    def idle_slots(self) -> int:
        return self.node.capacity.slots - self.used.slots


def plan(view: PlacementView, ahead: dict[NodeId, int]) -> list[Assignment]:
    """`ahead` is how many jobs each node may hold beyond its slots."""
    rooms = [_Room(n, view.used.get(n.id, Usage()), ahead.get(n.id, 0)) for n in view.nodes]
    hosts = {
        shape_id: [r for r in rooms if not obstacles(r.node, s.resources, s.constraints)]
        for shape_id, s in view.shapes.items()
    }
    full: set[int] = set()
    assignments = []
    for head in view.heads:
        if head.shape in full:
            continue
        shape = view.shapes[head.shape]
        room = _choose(hosts[head.shape], shape)
        if room is None:
            full.add(head.shape)
            continue
        devices = free_gpus(room.node, room.used)[: shape.resources.gpus]
        room.used = room.used.plus(shape.resources, devices)
        assignments.append(Assignment(head.job_id, room.node.id, devices))
    return assignments


def _choose(rooms: list[_Room], shape: Shape) -> _Room | None:
    """The node with the most idle slots; when none is idle, one that may hold more ahead. Work
    that needs a device is never queued ahead: it would hold what nobody else can use meanwhile."""
    need = shape.resources
    open_rooms = [r for r in rooms if not shortages(r.node, r.used, need)]
    idle = [r for r in open_rooms if r.idle_slots > 0]
    if idle:
        return max(idle, key=lambda r: (r.idle_slots, r.node.name))
    if need.gpus:
        return None
    spare = [r for r in open_rooms if r.idle_slots + r.ahead > 0]
    return max(spare, key=lambda r: (r.idle_slots + r.ahead, r.node.name)) if spare else None
