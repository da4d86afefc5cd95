"""Tasks that run handlers, and the clock of all deadlines."""

from __future__ import annotations

import trio
import trio.testing

from mesh.pool import IDLE_WORKERS_MAX, Deadlines, Workers


class Waits:
    """A job that waits for a gate, or ends at once."""

    def __init__(self, log: list[int], number: int, gate: trio.Event | None) -> None:
        self.scope: trio.CancelScope | None = None
        self.dropped = False
        self._log, self._number, self._gate = log, number, gate

    async def run(self) -> None:
        if self._gate is not None:
            await self._gate.wait()
        self._log.append(self._number)


async def test_no_job_waits_for_another() -> None:
    log: list[int] = []
    gate = trio.Event()
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery)
        for number in range(500):
            workers.start(Waits(log, number, gate))
        workers.start(Waits(log, 500, None))
        with trio.fail_after(5):
            while log != [500]:
                await trio.lowlevel.checkpoint()
            gate.set()
            while len(log) < 501:
                await trio.lowlevel.checkpoint()
            await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) <= IDLE_WORKERS_MAX
        nursery.cancel_scope.cancel()


async def test_tasks_are_used_again_and_a_cancelled_job_costs_no_other() -> None:
    log: list[int] = []
    async with trio.open_nursery() as nursery:
        workers = Workers(nursery)
        for number in range(100):
            endless = Waits(log, -1, trio.Event())
            dropped = Waits(log, -2, None)
            workers.start(endless)
            await trio.testing.wait_all_tasks_blocked()
            assert endless.scope is not None
            endless.scope.cancel()
            dropped.dropped = True
            workers.start(dropped)
            workers.start(Waits(log, number, None))
            await trio.testing.wait_all_tasks_blocked()
        assert log == list(range(100))
        assert len(nursery.child_tasks) <= 3
        nursery.cancel_scope.cancel()


class Timer:
    def __init__(self, log: list[tuple[str, float]], name: str) -> None:
        self.over = False
        self._log, self._name = log, name

    def expire(self) -> None:
        self._log.append((self._name, trio.current_time()))


async def test_deadlines_are_met_in_their_order(autojump_clock: trio.testing.MockClock) -> None:
    log: list[tuple[str, float]] = []
    deadlines = Deadlines()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deadlines.run)
        start = trio.current_time()
        timers = {name: Timer(log, name) for name in ("5", "3", "4", "1")}
        for name, timer in timers.items():
            deadlines.add(start + float(name), timer)
            await trio.lowlevel.checkpoint()
        timers["3"].over = True
        await trio.sleep(10)
        assert [(name, at - start) for name, at in log] == [("1", 1.0), ("4", 4.0), ("5", 5.0)]
        nursery.cancel_scope.cancel()


async def test_what_is_over_leaves_the_heap() -> None:
    deadlines = Deadlines()
    for _ in range(20_000):
        timer = Timer([], "")
        deadlines.add(trio.current_time() + 60, timer)
        timer.over = True
    assert len(deadlines._heap) < 3000
