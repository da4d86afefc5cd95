"""Rules of jobs that wait for others: from what they name when they are queued to the end of it.

Of a job that ends badly the dependents fail. Packages are put in order and no more: one goes on as
soon as what it waits for has ended in any way, or was given up for a while, since a builder may
well have what the swarm could not build."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec.structs import replace

from swarmd.domain.builds import ASIDE, BLOCKED
from swarmd.domain.errors import Conflict
from swarmd.domain.jobs import JOB_MOVES, Job, JobId, JobKind, JobStatus
from swarmd.state.commands import QUEUED_AS, NewJob, Refusal, SettleDependents, SubmitJobs
from swarmd.state.rules import jobs
from swarmd.state.rules.jobs import end_job, held_by_seq, make_ready, open_package
from swarmd.state.tx import Tx
from swarmd.state.versions import ONCE_SINCE, ORDER_SINCE, in_force

DEPENDENCIES = "dependencies"
"""Why a job is not ready."""


def submit(tx: Tx, command: SubmitJobs) -> tuple[Job | Refusal, ...]:
    packages = any(new.spec.kind is JobKind.PACKAGE for new in command.jobs)
    if not packages or in_force(tx.execute) < ONCE_SINCE:
        return jobs.submit(tx, command)
    queued = _queued(tx, command.jobs)
    wanted = tuple(new for new in command.jobs if new.id not in queued)
    outcomes = iter(jobs.submit(tx, replace(command, jobs=_in_order(tx, wanted, queued))))
    return tuple(
        _known(new, queued[new.id]) if new.id in queued else next(outcomes) for new in command.jobs
    )


def _queued(tx: Tx, new: tuple[NewJob, ...]) -> dict[JobId, JobId]:
    """Which packages are in the queue already, as which job: nobody wants one twice."""
    found, here = dict[JobId, JobId](), dict[str, JobId]()
    for each in new:
        if each.spec.kind is JobKind.PACKAGE:
            queued = here.get(each.spec.type) or open_package(tx.execute, each.spec.type)
            if queued is None:
                here[each.spec.type] = each.id
            else:
                found[each.id] = queued
    return found


def _known(new: NewJob, job_id: JobId) -> Refusal:
    message = f"{new.spec.type} is in the queue already"
    return Refusal(Conflict.code, message, {QUEUED_AS: job_id})


def _in_order(tx: Tx, new: tuple[NewJob, ...], queued: Mapping[JobId, JobId]) -> tuple[NewJob, ...]:
    """Packages wait for those alone that are still to be built."""
    found, before = [], set[JobId]()
    for each in new:
        if each.spec.kind is JobKind.PACKAGE and each.spec.depends_on:
            waits_for = (queued.get(d, d) for d in each.spec.depends_on)
            open_ = tuple(d for d in waits_for if d in before or _is_open(tx, d))
            each = replace(each, spec=replace(each.spec, depends_on=open_))
        found.append(each)
        before.add(each.id)
    return tuple(found)


def _is_open(tx: Tx, job_id: JobId) -> bool:
    row = tx.execute("SELECT status, waits FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return row is not None and bool(JOB_MOVES[JobStatus(row[0])]) and row[1] not in (BLOCKED, ASIDE)


def give_up(tx: Tx, seq: int) -> None:
    """For a while nobody builds this package: what waits for it goes on."""
    if in_force(tx.execute) < ORDER_SINCE:
        return
    if tx.execute("SELECT 1 FROM job_deps WHERE dep_seq = ? LIMIT 1", (seq,)).fetchone():
        tx.execute("INSERT OR REPLACE INTO given_up VALUES (?, 0)", (seq,))


def settle(tx: Tx, command: SettleDependents) -> int:
    """Bounded by `limit` edges an entry, so that no entry is long; the rest waits for the next."""
    ordered = in_force(tx.execute) >= ORDER_SINCE
    budget = _settle_given_up(tx, command.limit) if ordered else command.limit
    while budget > 0:
        row = tx.execute("SELECT seq, completed FROM settled ORDER BY seq LIMIT 1").fetchone()
        if row is None:
            break
        dep_seq, completed = row
        waiting = _waiting(tx, dep_seq, 0, budget)
        for seq in waiting:
            _settle_one(tx, seq, dep_seq, bool(completed), ordered)
        budget -= max(1, len(waiting))
        if not tx.execute("SELECT 1 FROM job_deps WHERE dep_seq = ?", (dep_seq,)).fetchone():
            tx.execute("DELETE FROM settled WHERE seq = ?", (dep_seq,))
    tables = ("settled", "given_up") if ordered else ("settled",)
    return sum(
        int(tx.execute(f"SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT 1000)").fetchone()[0])
        for table in tables
    )


def _waiting(tx: Tx, dep_seq: int, after: int, limit: int) -> list[int]:
    rows = tx.execute(
        "SELECT job_seq FROM job_deps WHERE dep_seq = ? AND job_seq > ? ORDER BY job_seq LIMIT ?",
        (dep_seq, after, limit),
    )
    return [row[0] for row in rows.fetchall()]


def _settle_given_up(tx: Tx, budget: int) -> int:
    """Others than packages go on waiting. What is left of the budget."""
    while budget > 0:
        row = tx.execute("SELECT seq, upto FROM given_up ORDER BY seq LIMIT 1").fetchone()
        if row is None:
            break
        dep_seq, upto = row
        waiting = _waiting(tx, dep_seq, upto, budget)
        for seq in waiting:
            job = held_by_seq(tx, seq)
            if job is None or job.kind == JobKind.PACKAGE:
                _settle_one(tx, seq, dep_seq, True, True)
        if len(waiting) < budget:
            tx.execute("DELETE FROM given_up WHERE seq = ?", (dep_seq,))
        else:
            tx.execute("UPDATE given_up SET upto = ? WHERE seq = ?", (waiting[-1], dep_seq))
        budget -= max(1, len(waiting))
    return budget


def _settle_one(tx: Tx, seq: int, dep_seq: int, completed: bool, ordered: bool) -> None:
    tx.execute("DELETE FROM job_deps WHERE dep_seq = ? AND job_seq = ?", (dep_seq, seq))
    job = held_by_seq(tx, seq)
    if job is None or job.status is not JobStatus.PENDING:
        return
    if not completed and not (ordered and job.kind == JobKind.PACKAGE):
        dep = tx.execute("SELECT id, status FROM jobs WHERE seq = ?", (dep_seq,)).fetchone()
        said = f"dependency {dep[0]} is {dep[1]}" if dep else "a dependency did not complete"
        end_job(tx, job, JobStatus.FAILED, error=said)
        return
    left, waits = tx.execute(
        "UPDATE jobs SET deps_left = deps_left - 1 WHERE seq = ? RETURNING deps_left, waits",
        (seq,),
    ).fetchone()
    # A package may wait for something else by now, or be ready by an operator's word.
    if left <= 0 and waits == DEPENDENCIES:
        make_ready(tx, seq, job.id, job.shape)
