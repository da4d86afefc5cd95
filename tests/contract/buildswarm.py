"""The contract of the build swarm dialect on port 8100: bare answers, failures as {error, hint}.

Every operation may also answer 503 while the node cannot, 403 to a foreign Host or Origin, 401 off
loopback without a credential, and 400 to a request that is broken as such.
"""

from __future__ import annotations

from tests.contract.kinds import (
    COUNT,
    NUMBER,
    OBJECT,
    TEXT,
    TEXTS,
    WHOLE,
    YES_NO,
    Shape,
    maybe,
    one_of,
)
from tests.contract.table import Operation, Parameter

PORT = 8100
ENVELOPE: dict[str, Shape] = {"error": TEXT, "hint": TEXT}

SESSION: dict[str, Shape] = {
    "id": TEXT,
    "name": TEXT,
    "status": one_of("active", "completed", "aborted"),
    "total_packages": COUNT,
    "completed_packages": COUNT,
    "failed_packages": COUNT,
    "started_at": NUMBER,
    "completed_at": maybe(NUMBER),
}
TIMING: dict[str, Shape] = {
    "total_builds": COUNT,
    "successful": COUNT,
    "success_rate": NUMBER,
    "avg_duration_s": NUMBER,
    "total_duration_s": NUMBER,
    "failed": COUNT,
}
STATUS: dict[str, Shape] = {
    "version": TEXT,
    "nodes": COUNT,
    "nodes_online": COUNT,
    "total_cores": COUNT,
    "queue_depth": COUNT,
    "queue_received": COUNT,
    "queue_blocked": COUNT,
    "needed": COUNT,
    "delegated": COUNT,
    "paused": YES_NO,
    "session": SESSION,
    "timing": TIMING,
    "drones": OBJECT,
}
PROGRESS: dict[str, Shape] = {
    "package": TEXT,
    "building_since": NUMBER,
    "elapsed_s": NUMBER,
    "estimated_s": maybe(NUMBER),
    "progress_pct": maybe(COUNT),
}
NODE: dict[str, Shape] = {
    "id": TEXT,
    "name": TEXT,
    "ip": TEXT,
    "tailscale_ip": maybe(TEXT),
    "type": TEXT,
    "drone_type": one_of("lxc", "qemu", "bare-metal", "unknown"),
    "cores": COUNT,
    "ram_gb": NUMBER,
    "status": one_of("online", "offline"),
    "paused": YES_NO,
    "last_seen": maybe(NUMBER),
    "version": TEXT,
    "cpu_percent": maybe(NUMBER),
    "ram_percent": maybe(NUMBER),
    "assigned_packages": TEXTS,
    "build_progress": [PROGRESS],
    "builds_completed": COUNT,
    "builds_failed": COUNT,
}
EVENT: dict[str, Shape] = {
    "id": WHOLE,
    "timestamp": NUMBER,
    "type": one_of("register", "complete", "fail", "grounded", "stale", "control", "escalation"),
    "message": TEXT,
    "details": OBJECT,
}
BUILD: dict[str, Shape] = {
    "id": WHOLE,
    "package": TEXT,
    "drone_id": TEXT,
    "drone_name": TEXT,
    "status": one_of("success", "failed"),
    "duration_seconds": NUMBER,
    "error_message": maybe(TEXT),
    "session_id": maybe(TEXT),
    "built_at": NUMBER,
}
ENTRY: dict[str, Shape] = {
    "id": WHOLE,
    "package": TEXT,
    "status": one_of("needed", "delegated", "received", "blocked", "failed"),
    "session_id": maybe(TEXT),
    "drone_id": maybe(TEXT),
    "failures": COUNT,
    "queued_at": NUMBER,
    "assigned_at": maybe(NUMBER),
    "completed_at": maybe(NUMBER),
    "error": maybe(TEXT),
}
PROBE_STATUS = one_of(
    "ok", "service_down", "overloaded", "disk_warning", "disk_critical", "memory_critical",
    "unreachable", "timeout", "error", "not_probed",
)  # fmt: skip
PROBE: dict[str, Shape] = {
    "status": PROBE_STATUS,
    "load": maybe(NUMBER),
    "disk_percent": maybe(COUNT),
    "emerge_running": maybe(YES_NO),
}
PING: dict[str, Shape] = {
    "last_ping_at": maybe(NUMBER),
    "last_pong_at": maybe(NUMBER),
    "ping_latency_ms": maybe(NUMBER),
    "status": PROBE_STATUS,
}
ESCALATION: dict[str, Shape] = {
    "name": TEXT,
    "status": one_of("online", "offline"),
    "drone_type": one_of("lxc", "qemu", "bare-metal", "unknown"),
    "escalation_level": COUNT,
    "last_escalation_at": maybe(NUMBER),
    "last_ping_at": maybe(NUMBER),
    "ping_latency_ms": maybe(NUMBER),
}
PINGED: dict[str, Shape] = {
    "status": PROBE_STATUS,
    "drone": TEXT,
    "latency_ms": maybe(NUMBER),
    "load": maybe(NUMBER),
    "disk_percent": maybe(COUNT),
    "probe_result": PROBE,
}
PAUSED: dict[str, Shape] = {"status": TEXT, "drone": TEXT, "paused": YES_NO}

