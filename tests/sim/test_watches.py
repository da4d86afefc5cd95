"""Nodes without a replica: they are told each event once, and of each request what became of it,
whatever overlaps or is left out on the way."""

from __future__ import annotations

import pytest
import trio

from swarmd.cluster.feed import Wanted
from swarmd.cluster.handle import local_reads
from swarmd.domain.errors import Unavailable
from swarmd.domain.events import NodeChanged, SettingChanged
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import PutSetting
from swarmd.state.queries import GetSetting
from tests.sim.chaos import quick
from tests.sim.test_remotes import _move_to as move_to
from tests.sim.test_remotes import remotes_of
from tests.sim.world import simulated


@simulated(65)
async def test_a_watch_that_begins_amid_events_tells_each_once(world: World) -> None:
    """Another watch brings some of what it wants already, and what was before comes beside it."""
    async with remotes_of(world, "r") as remotes, trio.open_nursery() as nursery:
        remote = remotes.remote("r")

        async def write() -> None:
            for n in range(10_000):
                await world.put("a", f"k{n}", "v")

        nursery.start_soon(write)
        async with remote.watch(wants=Wanted.of(SettingChanged)) as other:
            for _ in range(20):
                await anext(other)
                other.take_waiting()
                after = max(1, other.last_seq - 20)
                both = Wanted.of(SettingChanged, NodeChanged)
                async with remote.watch(after, both) as events:
                    seen = [(await anext(events)).seq for _ in range(40)]
                assert seen == [*range(after + 1, after + 41)]
        nursery.cancel_scope.cancel()


@simulated(66, quick())
async def test_outcomes_that_a_copy_left_out_reach_those_it_serves(world: World) -> None:
    """The replica brought a request to the leader, and then heard no more of it than a copy."""
    async with remotes_of(world, "r") as remotes, trio.open_nursery() as nursery:
        remote = remotes.remote("r")
        leader = await world.leader()
        serving = next(n for n in "abc" if n != leader)
        await move_to(world, remote, serving)
        others = [n for n in "abc" if n != serving]
        for other in others:
            world.network.cut_one_way(other, serving)
            world.network.cut_one_way("r", other)
        last = world.hosts[serving].disk.stored.last_index()
        answered = trio.Event()

        async def ask() -> None:
            await remote.propose(PutSetting("asked", b"by r"), CLIENT)
            answered.set()

        nursery.start_soon(ask)
        await world.until(lambda: world.replica(leader).log_view().last > last, 2, "it is brought")
        for n in range(60):
            await world.put(leader, f"k{n}", "v")
        await world.until(
            lambda: all(world.replica(n).log_view().first > last + 1 for n in others), 5,
            "logs that begin later",
        )  # fmt: skip
        assert remote.served_by == serving and not answered.is_set()
        for other in others:
            world.network.cut.discard((other, serving))
        with trio.fail_after(5):
            await answered.wait()
        assert await world.get(leader, "asked") == "by r"


@simulated(67)
async def test_what_was_read_a_moment_ago_is_not_unread_elsewhere(world: World) -> None:
    """The replica that it turns to was cut off, and does not know of it yet."""
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        leader = await world.leader()
        behind = next(n for n in "abc" if n != leader)
        await world.put(leader, "k", "old")
        await move_to(world, remote, leader)
        for other in (n for n in "abc" if n != behind):
            world.network.cut_one_way(behind, other)
            world.network.cut_one_way(other, behind)
        await world.put(leader, "k", "new")
        assert await remotes.get("r", "k") == "new"
        for other in (n for n in "abc" if n != behind):
            world.network.cut_one_way("r", other)
            world.network.cut_one_way(other, "r")
        await world.until(lambda: remote.served_by == behind, 10, "it turned to the other")
        with local_reads(), pytest.raises(Unavailable):
            await remote.read(GetSetting("k"))
        world.network.heal()
        with local_reads():
            assert await remotes.get("r", "k") == "new"
