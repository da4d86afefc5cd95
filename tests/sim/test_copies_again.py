"""Copies of the state once more: when one is of no use any more, and what comes with it."""

from __future__ import annotations

import trio

from swarmd.sim.world import World
from tests.sim.chaos import quick
from tests.sim.test_copies import a_follower, fall_behind
from tests.sim.world import simulated


@simulated(62, quick())
async def test_who_falls_behind_again_gets_a_newer_copy(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    for _ in range(2):
        await fall_behind(world, name)
        await world.start(name)
        await world.settle()


@simulated(63, quick(snapshot_bytes_per_s_max=1_000_000))
async def test_what_has_come_of_a_copy_is_not_sent_again(world: World) -> None:
    await world.start("a")
    await world.leader()
    for n in range(200):
        await world.put("a", f"k{n}", "v" * 1000)
    await trio.sleep(5)
    await world.start("b", join=("a",))
    place = world.hosts["b"].place
    # Nearly all of it is there.
    with trio.fail_after(60):
        while sum(part.stat().st_size for part in place.glob("incoming-*")) < 1_500_000:
            await trio.sleep(0.05)
    await world.crash("b")
    sent_bytes = 0

    def count(method: str, source: str, target: str, data: bytes) -> bytes:
        nonlocal sent_bytes
        sent_bytes += len(data) if target == "b" else 0
        return data

    world.network.in_transit = count
    await world.start("b")
    await world.until(lambda: world.replica("b").log_view().applied > 200, 120, "caught up")
    (copy,) = world.hosts["a"].place.glob("copy-*")
    assert 0 < sent_bytes < copy.stat().st_size - 1_000_000


@simulated(64, quick())
async def test_members_that_came_meanwhile_are_known_from_the_copy(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    await world.crash(name)
    last = world.hosts[name].disk.stored.last_index()
    there = world.up()
    await world.start("d", join=(there[0],))
    for n in range(100):
        await world.put(there[0], f"k{n}", "v")
    await world.until(
        lambda: all(world.replica(n).log_view().first > last + 1 for n in there), 60,
        "logs that begin later",
    )  # fmt: skip
    await world.start(name)
    await world.settle()
    assert len(world.replica(name).members) == 4
