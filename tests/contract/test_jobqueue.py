"""The job queue keeps its contract: every operation, every status, every field, every refusal.

One daemon without an executor of its own serves the module, so that jobs move only when told to.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
import trio

from tests.contract.cases import check_answer, promised, statuses
from tests.contract.jobqueue import ENVELOPE, OPERATIONS, ROW
from tests.contract.kinds import COUNT, TEXT, TIME, faults
from tests.contract.sockets import read_all
from tests.contract.table import Operation
from tests.daemon import Daemon, Response, running_daemon
from tests.swarms import until

JOBS = "/api/v1/jobs"
JOB = {
    "type": "data-processing",
    "binary_url": "https://example.com/binary",
    "binary_sha256": "ab" * 32,
    "priority": "background",
}
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running_daemon(tmp_path_factory.mktemp("queue"), jobs={"executor": False}) as daemon:
        yield daemon


def submit(queue: Daemon, **members: object) -> str:
    answer = queue.request("POST", JOBS, {**JOB, **members})
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def clear(queue: Daemon) -> None:
    """Cancel what waits, so that the next claim gets what the test submits."""
    while rows := queue.request("GET", f"{JOBS}?status=pending&limit=1000").json:
        ids = [row["id"] for row in rows]
        assert queue.request("POST", f"{JOBS}/bulk/cancel", {"job_ids": ids}).status == 200


def claim(queue: Daemon, executor: str = "worker-1", **members: object) -> Response:
    return queue.request("POST", f"{JOBS}/claim", {"executor_id": executor, **members})


def claimed(queue: Daemon, **members: object) -> str:
    clear(queue)
    job_id = submit(queue, **members)
    answer = claim(queue, executor_ip="192.168.1.100")
    assert (answer.status, answer.json["id"]) == (200, job_id)
    return job_id


def put(
    queue: Daemon, job_id: str, verb: str, executor: str = "worker-1", **members: Any
) -> Response:
    return queue.request("PUT", f"{JOBS}/{job_id}/{verb}", {"executor_id": executor, **members})


def completed(queue: Daemon, **members: object) -> str:
    job_id = claimed(queue)
    said: dict[str, Any] = {"stdout": "out", "exit_code": 0, **members}
    answer = put(queue, job_id, "complete", **said)
    assert answer.status == 200, answer.body
    return job_id


def details(queue: Daemon, job_id: str) -> Any:
    return queue.request("GET", f"{JOBS}/{job_id}").json


def claim_anew(queue: Daemon) -> Response:
    clear(queue)
    submit(queue)
    return claim(queue)


def nothing_to_claim(queue: Daemon) -> Response:
    clear(queue)
    return claim(queue)


def listed(queue: Daemon) -> Response:
    submit(queue)
    return queue.request("GET", f"{JOBS}?limit=3")


def executors(queue: Daemon) -> Response:
    put(queue, claimed(queue), "heartbeat")
    return queue.request("GET", "/api/v1/admin/executors")


def to(method: str, path: str) -> Callable[[Daemon], Response]:
    return lambda queue: queue.request(method, path)


def on(
    made: Callable[[Daemon], str], method: str, verb: str = "", body: object = None
) -> Callable[[Daemon], Response]:
    """A request about a job that was brought to where it should stand."""
    return lambda queue: queue.request(method, f"{JOBS}/{made(queue)}{verb}", body)


def nobody(_: Daemon) -> str:
    return NOBODY


WORKER = {"executor_id": "worker-1"}
CASES: dict[tuple[str, str, int], Callable[[Daemon], Response]] = {
    ("GET", "/api/v1/health", 200): to("GET", "/api/v1/health"),
    ("GET", "/api/v1/metrics", 200): to("GET", "/api/v1/metrics"),
    ("POST", "/api/v1/jobs", 201): lambda q: q.request("POST", JOBS, JOB),
    ("POST", "/api/v1/jobs", 400): lambda q: q.request("POST", JOBS, {**JOB, "priority": "x"}),
    ("GET", "/api/v1/jobs", 200): listed,
    ("GET", "/api/v1/jobs", 400): to("GET", f"{JOBS}?limit=0"),
    ("GET", "/api/v1/jobs/{id}", 200): on(completed, "GET"),
    ("GET", "/api/v1/jobs/{id}", 404): on(nobody, "GET"),
    ("DELETE", "/api/v1/jobs/{id}", 200): on(submit, "DELETE"),
    ("DELETE", "/api/v1/jobs/{id}", 400): on(claimed, "DELETE"),
    ("DELETE", "/api/v1/jobs/{id}", 404): on(nobody, "DELETE"),
    ("POST", "/api/v1/jobs/claim", 200): claim_anew,
    ("POST", "/api/v1/jobs/claim", 204): nothing_to_claim,
    ("POST", "/api/v1/jobs/claim", 400): lambda q: q.request("POST", f"{JOBS}/claim", {}),
    ("PUT", "/api/v1/jobs/{id}/heartbeat", 200): on(claimed, "PUT", "/heartbeat", WORKER),
    ("PUT", "/api/v1/jobs/{id}/heartbeat", 400): on(claimed, "PUT", "/heartbeat", {}),
    ("PUT", "/api/v1/jobs/{id}/heartbeat", 404): on(submit, "PUT", "/heartbeat", WORKER),
    ("PUT", "/api/v1/jobs/{id}/complete", 200): on(claimed, "PUT", "/complete", WORKER),
    ("PUT", "/api/v1/jobs/{id}/complete", 400): on(completed, "PUT", "/complete", WORKER),
    ("PUT", "/api/v1/jobs/{id}/complete", 404): on(nobody, "PUT", "/complete", WORKER),
    ("PUT", "/api/v1/jobs/{id}/fail", 200): on(claimed, "PUT", "/fail", WORKER),
    ("PUT", "/api/v1/jobs/{id}/fail", 400): on(completed, "PUT", "/fail", WORKER),
    ("PUT", "/api/v1/jobs/{id}/fail", 404): on(nobody, "PUT", "/fail", WORKER),
    ("GET", "/api/v1/admin/stats", 200): to("GET", "/api/v1/admin/stats"),
    ("GET", "/api/v1/admin/executors", 200): executors,
    ("POST", "/api/v1/jobs/bulk", 201): lambda q: q.request("POST", f"{JOBS}/bulk", [JOB, {}]),
    ("POST", "/api/v1/jobs/bulk", 400): lambda q: q.request("POST", f"{JOBS}/bulk", [{}, {}]),
    ("POST", "/api/v1/jobs/bulk/cancel", 200): lambda q: q.request(
        "POST", f"{JOBS}/bulk/cancel", {"job_ids": [submit(q), NOBODY]}
    ),
    ("POST", "/api/v1/jobs/bulk/cancel", 400): lambda q: q.request(
        "POST", f"{JOBS}/bulk/cancel", {"job_ids": "all"}
    ),
    ("POST", "/api/v1/jobs/{id}/cancel", 200): on(claimed, "POST", "/cancel"),
    ("POST", "/api/v1/jobs/{id}/cancel", 400): on(completed, "POST", "/cancel"),
    ("POST", "/api/v1/jobs/{id}/cancel", 404): on(nobody, "POST", "/cancel"),
    ("GET", "/api/v1/jobs/{id}/logs", 200): on(completed, "GET", "/logs"),
    ("GET", "/api/v1/jobs/{id}/logs", 400): on(completed, "GET", "/logs?stream=stdin"),
    ("GET", "/api/v1/jobs/{id}/logs", 404): on(nobody, "GET", "/logs"),
    ("GET", "/api/v1/jobs/{id}/explain", 200): on(submit, "GET", "/explain"),
    ("GET", "/api/v1/jobs/{id}/explain", 404): on(nobody, "GET", "/explain"),
}
ELSEWHERE = {
    (
        "GET",
        "/api/v1/health",
        503,
    ): "no healthy node answers so: tests/unit/test_jobqueue_health.py",
}
PLAIN = tuple(operation for operation in OPERATIONS if operation.method != "WS")


def test_every_status_of_the_table_has_a_case() -> None:
    assert promised(PLAIN) == set(CASES) | set(ELSEWHERE)


@pytest.mark.parametrize(
    ("operation", "status"),
    [(o, s) for o in PLAIN for s in statuses(o) if (o.method, o.path, s) in CASES],
    ids=str,
)
def test_answer(queue: Daemon, operation: Operation, status: int) -> None:
    answer = CASES[operation.method, operation.path, status](queue)
    check_answer(answer, operation, status, ENVELOPE)


# Reading and asking


def test_a_list_is_newest_first_and_filtered(queue: Daemon) -> None:
    clear(queue)
    kind = "listing"
    ids = [submit(queue, type=kind, priority=p) for p in ("foreground", "background") * 2]
    rows = queue.request("GET", f"{JOBS}?type={kind}").json
    assert [row["id"] for row in rows] == ids[::-1]
    assert faults(rows, [ROW]) == []
    wanted = f"{JOBS}?type={kind}&priority=foreground&status=pending&limit=1&offset=1"
    assert [row["id"] for row in queue.request("GET", wanted).json] == [ids[0]]
    assert queue.request("GET", f"{JOBS}?type={kind}&status=running").json == []
    assert queue.request("GET", f"{JOBS}?type={kind}&offset={10**30}").json == []


@pytest.mark.parametrize(
    "query",
    ["limit=0", "limit=-5", "limit=x", "limit=1e3", "offset=-1", "offset=x", "status=assigned",
     "priority=low", "limit=%00"],
)  # fmt: skip
def test_a_query_that_is_refused(queue: Daemon, query: str) -> None:
    answer = queue.request("GET", f"{JOBS}?{query}")
    assert answer.status == 400
    assert answer.json["context"]["field"] == query.split("=")[0]


def test_a_limit_above_1000_is_1000(queue: Daemon) -> None:
    assert queue.request("GET", f"{JOBS}?limit=1000000").status == 200


@pytest.mark.parametrize(
    "text",
    ["x", "1", "..", "%2e%2e", "a%2Fb", "%00", "%FF%FE", "%F0%9F%90%9D",
     "'%20OR%201=1", "x" * 10_000, "%0d%0aX:y"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("method", "verb"),
    [("GET", ""), ("DELETE", ""), ("GET", "/logs"), ("GET", "/explain"), ("POST", "/cancel"),
     ("PUT", "/heartbeat"), ("PUT", "/complete"), ("PUT", "/fail")],
)  # fmt: skip
def test_an_unknown_id_of_any_form_is_404(queue: Daemon, text: str, method: str, verb: str) -> None:
    body = WORKER if method == "PUT" else None
    answer = queue.request(method, f"{JOBS}/{text}{verb}", body)
    assert answer.status == 404, answer.body
    assert faults(answer.json, ENVELOPE) == []


def test_what_is_not_there_is_said_in_the_envelope(queue: Daemon) -> None:
    answer = queue.request("GET", "/api/v2/nothing")
    assert answer.status == 404
    assert faults(answer.json, ENVELOPE) == []
    answer = queue.request("PATCH", JOBS)
    assert answer.status == 405
    assert {"GET", "POST"} <= set(answer.headers["allow"].replace(" ", "").split(","))
    assert faults(answer.json, ENVELOPE) == []


# Submitting


def test_a_job_is_given_back_as_it_was_asked_for(queue: Daemon) -> None:
    asked = {
        **JOB,
        "arguments": ["a", "", "ü"],
        "env_variables": {"KEY": "v=w"},
        "timeout_seconds": 1.5,
        "disconnect_seconds": 30.0,
        "max_retries": 2,
        "depends_on": [completed(queue)],
        "idempotency_key": "given-back",
        "constraints": ["node.labels.disk==ssd"],
        "labels": {"team": "blue"},
        "unknown": "ignored",
    }
    asked_resources = {"cpus": 0.5, "memory": 64 * 2**20, "gpus": 0, "pids": 10}
    job = details(queue, submit(queue, **asked, resources=asked_resources))
    assert job["resources"] == asked_resources
    assert {name: job[name] for name in asked if name != "unknown"} == {
        name: value for name, value in asked.items() if name != "unknown"
    }
    assert (job["executor_id"], job["started_at"], job["stdout"]) == (None, None, None)


def test_the_same_idempotency_key_is_the_same_job(queue: Daemon) -> None:
    first = submit(queue, idempotency_key="twice")
    assert submit(queue, idempotency_key="twice") == first
    answer = queue.request("POST", JOBS, {**JOB, "idempotency_key": "twice", "type": "other"})
    assert answer.status == 400


REFUSED_BODIES: dict[str, bytes] = {
    "nothing": b"",
    "not JSON": b"{",
    "an array": b"[]",
    "a text": b'"x"',
    "null": b"null",
    "not UTF-8": b'{"type": "\xff"}',
    "deep": b'{"x":' * 10_000 + b"1" + b"}" * 10_000,
    "deep array": b"[" * 10_000 + b"]" * 10_000,
    "a member without its name": b'{"type"}',
    "wrong type": b'{"type": 1, "executor_id": 1, "job_ids": 1}',
    "NUL in a name": b'{"type": "a\\u0000b", "executor_id": "a\\u0000b", "job_ids": []}',
    "half a surrogate pair": b'{"type": "\\ud800", "executor_id": "\\ud800", "job_ids": ["\\ud8"]}',
    "a number no computer has": b'{"type": 1e999999, "executor_id": 1e999999, "job_ids": 1e9999}',
}
BODY_ROUTES = (
    ("POST", JOBS),
    ("POST", f"{JOBS}/bulk"),
    ("POST", f"{JOBS}/bulk/cancel"),
    ("POST", f"{JOBS}/claim"),
    ("PUT", JOBS + "/{id}/heartbeat"),
    ("PUT", JOBS + "/{id}/complete"),
    ("PUT", JOBS + "/{id}/fail"),
)


@pytest.mark.parametrize("body", REFUSED_BODIES.values(), ids=REFUSED_BODIES.keys())
@pytest.mark.parametrize(("method", "path"), BODY_ROUTES)
def test_a_body_that_is_refused_changes_nothing(
    queue: Daemon, method: str, path: str, body: bytes
) -> None:
    job_id = submit(queue)
    before = queue.request("GET", "/api/v1/admin/stats").json["jobs_by_status"]
    answer = queue.request(
        method, path.format(id=job_id), body, headers={"Content-Type": "application/json"}
    )
    assert answer.status == 400, answer.body
    assert faults(answer.json, ENVELOPE) == []
    after = queue.request("GET", "/api/v1/admin/stats").json["jobs_by_status"]
    assert after == before


@pytest.mark.parametrize(
    ("members", "field"),
    [
        ({"type": "two words"}, "type"),
        ({"type": None}, "type"),
        ({"binary_url": "ftp://host/x"}, "binary_url"),
        ({"binary_sha256": "short"}, "binary_sha256"),
        ({"arguments": "x"}, "arguments"),
        ({"arguments": [1]}, "arguments"),
        ({"env_variables": {"A": 1}}, "env_variables"),
        ({"timeout_seconds": "soon"}, "timeout_seconds"),
        ({"max_retries": 1.5}, "max_retries"),
        ({"depends_on": [NOBODY]}, "depends_on"),
        ({"resources": {"cpus": "two"}}, "resources"),
    ],
)
def test_a_refused_field_is_named(queue: Daemon, members: dict[str, object], field: str) -> None:
    answer = queue.request("POST", JOBS, {**JOB, **members})
    assert answer.status == 400, answer.body
    assert field in str(answer.json["context"].get("field")), answer.json


@pytest.mark.parametrize("name", JOB)
def test_a_required_field_that_is_missing_is_named(queue: Daemon, name: str) -> None:
    body = {key: value for key, value in JOB.items() if key != name}
    answer = queue.request("POST", JOBS, body)
    assert answer.status == 400
    assert name in answer.json["error"]
    assert answer.json["context"]["field"] == name


def test_a_body_of_2_gb_is_refused_before_it_is_sent(queue: Daemon) -> None:
    with socket.create_connection(("127.0.0.1", queue.ports["jobqueue"]), 10) as sock:
        sock.sendall(
            b"POST /api/v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: 2147483648\r\n\r\n{"
        )
        with closing(http.client.HTTPResponse(sock)) as answer:
            answer.begin()
            assert answer.status == 400
            assert b'"error"' in answer.read(65536)


# Bulk


def test_a_bulk_says_of_each_in_its_place(queue: Daemon) -> None:
    bodies = [JOB, {**JOB, "type": "a b"}, 7, {**JOB, "depends_on": [NOBODY]}, JOB]
    answer = queue.request("POST", f"{JOBS}/bulk", bodies)
    assert answer.status == 201
    shape = {0: False, 1: True, 2: True, 3: True, 4: False}
    assert len(answer.json) == len(bodies)
    for index, rejected in shape.items():
        element = answer.json[index]
        if rejected:
            assert element["status"] == "rejected"
            assert faults(element, {"error": TEXT, "context": {"index": COUNT}}) == []
            assert element["context"]["index"] == index
        else:
            assert faults(element, {"id": TEXT, "status": TEXT}) == []
            assert element["status"] == "pending"


def test_a_bulk_is_400_where_all_are_refused(queue: Daemon) -> None:
    answer = queue.request("POST", f"{JOBS}/bulk", [{**JOB, "type": "a b"}, {}])
    assert answer.status == 400
    assert faults(answer.json, ENVELOPE) == []
    assert [e["context"]["index"] for e in answer.json["context"]["rejected"]] == [0, 1]


def test_a_bulk_takes_1000_and_no_more(queue: Daemon) -> None:
    answer = queue.request("POST", f"{JOBS}/bulk", [JOB] * 1000)
    assert answer.status == 201
    ids = [element["id"] for element in answer.json]
    assert len(set(ids)) == 1000
    answer = queue.request("POST", f"{JOBS}/bulk/cancel", {"job_ids": ids})
    assert answer.json == {"cancelled": 1000, "failed": 0, "errors": []}
    assert queue.request("POST", f"{JOBS}/bulk", [JOB] * 1001).status == 400
    too_many = {"job_ids": [NOBODY] * 1001}
    assert queue.request("POST", f"{JOBS}/bulk/cancel", too_many).status == 400


def test_a_bulk_cancel_says_of_each_why_not(queue: Daemon) -> None:
    running, waiting = claimed(queue), submit(queue)
    ids = [running, waiting, NOBODY, "\n", waiting]
    answer = queue.request("POST", f"{JOBS}/bulk/cancel", {"job_ids": ids})
    assert answer.status == 200
    assert (answer.json["cancelled"], answer.json["failed"]) == (1, 4)
    assert [e["job_id"] for e in answer.json["errors"]] == [running, NOBODY, "\n", waiting]
    assert details(queue, running)["status"] == "running"


# The life of a job with an executor that comes for it


def test_claims_go_by_priority_then_by_age(queue: Daemon) -> None:
    clear(queue)
    wanted = ("best_effort", "background", "foreground", "background", "foreground")
    ids = [submit(queue, priority=p) for p in wanted]
    got = [claim(queue, f"worker-{n}").json["id"] for n in range(5)]
    assert got == [ids[i] for i in (2, 4, 1, 3, 0)]
    assert claim(queue).status == 204


async def test_two_executors_never_get_one_job(queue: Daemon) -> None:
    clear(queue)
    ids = {submit(queue) for _ in range(20)}
    got: list[str] = []

    async def work(name: str) -> None:
        while (answer := await trio.to_thread.run_sync(claim, queue, name)).status == 200:
            got.append(answer.json["id"])

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for n in range(8):
                nursery.start_soon(work, f"worker-{n}")
    assert sorted(got) == sorted(ids)


def test_a_claimed_job_is_the_whole_job_and_runs(queue: Daemon) -> None:
    clear(queue)
    job_id = submit(queue, arguments=["x"], env_variables={"A": "b"})
    job = claim(queue, "worker-9", executor_ip="worker-9.example").json
    assert (job["id"], job["status"], job["executor_id"]) == (job_id, "running", "worker-9")
    assert (job["arguments"], job["env_variables"]) == (["x"], {"A": "b"})
    (attempt,) = job["attempts"]
    assert attempt["executor_ip"] == "worker-9.example"
    assert (attempt["status"], attempt["ended_at"]) == ("running", None)
    assert faults(job["started_at"], TIME) == []
    assert details(queue, job_id) == job


def test_a_claim_without_an_address_has_the_one_it_came_from(queue: Daemon) -> None:
    clear(queue)
    submit(queue)
    assert claim(queue).json["attempts"][0]["executor_ip"] == "127.0.0.1"


def test_a_completed_job_keeps_what_was_reported(queue: Daemon) -> None:
    job_id = claimed(queue)
    said: dict[str, Any] = {"stdout": "out\0\n", "stderr": "err", "exit_code": 0}
    assert put(queue, job_id, "complete", **said).json == {"id": job_id, "status": "completed"}
    job = details(queue, job_id)
    assert {name: job[name] for name in said} == said
    assert (job["status"], job["executor_id"]) == ("completed", "worker-1")
    assert [a["status"] for a in job["attempts"]] == ["completed"]
    assert job["attempts"][0]["executor_ip"] == "192.168.1.100"
    assert faults(job["completed_at"], TIME) == []


def test_an_exit_code_other_than_0_is_failed(queue: Daemon) -> None:
    job_id = claimed(queue)
    assert put(queue, job_id, "complete", exit_code=3).json["status"] == "failed"
    job = details(queue, job_id)
    assert (job["status"], job["exit_code"]) == ("failed", 3)


def test_a_failed_job_says_why(queue: Daemon) -> None:
    job_id = claimed(queue)
    answer = put(
        queue, job_id, "fail", stdout="part", exit_code=1, error_message="Binary execution failed"
    )
    assert answer.json == {"id": job_id, "status": "failed"}
    job = details(queue, job_id)
    assert (job["error_message"], job["stdout"]) == ("Binary execution failed", "part")
    assert [a["status"] for a in job["attempts"]] == ["failed"]


def test_a_job_that_may_be_tried_again_waits_for_it(queue: Daemon) -> None:
    job_id = claimed(queue, max_retries=1)
    assert put(queue, job_id, "fail", exit_code=1).json["status"] == "pending"
    job = details(queue, job_id)
    assert (job["status"], job["waits_for"], job["executor_id"]) == ("pending", "backoff", None)
    assert faults(job["next_attempt_at"], TIME) == []
    assert claim(queue).status == 204


def test_only_its_own_executor_may_speak_for_a_job(queue: Daemon) -> None:
    job_id = claimed(queue)
    assert put(queue, job_id, "heartbeat", "thief").status == 404
    assert put(queue, job_id, "complete", "thief").status in (400, 404)
    assert details(queue, job_id)["status"] == "running"


def test_a_job_that_was_never_claimed_cannot_be_completed(queue: Daemon) -> None:
    job_id = submit(queue)
    assert put(queue, job_id, "complete").status == 400
    assert put(queue, job_id, "fail").status == 400
    assert details(queue, job_id)["status"] == "pending"


def test_output_over_1_mib_is_cut(queue: Daemon) -> None:
    job_id = claimed(queue)
    text = "".join(f"line {n}\n" for n in range(200_000))
    assert put(queue, job_id, "complete", stdout=text).status == 200
    kept = details(queue, job_id)["stdout"]
    assert len(kept.encode()) <= 2**20
    assert kept.startswith("line 0\n")
    assert kept.endswith("line 199999\n")
    assert str(len(text)) in kept.splitlines()[500].replace(",", "")


def test_cancel_ends_a_running_job_and_delete_does_not(queue: Daemon) -> None:
    job_id = claimed(queue)
    assert queue.request("DELETE", f"{JOBS}/{job_id}").status == 400
    assert queue.request("POST", f"{JOBS}/{job_id}/cancel").json == {
        "id": job_id,
        "status": "cancelled",
    }
    assert put(queue, job_id, "heartbeat").status == 404
    assert put(queue, job_id, "complete").status == 400
    assert details(queue, job_id)["status"] == "cancelled"


def test_a_job_waits_for_those_it_depends_on(queue: Daemon) -> None:
    first = claimed(queue)
    second = submit(queue, depends_on=[first])
    assert claim(queue).status == 204
    explained = queue.request("GET", f"{JOBS}/{second}/explain").json
    assert any(first in said for said in explained["waits_for"])
    assert put(queue, first, "complete").status == 200
    assert until(lambda: claim(queue).json, "it waits on")["id"] == second


def test_an_external_executors_labels_meet_constraints(queue: Daemon) -> None:
    clear(queue)
    job_id = submit(queue, constraints=["node.labels.disk==ssd"])
    assert claim(queue).status == 204
    assert claim(queue, labels={"disk": "ssd"}).json["id"] == job_id


# Pages


def test_stats_count_what_is_there(queue: Daemon) -> None:
    clear(queue)
    before = queue.request("GET", "/api/v1/admin/stats").json
    submit(queue, priority="foreground")
    submit(queue, priority="best_effort")
    after = queue.request("GET", "/api/v1/admin/stats").json
    assert after["jobs_by_status"]["pending"] == before["jobs_by_status"]["pending"] + 2
    assert after["pending_by_priority"] == {"foreground": 1, "background": 0, "best_effort": 1}


def test_an_executor_is_listed_with_what_it_does(queue: Daemon) -> None:
    def row() -> Any:
        rows = queue.request("GET", "/api/v1/admin/executors").json
        (mine,) = [row for row in rows if row["executor_id"] == "listed"]
        return mine

    clear(queue)
    job_id = submit(queue, type="shown")
    assert claim(queue, "listed").json["id"] == job_id
    assert (row()["current_job_id"], row()["job_type"]) == (job_id, "shown")
    assert row()["jobs_completed"] == 0
    assert put(queue, job_id, "complete", "listed").status == 200
    assert (row()["current_job_id"], row()["jobs_completed"]) == (None, 1)


def test_metrics_name_what_is_promised(queue: Daemon) -> None:
    submit(queue, type="metered", priority="foreground")
    queue.request("GET", "/nowhere")
    text = queue.request("GET", "/api/v1/metrics").body.decode()
    assert 'executr_jobs_submitted_total{priority="foreground",type="metered"} 1.0' in text or (
        'executr_jobs_submitted_total{type="metered",priority="foreground"} 1.0' in text
    )
    for name in (
        "executr_jobs_completed_total",
        "executr_jobs_failed_total",
        "executr_jobs_cancelled_total",
        'executr_jobs_in_queue{priority="foreground",status="pending"}',
        "executr_executors_active",
        "executr_api_requests_total{",
        "executr_job_wait_duration_seconds_bucket",
        "executr_job_run_duration_seconds_count",
        "executr_api_request_duration_seconds_bucket",
    ):
        assert name in text or name.replace(
            'priority="foreground",status="pending"', 'status="pending",priority="foreground"'
        ) in text, name  # fmt: skip
    assert 'endpoint="/nowhere"' not in text
    assert 'endpoint="/api/v1/jobs"' in text


# Logs


def test_logs_of_a_job_that_an_outside_executor_ran_are_what_it_reported(queue: Daemon) -> None:
    job_id = completed(queue, stdout="o\n", stderr="e\n")
    for stream, text in (("stdout", b"o\n"), ("stderr", b"e\n")):
        assert queue.request("GET", f"{JOBS}/{job_id}/logs?stream={stream}").body == text
    answer = queue.request("GET", f"{JOBS}/{job_id}/logs?follow=true")
    assert (b"o\n" in answer.body, b"e\n" in answer.body) == (True, True)
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_logs_over_a_websocket_are_text_and_end_with_1000(queue: Daemon) -> None:
    job_id = await trio.to_thread.run_sync(lambda: completed(queue, stdout="ü" * 100_000))
    text, code = await read_all(queue, f"{JOBS}/{job_id}/logs?stream=stdout")
    assert (text == "ü" * 100_000, code) == (True, 1000)


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(("query", "status"), [("", 404), ("?stream=stdin", 400)])
def test_a_websocket_that_is_refused_is_told_why(queue: Daemon, query: str, status: int) -> None:
    job_id = NOBODY if status == 404 else submit(queue)
    answer = queue.request("GET", f"{JOBS}/{job_id}/logs{query}", headers=UPGRADE)
    assert answer.status == status, answer.body
    assert faults(answer.json, ENVELOPE) == []
