"""Users: clients of a swarm under faults, and executors that come for work, some of whom are not
heard of again. What each was told is kept as histories, to be judged when all is over.

Every write has a value of its own. A refusal is held to what it promises was not done.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import trio

from swarmd.cluster.feed import FellBehind
from swarmd.cluster.handle import Cluster, local_reads
from swarmd.domain.errors import Busy, Conflict, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import Constraint, Fetch, Installed, Job, JobId, JobSpec, Resources
from swarmd.ops import jobs as ops
from swarmd.sim.bottle import Bottle, Gone
from swarmd.sim.faults import Fault
from swarmd.sim.stage import Stage
from swarmd.sim.witness import Broken
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import NewJob, PutSetting, Refusal, SubmitJobs
from swarmd.state.queries import FindJob, GetSetting, T
from tests.linearize import Operation
from tests.sim.registers import Glance
from tests.sim.watchers import Watcher

PATIENCE_S = 5.0
THINK_S = 0.3
"""Between two operations of a client, at the most."""
ROTATE_S = 5.0
"""After that clients turn to other registers: what nobody was told of concerns few that come
later, and the search for an order stays short."""
HELD_S = 4.0
"""So long, at the most, a watcher stays with one node."""
REGISTERS = ("left", "middle", "right")
BURST = 30
READS = 6
"""At each host, in a burst of them."""
LENGTHS_S = (0.05, 0.05, 0.5, 0.5, 2.0, 6.0)
"""Of jobs: some run for longer than anybody is waited for."""
FILLED = 60
SIDES_S = 0.02
"""From one question to the next, where both sides of a cut are asked."""


class Users:
    """Of one run. `pace` is how much longer they think than usual."""

    def __init__(self, seed: int, pace: float = 1.0, *, executors: bool = False) -> None:
        self.seed = seed
        self.over = False
        """Who is a client comes to the end of what it does."""
        self.settings: list[Operation] = []
        self.jobs: list[Operation] = []
        self.glances: list[Glance] = []
        self.refused = 0
        self._think_s = THINK_S * pace
        self._executors = executors
        """Some jobs are for them."""
        self._number = 0
        self._finished: dict[str, str] = {}
        """Which executor was told that it completed which job."""
        self._lives: dict[Cluster, int] = {}
        """Of nodes that were read from."""

    # Clients, each with a chance of its own, at any host that is there

    async def use(self, stage: Stage, client: str) -> None:
        rng = random.Random(f"{self.seed}{client}")
        acts = (self._put, self._write, self._read, self._glance, self._keep, self._submit,
                self._see, self._cancel)  # fmt: skip
        while not self.over:
            there = stage.there()
            if there:
                (act,) = rng.choices(acts, (4, 5, 6, 4, 3, 4, 5, 1))
                await act(Way(stage.world, rng.choice(there)), client, rng)
            await trio.sleep(rng.uniform(0, self._think_s))

    async def _do(
        self, history: list[Operation], operation: Operation, way: Way,
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

    async def _put(self, way: Way, client: str, rng: random.Random) -> None:
        """A key that nobody else writes."""
        await self._write_to(way, client, f"key-{self._next()}")

    async def _write(self, way: Way, client: str, rng: random.Random) -> None:
        await self._write_to(way, client, self._register(rng, REGISTERS))

    async def _write_to(self, way: Way, client: str, key: str) -> None:
        value = f"{client}-{self._next()}"

        async def work(cluster: Cluster) -> bool:
            await cluster.propose(PutSetting(key, value.encode()), CLIENT)
            return True

        await self._do(self.settings, Operation(client, "write", value, key=key), way, work)

    async def _keep(self, way: Way, client: str, rng: random.Random) -> None:
        """All want the same key, and keep what the first of them wrote."""
        key, value = self._register(rng, ("once", "first", "only")), f"{client}-{self._next()}"

        async def work(cluster: Cluster) -> str:
            kept = await cluster.propose(PutSetting(key, value.encode(), True), CLIENT)
            return kept.decode()

        await self._do(self.settings, Operation(client, "keep", value, key=key), way, work)

    async def _read(self, way: Way, client: str, rng: random.Random) -> None:
        await self._read_from(way, client, self._register(rng, (*REGISTERS, "once")))

    async def _read_from(self, way: Way, client: str, key: str) -> None:
        async def work(cluster: Cluster) -> str | None:
            value = await self._look(cluster, key, local=False)
            return None if value is None else value.decode()

        await self._do(self.settings, Operation(client, "read", key=key), way, work, read=True)

    async def _glance(self, way: Way, client: str, rng: random.Random) -> None:
        """At what the node has by itself."""
        key = self._register(rng, REGISTERS)
        try:
            with trio.move_on_after(PATIENCE_S):
                await way.ask(lambda cluster: self._look(cluster, key, local=True))
        except (Busy, Gone, Unavailable):
            self.refused += 1

    async def _look(self, cluster: Cluster, key: str, *, local: bool) -> bytes | None:
        life, began = self._lives.setdefault(cluster, len(self._lives)), trio.current_time()
        with local_reads(local):
            value = await cluster.read(GetSetting(key))
        if key.partition("-")[0] in REGISTERS:
            ended = trio.current_time()
            self.glances.append(Glance(life, key, began, ended, value, local))
        return value

    async def fill(self, stage: Stage, name: str) -> None:
        """Writes one after the other at one host, whatever becomes of them."""
        async with trio.open_nursery() as nursery:
            for _ in range(FILLED):
                nursery.start_soon(
                    self._write_to, Way(stage.world, name), "fill", f"key-{self._next()}"
                )
                await trio.sleep(SIDES_S)

    async def on_both_sides(
        self, stage: Stage, writing: Sequence[str], reading: Sequence[str], for_s: float
    ) -> None:
        """One register is written at some hosts, and read at others; each by one at a time."""
        key, ends = f"sides-{self._next()}", trio.current_time() + for_s
        rng = random.Random(f"{self.seed}{key}")

        async def write() -> None:
            while trio.current_time() < ends:
                await self._write_to(Way(stage.world, rng.choice(writing)), "one side", key)
                await trio.sleep(SIDES_S)

        async def read(name: str) -> None:
            while trio.current_time() < ends:
                await self._read_from(Way(stage.world, name), f"other side {name}", key)
                await trio.sleep(SIDES_S)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(write)
            for name in reading:
                nursery.start_soon(read, name)

    async def burst(self, stage: Stage, fault: Fault) -> bool:
        """More at once than may be under way."""
        victim = stage.victim(fault)
        if victim is None:
            return False
        way = Way(stage.world, victim)
        async with trio.open_nursery() as nursery:
            for _ in range(BURST):
                nursery.start_soon(self._write_to, way, "burst", f"key-{self._next()}")
        return True

    async def reads(self, stage: Stage, fault: Fault) -> bool:
        """One register at every host at once, and again, while it is written."""
        there = stage.there()
        if not there:
            return False
        key = f"{REGISTERS[0]}-{int(trio.current_time() / ROTATE_S)}"
        rng = random.Random(f"{self.seed}reads{fault.at_s}")

        async def read(name: str, number: int) -> None:
            for _ in range(READS):
                await self._read_from(Way(stage.world, name), f"reads{number}", key)
                await trio.sleep(rng.uniform(0, 0.02))

        async with trio.open_nursery() as nursery:
            for number, name in enumerate(there):
                nursery.start_soon(read, name, number)
            await self._write_to(Way(stage.world, rng.choice(there)), "reads", key)
        return True

    # Jobs

    async def _submit(self, way: Way, client: str, rng: random.Random) -> None:
        token, chance = f"job{self._next()}", rng.random()
        length_s = rng.choice(LENGTHS_S)
        if chance < 0.2:
            # Whoever submits under this key gets the job that was first.
            token = self._register(rng, ("same", "equal"))
            job_id, same = f"{token}.{self._next()}", _spec(token, 0.5, key=token)
            operation = Operation(client, "keep", job_id, key=f"key of {token}")
            await self._do(self.settings, operation, way, partial(_kept, job_id, same))
            return
        if chance > 0.9:
            length_s = LENGTHS_S[-1]
        spec = _spec(
            token, length_s, gpus=rng.choice((1, 2)) if chance < 0.5 else 0,
            disconnect_s=5.0 if chance > 0.9 else None,
            external=self._executors and 0.6 < chance < 0.7,
        )  # fmt: skip

        async def work(cluster: Cluster) -> bool:
            return await _kept(token, spec, cluster) == token

        await self._do(self.jobs, Operation(client, "submit", key=token), way, work)

    async def _see(self, way: Way, client: str, rng: random.Random) -> None:
        if (token := self._some_job(rng)) is not None:
            operation = Operation(client, "see", key=token)
            await self._do(self.jobs, operation, way, partial(_seen, token), read=True)

    async def _cancel(self, way: Way, client: str, rng: random.Random) -> None:
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

    # Watchers

    async def watch(self, stage: Stage, watcher: Watcher) -> None:
        """Here and there, until it is cancelled."""
        rng = random.Random(f"{self.seed}{watcher.name}")
        while True:
            if there := stage.there():
                way, held_s = Way(stage.world, rng.choice(there)), rng.uniform(0, HELD_S)
                try:
                    with trio.move_on_after(held_s + PATIENCE_S):
                        await way.ask(partial(_follow, watcher, held_s))
                except (Busy, FellBehind, Gone, Unavailable):
                    self.refused += 1
            await trio.sleep(rng.uniform(0, 2 * self._think_s))

    # Executors that come for work, and some of the time are not heard of again

    async def execute(self, stage: Stage, name: str) -> None:
        rng = random.Random(f"{self.seed}{name}")
        while True:
            await trio.sleep(rng.uniform(0.2, 2))
            try:
                with trio.move_on_after(PATIENCE_S):
                    await self._claim(stage, name, rng)
            except (Gone, SwarmError):
                self.refused += 1

    async def _claim(self, stage: Stage, name: str, rng: random.Random) -> None:
        def any_way() -> Way:
            return Way(stage.world, rng.choice(stage.there() or list(stage.world.hosts)))

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
class Way:
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


async def _follow(watcher: Watcher, for_s: float, cluster: Cluster) -> None:
    await watcher.follow(cluster, for_s)
