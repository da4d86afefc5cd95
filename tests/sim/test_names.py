"""Names in the small world: a host that was set up anew is who it was; nobody else takes a name
that another has, whoever is only down for a while."""

from __future__ import annotations

import pytest
import trio

from swarmd.cluster.asks import TakePlace
from swarmd.domain.errors import Conflict, NotFound
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.sim.workers import Workers
from swarmd.sim.world import World
from swarmd.state.commands import PutNode
from swarmd.state.queries import ListNodes
from tests.sim.world import simulated


async def names(world: World, asked: str) -> dict[str, str]:
    nodes = await world.replica(asked).read(ListNodes())
    return {node.name: str(node.id) for node in nodes}


def votes(world: World, asked: str) -> set[str]:
    return {str(voter) for voter in world.replica(asked).log_view().voters}


@simulated(320)
async def test_a_host_that_was_set_up_anew_has_its_name_and_its_vote_again(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    await world.put("a", "k", "v")
    await world.settle()
    lost = next(n for n in "cba" if n not in world.leaders())
    rest = tuple(n for n in "abc" if n != lost)
    await world.crash(lost)
    began = trio.current_time()
    await world.start("new", join=rest, called=lost, at=lost)
    assert trio.current_time() - began < 15
    await world.until(lambda: votes(world, rest[0]) == {*rest, "new"}, 30, "it votes again")
    await world.settle()
    assert await names(world, "new") == {rest[0]: rest[0], rest[1]: rest[1], lost: "new"}
    assert await world.get("new", "k") == "v"
    # Its former self is gone for good, and nothing can be done to it once more.
    with pytest.raises(Conflict, match="does not come back"):
        await world.propose(rest[0], PutNode(Node(NodeId(lost), "other")))
    with pytest.raises(NotFound):
        leader = await world.leader()
        await world.replica(leader).ask(NodeId(leader), TakePlace(NodeId(lost), (lost,)))


@simulated(321)
async def test_the_name_of_one_that_is_alive_is_refused_wherever_it_is_asked_for(
    world: World,
) -> None:
    await world.swarm_of("a", "b", "c")
    leader = await world.leader()
    for held in (leader, next(n for n in "abc" if n != leader)):
        for seed in "abc":
            with pytest.raises(BaseExceptionGroup) as refused:
                await world.start(f"{held}{seed}", join=(seed,), called=held, at=held)
            assert refused.group_contains(Conflict, match=f"called {held}; .* is alive, at {held}")
    assert await names(world, "a") == {n: n for n in "abc"}
    assert votes(world, "a") == {"a", "b", "c"}


@simulated(322)
async def test_a_copy_of_a_host_that_is_only_down_does_not_get_its_name(world: World) -> None:
    """It asks from elsewhere, again and again; what it is told is how the name is freed."""
    await world.swarm_of("a", "b", "c")
    lost = next(n for n in "cba" if n not in world.leaders())
    rest = tuple(n for n in "abc" if n != lost)
    await world.crash(lost)
    for attempt in range(5):
        with pytest.raises(BaseExceptionGroup) as refused:
            await world.start(f"copy{attempt}", join=rest, called=lost)
        assert refused.group_contains(Conflict, match=f"`swarmd remove {lost}` on a member frees")
        await trio.sleep(2)
    await world.start(lost)
    await world.settle()
    assert (await names(world, lost))[lost] == lost
    assert votes(world, lost) == {"a", "b", "c"}


@simulated(323)
async def test_of_two_that_want_a_name_one_has_it(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    lost = next(n for n in "cba" if n not in world.leaders())
    rest = tuple(n for n in "abc" if n != lost)
    await world.crash(lost)
    refused: list[BaseException | None] = []

    async def come(name: str, seed: str) -> None:
        try:
            await world.start(name, join=(seed,), called=lost, at=lost)
        except BaseExceptionGroup as group:
            refused.append(group.subgroup(Conflict))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come, "new1", rest[0])
        nursery.start_soon(come, "new2", rest[1])
    assert len(refused) == 1 and refused[0] is not None
    (won,) = {"new1", "new2"} & set(world.up())
    await world.settle()
    assert await names(world, rest[0]) == {rest[0]: rest[0], rest[1]: rest[1], lost: won}


@simulated(324)
async def test_a_name_is_given_over_by_the_next_leader_too(world: World) -> None:
    """Whoever leads is lost, and comes back as a new node while the others still find it out."""
    await world.swarm_of("a", "b", "c", "d")
    lost = await world.leader()
    rest = tuple(n for n in "abcd" if n != lost)
    await world.crash(lost)
    await world.start("new", join=rest, called=lost, at=lost)
    await world.settle()
    assert (await names(world, rest[0]))[lost] == "new"
    assert lost not in world.replica(rest[0]).log_view().voters


@simulated(325)
async def test_what_the_former_self_ran_is_run_again_when_its_lease_is_over(world: World) -> None:
    """Its runner outlives it, on the same host: the world sees to it that nothing runs twice."""
    workers = Workers(world)
    await world.swarm_of("a", "b", "c")
    await workers.ready()
    leader = await world.leader()
    while True:
        job_id, token = await workers.submit(leader, 20.0)
        if (lost := await workers.running(token)) != leader:
            break
    rest = tuple(n for n in "abc" if n != lost)
    struck = trio.current_time()
    await world.crash(lost)
    await world.start("new", join=rest, called=lost, at=lost)
    await world.until(lambda: workers.runs.now.get(token) not in (None, lost), 10, "it runs again")
    assert trio.current_time() - struck < 6
    await world.until(lambda: token not in workers.runs.now, 30, "it ends")
    with trio.fail_after(5):  # it has yet to be reported
        while (job := await workers.job(leader, job_id)).ended_at is None:
            await trio.sleep(0.1)
    assert [str(a.status) for a in job.attempts] == ["lost", "completed"]
