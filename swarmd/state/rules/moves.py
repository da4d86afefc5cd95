"""Moves of attempts: a job is taken, begins, goes back, and what its attempt says at the end.

A job is held by at most one attempt; every move of a held job is one of these, or its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec.structs import replace

from swarmd.domain.events import JobRequeued, JobStarted
from swarmd.domain.jobs import (
    RECOVERIES_MAX,
    AttemptId,
    AttemptStatus,
    Job,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Result,
    check_move,
)
from swarmd.state.rows import FROM, JOB, decode_spec, job_of, load_attempts, load_result
from swarmd.state.rules import blocking
from swarmd.state.rules.jobs import Held, end_job, held_by_seq
from swarmd.state.rules.spans import Tally, count_move
from swarmd.state.tx import Tx


def give(
    tx: Tx, job: Held, holder: str, external: bool, address: str, status: AttemptStatus,
    devices: tuple[str, ...] = (), deadline_at: int | None = None,
) -> AttemptId:  # fmt: skip
    """A new attempt takes the job, which is ready, or blocked and for who takes such."""
    running = status is AttemptStatus.RUNNING
    to = JobStatus.RUNNING if running else JobStatus.ASSIGNED
    check_move(job.id, job.status, to)
    made = tx.execute(
        "INSERT INTO attempts(job_seq, node_id, external, address, status, active, shape,"
        " assigned_at, started_at, deadline_at, devices) VALUES (?,?,?,?,?,1,?,?,?,?,?)",
        (job.seq, holder, int(external), address, status.value, job.shape, tx.at,
         tx.at if running else None, deadline_at, " ".join(devices)),
    ).lastrowid  # fmt: skip
    assert made is not None
    started = tx.at if running else None
    tx.execute(
        "UPDATE jobs SET status=?, ready=0, waits=NULL, not_before=NULL, attempt_id=?, node_id=?,"
        " started_at=?, revision=? WHERE seq=?",
        (to.value, made, holder, started, tx.revision, job.seq),
    )
    if job.ready:
        tx.ready(job.shape, -1)
    count_move(tx, job, to)
    return AttemptId(made)


def start(tx: Tx, job: Held, attempt_id: AttemptId, node_id: NodeId, started: int) -> None:
    check_move(job.id, job.status, JobStatus.RUNNING)
    tx.execute(
        "UPDATE attempts SET status='running', started_at=? WHERE id=?", (started, attempt_id)
    )
    tx.execute(
        "UPDATE jobs SET status='running', started_at=?, revision=? WHERE seq=?",
        (started, tx.revision, job.seq),
    )
    count_move(tx, job, JobStatus.RUNNING)
    tx.emit(JobStarted(job.id, attempt_id, node_id))


def end_attempt(
    tx: Tx, attempt_id: AttemptId, status: AttemptStatus, started: int | None, ended: int,
    result: Result,
) -> None:  # fmt: skip
    tx.execute(
        "UPDATE attempts SET status=?, active=0, started_at=?, ended_at=?, exit_code=?, error=?"
        " WHERE id=?",
        (status.value, started, ended, result.exit_code, result.error, attempt_id),
    )


def credit(tx: Tx, node_id: str) -> None:
    tx.execute("UPDATE nodes SET completed = completed + 1 WHERE id = ?", (node_id,))


def requeue(tx: Tx, job: Held, reason: str) -> None:
    """Back to its place in the queue: the order is by submission, which does not change. A package
    that builders failed when a sweeper took it is blocked again."""
    assert job.attempt_id is not None
    if job.kind == JobKind.PACKAGE and blocking.is_blocked(tx, job):
        blocking.block(tx, job, reason)
        return
    check_move(job.id, job.status, JobStatus.PENDING)
    tx.execute(
        "UPDATE jobs SET status='pending', ready=1, started_at=NULL, node_id=NULL, revision=?,"
        " recoveries=? WHERE seq=?",
        (tx.revision, job.recoveries, job.seq),
    )
    tx.ready(job.shape, 1)
    count_move(tx, job, JobStatus.PENDING)
    tx.emit(JobRequeued(job.id, job.attempt_id, reason))


def recover(tx: Tx, job: Held, reason: str, result: Result | None = None) -> None:
    """The holder is gone, the job is not: queue it again, but not for ever."""
    job.recoveries += 1
    if job.recoveries < RECOVERIES_MAX:
        requeue(tx, job, reason)
        return
    tx.execute("UPDATE jobs SET recoveries=? WHERE seq=?", (job.recoveries, job.seq))
    error = f"given up after {job.recoveries} recoveries (dead letter); the last: {reason}"
    if job.kind == JobKind.PACKAGE:
        blocking.put_aside(tx, job, error)
        return
    end_job(tx, job, JobStatus.FAILED, error=error, result=result, dead=True)


def still_held(
    tx: Tx, attempt_ids: Iterable[AttemptId], tally: Tally | None = None
) -> Iterator[Held]:
    """The jobs of those attempts that have not ended by when it comes to them."""
    for attempt_id in attempt_ids:
        row = tx.execute(
            "SELECT job_seq FROM attempts WHERE id = ? AND active = 1", (attempt_id,)
        ).fetchone()
        if row is not None:
            job = held_by_seq(tx, row[0], tally)
            assert job is not None and job.attempt_id == attempt_id
            yield job


def whole(tx: Tx, seq: int) -> Job:
    job = job_of(tx.execute(f"SELECT {JOB}{FROM}WHERE j.seq = ?", (seq,)).fetchone())
    attempts = load_attempts(tx.execute, seq, job.id)
    return replace(job, result=load_result(tx.execute, seq), attempts=attempts)


def spec_of(tx: Tx, seq: int) -> JobSpec:
    return decode_spec(tx.execute("SELECT spec FROM job_specs WHERE seq=?", (seq,)).fetchone()[0])
