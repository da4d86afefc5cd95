"""What the job queue answers: one struct for each documented answer, made by `of(domain)`.

Field names are the documented ones; fields beyond the page may be added, none may be taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Self

import msgspec

from api.jobqueue.words import (
    ATTEMPT_WORDS,
    PRIORITIES,
    STATUSES,
    moment,
    priority_word,
    status_word,
)
from swarmd.domain.errors import SwarmError
from swarmd.domain.jobs import Attempt, Fetch, Installed, Job, JobStatus, Resources
from swarmd.ops.explain import Explanation
from swarmd.ops.stats import ExecutorView, Stats
from swarmd.ops.swarm import Health

Names = Mapping[str, str]
"""Names of our nodes by their ids. An executor of someone else's is known by its name alone."""


class Created(msgspec.Struct, frozen=True):
    """The answer to a submitted job."""

    id: str
    type: str
    status: str
    created_at: datetime

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(job.id, job.spec.type, status_word(job.status), moment(job.created_at))


class Standing(msgspec.Struct, frozen=True):
    """A job's id and where it stands: the answer to each change of it."""

    id: str
    status: str

    @classmethod
    def of(cls, job: Job) -> Self:
        return cls(job.id, status_word(job.status))


class Rejected(msgspec.Struct, frozen=True):
    """A refused element of a bulk submit, in its place."""

    status: str
    error: str
    context: dict[str, object]

    @classmethod
    def of(cls, error: SwarmError, index: int) -> Self:
        return cls("rejected", error.message, {**plain_facts(error.facts), "index": index})


class Row(msgspec.Struct, frozen=True):
    """A job in a list."""

    id: str
    type: str
    status: str
    priority: str
    executor_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    error_message: str | None

    @classmethod
    def of(cls, job: Job, names: Names) -> Self:
        return cls(
            id=job.id,
            type=job.spec.type,
            status=status_word(job.status),
            priority=priority_word(job.spec.priority),
            executor_id=_executor(job, names),
            created_at=moment(job.created_at),
            started_at=_started(job),
            completed_at=moment(job.ended_at),
            error_message=_error(job),
        )


class AttemptOut(msgspec.Struct, frozen=True):
    executor_id: str
    executor_ip: str
    started_at: datetime
    ended_at: datetime | None
    status: str
    exit_code: int | None
    error_message: str | None

    @classmethod
    def of(cls, attempt: Attempt, names: Names) -> Self | None:
        """None for an attempt that has not started, or was taken back before it did."""
        word = ATTEMPT_WORDS[attempt.status]
        if word is None:
            return None
        began = attempt.assigned_at if attempt.started_at is None else attempt.started_at
        return cls(
            executor_id=names.get(attempt.node_id, attempt.node_id),
            executor_ip=attempt.address,
            started_at=moment(began),
            ended_at=moment(attempt.ended_at),
            status=word,
            exit_code=attempt.exit_code,
            error_message=attempt.error,
        )


class ResourcesOut(msgspec.Struct, frozen=True):
    """`memory` is in bytes."""

    cpus: float | None
    memory: int | None
    gpus: int
    pids: int | None

    @classmethod
    def of(cls, need: Resources) -> Self:
        return cls(need.cpus, need.memory_bytes, need.gpus, need.pids)


class Details(msgspec.Struct, frozen=True):
    """The whole job: as asked for, where it stands, and each attempt at it."""

    id: str
    type: str
    binary_url: str | None
    binary_sha256: str | None
    program: str | None
    """What runs where a job names a program of the node and no binary (not from this surface)."""
    arguments: Sequence[str]
    env_variables: dict[str, str]
    priority: str
    status: str
    executor_id: str | None
    stdout: str | msgspec.Raw | None
    stderr: str | msgspec.Raw | None
    """Raw where it is long, and was encoded a slice at a time."""
    exit_code: int | None
    error_message: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    duration_ms: int | None
    attempts: Sequence[AttemptOut]
    timeout_seconds: float | None
    disconnect_seconds: float | None
    max_retries: int
    depends_on: Sequence[str]
    idempotency_key: str | None
    resources: ResourcesOut
    constraints: Sequence[str]
    labels: dict[str, str]
    notes: Sequence[str]
    waits_for: str | None
    next_attempt_at: datetime | None
    failures: int
    recoveries: int

    @classmethod
    def of(
        cls,
        job: Job,
        names: Names,
        stdout: str | msgspec.Raw | None = None,
        stderr: str | msgspec.Raw | None = None,
    ) -> Self:
        spec = job.spec
        source = spec.source
        fetched = source if isinstance(source, Fetch) else None
        took = job.started_at is not None and job.ended_at is not None
        return cls(
            id=job.id,
            type=spec.type,
            binary_url=fetched.url if fetched else None,
            binary_sha256=fetched.sha256 if fetched else None,
            program=source.program if isinstance(source, Installed) else None,
            arguments=spec.arguments,
            env_variables=spec.env,
            priority=priority_word(spec.priority),
            status=status_word(job.status),
            executor_id=_executor(job, names),
            stdout=stdout,
            stderr=stderr,
            exit_code=job.result.exit_code if job.result else None,
            error_message=_error(job),
            created_at=moment(job.created_at),
            started_at=_started(job),
            completed_at=moment(job.ended_at),
            duration_ms=(job.ended_at or 0) - (job.started_at or 0) if took else None,
            attempts=[out for a in job.attempts if (out := AttemptOut.of(a, names))],
            timeout_seconds=spec.timeout_s,
            disconnect_seconds=spec.disconnect_s,
            max_retries=spec.max_retries,
            depends_on=spec.depends_on,
            idempotency_key=spec.idempotency_key,
            resources=ResourcesOut.of(spec.resources),
            constraints=[str(c) for c in spec.constraints],
            labels=spec.labels,
            notes=job.result.notes if job.result else (),
            waits_for=job.waits,
            next_attempt_at=moment(job.not_before) if job.waits == "backoff" else None,
            failures=job.failures,
            recoveries=job.recoveries,
        )


