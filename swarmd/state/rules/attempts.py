"""Rules of attempts: one life cycle for work that is pushed (assigned) and pulled (claimed).

A job is held by at most one attempt. A report counts only while its attempt holds the job."""

from __future__ import annotations

from swarmd.domain.builds import Outcome
from swarmd.domain.errors import Conflict
from swarmd.domain.events import (
    JobAssigned,
    JobRetrying,
    JobStarted,
)
from swarmd.domain.jobs import (
    AttemptStatus,
    Job,
    JobKind,
    JobStatus,
    NodeId,
    Result,
    check_move,
)
from swarmd.domain.nodes import Node, NodeKind, Usage, obstacles, satisfies, shortages
from swarmd.state.commands import (
    AssignJobs,
    AttemptReport,
    ClaimJob,
    ExpireAttempts,
    FinishClaim,
    ReportAttempts,
)
from swarmd.state.rows import (
    EXECUTOR,
    Execute,
    Shape,
    decode_shape,
)
from swarmd.state.rules import builds
from swarmd.state.rules.jobs import Held, end_job, held, held_by_seq, put_result, stop_attempt
from swarmd.state.rules.moves import (
    credit,
    end_attempt,
    give,
    recover,
    requeue,
    spec_of,
    start,
    still_held,
    whole,
)
from swarmd.state.rules.nodes import find_node, save_node
from swarmd.state.rules.spans import Tally, count_move
from swarmd.state.tx import Tx

BACKOFF_MS = 60_000
BACKOFF_MS_MAX = 24 * 3600_000
TERMINAL = frozenset(
    {AttemptStatus.COMPLETED, AttemptStatus.FAILED, AttemptStatus.TIMEOUT, AttemptStatus.LOST,
     AttemptStatus.CANCELLED, AttemptStatus.REVOKED}
)  # fmt: skip


def usage_of(execute: Execute, node_id: str) -> Usage:
    """What the active attempts of a node take."""
    used = Usage()
    rows = execute(
        "SELECT s.key, a.devices FROM attempts a JOIN shapes s ON s.id = a.shape"
        " WHERE a.node_id = ? AND a.active = 1",
        (node_id,),
    )
    for key, devices in rows:
        used = used.plus(decode_shape(key).resources, tuple(devices.split()))
    return used


def assign(tx: Tx, command: AssignJobs) -> int:
    nodes: dict[NodeId, tuple[Node, Usage]] = {}
    tally = Tally()
    given = 0
    for one in command.assignments:
        row = tx.execute("SELECT seq FROM jobs WHERE id = ? AND ready = 1", (one.job_id,))
        found = row.fetchone()
        if found is None:
            continue
        if one.node_id not in nodes:
            node = find_node(tx.execute, one.node_id)
            if node is None:
                continue
            nodes[one.node_id] = (node, usage_of(tx.execute, one.node_id))
        node, used = nodes[one.node_id]
        job = held_by_seq(tx, found[0], tally)
        assert job is not None
        shape = load_shape(tx.execute, job.shape)
        need = shape.resources
        if obstacles(node, need, shape.constraints) or shortages(node, used, need):
            continue
        if len(one.devices) != need.gpus or used.devices & set(one.devices):
            continue
        nodes[one.node_id] = (node, used.plus(need, one.devices))
        attempt_id = give(tx, job, one.node_id, False, "", AttemptStatus.ASSIGNED, one.devices)
        tx.emit(JobAssigned(job.id, attempt_id, one.node_id))
        given += 1
    tally.write(tx)
    return given


def load_shape(execute: Execute, shape_id: int) -> Shape:
    row = execute("SELECT key FROM shapes WHERE id = ?", (shape_id,)).fetchone()
    return decode_shape(row[0])


def claim(tx: Tx, command: ClaimJob) -> Job | None:
    executor = Node(
        id=NodeId(EXECUTOR + command.executor),
        name=EXECUTOR + command.executor,
        kind=NodeKind.EXECUTOR,
        addresses=(command.address,),
        reach=("http",),
        labels=command.labels,
    )
    best: tuple[int, int] | None = None
    for shape_id in tx.ready_shapes():
        shape = load_shape(tx.execute, shape_id)
        if shape.kind != command.kind or not claimable(executor, shape):
            continue
        row = tx.execute(
            "SELECT priority, seq FROM jobs WHERE shape = ? AND ready = 1"
            " ORDER BY priority DESC, seq LIMIT 1",
            (shape_id,),
        ).fetchone()
        if row is not None and (best is None or (-row[0], row[1]) < best):
            best = (-row[0], row[1])
    if best is None:
        return None
    job = held_by_seq(tx, best[1])
    assert job is not None
    spec = spec_of(tx, job.seq)
    deadline = None if spec.timeout_s is None else tx.at + int(spec.timeout_s * 1000)
    save_node(tx, executor)
    attempt_id = give(tx, job, executor.id, True, command.address, AttemptStatus.RUNNING,
                       deadline_at=deadline)  # fmt: skip
    tx.emit(JobAssigned(job.id, attempt_id, executor.id, external=True))
    tx.emit(JobStarted(job.id, attempt_id, executor.id))
    return whole(tx, job.seq)


def claimable(executor: Node, shape: Shape) -> bool:
    """An executor has said nothing of its devices, so work that asks for one is not for it."""
    if shape.installed or shape.resources.gpus:
        return False
    return all(satisfies(executor, c) for c in shape.constraints)


