"""A node's bench: what the end of a build comes to, and what is handed in of it."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmd.agent.attempts import NOT_A_BUILDER, Attempts, AttemptsSettings, open_attempts
from swarmd.agent.binaries import Binaries
from swarmd.agent.blobs import BlobStore
from swarmd.agent.building import HAND_IN_S_MAX, Bench, Builds, Verdict
from swarmd.agent.launch import Account
from swarmd.cluster.asks import RenewLease
from swarmd.cluster.replica import Replica
from swarmd.control.leases import Leases
from swarmd.domain.actors import SYSTEM
from swarmd.domain.builds import Outcome
from swarmd.domain.errors import Busy, Conflict, Invalid, SwarmError, TooLarge, Unavailable
from swarmd.domain.jobs import (
    Attempt,
    AttemptId,
    AttemptStatus,
    Installed,
    Job,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
)
from swarmd.domain.nodes import Capacity, Node
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.portage import PortageSettings
from swarmd.drivers.process import RunnerSettings, open_runner
from swarmd.state.build_commands import PutBuilder, TakeBuilds
from swarmd.state.commands import VERSION, NewJob, PutNode, RaiseVersion, SubmitJobs
from swarmd.state.queries import Duty, FindJob
from tests.cluster import open_alone
from tests.drivers.runners import data_directory

PACKAGE = "app-misc/hello-1.0"
FILE = "app-misc/hello/hello-1.0-1.gpkg.tar"
SPEC = JobSpec(PACKAGE, Installed("emerge"), kind=JobKind.PACKAGE)
BUILT = Verdict(AttemptStatus.COMPLETED, None, Outcome.BUILT)


class Desk:
    """It takes what it is given, after it has refused for a while."""

    def __init__(self, refusal: SwarmError | OSError | None = None, times: float = 0) -> None:
        self.refusal, self.times = refusal, times
        self.taken: list[str] = []

    async def hand_in(self, path: str, file: Path) -> None:
        if self.refusal is not None and self.times > 0:
            self.times -= 1
            raise self.refusal
        assert file.name.startswith("hello")
        self.taken.append(path)


def duty(number: int = 1, package: str = PACKAGE) -> Duty:
    spec = JobSpec(package, SPEC.source, kind=JobKind.PACKAGE)
    attempt = Attempt(
        AttemptId(number), JobId("j"), NodeId("n"), False, "", AttemptStatus.RUNNING, 0
    )
    return Duty(attempt, spec)


def ended(reason: str = "exit", exit_code: int | None = 0) -> Ended:
    return Ended(1, reason, exit_code=exit_code, started_boottime_ns=1, ended_boottime_ns=2)


@pytest.fixture
def lay(tmp_path: Path) -> Callable[[Desk], Bench]:
    def bench(desk: Desk) -> Bench:
        settings = PortageSettings(build_timeout_s=3600.0)
        return Bench(tmp_path / "builder", settings, desk, grace_s=1.0, log_bytes_max=1 << 20)

    return bench


async def end(bench: Bench, place: Path, how: Ended, *, built: bool = True) -> Verdict:
    """Of a build that printed something and left a package."""
    await bench.keep_only(())
    order = await bench.order(duty(), place, (3000, 1))
    assert (order.id, order.dir, order.lease_ms, order.uid) == (1, str(place), 3000, None)
    leave(place, built)
    return await bench.end(duty(), place, how)


def leave(place: Path, built: bool) -> None:
    place.mkdir(exist_ok=True)
    (place / "stdout").write_bytes(b"emerge: it is not there\n")
    if built:
        file = place.parent / "builder" / "1.staging" / "packages" / FILE
        file.parent.mkdir(parents=True)
        file.write_bytes(b"p" * 2000)


async def test_what_was_built_is_handed_in_as_soon_as_it_is_taken(
    lay: Callable[[Desk], Bench], tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    desk = Desk(Unavailable("full"), 3)
    assert await end(lay(desk), tmp_path / "a", ended()) == BUILT
    assert desk.taken == [FILE]
    assert trio.current_time() == 2 + 4 + 8


@pytest.mark.parametrize(
    ("refusal", "status", "outcome"),
    [
        (Unavailable("nobody signs"), AttemptStatus.FAILED, Outcome.NOT_UPLOADED),
        (Busy("full"), AttemptStatus.FAILED, Outcome.NOT_UPLOADED),
        (OSError("no such file"), AttemptStatus.FAILED, Outcome.NOT_UPLOADED),
        # So it comes out of each build of it: if that counted not, it would be built for ever.
        (Invalid("of the old format"), AttemptStatus.FAILED, Outcome.FAILED),
        (TooLarge("at most 10 bytes"), AttemptStatus.FAILED, Outcome.FAILED),
        (Conflict("it is another's"), AttemptStatus.REVOKED, None),
    ],
)
async def test_what_is_not_taken_was_not_built(
    lay: Callable[[Desk], Bench], tmp_path: Path, autojump_clock: trio.testing.MockClock,
    refusal: SwarmError | OSError, status: AttemptStatus, outcome: Outcome | None,
) -> None:  # fmt: skip
    verdict = await end(lay(Desk(refusal, 1e9)), tmp_path / "a", ended())
    assert verdict == Verdict(status, str(refusal), outcome)
    limit_s = HAND_IN_S_MAX + 30 if isinstance(refusal, (Busy, Unavailable)) else 0
    assert trio.current_time() <= limit_s


async def test_an_end_that_is_none_is_no_package_s_fault(
    lay: Callable[[Desk], Bench], tmp_path: Path
) -> None:
    bench = lay(Desk())
    for number, how in enumerate((ended("stopped", None), ended("start_failed", None)), 1):
        assert (await end(bench, tmp_path / "a", how)).status is AttemptStatus.REVOKED
        assert (bench.unfinished, bench.doubted.is_set()) == (number, False)
    for reason in ("lease", "lost"):
        assert (await end(bench, tmp_path / "a", ended(reason, None))).status is AttemptStatus.LOST
    gone = await end(bench, tmp_path / "a", ended("exit", 127))
    assert gone.status is AttemptStatus.REVOKED and "cannot be run" in (gone.error or "")
    assert bench.doubted.is_set()
    assert await end(bench, tmp_path / "a", ended()) == BUILT
    assert bench.unfinished == 0


async def test_success_without_a_package_is_none(
    lay: Callable[[Desk], Bench], tmp_path: Path
) -> None:
    bench = lay(Desk())
    nothing = await end(bench, tmp_path / "a", ended(), built=False)
    assert (nothing.status, nothing.outcome) == (AttemptStatus.FAILED, Outcome.FAILED)
    assert "left no package" in (nothing.error or "") and "it is not there" in (nothing.error or "")
    late = await end(bench, tmp_path / "a", ended("timeout", None))
    assert (late.error or "").startswith("the build did not end within 3600 s")
    assert [path.name for path in (tmp_path / "builder" / "failed").iterdir()]


async def test_what_cannot_be_begun_is_told_apart(
    lay: Callable[[Desk], Bench], tmp_path: Path
) -> None:
    bench = lay(Desk())
    with pytest.raises(Invalid, match="version"):
        await bench.order(duty(1, "app-misc/nameless"), tmp_path / "a", (None, None))
    (tmp_path / "builder").write_text("in the way")
    await bench.keep_only(())
    with pytest.raises(OSError):
        await bench.order(duty(), tmp_path / "a", (None, None))


async def test_what_nobody_needs_is_cleared_away(
    lay: Callable[[Desk], Bench], tmp_path: Path
) -> None:
    bench = lay(Desk())
    await bench.keep_only(())
    for number in (1, 2, 3):
        await bench.order(duty(number), tmp_path / "a", (None, None))
    await bench.keep_only([AttemptId(1), AttemptId(2)])
    await bench.forget([AttemptId(2)])
    assert [path.name for path in (tmp_path / "builder").iterdir()] == ["1.staging"]


@asynccontextmanager
async def node_with(*names: str, bench: Builds | None) -> AsyncIterator[tuple[Replica, Attempts]]:
    """A swarm of one, which holds these packages."""
    node = Node(NodeId("n1"), "one", capacity=Capacity(2, 2.0, 1000), machine_version=VERSION)
    ids, clock = itertools.count(1), itertools.count(1_000_000)
    settings = AttemptsSettings(
        slots=2, account=Account("own"), grace_s=0.1, log_bytes_max=1 << 20,
        logs_total_bytes_max=1 << 30,
    )  # fmt: skip
    with trio.fail_after(30), data_directory() as folder:
        (folder / "attempts").mkdir()
        async with (
            open_alone(folder, node, now_ms=lambda: next(clock),
                       new_id=lambda: f"id-{next(ids)}") as cluster,
            open_runner(folder, RunnerSettings(slots=2, idle_s=1)) as runner,
        ):  # fmt: skip
            store = BlobStore(folder / "blobs", bytes_max=1 << 20)
            await cluster.propose(PutNode(node), SYSTEM)
            term = cluster.leadership().term
            await cluster.propose(RaiseVersion(VERSION, term), SYSTEM)
            while cluster.cluster_version() < VERSION:
                await trio.sleep(0.01)
            await cluster.propose(PutBuilder(node.id, True, ""), SYSTEM)
            jobs = tuple(NewJob(JobId(name), spec_of(name)) for name in names)
            await cluster.propose(SubmitJobs(jobs), SYSTEM)
            taken: tuple[Job, ...] = await cluster.propose(TakeBuilds(node.id, 8), SYSTEM)
            assert len(taken) == len(names)
            leases = Leases(cluster, term)
            cluster.answers(RenewLease, leases.renew)
            attempts = Attempts(
                cluster, runner, Binaries(folder / "binaries", store, bytes_max=1 << 20),
                folder / "attempts", settings, False, builds=bench,
            )  # fmt: skip
            async with open_attempts(attempts):
                yield cluster, attempts


def spec_of(package: str) -> JobSpec:
    return JobSpec(package, SPEC.source, kind=JobKind.PACKAGE)


async def job_when(
    cluster: Replica, package: str, status: JobStatus
) -> tuple[Job, list[tuple[AttemptStatus, str | None]]]:
    while True:
        job = await cluster.read(FindJob(JobId(package)))
        assert job is not None
        if job.status is status:
            return job, [(a.status, a.error) for a in job.attempts]
        await trio.sleep(0.01)


class Sleepers(Bench):
    """What it builds takes longer than anybody waits."""

    async def order(
        self, duty: Duty, directory: Path, lease: tuple[int | None, int | None]
    ) -> AttemptOrder:
        return AttemptOrder(duty.attempt.id, str(directory), ("/bin/sleep", "60"))


async def test_a_node_that_builds_no_more_gives_back_what_it_holds() -> None:
    async with node_with("a/b-1", bench=None) as (cluster, _):
        job, attempts = await job_when(cluster, "a/b-1", JobStatus.PENDING)
        assert job.failures == 0 and attempts == [(AttemptStatus.REVOKED, NOT_A_BUILDER)]


async def test_told_to_end_its_work_it_gives_back_what_it_has_begun_and_what_not(
    tmp_path: Path,
) -> None:
    bench = Sleepers(
        tmp_path / "builder", PortageSettings(), Desk(), grace_s=0.1, log_bytes_max=1 << 20
    )
    async with node_with("a/b-1", "a/c-1", bench=bench) as (cluster, attempts):
        attempts.begin_packages(True)
        await job_when(cluster, "a/b-1", JobStatus.RUNNING)
        assert attempts.package == "a/b-1"
        await job_when(cluster, "a/c-1", JobStatus.ASSIGNED)
        await attempts.drain()
        assert not attempts.takes_packages
        for name, why in (("a/b-1", "it was stopped"), ("a/c-1", "its builder was told to stop")):
            job, tried = await job_when(cluster, name, JobStatus.PENDING)
            assert job.failures == 0 and tried == [(AttemptStatus.REVOKED, why)]


class Considered(Sleepers):
    """To say how it is to be built takes as long as it is let."""

    def hold(self) -> None:
        self.asked, self.gate = trio.Event(), trio.Event()

    async def order(
        self, duty: Duty, directory: Path, lease: tuple[int | None, int | None]
    ) -> AttemptOrder:
        self.asked.set()
        await self.gate.wait()
        return await super().order(duty, directory, lease)


async def test_what_was_about_to_begin_goes_back_too(tmp_path: Path) -> None:
    bench = Considered(
        tmp_path / "builder", PortageSettings(), Desk(), grace_s=0.1, log_bytes_max=1 << 20
    )
    bench.hold()
    node = node_with("a/b-1", bench=bench)
    async with node as (cluster, attempts), trio.open_nursery() as nursery:
        attempts.begin_packages(True)
        await bench.asked.wait()
        nursery.start_soon(attempts.drain)
        await trio.testing.wait_all_tasks_blocked(0.05)
        bench.gate.set()
        job, tried = await job_when(cluster, "a/b-1", JobStatus.PENDING)
        assert tried == [(AttemptStatus.REVOKED, "its builder was told to stop")]
        assert job.failures == 0
