"""A swarm of one through its four verbs: real file, real thread, real fsync."""

from __future__ import annotations

import itertools
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmd.cluster.asks import Beat, ListBeats
from swarmd.cluster.feed import BACKLOG_MAX, FellBehind
from swarmd.cluster.handle import LEADER
from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.proposals import ProposalSettings
from swarmd.cluster.replica import Replica, ReplicaSettings
from swarmd.control.presence import SILENCE_S, Presence
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, NotFound, TooLarge, Unavailable
from swarmd.domain.events import JobSubmitted
from swarmd.domain.jobs import Fetch, Job, JobId, JobSpec, JobStatus, NodeId
from swarmd.domain.nodes import Capacity, Node
from swarmd.ops import explain, jobs, waiting
from swarmd.state import queries as q
from swarmd.state.commands import NewJob, PutSetting, SubmitJobs
from tests.cluster import open_alone

ME = Actor("t", "test")
SPEC = JobSpec("t", Fetch("http://h/b", "a" * 64))
Opened = Callable[..., AbstractAsyncContextManager[Replica]]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    ids = itertools.count()
    clock = itertools.count(1_000_000, 10)

    @asynccontextmanager
    async def opening(
        settings: OpeningSettings | None = None, now_ms: Callable[[], int] | None = None
    ) -> AsyncIterator[Replica]:
        node = Node(NodeId("n1"), "one", capacity=Capacity(2, 2.0, 1000))
        async with open_alone(
            tmp_path,
            node,
            settings=settings,
            now_ms=now_ms or (lambda: next(clock)),
            new_id=lambda: f"id-{next(ids)}",
        ) as cluster:
            yield cluster

    return opening


async def test_what_was_acknowledged_is_there_after_reopening(opened: Opened) -> None:
    async with opened() as cluster:
        job = await jobs.submit(cluster, ME, SPEC)
        identity = cluster.cluster_id
    async with opened() as cluster:
        assert (await jobs.find(cluster, job.id)).created_at == job.created_at
        assert cluster.cluster_id == identity


async def test_those_who_wait_together_share_a_commit_and_keep_their_order(opened: Opened) -> None:
    async with opened() as cluster:
        got: list[Job] = []

        async def one() -> None:
            got.append(await jobs.submit(cluster, ME, SPEC))

        async with trio.open_nursery() as nursery:
            for _ in range(200):
                nursery.start_soon(one)
        assert sorted(job.seq for job in got) == list(range(1, 201))
        listed = await jobs.list_jobs(cluster, jobs.JobFilter(limit=200))
        assert [job.seq for job in listed] == list(range(200, 0, -1))


async def test_time_never_goes_backwards(opened: Opened) -> None:
    times = itertools.cycle([5000, 9000, 100, 7000, 9500])
    async with opened(now_ms=lambda: next(times)) as cluster:
        created = [(await jobs.submit(cluster, ME, SPEC)).created_at for _ in range(4)]
    assert created == sorted(created)


async def test_a_cancelled_proposal_is_applied_all_the_same(opened: Opened) -> None:
    async with opened() as cluster:
        with trio.move_on_after(0):
            await cluster.propose(PutSetting("k", b"v"), ME)
        await cluster.propose(PutSetting("other", b"v"), ME)
        assert await cluster.read(q.GetSetting("k")) == b"v"


async def test_a_refusal_reaches_who_proposed(opened: Opened) -> None:
    async with opened() as cluster:
        job = await jobs.submit(cluster, ME, SPEC)
        await jobs.cancel(cluster, ME, job.id)
        with pytest.raises(Conflict):
            await jobs.cancel(cluster, ME, job.id)
        with pytest.raises(NotFound):
            await jobs.cancel(cluster, ME, "nobody")


async def test_more_than_the_bound_in_flight_is_refused_at_once(opened: Opened) -> None:
    bounded = OpeningSettings(replica=ReplicaSettings(proposals=ProposalSettings(in_flight_max=3)))
    async with opened(bounded) as cluster:
        refused = 0

        async def one() -> None:
            nonlocal refused
            try:
                await cluster.propose(PutSetting("k", b"v"), ME)
            except Busy as busy:
                assert busy.retry_after_s >= 1
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(one)
        assert 0 < refused < 50


async def test_an_entry_over_its_bound_is_refused(opened: Opened) -> None:
    async with opened() as cluster:
        with pytest.raises(TooLarge, match="blob"):
            await cluster.propose(PutSetting("k", bytes(300_000)), ME)
        assert await cluster.read(q.GetSetting("k")) is None


async def test_a_watch_resumes_after_the_event_it_names(opened: Opened) -> None:
    async with opened() as cluster:
        async with cluster.watch() as live:
            first = await jobs.submit(cluster, ME, SPEC)
            event = await anext(live)
            assert isinstance(event.body, JobSubmitted) and event.body.job_id == first.id
        second = await jobs.submit(cluster, ME, SPEC)
        async with cluster.watch(after=event.seq) as resumed:
            third = await jobs.submit(cluster, ME, SPEC)
            bodies = [(await anext(resumed)).body for _ in range(2)]
        assert [b.job_id for b in bodies if isinstance(b, JobSubmitted)] == [second.id, third.id]


async def test_a_watch_from_the_past_misses_nothing_that_comes_meanwhile(opened: Opened) -> None:
    async with opened() as cluster:
        for _ in range(600):  # more than one page of the past
            await jobs.submit(cluster, ME, SPEC)
        seen: list[int] = []
        async with cluster.watch(after=0) as events:
            async for event in events:
                seen.append(event.seq)
                if len(seen) in (5, 510):
                    await jobs.submit(cluster, ME, SPEC)
                if isinstance(event.body, JobSubmitted) and event.body.job_id == "id-602":
                    break
        assert seen == list(range(seen[0], seen[0] + len(seen)))


