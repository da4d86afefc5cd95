"""The contract of the build swarm dialect on port 8093: everything takes the admin key.

Every operation may also answer 401 without it, 503 while the node cannot, 403 to a foreign Origin,
and 400 to a request that is broken as such.
"""

from __future__ import annotations

from tests.contract.buildswarm import PINGED
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

PORT = 8093
ADMIN = "/admin/api"
TYPES = ("drone_binary", "init_script", "config", "portage_config")

VERSION: dict[str, Shape] = {
    "id": WHOLE,
    "payload_type": one_of(*TYPES),
    "version": TEXT,
    "hash": TEXT,
    "content_path": TEXT,
    "description": TEXT,
    "notes": TEXT,
    "created_at": NUMBER,
    "created_by": TEXT,
}
REGISTERED: dict[str, Shape] = {"status": one_of("ok"), "version": VERSION}
LATEST: dict[str, Shape] = {"version": TEXT, "hash": TEXT, "created_at": NUMBER}
DEPLOYMENT: dict[str, Shape] = {
    "id": WHOLE,
    "drone_id": TEXT,
    "drone_name": TEXT,
    "payload_type": one_of(*TYPES),
    "version": TEXT,
    "action": one_of("deploy", "restart", "health", "rollback", "verify"),
    "status": one_of("success", "failed"),
    "duration_ms": NUMBER,
    "error_message": maybe(TEXT),
    "deployed_at": NUMBER,
    "deployed_by": TEXT,
}
INFO: dict[str, Shape] = {
    "version": TEXT,
    "uptime_s": NUMBER,
    "uptime_human": TEXT,
    "db_path": TEXT,
    "db_size_mb": NUMBER,
    "control_plane_port": COUNT,
    "admin_port": COUNT,
    "v2_gateway_url": maybe(TEXT),
    "binhost_primary_ip": maybe(TEXT),
    "binhost_secondary_ip": maybe(TEXT),
}
DETAIL: dict[str, Shape] = {
    "drone": TEXT,
    "status": one_of("online", "offline"),
    "drone_type": one_of("lxc", "qemu", "bare-metal", "unknown"),
    "escalation_level": COUNT,
    "last_escalation_at": maybe(NUMBER),
    "escalation_attempts": COUNT,
    "last_probe_result": maybe(OBJECT),
    "last_probe_at": maybe(NUMBER),
}

_NAME = Parameter("name", "path", required=True, said="a drone's name")
_TYPE = Parameter("type", "path", required=True, said="a payload type")
_VERSION = Parameter("version", "path", required=True)
_DRONE = Parameter("drone", "body", required=True, said="a drone's name")
_BY = Parameter("deployed_by", "body", None, said="whose doing it is; else admin")
_ABOUT = (
    Parameter("description", "query", None),
    Parameter("notes", "query", None),
    Parameter("created_by", "query", None),
)

