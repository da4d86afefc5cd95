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
import trio._core._run as trio_run

SLOT_S = 0.0005


class JumpingClock(trio.abc.Clock):
    """For worlds without threads and sockets: Trio asks how long to sleep when nothing can run.
    What is due of the timers is done there and then, without a turn of Trio's for each."""

    def __init__(self) -> None:
        self._now = 0.0
        self.timers: Timers | None = None

    def start_clock(self) -> None:
        pass

    def current_time(self) -> float:
        return self._now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        if (timers := self.timers) is not None:
            runner = trio_run.GLOBAL_RUN_CONTEXT.runner
            while (due_at := timers.due_at) <= deadline and due_at < math.inf:
                self._now = max(self._now, due_at)
                timers.ring(self._now)
                if runner.runq:
                    return 0.0
                deadline = runner.deadlines.next_deadline()
        if deadline == math.inf:
            return math.inf
        self._now = max(self._now, deadline)
        return 0.0


class Timers:
    """Callbacks at a time; the clock rings for them. An error of theirs is raised by `run`."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._due: list[tuple[int, float, int, Callable[[], None]]] = []
        self._number = 0
        self._error: BaseException | None = None
        self._broken = trio.Event()

    @property
    def due_at(self) -> float:
        """When the next is due."""
        return self._due[0][0] * SLOT_S if self._due else math.inf

    def after(self, delay_s: float, then: Callable[[], None]) -> None:
        slot = math.ceil((trio.current_time() + delay_s) / SLOT_S)
        self._number += 1
        heapq.heappush(self._due, (slot, self._rng.random(), self._number, then))

    def after_in_order(self, delay_s: float, then: Callable[[], None]) -> None:
        """As `after`, but those of one slot keep their order: for whoever promises one."""
        slot = math.ceil((trio.current_time() + delay_s) / SLOT_S)
        self._number += 1
        heapq.heappush(self._due, (slot, 2.0, self._number, then))

    def ring(self, now: float) -> None:
        due = self._due
        try:
            while due and due[0][0] * SLOT_S <= now:
                heapq.heappop(due)[3]()
        except BaseException as error:
            due.clear()
            self._error = error
            self._broken.set()

    async def run(self) -> None:
        await self._broken.wait()
        assert self._error is not None
        raise self._error


class HostClock:
    """A crystal that runs a little fast or slow: what a host takes for a second is not one."""

    def __init__(self) -> None:
        self._ppm = 0.0
        self._since = 0.0
        self._ahead = 0.0

    def now(self) -> float:
        return self.reading(trio.current_time())

    def reading(self, at: float) -> float:
        return at + self._ahead + (at - self._since) * self._ppm / 1e6

    def when(self, reading: float) -> float:
        """The moment at which it shows that."""
        return self._since + (reading - self._since - self._ahead) / (1 + self._ppm / 1e6)

    def drift(self, ppm: float) -> None:
        """From now on; what it is ahead by stays."""
        at = trio.current_time()
        self._ahead, self._since, self._ppm = self.reading(at) - at, at, ppm