async def test_a_slow_subscriber_is_dropped_and_told(opened: Opened) -> None:
    async with opened() as cluster, cluster.watch() as events:
        specs = [NewJob(JobId(f"j{i}"), SPEC) for i in range(BACKLOG_MAX + 100)]
        for start in range(0, len(specs), 100):
            await cluster.propose(SubmitJobs(tuple(specs[start : start + 100])), ME)
        taken = 0
        with pytest.raises(FellBehind):
            async for _ in events:
                taken += 1
        assert taken == BACKLOG_MAX


async def test_a_disk_that_refuses_ends_the_process_and_acknowledges_nothing(
    opened: Opened, tmp_path: Path
) -> None:
    with pytest.RaisesGroup(sqlite3.Error, flatten_subgroups=True, allow_unwrapped=True):
        async with opened() as cluster:
            await jobs.submit(cluster, ME, SPEC)
            other = sqlite3.connect(tmp_path / "state.db")
            other.execute("DROP TABLE job_specs")
            other.close()
            with trio.fail_after(10):
                await jobs.submit(cluster, ME, SPEC)
            raise AssertionError("acknowledged")


async def test_a_state_of_a_newer_version_is_left_alone(opened: Opened, tmp_path: Path) -> None:
    async with opened() as cluster:
        await jobs.submit(cluster, ME, SPEC)
    db = sqlite3.connect(tmp_path / "state.db")
    db.execute("INSERT INTO _sqlite_migrations VALUES (99, 'swarmd', 'future', 'now')")
    db.commit()
    db.close()
    with pytest.RaisesGroup(pytest.RaisesExc(Unavailable, match="newer"), flatten_subgroups=True):
        async with opened():
            pass


async def test_a_file_that_is_no_database_is_named(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(os.urandom(8192))
    with pytest.RaisesGroup(
        pytest.RaisesExc(Unavailable, match=r"state\.db"), flatten_subgroups=True
    ):
        async with opened():
            pass


async def test_silence_is_counted_from_the_last_sign_of_life(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened() as cluster:
        now = 100.0
        monkeypatch.setattr(trio, "current_time", lambda: now)
        presence = Presence(cluster)
        cluster.answers(Beat, presence.beat)
        cluster.answers(ListBeats, presence.list_beats)
        job = await jobs.submit(cluster, ME, SPEC)
        assert await jobs.claim(cluster, ME, "e1", "h") is not None
        claims = await cluster.read(q.ListClaims())
        assert presence.silent(claims) == ()
        now += SILENCE_S - 1
        await jobs.beat(cluster, "e1", job.id)
        now += SILENCE_S - 1
        assert presence.silent(claims) == ()
        now += 2
        assert presence.silent(claims) == (claims[0].attempt_id,)
        for executor, job_id in (("e2", job.id), ("e1", "nobody")):
            with pytest.raises(NotFound):
                await jobs.beat(cluster, executor, job_id)
        assert [b.executor for b in await cluster.ask(LEADER, ListBeats())] == ["e1"]
        now += 30
        assert await cluster.ask(LEADER, ListBeats()) == []


async def test_waiting_for_an_end_wakes_on_the_event_and_gives_up_in_time(opened: Opened) -> None:
    async with opened() as cluster:
        job = await jobs.submit(cluster, ME, SPEC)
        assert (await waiting.ended(cluster, job.id, 0.01)).status is JobStatus.PENDING
        got: list[Job] = []

        async def wait() -> None:
            got.append(await waiting.ended(cluster, job.id, 60))

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await jobs.cancel(cluster, ME, job.id)
        assert got[0].status is JobStatus.CANCELLED


async def test_explain_says_what_a_job_waits_for(opened: Opened) -> None:
    from swarmd.state.commands import PutNode

    async with opened() as cluster:
        await cluster.propose(PutNode(cluster.node), ME)
        first = await jobs.submit(cluster, ME, SPEC)
        later = JobSpec("t", SPEC.source, depends_on=(first.id,))
        second = await jobs.submit(cluster, ME, later)
        said = await explain.explain(cluster, second.id)
        assert first.id in said.summary and said.waits_for
        from swarmd.domain.jobs import Constraint, Resources

        big = JobSpec(
            "t", SPEC.source, resources=Resources(gpus=1),
            constraints=(Constraint.parse("node.labels.disk==ssd"),),
        )  # fmt: skip
        third = await jobs.submit(cluster, ME, big)
        said = await explain.explain(cluster, third.id)
        (verdict,) = said.nodes
        assert not verdict.can_run
        assert "disk==ssd" in verdict.reasons[0] and "1 gpus" in verdict.reasons[1]
        assert (await explain.explain(cluster, first.id)).summary.startswith("can run now")


async def test_a_watch_from_before_what_is_kept_is_told(opened: Opened) -> None:
    from swarmd.state.commands import PruneEvents

    async with opened() as cluster:
        for _ in range(20):
            await jobs.submit(cluster, ME, SPEC)
        await cluster.propose(PruneEvents(5, 100, cluster.leadership().term), ME)
        with pytest.raises(FellBehind, match="no longer kept") as told:
            async with cluster.watch(after=1) as events:
                await anext(events)
        async with cluster.watch(after=int(str(told.value.facts["oldest"])) - 1) as events:
            assert (await anext(events)).seq == told.value.facts["oldest"]
