"""The life of a job in the machine alone: entries in, values and events out, no clock, no wait."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, NotFound, SwarmError
from swarmd.domain.events import AttemptStopped, Event, JobEnded, JobReady
from swarmd.domain.jobs import (
    RECOVERIES_MAX,
    AttemptId,
    AttemptStatus,
    Constraint,
    Fetch,
    Installed,
    Job,
    JobFilter,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Priority,
    Resources,
    Result,
)
from swarmd.domain.nodes import Capacity, Node
from swarmd.state import commands as c
from swarmd.state import queries as q
from swarmd.state.machine import Machine, dump_hash
from swarmd.state.rules.jobs import OTHER, TYPES_MAX
from swarmd.state.schema import migrate

SHA = "a" * 64
HOUR_MS = 3600_000


class State:
    """A machine in memory, driven an entry at a time."""

    def __init__(self) -> None:
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        migrate(self.conn)
        self.machine = Machine(self.conn)
        self.now = 1_000_000
        self.index = itertools.count(1)
        self.events: list[Event] = []
        self.log: list[c.Entry] = []

    def entry(self, command: Any, term: int = 1) -> c.Entry:
        return c.Entry(next(self.index), term, self.now, Actor("t", "test"), command)

    def apply(self, command: Any, term: int = 1) -> Any:
        entry = self.entry(command, term)
        self.log.append(entry)
        (applied,) = self.machine.apply([entry])
        self.events = applied.events
        if applied.refusal is not None:
            raise applied.refusal
        return applied.value

    def ask(self, query: q.Query[Any]) -> Any:
        return q.QUERIES[type(query)](self.conn, query)

    def submit(self, job_id: str = "j1", **fields: Any) -> Job:
        spec = JobSpec(**{"type": "t", "source": Fetch("http://h/b", SHA), **fields})
        (outcome,) = self.apply(c.SubmitJobs((c.NewJob(JobId(job_id), spec),)))
        assert isinstance(outcome, Job), outcome
        return outcome

    def refusal(self, job_id: str = "j1", **fields: Any) -> c.Refusal:
        spec = JobSpec(**{"type": "t", "source": Fetch("http://h/b", SHA), **fields})
        (outcome,) = self.apply(c.SubmitJobs((c.NewJob(JobId(job_id), spec),)))
        assert isinstance(outcome, c.Refusal), outcome
        return outcome

    def job(self, job_id: str = "j1") -> Job:
        found = self.ask(q.FindJob(job_id))
        assert found is not None
        return found  # type: ignore[no-any-return]

    def node(self, name: str = "n1", slots: int = 2, **capacity: Any) -> None:
        offers = Capacity(slots, **capacity)
        self.apply(c.PutNode(Node(NodeId(name), name, capacity=offers, machine_version=c.VERSION)))

    def assign(self, job_id: str = "j1", node: str = "n1", devices: tuple[str, ...] = ()) -> int:
        command = c.AssignJobs((c.Assignment(JobId(job_id), NodeId(node), devices),), 1)
        return self.apply(command)  # type: ignore[no-any-return]

    def end(self, job_id: str = "j1", status: AttemptStatus = AttemptStatus.COMPLETED,
            result: Result | None = None) -> bool:  # fmt: skip
        job = self.job(job_id)
        assert job.attempt_id is not None and job.node_id is not None
        report = c.AttemptReport(job.attempt_id, 20, 10, status, result or Result(exit_code=0))
        (counted,) = self.apply(c.ReportAttempts(job.node_id, (report,)))
        return bool(counted)

    def claim(self, executor: str = "e1", **labels: str) -> Job | None:
        return self.apply(c.ClaimJob(executor, "10.0.0.1", labels))  # type: ignore[no-any-return]

    def finish(self, job_id: str = "j1", executor: str = "e1", ok: bool = True) -> Job:
        result = Result(exit_code=0 if ok else 1, error=None if ok else "broke")
        return self.apply(c.FinishClaim(JobId(job_id), executor, ok, result))  # type: ignore[no-any-return]

    def check_counts(self) -> None:
        """What is counted is what a count of the rows says."""
        sql = "SELECT kind, status, priority, type, count(*) FROM jobs GROUP BY 1, 2, 3, 4"
        assert dict_of(self.conn.execute(sql)) == dict_of(
            self.conn.execute("SELECT kind, status, priority, type, n FROM counts")
        )
        ready = "SELECT shape, count(*) FROM jobs WHERE ready = 1 GROUP BY 1"
        assert dict_of(self.conn.execute(ready)) == dict_of(
            self.conn.execute("SELECT id, ready FROM shapes WHERE ready != 0")
        )
        spans = "SELECT kind, {}, seq >> 11, status, priority, count(*) FROM jobs GROUP BY 1, 2, 3"
        by_type, of_all = (spans.format(type_) + ", 4, 5" for type_ in ("type", "''"))
        assert dict_of(self.conn.execute(by_type)) | dict_of(self.conn.execute(of_all)) == dict_of(
            self.conn.execute("SELECT * FROM spans")
        )
        jobs = "SELECT shape, count(*) FROM jobs GROUP BY 1"
        assert dict_of(self.conn.execute(jobs)) == dict_of(
            self.conn.execute("SELECT id, jobs FROM shapes")
        )


def dict_of(rows: Iterator[tuple[Any, ...]]) -> dict[tuple[Any, ...], Any]:
    return {row[:-1]: row[-1] for row in rows}


@pytest.fixture
def state() -> Iterator[State]:
    state = State()
    yield state
    state.check_counts()
    state.conn.close()


def test_a_job_is_assigned_started_and_completed(state: State) -> None:
    state.node()
    assert state.submit().status is JobStatus.PENDING
    assert state.assign() == 1
    assert state.job().status is JobStatus.ASSIGNED
    attempt_id = state.job().attempt_id
    assert attempt_id is not None
    state.now += 500
    state.apply(c.ReportAttempts(NodeId("n1"), (c.AttemptReport(attempt_id, 100),)))
    running = state.job()
    assert (running.status, running.started_at) == (JobStatus.RUNNING, state.now - 100)
    state.now += 1000
    report = c.AttemptReport(attempt_id, 1100, 200, AttemptStatus.COMPLETED, Result(exit_code=0))
    assert state.apply(c.ReportAttempts(NodeId("n1"), (report,))) == (True,)
    job = state.job()
    assert (job.status, job.ended_at) == (JobStatus.COMPLETED, state.now - 200)
    assert [a.status for a in job.attempts] == [AttemptStatus.COMPLETED]
    assert job.result == Result(exit_code=0)


def test_a_job_that_is_held_is_given_to_nobody_else(state: State) -> None:
    state.node("n1")
    state.node("n2")
    state.submit()
    assert state.assign(node="n1") == 1
    assert state.assign(node="n2") == 0
    assert state.claim() is None


def test_a_report_of_an_attempt_that_lost_its_job_moves_nothing(state: State) -> None:
    state.node()
    state.submit()
    state.assign()
    attempt_id = state.job().attempt_id
    assert attempt_id is not None
    state.apply(c.CancelJobs((JobId("j1"),)))
    report = c.AttemptReport(attempt_id, 20, 10, AttemptStatus.COMPLETED, Result(exit_code=0))
    assert state.apply(c.ReportAttempts(NodeId("n1"), (report,))) == (False,)
    assert state.job().status is JobStatus.CANCELLED


def test_a_report_from_another_node_does_not_count(state: State) -> None:
    state.node("n1")
    state.submit()
    state.assign()
    attempt_id = state.job().attempt_id
    assert attempt_id is not None
    report = c.AttemptReport(attempt_id, 20, 10, AttemptStatus.COMPLETED)
    assert state.apply(c.ReportAttempts(NodeId("n2"), (report,))) == (False,)
    assert state.job().status is JobStatus.ASSIGNED


def test_claims_go_by_priority_then_by_age(state: State) -> None:
    state.submit("low", priority=Priority.BEST_EFFORT)
    state.submit("first", priority=Priority.FOREGROUND)
    state.submit("second", priority=Priority.FOREGROUND, resources=Resources(cpus=1.0))
    state.submit("middle")
    got = [state.claim(f"e{i}") for i in range(5)]
    assert [job.id if job else None for job in got] == ["first", "second", "middle", "low", None]


def test_an_executor_gets_no_job_whose_constraints_it_does_not_meet(state: State) -> None:
    state.submit(constraints=(Constraint.parse("node.labels.disk==ssd"),))
    state.submit("gpu", resources=Resources(gpus=1))
    assert state.claim() is None
    job = state.claim("e2", disk="ssd")
    assert job is not None and job.id == "j1"


def test_only_the_holder_may_finish_a_claim_and_only_once(state: State) -> None:
    state.submit()
    state.claim("e1")
    with pytest.raises(Conflict, match="another executor"):
        state.finish(executor="e2")
    assert state.finish().status is JobStatus.COMPLETED
    with pytest.raises(Conflict, match="completed, not running"):
        state.finish()
    with pytest.raises(NotFound):
        state.finish("nobody")


def test_a_name_cannot_pass_for_a_node(state: State) -> None:
    state.node("n1")
    state.submit()
    state.claim("n1")
    assert state.ask(q.ListDuties("n1")) == []
    assert state.job().node_id == "n1" and state.job().attempts[0].external


def test_a_failure_is_retried_after_a_minute_then_two_then_for_good(state: State) -> None:
    state.node()
    state.submit(max_retries=2)
    for wait_ms in (60_000, 120_000):
        assert state.assign() == 1
        state.end(status=AttemptStatus.FAILED, result=Result(exit_code=3, error="exit code 3"))
        job = state.job()
        assert (job.status, job.waits) == (JobStatus.PENDING, "backoff")
        assert job.not_before == state.now + wait_ms
        assert state.assign() == 0
        state.now += wait_ms - 1
        assert state.apply(c.WakeJobs(10, 1)) == 0
        state.now += 1
        assert state.apply(c.WakeJobs(10, 1)) == 1
    assert state.assign() == 1
    state.end(status=AttemptStatus.FAILED, result=Result(exit_code=3, error="exit code 3"))
    job = state.job()
    assert (job.status, job.failures, job.error) == (JobStatus.FAILED, 3, "exit code 3")
    assert [a.status for a in job.attempts] == [AttemptStatus.FAILED] * 3


def test_silence_gives_the_job_back_until_the_tenth_time(state: State) -> None:
    state.submit()
    for recovery in range(1, RECOVERIES_MAX + 1):
        job = state.claim()
        assert job is not None and job.attempt_id is not None
        assert state.apply(c.ExpireAttempts((job.attempt_id,), (), 1)) == 1
        assert state.job().attempts[-1].status is AttemptStatus.TIMEOUT
        assert state.job().recoveries == recovery
    job = state.job()
    assert job.status is JobStatus.FAILED
    assert job.error is not None and "dead letter" in job.error


def test_a_recovery_is_no_failure(state: State) -> None:
    state.submit(max_retries=1)
    job = state.claim()
    assert job is not None and job.attempt_id is not None
    state.apply(c.ExpireAttempts((job.attempt_id,), (), 1))
    assert (state.job().status, state.job().failures) == (JobStatus.PENDING, 0)


def test_an_executor_that_comes_back_too_late_is_told_so(state: State) -> None:
    state.submit()
    job = state.claim("e1")
    assert job is not None and job.attempt_id is not None
    state.apply(c.ExpireAttempts((job.attempt_id,), (), 1))
    assert state.claim("e2") is not None
    with pytest.raises(Conflict):
        state.finish(executor="e1")
    assert state.finish(executor="e2").status is JobStatus.COMPLETED


def test_an_overdue_claim_fails_or_is_retried(state: State) -> None:
    state.submit(timeout_s=5.0)
    job = state.claim()
    assert job is not None and job.attempt_id is not None
    (claim,) = state.ask(q.ListClaims())
    assert claim.deadline_at == state.now + 5000
    state.apply(c.ExpireAttempts((), (job.attempt_id,), 1))
    assert (state.job().status, state.job().error) == (JobStatus.FAILED, "timed out")


def test_cancel_of_a_held_job_stops_its_attempt(state: State) -> None:
    state.node()
    state.submit()
    state.assign()
    (got,) = state.apply(c.CancelJobs((JobId("j1"),)))
    assert isinstance(got, Job) and got.status is JobStatus.CANCELLED
    stopped = [e.body for e in state.events if isinstance(e.body, AttemptStopped)]
    assert [s.node_id for s in stopped] == ["n1"]
    assert state.ask(q.ListDuties("n1")) == []


def test_cancel_only_pending_refuses_a_running_job_and_an_ended_one(state: State) -> None:
    state.submit()
    state.claim()
    (refusal,) = state.apply(c.CancelJobs((JobId("j1"),), only_pending=True))
    assert refusal.code == "conflict" and "running" in refusal.message
    state.finish()
    (refusal,) = state.apply(c.CancelJobs((JobId("j1"),)))
    assert refusal.code == "conflict" and "completed" in refusal.message
    (refusal,) = state.apply(c.CancelJobs((JobId("?"),)))
    assert refusal.code == "not_found"


def test_dependents_run_only_after_all_they_wait_for(state: State) -> None:
    state.submit("a")
    state.submit("b")
    waiting = state.submit("c", depends_on=(JobId("a"), JobId("b")))
    assert waiting.waits == "dependencies"
    for name in ("a", "b"):
        job = state.claim()
        assert job is not None and job.id == name
        state.finish(name)
        assert any(isinstance(e.body, JobEnded) and e.body.dependents for e in state.events)
        assert state.job("c").waits == "dependencies"
        assert state.apply(c.SettleDependents(10, 1)) == 0
    assert any(isinstance(e.body, JobReady) for e in state.events)
    last = state.claim()
    assert last is not None and last.id == "c"


def test_a_failed_dependency_fails_those_that_wait_and_theirs(state: State) -> None:
    state.submit("a")
    state.submit("b", depends_on=(JobId("a"),))
    state.submit("c", depends_on=(JobId("b"),))
    state.apply(c.CancelJobs((JobId("a"),)))
    while state.apply(c.SettleDependents(1, 1)):
        pass
    assert state.job("b").status is JobStatus.FAILED
    assert state.job("c").error == "dependency b is failed"


def test_a_cancelled_dependent_is_left_alone_and_may_be_forgotten(state: State) -> None:
    state.submit("a")
    state.submit("b", depends_on=(JobId("a"),))
    state.apply(c.CancelJobs((JobId("b"),)))
    state.now += HOUR_MS
    assert state.apply(c.PruneJobs(state.now, 10, 1)) == 1
    state.claim()
    state.finish("a")
    assert state.apply(c.SettleDependents(10, 1)) == 0


def test_dependencies_that_cannot_come_true_are_refused(state: State) -> None:
    assert state.refusal(depends_on=(JobId("no"),)).code == "invalid"
    state.submit("a")
    state.apply(c.CancelJobs((JobId("a"),)))
    assert state.refusal("b", depends_on=(JobId("a"),)).code == "conflict"
    state.submit("d")
    state.claim()
    state.finish("d")
    assert state.submit("e", depends_on=(JobId("d"),)).waits is None


def test_an_idempotency_key_stands_for_one_job(state: State) -> None:
    first = state.submit("a", idempotency_key="k")
    again = state.submit("b", idempotency_key="k")
    assert again.id == first.id
    assert state.refusal("c", idempotency_key="k", arguments=("x",)).code == "conflict"
    state.apply(c.CancelJobs((JobId("a"),)))
    state.now += HOUR_MS
    state.apply(c.PruneJobs(state.now, 10, 1))
    assert state.submit("d", idempotency_key="k").id == "d"


def test_exclusive_devices_have_one_holder(state: State) -> None:
    state.node(slots=8, devices=("gpu0", "gpu1"))
    for name in ("a", "b"):
        state.submit(name, resources=Resources(gpus=1))
    assert state.assign("a", devices=("n1:gpu0",)) == 1
    assert state.assign("b", devices=("n1:gpu0",)) == 0
    assert state.assign("b", devices=()) == 0
    assert state.assign("b", devices=("n1:gpu1",)) == 1


def test_more_than_a_node_has_is_not_assigned(state: State) -> None:
    state.node(slots=8, cpus=2.0, memory_bytes=100)
    state.submit("a", resources=Resources(cpus=1.5))
    state.submit("b", resources=Resources(cpus=1.0))
    state.submit("c", resources=Resources(memory_bytes=200))
    state.submit("d", constraints=(Constraint.parse("node.name!=n1"),))
    assert [state.assign(name) for name in "abcd"] == [1, 0, 0, 0]


def test_a_leader_of_another_term_is_refused_and_changes_nothing(state: State) -> None:
    state.node()
    state.submit()
    before = dump_hash(state.conn)
    with pytest.raises(Conflict):
        state.apply(c.AssignJobs((c.Assignment(JobId("j1"), NodeId("n1")),), 1), term=2)
    assert state.job().status is JobStatus.PENDING
    # How far the log is applied is noted for a refused entry too.
    state.conn.execute("UPDATE meta SET value = value - 1 WHERE key IN ('applied', 'applied_term')")
    assert dump_hash(state.conn) == before


def test_a_lost_attempt_is_queued_in_its_old_place(state: State) -> None:
    state.node()
    state.submit("a")
    state.submit("b")
    state.assign("a")
    state.end("a", AttemptStatus.LOST, Result(error="gone"))
    job = state.claim()
    assert job is not None and job.id == "a"


def test_pruning_forgets_the_job_and_all_that_hung_on_it(state: State) -> None:
    state.node()
    state.apply(c.AddBlob(SHA, 10, NodeId("n1")))
    state.submit(source=Fetch(f"blob:sha256:{SHA}", SHA), idempotency_key="k")
    assert state.apply(c.DropBlobs(state.now + HOUR_MS, 10, 1)) == ()
    state.assign()
    state.end()
    state.now += HOUR_MS
    assert state.apply(c.PruneJobs(state.now, 10, 1)) == 1
    for table in ("jobs", "job_specs", "job_results", "attempts", "idempotency", "blob_refs",
                  "shapes"):  # fmt: skip
        assert state.conn.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
    assert state.apply(c.DropBlobs(state.now, 10, 1)) == ()
    assert state.apply(c.DropBlobs(state.now + 1, 10, 1)) == (SHA,)


def test_listing_filters_pages_and_orders(state: State) -> None:
    for number in range(10):
        state.submit(f"j{number}", type="even" if number % 2 == 0 else "odd")
    state.claim()

    def ids(**wanted: Any) -> list[str]:
        return [job.id for job in state.ask(q.ListJobs(JobFilter(**wanted)))]

    assert ids(limit=3) == ["j9", "j8", "j7"]
    assert ids(limit=3, offset=8) == ["j1", "j0"]
    assert ids(kind=JobKind.BINARY, type="even") == ["j8", "j6", "j4", "j2", "j0"]
    assert ids(kind=JobKind.BINARY, statuses=(JobStatus.RUNNING,)) == ["j0"]
    both = (JobStatus.RUNNING, JobStatus.PENDING)
    assert ids(kind=JobKind.BINARY, statuses=both, limit=2, offset=8) == ["j1", "j0"]
    assert ids(kind=JobKind.PACKAGE) == []
    assert ids(statuses=both, limit=2, offset=8) == ["j1", "j0"]
    assert ids(type="odd", limit=2) == ["j9", "j7"]
    assert ids(kind=JobKind.BINARY, limit=2, offset=9) == ["j0"]
    assert ids(kind=JobKind.BINARY, type="odd", priority=Priority.BACKGROUND, limit=1) == ["j9"]


def test_a_changed_past_breaks_the_chain_of_events(state: State) -> None:
    for number in range(5):
        state.submit(f"j{number}")
    assert verify_chain(state.conn)
    state.conn.execute("UPDATE events SET at = at + 1 WHERE seq = 3")
    assert not verify_chain(state.conn)


def verify_chain(conn: sqlite3.Connection) -> bool:
    from swarmd.state.tx import chained

    previous = bytes(32)
    for seq, at, index, actor, body, digest in conn.execute("SELECT * FROM events ORDER BY seq"):
        if chained(previous, seq, at, index, actor, body) != digest:
            return False
        previous = digest
    return True


def test_events_are_pruned_from_the_old_end_and_the_newest_stays(state: State) -> None:
    for number in range(20):
        state.submit(f"j{number}")
    assert state.apply(c.PruneEvents(5, 1000, 1)) == 15
    state.apply(c.PruneEvents(0, 1000, 1))
    assert len(state.ask(q.ListEvents(0))) == 1
    state.submit("next")
    assert state.events[0].seq == 21


def test_the_same_entries_leave_the_same_state_however_they_are_batched(state: State) -> None:
    state.node(slots=4)
    for number in range(30):
        state.submit(f"j{number}", max_retries=number % 2, type=f"t{number % 3}")
        if number % 3 == 0:
            state.claim(f"e{number}")
        elif number % 3 == 1 and state.assign(f"j{number}"):
            status = AttemptStatus.FAILED if number % 2 else AttemptStatus.COMPLETED
            state.end(f"j{number}", status)
        state.now += 1000
    state.now += HOUR_MS
    state.apply(c.WakeJobs(100, 1))
    state.apply(c.PruneJobs(state.now, 5, 1))
    for size in (1, 7, len(state.log)):
        other = State()
        for start in range(0, len(state.log), size):
            other.machine.apply(state.log[start : start + size])
        assert dump_hash(other.conn) == dump_hash(state.conn), size
        other.conn.close()


def test_a_refused_entry_between_others_leaves_no_trace(state: State) -> None:
    spec = JobSpec("t", Fetch("http://h/b", SHA))
    entries = [
        state.entry(c.SubmitJobs((c.NewJob(JobId("a"), spec),))),
        state.entry(c.FinishClaim(JobId("a"), "e", True, Result())),
        state.entry(c.ClaimJob("e", "h")),
        state.entry(c.FinishClaim(JobId("a"), "e", True, Result())),
    ]
    applied = state.machine.apply(entries)
    refused = [isinstance(one.refusal, SwarmError) for one in applied]
    assert refused == [False, True, False, False]
    assert state.job("a").status is JobStatus.COMPLETED


def test_attempt_ids_are_never_used_again(state: State) -> None:
    seen: set[AttemptId] = set()
    for number in range(3):
        state.submit(f"j{number}")
        job = state.claim()
        assert job is not None and job.attempt_id is not None and job.attempt_id not in seen
        seen.add(job.attempt_id)
        state.finish(f"j{number}")
        state.now += HOUR_MS
        state.apply(c.PruneJobs(state.now, 10, 1))


def test_programs_of_our_nodes_are_not_for_executors_from_outside(state: State) -> None:
    state.node()
    state.submit(source=Installed("true"))
    assert state.claim() is None
    assert state.assign() == 1


def test_types_that_come_without_end_do_not_grow_the_totals_without_end(state: State) -> None:
    for start in range(0, TYPES_MAX + 100, 100):
        specs = [JobSpec(f"t{n}", Fetch("http://h/b", SHA)) for n in range(start, start + 100)]
        state.apply(c.SubmitJobs(tuple(c.NewJob(JobId(spec.type), spec) for spec in specs)))
    totals = state.ask(q.ListTotals(JobKind.BINARY))
    submitted = {label: n for (name, label), n in totals.items() if name.startswith("submitted")}
    assert len(submitted) == TYPES_MAX + 1 and submitted[OTHER] == 100
