"""What calls share beneath all connections: tasks that run handlers, and one clock for deadlines.

A task is kept for the next handler, since starting one costs more than most calls; a deadline costs
a place in a heap, since a cancel scope costs as much as a task.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Protocol

import trio

IDLE_WORKERS_MAX = 64
_SPARE_DEADLINES = 1024


class Job(Protocol):
    """A handler to be run. It ends by itself or by `scope`, and raises nothing else."""

    scope: trio.CancelScope | None
    dropped: bool
    """Set before its turn: it is not to be run."""

    async def run(self) -> None: ...


class Workers:
    """Runs every job at once, in a task that no other job holds meanwhile."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._waiting: deque[Job] = deque()
        self._idle: list[trio.lowlevel.Task] = []
        self._coming = 0
        """Workers on their way that have not looked for a job yet."""

    def start(self, job: Job) -> None:
        self._waiting.append(job)
        if not self._coming:
            self._summon()

    def _summon(self) -> None:
        self._coming += 1
        if self._idle:
            trio.lowlevel.reschedule(self._idle.pop())
        else:
            self._nursery.start_soon(self._work)

    async def _work(self) -> None:
        while True:
            self._coming -= 1
            while self._waiting:
                with trio.CancelScope() as scope:
                    await self._run_waiting(scope)
            if len(self._idle) >= IDLE_WORKERS_MAX:
                return
            task = trio.lowlevel.current_task()
            self._idle.append(task)

            def leave(_: object, task: trio.lowlevel.Task = task) -> trio.lowlevel.Abort:
                self._idle.remove(task)
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(leave)

    async def _run_waiting(self, scope: trio.CancelScope) -> None:
        """One after the other, for as long as none was cancelled."""
        while self._waiting and not scope.cancel_called:
            job = self._waiting.popleft()
            if job.dropped:
                continue
            # If this one waits for something, the others shall not wait with it: each worker that
            # starts a job brings two more, so that many are soon under way.
            while self._coming < min(2, len(self._waiting)):
                self._summon()
            job.scope = scope
            try:
                await job.run()
            finally:
                job.scope = None


class Expiring(Protocol):
    over: bool

    def expire(self) -> None: ...


class Deadlines:
    """Tells each that is not over when its time has come."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Expiring]] = []
        self._count = 0
        self._scope: trio.CancelScope | None = None
        self._compact_at = _SPARE_DEADLINES

    def add(self, deadline: float, what: Expiring) -> None:
        self._count += 1
        heap = self._heap
        heapq.heappush(heap, (deadline, self._count, what))
        if self._scope is not None and deadline < self._scope.deadline:
            self._scope.deadline = deadline
        if len(heap) > self._compact_at:
            self._heap = heap = [entry for entry in heap if not entry[2].over]
            heapq.heapify(heap)
            self._compact_at = 2 * len(heap) + _SPARE_DEADLINES

    async def run(self) -> None:
        while True:
            deadline = self._expire()
            with trio.CancelScope(deadline=deadline) as self._scope:
                await trio.sleep_forever()

    def _expire(self) -> float:
        """The next deadline."""
        now = trio.current_time()
        while self._heap:
            deadline, _, what = self._heap[0]
            if not what.over:
                if deadline > now:
                    return deadline
                what.expire()
            heapq.heappop(self._heap)
        return float("inf")
