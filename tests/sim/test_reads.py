"""Reads and leaders in the small world: never stale, never before a leader knows everything."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from itertools import pairwise

import pytest
import trio

from swarmd.domain.errors import Busy, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.sim.network import Weather
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import PruneEvents, PutSetting
from tests.sim.chaos import HOUR_MS
from tests.sim.world import simulated


async def a_follower(world: World) -> str:
    leader = await world.leader()
    return next(name for name in "cba" if name != leader)


@simulated(50)
async def test_a_node_that_applies_late_answers_late_and_right(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    name, leader = await a_follower(world), await world.leader()
    world.hosts[name].disk.apply_s = (0.3, 0.5)
    for n in range(5):
        await world.put(leader, "k", str(n))
        assert await world.get(name, "k") == str(n)


@simulated(51)
async def test_who_is_answered_reads_its_own_write_there(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    world.hosts[name].disk.apply_s = (0.3, 0.5)
    for n in range(5):
        await world.put(name, "k", str(n))
        row = world.hosts[name].disk.state.execute(
            "SELECT value FROM settings WHERE key = 'k'"
        ).fetchone()  # fmt: skip
        assert row == (str(n).encode(),)


@simulated(52)
async def test_a_read_that_comes_late_does_not_share_an_answer_asked_for_before(
    world: World,
) -> None:
    """Whoever shares a round must have come before it began: a write may lie between."""
    await world.swarm_of("a", "b", "c")
    name, leader = await a_follower(world), await world.leader()
    await world.put(leader, "k", "old")
    await world.settle()
    world.network.weather = Weather(delay_s=(0.1, 0.1))
    await trio.sleep(1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.get, name, "k")  # its round is asked for now
        await trio.sleep(0.12)
        await world.replica(leader).propose(PutSetting("k", b"new"), CLIENT)
        assert await world.get(name, "k") == "new"


@simulated(53)
async def test_a_leader_that_was_cut_off_answers_no_read(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    old = await world.leader()
    others = tuple(n for n in "abc" if n != old)
    await world.put(old, "k", "old")
    world.network.isolate(old)
    async with trio.open_nursery() as nursery:

        async def read_on() -> None:
            """From the moment of the cut, when it leads as far as it knows."""
            with pytest.raises(Unavailable, match="reaches no leader"):
                await world.get(old, "k")

        nursery.start_soon(read_on)
        await world.leader(among=others)
        await world.put(others[0], "k", "new")
        nursery.start_soon(read_on)
    world.network.heal()
    await world.settle()
    assert await world.get(old, "k") == "new"


@simulated(54)
async def test_a_new_leader_leads_when_it_has_applied_what_came_before(world: World) -> None:
    """Its clock is an hour behind, and so is its state by some entries: time goes on all the same
    (the witness looks), and what it does as a leader it does knowing everything."""
    await world.swarm_of("a", "b", "c")
    name, leader = await a_follower(world), await world.leader()
    host = world.hosts[name]
    host.clock_off_ms, host.disk.apply_s = -HOUR_MS, (1.0, 1.0)
    for n in range(20):
        await world.put(leader, f"k{n}", "v")
        await trio.sleep(0.05)
    hand_over = world.replica(leader).hand_over
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hand_over, NodeId(name))
        replica = world.replica(name)
        with trio.fail_after(10):
            while not replica.leadership().ready:
                assert replica.leadership().leader != name or not world.leaders()
                await trio.sleep(0.005)
        rows = host.disk.state.execute(
            "SELECT count(*) FROM settings WHERE key LIKE 'k%'"
        ).fetchone()  # fmt: skip
        assert rows == (20,)
        await world.put(name, "led", "v")
    await world.settle()


@simulated(55)
async def test_time_goes_on_whoevers_clock_it_is(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    for offset in (HOUR_MS, -HOUR_MS, 0):
        leader = await world.leader()
        world.hosts[leader].clock_off_ms = offset
        for n in range(5):
            await world.put(leader, f"k{n}", str(offset))
        name = await a_follower(world)
        await world.replica(leader).hand_over(NodeId(name))
        await world.put(name, "k", str(offset))
    await world.settle()


@simulated(56)
async def test_under_load_a_cut_link_costs_no_more_than_the_timer(world: World) -> None:
    """As many forwards as may be are on their way to a leader that nobody hears any more."""
    await world.swarm_of("a", "b", "c")
    leader = await world.leader()
    names = [n for n in "abc" if n != leader]
    ends: list[float] = []
    over = False

    async def write(name: str, client: int) -> None:
        n = 0
        while not over:
            n += 1
            try:
                key = f"{name}{client}-{n}"
                await world.replica(name).propose(PutSetting(key, b"v"), CLIENT)
                ends.append(trio.current_time())
            except (Busy, Unavailable):
                pass
            await trio.sleep(0.05)

    async with trio.open_nursery() as nursery:
        for name in names:
            for client in range(32):
                nursery.start_soon(write, name, client)
                await trio.sleep(0.001)
        await trio.sleep(1)
        cut_at = trio.current_time()
        world.network.isolate(leader)
        await trio.sleep(8)
        over = True
    assert next(at for at in ends if at > cut_at + 0.1) - cut_at < 2.2
    after = [at for at in ends if at > cut_at + 2.2]
    gaps = [later - at for at, later in pairwise(after)]
    assert max(gaps) < 0.2
    world.network.heal()
    await world.settle()


@simulated(57)
async def test_a_command_of_a_term_that_is_over_goes_into_no_log(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    leader = world.replica(await world.leader())
    term = leader.leadership().term
    await leader.hand_over()
    await world.settle()
    forwarded = {name: world.network.kinds["propose", name] for name in "abc"}
    for _ in range(5):
        with pytest.raises(SwarmError):
            await leader.propose(PruneEvents(10, 1, term), CLIENT)
    assert forwarded == {name: world.network.kinds["propose", name] for name in "abc"}


@simulated(58)
async def test_the_word_that_comes_with_a_heartbeat_costs_no_message(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    leader = world.replica(await world.leader())
    await world.settle()

    async def heartbeats_in(seconds: float, work: Callable[[], Awaitable[object]]) -> int:
        before = world.network.kinds.total()
        with trio.move_on_after(seconds):
            while True:
                await work()
        return world.network.kinds.total() - before

    idle = await heartbeats_in(20, partial(trio.sleep, 1))
    asked = 0

    async def ask() -> None:
        nonlocal asked
        began = trio.current_time()
        await leader.vouched(at_once=False)
        assert trio.current_time() - began < 0.5
        asked += 1

    assert await heartbeats_in(20, ask) <= idle * 1.05
    assert asked > 40
    at_once = await heartbeats_in(1, lambda: leader.vouched(at_once=True))
    assert at_once > idle


@simulated(59)
async def test_the_word_covers_what_was_acknowledged_before_it_was_asked_for(
    world: World,
) -> None:
    await world.swarm_of("a", "b", "c")
    leader = world.replica(await world.leader())
    # A word takes its time: others come while it is under way.
    world.network.weather = Weather(delay_s=(0.05, 0.08))
    places: list[tuple[int, int]] = []

    async def ask() -> None:
        acknowledged = leader.log_view().applied
        places.append((acknowledged, await leader.vouched(at_once=False)))

    async with trio.open_nursery() as nursery:
        for n in range(60):
            await world.put(leader.node.id, "k", str(n))
            nursery.start_soon(ask)
            await trio.sleep(world.rng.uniform(0, 0.05))
    assert len(places) == 60 and all(told >= done for done, told in places)
    assert len({told for _, told in places}) < 50  # those who came together shared a word


@simulated(60)
async def test_nobody_vouches_for_a_leader_that_is_cut_off(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    old = await world.leader()
    replica = world.replica(old)
    world.network.isolate(old)
    with pytest.raises(Unavailable, match="leads no longer"):
        await replica.vouched(at_once=False)
    with pytest.raises(Unavailable, match="does not lead"):
        await replica.vouched(at_once=False)
    new = await world.leader(among=tuple(n for n in "abc" if n != old))
    assert await world.replica(new).vouched(at_once=False) > 0


@simulated(63)
async def test_one_that_is_alone_vouches_for_itself(world: World) -> None:
    await world.swarm_of("a")
    began = trio.current_time()
    assert await world.replica("a").vouched(at_once=False) > 0
    assert trio.current_time() - began < 0.1
