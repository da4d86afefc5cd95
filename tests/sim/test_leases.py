"""Work that moves when a node is gone, and never runs in two places, in whatever way it goes.

Real agents and control loops; the runners of the hosts fail the run at once where one job runs
twice at the same time.
"""

from __future__ import annotations

import random

import pytest
import trio

from swarmd.control.leases import GIVE_AWAY_S, LEASE_S
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import JobStatus, NodeId
from swarmd.sim.network import Weather
from swarmd.sim.workers import Workers
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import HoldAttempts
from swarmd.state.queries import ViewLeases
from tests.sim.world import simulated

NAMES = ("a", "b", "c")
SEEDS = range(1, 7)


async def swarm(world: World, *names: str) -> Workers:
    workers = Workers(world)
    await world.swarm_of(*(names or NAMES))
    await workers.ready()
    return workers


def each_seed(body):  # type: ignore[no-untyped-def]
    def test(tmp_path, seed):  # type: ignore[no-untyped-def]
        simulated(seed)(body)(tmp_path)

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return pytest.mark.parametrize("seed", SEEDS)(test)


async def running_on(workers: Workers, wanted, length_s: float = 60.0, **more):  # type: ignore[no-untyped-def]
    """A job that runs on a host that is wanted."""
    for _ in range(40):
        job_id, token = await workers.submit(workers.world.up()[0], length_s, **more)
        host = await workers.running(token)
        if wanted(host):
            return job_id, token, host
    raise AssertionError("no job came to such a host")


