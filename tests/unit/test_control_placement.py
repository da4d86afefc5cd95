"""Placement as a pure function: views in, assignments out."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from swarmd.control.placement import plan
from swarmd.control.scheduler import AHEAD_S, RATE_WINDOW_S, Pace
from swarmd.domain.actors import SYSTEM
from swarmd.domain.events import Event, EventBody, JobAssigned, JobEnded
from swarmd.domain.jobs import (
    AttemptId,
    Constraint,
    JobId,
    JobKind,
    JobStatus,
    NodeId,
    Resources,
)
from swarmd.domain.nodes import (
    AdminState,
    Capacity,
    Node,
    Taint,
    TaintEffect,
    Usage,
    free_gpus,
    obstacles,
    shortages,
)
from swarmd.state.commands import Assignment
from swarmd.state.queries import PlacementView, ReadyJob
from swarmd.state.rows import Shape


def node(name: str, slots: int = 2, **fields: object) -> Node:
    capacity = Capacity(slots, cpus=4.0, memory_bytes=1000, devices=("gpu0", "gpu1"))
    return Node(NodeId(name), name, capacity=capacity, **fields)  # type: ignore[arg-type]


def shape(*constraints: str, **need: object) -> Shape:
    parsed = tuple(Constraint.parse(text) for text in constraints)
    return Shape(JobKind.BINARY, Resources(**need), parsed)  # type: ignore[arg-type]


def view(
    nodes: list[Node], shapes: list[Shape], heads: list[int], used: dict[str, Usage] | None = None
) -> PlacementView:
    """Heads name shapes by number, in the order of the queue."""
    ready = tuple(ReadyJob(JobId(f"j{i}"), i, 50, s) for i, s in enumerate(heads))
    everyone = {n.id: Usage() for n in nodes} | (used or {})  # type: ignore[operator]
    return PlacementView(tuple(nodes), everyone, dict(enumerate(shapes)), ready, {}, 0)


def placed(found: PlacementView, ahead: dict[str, int] | None = None) -> list[tuple[str, str]]:
    far = {NodeId(k): v for k, v in (ahead or {}).items()}
    return [(a.job_id, a.node_id) for a in plan(found, far)]


def test_the_emptiest_node_is_filled_first_and_none_beyond_its_slots() -> None:
    found = placed(view([node("a", 1), node("b", 2)], [shape()], [0] * 5))
    assert found == [("j0", "b"), ("j1", "b"), ("j2", "a")]


def test_what_fits_nowhere_holds_up_nobody_else() -> None:
    shapes = [shape(gpus=3), shape(cpus=9.0), shape()]
    assert placed(view([node("a")], shapes, [0, 1, 2, 0, 2])) == [("j2", "a"), ("j4", "a")]


def test_constraints_taints_and_pauses_keep_work_away() -> None:
    nodes = [
        node("ssd", labels={"disk": "ssd"}),
        node("paused", admin=AdminState.PAUSED),
        node("tainted", taints=(Taint("x", TaintEffect.NO_SCHEDULE),)),
        node("preferred", taints=(Taint("x", TaintEffect.PREFER_NO_SCHEDULE),)),
    ]
    shapes = [shape("node.labels.disk==ssd"), shape("node.labels.disk!=ssd")]
    found = placed(view(nodes, shapes, [0, 0, 0, 1, 1, 1]))
    assert found == [("j0", "ssd"), ("j1", "ssd"), ("j3", "preferred"), ("j4", "preferred")]


def test_devices_are_granted_once_and_by_name() -> None:
    found = plan(view([node("a", 8)], [shape(gpus=1)], [0, 0, 0]), {})
    assert [a.devices for a in found] == [("a:gpu0",), ("a:gpu1",)]
    used = {"a": Usage(slots=1, devices=frozenset({"a:gpu0"}))}
    found = plan(view([node("a", 8)], [shape(gpus=1)], [0, 0], used), {})
    assert [a.devices for a in found] == [("a:gpu1",)]


def test_memory_and_cpus_are_not_given_twice() -> None:
    shapes = [shape(cpus=3.0), shape(memory_bytes=600)]
    assert placed(view([node("a", 8)], shapes, [0, 0, 1, 1])) == [("j0", "a"), ("j2", "a")]


def test_a_node_that_is_quick_may_hold_more_but_nothing_exclusive() -> None:
    shapes = [shape(), shape(gpus=1), shape(cpus=1.5)]
    found = placed(view([node("a", 1)], shapes, [0, 1, 2, 2, 2, 0]), {"a": 3})
    assert found == [("j0", "a"), ("j2", "a"), ("j3", "a"), ("j5", "a")]


def test_an_idle_slot_elsewhere_goes_before_a_place_in_a_quick_nodes_line() -> None:
    used = {"a": Usage(slots=1)}
    assert placed(view([node("a", 1), node("b", 1)], [shape()], [0], used), {"a": 8}) == [
        ("j0", "b")
    ]


def test_with_a_limit_the_plan_is_the_beginning_of_the_whole() -> None:
    found = view([node("a", 3), node("b", 2)], [shape(), shape(gpus=1)], [0, 1, 0, 0, 1])
    whole = plan(found, {})
    assert len(whole) == 5
    assert [plan(found, {}, limit) for limit in range(7)] == [whole[:limit] for limit in range(7)]


# The same, job by job over all nodes: what is meant, said without regard to how long it takes.


@dataclass(slots=True)
class Room:
    node: Node
    used: Usage
    ahead: int

    @property
    def idle(self) -> int:
        return self.node.capacity.slots - self.used.slots


def plan_slowly(found: PlacementView, ahead: dict[NodeId, int]) -> list[Assignment]:
    rooms = [Room(n, found.used.get(n.id, Usage()), ahead.get(n.id, 0)) for n in found.nodes]
    full: set[int] = set()
    assignments = []
    for head in found.heads:
        if head.shape in full:
            continue
        room = choose(rooms, found.shapes[head.shape])
        if room is None:
            full.add(head.shape)
            continue
        need = found.shapes[head.shape].resources
        devices = free_gpus(room.node, room.used)[: need.gpus]
        room.used = room.used.plus(need, devices)
        assignments.append(Assignment(head.job_id, room.node.id, devices))
    return assignments


def choose(rooms: list[Room], wanted: Shape) -> Room | None:
    need = wanted.resources
    open_rooms = [
        r for r in rooms
        if not obstacles(r.node, need, wanted.constraints) and not shortages(r.node, r.used, need)
    ]  # fmt: skip
    idle = [r for r in open_rooms if r.idle > 0]
    if idle:
        return max(idle, key=lambda r: (r.idle, r.node.name))
    if need.gpus:
        return None
    spare = [r for r in open_rooms if r.idle + r.ahead > 0]
    return max(spare, key=lambda r: (r.idle + r.ahead, r.node.name)) if spare else None


TAINTS = [Taint("x", TaintEffect.NO_SCHEDULE), Taint("x", TaintEffect.PREFER_NO_SCHEDULE)]
CONSTRAINTS = st.sampled_from(
    [Constraint.parse(f"{key}{op}{value}")
     for key, value in [
         ("node.labels.disk", "ssd"), ("node.labels.rack", "r1"), ("node.name", "a"),
         ("node.id", "id1"), ("node.arch", "arm64"), ("node.os", "linux"), ("node.kind", "member"),
     ]
     for op in ("==", "!=")]
)  # fmt: skip
CAPACITIES = st.builds(
    Capacity,
    slots=st.integers(0, 4),
    cpus=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    memory_bytes=st.sampled_from([0, 100, 1000]),
    devices=st.sampled_from([(), ("gpu0",), ("gpu0", "gpu1"), ("gpu0", "gpu0"), ("fpga", "gpu2")]),
)
SHAPES = st.builds(
    Shape,
    st.just(JobKind.BINARY),
    st.builds(
        Resources,
        cpus=st.sampled_from([None, None, 0.0, 0.1, 0.2, 1.0, 4.0, 4.0 + 1e-10]),
        memory_bytes=st.sampled_from([None, None, 0, 40, 600]),
        gpus=st.sampled_from([0, 0, 0, 1, 2]),
    ),
    st.lists(CONSTRAINTS, max_size=2).map(tuple),
)


@st.composite
def views(draw: st.DrawFn) -> tuple[PlacementView, dict[NodeId, int]]:
    nodes = []
    used: dict[str, Usage] = {}
    ahead: dict[NodeId, int] = {}
    for number in range(draw(st.integers(0, 7))):
        name = draw(st.sampled_from("abcdefgh"))  # two of one name too
        capacity = draw(CAPACITIES)
        one = Node(
            NodeId(f"id{number}"),
            name,
            capacity=capacity,
            admin=draw(st.sampled_from([AdminState.ACTIVE] * 4 + [AdminState.DRAINING])),
            taints=draw(st.sampled_from([(), (), (), (TAINTS[0],), (TAINTS[1],), (*TAINTS,)])),
            labels=draw(st.sampled_from([{}, {"disk": "ssd"}, {"disk": "hdd", "rack": "r1"}])),
            arch=draw(st.sampled_from(["", "arm64"])),
            os="linux",
        )
        nodes.append(one)
        if draw(st.booleans()):
            held = draw(st.sampled_from([(), (f"{name}:gpu0",), ("z:gpu0",)]))
            cpus = draw(st.sampled_from([0.0, 0.1, 3.7]))
            memory_bytes = draw(st.sampled_from([0, 90]))
            slots = draw(st.integers(0, 6))
            used[one.id] = Usage(slots, cpus, memory_bytes, frozenset(held))
        if draw(st.booleans()):
            ahead[one.id] = draw(st.integers(0, 5))
    shapes = dict(enumerate(draw(st.lists(SHAPES, min_size=1, max_size=5))))
    heads = draw(st.lists(st.sampled_from(sorted(shapes)), max_size=40))
    ready = tuple(ReadyJob(JobId(f"j{i}"), i, 50, s) for i, s in enumerate(heads))
    return PlacementView(tuple(nodes), used, shapes, ready, {}, 0), ahead


@given(views())
def test_the_plan_is_the_one_that_looks_at_every_node_for_every_job(
    given_both: tuple[PlacementView, dict[NodeId, int]],
) -> None:
    found, ahead = given_both
    assert plan(found, ahead) == plan_slowly(found, ahead)


def event(seq: int, body: EventBody) -> Event:
    return Event(seq, 0, seq, SYSTEM, body)


def test_the_pace_follows_how_fast_a_node_ends_its_jobs() -> None:
    pace = Pace()
    pace.start_from(view([node("a", 2)], [], []))
    me = NodeId("a")
    for number in range(100):
        at = number * 0.001
        attempt = AttemptId(number)
        pace.note(event(2 * number + 1, JobAssigned(JobId("j"), attempt, me)), at)
        ended = JobEnded(JobId("j"), JobStatus.COMPLETED, attempt)
        pace.note(event(2 * number + 2, ended), at)
    assert pace.ahead(0.1) == {me: int(100 / RATE_WINDOW_S * AHEAD_S)}
    assert pace.held == {me: 0} and pace.wants_work(0.1)
    assert pace.ahead(10.0) == {me: 0}


def test_events_that_the_view_has_in_it_are_not_counted_again() -> None:
    pace = Pace()
    used = {"a": Usage(slots=2)}
    seen = view([node("a", 2)], [], [], used)
    pace.start_from(PlacementView(seen.nodes, seen.used, {}, (), {}, event_seq=7))
    pace.note(event(7, JobAssigned(JobId("j"), AttemptId(1), NodeId("a"))), 0.0)
    assert pace.held == {"a": 2}
    pace.note(event(8, JobEnded(JobId("j"), JobStatus.FAILED, AttemptId(1))), 0.0)
    assert pace.held == {"a": 1} and pace.wants_work(0.0)


def test_the_end_of_an_attempt_from_before_our_time_frees_its_slot() -> None:
    """A daemon that comes back to a full node would otherwise never place anything again."""
    pace = Pace()
    seen = view([node("a", 1)], [], [], {"a": Usage(slots=1)})
    pace.start_from(PlacementView(seen.nodes, seen.used, {}, (), {AttemptId(1): "a"}, 7))
    assert not pace.wants_work(0.0)
    pace.note(event(8, JobEnded(JobId("j"), JobStatus.COMPLETED, AttemptId(1))), 0.0)
    assert pace.held == {"a": 0} and pace.wants_work(0.0)
