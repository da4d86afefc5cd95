"""The contract of the job queue dialect on port 8080: bare answers, failures as {error, context}.

Every operation may also answer 503 while the node cannot, 403 to a foreign Host or Origin, 401 off
loopback without a credential, and 400 to a request that is broken as such.
"""

from __future__ import annotations

from tests.contract.kinds import (
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    TEXT_MAP,
    TEXTS,
    TIME,
    WHOLE,
    YES_NO,
    Shape,
    maybe,
    one_of,
)
from tests.contract.table import Operation, Parameter

PORT = 8080
ENVELOPE: dict[str, Shape] = {"error": TEXT, "context": OBJECT}

STATUS = one_of("pending", "running", "completed", "failed", "cancelled")
PRIORITY = one_of("foreground", "background", "best_effort")
STANDING: dict[str, Shape] = {"id": TEXT, "status": STATUS}
CREATED: dict[str, Shape] = {"id": TEXT, "type": TEXT, "status": STATUS, "created_at": TIME}
ROW: dict[str, Shape] = {
    "id": TEXT,
    "type": TEXT,
    "status": STATUS,
    "priority": PRIORITY,
    "executor_id": maybe(TEXT),
    "created_at": TIME,
    "started_at": maybe(TIME),
    "completed_at": maybe(TIME),
    "error_message": maybe(TEXT),
}
ATTEMPT: dict[str, Shape] = {
    "executor_id": TEXT,
    "executor_ip": TEXT,
    "started_at": TIME,
    "ended_at": maybe(TIME),
    "status": one_of("running", "completed", "failed", "timeout"),
    "exit_code": maybe(WHOLE),
    "error_message": maybe(TEXT),
}
DETAILS: dict[str, Shape] = {
    **ROW,
    "binary_url": maybe(TEXT),
    "binary_sha256": maybe(TEXT),
    "program": maybe(TEXT),
    "arguments": TEXTS,
    "env_variables": TEXT_MAP,
    "stdout": maybe(TEXT),
    "stderr": maybe(TEXT),
    "exit_code": maybe(WHOLE),
    "attempts": [ATTEMPT],
    "duration_ms": maybe(COUNT),
    "timeout_seconds": maybe(NUMBER),
    "disconnect_seconds": maybe(NUMBER),
    "max_retries": COUNT,
    "depends_on": TEXTS,
    "idempotency_key": maybe(TEXT),
    "resources": {
        "cpus": maybe(NUMBER),
        "memory": maybe(WHOLE),
        "gpus": COUNT,
        "pids": maybe(WHOLE),
    },
    "constraints": TEXTS,
    "labels": TEXT_MAP,
    "notes": TEXTS,
    "waits_for": maybe(one_of("dependencies", "backoff")),
    "next_attempt_at": maybe(TIME),
    "failures": COUNT,
    "recoveries": COUNT,
}
HEALTH: dict[str, Shape] = {"status": one_of("healthy", "unhealthy"), "database": TEXT,
          "leader": maybe(TEXT), "detail": TEXT}  # fmt: skip
STATS: dict[str, Shape] = {
    "jobs_by_status": dict.fromkeys(
        ("pending", "running", "completed", "failed", "cancelled"), COUNT
    ),
    "pending_by_priority": dict.fromkeys(("foreground", "background", "best_effort"), COUNT),
    "active_executors": COUNT,
}
EXECUTOR: dict[str, Shape] = {
    "executor_id": TEXT,
    "current_job_id": maybe(TEXT),
    "job_type": maybe(TEXT),
    "last_heartbeat": TIME,
    "jobs_completed": COUNT,
}
EXPLANATION: dict[str, Shape] = {
    "job_id": TEXT,
    "status": STATUS,
    "summary": TEXT,
    "waits_for": TEXTS,
    "nodes": [{"node": TEXT, "can_run": YES_NO, "reasons": TEXTS}],
}

