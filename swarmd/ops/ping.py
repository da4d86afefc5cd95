"""Ping: how far nodes are from each other, by questions that are asked now; and whose clock is off.

A node is asked what time it has, so one question tells of both: the way there and back, and how
much its clock is ahead, with half of that way taken off.
"""

from __future__ import annotations

import msgspec
import trio

from swarmd.cluster.asks import MeasureTrips, ReadClock, Trip
from swarmd.cluster.handle import Cluster, local_reads
from swarmd.domain.errors import Invalid, NotFound, SwarmError
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.ops.members import find_member
from swarmd.state.queries import ListNodes

COUNT = 3
COUNT_MAX = 20
QUESTION_S_MAX = 1.0
PAUSE_S = 0.1
TARGETS_MAX = 1000
CLOCK_OFF_MS = 1000
"""From here on clocks are said to disagree."""
_AT_ONCE = 16


class PeerPing(msgspec.Struct, frozen=True):
    node: str
    id: str
    version: str
    asked: int
    answered: int
    last_ms: float | None
    avg_ms: float | None
    min_ms: float | None
    max_ms: float | None
    clock_ahead_ms: int | None
    note: str
    """In words: what is not as it should be."""


class Pings(msgspec.Struct, frozen=True):
    source: str
    peers: tuple[PeerPing, ...]


async def ping(
    cluster: Cluster, to: str | None = None, count: int = COUNT, source: str | None = None
) -> Pings:
    """From this node, or from `source`, to one other or to all. NotFound; Invalid: a count that
    is out of bounds; Unavailable: the source does not answer."""
    if not 1 <= count <= COUNT_MAX:
        raise Invalid(f"from 1 to {COUNT_MAX} questions can be asked of each node", field="count")
    with local_reads():
        nodes: list[Node] = await cluster.read(ListNodes((NodeKind.MEMBER,)))
    by_id = {node.id: node for node in nodes}
    start = cluster.node.id if source is None else await find_member(cluster, source)
    if to is None:
        targets = tuple(sorted(by_id, key=lambda n: by_id[n].name))[:TARGETS_MAX]
        targets = tuple(n for n in targets if n != start)
    else:
        targets = (await find_member(cluster, to),)
        if targets == (start,):
            raise Invalid(f"{to} would ask itself: name another node", field="node")
    ask = MeasureTrips(targets, count)
    if start == cluster.node.id:
        trips = await measure(cluster, ask)
    else:
        trips = await cluster.ask(start, ask)
    version = by_id[start].version if start in by_id else ""
    known = [trip for trip in trips if trip.node_id in by_id]
    return Pings(
        by_id[start].name if start in by_id else cluster.node.name,
        tuple(_view(by_id[trip.node_id], trip, count, version) for trip in known),
    )


def answer_pings(cluster: Cluster) -> None:
    """Have this node measure when it is asked to."""

    async def answer(ask: MeasureTrips) -> list[Trip]:
        if not 1 <= ask.count <= COUNT_MAX or len(ask.node_ids) > TARGETS_MAX:
            raise Invalid("more is asked of each node than can be, or of more nodes")
        return await measure(cluster, ask)

    cluster.answers(MeasureTrips, answer)


async def measure(cluster: Cluster, ask: MeasureTrips) -> list[Trip]:
    """From this node. Never raises for one of them: what it could not learn it says."""
    found: dict[NodeId, Trip] = {}
    limit = trio.CapacityLimiter(_AT_ONCE)

    async def one(node_id: NodeId) -> None:
        async with limit:
            found[node_id] = await _trips(cluster, node_id, ask.count)

    async with trio.open_nursery() as nursery:
        for node_id in ask.node_ids:
            nursery.start_soon(one, node_id)
    return [found[node_id] for node_id in ask.node_ids if node_id in found]


async def _trips(cluster: Cluster, node_id: NodeId, count: int) -> Trip:
    times: list[float] = []
    ahead: tuple[float, int] | None = None
    lost, why = 0, ""
    for number in range(count):
        if number:
            await trio.sleep(PAUSE_S)
        answered = False
        began, clock = trio.current_time(), cluster.clock_ms()
        with trio.move_on_after(QUESTION_S_MAX):
            try:
                theirs = await cluster.ask(node_id, ReadClock())
            except NotFound as refusal:
                return Trip(node_id, tuple(times), count - len(times), None, refusal.message)
            except SwarmError as refusal:
                why = refusal.message
            else:
                answered = True
                took_ms = (trio.current_time() - began) * 1000
                times.append(took_ms)
                # The shortest way says most of the clock.
                if ahead is None or took_ms <= ahead[0]:
                    ahead = took_ms, round(theirs - clock - took_ms / 2)
        if not answered:
            lost += 1
            why = why or f"no answer within {QUESTION_S_MAX:g} s"
    return Trip(node_id, tuple(times), lost, None if ahead is None else ahead[1], why)


def _view(node: Node, trip: Trip, count: int, version: str) -> PeerPing:
    times = trip.times_ms
    notes = []
    if trip.lost:
        notes.append(trip.why or f"{trip.lost} of {count} were lost")
    if trip.clock_ahead_ms is not None and abs(trip.clock_ahead_ms) >= CLOCK_OFF_MS:
        side = "ahead" if trip.clock_ahead_ms > 0 else "behind"
        notes.append(f"its clock is {abs(trip.clock_ahead_ms) / 1000:.1f} s {side}")
    if version and node.version and node.version != version:
        notes.append(f"it runs {node.version}, this node {version}")
    return PeerPing(
        node=node.name,
        id=node.id,
        version=node.version,
        asked=count,
        answered=len(times),
        last_ms=_rounded(times[-1]) if times else None,
        avg_ms=_rounded(sum(times) / len(times)) if times else None,
        min_ms=_rounded(min(times)) if times else None,
        max_ms=_rounded(max(times)) if times else None,
        clock_ahead_ms=trip.clock_ahead_ms,
        note="; ".join(notes),
    )


def _rounded(milliseconds: float) -> float:
    return round(milliseconds, 3)
