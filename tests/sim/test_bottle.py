"""Whole nodes in the bottle: they meet, part, come back and begin anew as real ones do."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import trio

from mesh.wal_errors import DiskFull, LogDamaged
from swarmd.cluster.handle import Hosted
from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.remote import Remote
from swarmd.cluster.replica import NotNewest, ReplicaSettings
from swarmd.domain.jobs import JobStatus
from swarmd.ops import jobs, swarm
from swarmd.sim.bottle import Bottle, Gone
from swarmd.sim.clients import USER, Clients, Habits, job_of
from swarmd.sim.faults import Fault
from swarmd.sim.harm import KINDS
from swarmd.sim.network import Weather
from swarmd.sim.node import NOBODY, Removed
from swarmd.sim.stage import Stage
from tests.sim.world import bottled, run_bottle

ROOT = Path(__file__).parent.parent.parent
THREE = OpeningSettings(replica=ReplicaSettings(replicas_max=3))
FIVE = ("a", "b", "c", "d", "e")


async def states(bottle: Bottle, name: str) -> dict[str, str]:
    """What this node says of all, by name."""
    status = await bottle.request(name, swarm.status)
    return {node.name: node.status for node in status.nodes}


async def seen(bottle: Bottle, by: str, of: str, state: str, within_s: float = 20.0) -> None:
    with trio.fail_after(within_s):
        while (await states(bottle, by)).get(of) != state:
            await trio.sleep(0.1)


async def use(bottle: Bottle, for_s: float, count: int = 3, **habits: float) -> Clients:
    """Clients for a while; then all of what they were promised is looked at."""
    clients = Clients(bottle, bottle.seed, Habits(**habits))  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run, count)
        await trio.sleep(for_s)
        clients.over.set()
    await clients.check()
    return clients


@bottled(1)
async def test_five_nodes_meet_and_their_jobs_end(bottle: Bottle) -> None:
    before = {*threading.enumerate()}
    await bottle.populate(*FIVE)
    for name in FIVE:
        with trio.fail_after(10):
            while set((await states(bottle, name)).values()) != {"alive"}:
                await trio.sleep(0.1)
    clients = await use(bottle, 30)
    assert len(clients.wanted) > 20
    await bottle.settle()
    assert not {*threading.enumerate()} - before, "no thread runs in here"


@bottled(2, THREE)
async def test_nodes_beyond_the_replicas_are_served_and_run_jobs(bottle: Bottle) -> None:
    await bottle.populate(*FIVE)
    remotes = [name for name in FIVE if isinstance(bottle.cluster(name), Remote)]
    assert len(remotes) == 2
    clients = await use(bottle, 30, 6)
    hosts = {ran.host for ran in bottle.runs.history}
    assert hosts == {*FIVE}
    assert {wanted.by for wanted in clients.wanted.values()} == {*FIVE}


@bottled(3)
async def test_a_host_without_power_is_dead_to_all_and_its_work_goes_on_elsewhere(
    bottle: Bottle,
) -> None:
    await bottle.populate(*FIVE)
    await trio.sleep(5)
    clients = Clients(bottle, 3, Habits(length_s=(4, 8)))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run, 12)
        await bottle.until(lambda: "e" in bottle.runs.now.values(), 30, "a job on e")
        await bottle.crash("e", power=True)
        await seen(bottle, "a", "e", "dead")
        await seen(bottle, "b", "e", "dead")
        await trio.sleep(10)
        await bottle.start("e")
        await seen(bottle, "a", "e", "alive")
        clients.over.set()
    await clients.check()
    assert "died" in {ran.how for ran in bottle.runs.history}


@bottled(4)
async def test_a_dead_voter_gives_its_vote_to_a_learner_by_itself(bottle: Bottle) -> None:
    await bottle.populate(*FIVE)
    leader = await bottle.leader()
    view = bottle.replica(leader).log_view()
    voters = {bottle.name_of(voter) for voter in view.voters}
    assert len(voters) == 3
    victim = next(name for name in sorted(voters) if name != leader)
    await bottle.crash(victim, power=True)

    def replaced() -> bool:
        view = bottle.replica(leader).log_view()
        now = {bottle.name_of(voter) for voter in view.voters}
        return victim not in now and len(now) == 3

    await bottle.until(replaced, 20, "another voter")


@bottled(5)
async def test_a_node_leaves_and_its_host_joins_again_as_another(bottle: Bottle) -> None:
    await bottle.populate(*FIVE[:4])
    before = bottle.machine("d").id
    await bottle.leave("d")
    assert "d" not in await states(bottle, "a")
    await bottle.start("d", join=("a", "b"))
    await seen(bottle, "a", "d", "alive")
    assert bottle.machine("d").id not in ("", before)
    await use(bottle, 10)


@bottled(5)
async def test_leaders_that_leave_one_after_the_other_pass_on_a_vote_each(bottle: Bottle) -> None:
    """Another votes before the leader hands over, and nobody besides once it goes."""
    await bottle.populate(*FIVE)

    def votes(learners: int) -> bool:
        view = bottle.replica(bottle.leaders()[0]).log_view() if bottle.leaders() else None
        return view is not None and not view.joint and (3, learners) == (
            len(view.voters), len(view.learners)
        )  # fmt: skip

    for _ in range(3):
        leader = await bottle.leader()
        await bottle.leave(leader)
        await bottle.until(lambda: votes(1), 20, "three of four that vote")
        await bottle.start(leader, join=[name for name in FIVE if name != leader])
        await bottle.until(lambda: votes(2), 20, "three of five that vote")


@bottled(6)
async def test_a_node_that_is_removed_ends_and_is_let_in_no_more(bottle: Bottle) -> None:
    await bottle.populate(*FIVE[:4])
    await bottle.remove("d", by="b", force=True)
    host = bottle.machine("d")
    with trio.fail_after(20):
        await host.ended.wait()
    assert isinstance(host.refused, Removed)
    assert "d" not in await states(bottle, "a")


@bottled(7)
async def test_a_process_that_is_stopped_is_suspected_and_comes_back(bottle: Bottle) -> None:
    await bottle.populate(*FIVE)
    await trio.sleep(5)
    leader = await bottle.leader()
    clients = Clients(bottle, 7)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run, 4)
        await trio.sleep(3)
        await bottle.freeze(leader, 12)
        others = tuple(name for name in FIVE if name != leader)
        assert await bottle.leader(among=others) != leader
        await seen(bottle, others[0], leader, "alive")
        await trio.sleep(3)
        clients.over.set()
    await clients.check()
    await bottle.settle()


@bottled(8)
async def test_a_process_is_killed_while_it_is_stopped(bottle: Bottle) -> None:
    await bottle.populate(*FIVE[:3])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bottle.freeze, "b", 30)
        await trio.sleep(4)
        await bottle.crash("b")
        await bottle.start("b")
    await seen(bottle, "a", "b", "alive")
    await bottle.settle()


@bottled(9)
async def test_a_full_disk_ends_the_process_until_there_is_room(bottle: Bottle) -> None:
    await bottle.populate(*FIVE[:3])
    disk = bottle.machine("c").disk
    disk.full = True
    clients = Clients(bottle, 9)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run, 3)
        await bottle.until(lambda: bool(bottle.machine("c").ends), 20, "its end")
        await trio.sleep(12)
        assert len(bottle.machine("c").ends) > 1
        assert all(isinstance(end, DiskFull) for _, end in bottle.machine("c").ends)
        disk.full = False
        await bottle.until(lambda: bottle.machine("c").cluster is not None, 20, "its return")
        clients.over.set()
    await clients.check()
    await bottle.settle()


@bottled(18)
async def test_a_host_that_is_struck_while_it_joins_asks_again(bottle: Bottle) -> None:
    """Nobody has removed it, and it has an id by then: its unit has the same words as before."""
    await bottle.populate("a", "b", "c")
    stage = Stage(bottle, KINDS)

    async def strike() -> None:
        await bottle.until(lambda: "d" in bottle.hosts, 10, "it begins")
        bottle.machine("d").disk.full = True
        await bottle.until(lambda: bottle.machine("d").id != NOBODY, 10, "it has an id")
        await trio.sleep(3)
        assert "d" not in bottle.there()
        bottle.machine("d").disk.full = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(strike)
        with trio.fail_after(60):
            await stage.start("d")
    assert "d" in bottle.there()


@bottled(39)
async def test_a_host_whose_copy_is_of_before_it_knew_anybody_is_set_up_anew(
    bottle: Bottle,
) -> None:
    """Another proves to it that it has lost what it acknowledged, and it has nobody to join by: it
    says so at each start, until somebody moves its data away."""
    await bottle.populate("a", "b", "c")
    stage = Stage(bottle, KINDS)
    await stage.start("d")
    before, replica = bottle.machine("d").id, bottle.replica("d")
    assert not replica.members and not replica.introduced.is_set()
    fault = Fault(0.0, "put-back", "d", for_s=3.0, how={"state": 1.0})
    with trio.fail_after(60):
        assert await KINDS["put-back"].strike(stage, fault)
    ends = [end for _, end in bottle.machine("d").ends]
    assert any(isinstance(end, NotNewest) and not end.seeds for end in ends), ends
    assert bottle.machine("d").id not in ("", before)
    await bottle.until(lambda: bottle.replica("d").introduced.is_set(), 20, "it is in again")
    await bottle.settle()


@bottled(10)
async def test_a_damaged_log_is_refused_and_its_host_joins_as_a_new_node(bottle: Bottle) -> None:
    await bottle.populate(*FIVE[:4])
    before = bottle.machine("d").id
    await bottle.crash("d", power=True)
    bottle.machine("d").disk.damage(bottle.rng)
    with pytest.raises(LogDamaged):
        await bottle.start("d")
    bottle.wipe("d")
    await seen(bottle, "a", "d", "dead")
    await bottle.start("d", join=("a",))
    assert bottle.machine("d").id != before
    await seen(bottle, "a", "d", "alive")


@bottled(11)
async def test_an_older_copy_put_back_makes_another_node_of_the_host(bottle: Bottle) -> None:
    """By itself, as the daemon does it; what it had is set aside."""
    await bottle.populate(*FIVE[:4])
    before = bottle.machine("d").id
    image = bottle.machine("d").disk.image()
    await use(bottle, 15)
    await bottle.crash("d")
    bottle.machine("d").disk.put_back(image, state=False)
    await bottle.start("d")
    after = bottle.machine("d").id
    assert after != before
    await seen(bottle, "a", "d", "alive")
    assert before not in bottle.cluster("a").members
    await use(bottle, 5)


@bottled(12)
async def test_clogged_ways_and_bad_weather_lose_nothing(bottle: Bottle) -> None:
    await bottle.populate(*FIVE)
    network = bottle.network
    network.links["a", "b"] = Weather((0.02, 0.2), loss=0.2, doubled=0.2)
    clients = Clients(bottle, 12)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(clients.run, 4)
        for one, other in (("a", "c"), ("b", "d"), ("e", "a")):
            network.clog(one, other)
            await trio.sleep(3)
            network.unclog()
            await trio.sleep(3)
        clients.over.set()
    network.links.clear()
    await clients.check()
    await bottle.settle()


@bottled(13)
async def test_clocks_that_drift_move_no_work(bottle: Bottle) -> None:
    """A twentieth is beyond any crystal, and within what the leases allow for."""
    await bottle.populate(*FIVE[:3])
    bottle.drift("b", +50_000)
    bottle.drift("c", -50_000)
    await use(bottle, 40)
    assert {ran.how for ran in bottle.runs.history} <= {"began", "exit", "stopped"}


@bottled(14)
async def test_a_request_ends_with_its_node(bottle: Bottle) -> None:
    await bottle.populate(*FIVE[:3])
    job = await bottle.request("b", lambda c: jobs.submit(c, USER, job_of("t", 1.0)))
    assert job.status is JobStatus.PENDING
    async with trio.open_nursery() as nursery:

        async def sleep(cluster: Hosted) -> None:
            await trio.sleep_forever()

        async def hang() -> None:
            with pytest.raises(Gone):
                await bottle.request("b", sleep)

        nursery.start_soon(hang)
        await trio.sleep(1)
        await bottle.crash("b")
    with pytest.raises(Gone):
        await bottle.request("b", swarm.status)


# The same seed


def fingerprint(seed: int, place: Path) -> str:
    """Of a run in which much happens."""
    found = ""

    async def body(bottle: Bottle) -> None:
        nonlocal found
        await bottle.populate("a", "b", "c", "d")
        clients = Clients(bottle, seed)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(clients.run, 3)
            await trio.sleep(3)
            await bottle.freeze("b", 3)
            await bottle.crash("c", power=True)
            await trio.sleep(2)
            await bottle.start("c")
            bottle.network.isolate("a")
            await trio.sleep(4)
            bottle.network.heal()
            bottle.network.clog("b", "c")
            await trio.sleep(2)
            bottle.network.unclog()
            await bottle.leave("d")
            await bottle.start("d", join=("a", "b"))
            await trio.sleep(2)
            clients.over.set()
        await clients.check()
        kinds = {kind for kind, _ in bottle.network.kinds}
        assert {"datagram", "message", "remote.session", "snapshot"} <= kinds, kinds
        found = bottle.fingerprint()

    settings = OpeningSettings(replica=ReplicaSettings(replicas_max=3))
    run_bottle(seed, place, body, settings)
    return found


def test_the_same_seed_is_the_same_run_of_whole_nodes(tmp_path: Path) -> None:
    found = set()
    for hash_seed in ("0", "4711"):
        (tmp_path / hash_seed).mkdir()
        program = (
            "import sys; from pathlib import Path; from tests.sim.test_bottle import fingerprint;"
            "print(fingerprint(42, Path(sys.argv[1])))"
        )
        ran = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / hash_seed)],
            cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hash_seed}, timeout=120, check=True,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        found.add(ran.stdout.strip())
    assert len(found) == 1
