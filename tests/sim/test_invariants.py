"""The invariants see what is wrong: each rule is broken once, and told."""

from __future__ import annotations

import sqlite3

import pytest

from mesh.raft import ConfState
from swarmd.cluster.snapshots import encode_conf
from swarmd.domain.actors import SYSTEM
from swarmd.domain.events import (
    AttemptStopped,
    Event,
    EventBody,
    JobAssigned,
    JobBlocked,
    JobEnded,
    JobReady,
    JobRequeued,
    JobRetrying,
    JobStarted,
    JobSubmitted,
)
from swarmd.domain.jobs import AttemptId, JobId, JobKind, JobStatus, NodeId
from swarmd.sim.invariants import Ledger, Observer, WatchedRuns, check_voters
from swarmd.sim.witness import Broken
from swarmd.sim.workers import Workers
from swarmd.sim.world import World
from swarmd.state.machine import Place
from swarmd.state.rules.leases import LOST
from swarmd.state.schema import migrate
from tests.sim.world import simulated

J, K, A, B = JobId("j"), JobId("k"), NodeId("a"), NodeId("b")


def submitted(job_id: JobId = J, ready: bool = True) -> EventBody:
    return JobSubmitted(job_id, JobKind.BINARY, ready)


def given(attempt: int = 1, job_id: JobId = J, node_id: NodeId = A) -> EventBody:
    return JobAssigned(job_id, AttemptId(attempt), node_id)


def started(attempt: int = 1, node_id: NodeId = A) -> EventBody:
    return JobStarted(J, AttemptId(attempt), node_id)


def requeued(attempt: int = 1) -> EventBody:
    return JobRequeued(J, AttemptId(attempt), "gone")


def stopped(attempt: int = 1, reason: str = "cancelled") -> EventBody:
    return AttemptStopped(J, AttemptId(attempt), A, reason)


def blocked(attempt: int | None = 1, why: str = "blocked") -> EventBody:
    return JobBlocked(J, None if attempt is None else AttemptId(attempt), why, 9)


def ended(status: JobStatus = JobStatus.COMPLETED, attempt: int | None = 1) -> EventBody:
    return JobEnded(J, status, None if attempt is None else AttemptId(attempt))


CANCELLED, FAILED = JobStatus.CANCELLED, JobStatus.FAILED
READY, RETRYING = JobReady(J), JobRetrying(J, AttemptId(1), 5)


def heed(ledger: Ledger, *bodies: EventBody, index: int = 1) -> None:
    for n, body in enumerate(bodies):
        ledger.heed(Event(n, 0, index + n, SYSTEM, body))


@pytest.mark.parametrize(
    "history",
    [
        (submitted(), given(), started(), ended()),
        (submitted(), given(), ended()),
        (submitted(ready=False), READY, given(), started(), RETRYING, READY, given(2),
         ended(attempt=2)),
        (submitted(), given(), started(), requeued(), given(2, node_id=B), started(2, B),
         ended(attempt=2)),
        (submitted(), given(), requeued(), ended(CANCELLED)),
        (submitted(ready=False), ended(FAILED, None)),
        (submitted(), given(), started(), blocked(), given(2, node_id=B), ended(attempt=2)),
        (submitted(), blocked(None), READY, given(), ended()),
        (submitted(), given(), blocked(why="aside"), ended(CANCELLED, None)),
    ],
)  # fmt: skip
def test_what_jobs_may_do_is_no_anomaly(history: tuple[EventBody, ...]) -> None:
    ledger = Ledger()
    heed(ledger, *history)
    assert not ledger.open


@pytest.mark.parametrize(
    ("history", "wrong"),
    [
        ((submitted(), submitted()), "submitted twice"),
        ((given(),), "nobody has submitted"),
        ((submitted(ready=False), given()), "is given to a, and is pending"),
        ((submitted(), READY), "made ready, and is ready"),
        ((submitted(), blocked(None, "aside"), given()), "is given to a, and is pending"),
        ((submitted(), blocked(None), READY, blocked(None), READY, READY), "and is ready"),
        ((submitted(), given(), blocked(2)), "is given back by attempt 2"),
        ((submitted(), given(), blocked(None)), "is blocked, and is assigned"),
        ((submitted(), given(), given(2, node_id=B)), "is given to b, and is assigned"),
        ((submitted(), given(2), requeued(2), given(2)), "attempt 2 comes after 2"),
        ((submitted(), given(), started(2)), "starts by attempt 2"),
        ((submitted(), given(), started(node_id=B)), "starts on b"),
        ((submitted(), given(), started(), started()), "starts on a, and is running"),
        ((submitted(), started()), "starts by attempt 1, and is ready"),
        ((submitted(), given(), requeued(2)), "is given back by attempt 2"),
        ((submitted(), given(), requeued(), requeued()), "is given back by attempt 1"),
        ((submitted(), ended()), "is completed by attempt 1, and is ready"),
        ((submitted(), given(), requeued(), given(2), ended()), "is completed by attempt 1"),
        ((submitted(), given(), ended(), ended()), "is completed, and was completed"),
        ((submitted(), given(), ended(CANCELLED), ended()), "is completed, and was cancelled"),
        ((submitted(), given(), ended(), requeued()), "is given back by attempt 1, and is comp"),
        ((submitted(), given(), requeued(), stopped()), "is stopped, and is over"),
        ((submitted(), given(), ended(CANCELLED), stopped()), "is stopped, and is over"),
    ],
)
def test_what_jobs_may_not_do_is_told(history: tuple[EventBody, ...], wrong: str) -> None:
    with pytest.raises(Broken, match=wrong):
        heed(Ledger(), *history)


