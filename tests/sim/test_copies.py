"""Copies of the state in the small world: for who is too far behind, whole or not at all."""

from __future__ import annotations

import pytest
import trio

from mesh.raft import ConfState
from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.replica import INSTALLING
from swarmd.cluster.snapshots import METHOD, decode_conf
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import PutSetting
from swarmd.state.machine import Place
from tests.sim.chaos import quick
from tests.sim.world import simulated


async def fall_behind(world: World, name: str, entries: int = 100) -> None:
    """Down while the others write, until their logs no longer have what it misses."""
    await world.crash(name)
    last = world.hosts[name].disk.stored.last_index()
    writer = world.up()[0]
    for n in range(entries):
        await world.put(writer, f"k{n}", "v")
    await world.until(
        lambda: all(world.replica(n).log_view().first > last + 1 for n in world.up()), 30,
        "logs that begin later",
    )  # fmt: skip


async def a_follower(world: World) -> str:
    leader = await world.leader()
    return next(name for name in "cba" if name != leader)


@simulated(30, quick())
async def test_the_end_of_the_process_amid_an_installation_is_mended(world: World) -> None:
    """The copy is in the state's place, and the log does not begin after it yet."""
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    host = world.hosts[name]
    await fall_behind(world, name)
    installed = trio.Event()
    seen = world.witness.installed

    def crash(who: str, place: Place) -> None:
        seen(who, place)
        if who == name and not installed.is_set():
            assert host.scope is not None
            host.scope.cancel()
            installed.set()

    world.witness.installed = crash  # type: ignore[method-assign, assignment]
    await world.start(name)
    await installed.wait()
    await host.ended.wait()
    assert int(host.disk.facts[INSTALLING]) > host.disk.stored.last_index()
    await world.start(name)
    await world.settle()
    assert host.disk.facts[INSTALLING] == b"0"
    assert await world.get(name, "k99") == "v"


async def times_damaged(world: World, name: str, word: bytes, put: bytes) -> int:
    """Until it has caught up, by a copy that is damaged on its way the first two times."""
    damaged = 0

    def damage(method: str, source: str, target: str, data: bytes) -> bytes:
        nonlocal damaged
        if target != name or word not in data or damaged >= 2:
            return data
        damaged += 1
        return data.replace(word, put, 1)

    world.network.in_transit = damage
    await world.start(name)
    await world.until(lambda: world.replica(name).log_view().applied > 90, 60, "caught up")
    return damaged


@simulated(31, quick())
async def test_a_copy_that_was_damaged_on_its_way_is_fetched_again(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    await world.put("a", "what", "is precious")
    await world.settle()
    await fall_behind(world, name)
    assert await times_damaged(world, name, b"precious", b"useless!") == 2
    await world.settle()


@simulated(39, quick())
async def test_a_copy_that_cannot_be_opened_is_fetched_again(world: World) -> None:
    """From its beginning: of what is here whole nothing would be asked for."""
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    await fall_behind(world, name)
    assert await times_damaged(world, name, b"SQLite format 3", b"SQLite format x") == 2


@simulated(32)
async def test_a_node_that_was_away_for_a_moment_catches_up_by_the_log(world: World) -> None:
    world.settings = OpeningSettings(log_entries_kept=300, compact_every=10)
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    for n in range(400):
        await world.put("a", f"k{n}", "v")
    await world.settle()
    await trio.sleep(3)
    await world.crash(name)
    copies = world.network.kinds[METHOD, name]
    writer = world.up()[0]
    for n in range(250):
        await world.put(writer, f"l{n}", "v")
    await trio.sleep(3)
    views = [world.replica(n).log_view() for n in world.up()]
    assert all(250 <= view.last - view.first <= 400 for view in views)
    await world.start(name)
    await world.settle()
    assert world.network.kinds[METHOD, name] == copies


@simulated(33, quick())
async def test_who_waits_hears_of_it_although_the_node_caught_up_by_a_copy(world: World) -> None:
    """The request reached the leader; what became of it comes with the copy alone."""
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    leader = await world.leader()
    others = tuple(n for n in "abc" if n != name)
    answers: list[bytes] = []

    async def put() -> None:
        once = PutSetting("once", b"mine", only_new=True)
        answers.append(await world.replica(name).propose(once, CLIENT))

    async with trio.open_nursery() as nursery:
        for other in others:
            world.network.cut.add((other, name))  # nothing comes back, nobody notices yet
        nursery.start_soon(put)
        for n in range(100):
            await world.put(leader, f"k{n}", "v")
        behind = world.replica(name).log_view().applied
        await world.until(
            lambda: any(world.replica(n).log_view().first > behind + 1 for n in world.leaders()), 8,
            "a log that begins later",
        )  # fmt: skip
        assert answers == []
        world.network.heal()
    assert answers == [b"mine"]
    await world.settle()


@simulated(34)
async def test_a_copy_from_before_a_node_was_a_member_is_not_for_it(world: World) -> None:
    """One was made for another node shortly before, and the log goes on from it."""
    await world.start("a")
    await world.start("b", join=("a",))
    await world.until(lambda: "b" in world.replica("a").log_view().voters, 30, "b votes")
    made = world.network.kinds[METHOD, "b"]
    assert made >= 1
    await world.start("c", join=("a",))
    with trio.fail_after(5):
        await world.replica("c").introduced.wait()
    await world.settle()


@simulated(35)
async def test_who_votes_is_known_after_a_restart_from_the_state_alone(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    await world.settle()
    for name in "abc":
        place = world.replica(name).log_view()
        conf = world.hosts[name].disk.state.execute(
            "SELECT value FROM meta WHERE key = 'conf'"
        ).fetchone()[0]  # fmt: skip
        stored: ConfState = decode_conf(conf)
        assert len(stored.voters) == len(place.voters) == 3 and not stored.voters_outgoing
        await world.crash(name)
    for name in "abc":
        await world.start(name)
        assert set(world.replica(name).log_view().voters) == {"a", "b", "c"}
    await world.settle()


@simulated(36)
async def test_a_host_without_its_log_does_not_vote_again(world: World) -> None:
    """What it promised to the others was in there."""
    await world.swarm_of("a", "b", "c")
    await world.settle()
    await world.crash("c")
    disk = world.hosts["c"].disk
    disk.stored = type(disk.stored)()
    with pytest.raises(BaseExceptionGroup) as refused:
        await world.start("c")
    assert refused.group_contains(Unavailable, match="the log raft.db is gone")


@simulated(37, quick())
async def test_a_removed_node_that_returns_starts_from_a_copy(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    name = await a_follower(world)
    leader = world.replica(await world.leader())
    await leader.change_members(removed=(NodeId(name),))
    assert name not in leader.log_view().voters
    for n in range(60):
        await world.put(leader.node.id, f"k{n}", "v")
    await trio.sleep(3)
    await leader.change_members(learners=(NodeId(name),))
    await world.until(lambda: name in leader.log_view().voters, 60, "it votes again")
    await world.settle()
