"""Presence: when each executor last gave a sign of life. In the leader's memory alone; a new leader
begins anew and grants everyone a full term of silence."""

from __future__ import annotations

from collections import OrderedDict

import trio

from swarmd.cluster.asks import Beat, LastBeat, ListBeats
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import NotFound
from swarmd.domain.events import Event, JobAssigned
from swarmd.domain.jobs import AttemptId, JobId, JobStatus
from swarmd.state.queries import ClaimHeld, FindJobs
from swarmd.state.rows import EXECUTOR

ACTIVE_S = 30.0
SILENCE_S = 15.0
EXECUTORS_MAX = 10_000


class Presence:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._executors: OrderedDict[str, float] = OrderedDict()
        self._jobs: dict[JobId, float] = {}

    async def beat(self, ask: Beat) -> None:
        """NotFound unless the executor holds the job and it runs."""
        job = (await self._cluster.read(FindJobs((ask.job_id,))))[0]
        if job is None:
            raise NotFound("no such job", job_id=ask.job_id[:128])
        if job.status is not JobStatus.RUNNING:
            raise NotFound(f"job is {job.status.value}, not running", job_id=job.id)
        if job.node_id != ask.executor:
            raise NotFound("the job is not held by this executor", job_id=job.id)
        self._jobs[job.id] = trio.current_time()
        self._seen(ask.executor)

    @staticmethod
    def concerns(event: Event) -> bool:
        """A claim is a sign of life too."""
        return isinstance(event.body, JobAssigned) and event.body.node_id.startswith(EXECUTOR)

    def note(self, event: Event) -> None:
        body = event.body
        if isinstance(body, JobAssigned) and body.node_id.startswith(EXECUTOR):
            self._jobs[body.job_id] = trio.current_time()
            self._seen(body.node_id.removeprefix(EXECUTOR))

    def _seen(self, executor: str) -> None:
        self._executors[executor] = trio.current_time()
        self._executors.move_to_end(executor)
        while len(self._executors) > EXECUTORS_MAX:
            self._executors.popitem(last=False)

    async def list_beats(self, ask: ListBeats) -> list[LastBeat]:
        now, now_ms = trio.current_time(), self._cluster.now_ms()
        return [
            LastBeat(executor, now_ms - int((now - at) * 1000))
            for executor, at in self._executors.items()
            if now - at <= ACTIVE_S
        ]

    def silent(self, claims: list[ClaimHeld]) -> tuple[AttemptId, ...]:
        """Attempts whose executors said nothing for too long. One not heard of yet counts from
        now on."""
        now = trio.current_time()
        held = {claim.job_id for claim in claims}
        self._jobs = {job_id: at for job_id, at in self._jobs.items() if job_id in held}
        return tuple(
            claim.attempt_id
            for claim in claims
            if now - self._jobs.setdefault(claim.job_id, now) > SILENCE_S
        )