_JOB_ID = Parameter("id", "path", required=True, said="a job's id; any other text is 404")
_EXECUTOR_ID = Parameter("executor_id", "body", required=True, said="1 to 128 characters")
_OUTPUT = (
    Parameter("stdout", "body", "", said="kept up to 1 MiB: its first 500 lines and its tail"),
    Parameter("stderr", "body", "", said="as stdout"),
)
_SPEC = (
    Parameter("type", "body", required=True, said="1 to 128 characters, no spaces"),
    Parameter("binary_url", "body", required=True, said="http, https or blob:sha256:…"),
    Parameter("binary_sha256", "body", required=True, said="64 hexadecimal digits"),
    Parameter("priority", "body", required=True, said="foreground, background or best_effort"),
    Parameter("arguments", "body", [], said="texts without NUL, at most 1000"),
    Parameter("env_variables", "body", {}, said="texts by name, at most 1000"),
    Parameter("timeout_seconds", "body", None, said="above 0; none by default"),
    Parameter("disconnect_seconds", "body", None, said="0 to 604800; none by default"),
    Parameter(
        "max_retries", "body", 0, said="0 to 100, a minute apart, then twice that, and so on"
    ),
    Parameter("depends_on", "body", [], said="ids of at most 100 jobs"),
    Parameter("idempotency_key", "body", None, said="1 to 128 characters"),
    Parameter("resources", "body", {}, said="cpus, memory, gpus, pids"),
    Parameter("constraints", "body", [], said="such as node.labels.disk==ssd"),
    Parameter("labels", "body", {}, said="texts by name, at most 64"),
)

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/api/v1/health", PORT, "Whether this node can serve.",
              {200: HEALTH, 503: HEALTH}),
    Operation("GET", "/api/v1/metrics", PORT, "Counts for Prometheus.", {200: TEXT},
              media_type="text/plain"),
    Operation("POST", "/api/v1/jobs", PORT, "Queue a job.", {201: CREATED}, _SPEC,
              refusals=(400,)),
    Operation("GET", "/api/v1/jobs", PORT, "Jobs, newest first.", {200: [ROW]}, (
        Parameter("status", "query", None, said="only jobs that stand so"),
        Parameter("type", "query", None, said="only jobs of this type"),
        Parameter("priority", "query", None, said="only jobs of this priority"),
        Parameter("limit", "query", 100, said="from 1; above 1000 is 1000"),
        Parameter("offset", "query", 0, said="from 0"),
    ), refusals=(400,)),
    Operation("GET", "/api/v1/jobs/{id}", PORT, "The whole job.", {200: DETAILS}, (_JOB_ID,),
              refusals=(404,)),
    Operation("DELETE", "/api/v1/jobs/{id}", PORT, "Cancel a job that has not started.",
              {200: STANDING}, (_JOB_ID,), refusals=(400, 404)),
    Operation("POST", "/api/v1/jobs/claim", PORT, "Take the next job; 204 when there is none.",
              {200: DETAILS, 204: None}, (
        _EXECUTOR_ID,
        Parameter("executor_ip", "body", None, said="address or host name; else the peer's"),
        Parameter("labels", "body", {}, said="what constraints may ask of this executor"),
    ), refusals=(400,)),
    Operation("PUT", "/api/v1/jobs/{id}/heartbeat", PORT, "Still at it.", {200: STANDING},
              (_JOB_ID, _EXECUTOR_ID), refusals=(400, 404)),
    Operation("PUT", "/api/v1/jobs/{id}/complete", PORT, "The job ran to its end.",
              {200: STANDING}, (
        _JOB_ID, _EXECUTOR_ID, *_OUTPUT,
        Parameter("exit_code", "body", 0, said="another than 0 makes the job failed"),
    ), refusals=(400, 404)),
    Operation("PUT", "/api/v1/jobs/{id}/fail", PORT, "The job did not succeed.",
              {200: STANDING}, (
        _JOB_ID, _EXECUTOR_ID, *_OUTPUT,
        Parameter("exit_code", "body", None),
        Parameter("error_message", "body", None),
    ), refusals=(400, 404)),
    Operation("GET", "/api/v1/admin/stats", PORT, "Counts of jobs and executors.", {200: STATS}),
    Operation("GET", "/api/v1/admin/executors", PORT, "Who heartbeats within 30 s.",
              {200: [EXECUTOR]}),
    Operation("POST", "/api/v1/jobs/bulk", PORT,
              "Queue up to 1000 jobs; a refused one is said so in its place.",
              {201: [{"status": one_of("pending", "rejected")}]},
              (Parameter("[]", "body", required=True, said="jobs as in a single submit"),),
              refusals=(400,)),
    Operation("POST", "/api/v1/jobs/bulk/cancel", PORT, "Cancel up to 1000 jobs not started.",
              {200: {"cancelled": COUNT, "failed": COUNT,
                     "errors": [{"job_id": TEXT, "error": TEXT}]}},
              (Parameter("job_ids", "body", required=True),), refusals=(400,)),
    Operation("POST", "/api/v1/jobs/{id}/cancel", PORT, "Cancel a job, running ones too.",
              {200: STANDING}, (_JOB_ID,), documented=False, refusals=(400, 404)),
    Operation("GET", "/api/v1/jobs/{id}/logs", PORT, "What the job wrote, as bytes.",
              {200: TEXT}, (
        _JOB_ID,
        Parameter("stream", "query", "both", said="stdout, stderr or both"),
        Parameter("follow", "query", False, said="stay until the job has ended"),
        Parameter("from_byte", "query", 0, said="where to start"),
    ), documented=False, media_type="text/plain", refusals=(400, 404)),
    Operation("WS", "/api/v1/jobs/{id}/logs", PORT, "The same as text messages; ends with 1000.",
              {}, (
        _JOB_ID,
        Parameter("stream", "query", "both", said="stdout, stderr or both"),
        Parameter("follow", "query", True, said="stay until the job has ended"),
        Parameter("from_byte", "query", 0, said="where to start"),
    ), documented=False, refusals=(400, 404)),
    Operation("GET", "/api/v1/jobs/{id}/explain", PORT, "Why a job waits, node by node.",
              {200: EXPLANATION}, (_JOB_ID,), documented=False, refusals=(404,)),
)  # fmt: skip
