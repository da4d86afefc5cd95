"""Time that jumps: when no task can run, the next deadline is now. What comes later is a callback.

Delays are rounded up to a grid, so that what happens at about the same time happens at once, in an
order that chance picks: cheaper than a wake-up each, and no less unkind.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable

import trio

SLOT_S = 0.0005


class JumpingClock(trio.abc.Clock):
    """For worlds without threads and sockets: Trio asks how long to sleep when nothing can run."""

    def __init__(self) -> None:
        self._now = 0.0

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if deadline == math.inf:
            return math.inf
        self._now = max(self._now, deadline)
        return 0.0


class Timers:
    """Callbacks at a time, run by one task."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: list[tuple[int, float, int, Callable[[], None]]] = []
        self._number = 0
        self._scope = trio.CancelScope()

    def after(self, delay_s: float, then: Callable[[], None]) -> None:
        slot = math.ceil((trio.current_time() + delay_s) / SLOT_S)
        self._number += 1
        heapq.heappush(self._due, (slot, self._rng.random(), self._number, then))
        self._scope.deadline = min(self._scope.deadline, slot * SLOT_S)

    def after_in_order(self, delay_s: float, then: Callable[[], None]) -> None:
        """As `after`, but those of one slot keep their order: for whoever promises one."""
        slot = math.ceil((trio.current_time() + delay_s) / SLOT_S)
        self._number += 1
        heapq.heappush(self._due, (slot, 2.0, self._number, then))
        self._scope.deadline = min(self._scope.deadline, slot * SLOT_S)

    async def run(self) -> None:
        due = self._due
        while True:
            deadline = due[0][0] * SLOT_S if due else math.inf
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()
            now = trio.current_time()
            while due and due[0][0] * SLOT_S <= now:
                heapq.heappop(due)[3]()
