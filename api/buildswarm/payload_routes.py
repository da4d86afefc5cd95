"""The routes of the build swarm's admin port about payloads, logs and the node itself. Everything
here takes the admin key: the surface asks for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from api.buildswarm.admin_shapes import (
    DRONES_MAX,
    DeployIn,
    DeploymentOut,
    InfoOut,
    LatestOut,
    MatrixOut,
    PayloadIn,
    RolledOut,
    RollIn,
    VerifiedOut,
    VerifyIn,
    VersionOut,
    deployed,
    human,
    new_payload,
    person_of,
    row_of,
    sort_in_path,
)
from api.buildswarm.requests import drone_name, limit_of, text_of, whole_of
from api.buildswarm.routes import Swarm
from api.buildswarm.words import PAYLOADS
from api.common.bodies import read_json
from api.common.slices import in_slices
from api.common.streams import shielded
from api.common.surface import HotRoute, Request, Response, json_answer
from swarmd.domain.errors import Invalid
from swarmd.ops import payloads, reach
from swarmd.ops.hostlogs import read_syslog
from swarmd.ops.rollout import Rollouts

ADMIN = "/admin/api"
CONTENT_BYTES_MAX = 16 * 1024 * 1024
"""Of a version that comes within JSON; a larger one is uploaded."""
CONTENT = frozenset({"content"})
DEPLOYMENTS_LIMIT, DEPLOYMENTS_MAX = 100, 1000
SYSLOG_LINES, LOG_LINES = 100, 200
LINES_MAX = 2000
PIECE_BYTES = 256 * 1024
GONE = "this endpoint is gone"
Tail = Callable[[int], tuple[str | None, list[str]]]


@dataclass(frozen=True, slots=True)
class Admin:
    """What the routes stand on."""

    swarm: Swarm
    rollouts: Rollouts
    log_tail: Tail
    """Where this node logs to, where that is a file, and the last lines of it."""
    database: Path
    payload_bytes_max: int
    port: Callable[[], int]


Answer = Callable[[Admin, Request], Awaitable[Response]]


def hot_routes(on: Admin) -> tuple[HotRoute, ...]:
    named = f"{ADMIN}/payloads/{{type}}"
    upload = on.payload_bytes_max

    def route(
        method: str, path: str, answer: Answer, bytes_max: int | None = None,
        timeout_s: float | None = -1.0,
    ) -> HotRoute:  # fmt: skip
        return HotRoute(method, path, partial(answer, on), bytes_max, timeout_s)

    return (
        route("GET", f"{ADMIN}/system/info", info),
        route("GET", f"{ADMIN}/logs/control-plane", own_log),
        route("GET", f"{ADMIN}/drones/{{name}}/syslog", syslog),
        route("POST", f"{ADMIN}/drones/{{name}}/clean", gone),
        route("DELETE", f"{ADMIN}/drones/{{name}}/host-key", forget_host_key),
        route("GET", f"{ADMIN}/payloads", every),
        route("POST", f"{ADMIN}/payloads", register, CONTENT_BYTES_MAX),
        route("GET", f"{ADMIN}/payloads/status", status),
        route("GET", f"{named}/versions", versions),
        route("GET", f"{named}/deploy-log", deployments),
        route("POST", f"{named}/verify", verify, None, None),
        route("PUT", f"{named}/{{version}}", upload_version, upload, None),
        route("DELETE", f"{named}/{{version}}", forget),
        route("POST", f"{named}/{{version}}/deploy", deploy, None, None),
        route("POST", f"{named}/{{version}}/rolling-deploy", roll, None, None),
    )


# The node, and logs


async def info(on: Admin, request: Request) -> Response:
    swarm, cluster = on.swarm, on.swarm.cluster
    uptime_s = swarm.uptime_s()
    size_bytes = await trio.to_thread.run_sync(_size, on.database)
    others = (
        node.addresses[0] for node in cluster.members.values()
        if node.id != cluster.node.id and node.addresses and cluster.peer(node.id).alive
    )  # fmt: skip
    return json_answer(InfoOut(
        swarm.version, round(uptime_s, 1), human(uptime_s), str(on.database),
        round(size_bytes / 1e6, 2), swarm.port(), on.port(), None, swarm.address or None,
        min(others, default=None),
    ))  # fmt: skip


def _size(database: Path) -> int:
    """With what is written ahead of it."""
    files = (database, database.with_name(database.name + "-wal"))
    return sum(file.stat().st_size for file in files if file.exists())


async def own_log(on: Admin, request: Request) -> Response:
    path, lines = on.log_tail(_lines(request, LOG_LINES))
    return json_answer({"path": path, "lines": lines})


async def syslog(on: Admin, request: Request) -> Response:
    name = drone_name(request.params["name"])
    lines = _lines(request, SYSLOG_LINES)
    found = await read_syslog(on.swarm.cluster, on.rollouts.on.reach, name, lines)
    return json_answer({"drone": name, "lines": found})


def _lines(request: Request, usual: int) -> int:
    query = {"lines": request.arg("lines") or ""}
    return min(whole_of(query, "lines", usual, 10**15, low=1), LINES_MAX)


async def gone(on: Admin, request: Request) -> Response:
    hint = "what builds leave behind is cleaned by the drone itself"
    return json_answer({"error": GONE, "hint": hint}, 410)


async def forget_host_key(on: Admin, request: Request) -> Response:
    name = drone_name(request.params["name"])
    forgotten = await shielded(reach.forget_host_key, on.swarm.cluster, request.actor, name)
    return json_answer({"status": "ok", "drone": name, "forgotten": forgotten})


# Versions


async def every(on: Admin, request: Request) -> Response:
    found = await payloads.list_payloads(on.swarm.cluster)
    return json_answer({"versions": [view async for view in in_slices(found, VersionOut.of)]})


async def versions(on: Admin, request: Request) -> Response:
    sort = sort_in_path(request.params["type"])
    found = await payloads.list_payloads(on.swarm.cluster, sort)
    return json_answer({
        "payload_type": PAYLOADS[sort],
        "versions": [view async for view in in_slices(found, VersionOut.of)],
        "latest": LatestOut.of(found[0]) if found else None,
    })  # fmt: skip


async def register(on: Admin, request: Request) -> Response:
    asked = await read_json(request, PayloadIn, texts=CONTENT)
    new = asked.new()
    data = await trio.to_thread.run_sync(asked.data)
    return await _registered(on, request, new, _pieces(data))


async def upload_version(on: Admin, request: Request) -> Response:
    """The bytes themselves, of any size; what is said of them comes in the query."""
    new = new_payload(
        sort_in_path(request.params["type"]), request.params["version"],
        request.arg("description"), request.arg("notes"), request.arg("created_by"),
    )  # fmt: skip
    return await _registered(on, request, new, request.chunks())


async def _registered(
    on: Admin, request: Request, new: payloads.NewPayload, chunks: AsyncIterator[bytes]
) -> Response:
    payload, was_new = await payloads.register(on.swarm.cluster, request.actor, new, chunks)
    answer = {"status": "ok", "version": VersionOut.of(payload)}
    return json_answer(answer, 201 if was_new else 200)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), PIECE_BYTES):
        yield data[start : start + PIECE_BYTES]


async def forget(on: Admin, request: Request) -> Response:
    sort, version = sort_in_path(request.params["type"]), request.params["version"]
    await shielded(payloads.forget, on.swarm.cluster, request.actor, sort, version)
    return json_answer({"status": "ok", "payload_type": PAYLOADS[sort], "version": version})


# What lies where


async def status(on: Admin, request: Request) -> Response:
    found = await payloads.matrix(on.swarm.cluster)
    rows = in_slices(found.places.items(), lambda row: row_of(row, found))
    return json_answer(MatrixOut.of(found, {name: places async for name, places in rows}))


async def deployments(on: Admin, request: Request) -> Response:
    sort = sort_in_path(request.params["type"])
    limit = limit_of({"limit": request.arg("limit") or ""}, DEPLOYMENTS_LIMIT)
    limit = min(limit, DEPLOYMENTS_MAX)
    name = text_of(request.arg("drone"), "drone")
    found = await payloads.list_deployments(on.swarm.cluster, sort, limit, name)
    history = [view async for view in in_slices(found, DeploymentOut.of)]
    return json_answer({"payload_type": PAYLOADS[sort], "history": history})


async def verify(on: Admin, request: Request) -> Response:
    sort = sort_in_path(request.params["type"])
    name = drone_name((await read_json(request, VerifyIn)).drone)
    deploying = on.rollouts.on
    found = await payloads.verify(
        on.swarm.cluster, request.actor, deploying.reach, deploying.files, sort, name
    )
    return json_answer(VerifiedOut.of(sort, name, found))


async def deploy(on: Admin, request: Request) -> Response:
    sort, version = sort_in_path(request.params["type"]), request.params["version"]
    asked = await read_json(request, DeployIn)
    name = drone_name(asked.drone)
    by = person_of(asked.deployed_by, "deployed_by")
    await on.rollouts.deploy(request.actor, sort, version, name, by)
    return json_answer({
        "status": "ok", "drone": name, "payload_type": PAYLOADS[sort], "version": version,
        "message": deployed(sort, version, name),
    })  # fmt: skip


async def roll(on: Admin, request: Request) -> Response:
    sort, version = sort_in_path(request.params["type"]), request.params["version"]
    asked = await read_json(request, RollIn)
    names = asked.drones
    if names is not None and not 1 <= len(names) <= DRONES_MAX:
        raise Invalid(f"drones must be 1 to {DRONES_MAX} names, or null for all that are outdated",
                      field="drones")  # fmt: skip
    rolled = await on.rollouts.roll(
        request.actor, sort, version, None if names is None else [*map(drone_name, names)],
        person_of(asked.deployed_by, "deployed_by"), health_check=asked.health_check,
        rollback_on_fail=asked.rollback_on_fail,
    )  # fmt: skip
    return json_answer(RolledOut.of(sort, version, rolled))
