"""Work for an estate: jobs that come by chance or were there before, and a write now and then that
tells for how long nobody could write.

A job's id is made before it is submitted, and is what it runs under: who asks again after an answer
that was lost does not ask twice.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import trio
from msgspec.structs import replace

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, Unavailable
from swarmd.domain.jobs import Installed, JobId, JobSpec
from swarmd.sim.bottle import Gone
from swarmd.sim.estate import Estate
from swarmd.sim.exported import LENGTH_S_MAX, Exported, OpenJob
from swarmd.sim.topology import Load
from swarmd.state.commands import Command, NewJob, PutSetting, Refusal, SubmitJobs, T

USER = Actor("user", "sim")
ASK_S_MAX = 5.0
"""Then a client hangs up, and tries again elsewhere."""
AGAIN_S = 0.25
PATIENCE_S = 60.0
"""After so long of it a client gives up."""
WAITING_MAX = 2000
"""Clients that wait at a time; more are turned away."""
BULK_JOBS = 100
TRY_EVERY_S = 1.0
"""From one write that only tries whether one may be written to the next."""
LATE_S = 0.5
"""A write that took longer than this is one that could not be made at once."""
TRIED_KEY = "sim.tried"
TIMED_OUT = "124"
"""What a job that outlasts its time limit ends with here."""


@dataclass(frozen=True)
class Pause:
    """From when to when a client's write was not taken."""

    since: float
    until: float


class Work:
    def __init__(self, estate: Estate, seed: int, paused: Callable[[Pause], None]) -> None:
        """`paused` is told when a write that had to wait was taken."""
        self.estate = estate
        self._paused = paused
        self.submitted: set[JobId] = set()
        self.attempts = 0
        self.refusals: Counter[str] = Counter()
        """Of single attempts, by why; each was tried again."""
        self.given_up = 0
        """Jobs whose clients lost patience."""
        self.turned_away = 0
        self.refused: Counter[str] = Counter()
        """Jobs that the swarm did not want at all."""
        self.pauses: list[Pause] = []
        self.writing_since: float | None = None
        """When the write that is under way now began."""
        self._rng = random.Random(f"{seed}work")
        self._waiting = 0

    def waiting_s(self) -> float:
        """For how long the write that is under way has waited."""
        return 0.0 if self.writing_since is None else trio.current_time() - self.writing_since

    def unwritable_s(self) -> float:
        """The longest time in which no write was taken; one that lasts yet counts too."""
        pauses = [pause.until - pause.since for pause in self.pauses]
        lasting_s = self.waiting_s()
        return max([*pauses, lasting_s if lasting_s > LATE_S else 0.0])

    def taken(self) -> bool:
        """Whether writes are, as of now."""
        return self.waiting_s() <= LATE_S

    # What was there before

    async def bring(self, exported: Exported, usual_s: float) -> None:
        """Its open jobs, those that ran first; each runs as long as it has yet to."""
        lengths = random.Random(self._rng.random())
        news = {job.id: self._again(job, exported, usual_s, lengths) for job in exported.jobs}
        ran = [news[job.id] for job in exported.jobs if job.ran_s is not None]
        waited = [news[job.id] for job in exported.jobs if job.ran_s is None]
        for jobs in (ran, waited):
            for at in range(0, len(jobs), BULK_JOBS):
                await self._submit(tuple(jobs[at : at + BULK_JOBS]))
            with trio.move_on_after(AGAIN_S * 8):
                while any(each.id not in self.estate.runs.now for each in jobs):
                    await trio.sleep(AGAIN_S)

    def _again(
        self, job: OpenJob, exported: Exported, usual_s: float, rng: random.Random
    ) -> NewJob:
        known = exported.lengths_s.get(job.spec.type)
        length_s = rng.choice(known) if known else rng.uniform(usual_s / 2, 1.5 * usual_s)
        if job.ran_s:
            length_s = max(min(1.0, length_s), length_s - job.ran_s)
        return NewJob(job.id, _lasting(job.spec, job.id, length_s))

    # What comes

    async def come(self, load: Load) -> None:
        """Jobs of this sort, by chance, for as long as the scenario lasts."""
        rng = random.Random(f"{self._rng.random()}{load.name}")
        number = 0
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(rng.expovariate(load.jobs_a_minute / 60))
                number += 1
                spec = JobSpec(
                    load.name, Installed("sleep"), load.priority, max_retries=load.retries,
                    resources=load.resources, constraints=load.constraints, kind=load.kind,
                )  # fmt: skip
                job_id = JobId(f"{load.name}-{number}")
                new = NewJob(job_id, _lasting(spec, job_id, rng.uniform(*load.length_s)))
                if self._waiting >= WAITING_MAX:
                    self.turned_away += 1
                else:
                    nursery.start_soon(self._submit, (new,))

    async def _submit(self, news: Sequence[NewJob]) -> None:
        self._waiting += 1
        try:
            with trio.move_on_after(PATIENCE_S) as patience:
                command = SubmitJobs(tuple(news))
                while (answers := await self._once(command)) is None:
                    await trio.sleep(AGAIN_S)
                for new, answer in zip(news, answers, strict=True):
                    if isinstance(answer, Refusal) and not _was_taken(answer, new):
                        self.refused[answer.message] += 1
                    else:
                        self.submitted.add(new.id)
            if patience.cancelled_caught:
                self.given_up += len(news)
        finally:
            self._waiting -= 1

    # Whether writes are taken

    async def try_writes(self) -> None:
        """One after the other, and each again until it is taken."""
        number = 0
        while True:
            number += 1
            began = self.writing_since = trio.current_time()
            while await self._once(PutSetting(TRIED_KEY, str(number).encode()), 1.0) is None:
                await trio.sleep(0.05)
            self.writing_since = None
            if trio.current_time() - began > LATE_S:
                pause = Pause(began, trio.current_time())
                self.pauses.append(pause)
                self._paused(pause)
            await trio.sleep(max(0.0, began + TRY_EVERY_S - trio.current_time()))

    async def _once(self, command: Command[T], bound_s: float = ASK_S_MAX) -> T | None:
        """Through any node that is there; None: it has to be tried again."""
        there = self.estate.there()
        self.attempts += 1
        if not there:
            self.refusals["no node is there"] += 1
            return None
        try:
            with trio.move_on_after(bound_s):
                return await self.estate.request(
                    self._rng.choice(there), lambda cluster: cluster.propose(command, USER)
                )
            self.refusals["no answer in time"] += 1
        except Gone:
            self.refusals["the node ended meanwhile"] += 1
        except (Busy, Unavailable) as refusal:
            self.refusals[refusal.code] += 1
        return None


def _was_taken(refusal: Refusal, new: NewJob) -> bool:
    """By an attempt before, whose answer was lost."""
    return refusal.code == Conflict.code and refusal.facts == {"job_id": new.id}


def _lasting(spec: JobSpec, job_id: JobId, length_s: float) -> JobSpec:
    """As the bottle's runners understand it. One that would outlast its own time limit is ended at
    it, and fails."""
    length_s = min(length_s, LENGTH_S_MAX)
    code: tuple[str, ...] = ()
    if spec.timeout_s is not None and spec.timeout_s < length_s:
        length_s, code = spec.timeout_s, (TIMED_OUT,)
    return replace(spec, arguments=(job_id, f"{length_s:.3f}", *code), timeout_s=None)
