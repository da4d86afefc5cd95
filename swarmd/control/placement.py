"""Placement: which ready job goes to which node. Pure: what it is told in, assignments out.

Best first: by priority, then by submission. A job that fits nowhere does not hold up others of
another shape. A node is filled to its slots; beyond them it is given a few more only where its
jobs end so fast that it would wait for the next.

Nothing becomes free within one plan. So each shape has a heap of its nodes, as good as they once
were: whoever comes to the top is looked at again, and put where it belongs by now, or dropped for
good. A job costs the same among five nodes and five thousand; only setting up takes longer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, partial
from heapq import heappop, heapreplace
from itertools import compress
from operator import attrgetter

from swarmd.domain.jobs import Constraint, NodeId, Resources
from swarmd.domain.nodes import Node, Usage, attribute, free_gpus, obstacles, satisfies
from swarmd.state.commands import Assignment
from swarmd.state.queries import PlacementView
from swarmd.state.rows import Shape

_NOTHING = Usage()


def plan(
    view: PlacementView, ahead: dict[NodeId, int], limit: int | None = None
) -> list[Assignment]:
    """`ahead` is how many jobs each node may hold beyond its slots. With a limit, so many of the
    first assignments."""
    floor = _Floor(view, ahead)
    queues: dict[int, _Queue] = {}
    full: set[int] = set()
    assignments: list[Assignment] = []
    for head in view.heads:
        if len(assignments) == limit or len(full) == len(view.shapes):
            break
        if head.shape in full:
            continue
        queue = queues.get(head.shape)
        if queue is None:
            queue = queues[head.shape] = _Queue(floor, view.shapes[head.shape])
        room = queue.best()
        if room is None:
            full.add(head.shape)
            continue
        assignments.append(Assignment(head.job_id, room.node.id, room.give(queue.need)))
    return assignments


class _Queue:
    """The nodes that can take jobs of one shape: the one with the most idle slots, then the one
    whose name comes last; when none is idle, those that may hold more ahead. Work that needs a
    device is never queued ahead: it would hold what nobody else can use meanwhile."""

    def __init__(self, floor: _Floor, shape: Shape) -> None:
        self.need = shape.resources
        self._shape = shape
        self._floor = floor
        self._places = floor.idle.hosts(shape)
        self._beyond = False

    def best(self) -> _Room | None:
        room = self._top()
        if room is None and not self._beyond and not self.need.gpus:
            self._beyond = True
            self._places = self._floor.quick.hosts(self._shape)
            room = self._top()
        return room

    def _top(self) -> _Room | None:
        floor, places = self._floor, self._places
        while places:
            room = floor.room(places[0])
            free = room.idle + room.ahead if self._beyond else room.idle
            if free <= 0 or room.short_of(self.need):
                heappop(places)
            elif (place := floor.place(room.rank, free)) != places[0]:
                heapreplace(places, place)
            else:
                return room
        return None


class _Room:
    """What is left of one node."""

    __slots__ = ("_cpus", "_gpus", "_memory_bytes", "_used", "ahead", "idle", "node", "rank")

    def __init__(self, node: Node, used: Usage, ahead: int, rank: int) -> None:
        self.node = node
        self.rank = rank
        self.idle = node.capacity.slots - used.slots
        self.ahead = ahead
        self._used = used
        self._cpus = used.cpus
        self._memory_bytes = used.memory_bytes
        self._gpus: tuple[str, ...] | None = None

    def short_of(self, need: Resources) -> bool:
        """Whether `shortages` has anything to say; that one takes its time to say it in words."""
        capacity, memory_bytes = self.node.capacity, need.memory_bytes
        return bool(
            (need.cpus and self._cpus + need.cpus > capacity.cpus + 1e-9)
            or (memory_bytes and self._memory_bytes + memory_bytes > capacity.memory_bytes)
            or (need.gpus and need.gpus > len(self._free_gpus()))
        )

    def give(self, need: Resources) -> tuple[str, ...]:
        """The devices that come with it."""
        self.idle -= 1
        self._cpus += need.cpus or 0.0
        self._memory_bytes += need.memory_bytes or 0
        if not need.gpus:
            return ()
        devices = self._free_gpus()[: need.gpus]
        self._gpus = tuple(gpu for gpu in self._free_gpus() if gpu not in devices)
        return devices

    def _free_gpus(self) -> tuple[str, ...]:
        if self._gpus is None:
            self._gpus = free_gpus(self.node, self._used)
        return self._gpus


class _Floor:
    """All nodes, ranked by name; a place is a number that says how much is free there and whose it
    is, and the better place is the smaller number."""

    def __init__(self, view: PlacementView, ahead: dict[NodeId, int]) -> None:
        # The last name first; of equal names the first node, for a sort leaves equals in order.
        self._nodes = sorted(view.nodes, key=attrgetter("name"), reverse=True)
        self._used = [view.used.get(node.id, _NOTHING) for node in self._nodes]
        self._ahead = ahead
        self._rooms: dict[int, _Room] = {}
        self.idle = self._line([])

    @cached_property
    def quick(self) -> _Line:
        """Of those that may hold more than they have slots."""
        return self._line([self._ahead.get(node.id, 0) for node in self._nodes])

    def _line(self, ahead: list[int]) -> _Line:
        count, nodes = len(self._nodes), self._nodes
        free = [n.capacity.slots - u.slots for n, u in zip(nodes, self._used, strict=True)]
        if ahead:
            free = [idle + more if more else 0 for idle, more in zip(free, ahead, strict=True)]
        places = sorted([rank - each * count for rank, each in enumerate(free) if each > 0])
        return _Line(places, [nodes[place % count] for place in places])

    def place(self, rank: int, free: int) -> int:
        return rank - free * len(self._nodes)

    def room(self, place: int) -> _Room:
        """It is made when it is first looked at: of most nodes nobody asks."""
        rank = place % len(self._nodes)
        room = self._rooms.get(rank)
        if room is None:
            node = self._nodes[rank]
            far = self._ahead.get(node.id, 0)
            room = self._rooms[rank] = _Room(node, self._used[rank], far, rank)
        return room


class _Line:
    """Places in order, and which of them can ever take what. Each thing that is asked of all of
    them is asked once, and the answers are a number with a byte for each, so that several are laid
    upon each other at once."""

    def __init__(self, places: list[int], nodes: list[Node]) -> None:
        self._places = places
        self._nodes = nodes
        self._masks: dict[object, int] = {}
        self._columns: dict[str, list[str | None]] = {}

    def hosts(self, shape: Shape) -> list[int]:
        """Places of all those where `obstacles` has nothing to say: a heap, as they are sorted."""
        nodes, need = self._nodes, shape.resources
        cpus, memory_bytes, gpus = need.cpus, need.memory_bytes, need.gpus
        fit = self._mask("open", self._open)
        if cpus:
            fit &= self._mask(("cpus", cpus), lambda: [n.capacity.cpus >= cpus for n in nodes])
        if memory_bytes:
            fit &= self._mask(
                ("memory", memory_bytes),
                lambda: [n.capacity.memory_bytes >= memory_bytes for n in nodes],
            )
        if gpus:
            fit &= self._mask(("gpus", gpus), lambda: [_gpus(n) >= gpus for n in nodes])
        for one in shape.constraints:
            fit &= self._mask(one, partial(self._satisfied, one))
        return [*compress(self._places, fit.to_bytes(len(nodes), "little"))]

    def _mask(self, about: object, ask: Callable[[], list[bool]]) -> int:
        mask = self._masks.get(about)
        if mask is None:
            mask = self._masks[about] = int.from_bytes(bytes(ask()), "little")
        return mask

    def _open(self) -> list[bool]:
        """Who takes work at all; of those that are alike in this one is asked."""
        kinds = [(id(n.admin), n.taints, n.capacity.slots > 0) for n in self._nodes]
        asked = dict(zip(kinds, self._nodes, strict=True))
        takes = {kind: not obstacles(node, Resources(), ()) for kind, node in asked.items()}
        return [takes[kind] for kind in kinds]

    def _satisfied(self, constraint: Constraint) -> list[bool]:
        """Of those that have the same value one is asked."""
        column = self._columns.get(constraint.key)
        if column is None:
            column = [attribute(node, constraint.key) for node in self._nodes]
            self._columns[constraint.key] = column
        asked = dict(zip(column, self._nodes, strict=True))
        satisfied = {value: satisfies(node, constraint) for value, node in asked.items()}
        return [satisfied[value] for value in column]


def _gpus(node: Node) -> int:
    return sum(device.startswith("gpu") for device in node.capacity.devices)
