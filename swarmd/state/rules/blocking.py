"""Rules of packages that builders fail: which of them get one no more, and when nobody does.

What is remembered of failures is since somebody last said to try again, or the time of a block was
over; the job's own count goes on."""

from __future__ import annotations

import msgspec

from swarmd.domain.builds import (
    ASIDE,
    BLOCKED,
    BLOCKED_MS,
    BUILDERS_FAILED_MAX,
    FAILURES_MAX,
    SWEEPER,
    Builder,
)
from swarmd.domain.events import JobBlocked
from swarmd.domain.jobs import JobStatus, Result, check_move
from swarmd.state.rules.dependents import give_up
from swarmd.state.rules.jobs import Held, held_by_seq, make_ready, put_result
from swarmd.state.rules.spans import count_move
from swarmd.state.tx import Tx
from swarmd.state.versions import ONCE_SINCE, in_force

decode_builder = msgspec.msgpack.Decoder(Builder).decode
HOPELESS_MAX = 100


def is_blocked(tx: Tx, job: Held) -> bool:
    """Where it failed on too many builders since it was last tried anew, or too often in all; or
    on all there are, so that nobody would ever come for it."""
    failed = {
        row[0]
        for row in tx.execute(
            "SELECT node_id FROM build_failures WHERE job_seq = ? ORDER BY node_id", (job.seq,)
        )
    }
    if len(failed) >= (1 if job.failures >= FAILURES_MAX else BUILDERS_FAILED_MAX):
        return True
    return bool(failed) and not _others(tx, failed)


def _others(tx: Tx, failed: set[str]) -> bool:
    """Whether any builder that is there may still take it."""
    rows = tx.execute(
        "SELECT node_id, builders.body, name FROM builders JOIN nodes ON nodes.id = node_id"
        " ORDER BY node_id"
    )
    return any(
        node_id not in failed and not name.startswith(SWEEPER) and decode_builder(body).online
        for node_id, body, name in rows
    )


def block_hopeless(tx: Tx, limit: int) -> None:
    """Builders went: what the rest have failed waits for nobody."""
    rows = tx.execute(
        "SELECT DISTINCT job_seq FROM build_failures ORDER BY job_seq LIMIT ?", (limit,)
    ).fetchall()
    for (seq,) in rows:
        job = held_by_seq(tx, seq)
        if job is not None and job.ready and is_blocked(tx, job):
            block(tx, job, "no builder is left that has not failed it")


def note_failure(tx: Tx, job: Held, result: Result) -> None:
    """The builder that holds it does not get it again."""
    assert job.node_id is not None
    tx.execute("INSERT OR IGNORE INTO build_failures VALUES (?,?)", (job.seq, job.node_id))
    job.failures += 1
    error = result.error or f"exit code {result.exit_code}"
    tx.execute(
        "UPDATE jobs SET failures = ?, error = ? WHERE seq = ?", (job.failures, error, job.seq)
    )
    put_result(tx, job.seq, result)


def unblock(tx: Tx, job: Held) -> None:
    """Ready again, for every builder, and as if none had lost it."""
    tx.execute("DELETE FROM build_failures WHERE job_seq = ?", (job.seq,))
    if in_force(tx.execute) >= ONCE_SINCE:
        tx.execute("UPDATE jobs SET recoveries = 0 WHERE seq = ?", (job.seq,))
    make_ready(tx, job.seq, job.id, job.shape)


def block(tx: Tx, job: Held, error: str) -> None:
    _wait(tx, job, BLOCKED, tx.at + BLOCKED_MS, error)


def put_aside(tx: Tx, job: Held, error: str) -> None:
    """Until somebody says to try it again."""
    tx.execute("UPDATE jobs SET error = ? WHERE seq = ?", (error, job.seq))
    _wait(tx, job, ASIDE, None, error)


def _wait(tx: Tx, job: Held, why: str, not_before: int | None, error: str) -> None:
    held = job.status is not JobStatus.PENDING
    if held:
        check_move(job.id, job.status, JobStatus.PENDING)
    tx.execute(
        "UPDATE jobs SET status='pending', ready=0, waits=?, not_before=?, started_at=NULL,"
        " node_id=NULL, recoveries=?, revision=? WHERE seq=?",
        (why, not_before, job.recoveries, tx.revision, job.seq),
    )
    if job.ready:
        tx.ready(job.shape, -1)
    if held:
        count_move(tx, job, JobStatus.PENDING)
    give_up(tx, job.seq)
    tx.emit(JobBlocked(job.id, job.attempt_id if held else None, why, not_before, error))
    job.status, job.ready = JobStatus.PENDING, False