def test_an_attempt_that_was_cancelled_is_stopped_by_the_same_entry() -> None:
    ledger = Ledger()
    heed(ledger, submitted(), given())
    for body in (ended(CANCELLED), stopped()):
        ledger.heed(Event(9, 0, 9, SYSTEM, body))


def test_a_device_has_one_holder() -> None:
    ledger = Ledger(devices_of=lambda attempt_id: ("a:gpu0",))
    heed(ledger, submitted(), submitted(K), given())
    with pytest.raises(Broken, match="a:gpu0 is given to attempt 2 and 1"):
        heed(ledger, given(2, K))
    ledger = Ledger(devices_of=lambda attempt_id: ("a:gpu0",))
    heed(ledger, submitted(), submitted(K), given(), requeued(), given(2, K))


async def test_what_runs_with_a_device_is_alone_with_it_on_the_machine() -> None:
    """The job before was cancelled, and has not ended yet."""
    observer = Observer()
    ledger, runs = observer.ledger, WatchedRuns(observer)
    ledger.devices_of = lambda attempt_id: ("a:gpu0",)
    observer.job_ids = {"j": "j", "k": "k"}
    heed(ledger, submitted(), submitted(K), given(), started())
    runs.began("j", "a")
    heed(ledger, ended(CANCELLED), given(2, K))
    with pytest.raises(Broken, match="k begins with a:gpu0, with which j still runs"):
        runs.began("k", "a")


async def test_work_is_taken_only_from_where_it_has_ended() -> None:
    observer = Observer()
    runs = WatchedRuns(observer)
    observer.job_ids = {"j": "j"}
    observer.ledger.devices_of = lambda attempt_id: ()
    heed(observer.ledger, submitted(), given(), started())
    runs.began("j", "a")
    with pytest.raises(Broken, match="j is taken from a, where it still runs"):
        heed(observer.ledger, stopped(reason=LOST))
    runs.ended("j", "lease")
    heed(observer.ledger, stopped(reason=LOST))


def test_tables_that_say_otherwise_than_the_events_are_told() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(conn)
    ledger = Ledger()
    ledger.compare(conn)
    heed(ledger, submitted())
    with pytest.raises(Broken, match="there are 0 jobs, and 1 by the events"):
        ledger.compare(conn)
    conn.execute(
        "INSERT INTO jobs(id, kind, tenant, type, priority, status, ready, shape, created_at,"
        " revision) VALUES ('j', 'binary', 'default', 't', 1, 'completed', 0, 1, 1, 1)"
    )
    with pytest.raises(Broken, match="j is completed in the table, and ready by its events"):
        ledger.compare(conn)


@pytest.mark.parametrize(
    ("conf", "wrong"),
    [
        (ConfState(voters=(1, 2, 3, 4, 5, 6)), "these vote"),
        (ConfState(voters=(1, 1)), "these vote"),
        (ConfState(), "nobody votes"),
    ],
)
async def test_a_strange_set_of_voters_is_told(conf: ConfState, wrong: str) -> None:
    observer = Observer()
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(conn)
    with pytest.raises(Broken, match=wrong):
        observer.applied("a", Place(3, 1, encode_conf(conf)), conn)


@simulated(seed=5)
async def test_the_observer_sees_all_of_what_befalls_real_jobs(world: World) -> None:
    observer = Observer()
    observer.watch(world)
    workers = Workers(world)
    observer.token_of = lambda job_id: job_id.removeprefix("job-")
    workers.runs = WatchedRuns(observer)
    await world.swarm_of("a", "b", "c")
    await workers.ready()
    tokens = [(await workers.submit("a", 2.0))[1] for _ in range(6)]
    for token in tokens:
        await workers.running(token)
    leader = await world.leader()
    await workers.kill(next(name for name in world.up() if name != leader))
    await world.until(lambda: not observer.ledger.open, 30, "the end of all")
    await world.settle()
    observer.ledger.compare(world.hosts[leader].disk.state)
    counts = observer.ledger.counts
    assert counts["JobSubmitted"] == counts["JobEnded"] == 6
    assert counts["JobRequeued"] == counts["JobAssigned"] - 6 > 0


@simulated(seed=6)
async def test_voters_that_are_not_as_many_as_are_wanted_are_told(world: World) -> None:
    await world.swarm_of("a", "b", "c")
    check_voters(world)
    leader = await world.leader()
    other = next(name for name in world.up() if name != leader)
    await world.replica(leader).change_members(learners=(NodeId(other),))
    with pytest.raises(Broken, match="3 are to vote"):
        check_voters(world)
