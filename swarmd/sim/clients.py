"""Users of a bottle: they submit jobs through any node, wait for them and change their minds; where
a node does not answer they try another. What was acknowledged to them is written down.

An attempt whose answer was lost may have been taken: each has a token of its own, so that no two
jobs run under one.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from swarmd.cluster.handle import Hosted
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, NotFound, Unavailable
from swarmd.domain.jobs import Installed, Job, JobId, JobSpec, JobStatus
from swarmd.ops import jobs, waiting
from swarmd.sim.bottle import Bottle, Gone
from swarmd.state.commands import T

USER = Actor("user", "sim")
ASK_S_MAX = 15.0
"""Then a client hangs up, and tries again elsewhere."""
WAIT_S = 10.0
"""One asking for the end of a job; then it is asked for again."""
AGAIN_S = 0.5
NOT_NOW = (Busy, Unavailable, Gone)


@dataclass(frozen=True)
class Habits:
    length_s: tuple[float, float] = (0.5, 4.0)
    """How long their jobs run."""
    pause_s: tuple[float, float] = (0.2, 2.0)
    cancels: float = 0.1
    """Of how many jobs they think better."""
    disconnects: float = 0.0
    """How many jobs may run on for a while on a host that is cut off."""


@dataclass
class Wanted:
    """A job that a client was told of."""

    job_id: JobId
    token: str
    submitted_at: float
    by: str
    """Which host took it."""
    cancelled: bool = False
    """It was asked to be, at the least."""
    seen: Job | None = None
    """Once it has ended, as somebody was told."""


def job_of(token: str, length_s: float, disconnect_s: float | None = None) -> JobSpec:
    """One that the bottle's runners understand."""
    return JobSpec(
        token, Installed("sleep"), arguments=(token, f"{length_s:.3f}"), disconnect_s=disconnect_s
    )


class Clients:
    """Until `over` is set; then each comes to the end of what it is about."""

    def __init__(
        self, bottle: Bottle, seed: int, habits: Habits | None = None,
        spec: Callable[[JobSpec], JobSpec] = lambda spec: spec,
    ) -> None:  # fmt: skip
        """`spec` makes jobs of another kind of those that only take their time."""
        self.bottle = bottle
        self.habits = habits or Habits()
        self.wanted: dict[JobId, Wanted] = {}
        self.refusals: Counter[str] = Counter()
        self.over = trio.Event()
        self._rng = random.Random(seed)
        self._spec = spec
        self._tokens = 0

    async def run(self, count: int) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(self._use, random.Random(self._rng.random()), number)

    async def _use(self, rng: random.Random, number: int) -> None:
        habits = self.habits
        while not self.over.is_set():
            wanted = await self._submit(rng, rng.uniform(*habits.length_s))
            if wanted is None:
                continue
            if rng.random() < habits.cancels:
                await trio.sleep(rng.uniform(0, habits.length_s[1]))
                await self._cancel(rng, wanted)
            await self._see_ended(rng, wanted)
            with trio.move_on_after(rng.uniform(*habits.pause_s)):
                await self.over.wait()

    async def _submit(self, rng: random.Random, length_s: float) -> Wanted | None:
        self._tokens += 1
        token = f"t{self._tokens}"
        disconnect_s = 8.0 if rng.random() < self.habits.disconnects else None
        spec = self._spec(job_of(token, length_s, disconnect_s))
        at, host = trio.current_time(), self._any(rng)
        job = await self._once(host, lambda c: jobs.submit(c, USER, spec))
        if job is None:
            await trio.sleep(AGAIN_S)
            return None
        wanted = self.wanted[job.id] = Wanted(job.id, token, at, host)
        return wanted

    async def _cancel(self, rng: random.Random, wanted: Wanted) -> None:
        wanted.cancelled = True
        try:
            await self._patiently(rng, lambda c: jobs.cancel(c, USER, wanted.job_id))
        except Conflict:
            self.refusals["it had ended"] += 1

    async def _see_ended(self, rng: random.Random, wanted: Wanted) -> None:
        """Asked for on any node: what was acknowledged on one is known on all."""
        while not self.over.is_set():
            job = await self._patiently(
                rng, lambda c: waiting.ended(c, wanted.job_id, WAIT_S), WAIT_S + ASK_S_MAX
            )
            if job is not None and job.status.ended:
                wanted.seen = job
                return

    def _any(self, rng: random.Random) -> str:
        return rng.choice(self.bottle.there() or list(self.bottle.hosts))

    async def _once(
        self, host: str, work: Callable[[Hosted], Awaitable[T]], bound_s: float = ASK_S_MAX
    ) -> T | None:
        try:
            with trio.move_on_after(bound_s):
                return await self.bottle.request(host, work)
            self.refusals["no answer in time"] += 1
        except NOT_NOW as refusal:
            self.refusals[type(refusal).__name__] += 1
        return None

    async def _patiently(
        self, rng: random.Random, work: Callable[[Hosted], Awaitable[T]],
        bound_s: float = ASK_S_MAX,
    ) -> T | None:  # fmt: skip
        while not self.over.is_set():
            answer = await self._once(self._any(rng), work, bound_s)
            if answer is not None:
                return answer
            await trio.sleep(AGAIN_S)
        return None

    # What must hold

    async def check(self, within_s: float = 120.0) -> None:
        """Once all is calm: every job that was acknowledged is known and comes to its end, as it
        was seen to; who was told of an end was told the truth."""
        with trio.fail_after(within_s):
            for wanted in self.wanted.values():
                job = await self._final(wanted)
                ends = (JobStatus.COMPLETED, JobStatus.CANCELLED)
                assert job.status in ends, f"{job.id} is {job.status.value}: {job.result}"
                if job.status is JobStatus.CANCELLED:
                    assert wanted.cancelled, f"{job.id} is cancelled, and nobody asked for it"
                else:
                    ran = [each.how for each in self.bottle.runs.of(wanted.token)]
                    assert "exit" in ran, f"{job.id} is completed, and its runs were {ran}"
                if wanted.seen is not None:
                    assert wanted.seen.status is job.status, f"{job.id} changed after its end"

    async def _final(self, wanted: Wanted) -> Job:
        while True:
            try:
                host = self.bottle.there()[0]
                job = await self.bottle.request(
                    host, lambda c: waiting.ended(c, wanted.job_id, WAIT_S)
                )
            except NotFound:
                raise AssertionError(
                    f"{wanted.job_id} was acknowledged by {wanted.by}, and is not known"
                ) from None
            except (*NOT_NOW, IndexError):
                await trio.sleep(AGAIN_S)
                continue
            if job.status.ended:
                return job
