"""Rows of the jobs tables and what they mean: the one place where columns and fields meet."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from sqlite3 import Cursor
from typing import Any

import msgspec

from swarmd.domain.jobs import (
    Attempt,
    AttemptId,
    AttemptStatus,
    Constraint,
    GroupId,
    Job,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Priority,
    Resources,
    Result,
    Source,
)

Execute = Callable[..., Cursor]

encode = msgspec.msgpack.Encoder(order="deterministic").encode
decode_spec = msgspec.msgpack.Decoder(JobSpec).decode
decode_result = msgspec.msgpack.Decoder(Result).decode

JOB = (
    "j.seq, j.id, j.tenant, j.status, j.created_at, j.revision, j.group_id, j.waits, j.not_before,"
    " j.started_at, j.ended_at, j.attempt_id, j.node_id, j.failures, j.recoveries, j.error, s.spec"
)
FROM = " FROM jobs j JOIN job_specs s ON s.seq = j.seq "
ATTEMPT = (
    "id, node_id, external, address, status, assigned_at, started_at, ended_at, devices,"
    " exit_code, error"
)


class Shape(msgspec.Struct, frozen=True, omit_defaults=True):
    """What placement looks at: jobs of one shape are alike to it."""

    kind: JobKind
    resources: Resources
    constraints: tuple[Constraint, ...]
    installed: bool = False
    """The program is one that our nodes have; an executor from outside would not know it."""


decode_shape = msgspec.msgpack.Decoder(Shape).decode


def job_of(row: tuple[Any, ...], spec: JobSpec | None = None) -> Job:
    return Job(
        seq=row[0],
        id=JobId(row[1]),
        tenant=row[2],
        status=JobStatus(row[3]),
        created_at=row[4],
        revision=row[5],
        group_id=None if row[6] is None else GroupId(row[6]),
        waits=row[7],
        not_before=row[8],
        started_at=row[9],
        ended_at=row[10],
        attempt_id=None if row[11] is None else AttemptId(row[11]),
        node_id=None if row[12] is None else NodeId(row[12].removeprefix(EXECUTOR)),
        failures=row[13],
        recoveries=row[14],
        error=row[15],
        spec=decode_spec(row[16]) if spec is None else spec,
    )


class _Brief(msgspec.Struct, frozen=True):
    """What a listing shows of a spec. The decoder passes over the rest, which may be large."""

    type: str
    source: Source
    priority: int = Priority.BACKGROUND
    labels: dict[str, str] = {}
    kind: JobKind = JobKind.BINARY
    namespace: str = "default"


_decode_brief = msgspec.msgpack.Decoder(_Brief).decode


def brief_of(row: tuple[Any, ...]) -> Job:
    """A job for a listing: its spec without arguments, environment and the like."""
    brief = _decode_brief(row[16])
    spec = JobSpec(
        type=brief.type, source=brief.source, priority=brief.priority, labels=brief.labels,
        kind=brief.kind, namespace=brief.namespace,
    )  # fmt: skip
    return job_of(row, spec)


def load_job(execute: Execute, job_id: str) -> Job | None:
    row = execute(f"SELECT {JOB}{FROM}WHERE j.id = ?", (job_id,)).fetchone()
    return None if row is None else job_of(row)


def load_result(execute: Execute, seq: int) -> Result | None:
    row = execute("SELECT result FROM job_results WHERE seq = ?", (seq,)).fetchone()
    return None if row is None else decode_result(row[0])


def load_attempts(execute: Execute, seq: int, job_id: JobId) -> tuple[Attempt, ...]:
    sql = f"SELECT {ATTEMPT} FROM attempts WHERE job_seq = ? ORDER BY id"
    return tuple(attempt_of(row, job_id) for row in execute(sql, (seq,)))


def attempt_of(row: tuple[Any, ...], job_id: JobId) -> Attempt:
    return Attempt(
        id=AttemptId(row[0]),
        job_id=job_id,
        node_id=NodeId(row[1].removeprefix(EXECUTOR)),
        external=bool(row[2]),
        address=row[3],
        status=AttemptStatus(row[4]),
        assigned_at=row[5],
        started_at=row[6],
        ended_at=row[7],
        devices=tuple(row[8].split()),
        exit_code=row[9],
        error=row[10],
    )


EXECUTOR = "executor/"
"""Goes before the name that an executor gave itself, so that it can never pass for a node's id."""


def spec_hash(spec: bytes) -> bytes:
    return hashlib.sha256(spec).digest()
