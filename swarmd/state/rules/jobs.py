"""Rules of jobs as they are asked for and as they end.

Read, check, write: a refusal has written nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from swarmd.domain.blobs import blob_of
from swarmd.domain.durations import bucket_of
from swarmd.domain.errors import Conflict, Invalid, NotFound, SwarmError
from swarmd.domain.events import (
    AttemptStopped,
    GroupCreated,
    JobEnded,
    JobReady,
    JobsPruned,
    JobSubmitted,
)
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    ATTEMPT_ACTIVE,
    AttemptId,
    AttemptStatus,
    Fetch,
    Installed,
    Job,
    JobId,
    JobStatus,
    NodeId,
    Result,
    check_move,
)
from swarmd.state.commands import (
    CancelJobs,
    CreateGroup,
    NewJob,
    PruneJobs,
    Refusal,
    SubmitJobs,
    WakeJobs,
)
from swarmd.state.rows import FROM, JOB, Execute, Shape, encode, job_of, load_job, spec_hash
from swarmd.state.rules.blobs import pin_for_job, release_of_job
from swarmd.state.rules.spans import Tally, count_gone, count_move, count_new
from swarmd.state.tx import Tx
from swarmd.state.versions import BUILDS_SINCE, ONCE_SINCE, in_force

decode_group = msgspec.msgpack.Decoder(Group).decode
TYPES_MAX = 500
OTHER = "(other)"


def submit(tx: Tx, command: SubmitJobs) -> tuple[Job | Refusal, ...]:
    tally = Tally()
    outcomes = tuple(
        _or_refusal(_submit_one, tx, new, command.group_id, tally) for new in command.jobs
    )
    tally.write(tx)
    return outcomes


def _or_refusal(step: Callable[..., Job], tx: Tx, *args: object) -> Job | Refusal:
    try:
        return step(tx, *args)
    except SwarmError as error:
        facts = {key: str(value) for key, value in error.facts.items()}
        return Refusal(error.code, error.message, facts)


def _submit_one(tx: Tx, new: NewJob, group_id: str | None, tally: Tally) -> Job:
    spec, tenant = new.spec, tx.entry.actor.tenant
    packed = encode(spec)
    if spec.idempotency_key is not None:
        row = tx.execute(
            "SELECT seq, spec_hash FROM idempotency WHERE tenant = ? AND key = ?",
            (tenant, spec.idempotency_key),
        ).fetchone()
        if row is not None:
            if row[1] != spec_hash(packed):
                raise Conflict(
                    "idempotency_key already stands for another job; use a new key, or send the"
                    " same job again",
                    field="idempotency_key",
                )
            return job_of(tx.execute(f"SELECT {JOB}{FROM}WHERE j.seq = ?", (row[0],)).fetchone())
    if tx.execute("SELECT 1 FROM jobs WHERE id = ?", (new.id,)).fetchone():
        raise Conflict("a job with this id exists", job_id=new.id)
    waits_for = _open_dependencies(tx, spec.depends_on) if spec.depends_on else []
    ready = not waits_for
    installed = isinstance(spec.source, Installed)
    shape = _shape(tx, Shape(spec.kind, spec.resources, spec.constraints, installed))
    seq = tx.execute(
        "INSERT INTO jobs(id, kind, tenant, type, priority, status, ready, waits, shape, group_id,"
        " deps_left, created_at, revision) VALUES (?,?,?,?,?,'pending',?,?,?,?,?,?,?)",
        (new.id, spec.kind.value, tenant, spec.type, spec.priority, int(ready),
         None if ready else "dependencies", shape, group_id, len(waits_for), tx.at, tx.revision),
    ).lastrowid  # fmt: skip
    assert seq is not None
    tx.execute("INSERT INTO job_specs VALUES (?,?)", (seq, packed))
    if spec.idempotency_key is not None:
        tx.execute(
            "INSERT INTO idempotency VALUES (?,?,?,?)",
            (tenant, spec.idempotency_key, seq, spec_hash(packed)),
        )
    if waits_for:
        tx.executemany("INSERT INTO job_deps VALUES (?,?)", [(dep, seq) for dep in waits_for])
    if isinstance(spec.source, Fetch) and (blob := blob_of(spec.source.url)):
        pin_for_job(tx, seq, blob)
    if ready:
        tx.ready(shape, 1)
    count_new(tx, tally, seq, spec.kind.value, spec.priority, spec.type)
    name = f"submitted:{spec.priority}"
    tx.total(spec.kind, name, _label(tx, spec.kind.value, name, spec.type))
    tx.emit(JobSubmitted(new.id, spec.kind, ready))
    return Job(
        seq=seq, id=new.id, spec=spec, tenant=tenant, status=JobStatus.PENDING,
        created_at=tx.at, revision=tx.revision, group_id=group_id,  # type: ignore[arg-type]
        waits=None if ready else "dependencies",
    )  # fmt: skip


def _open_dependencies(tx: Tx, depends_on: tuple[JobId, ...]) -> list[int]:
    waits_for = []
    for dep in dict.fromkeys(depends_on):
        row = tx.execute("SELECT seq, status FROM jobs WHERE id = ?", (dep,)).fetchone()
        if row is None:
            raise Invalid(f"depends_on names a job that does not exist: {dep[:64]}",
                          field="depends_on")  # fmt: skip
        if row[1] in ("failed", "cancelled"):
            raise Conflict(f"depends_on names a job that is {row[1]}", field="depends_on",
                           job_id=dep)  # fmt: skip
        if row[1] != "completed":
            waits_for.append(row[0])
    return waits_for


def _shape(tx: Tx, shape: Shape) -> int:
    """The number that stands for the shape, with one more job counted under it."""
    row = tx.execute(
        "INSERT INTO shapes(key, jobs) VALUES (?, 1) ON CONFLICT(key) DO UPDATE SET"
        " jobs = jobs + 1 RETURNING id",
        (encode(shape),),
    ).fetchone()
    return int(row[0])


def _label(tx: Tx, kind: str, name: str, type_: str) -> str:
    """The type, or `(other)` for one that is new when there are enough: totals never shrink, so
    their number is bounded. Written at once, so that it does not depend on the batch."""
    sql = "SELECT 1 FROM totals WHERE kind = ? AND name = ? AND label = ?"
    if tx.execute(sql, (kind, name, type_)).fetchone():
        return type_
    known = tx.execute("SELECT count(*) FROM totals WHERE kind = ? AND name = ?", (kind, name))
    if known.fetchone()[0] >= TYPES_MAX:
        type_ = OTHER
    tx.execute("INSERT OR IGNORE INTO totals VALUES (?,?,?,0)", (kind, name, type_))
    return type_


@dataclass(slots=True)
class Held:
    """What a move of a job needs to know of it, and nothing more."""

    seq: int
    id: JobId
    kind: str
    type: str
    priority: int
    status: JobStatus
    ready: bool
    shape: int
    created_at: int
    started_at: int | None
    attempt_id: AttemptId | None
    node_id: NodeId | None
    failures: int
    recoveries: int
    tally: Tally | None = None


_HELD = (
    "SELECT seq, id, kind, type, priority, status, ready, shape, created_at, started_at,"
    " attempt_id, node_id, failures, recoveries FROM jobs WHERE "
)


def held(tx: Tx, job_id: str) -> Held:
    row = tx.execute(_HELD + "id = ?", (job_id,)).fetchone()
    if row is None:
        raise NotFound("no such job", job_id=job_id[:128])
    return _held(row)


def held_by_seq(tx: Tx, seq: int, tally: Tally | None = None) -> Held | None:
    """None for a job that was forgotten meanwhile."""
    row = tx.execute(_HELD + "seq = ?", (seq,)).fetchone()
    return None if row is None else _held(row, tally)


def _held(row: tuple[Any, ...], tally: Tally | None = None) -> Held:
    held = Held(*row)
    held.status, held.ready, held.tally = JobStatus(row[5]), bool(row[6]), tally
    return held


def end_job(
    tx: Tx, job: Held, status: JobStatus, *, error: str | None = None,
    result: Result | None = None, started_at: int | None = None, ended_at: int | None = None,
    dead: bool = False,
) -> None:  # fmt: skip
    """Carry a job to its end: row, counts, totals, event, and those that wait for it."""
    check_move(job.id, job.status, status)
    ended = tx.at if ended_at is None else ended_at
    started = job.started_at if started_at is None else started_at
    tx.execute(
        "UPDATE jobs SET status=?, ready=0, waits=NULL, not_before=NULL, started_at=?, ended_at=?,"
        " error=?, dead=?, revision=? WHERE seq=?",
        (status.value, started, ended, error, int(dead), tx.revision, job.seq),
    )
    if result is not None:
        put_result(tx, job.seq, result)
    if job.ready:
        tx.ready(job.shape, -1)
    count_move(tx, job, status)
    tx.total(job.kind, status.value)
    if started is not None:
        _observe(tx, job.kind, "run", ended - started)
        _observe(tx, job.kind, "wait", started - job.created_at)
    waiting = tx.execute("SELECT 1 FROM job_deps WHERE dep_seq = ? LIMIT 1", (job.seq,)).fetchone()
    if waiting:
        tx.execute(
            "INSERT INTO settled VALUES (?,?)", (job.seq, int(status is JobStatus.COMPLETED))
        )
    tx.emit(JobEnded(job.id, status, job.attempt_id, error or "", bool(waiting)))
    job.status, job.ready = status, False


def _observe(tx: Tx, kind: str, what: str, duration_ms: int) -> None:
    duration_ms = max(0, duration_ms)
    tx.total(kind, f"{what}_bucket", bucket_of(duration_ms))
    tx.total(kind, f"{what}_sum_ms", delta=duration_ms)


def put_result(tx: Tx, seq: int, result: Result) -> None:
    tx.execute("INSERT OR REPLACE INTO job_results VALUES (?,?)", (seq, encode(result)))
    for output in (result.stdout, result.stderr):
        if output.blob is not None:
            pin_for_job(tx, seq, output.blob)


def cancel(tx: Tx, command: CancelJobs) -> tuple[Job | Refusal, ...]:
    return tuple(
        _or_refusal(_cancel_one, tx, job_id, command.only_pending) for job_id in command.job_ids
    )


def _cancel_one(tx: Tx, job_id: JobId, only_pending: bool) -> Job:
    job = held(tx, job_id)
    if only_pending and job.status not in (JobStatus.PENDING, JobStatus.ASSIGNED):
        raise Conflict(f"job is {job.status.value}, not pending", job_id=job_id,
                       status=job.status.value)  # fmt: skip
    check_move(job.id, job.status, JobStatus.CANCELLED)
    holds = job.status is not JobStatus.PENDING
    end_job(tx, job, JobStatus.CANCELLED, error="cancelled")
    if holds:
        stop_attempt(tx, job, AttemptStatus.CANCELLED, "cancelled")
    cancelled = load_job(tx.execute, job_id)
    assert cancelled is not None
    return cancelled


def stop_attempt(tx: Tx, job: Held, status: AttemptStatus, reason: str) -> None:
    """End the attempt that holds the job and have its node stop it."""
    assert job.attempt_id is not None and job.node_id is not None
    assert status not in ATTEMPT_ACTIVE
    tx.execute(
        "UPDATE attempts SET status=?, active=0, ended_at=?, error=? WHERE id=? AND active=1",
        (status.value, tx.at, reason, job.attempt_id),
    )
    tx.emit(AttemptStopped(job.id, job.attempt_id, job.node_id, reason))


def wake(tx: Tx, command: WakeJobs) -> int:
    rows = tx.execute(
        "SELECT seq, id, shape FROM jobs WHERE waits = 'backoff' AND not_before <= ?"
        " ORDER BY not_before, seq LIMIT ?",
        (tx.at, command.limit),
    ).fetchall()
    blocked = tx.execute(
        "SELECT seq, id, shape FROM jobs WHERE kind = 'package' AND waits = 'blocked'"
        " AND not_before <= ? ORDER BY not_before, seq LIMIT ?",
        (tx.at, command.limit - len(rows)),
    ).fetchall()
    if blocked:
        tx.executemany("DELETE FROM build_failures WHERE job_seq = ?", [row[:1] for row in blocked])
    rows += blocked
    for seq, job_id, shape in rows:
        make_ready(tx, seq, job_id, shape)
    return len(rows)


def open_package(execute: Execute, package: str) -> JobId | None:
    """The job of a package that is in the queue and has not ended."""
    row = execute(
        "SELECT id FROM jobs WHERE kind = 'package' AND type = ? AND status IN"
        " ('pending', 'assigned', 'running') ORDER BY seq LIMIT 1",
        (package,),
    ).fetchone()
    return None if row is None else JobId(row[0])


def make_ready(tx: Tx, seq: int, job_id: JobId, shape: int) -> None:
    tx.execute(
        "UPDATE jobs SET ready=1, waits=NULL, not_before=NULL, revision=? WHERE seq=?",
        (tx.revision, seq),
    )
    tx.ready(shape, 1)
    tx.emit(JobReady(job_id))


def create_group(tx: Tx, command: CreateGroup) -> Group:
    group = replace(command.group, created_at=tx.at, revision=tx.revision)
    if tx.execute("SELECT 1 FROM groups WHERE id = ?", (group.id,)).fetchone():
        raise Conflict("a group with this id exists", group_id=group.id)
    tx.execute("INSERT INTO groups VALUES (?,?,?)", (group.id, encode(group), tx.revision))
    if group.kind is GroupKind.SESSION and in_force(tx.execute) >= BUILDS_SINCE:
        tx.execute("INSERT INTO build_sessions(id) VALUES (?)", (group.id,))
    tx.emit(GroupCreated(group.id))
    return group


def prune(tx: Tx, command: PruneJobs) -> int:
    """A job that others still wait for is kept until they are settled."""
    rows = tx.execute(
        "SELECT seq, kind, status, priority, type, shape, group_id, ended_at FROM jobs"
        " WHERE ended_at < ?"
        " AND NOT EXISTS (SELECT 1 FROM settled WHERE settled.seq = jobs.seq)"
        " ORDER BY ended_at, seq LIMIT ?",
        (command.before, command.limit),
    ).fetchall()
    seqs = [(row[0],) for row in rows]
    count_gone(tx, (row[:5] for row in rows))
    for _, _, _, _, _, shape, _, _ in rows:
        tx.execute("UPDATE shapes SET jobs = jobs - 1 WHERE id = ?", (shape,))
        tx.execute("DELETE FROM shapes WHERE id = ? AND jobs = 0", (shape,))
    for (seq,) in seqs:
        release_of_job(tx, seq)
    for table in ("job_specs", "job_results", "idempotency"):
        tx.executemany(f"DELETE FROM {table} WHERE seq = ?", seqs)
    tx.executemany("DELETE FROM attempts WHERE job_seq = ?", seqs)
    if packages := [row[:1] for row in rows if row[1] == "package"]:
        tx.executemany("DELETE FROM build_failures WHERE job_seq = ?", packages)
    groups = sorted({row[6] for row in rows if row[6] is not None})
    tx.executemany("DELETE FROM jobs WHERE seq = ?", seqs)
    ordered = in_force(tx.execute) >= ONCE_SINCE
    if ordered:
        _remember_sums(tx, [row for row in rows if row[1] == "package" and row[6] is not None])
    for group_id in groups:
        if not _has_jobs(tx, group_id):
            tx.execute("DELETE FROM groups WHERE id = ?", (group_id,))
            if packages:
                _forget_session(tx, group_id, ordered)
    if ordered:
        _prune_empty(tx, command)
    if seqs:
        tx.emit(JobsPruned(len(seqs), command.before))
    return len(seqs)


def _remember_sums(tx: Tx, rows: Sequence[tuple[Any, ...]]) -> None:
    """A session tells of all its packages for as long as any of them is there."""
    for _, _, status, _, _, _, group_id, ended_at in rows:
        received = int(status == JobStatus.COMPLETED)
        tx.execute(
            "INSERT INTO session_sums VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET"
            " received = received + excluded.received, dropped = dropped + excluded.dropped,"
            " ended_at = max(ended_at, excluded.ended_at)",
            (group_id, received, 1 - received, ended_at),
        )


def _forget_session(tx: Tx, group_id: str, ordered: bool) -> None:
    tx.execute("DELETE FROM build_sessions WHERE id = ?", (group_id,))
    if ordered:
        tx.execute("DELETE FROM session_sums WHERE id = ?", (group_id,))


def _prune_empty(tx: Tx, command: PruneJobs) -> None:
    """Of the oldest sessions those that never had a package: all of theirs were queued by another
    request, or they were not queued in the end."""
    rows = tx.execute(
        "SELECT s.id, g.body FROM build_sessions s JOIN groups g ON g.id = s.id ORDER BY s.n"
        " LIMIT ?",
        (command.limit,),
    ).fetchall()
    old = [group_id for group_id, body in rows if decode_group(body).created_at < command.before]
    for group_id in old:
        if not _has_jobs(tx, group_id):
            tx.execute("DELETE FROM groups WHERE id = ?", (group_id,))
            _forget_session(tx, group_id, True)


def _has_jobs(tx: Tx, group_id: str) -> bool:
    row = tx.execute("SELECT 1 FROM jobs WHERE group_id = ? LIMIT 1", (group_id,)).fetchone()
    return row is not None
