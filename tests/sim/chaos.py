"""Chaos: a schedule of faults strikes a swarm, and clients all the while; then all must be right.

Every write has a value of its own. What clients were told fits one order, and the log's; jobs keep
to their rules; and once nothing befalls any more, all is done, and every replica is the same.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from swarmd.cluster.handle import Cluster
from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.proposals import ProposalSettings
from swarmd.cluster.replica import ReplicaSettings
from swarmd.domain.errors import Busy, Conflict, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import (
    RECOVERIES_MAX,
    Constraint,
    Fetch,
    Installed,
    Job,
    JobId,
    JobSpec,
    Resources,
)
from swarmd.domain.nodes import Capacity
from swarmd.ops import jobs as ops
from swarmd.sim.bottle import Bottle, Gone
from swarmd.sim.faults import Fault, Kind, draw
from swarmd.sim.harm import KINDS
from swarmd.sim.invariants import Observer, WatchedRuns, check_voters
from swarmd.sim.stage import Stage
from swarmd.sim.witness import Broken
from swarmd.sim.workers import SLOTS, Workers
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import NewJob, PutSetting, Refusal, SubmitJobs
from swarmd.state.queries import FindJob, GetSetting, T
from tests import linearize
from tests.linearize import Operation
from tests.sim.registers import History, Read, Write

HOUR_MS = 3_600_000
PATIENCE_S = 5.0
FOUNDERS = ("a", "b", "c")
NEWCOMERS = ("d", "e")
WHOLE = ("a", "b", "c", "d")
"""Hosts of a bottle from the beginning on; one more comes."""
CLIENTS = 5
THINK_S = 0.3
"""Between two operations of a client, at the most."""
EXECUTORS = ("x", "y")
ROTATE_S = 5.0
"""After that clients turn to other registers: what nobody was told of concerns few that come
later, and the search for an order stays short."""
TAIL_S = 3.0
"""So long clients go on when the last fault is over."""
CALM_S = 180.0
"""After that all hosts are up again, whatever was done to them."""
DRAIN_S = 120.0
"""A silent executor is waited for, and what it held runs elsewhere."""
REGISTERS = ("left", "middle", "right")


def quick(
    replica: ReplicaSettings | None = None, snapshot_bytes_per_s_max: int = 1 << 30
) -> OpeningSettings:
    """Small bounds, so that a test reaches them."""
    return OpeningSettings(
        replica=replica or ReplicaSettings(), log_entries_kept=20, compact_every=10,
        snapshot_bytes_per_s_max=snapshot_bytes_per_s_max,
    )  # fmt: skip


def cramped(replicas_max: int = 9) -> OpeningSettings:
    """Bounds that a few clients reach."""
    bounds = ProposalSettings(in_flight_max=6)
    return quick(ReplicaSettings(proposals=bounds, replicas_max=replicas_max))


class Chaos:
    """One run; `rounds` is how many faults are drawn where no schedule is given."""

    def __init__(
        self, seed: int, rounds: int = 8, *, members_change: bool = False, whole: bool = False,
        schedule: Sequence[Fault] | None = None,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.rounds = rounds
        self.members_change = members_change or whole
        self.whole = whole
        """In a bottle, with whole nodes."""
        self.kinds = {**KINDS, "burst": Kind(self._burst)}
        self.founders = WHOLE if whole else FOUNDERS
        self.newcomers = tuple(n for n in NEWCOMERS if n not in self.founders)
        self.hosts = (*FOUNDERS, *NEWCOMERS) if self.members_change else FOUNDERS
        self.executors = EXECUTORS if seed % 4 == 0 else ()
        self.schedule = list(schedule) if schedule is not None else self.drawn()
        self.settings: list[Operation] = []
        self.jobs: list[Operation] = []
        self.operations = 0
        self.refused = 0
        self.struck: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self._over = False
        self._number = 0
        self._finished: dict[str, str] = {}
        """Which executor was told that it completed which job."""

    def drawn(self) -> list[Fault]:
        rng = random.Random(f"{self.seed}faults")
        return draw(
            rng, self.rounds, self.hosts, self.kinds, members_change=self.members_change,
            whole=self.whole,
        )  # fmt: skip

    async def run(self, world: World) -> None:
        observer = Observer()
        observer.watch(world)
        observer.token_of = _token_of
        stage = await self._begin(world, observer)
        async with trio.open_nursery() as executors:
            for name in self.executors:
                executors.start_soon(self._execute, stage, name)
            async with trio.open_nursery() as clients:
                for n in range(CLIENTS):
                    clients.start_soon(self._use, stage, f"client{n}")
                await self._strike(stage)
                await trio.sleep(TAIL_S)
                self._over = True
            await self._drained(world, observer)
            executors.cancel_scope.cancel()
        self.struck, self.events = stage.struck, observer.ledger.counts
        await world.settle()
        self._check(world, observer)

    async def _strike(self, stage: Stage) -> None:
        ends_s = max((fault.at_s + fault.for_s for fault in self.schedule), default=0.0)
        with trio.move_on_after(ends_s + CALM_S) as waiting:
            await stage.run(self.schedule)
        if waiting.cancelled_caught:
            raise Broken(f"{CALM_S:g} s after all faults the swarm is not up: {stage}")

    async def _begin(self, world: World, observer: Observer) -> Stage:
        """A swarm that is complete, with devices on every host."""
        newcomers = dict.fromkeys(self.newcomers, self.founders)
        capacity = Capacity(SLOTS, 4.0, 1 << 30, ("gpu0", "gpu1"))
        if isinstance(world, Bottle):
            world.capacity, world.runs = capacity, WatchedRuns(observer)
            await world.populate(*self.founders)
            return Stage(world, self.kinds, newcomers)
        workers = Workers(world)
        world.capacity, workers.runs = capacity, WatchedRuns(observer)

        def switch_off(name: str) -> None:
            if (runner := workers.runners.pop(name, None)) is not None:
                runner.die()

        await world.swarm_of(*self.founders)
        if not self.members_change:
            await world.judge_disks()
        await workers.ready()
        return Stage(world, self.kinds, newcomers, switch_off)

    # What must be so in the end

    async def _drained(self, world: World, observer: Observer) -> None:
        """Nothing befalls any more: all work ends, and all is as it is to be."""
        ledger = observer.ledger
        with trio.move_on_after(DRAIN_S) as waiting:
            while ledger.open:
                await trio.sleep(0.2)
        if waiting.cancelled_caught:
            raise Broken(f"{ledger.open[:5]} have not ended in {DRAIN_S:g} s of calm")
        with trio.move_on_after(DRAIN_S) as waiting:
            while True:
                try:
                    check_voters(world)
                    return
                except Broken:
                    await trio.sleep(0.5)
        check_voters(world)

    def _check(self, world: World, observer: Observer) -> None:
        assert world.network.refused == []
        state = world.hosts[world.up()[0]].disk.state
        observer.ledger.compare(state)
        _check_ends(state)
        now = trio.current_time()
        values = _values_in(state)
        for key in dict.fromkeys(op.key for op in self.settings):
            self.settings.append(Operation("end", "read", None, values.get(key), now, now, key))
        standings = _standings_in(state)
        for key in dict.fromkeys(op.key for op in self.jobs):
            self.jobs.append(Operation("end", "see", None, standings.get(key), now, now, key))
        _check_order(self.settings, observer.order)
        for model, history in (("setting", self.settings), ("job", self.jobs)):
            verdict = linearize.check(history, linearize.MODELS[model])
            if not verdict:
                raise Broken(f"a history of a {model} is {verdict}")
        self.operations = len(self.settings) + len(self.jobs)
        if self.rounds >= 8 and len(self.schedule) == self.rounds:
            assert sum(op.known for op in self.settings) > 20, "hardly anything was done"

    # Clients, each with a chance of its own, at any host that is there

    async def _use(self, stage: Stage, client: str) -> None:
        rng = random.Random(f"{self.seed}{client}")
        acts = (self._put, self._write, self._read, self._keep, self._submit, self._see,
                self._cancel)  # fmt: skip
        while not self._over:
            there = stage.there()
            if there:
                (act,) = rng.choices(acts, (4, 5, 6, 3, 4, 5, 1))
                await act(_Way(stage.world, rng.choice(there)), client, rng)
            await trio.sleep(rng.uniform(0, THINK_S))

    async def _do(
        self, history: list[Operation], operation: Operation, way: _Way,
        work: Callable[[Cluster], Awaitable[Any]], *, read: bool = False,
    ) -> None:  # fmt: skip
        """What a refusal promises was not done it is held to; a read that failed is no news."""
        operation.began = trio.current_time()
        history.append(operation)
        try:
            with trio.move_on_after(PATIENCE_S):
                operation.result = await way.ask(work)
                operation.ended = trio.current_time()
        except (Busy, Conflict, Gone, Unavailable) as refusal:
            self.refused += 1
            if isinstance(refusal, Busy | Conflict) or "nothing was changed" in str(refusal):
                read = True
        if read and not operation.known:
            history.remove(operation)

    def _register(self, rng: random.Random, names: Sequence[str]) -> str:
        return f"{rng.choice(names)}-{int(trio.current_time() / ROTATE_S)}"

    def _next(self) -> int:
        self._number += 1
        return self._number

    async def _put(self, way: _Way, client: str, rng: random.Random) -> None:
        """A key that nobody else writes."""
        await self._write_to(way, client, f"key-{self._next()}")

    async def _write(self, way: _Way, client: str, rng: random.Random) -> None:
        await self._write_to(way, client, self._register(rng, REGISTERS))

    async def _write_to(self, way: _Way, client: str, key: str) -> None:
        value = f"{client}-{self._next()}"

        async def work(cluster: Cluster) -> bool:
            await cluster.propose(PutSetting(key, value.encode()), CLIENT)
            return True

        await self._do(self.settings, Operation(client, "write", value, key=key), way, work)

    async def _keep(self, way: _Way, client: str, rng: random.Random) -> None:
        """All want the same key, and keep what the first of them wrote."""
        key, value = self._register(rng, ("once", "first", "only")), f"{client}-{self._next()}"

        async def work(cluster: Cluster) -> str:
            kept = await cluster.propose(PutSetting(key, value.encode(), True), CLIENT)
            return kept.decode()

        await self._do(self.settings, Operation(client, "keep", value, key=key), way, work)

    async def _read(self, way: _Way, client: str, rng: random.Random) -> None:
        key = self._register(rng, (*REGISTERS, "once"))

        async def work(cluster: Cluster) -> str | None:
            value = await cluster.read(GetSetting(key))
            return None if value is None else value.decode()

        await self._do(self.settings, Operation(client, "read", key=key), way, work, read=True)

    async def _burst(self, stage: Stage, fault: Fault) -> bool:
        """More at once than may be under way."""
        victim = stage.victim(fault)
        if victim is None:
            return False
        way = _Way(stage.world, victim)
        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(self._write_to, way, "burst", f"key-{self._next()}")
        return True

    # Jobs

    async def _submit(self, way: _Way, client: str, rng: random.Random) -> None:
        token, chance = f"job{self._next()}", rng.random()
        length_s = rng.choice((0.05, 0.5, 2.0))
        if chance < 0.2:
            # Whoever submits under this key gets the job that was first.
            token = self._register(rng, ("same", "equal"))
            job_id, same = f"{token}.{self._next()}", _spec(token, 0.5, key=token)
            operation = Operation(client, "keep", job_id, key=f"key of {token}")
            await self._do(self.settings, operation, way, partial(_kept, job_id, same))
            return
        spec = _spec(
            token, length_s, gpus=rng.choice((1, 2)) if chance < 0.5 else 0,
            disconnect_s=5.0 if chance > 0.9 else None,
            external=bool(self.executors) and 0.6 < chance < 0.7,
        )  # fmt: skip

        async def work(cluster: Cluster) -> bool:
            return await _kept(token, spec, cluster) == token

        await self._do(self.jobs, Operation(client, "submit", key=token), way, work)

    async def _see(self, way: _Way, client: str, rng: random.Random) -> None:
        if (token := self._some_job(rng)) is not None:
            operation = Operation(client, "see", key=token)
            await self._do(self.jobs, operation, way, partial(_seen, token), read=True)

    async def _cancel(self, way: _Way, client: str, rng: random.Random) -> None:
        if (token := self._some_job(rng)) is None:
            return

        async def work(cluster: Cluster) -> bool | None:
            try:
                await ops.cancel(cluster, CLIENT, token)
            except Conflict as refusal:
                if "job is" not in refusal.message:
                    raise  # it is about the node that asked
                return False
            except NotFound:
                return None
            return True

        await self._do(self.jobs, Operation(client, "cancel", key=token), way, work)

    def _some_job(self, rng: random.Random) -> str | None:
        """One of the last, most likely under way."""
        return rng.choice(self.jobs[-20:]).key if self.jobs else None

    # Executors that come for work, and some of the time are not heard of again

    async def _execute(self, stage: Stage, name: str) -> None:
        rng = random.Random(f"{self.seed}{name}")
        while True:
            await trio.sleep(rng.uniform(0.2, 2))
            try:
                with trio.move_on_after(PATIENCE_S):
                    await self._claim(stage, name, rng)
            except (Gone, SwarmError):
                self.refused += 1

    async def _claim(self, stage: Stage, name: str, rng: random.Random) -> None:
        def any_way() -> _Way:
            return _Way(stage.world, rng.choice(stage.there() or list(stage.world.hosts)))

        job = await any_way().ask(lambda cluster: ops.claim(cluster, CLIENT, name, "10.9.9.9"))
        if job is None or rng.random() < 0.1:
            return
        await trio.sleep(rng.uniform(0, 2))
        if rng.random() < 0.5:
            await any_way().ask(lambda cluster: ops.beat(cluster, name, job.id))
        ended = await any_way().ask(lambda cluster: ops.finish(
            cluster, CLIENT, job.id, name, ok=True, stdout=(), stderr=(), exit_code=0, error=None,
        ))  # fmt: skip
        first = self._finished.setdefault(job.id, name)
        if first != name or ended.status.value != "completed":
            raise Broken(f"{name} is told that it completed {job.id}, and {first} was before")


@dataclass(frozen=True)
class _Way:
    """To a host, for one request."""

    world: World
    name: str

    async def ask(self, work: Callable[[Cluster], Awaitable[T]]) -> T:
        """Gone: it is down, or ended before it answered."""
        if isinstance(self.world, Bottle):
            try:
                return await self.world.request(self.name, work)
            except RuntimeError as error:
                if "is closed" not in str(error):
                    raise
                raise Gone(f"{self.name} is about to end: nothing was changed") from error
        replica = self.world.hosts[self.name].replica
        if replica is None:
            raise Gone(f"{self.name} is down: nothing was changed")
        return await work(replica)


def _token_of(job_id: str) -> str:
    return job_id.partition(".")[0]


def _spec(
    token: str, length_s: float, *, gpus: int = 0, disconnect_s: float | None = None,
    external: bool = False, key: str | None = None,
) -> JobSpec:  # fmt: skip
    if external:
        return JobSpec(
            "t", Fetch("http://nowhere.invalid/", "0" * 64), arguments=(token,),
            constraints=(Constraint("node.kind", "==", "executor"),),
        )  # fmt: skip
    return JobSpec(
        "t", Installed("sleep"), arguments=(token, str(length_s)), resources=Resources(gpus=gpus),
        disconnect_s=disconnect_s, idempotency_key=key,
    )  # fmt: skip


async def _kept(job_id: str, spec: JobSpec, cluster: Cluster) -> str:
    """The id of the job that there is."""
    command = SubmitJobs((NewJob(JobId(job_id), spec),))
    (outcome,) = await cluster.propose(command, CLIENT)
    if isinstance(outcome, Refusal):
        raise Broken(f"{job_id} is refused: {outcome.message}")
    return outcome.id


async def _seen(job_id: str, cluster: Cluster) -> tuple[int, str] | None:
    job: Job | None = await cluster.read(FindJob(job_id))
    if job is None:
        return None
    status = "running" if job.status.value == "assigned" else job.status.value
    return len(job.attempts), status


def _values_in(state: sqlite3.Connection) -> dict[str, str]:
    """Of settings, and which job each idempotency key stands for."""
    values = {k: v.decode(errors="replace") for k, v in state.execute(
        "SELECT key, value FROM settings")}  # fmt: skip
    keys = "SELECT i.key, j.id FROM idempotency i JOIN jobs j ON j.seq = i.seq"
    return values | {f"key of {key}": job_id for key, job_id in state.execute(keys)}


def _standings_in(state: sqlite3.Connection) -> dict[str, tuple[int, str]]:
    return {
        job_id: (attempts, status)
        for job_id, attempts, status in state.execute(
            "SELECT id, (SELECT count(*) FROM attempts WHERE job_seq = seq), status FROM jobs"
        )
    }


def _check_ends(state: sqlite3.Connection) -> None:
    """All jobs here end well, but for those that are cancelled or lost too often."""
    failed = "SELECT id, error FROM jobs WHERE status = 'failed' AND recoveries < ?"
    for job_id, error in state.execute(failed, (RECOVERIES_MAX,)):
        raise Broken(f"{job_id} failed, and would not have by itself: {error}")


def _check_order(operations: Sequence[Operation], order: Mapping[bytes, int]) -> None:
    """Against the log's own order as well: of two writes that nobody was told of any order would do
    otherwise."""
    kept = {op.key for op in operations if op.kind == "keep"}
    history = History()
    for op in operations:
        if op.key in kept:
            continue
        if op.kind == "write":
            history.writes.append(Write(op.key, op.argument.encode(), op.began, op.ended))
        else:
            value = None if op.result is None else op.result.encode()
            history.reads.append(Read(op.key, op.began, op.ended, value))
    history.check(order)
