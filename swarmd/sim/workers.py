"""Hosts of the simulated world that run jobs: real agents, and a runner that keeps its promises.

What runs where is written down as it happens; the same job twice at once fails the run there and
then. The runner outlives its daemon, and goes by leases alone while there is none.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from swarmd.agent.attempts import Attempts, AttemptsSettings, open_attempts
from swarmd.agent.binaries import Binaries
from swarmd.agent.blobs import BlobStore
from swarmd.agent.building import Builds
from swarmd.agent.launch import Account
from swarmd.agent.runners import Ids, Standings
from swarmd.cluster.handle import Cluster, local_reads
from swarmd.cluster.replica import Replica
from swarmd.domain.jobs import Installed, Job, JobId, JobSpec
from swarmd.domain.nodes import Capacity
from swarmd.drivers.frames import AttemptOrder, AttemptStanding, Ended, Events, Refusal, Started
from swarmd.runner.core import LEASE_GRACE_MS
from swarmd.sim.clockwork import HostClock
from swarmd.sim.world import Host, World
from swarmd.state.commands import NewJob, SubmitJobs
from swarmd.state.queries import FindJob

SLOTS = 4
SETTINGS = AttemptsSettings(
    slots=SLOTS, account=Account("own"), grace_s=5.0, log_bytes_max=1 << 20,
    logs_total_bytes_max=1 << 30,
)  # fmt: skip


@dataclass(frozen=True)
class Ran:
    at: float
    token: str
    host: str
    how: str
    """began, or the reason of its end."""


class Runs:
    """Of all hosts."""

    def __init__(self) -> None:
        self.now: dict[str, str] = {}
        self.history: list[Ran] = []

    def began(self, token: str, host: str) -> None:
        at = trio.current_time()
        assert token not in self.now, f"{token} runs on {self.now[token]} and {host} at {at}"
        self.now[token] = host
        self.history.append(Ran(at, token, host, "began"))

    def ended(self, token: str, how: str) -> None:
        host = self.now.pop(token)
        self.history.append(Ran(trio.current_time(), token, host, how))

    def of(self, token: str) -> list[Ran]:
        return [ran for ran in self.history if ran.token == token]


class SimStanding(AttemptStanding, frozen=True):
    """As the runner tells it; how old that is follows from the host's clock, not this machine's."""

    clock: HostClock = HostClock()

    @property
    def age_s(self) -> float:
        return _age_s(self.clock, self.started_boottime_ns) or 0.0


class SimStarted(Started, frozen=True):
    clock: HostClock = HostClock()

    @property
    def age_s(self) -> float:
        return _age_s(self.clock, self.boottime_ns) or 0.0


class SimEnded(Ended, frozen=True):
    clock: HostClock = HostClock()

    @property
    def started_age_s(self) -> float | None:
        return _age_s(self.clock, self.started_boottime_ns)

    @property
    def ended_age_s(self) -> float:
        return _age_s(self.clock, self.ended_boottime_ns) or 0.0


def _age_s(clock: HostClock, since_ns: int | None) -> float | None:
    return None if since_ns is None else max(0.0, clock.now() - since_ns / 1e9)


@dataclass(eq=False)
class _Job:
    order: AttemptOrder
    lease_ns: float
    done_ns: float = math.inf
    kill_ns: float = math.inf
    """It heeds no SIGTERM: it runs for as long as it may."""
    why: str = ""
    started_ns: int | None = None

    @property
    def token(self) -> str:
        return self.order.argv[1]


@dataclass(eq=False)
class SimRunner:
    """As swarmd.runner, without processes."""

    host: str
    runs: Runs
    slots: int = SLOTS
    clock: HostClock = field(default_factory=HostClock)
    waiting: dict[int, _Job] = field(default_factory=dict)
    running: dict[int, _Job] = field(default_factory=dict)
    ended: dict[int, Ended] = field(default_factory=dict)
    acked: set[int] = field(default_factory=set)
    news: dict[int, Started | Ended] = field(default_factory=dict)
    wake: trio.Event = field(default_factory=trio.Event)
    told: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    # What the daemon asks for.

    def boottime_ns(self) -> int:
        return int(self.clock.now() * 1e9)

    async def replaced(self, pid: int) -> int:
        if pid:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        return 1

    def connect(self) -> None:
        """Another daemon: what nobody acknowledged is told again."""
        begun = {i: self._started(i, job) for i, job in self.running.items()}
        self.news = {**begun, **self.ended}

    async def start(self, orders: Sequence[AttemptOrder]) -> list[Refusal]:
        await trio.sleep(0.001)
        for order in orders:
            known = (self.waiting, self.running, self.ended, self.acked)
            if any(order.id in these for these in known):
                continue
            lease_ns = math.inf
            if order.lease_ms is not None:
                since = order.lease_from_ns or self.boottime_ns()
                lease_ns = since + order.lease_ms * 1e6
            self.waiting[order.id] = _Job(order, lease_ns)
        self.wake.set()
        return []

    async def stop(self, ids: Sequence[int] | None, grace_s: float | None = None) -> Ids:
        await trio.sleep(0.001)
        for attempt_id in [*self.waiting, *self.running] if ids is None else ids:
            if attempt_id in self.waiting:
                self._end(self.waiting.pop(attempt_id), "stopped")
            elif attempt_id in self.running:
                self._kill(self.running[attempt_id], "stopped", grace_s or 0.0)
        self.wake.set()
        return []

    async def renew(self, ids: Sequence[int], lease_s: float, from_ns: int | None = None) -> Ids:
        await trio.sleep(0.001)
        end_ns = (self.boottime_ns() if from_ns is None else from_ns) + lease_s * 1e9
        for attempt_id in ids:
            job = self.waiting.get(attempt_id) or self.running.get(attempt_id)
            if job is not None:
                job.lease_ns = end_ns
        self.wake.set()
        return []

    async def ack(self, ids: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        for attempt_id in ids:
            self.ended.pop(attempt_id, None)
            self.acked.add(attempt_id)

    async def list(self) -> Standings:
        await trio.lowlevel.checkpoint()
        return [
            *(SimStanding(i, "waiting") for i in self.waiting),
            *(
                SimStanding(i, "running", 1, j.started_ns, clock=self.clock)
                for i, j in self.running.items()
            ),
            *(SimStanding(i, "ended") for i in self.ended),
        ]

    async def events(self) -> AsyncGenerator[Events, None]:
        while True:
            while not self.news:
                self.told = trio.Event()
                await self.told.wait()
            batch, self.news = list(self.news.values()), {}
            yield batch

    # What it does by itself.

    async def live(self) -> None:
        with self.scope:
            while True:
                self._turn()
                self.wake = trio.Event()
                due_at = self.clock.when(self._due_ns() / 1e9)
                with trio.move_on_at(max(due_at, trio.current_time() + 1e-4)):
                    await self.wake.wait()

    def die(self) -> None:
        """With its host: what ran is gone, and what was to be told."""
        self.scope.cancel()
        for job in self.running.values():
            self.runs.ended(job.token, "died")
        self.running.clear()
        self.waiting.clear()

    def _due_ns(self) -> float:
        dues = [math.inf, *(job.lease_ns for job in self.waiting.values())]
        for job in self.running.values():
            dues += [job.done_ns, job.kill_ns]
            if not job.why:
                dues.append(job.lease_ns)
        return min(dues)

    def _turn(self) -> None:
        now = self.boottime_ns()
        for attempt_id, job in list(self.running.items()):
            if now >= job.lease_ns and job.why != "lease":
                self._kill(job, job.why or "lease", LEASE_GRACE_MS / 1000)
                job.lease_ns = math.inf
            if now >= min(job.kill_ns, job.done_ns):
                del self.running[attempt_id]
                how = "exit" if now < job.kill_ns else job.why
                self.runs.ended(job.token, how)
                self._end(job, how)
        for attempt_id, job in list(self.waiting.items()):
            if now >= job.lease_ns:
                self._end(self.waiting.pop(attempt_id), "lease")
            elif len(self.running) < self.slots:
                self.running[attempt_id] = self.waiting.pop(attempt_id)
                self.runs.began(job.token, self.host)
                job.started_ns = now
                job.done_ns = now + float(job.order.argv[2]) * 1e9
                self._tell(self._started(attempt_id, job))

    def _kill(self, job: _Job, why: str, grace_s: float) -> None:
        job.why = job.why or why
        job.kill_ns = min(job.kill_ns, self.boottime_ns() + grace_s * 1e9)

    def _end(self, job: _Job, how: str) -> None:
        """A third argument is what it exits with."""
        argv = job.order.argv
        code = None
        if how == "exit":
            code = int(argv[3]) if len(argv) > 3 else 0
        end = SimEnded(
            job.order.id, how, exit_code=code, started_boottime_ns=job.started_ns,
            ended_boottime_ns=self.boottime_ns(), clock=self.clock,
        )  # fmt: skip
        self.ended[job.order.id] = end
        self._tell(end)

    def _started(self, attempt_id: int, job: _Job) -> Started:
        return SimStarted(attempt_id, 1, job.started_ns or 0, clock=self.clock)

    def _tell(self, what: Started | Ended) -> None:
        self.news[what.id] = what
        self.told.set()


class _NoShelves:
    """The real ones are tidied in threads."""

    def spare(self) -> Path | None:
        return None

    def ended(self, directory: Path) -> None:
        pass

    async def keep_tidy(self) -> None:
        await trio.sleep_forever()


@asynccontextmanager
async def open_agent(
    cluster: Cluster, runner: SimRunner, place: Path, builds: Builds | None = None
) -> AsyncIterator[Attempts]:  # fmt: skip
    """What runs jobs on a host, but for the runner, which outlives it."""
    runner.connect()
    store = BlobStore(place / "blobs", bytes_max=1 << 20)
    binaries = Binaries(place / "binaries", store, bytes_max=1 << 20)
    attempts = Attempts(
        cluster, runner, binaries, place / "attempts", SETTINGS, False, _NoShelves(), builds
    )
    async with open_attempts(attempts):
        yield attempts


class Workers:
    """Have every host of a world run jobs."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.runs = Runs()
        self.runners: dict[str, SimRunner] = {}
        world.capacity = Capacity(SLOTS, 4.0, 1 << 30)
        world.inhabit = self._inhabit
        self._submitted = 0

    @asynccontextmanager
    async def _inhabit(self, host: Host, replica: Replica) -> AsyncIterator[None]:
        async with open_agent(replica, self.runner(host), host.place):
            yield

    def runner(self, host: Host) -> SimRunner:
        """Of this host, whether its daemon lives or not."""
        runner = self.runners.get(host.name)
        if runner is None:
            runner = self.runners[host.name] = SimRunner(host.name, self.runs, clock=host.clock)
            self.world.background(runner.live)
        return runner

    async def kill(self, name: str) -> None:
        """The whole machine."""
        runner = self.runners.pop(name)
        runner.die()
        await self.world.crash(name)

    async def submit(
        self, name: str, length_s: float, disconnect_s: float | None = None
    ) -> tuple[JobId, str]:
        """Its id, and the token that it runs under."""
        self._submitted += 1
        token = f"t{self._submitted}"
        spec = JobSpec("t", Installed("sleep"), arguments=(token, str(length_s)),
                       disconnect_s=disconnect_s)  # fmt: skip
        job_id = JobId(f"job-{token}")
        await self.world.propose(name, SubmitJobs((NewJob(job_id, spec),)))
        return job_id, token

    async def running(self, token: str, within_s: float = 15.0) -> str:
        """Where it runs, once it does."""
        await self.world.until(lambda: token in self.runs.now, within_s, f"{token} running")
        return self.runs.now[token]

    async def job(self, name: str, job_id: JobId) -> Job:
        with local_reads():
            job = await self.world.replica(name).read(FindJob(job_id))
        assert job is not None
        return job

    async def ready(self) -> None:
        """Leases are in force."""
        await self.world.until(
            lambda: all(self.world.replica(n).cluster_version() >= 2 for n in self.world.up()),
            30, "the version that has leases",
        )  # fmt: skip
