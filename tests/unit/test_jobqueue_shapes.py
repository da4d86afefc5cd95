"""The job queue's words and shapes: total over the domain, and exactly as documented."""

from __future__ import annotations

import subprocess

import msgspec
import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from api.common.metrics import RequestMetrics
from api.jobqueue.envelope import ENVELOPE, STATUSES
from api.jobqueue.metrics import OTHER, PREFIX, TYPES_MAX, exposition
from api.jobqueue.shapes import CancelledMany, Details, HealthOut, Rejected, Row, StatsOut
from api.jobqueue.words import ATTEMPT_WORDS, PRIORITIES, priority_word, status_word
from swarmd.domain.errors import ALL_ERRORS, Busy, Conflict, Invalid, NotFound, SwarmError
from swarmd.domain.jobs import (
    Attempt,
    AttemptId,
    AttemptStatus,
    Fetch,
    Installed,
    Job,
    JobId,
    JobSpec,
    JobStatus,
    NodeId,
    Output,
    Priority,
    Result,
)
from swarmd.ops.stats import Histogram, Stats, Totals
from swarmd.ops.swarm import Health
from tests.contract.jobqueue import DETAILS, HEALTH, ROW, STATS
from tests.contract.jobqueue import ENVELOPE as ENVELOPE_SHAPE
from tests.contract.kinds import Shape, faults
from tests.parts import need

AT = 1_704_110_400_123
SPEC = JobSpec(type="data-processing", source=Fetch("https://example.com/x", "ab" * 32))
PENDING = Job(
    seq=1, id=JobId("job-1"), spec=SPEC, tenant="default", status=JobStatus.PENDING,
    created_at=AT, revision=1,
)  # fmt: skip


def attempt(status: AttemptStatus, started_at: int | None = AT + 1000) -> Attempt:
    return Attempt(
        id=AttemptId(1), job_id=PENDING.id, node_id=NodeId("worker-1"), external=True,
        address="192.168.1.100", status=status, assigned_at=AT + 500, started_at=started_at,
        ended_at=AT + 61_000,
    )  # fmt: skip


COMPLETED = replace(
    PENDING, status=JobStatus.COMPLETED, node_id=NodeId("worker-1"), started_at=AT + 1000,
    ended_at=AT + 61_000, result=Result(exit_code=0, stdout=Output(b"out", size=3)),
    attempts=(attempt(AttemptStatus.TIMEOUT), attempt(AttemptStatus.COMPLETED)),
)  # fmt: skip


def as_sent(value: object) -> object:
    return msgspec.json.decode(msgspec.json.encode(value))


@pytest.mark.parametrize("status", JobStatus)
def test_every_standing_has_a_word(status: JobStatus) -> None:
    expected = "pending" if status is JobStatus.ASSIGNED else status.value
    assert status_word(status) == expected


def test_every_attempts_end_has_a_word_or_is_left_out() -> None:
    assert set(ATTEMPT_WORDS) == set(AttemptStatus)
    words = {word for word in ATTEMPT_WORDS.values() if word}
    assert words == {"running", "completed", "failed", "timeout"}


def test_every_priority_has_a_word() -> None:
    assert {priority_word(n) for n in PRIORITIES.values()} == set(PRIORITIES)
    assert [priority_word(n) for n in (1000, 99, 49, 0, -5)] == [
        "foreground", "background", "best_effort", "best_effort", "best_effort",
    ]  # fmt: skip


def test_the_envelope_is_total() -> None:
    assert set(STATUSES) == set(ALL_ERRORS)
    for error in ALL_ERRORS:
        answer = ENVELOPE.answer(error("no", field="x", job_id="y", odd=object()))
        assert answer.status in (400, 401, 403, 404, 503)
        body = msgspec.json.decode(answer.body)
        assert body == {"error": "no", "context": {"field": "x", "job_id": "y"}}
        assert faults(body, ENVELOPE_SHAPE) == []


def test_busy_says_when_to_ask_again() -> None:
    answer = ENVELOPE.answer(Busy("later", retry_after_s=7))
    assert (answer.status, dict(answer.headers)["Retry-After"]) == (503, "7")


def test_a_refusal_speaks_of_no_standing_that_is_not_shown() -> None:
    answer = ENVELOPE.answer(Conflict("no", status="assigned"))
    assert msgspec.json.decode(answer.body)["context"] == {"status": "pending"}


def test_times_are_whole_seconds_in_utc() -> None:
    row = as_sent(Row.of(COMPLETED, {}))
    assert isinstance(row, dict)
    assert row["created_at"] == "2024-01-01T12:00:00Z"
    assert row["started_at"] == "2024-01-01T12:00:01Z"
    assert row["completed_at"] == "2024-01-01T12:01:01Z"


@pytest.mark.parametrize(
    ("made", "shape"),
    [
        (Row.of(PENDING, {}), ROW),
        (Row.of(COMPLETED, {}), ROW),
        (Details.of(PENDING, {}), DETAILS),
        (Details.of(COMPLETED, {}, "out", ""), DETAILS),
        (Details.of(replace(PENDING, spec=replace(SPEC, source=Installed("true"))), {}),
         DETAILS),
        (Details.of(replace(PENDING, waits="backoff", not_before=AT), {}), DETAILS),
        (HealthOut.of(Health(True, True, "a", "ok")), HEALTH),
        (HealthOut.of(Health(False, False, None, "stopping")), HEALTH),
        (StatsOut.of(Stats({}, {}, 0)), STATS),
    ],
)  # fmt: skip
def test_shapes_keep_the_contract(made: object, shape: Shape) -> None:
    assert faults(as_sent(made), shape) == []


