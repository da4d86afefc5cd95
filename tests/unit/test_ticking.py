"""The core's time passes by counting: nobody is woken for nothing, and nothing is counted twice."""

from __future__ import annotations

import trio
import trio.testing

from mesh.raft import RawNode
from mesh.ticking import Ticking
from mesh.timing import LAN, Timing

TICK_S = 0.125


class Core(RawNode):
    """As much of one as has to do with time: something is due every `every` ticks."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.elapsed = self.acts = self.ticks = 0

    def tick(self) -> None:
        self.ticks += 1
        self.elapsed += 1
        if self.elapsed >= self.every:
            self.acts += 1
            self.elapsed = 0

    def ticks_to_act(self) -> int:
        return max(1, self.every - self.elapsed)


def nothing() -> None:
    pass


def ticking(core: Core, leads: bool = False) -> Ticking:
    return Ticking(core, Timing(tick_s=TICK_S), lambda: leads)


async def test_a_sleeper_wakes_for_what_is_due_alone(
    autojump_clock: trio.testing.MockClock,
) -> None:
    core, woken = Core(8), list[float]()
    began = trio.current_time()
    with trio.move_on_after(3.01):
        await ticking(core).run(nothing, lambda: woken.append(trio.current_time() - began))
    assert woken == [1.0, 2.0, 3.0] and core.acts == 3 and core.ticks == 24


async def test_who_hears_something_in_time_never_acts(
    autojump_clock: trio.testing.MockClock,
) -> None:
    core, woken = Core(8), 0
    time = ticking(core)

    def note() -> None:
        nonlocal woken
        woken += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(time.run, nothing, note)
        for _ in range(40):
            await trio.sleep(0.25)
            time.catch_up()
            assert core.elapsed == 2
            core.elapsed = 0
            time.look()
        assert core.acts == 0 and core.ticks == 80 and woken <= 12
        nursery.cancel_scope.cancel()


async def test_what_is_due_earlier_wakes_earlier(autojump_clock: trio.testing.MockClock) -> None:
    core, woken = Core(16), list[float]()
    time = ticking(core)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(time.run, nothing, lambda: woken.append(trio.current_time() - began))
        await trio.sleep(0.3)
        time.catch_up()
        core.every = core.elapsed + 2
        time.look()
        await trio.sleep(0.25)
        nursery.cancel_scope.cancel()
    assert woken == [0.5] and core.acts == 1


async def test_what_was_slept_over_is_no_burst() -> None:
    for leads in (True, False):
        clock = trio.testing.MockClock()
        core = Core(8)

        async def held_up(
            core: Core = core, clock: trio.testing.MockClock = clock, leads: bool = leads
        ) -> None:
            time = ticking(core, leads)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(time.run, nothing, nothing)
                await trio.testing.wait_all_tasks_blocked()
                clock.jump(10.0)
                await trio.testing.wait_all_tasks_blocked()
                # A leader says at once that it is there. Who waits for one listens once more.
                assert core.acts == leads and core.ticks == (8 if leads else 7)
                clock.jump(TICK_S)
                await trio.testing.wait_all_tasks_blocked()
                assert core.acts == 1 and core.ticks == 8
                nursery.cancel_scope.cancel()

        await trio.to_thread.run_sync(lambda body=held_up, at=clock: trio.run(body, clock=at))


def test_who_looks_who_is_there_asks_everyone_in_that_moment() -> None:
    for timing in (Timing(), LAN):
        assert timing.election_ticks % timing.heartbeat_ticks == 0