OPERATIONS: tuple[Operation, ...] = (
    Operation("GET", f"{ADMIN}/system/info", PORT, "This node, and where things are.",
              {200: INFO}, refusals=(401,)),
    Operation("GET", f"{ADMIN}/logs/control-plane", PORT, "The last lines of this node's log.",
              {200: {"path": maybe(TEXT), "lines": TEXTS}},
              (Parameter("lines", "query", 200),), refusals=(400, 401)),
    Operation("GET", f"{ADMIN}/drones/{{name}}/syslog", PORT, "The last lines a host logged.",
              {200: {"drone": TEXT, "lines": TEXTS}},
              (_NAME, Parameter("lines", "query", 100)), refusals=(400, 401, 404, 503)),
    Operation("GET", f"{ADMIN}/self-healing/status", PORT, "How self-healing goes.", {200: {
        "monitor_running": YES_NO, "probe_interval_s": NUMBER, "last_probe_at": maybe(NUMBER),
        "escalation_summary": OBJECT,
    }}, refusals=(401,)),
    Operation("GET", f"{ADMIN}/drones/{{name}}/escalation", PORT, "How far a drone was escalated.",
              {200: DETAIL}, (_NAME,), refusals=(401, 404)),
    Operation("POST", f"{ADMIN}/drones/{{name}}/ping", PORT, "Probe a drone now.", {200: PINGED},
              (_NAME,), refusals=(401, 404)),
    Operation("POST", f"{ADMIN}/drones/{{name}}/clean", PORT, "Gone.", {
        410: {"error": TEXT, "hint": TEXT}
    }, (_NAME,), documented=False, refusals=(401,)),
    Operation("DELETE", f"{ADMIN}/drones/{{name}}/host-key", PORT, "Forget the key that was kept.",
              {200: {"status": TEXT, "drone": TEXT, "forgotten": YES_NO}}, (_NAME,),
              documented=False, refusals=(401, 404)),
    Operation("GET", f"{ADMIN}/payloads", PORT, "All versions, the newest first.",
              {200: {"versions": [VERSION]}}, refusals=(401,)),
    Operation("POST", f"{ADMIN}/payloads", PORT, "Make a version known.",
              {201: REGISTERED, 200: REGISTERED}, (
        Parameter("type", "body", required=True),
        Parameter("version", "body", required=True),
        Parameter("content", "body", required=True, said="the file's bytes, in base64"),
        Parameter("description", "body", None),
        Parameter("notes", "body", None),
        Parameter("created_by", "body", None, said="else admin"),
    ), refusals=(400, 401, 409)),
    Operation("PUT", f"{ADMIN}/payloads/{{type}}/{{version}}", PORT, "The same of any size.",
              {201: REGISTERED, 200: REGISTERED}, (_TYPE, _VERSION, *_ABOUT),
              documented=False, refusals=(400, 401, 404, 409)),
    Operation("DELETE", f"{ADMIN}/payloads/{{type}}/{{version}}", PORT, "Forget a version.",
              {200: {"status": TEXT, "payload_type": TEXT, "version": TEXT}}, (_TYPE, _VERSION),
              documented=False, refusals=(401, 404, 409)),
    Operation("GET", f"{ADMIN}/payloads/status", PORT, "What lies where.", {200: {
        "payload_types": TEXTS, "latest_versions": OBJECT, "drones": OBJECT,
        "outdated_count": COUNT,
    }}, refusals=(401,)),
    Operation("GET", f"{ADMIN}/payloads/{{type}}/versions", PORT, "Versions of one type.", {
        200: {"payload_type": TEXT, "versions": [VERSION], "latest": LATEST}
    }, (_TYPE,), refusals=(401, 404)),
    Operation("GET", f"{ADMIN}/payloads/{{type}}/deploy-log", PORT, "What was deployed, and how.", {
        200: {"payload_type": TEXT, "history": [DEPLOYMENT]}
    }, (
        _TYPE, Parameter("limit", "query", 100),
        Parameter("drone", "query", None, said="a drone's name"),
    ), refusals=(400, 401, 404)),
    Operation("POST", f"{ADMIN}/payloads/{{type}}/{{version}}/deploy", PORT, "To one drone.", {
        200: {"status": TEXT, "drone": TEXT, "payload_type": TEXT, "version": TEXT,
              "message": TEXT}
    }, (_TYPE, _VERSION, _DRONE, Parameter("verify", "body", True), _BY),
              refusals=(400, 401, 404, 409, 503)),
    Operation("POST", f"{ADMIN}/payloads/{{type}}/{{version}}/rolling-deploy", PORT,
              "To several, one at a time.", {200: {
        "status": one_of("ok", "partial"), "payload_type": TEXT, "version": TEXT,
        "success_count": COUNT, "fail_count": COUNT, "results": OBJECT,
    }}, (
        _TYPE, _VERSION,
        Parameter("drones", "body", None, said="names; null: all that have another version"),
        Parameter("health_check", "body", True),
        Parameter("rollback_on_fail", "body", True), _BY,
    ), refusals=(400, 401, 404, 409)),
    Operation("POST", f"{ADMIN}/payloads/{{type}}/verify", PORT, "What lies there, by its hash.", {
        200: {"drone": TEXT, "payload_type": TEXT, "matches": YES_NO, "remote_hash": maybe(TEXT),
              "message": TEXT}
    }, (_TYPE, _DRONE), refusals=(400, 401, 404, 503)),
    Operation("WS", "/ws/ssh/{drone_name}", PORT, "A terminal on a drone's host.", {}, (
        Parameter("drone_name", "path", required=True, said="a drone's name"),
        Parameter("key", "query", None, said="the admin key, for those who can send no header"),
        Parameter("cols", "query", 80, said="how wide it is at first"),
        Parameter("rows", "query", 24, said="how high it is at first"),
        Parameter("term", "query", "xterm-256color", said="what kind of a terminal it is"),
    ), refusals=(401,)),
)  # fmt: skip

CONNECTED: dict[str, Shape] = {"type": one_of("connected"), "drone": TEXT, "ip": TEXT, "user": TEXT}
OUTPUT: dict[str, Shape] = {"type": one_of("output"), "data": TEXT}
EXIT: dict[str, Shape] = {"type": one_of("exit"), "code": COUNT}
REFUSED: dict[str, Shape] = {"type": one_of("error"), "error": TEXT, "hint": TEXT}
"""The messages of a terminal; after `exit` it closes with 1000."""