class CancelledMany(msgspec.Struct, frozen=True):
    cancelled: int
    failed: int
    errors: Sequence[dict[str, str]]

    @classmethod
    def of(cls, asked: Sequence[str], outcomes: Sequence[Job | SwarmError]) -> Self:
        errors = [
            {"job_id": job_id, "error": outcome.message}
            for job_id, outcome in zip(asked, outcomes, strict=True)
            if isinstance(outcome, SwarmError)
        ]
        return cls(len(asked) - len(errors), len(errors), errors)


class VerdictOut(msgspec.Struct, frozen=True):
    node: str
    can_run: bool
    reasons: Sequence[str]


class ExplanationOut(msgspec.Struct, frozen=True):
    job_id: str
    status: str
    summary: str
    waits_for: Sequence[str]
    nodes: Sequence[VerdictOut]

    @classmethod
    def of(cls, explanation: Explanation) -> Self:
        return cls(
            job_id=explanation.job_id,
            status=status_word(explanation.status),
            summary=explanation.summary,
            waits_for=explanation.waits_for,
            nodes=[VerdictOut(v.node, v.can_run, v.reasons) for v in explanation.nodes],
        )


class HealthOut(msgspec.Struct, frozen=True):
    status: str
    database: str
    leader: str | None
    detail: str

    @classmethod
    def of(cls, health: Health) -> Self:
        return cls(
            status="healthy" if health.healthy else "unhealthy",
            database="connected" if health.database else "disconnected",
            leader=health.leader,
            detail=health.detail,
        )


class StatsOut(msgspec.Struct, frozen=True):
    jobs_by_status: dict[str, int]
    pending_by_priority: dict[str, int]
    active_executors: int

    @classmethod
    def of(cls, stats: Stats) -> Self:
        """Every word is there, with 0 where there is nothing to count."""
        waiting = dict.fromkeys(PRIORITIES, 0)
        for priority, count in stats.pending_by_priority.items():
            waiting[priority_word(priority)] += count
        return cls(
            jobs_by_status={
                word: sum(stats.by_status.get(status, 0) for status in statuses)
                for word, statuses in STATUSES.items()
            },
            pending_by_priority=waiting,
            active_executors=stats.active_executors,
        )


class ExecutorOut(msgspec.Struct, frozen=True):
    executor_id: str
    current_job_id: str | None
    job_type: str | None
    last_heartbeat: datetime
    jobs_completed: int

    @classmethod
    def of(cls, view: ExecutorView) -> Self:
        return cls(
            executor_id=view.executor_id,
            current_job_id=view.current_job_id,
            job_type=view.job_type,
            last_heartbeat=moment(view.last_heartbeat),
            jobs_completed=view.jobs_completed,
        )


class Failure(msgspec.Struct, frozen=True):
    """How this dialect says no, whatever was asked."""

    error: str
    context: dict[str, object]


def plain_facts(facts: Mapping[str, object]) -> dict[str, object]:
    """The facts beside a refusal, as far as JSON has a word for them and this dialect a meaning."""
    plain: dict[str, object] = {
        name: fact for name, fact in facts.items() if isinstance(fact, str | int | float | None)
    }
    if plain.get("status") == JobStatus.ASSIGNED.value:
        plain["status"] = status_word(JobStatus.ASSIGNED)
    return plain


def _executor(job: Job, names: Names) -> str | None:
    """A job that went back to the queue is nobody's: what tried it is in its attempts."""
    if job.status is JobStatus.PENDING or job.node_id is None:
        return None
    return names.get(job.node_id, job.node_id)


def _started(job: Job) -> datetime | None:
    return None if job.status in STATUSES["pending"] else moment(job.started_at)


def _error(job: Job) -> str | None:
    return job.error if job.result is None or job.result.error is None else job.result.error
