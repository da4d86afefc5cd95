"""Replicas in the small world: what was acknowledged stays, whoever is pulled out of the wall."""

from __future__ import annotations

import pytest
import trio

from swarmd.cluster.feed import FellBehind
from swarmd.cluster.handle import local_reads
from swarmd.cluster.members import join_again
from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.proposals import ProposalSettings
from swarmd.cluster.replica import NotNewest, ReplicaSettings
from swarmd.domain.errors import Busy, Conflict, Unavailable, leaves
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.sim.network import Weather
from swarmd.sim.wires import SimWires
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import VERSION, PruneEvents, PutNode, PutSetting
from swarmd.state.queries import ListNodes
from tests.sim.chaos import quick
from tests.sim.world import simulated


@simulated(1)
async def test_three_hosts_become_one_swarm_and_each_reads_what_any_wrote(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    assert set(world.replica("b").log_view().voters) == {"a", "b", "c"}
    for name in "abc":
        await world.put(name, f"from-{name}", name)
        for other in "abc":
            assert await world.get(other, f"from-{name}") == name
    assert len({world.replica(n).cluster_id for n in "abc"}) == 1
    await world.settle()


@simulated(21)
async def test_who_asks_a_follower_to_join_is_sent_to_the_leader(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    follower = next(n for n in "abc" if n not in world.leaders())
    began = trio.current_time()
    await world.start("d", join=(follower,))
    assert trio.current_time() - began < 5
    await world.settle()


@simulated(22, OpeningSettings(replica=ReplicaSettings(replicas_max=3)))
async def test_two_that_ask_at_once_do_not_both_get_the_last_place(world: World) -> None:
    await world.swarm_of("a", "b")
    leader, holds = await world.leader(), list[bool]()

    async def ask(name: str) -> None:
        wires = SimWires(world.network, name, nursery)
        wires.plug_in()
        node = Node(NodeId(name), name, machine_version=VERSION)
        holds.append((await join_again(wires, leader, node)).replica)
        wires.pull()

    async with trio.open_nursery() as nursery:
        for name in ("c", "d", "e"):
            nursery.start_soon(ask, name)
    assert sorted(holds) == [False, False, True]
    view = world.replica(leader).log_view()
    assert len({*view.voters, *view.learners}) == 3


@simulated(2)
async def test_the_leaders_death_is_an_event_and_nothing_is_lost(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    for n in range(30):
        await world.put("b", f"k{n}", "v")
    await world.crash(await world.leader())
    began = trio.current_time()
    await world.put("b", "after", "v")
    # The stream broke and a fresh connection is refused: nobody waits for the timer.
    assert trio.current_time() - began < 0.6
    for n in range(30):
        assert await world.get("c", f"k{n}") == "v"
    await world.start("a")
    await world.settle()


@simulated(3)
async def test_a_leader_that_is_cut_off_is_replaced_and_its_writes_are_refused(
    world: World,
) -> None:
    await world.swarm_of("a", "b", "c")
    old = await world.leader()
    others = tuple(n for n in "abc" if n != old)
    world.network.isolate(old)
    with pytest.raises(Unavailable, match="not known"):
        await world.replica(old).propose(PutSetting("lost", b"?"), CLIENT)
    await world.leader(among=others)
    await world.put(others[0], "kept", "v")
    with pytest.raises(Unavailable, match="no leader"):
        await world.get(old, "kept")
    with local_reads():
        assert await world.get(old, "kept") is None
    stale = world.replica(old).staleness_ms()
    assert stale is not None and stale > 5000
    world.network.heal()
    await world.settle()
    assert await world.get(old, "kept") == "v"


@simulated(4)
async def test_what_was_forwarded_twice_is_done_once(world: World) -> None:
    """The answer is lost, the leader is another by then, the request is sent again."""
    await world.swarm_of("a", "b", "c")
    world.network.weather = Weather(delay_s=(0.001, 0.2), loss=0.2, doubled=0.3)
    events_before = world.replica("a").log_view().committed
    for n in range(20):
        await world.put("abc"[n % 3], "counter", str(n))
        if n % 5 == 4:
            await world.crash(name := await world.leader())
            await world.start(name)
    world.network.weather = Weather()
    await world.settle()
    assert world.replica("a").log_view().committed > events_before
    conn = world.hosts["a"].disk.state
    rows = conn.execute("SELECT count(*) FROM events").fetchone()[0]
    seqs = conn.execute("SELECT max(seq) FROM events").fetchone()[0]
    changes = conn.execute(
        "SELECT count(*) FROM events WHERE instr(body, CAST('counter' AS BLOB))"
    ).fetchone()[0]
    assert rows == seqs and changes == 20  # each value once, however often it was sent


@simulated(5)
async def test_a_deposed_leaders_command_is_refused_never_forwarded(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    leader = world.replica(await world.leader())
    term = leader.leadership().term
    await leader.hand_over()
    with pytest.raises(Conflict, match="another term"):
        await leader.propose(PruneEvents(10, 1, term), CLIENT)
    await world.settle()


@simulated(6, quick())
async def test_a_node_that_was_away_catches_up_by_a_copy(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    away = next(n for n in "bc" if n not in world.leaders())
    await world.crash(away)
    for n in range(200):
        await world.put("a", f"k{n}", "v")
    await trio.sleep(10)
    assert world.replica("a").log_view().first > 100  # what it misses is in no log any more
    await world.start(away)
    await world.settle()
    assert await world.get(away, "k199") == "v"
    # And it can lead: what it took over is whole.
    await world.replica(await world.leader()).hand_over(world.replica(away).node.id)
    await world.put(away, "led", "by it")
    await world.settle()


@simulated(7, quick(snapshot_bytes_per_s_max=100_000))
async def test_a_copy_that_broke_off_goes_on_where_it_ended(world: World) -> None:
    await world.start("a")
    await world.leader()
    for n in range(100):
        await world.put("a", f"k{n}", "v" * 1000)
    await trio.sleep(5)
    await world.start("b", join=("a",))
    await trio.sleep(1)
    part = next(world.hosts["b"].place.glob("incoming-*"))
    before = part.stat().st_size
    assert before > 0
    world.network.isolate("b")
    await trio.sleep(3)
    world.network.heal()
    await world.until(lambda: world.replica("b").log_view().applied > 100, 120, "caught up")
    await world.settle()


@simulated(8)
async def test_losing_power_everywhere_at_once_loses_nothing_acknowledged(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    acknowledged = []
    async with trio.open_nursery() as nursery:

        async def write() -> None:
            for n in range(10_000):
                try:
                    await world.replica("a").propose(PutSetting(f"k{n}", b"v"), CLIENT)
                except Unavailable:
                    return
                acknowledged.append(f"k{n}")

        nursery.start_soon(write)
        await trio.sleep(1.0)
        nursery.cancel_scope.cancel()
    assert len(acknowledged) > 50
    for name in "abc":
        await world.crash(name, power=True)
    for name in "abc":
        await world.start(name)
    await world.settle()
    for key in acknowledged:
        assert await world.get("b", key) == "v", key


@simulated(9)
async def test_a_swarm_of_one_needs_nobody(world: World) -> None:
    await world.start("a")
    await world.put("a", "k", "1")
    await world.crash("a", power=True)
    began = trio.current_time()
    await world.start("a")
    assert await world.get("a", "k") == "1"
    assert trio.current_time() - began < 0.1  # it waits for no timer


@simulated(10, quick(ReplicaSettings(proposals=ProposalSettings(in_flight_max=8))))
async def test_over_the_bound_a_write_is_refused_at_once(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    world.network.isolate("b")
    refused = 0

    async def write(n: int) -> None:
        nonlocal refused
        began = trio.current_time()
        try:
            await world.replica("b").propose(PutSetting(f"k{n}", b"v"), CLIENT)
        except Busy:
            assert trio.current_time() == began
            refused += 1
        except Unavailable:
            pass

    async with trio.open_nursery() as nursery:
        for n in range(20):
            nursery.start_soon(write, n)
    assert refused == 12


@simulated(11)
async def test_a_watch_goes_on_at_another_node_where_it_ended(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    seen: list[int] = []
    async with world.replica("a").watch() as events:
        await world.put("b", "one", "1")
        seen.append((await anext(events)).seq)
        after = events.last_seq
    await world.crash("a")
    await world.put("c", "two", "2")
    await world.put("c", "three", "3")
    async with world.replica("b").watch(after=after) as events:
        with trio.fail_after(5):
            seen += [(await anext(events)).seq for _ in range(2)]
    assert seen == list(range(seen[0], seen[0] + 3))


@simulated(12, quick())
async def test_who_watches_is_told_when_a_copy_took_the_place_of_events(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    lagging = next(n for n in "bc" if n not in world.leaders())
    async with world.replica(lagging).watch() as events:
        world.network.isolate(lagging)
        for n in range(200):
            await world.put("a", f"k{n}", "v")
        await trio.sleep(10)
        world.network.heal()
        with pytest.raises(FellBehind), trio.fail_after(60):
            while True:
                await anext(events)
        after = events.last_seq
    async with world.replica(lagging).watch(after=after) as events:
        assert (await anext(events)).seq == after + 1
    await world.settle()


@simulated(13)
async def test_handing_over_is_quick_and_fails_no_request(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    slowest = 0.0
    done = False

    async def write(name: str) -> None:
        nonlocal slowest
        n = 0
        while not done:
            began = trio.current_time()
            await world.replica(name).propose(PutSetting(f"{name}{n}", b"v"), CLIENT)
            slowest = max(slowest, trio.current_time() - began)
            n += 1

    async with trio.open_nursery() as nursery:
        leader = await world.leader()
        for name in "abc":
            if name != leader:
                nursery.start_soon(write, name)
        await trio.sleep(0.5)
        await world.stop(leader)
        # Another leads by now: nobody had to miss the one that stopped.
        assert any(world.replica(n).leadership().leader not in (leader, None) for n in world.up())
        await trio.sleep(0.5)
        done = True
    assert slowest < 0.1
    await world.start(leader)
    await world.settle()


@simulated(14)
async def test_a_host_that_was_put_back_to_an_older_log_takes_its_place_as_another(
    world: World,
) -> None:
    await world.swarm_of("a", "b", "c")
    for n in range(10):
        await world.put("a", f"k{n}", "v")
    await world.settle()
    await world.crash("c")
    stored = world.hosts["c"].disk.stored
    del stored._entries[-3:]
    with pytest.raises(BaseExceptionGroup) as refused:
        await world.start("c")
    assert refused.group_contains(NotNewest, match="not the newest")
    lost = next(leaves(refused.value))
    assert isinstance(lost, NotNewest) and sorted(lost.seeds) == ["a", "b"]
    await world.start("c2", join=lost.seeds, replaces="c", called="c")
    await world.until(lambda: _voters(world, "a") == {"a", "b", "c2"}, 30, "c2 votes in c's place")
    await world.settle()
    assert await world.get("c2", "k9") == "v"
    nodes = await world.replica("c2").read(ListNodes())
    assert {(node.id, node.name) for node in nodes} == {("a", "a"), ("b", "b"), ("c2", "c")}
    # Who was replaced is gone for good, whatever it still asks for.
    with pytest.raises(Conflict, match="does not come back"):
        await world.propose("a", PutNode(Node(NodeId("c"), "d")))


@simulated(15)
async def test_nobody_takes_the_place_of_one_that_is_still_there(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    with trio.move_on_after(5) as waited:
        await world.start("c2", join=("a", "b"), replaces="c", called="c")
    assert waited.cancelled_caught
    assert _voters(world, "a") == {"a", "b", "c"}
    with pytest.raises(BaseExceptionGroup) as refused:
        await world.start("d", join=("a",), replaces="c")
    assert refused.group_contains(Conflict, match="its own place only")


@simulated(16)
async def test_a_voter_that_is_gone_is_replaced_and_comes_back_as_a_learner(world: World) -> None:
    await world.swarm_of("a", "b", "c", "d")
    voters = _voters(world, "a")
    (learner,) = {"a", "b", "c", "d"} - voters
    lost = next(n for n in sorted(voters) if n not in world.leaders())
    await world.crash(lost)
    others = (voters - {lost}) | {learner}
    up = sorted(others)[0]
    await world.until(lambda: _voters(world, up) == others, 20, "the learner votes")
    await world.put(up, "k", "v")
    await world.start(lost)
    await world.settle()
    view = world.replica(lost).log_view()
    assert set(view.voters) == others and set(view.learners) == {lost}


@simulated(17)
async def test_a_node_that_was_away_for_long_is_taken_out_and_in_again(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    lost = next(n for n in "abc" if n not in world.leaders())
    rest = {"a", "b", "c"} - {lost}
    await world.crash(lost)
    began = trio.current_time()
    up = sorted(rest)[0]
    await world.until(lambda: _voters(world, up) == rest, 700, "it is taken out")
    assert trio.current_time() - began >= 600
    await world.put(up, "k", "v")
    await world.start(lost)
    await world.until(lambda: _voters(world, up) == {*rest, lost}, 60, "it votes again")
    await world.settle()
    assert await world.get(lost, "k") == "v"


def _voters(world: World, name: str) -> set[str]:
    view = world.replica(name).log_view()
    return set() if view.joint else set(view.voters)