_NAME = Parameter("name", "path", required=True, said="a drone's name")
_LIMITS = (
    Parameter("since", "query", None, said="a time in seconds since 1970"),
    Parameter("type", "query", None, said="only events of this type"),
)

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", "/api/v1/health", PORT, "Whether this node can serve.", {
        200: {"status": TEXT, "version": TEXT, "uptime_s": NUMBER}
    }),
    Operation("GET", "/api/v1/status", PORT, "The queue, the session, the drones.", {200: STATUS}),
    Operation("GET", "/api/v1/nodes", PORT, "Drones that are there, or all.", {200: [NODE]}, (
        Parameter("all", "query", False, said="those that are offline, too"),
        Parameter("format", "query", None, said="legacy: {drones, orchestrators}"),
    ), refusals=(400,)),
    Operation("GET", "/api/v1/events", PORT, "What happened lately, the newest first.",
              {200: {"events": [EVENT]}},
              (Parameter("limit", "query", 200), *_LIMITS), refusals=(400,)),
    Operation("GET", "/api/v1/events/history", PORT, "What happened, as far as it is kept.",
              {200: {"events": [EVENT]}}, (
        Parameter("limit", "query", 500), *_LIMITS,
        Parameter("drone", "query", None, said="only what is about the drone of this name"),
    ), refusals=(400,)),
    Operation("GET", "/api/v1/history", PORT, "Builds that ended, the newest first.",
              {200: {"builds": [BUILD], "history": [BUILD], "stats": TIMING}}, (
        Parameter("limit", "query", 100),
        Parameter("status", "query", None, said="success or failed"),
        Parameter("drone", "query", None, said="a drone's name"),
    ), refusals=(400,)),
    Operation("GET", "/api/v1/sessions", PORT, "Sessions, the newest first.",
              {200: {"sessions": [SESSION]}}),
    Operation("GET", "/api/v1/queue", PORT, "The queue, the newest first.", {200: [ENTRY]},
              (Parameter("limit", "query", 1000),), refusals=(400, 401)),
    Operation("POST", "/api/v1/queue", PORT, "Queue packages as a session.", {
        200: {"status": TEXT, "queued": COUNT, "packages": TEXTS, "session_id": TEXT}
    }, (
        Parameter("packages", "body", required=True, said="atoms such as dev-libs/openssl-3.2.0"),
        Parameter("session_name", "body", None),
    ), refusals=(400, 401, 409)),
    Operation("POST", "/api/v1/control", PORT, "A word on the queue.", {
        200: {"status": TEXT, "action": TEXT, "message": TEXT}
    }, (
        Parameter("action", "body", required=True),
        Parameter("target", "body", None, said="a package, or a drone's name"),
    ), refusals=(400, 401, 404)),
    Operation("POST", "/api/v1/nodes/{name}/pause", PORT, "It gets no work.", {200: PAUSED},
              (_NAME,), refusals=(401, 404)),
    Operation("POST", "/api/v1/nodes/{name}/resume", PORT, "It gets work again.", {200: PAUSED},
              (_NAME,), documented=False, refusals=(401, 404)),
    Operation("POST", "/api/v1/nodes/{name}/set-type", PORT, "What sort of a host it is.", {
        200: {"status": TEXT, "drone": TEXT, "drone_type": TEXT}
    }, (_NAME, Parameter("drone_type", "body", required=True)), refusals=(400, 401, 404)),
    Operation("POST", "/api/v1/register", PORT, "A drone is there.", {200: {
        "status": one_of("registered"), "orchestrator": TEXT, "orchestrator_port": WHOLE,
        "orchestrator_name": TEXT, "paused": YES_NO, "assigned_packages": TEXTS,
    }}, (
        Parameter("id", "body", required=True),
        Parameter("name", "body", required=True),
        Parameter("ip", "body", None, said="else the address it calls from"),
        Parameter("capabilities", "body", {}),
        Parameter("metrics", "body", {}),
        Parameter("current_task", "body", None, said="the package that it is at"),
        Parameter("version", "body", None),
    ), refusals=(400, 409)),
    Operation("GET", "/api/v1/work", PORT, "The package to build next.",
              {200: {"package": maybe(TEXT)}}, (
        Parameter("id", "query", required=True),
        Parameter("cores", "query", 1),
        Parameter("synced", "query", None, said="the tree that it tried to come up to"),
    ), refusals=(400, 404)),
    Operation("POST", "/api/v1/complete", PORT, "How a build ended.",
              {200: {"status": TEXT, "package": TEXT}}, (
        Parameter("id", "body", required=True),
        Parameter("package", "body", required=True),
        Parameter("status", "body", required=True, said="success, failed or returned"),
        Parameter("build_duration_s", "body", None),
        Parameter("error_detail", "body", None),
        Parameter("upload_failed", "body", False),
        Parameter("masked", "body", False),
        Parameter("missing_binary", "body", False),
    ), refusals=(400,)),
    Operation("GET", "/api/v1/ping", PORT, "What came of the last probes.",
              {200: {"drones": OBJECT}}),
    Operation("GET", "/api/v1/ping/all", PORT, "Probe all drones that are there.",
              {200: {"status": TEXT, "pinged": COUNT, "drones": TEXTS}}),
    Operation("GET", "/api/v1/escalation", PORT, "How far each drone was escalated.",
              {200: {"monitor_running": YES_NO, "drones": OBJECT}}),
    Operation("POST", "/api/v1/nodes/{name}/ping", PORT, "Probe a drone now.", {200: PINGED},
              (_NAME,), refusals=(401, 404, 409)),
    Operation("POST", "/api/v1/nodes/{name}/reset-escalation", PORT, "Back to level 0.", {
        200: {"status": TEXT, "drone": TEXT, "previous_level": COUNT, "current_level": COUNT}
    }, (_NAME,), refusals=(401, 404)),
    Operation("GET", "/binhost/", PORT, "On to the index.", {302: TEXT}, documented=False,
              media_type="text/plain"),
    Operation("GET", "/binhost/Packages", PORT, "The index that Portage reads.", {200: TEXT},
              documented=False, media_type="text/plain"),
    Operation("GET", "/binhost/Packages.gz", PORT, "The same, packed.", {200: TEXT},
              documented=False, media_type="application/gzip"),
    Operation("GET", "/binhost/swarm.asc", PORT, "The key that packages are signed by.",
              {200: TEXT}, documented=False, media_type="application/pgp-keys"),
    Operation("GET", "/api/v1/binhost/explain", PORT, "Why no binary package fits a host.", {
        200: {"package": TEXT, "fitting": TEXTS, "reasons": TEXTS}
    }, (
        Parameter("package", "query", required=True, said="an atom such as >=dev-libs/openssl-3"),
        Parameter("use", "query", None, said="the host's flags, such as ssl -doc"),
        Parameter("chost", "query", None),
        Parameter("cflags", "query", None),
        Parameter("keywords", "query", None, said="what it accepts, such as amd64 ~amd64"),
    ), documented=False, refusals=(400,)),
    Operation("GET", "/binhost/{category}/{name}/{file}", PORT, "A binary package.", {200: TEXT},
              documented=False, media_type="application/octet-stream", refusals=(404,)),
    Operation("PUT", "/binhost/staging/{category}/{file}", PORT, "What a drone has built.", {
        201: {"status": TEXT, "package": TEXT, "path": TEXT, "size": COUNT, "sha256": TEXT}
    }, documented=False, refusals=(400, 401, 409)),
)  # fmt: skip