@each_seed
async def test_work_of_a_dead_host_runs_again_elsewhere_within_six_seconds(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    _, token, host = await running_on(workers, lambda h: h != leader)
    await trio.sleep(random.Random(world.seed).uniform(0, 1))
    struck = trio.current_time()
    await workers.kill(host)
    assert await workers.running(token) != host
    assert GIVE_AWAY_S - 1.3 < trio.current_time() - struck < 6


@each_seed
async def test_work_of_the_leaders_host_runs_again_within_eight_seconds(world: World) -> None:
    """Pulled out of the wall: nothing tells the others, but for the silence."""
    workers = await swarm(world)
    leader = await world.leader()
    _, token, _ = await running_on(workers, lambda h: h == leader)
    others = [n for n in NAMES if n != leader]
    kept = [(await running_on(workers, lambda h: h in others))[1] for _ in range(2)]
    struck = trio.current_time()
    world.network.isolate(leader)
    workers.runners[leader].die()
    assert await workers.running(token) in others
    assert trio.current_time() - struck < 8
    # Those who go on lose nothing by the change of leaders.
    assert all([ran.how for ran in workers.runs.of(each)] == ["began"] for each in kept)


@each_seed
async def test_work_of_a_host_that_is_cut_off_ends_before_it_begins_elsewhere(
    world: World,
) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    job_id, token, host = await running_on(workers, lambda h: h != leader, 30.0)
    cut = trio.current_time()
    world.network.isolate(host)
    await world.until(lambda: workers.runs.now.get(token) not in (host,), 6, "its end there")
    assert trio.current_time() - cut <= LEASE_S + 0.6
    assert await workers.running(token) != host
    # Back again, it has nothing to say about what is no longer its own.
    world.network.heal()
    await world.settle()
    job = await workers.job(host, job_id)
    assert job.node_id == workers.runs.now[token] != host
    assert job.recoveries == 1
    assert [str(a.status) for a in job.attempts] == ["lost", "running"]


@each_seed
async def test_a_leader_that_is_cut_off_does_not_renew_itself(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    _, token, _ = await running_on(workers, lambda h: h == leader)
    rng = random.Random(world.seed)
    await trio.sleep(rng.uniform(0, 1))
    cut = trio.current_time()
    if world.seed % 2:
        world.network.isolate(leader)
    else:
        # It still hears them: only what it says is lost.
        for other in NAMES:
            if other != leader:
                world.network.cut_one_way(leader, other)
    await world.until(lambda: workers.runs.now.get(token) != leader, 8, "its end there")
    assert trio.current_time() - cut <= LEASE_S + 0.6
    assert await workers.running(token) != leader
    assert trio.current_time() - cut < 8
    world.network.heal()
    await world.settle()


@each_seed
async def test_a_daemon_that_comes_back_at_once_finds_its_work_going_on(world: World) -> None:
    workers = await swarm(world)
    name = random.Random(world.seed).choice(NAMES)
    job_id, token, _ = await running_on(workers, lambda h: h == name, 20.0)
    await world.crash(name)
    await trio.sleep(0.8)
    await world.start(name)
    await trio.sleep(30)
    assert [ran.how for ran in workers.runs.of(token)] == ["began", "exit"]
    assert (await workers.job(name, job_id)).status is JobStatus.COMPLETED


@each_seed
async def test_a_daemon_that_stays_away_has_its_work_ended_by_the_runner(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    _, token, host = await running_on(workers, lambda h: h != leader)
    killed = trio.current_time()
    await world.crash(host)  # the runner lives
    assert await workers.running(token) == host
    await world.until(lambda: workers.runs.now.get(token) != host, 6, "its end there")
    assert trio.current_time() - killed <= LEASE_S + 0.6
    assert await workers.running(token) != host
    await world.start(host)
    await world.settle()
    assert workers.runs.now[token] != host


@each_seed
async def test_a_planned_restart_moves_nothing(world: World) -> None:
    workers = await swarm(world)
    name = random.Random(world.seed).choice(NAMES)
    job_id, token, _ = await running_on(workers, lambda h: h == name, 90.0)
    await world.stop(name)
    await trio.sleep(45)
    assert workers.runs.now[token] == name
    # And takes nothing new meanwhile.
    _, other = await workers.submit(world.up()[0], 1.0)
    assert await workers.running(other) != name
    await world.start(name)
    await trio.sleep(60)
    assert [ran.how for ran in workers.runs.of(token)] == ["began", "exit"]
    view = await world.replica(name).read(ViewLeases())
    assert view.holds == ()
    assert (await workers.job(name, job_id)).status is JobStatus.COMPLETED


@each_seed
async def test_who_does_not_come_back_from_a_planned_restart_is_given_up(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    job_id, token, host = await running_on(workers, lambda h: h != leader, 600.0)
    stopped = trio.current_time()
    await world.stop(host)
    await trio.sleep(20)
    if world.seed % 2:
        await world.crash(leader)  # what the next leader knows of it is in the log
        await trio.sleep(1)
        await world.start(leader)
    await world.until(lambda: workers.runs.now.get(token) not in (host, None), 120, "moved")
    assert trio.current_time() - stopped > 60
    assert (await workers.job(leader, job_id)).recoveries == 1


@each_seed
async def test_a_job_that_may_be_cut_off_for_longer_moves_that_much_later(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    _, token, host = await running_on(workers, lambda h: h != leader, 100.0, disconnect_s=20.0)
    cut = trio.current_time()
    world.network.isolate(host)
    await trio.sleep(18)
    assert workers.runs.now[token] == host
    if world.seed % 2:
        world.network.heal()
        await trio.sleep(100)
        assert [ran.how for ran in workers.runs.of(token)] == ["began", "exit"]
        return
    await world.until(lambda: workers.runs.now.get(token) not in (host, None), 15, "moved")
    assert 22.5 < trio.current_time() - cut < 27


@each_seed
async def test_what_was_given_but_never_begun_goes_back_too(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    host = next(n for n in NAMES if n != leader)
    await workers.kill(host)
    # Its lease is not over: the scheduler still gives it work.
    tokens = [await workers.submit(leader, 2.0) for _ in range(6)]
    assigned = [(await workers.job(leader, i)).node_id for i, _ in tokens]
    assert NodeId(host) in assigned
    for _, token in tokens:
        await world.until(lambda t=token: bool(workers.runs.of(t)), 10, f"{token} begun")  # type: ignore[misc]


@simulated(31)
async def test_alone_nothing_runs_out_and_the_second_host_begins_leases(world: World) -> None:
    workers = Workers(world)
    await world.start("a")
    await world.leader()
    await workers.ready()
    _, token = await workers.submit("a", 1000.0)
    await workers.running(token)
    await trio.sleep(3)
    (hold,) = (await world.replica("a").read(ViewLeases())).holds
    assert hold.for_ms is None
    await world.crash("a")
    await trio.sleep(120)
    assert workers.runs.now[token] == "a"
    await world.start("a")
    await world.leader()
    for name in ("b", "c"):
        await world.start(name, join=("a",))

    def voting() -> bool:
        return len(world.replica("a").log_view().voters) == 3

    await world.until(voting, 20, "three voters")
    await trio.sleep(3)
    assert (await world.replica("a").read(ViewLeases())).holds == ()
    await world.crash("a")
    await world.until(lambda: workers.runs.now.get(token) in ("b", "c"), 10, "moved")


@simulated(32)
async def test_who_leaves_a_hold_without_end_behind_is_waited_for(world: World) -> None:
    """It fell between others joining and its own first lease that ends."""
    workers = await swarm(world)
    leader = await world.leader()
    _, token, host = await running_on(workers, lambda h: h != leader, 200.0)
    await world.crash(host)
    await world.propose(leader, HoldAttempts(NodeId(host), None))
    for job in workers.runners[host].running.values():
        job.lease_ns = float("inf")
    await trio.sleep(100)
    assert workers.runs.now[token] == host


@simulated(33)
async def test_a_stop_without_a_leader_takes_no_longer_than_it_may(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    _, _, host = await running_on(workers, lambda h: h != leader)
    for name in NAMES:
        if name != host:
            await world.crash(name)
    await trio.sleep(2.5)
    began = trio.current_time()
    await world.stop(host)
    assert trio.current_time() - began < 3


@simulated(34)
async def test_a_minority_gives_no_lease_and_starts_nothing(world: World) -> None:
    workers = await swarm(world)
    leader = await world.leader()
    world.network.isolate(leader)
    with pytest.raises(Unavailable):
        await world.replica(leader).propose(HoldAttempts(NodeId(leader), None), CLIENT)
    await world.leader(among=tuple(n for n in NAMES if n != leader))
    assert leader not in workers.runs.now.values()


@pytest.mark.parametrize("seed", range(100, 106))
def test_whatever_happens_nothing_runs_twice_at_once_and_all_of_it_ends(tmp_path, seed) -> None:  # type: ignore[no-untyped-def]
    async def body(world: World) -> None:
        workers = await swarm(world)
        rng = random.Random(seed)
        world.network.weather = Weather(delay_s=(0.001, 0.05), loss=0.02, doubled=0.05)
        jobs = []
        for _ in range(10):
            for _ in range(3):
                name = rng.choice(world.up())
                with trio.move_on_after(3):
                    jobs.append(await workers.submit(name, rng.uniform(0.5, 8.0)))
            struck = rng.choice(NAMES)
            match rng.choice(("crash", "kill", "isolate", "stop", "one way")):
                case "crash":
                    await world.crash(struck)
                case "kill":
                    await workers.kill(struck)
                case "stop":
                    await world.stop(struck)
                case "one way":
                    world.network.cut_one_way(struck, rng.choice([n for n in NAMES if n != struck]))
                case _:
                    world.network.isolate(struck)
            await trio.sleep(rng.uniform(0.1, 9.0))
            world.network.heal()
            if struck not in world.up():
                await world.start(struck)
            await trio.sleep(rng.uniform(0, 3.0))
        world.network.weather = Weather()
        await trio.sleep(60)
        await world.settle()
        for job_id, token in jobs:
            job = await workers.job("a", job_id)
            runs = workers.runs.of(token)
            assert job.status is JobStatus.COMPLETED, (job, runs)
            assert [ran.how for ran in runs].count("exit") >= 1
            completed = [a for a in job.attempts if a.status == "completed"]
            assert len(completed) == 1

    simulated(seed)(body)(tmp_path)