def report(tx: Tx, command: ReportAttempts) -> tuple[bool, ...]:
    tally = Tally()
    counted = tuple(_report_one(tx, command.node_id, one, tally) for one in command.reports)
    tally.write(tx)
    return counted


def _report_one(tx: Tx, node_id: NodeId, one: AttemptReport, tally: Tally) -> bool:
    row = tx.execute(
        "SELECT job_seq, active, status, started_at FROM attempts WHERE id = ? AND node_id = ?",
        (one.attempt_id, node_id),
    ).fetchone()
    if row is None:
        return False
    job_seq, active, standing, known_start = row
    if not active:
        return False
    job = held_by_seq(tx, job_seq, tally)
    assert job is not None and job.attempt_id == one.attempt_id
    started = known_start
    if started is None and one.started_age_ms is not None:
        started = tx.at - max(0, one.started_age_ms)
    if one.status not in TERMINAL:
        if standing == AttemptStatus.ASSIGNED.value:
            start(tx, job, one.attempt_id, node_id, started or tx.at)
        return True
    ended = tx.at - max(0, one.ended_age_ms or 0)
    if started is not None:
        ended = max(ended, started)
    if standing == AttemptStatus.ASSIGNED.value and started is not None:
        tx.emit(JobStarted(job.id, one.attempt_id, node_id))
    job.started_at = started
    result = one.result or Result()
    end_attempt(tx, one.attempt_id, one.status, started, ended, result)
    if job.kind == JobKind.PACKAGE and (outcome := _outcome(one)) is not None:
        builds.settle(tx, job, outcome, ended - (started or ended), result)
        return True
    if one.status is AttemptStatus.COMPLETED:
        credit(tx, node_id)
        end_job(tx, job, JobStatus.COMPLETED, result=result, started_at=started, ended_at=ended)
    elif one.status is AttemptStatus.CANCELLED:
        end_job(tx, job, JobStatus.CANCELLED, error=result.error, result=result, ended_at=ended)
    elif one.status is AttemptStatus.REVOKED:
        requeue(tx, job, "revoked")
    elif one.status is AttemptStatus.LOST:
        recover(tx, job, result.error or "the node lost it", result)
    else:
        _fail(tx, job, result, ended)
    return True


def _outcome(one: AttemptReport) -> Outcome | None:
    """What the end of a package's attempt says of the package; None: nothing."""
    if one.status in (AttemptStatus.CANCELLED, AttemptStatus.LOST):
        return None
    if one.status is AttemptStatus.REVOKED:
        return Outcome.RETURNED
    built = one.status is AttemptStatus.COMPLETED
    return one.outcome or (Outcome.BUILT if built else Outcome.FAILED)


def _fail(tx: Tx, job: Held, result: Result, ended: int) -> None:
    """Fail for good, or wait and try again when the job has retries left."""
    retries = spec_of(tx, job.seq).max_retries
    failures = job.failures + 1
    tx.execute("UPDATE jobs SET failures=? WHERE seq=?", (failures, job.seq))
    error = result.error or f"exit code {result.exit_code}"
    if failures > retries:
        end_job(tx, job, JobStatus.FAILED, error=error, result=result, ended_at=ended)
        return
    not_before = tx.at + min(BACKOFF_MS_MAX, BACKOFF_MS * 2 ** min(failures - 1, 20))
    check_move(job.id, job.status, JobStatus.PENDING)
    tx.execute(
        "UPDATE jobs SET status='pending', ready=0, waits='backoff', not_before=?, node_id=NULL,"
        " started_at=NULL, error=?, revision=? WHERE seq=?",
        (not_before, error, tx.revision, job.seq),
    )
    put_result(tx, job.seq, result)
    count_move(tx, job, JobStatus.PENDING)
    assert job.attempt_id is not None
    tx.emit(JobRetrying(job.id, job.attempt_id, not_before, error))


def finish_claim(tx: Tx, command: FinishClaim) -> Job:
    job = held(tx, command.job_id)
    if job.status is not JobStatus.RUNNING:
        raise Conflict(f"job is {job.status.value}, not running", job_id=job.id,
                       status=job.status.value)  # fmt: skip
    if job.node_id != EXECUTOR + command.executor:
        raise Conflict("the job is held by another executor", job_id=job.id,
                       executor_id=command.executor)  # fmt: skip
    assert job.attempt_id is not None
    status = AttemptStatus.COMPLETED if command.ok else AttemptStatus.FAILED
    end_attempt(tx, job.attempt_id, status, job.started_at, tx.at, command.result)
    if command.ok:
        credit(tx, job.node_id)
        end_job(tx, job, JobStatus.COMPLETED, result=command.result)
    else:
        _fail(tx, job, command.result, tx.at)
    return whole(tx, job.seq)


def expire(tx: Tx, command: ExpireAttempts) -> int:
    done = 0
    for job in still_held(tx, command.silent):
        stop_attempt(tx, job, AttemptStatus.TIMEOUT, "no heartbeat from its executor")
        recover(tx, job, "no heartbeat from its executor")
        done += 1
    for job in still_held(tx, command.overdue):
        stop_attempt(tx, job, AttemptStatus.TIMEOUT, "timed out")
        _fail(tx, job, Result(error="timed out"), tx.at)
        done += 1
    return done
