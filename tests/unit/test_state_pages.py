"""Pages of a list that is far longer than a span: each is what sorting all of it would give."""

from __future__ import annotations

import itertools
import random
import sqlite3

import pytest
from msgspec.structs import replace

from swarmd.domain.jobs import JobFilter, JobId, JobKind, JobStatus
from swarmd.state import commands as c
from swarmd.state import pages, schema
from swarmd.state.machine import dump_hash
from swarmd.state.rules.spans import SPAN_JOBS
from tests.unit.test_state_jobs import HOUR_MS, State

COUNT = 3 * SPAN_JOBS
PENDING = (JobStatus.PENDING, JobStatus.ASSIGNED)


@pytest.fixture(scope="module")
def long_queue() -> State:
    """Jobs of several types, priorities and standings, unevenly, with holes where some were
    forgotten: a whole span, and the beginning."""
    state, chance = State(), random.Random(5)
    spec = state.submit("first").spec
    for start in range(0, COUNT, 100):
        jobs = tuple(
            c.NewJob(
                JobId(f"j{number}"),
                replace(
                    spec,
                    type="rare" if chance.random() < 0.003 else f"t{chance.randrange(3)}",
                    priority=chance.choice((10, 50, 50, 50, 100)),
                ),
            )
            for number in range(start, start + 100)
        )
        state.apply(c.SubmitJobs(jobs))
    ids = [JobId(f"j{number}") for number in range(COUNT)]
    state.apply(c.CancelJobs(tuple(ids[SPAN_JOBS : 2 * SPAN_JOBS])))
    state.apply(c.CancelJobs(tuple(ids[:300])))
    state.now += HOUR_MS
    while state.apply(c.PruneJobs(state.now, 100, 1)):
        pass
    state.apply(c.CancelJobs(tuple(chance.sample(ids[2 * SPAN_JOBS :], 500))))
    state.node(slots=50)
    for job_id in chance.sample(ids[300:SPAN_JOBS], 50):
        state.assign(job_id)
    for _ in range(20):
        state.claim()
    return state


def test_counts_of_spans_are_those_of_the_rows(long_queue: State) -> None:
    long_queue.check_counts()


@pytest.mark.parametrize("kind", [None, JobKind.BINARY, JobKind.IMAGE])
@pytest.mark.parametrize("priority", [None, 10, 7])
@pytest.mark.parametrize("type_", [None, "t1", "rare", "none"])
@pytest.mark.parametrize(
    "statuses", [(), PENDING[:1], PENDING, (JobStatus.RUNNING,), tuple(JobStatus)]
)
def test_a_page_is_what_sorting_all_would_give(
    long_queue: State, statuses: tuple[JobStatus, ...], type_: str | None, priority: int | None,
    kind: JobKind | None,
) -> None:  # fmt: skip
    def fits(row: tuple[int, str, str, str, int]) -> bool:
        return (
            (kind is None or row[1] == kind)
            and (not statuses or row[2] in statuses)
            and (type_ is None or row[3] == type_)
            and (priority is None or row[4] == priority)
        )

    rows = long_queue.conn.execute("SELECT seq, kind, status, type, priority FROM jobs")
    whole = sorted((row[0] for row in rows if fits(row)), reverse=True)
    wanted = JobFilter(kind=kind, statuses=statuses, type=type_, priority=priority)
    edges = {0, 1, 99, SPAN_JOBS - 1, SPAN_JOBS, len(whole) // 2, len(whole) - 1, len(whole), 2**60}
    for limit, offset in itertools.product((1, 100, 1000), sorted(edges)):
        if offset >= 0:
            found = pages.find_page(long_queue.conn, replace(wanted, limit=limit, offset=offset))
            assert found == whole[offset : offset + limit], (limit, offset)


def test_more_streams_than_one_statement_takes() -> None:
    state = State()
    for number in range(200):
        state.submit(f"j{number}", priority=number % 150)
    wanted = JobFilter(kind=JobKind.BINARY, limit=30, offset=40)
    assert pages.find_page(state.conn, wanted) == list(range(160, 130, -1))


def test_a_state_of_the_version_before_is_counted_when_it_is_opened() -> None:
    """What an older version wrote has other indexes and no counts; opened, it is as if it had
    been written by this one, so that replicas agree whenever each of them was upgraded."""
    state = State()
    state.node()
    for number, type_ in enumerate("tut"):
        state.submit(f"j{number}", type=type_, priority=10 * number)
    state.assign("j0")
    state.apply(c.CancelJobs((JobId("j1"),)))
    old = sqlite3.connect(":memory:", isolation_level=None)
    state.conn.backup(old)
    for statement in (
        "DROP TABLE spans",
        "DROP INDEX jobs_status",
        "DROP INDEX jobs_type",
        "CREATE INDEX jobs_kind ON jobs(kind, seq)",
        "CREATE INDEX jobs_status ON jobs(kind, status, seq)",
        "CREATE INDEX jobs_type ON jobs(kind, type, seq)",
        "CREATE INDEX jobs_priority ON jobs(kind, priority, seq)",
        "DELETE FROM _sqlite_migrations WHERE name = 'spans'",
    ):
        old.execute(statement)
    schema.migrate(old)
    assert dump_hash(old) == dump_hash(state.conn)
    indexes = "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql NOT NULL ORDER BY name"
    assert old.execute(indexes).fetchall() == state.conn.execute(indexes).fetchall()
