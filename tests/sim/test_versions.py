"""Programs of two versions in one small world: the older one's words hold until all are new.

An older program is one that knows the machine up to some version: it ends rather than go beyond.
"""

from __future__ import annotations

import pytest
import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.domain.errors import NotFound, SwarmError, Unavailable
from swarmd.domain.terminals import TerminalEnd
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import SINCE, VERSION
from swarmd.state.terminal_commands import EndTerminal
from swarmd.state.versions import Outdated
from tests.sim.world import simulated

ALL = ("a", "b", "c")
NEW = EndTerminal("none", TerminalEnd.LEFT)
"""Of those that came late: an older version may have brought no command."""
OLD = SINCE[EndTerminal] - 1
RAISED_S = 8.0


def in_force(world: World) -> set[int]:
    return {world.replica(name).cluster_version() for name in world.up()}


async def old_swarm(world: World) -> None:
    for name in ALL:
        await world.start(name, version=OLD, join=() if name == "a" else ("a",))
        await world.leader()
    await world.until(
        lambda: all(len(world.replica(n).log_view().voters) == 3 for n in ALL), 30, "three voters"
    )
    await trio.sleep(RAISED_S)
    assert in_force(world) == {OLD}


async def restart(world: World, name: str, version: int) -> None:
    await world.stop(name)
    await world.start(name, version=version)
    await world.leader()
    await world.put(name, f"{name}-as-of", str(version))


@simulated(31)
async def test_what_is_new_waits_until_the_last_has_it(world: World) -> None:
    await old_swarm(world)
    first, *others = sorted(ALL, key=lambda n: n in world.leaders(), reverse=True)
    for name in (first, *others):
        assert in_force(world) == {OLD}
        with pytest.raises(Unavailable, match="being upgraded"):
            await world.replica(name).propose(NEW, CLIENT)
        await restart(world, name, VERSION)
        for other in ALL:
            assert await world.get(other, f"{name}-as-of") == str(VERSION)
        if name != others[-1]:
            await trio.sleep(RAISED_S)
            assert in_force(world) == {OLD}, f"after {name}"
    await world.until(lambda: in_force(world) == {VERSION}, RAISED_S, "the new version")
    with pytest.raises(NotFound, match="no such terminal"):
        await world.propose(first, NEW)
    await world.settle()


@simulated(32)
async def test_who_leads_among_the_two_versions_does_not_matter(world: World) -> None:
    await old_swarm(world)
    await restart(world, "c", VERSION)
    led: set[str] = set()
    for number in range(40):
        leader = await world.leader()
        led.add(leader)
        await world.put(leader, f"k{number}", leader)
        if led == set(ALL):
            break
        await world.crash(leader)
        await world.start(leader)
    assert led == set(ALL) and in_force(world) == {OLD}
    await world.settle()


@simulated(33)
async def test_one_goes_back_while_not_all_are_new(world: World) -> None:
    await old_swarm(world)
    await restart(world, "a", VERSION)
    await restart(world, "b", VERSION)
    for name in ("b", "a"):
        await restart(world, name, OLD)
    await trio.sleep(RAISED_S)
    assert in_force(world) == {OLD}
    await world.settle()


async def refused(world: World, name: str) -> SwarmError:
    """How an old program ends there."""
    try:
        with trio.move_on_after(20):
            await world.start(name, version=OLD)
    except BaseExceptionGroup as group:
        found = group.subgroup(SwarmError)
        assert found is not None
        error = found.exceptions[0]
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, SwarmError)
        return error
    except SwarmError as error:
        return error
    host = world.hosts[name]
    with trio.fail_after(20):
        await host.ended.wait()
    assert host.refused is not None
    return host.refused


async def is_refused(world: World) -> None:
    """An old program on `c`, and no other is worse for it; the new one goes on there."""
    error = await refused(world, "c")
    assert "start the newer swarmd" in error.message and "c" not in world.up()
    await world.put("a", "after", "it")
    assert in_force(world) == {VERSION}
    await world.start("c", version=VERSION)
    assert await world.get("c", "after") == "it"
    await world.settle()


@simulated(34)
async def test_an_old_program_is_refused_where_the_state_is_new(world: World) -> None:
    await world.swarm_of(*ALL)
    await world.until(lambda: in_force(world) == {VERSION}, RAISED_S, "the new version")
    await world.stop("c")
    with pytest.raises(Outdated, match=f"version {VERSION} of its state"):
        await world.start("c", version=OLD)
    await is_refused(world)


async def left_behind(world: World) -> None:
    """`c` went back to the old program at the very moment when all were new, and was away."""
    await old_swarm(world)
    for name in ALL:
        await restart(world, name, VERSION)
    if in_force(world) == {OLD}:
        await world.crash("c")
    await world.until(
        lambda: all(world.replica(n).cluster_version() == VERSION for n in "ab"),
        RAISED_S, "the new version",
    )  # fmt: skip
    assert "c" not in world.up()


@simulated(35)
async def test_an_old_program_ends_where_the_log_goes_on_to_what_is_new(world: World) -> None:
    await left_behind(world)
    await is_refused(world)


@simulated(36, OpeningSettings(log_entries_kept=20, compact_every=10))
async def test_an_old_program_ends_where_only_a_new_copy_could_help(world: World) -> None:
    await left_behind(world)
    for number in range(120):
        await world.put("a", f"k{number}", "v")
    await trio.sleep(20)
    assert world.hosts["a"].disk.stored.first_index() > world.hosts["c"].disk.stored.last_index()
    await is_refused(world)
