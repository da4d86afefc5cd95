"""The scheduler: woken by the feed, it places what is ready. `Pace` decides how far ahead."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio
from msgspec.structs import replace

from swarmd.cluster.feed import FellBehind, Subscription
from swarmd.cluster.handle import Cluster
from swarmd.control.placement import plan
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import Busy, Conflict
from swarmd.domain.events import (
    AttemptStopped,
    Event,
    JobAssigned,
    JobBlocked,
    JobEnded,
    JobReady,
    JobRequeued,
    JobRetrying,
    JobSubmitted,
    NodeChanged,
)
from swarmd.domain.jobs import AttemptId, NodeId
from swarmd.state.commands import AssignJobs
from swarmd.state.queries import PlacementView, ViewPlacement

log = logging.getLogger(__name__)

AHEAD_MAX = 64
AHEAD_S = 0.2
"""A node may hold, beyond its slots, what it has lately ended within this time."""
RATE_WINDOW_S = 0.5
ASSIGNMENTS_MAX = 200
_WAKES = (JobSubmitted, JobReady, JobRequeued, JobRetrying, JobBlocked, JobEnded, AttemptStopped,
          NodeChanged)  # fmt: skip
_NOTED = (*_WAKES, JobAssigned)


class Pace:
    """What each node holds and how fast it ends it, from the events alone."""

    def __init__(self) -> None:
        self._holder: dict[AttemptId, NodeId] = {}
        self._ends: dict[NodeId, deque[float]] = {}
        self.held: dict[NodeId, int] = {}
        self.slots: dict[NodeId, int] = {}
        self._known_seq = 0
        self._nodes_changed = False

    def start_from(self, view: PlacementView) -> None:
        """What is held is counted anew from the state whenever it is read, attempts of before our
        time too; events that it has in it already are not counted again."""
        self._known_seq = view.event_seq
        self._nodes_changed = False
        self._holder.update((i, NodeId(holder)) for i, holder in view.holders.items())
        self.slots = {node.id: node.capacity.slots for node in view.nodes}
        self.held = {node.id: view.used[node.id].slots for node in view.nodes}

    def note_nodes(self) -> None:
        """Which nodes there are, or what they offer, is another than when it was read."""
        self._nodes_changed = True

    def note(self, event: Event, now: float) -> None:
        match event.body:
            case NodeChanged():
                self.note_nodes()
            case JobAssigned(attempt_id=attempt_id, node_id=node_id, external=False):
                self._holder[attempt_id] = node_id
                self._hold(node_id, 1, event.seq)
            case (
                JobEnded(attempt_id=int(attempt_id))
                | JobRequeued(attempt_id=attempt_id)
                | JobRetrying(attempt_id=attempt_id)
                | JobBlocked(attempt_id=int(attempt_id))
            ):
                holder = self._holder.pop(AttemptId(attempt_id), None)
                if holder is not None:
                    self._hold(holder, -1, event.seq)
                    self._ends.setdefault(holder, deque(maxlen=1024)).append(now)

    def _hold(self, node_id: NodeId, delta: int, seq: int) -> None:
        if seq > self._known_seq:
            self.held[node_id] = max(0, self.held.get(node_id, 0) + delta)

    def ahead(self, now: float) -> dict[NodeId, int]:
        far: dict[NodeId, int] = {}
        for node_id, ends in self._ends.items():
            while ends and ends[0] < now - RATE_WINDOW_S:
                ends.popleft()
            far[node_id] = min(AHEAD_MAX, int(len(ends) / RATE_WINDOW_S * AHEAD_S))
        return far

    def wants_work(self, now: float) -> bool:
        """Whether some node has an idle slot, or has used up half of what it holds ahead: so a
        busy node is given several at once rather than one at a time."""
        far = self.ahead(now)
        return self._nodes_changed or any(
            self.held.get(node_id, 0) < slots + (far.get(node_id, 0) + 1) // 2
            for node_id, slots in self.slots.items()
        )


class Present(Protocol):
    """Which nodes are there to be given work."""

    arrived: Callable[[], None]
    """Called when one has come."""

    def present(self, node_id: NodeId) -> bool: ...


async def schedule(cluster: Cluster, term: int, there: Present) -> None:
    """Runs until it is cancelled, or until the term is over."""
    pace, arrivals = Pace(), _Arrivals()
    there.arrived = arrivals.note
    after: int | None = None
    while True:
        try:
            async with cluster.watch(after=after, wants=_concerns) as events:
                await _place_all(cluster, term, pace, there)
                while True:
                    event = await arrivals.or_next(events)
                    if event is None:
                        pace.note_nodes()
                    woken = event is None or _note(pace, event)
                    for more in events.take_waiting():
                        woken |= _note(pace, more)
                    if woken and pace.wants_work(trio.current_time()):
                        await _place_all(cluster, term, pace, there)
        except FellBehind:
            # What was missed is in the state that is read next; what was counted is not to be kept.
            after, pace = None, Pace()


class _Arrivals:
    """Waits for events, and for nodes to come, of which no event tells."""

    def __init__(self) -> None:
        self._noted = False
        self._scope = trio.CancelScope()

    def note(self) -> None:
        self._noted = True
        self._scope.cancel()

    async def or_next(self, events: Subscription) -> Event | None:
        """The next event; None when a node has come."""
        if not self._noted:
            with trio.CancelScope() as self._scope:
                return await anext(events)
        self._noted = False
        return None


def _concerns(event: Event) -> bool:
    return isinstance(event.body, _NOTED)


def _note(pace: Pace, event: Event) -> bool:
    pace.note(event, trio.current_time())
    return isinstance(event.body, _WAKES)


async def _place_all(cluster: Cluster, term: int, pace: Pace, there: Present) -> None:
    """Place until nothing more fits."""
    while True:
        far = pace.ahead(trio.current_time())
        view = await cluster.read(ViewPlacement(sum(far.values()), ASSIGNMENTS_MAX))
        view = replace(view, nodes=tuple(n for n in view.nodes if there.present(n.id)))
        pace.start_from(view)
        assignments = plan(view, far, ASSIGNMENTS_MAX)
        if not assignments:
            return
        try:
            given = await cluster.propose(AssignJobs(tuple(assignments), term), SYSTEM)
        except Busy as busy:
            await trio.sleep(busy.retry_after_s)
            continue
        except Conflict:
            return  # deposed: the nursery of the term is about to end
        log.debug("jobs placed", extra={"planned": len(assignments), "given": given})
        if given < ASSIGNMENTS_MAX:
            return
