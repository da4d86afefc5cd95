"""What agents owe the swarm: a device is for one at a time, on the machine as on paper; and an end
is told, whatever happened to the node meanwhile."""

from __future__ import annotations

import trio

from swarmd.domain.jobs import Installed, JobId, JobSpec, JobStatus, Resources
from swarmd.domain.nodes import Capacity
from swarmd.sim.invariants import Observer, WatchedRuns
from swarmd.sim.workers import SLOTS, Workers
from swarmd.sim.world import World
from swarmd.state.commands import CancelJobs, NewJob, SubmitJobs
from tests.sim.world import simulated


@simulated(seed=3)
async def test_the_next_with_a_device_begins_when_the_one_that_was_cancelled_has_ended(
    world: World,
) -> None:
    observer = Observer()
    observer.watch(world)
    workers = Workers(world)
    workers.runs = WatchedRuns(observer)
    world.capacity = Capacity(SLOTS, 4.0, 1 << 30, ("gpu0",))
    await world.swarm_of("a")
    await workers.ready()

    async def submit(token: str, length_s: float) -> None:
        spec = JobSpec(
            "t", Installed("sleep"), arguments=(token, str(length_s)), resources=Resources(gpus=1)
        )
        await world.propose("a", SubmitJobs((NewJob(JobId(token), spec),)))

    await submit("first", 60.0)
    await workers.running("first")
    await submit("next", 1.0)
    await world.propose("a", CancelJobs((JobId("first"),)))
    cancelled = trio.current_time()
    assert await workers.running("next") == "a"
    assert trio.current_time() - cancelled > 4, "it heeds no SIGTERM, and has a grace of 5 s"
    assert [ran.how for ran in workers.runs.of("first")] == ["began", "stopped"]
    await world.until(lambda: not observer.ledger.open, 10, "the end of both")
    assert (await workers.job("a", JobId("next"))).status is JobStatus.COMPLETED


@simulated(seed=4)
async def test_an_end_is_told_though_the_state_has_forgotten_the_beginning(world: World) -> None:
    """The power failed after the runner had an end on disk, and before the state had the job."""
    workers = Workers(world)
    await world.swarm_of("a", "b", "c")
    await workers.ready()
    leader = await world.leader()
    while True:
        job_id, token = await workers.submit(leader, 1.0)
        if (host := await workers.running(token)) != leader:
            break
    await trio.sleep(0.3)
    await world.crash(host)
    disk = world.hosts[host].disk
    known = disk.state.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,))
    assert known.fetchone()
    disk.lose_power()
    known = disk.state.execute("SELECT 1 FROM jobs WHERE id = ?", (job_id,))
    assert not known.fetchone(), "the state is from before the job"
    await trio.sleep(1)
    assert token not in workers.runs.now
    await world.start(host)
    await trio.sleep(6)
    job = await workers.job(leader, job_id)
    assert (job.status, len(job.attempts)) == (JobStatus.COMPLETED, 1), job
    assert [ran.how for ran in workers.runs.of(token)] == ["began", "exit"]