def test_a_job_that_has_not_started_is_nobodys_or_its_nodes() -> None:
    again = replace(COMPLETED, status=JobStatus.PENDING, ended_at=None, result=None)
    assert (Row.of(again, {}).executor_id, Row.of(again, {}).started_at) == (None, None)
    given = replace(PENDING, status=JobStatus.ASSIGNED, node_id=NodeId("a"))
    assert (Row.of(given, {}).status, Row.of(given, {}).executor_id) == ("pending", "a")
    assert Row.of(given, {"a": "anna"}).executor_id == "anna"


def test_attempts_that_never_started_are_left_out_and_lost_ones_timed_out() -> None:
    tries = (
        attempt(AttemptStatus.REVOKED, None),
        attempt(AttemptStatus.LOST),
        attempt(AttemptStatus.FAILED, None),
        attempt(AttemptStatus.CANCELLED),
        attempt(AttemptStatus.ASSIGNED, None),
    )
    shown = Details.of(replace(COMPLETED, attempts=tries), {}).attempts
    assert [a.status for a in shown] == ["timeout", "failed", "failed"]
    assert as_sent(shown[1].started_at) == "2024-01-01T12:00:00Z"


def test_a_refused_element_says_its_place() -> None:
    made = as_sent(Rejected.of(Invalid("no", field="type"), 3))
    assert made == {
        "status": "rejected", "error": "no", "context": {"field": "type", "index": 3},
    }  # fmt: skip


def test_what_became_of_many() -> None:
    outcomes: list[Job | SwarmError] = [PENDING, NotFound("no such job")]
    assert as_sent(CancelledMany.of(["a", "b"], outcomes)) == {
        "cancelled": 1, "failed": 1, "errors": [{"job_id": "b", "error": "no such job"}],
    }  # fmt: skip


def test_stats_count_what_is_assigned_as_pending() -> None:
    made = StatsOut.of(
        Stats({JobStatus.PENDING: 1, JobStatus.ASSIGNED: 2}, {Priority.FOREGROUND: 2, 70: 1}, 4)
    )
    assert made.jobs_by_status["pending"] == 3
    assert made.pending_by_priority == {"foreground": 2, "background": 1, "best_effort": 0}


TIMES = Histogram((0.1, 1.0), (3, 2, 1), 9.5)
TOTALS = Totals(
    submitted={("a", 100): 5, ('say "hi"\\', 50): 2},
    completed=4, failed=1, cancelled=2,
    in_queue={(JobStatus.PENDING, 100): 1, (JobStatus.ASSIGNED, 100): 2},
    wait=TIMES, run=TIMES,
)  # fmt: skip


def page(totals: Totals = TOTALS) -> str:
    requests = RequestMetrics(PREFIX, CollectorRegistry())
    requests.count("GET", "/api/v1/jobs", 200, 0.01)
    return exposition(totals, 3, requests.registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_say_what_was_counted() -> None:
    found = samples(page())

    def value(name: str, **labels: str) -> float:
        return found[f"executr_{name}", frozenset(labels.items())]

    assert value("jobs_submitted_total", type="a", priority="foreground") == 5
    assert value("jobs_submitted_total", type='say "hi"\\', priority="background") == 2
    assert value("jobs_completed_total") == 4
    assert value("jobs_failed_total") == 1
    assert value("jobs_cancelled_total") == 2
    assert value("jobs_in_queue", status="pending", priority="foreground") == 3
    assert value("jobs_in_queue", status="running", priority="best_effort") == 0
    assert value("executors_active") == 3
    assert value("job_wait_duration_seconds_bucket", le="0.1") == 3
    assert value("job_wait_duration_seconds_bucket", le="1") == 5
    assert value("job_run_duration_seconds_bucket", le="+Inf") == 6
    assert value("job_run_duration_seconds_count") == 6
    assert value("job_run_duration_seconds_sum") == 9.5
    endpoint = {"method": "GET", "endpoint": "/api/v1/jobs", "status": "200"}
    assert value("api_requests_total", **endpoint) == 1


def test_a_label_has_a_bounded_number_of_values_and_no_series_shrinks() -> None:
    def shown(types: list[str]) -> dict[str, float]:
        many = msgspec.structs.replace(TOTALS, submitted={(t, 50): 2 for t in types})
        return {
            dict(labels)["type"]: value
            for (name, labels), value in samples(page(many)).items()
            if name == "executr_jobs_submitted_total"
        }

    types = [f"t{n:04}" for n in range(1000)]
    before = shown(types)
    assert len(before) == TYPES_MAX + 1
    assert sum(before.values()) == 2000
    after = shown([*types, "a-new-one"])
    assert all(after[name] >= before[name] for name in before.keys() & after.keys())
    assert after[OTHER] > before[OTHER]


def test_metrics_pass_promtool() -> None:
    need("promtool")
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=page(), text=True, capture_output=True, timeout=30,
        check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stderr) == (0, "")
