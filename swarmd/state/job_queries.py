"""Queries about jobs as such: see `swarmd.state.queries` for what holds of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from swarmd.domain.jobs import Job, JobFilter, JobKind
from swarmd.state.pages import find_page
from swarmd.state.query import Conn, Query
from swarmd.state.rows import (
    ATTEMPT,
    FROM,
    JOB,
    attempt_of,
    brief_of,
    decode_shape,
    load_attempts,
    load_job,
    load_result,
)


class FindJob(Query["Job | None"], frozen=True):
    """The whole job: result and attempts too."""

    job_id: str


class FindJobs(Query["tuple[Job | None, ...]"], frozen=True):
    """Standing of several, in their order."""

    job_ids: tuple[str, ...]


class ListJobs(Query["list[Job]"], frozen=True):
    """Newest first, without results and attempts, arguments and environment. Where packages are
    asked for, each has the attempt that holds it, or held it at its end."""

    wanted: JobFilter


class AnyReady(Query[bool], frozen=True):
    """Whether any job of a kind is ready at all."""

    kind: JobKind = JobKind.BINARY


class AheadOf(Query[int], frozen=True):
    """How many ready jobs of the same shape go before this one; counted up to 100,000."""

    job_id: str


class CountJobs(Query["dict[tuple[str, int], int]"], frozen=True):
    """How many jobs of a kind stand where: (status, priority) → number."""

    kind: JobKind


class ListTotals(Query["dict[tuple[str, str], int]"], frozen=True):
    """What only grows, for a kind: (name, label) → number."""

    kind: JobKind


def _find_job(conn: Conn, query: FindJob) -> Job | None:
    job = load_job(conn.execute, query.job_id)
    if job is None:
        return None
    return replace(
        job,
        result=load_result(conn.execute, job.seq),
        attempts=load_attempts(conn.execute, job.seq, job.id),
    )


def _list_jobs(conn: Conn, query: ListJobs) -> list[Job]:
    seqs = find_page(conn, query.wanted)
    if not seqs:
        return []
    places = ",".join("?" * len(seqs))
    rows = conn.execute(f"SELECT {JOB}{FROM}WHERE j.seq IN ({places}) ORDER BY j.seq DESC", seqs)
    found = [brief_of(row) for row in rows]
    return _with_holder(conn, found) if query.wanted.kind is JobKind.PACKAGE else found


def _with_holder(conn: Conn, jobs: list[Job]) -> list[Job]:
    ids = [job.attempt_id for job in jobs if job.node_id is not None]
    if not ids:
        return jobs
    places = ",".join("?" * len(ids))
    rows = conn.execute(f"SELECT {ATTEMPT} FROM attempts WHERE id IN ({places})", ids)
    by_id = {row[0]: row for row in rows}
    return [
        replace(job, attempts=(attempt_of(by_id[job.attempt_id], job.id),))
        if job.node_id is not None and job.attempt_id in by_id
        else job
        for job in jobs
    ]


def _any_ready(conn: Conn, query: AnyReady) -> bool:
    rows = conn.execute("SELECT key FROM shapes WHERE ready > 0")
    return any(decode_shape(row[0]).kind is query.kind for row in rows)


def _ahead_of(conn: Conn, query: AheadOf) -> int:
    row = conn.execute(
        "SELECT shape, priority, seq FROM jobs WHERE id = ?", (query.job_id,)
    ).fetchone()
    if row is None:
        return 0
    ahead = 0
    for condition in ("priority > ?2", "priority = ?2 AND seq < ?3"):
        sql = (
            "SELECT count(*) FROM (SELECT 1 FROM jobs WHERE shape = ?1 AND ready = 1 AND"
            f" {condition} LIMIT 100000)"
        )
        values = row if "?3" in condition else row[:2]
        ahead += conn.execute(sql, values).fetchone()[0]
    return ahead


def _count_jobs(conn: Conn, query: CountJobs) -> dict[tuple[str, int], int]:
    rows = conn.execute(
        "SELECT status, priority, sum(n) FROM counts WHERE kind = ? GROUP BY 1, 2", (query.kind,)
    )
    return {(row[0], row[1]): row[2] for row in rows}


def _list_totals(conn: Conn, query: ListTotals) -> dict[tuple[str, str], int]:
    rows = conn.execute("SELECT name, label, n FROM totals WHERE kind = ?", (query.kind,))
    return {(row[0], row[1]): row[2] for row in rows}


JOB_QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {
    FindJob: _find_job,
    FindJobs: lambda conn, query: tuple(load_job(conn.execute, i) for i in query.job_ids),
    ListJobs: _list_jobs,
    AnyReady: _any_ready,
    AheadOf: _ahead_of,
    CountJobs: _count_jobs,
    ListTotals: _list_totals,
}
