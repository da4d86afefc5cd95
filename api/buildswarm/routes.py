"""The build swarm's public routes: each reads what was asked, calls one operation, and answers its
shape. What changes the queue takes the admin key, wherever it is asked from.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

import msgspec

from api.buildswarm import tokens
from api.buildswarm.requests import (
    CompleteIn,
    ControlIn,
    QueueIn,
    RegisterIn,
    TypeIn,
    cores_of,
    drone_id,
    drone_name,
    flag,
    limit_of,
    since_ms,
    text_of,
)
from api.buildswarm.shapes import (
    BuildOut,
    DroneOut,
    EntryOut,
    EventOut,
    HealthOut,
    LegacyOut,
    QueuedOut,
    RegisteredOut,
    SessionOut,
    StatusOut,
    TimingOut,
    work_out,
)
from api.buildswarm.words import KINDS, TYPES
from api.common.bodies import read_json
from api.common.slices import in_slices
from api.common.streams import shielded
from api.common.surface import HotRoute, Request, Response, encode_json, json_answer
from swarmd.cluster.handle import Cluster
from swarmd.domain.builds import Control
from swarmd.domain.errors import Invalid, Unauthorized
from swarmd.domain.trees import TREE_CHARS_MAX
from swarmd.ops import builds, queueing, swarm
from swarmd.ops.builds import BuildFilter
from swarmd.ops.events import list_events
from swarmd.ops.syncs import Syncs
from swarmd.ops.trees import Trees

API = "/api/v1"
QUEUE_BYTES_MAX = 1024 * 1024
REPORT_BYTES_MAX = 1024 * 1024
EVENTS_LIMIT = 200
HISTORY_EVENTS_LIMIT = 500
BUILDS_LIMIT, BUILDS_MAX = 100, 1000
QUEUE_LIMIT = 1000
NAME = "swarmd"


@dataclass(frozen=True, slots=True)
class Swarm:
    """What the routes stand on."""

    cluster: Cluster
    admin_key: Callable[[], str | None]
    version: str
    uptime_s: Callable[[], float]
    address: str
    """Where drones are told that this node is."""
    port: Callable[[], int]
    """Where it really is, once it is served."""
    trees: Trees | None = None
    syncs: Syncs = field(default_factory=Syncs)


Answer = Callable[[Swarm, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    template: str
    answer: Answer
    admin: bool = False
    """It takes the admin key."""
    body_bytes_max: int | None = None
    by_token: bool = False
    """Of a drone; see `HotRoute`."""


def hot_routes(swarm_: Swarm, routes: tuple[Route, ...]) -> tuple[HotRoute, ...]:
    def hot(route: Route) -> HotRoute:
        answer, bytes_max = partial(_admitted, route, swarm_), route.body_bytes_max
        return HotRoute(route.method, route.template, answer, bytes_max, by_token=route.by_token)

    return tuple(map(hot, routes))


async def _admitted(route: Route, swarm_: Swarm, request: Request) -> Response:
    if route.admin:
        check_admin(swarm_, request)
    return await route.answer(swarm_, request)


def check_admin(swarm_: Swarm, request: Request) -> None:
    """The guard has compared the key; a key that nobody knows opens nothing."""
    if request.actor.name in ("admin", "local"):
        return
    if not swarm_.admin_key():
        raise Unauthorized("this node knows no admin key yet, so this is closed; try again shortly")
    raise Unauthorized("this takes the admin key; send X-Admin-Key or Authorization: Bearer")


# What everybody may see


async def health(on: Swarm, request: Request) -> Response:
    found = await swarm.health(on.cluster)
    view = HealthOut("ok" if found.healthy else "degraded", on.version, round(on.uptime_s(), 1))
    return json_answer(view, 200 if found.healthy else 503)


async def status(on: Swarm, request: Request) -> Response:
    found = await builds.overview(on.cluster)
    drones = [drone async for drone in in_slices(found.builders, DroneOut.of)]
    return json_answer(StatusOut.of(found, drones, on.version))


async def nodes(on: Swarm, request: Request) -> Response:
    query = request.args
    wanted = query.get("format", "")
    if wanted not in ("", "legacy"):
        raise Invalid("format must be legacy, or left out", field="format")
    everyone = flag(query, "all")
    found = await builds.list_builders(on.cluster)
    drones = [drone async for drone in in_slices(found, DroneOut.of)]
    shown = [drone for drone in drones if everyone or drone.status == "online"]
    return json_answer(LegacyOut(shown, []) if wanted else shown)


async def events(on: Swarm, request: Request) -> Response:
    return await _events(on, request.args, EVENTS_LIMIT, recent=True)


async def events_history(on: Swarm, request: Request) -> Response:
    return await _events(on, request.args, HISTORY_EVENTS_LIMIT, recent=False)


async def _events(on: Swarm, query: dict[str, str], usual: int, *, recent: bool) -> Response:
    limit, since, kind = limit_of(query, usual), since_ms(query), query.get("type", "")
    if kind and kind not in TYPES:
        raise Invalid(f"type must be one of {', '.join(TYPES)}", field="type")
    about = "" if recent else text_of(query.get("drone"), "drone")
    kinds, only = TYPES[kind] if kind else (KINDS, None)
    found, names = await list_events(
        on.cluster, kinds, only, limit=limit, since=since, about=about, recent=recent
    )
    views = [view async for view in in_slices(found, lambda event: EventOut.of(event, names))]
    return json_answer({"events": views})


async def history(on: Swarm, request: Request) -> Response:
    query = request.args
    ok = {"": None, "success": True, "failed": False}.get(query.get("status", ""), ...)
    if ok is ...:
        raise Invalid("status must be success or failed", field="status")
    name = text_of(query.get("drone"), "drone") or None
    wanted = BuildFilter(ok, name, min(BUILDS_MAX, limit_of(query, BUILDS_LIMIT)))
    found = await builds.list_builds(on.cluster, wanted)
    rows = msgspec.Raw(encode_json([row async for row in in_slices(found, BuildOut.of)]))
    stats = TimingOut.of(await builds.totals(on.cluster))
    return json_answer({"builds": rows, "history": rows, "stats": stats})


async def sessions(on: Swarm, request: Request) -> Response:
    found = await builds.list_sessions(on.cluster)
    return json_answer({"sessions": [view async for view in in_slices(found, SessionOut.of)]})


# What operators say


async def queue(on: Swarm, request: Request) -> Response:
    limit = limit_of(request.args, QUEUE_LIMIT)
    found = await builds.list_queue(on.cluster, min(limit, QUEUE_LIMIT))
    return json_answer([entry async for entry in in_slices(found, EntryOut.of)])


async def enqueue(on: Swarm, request: Request) -> Response:
    asked = await read_json(request, QueueIn)
    moment = datetime.fromtimestamp(on.cluster.now_ms() / 1000, UTC)
    session_id = f"session-{moment:%Y%m%d-%H%M%S}"
    name = text_of(asked.session_name, "session_name") or session_id
    meant = await queueing.look_up(on.cluster, asked.packages, on.trees)
    queued = await shielded(
        queueing.enqueue, on.cluster, request.actor, meant, name, session_id
    )  # fmt: skip
    return json_answer(QueuedOut.of(queued))


async def control(on: Swarm, request: Request) -> Response:
    asked = await read_json(request, ControlIn)
    action = asked.control()
    target = text_of(asked.target, "target") or None
    done = await shielded(builds.control, on.cluster, request.actor, action, target)
    message = _MESSAGES[action].format(count=done.count, target=target or "all")
    answer = {"status": "ok", "action": asked.action, "message": message, "count": done.count}
    return json_answer(answer)


_MESSAGES = {
    Control.PAUSE: "Queue paused",
    Control.RESUME: "Queue resumed",
    Control.UNBLOCK: "{count} packages unblocked",
    Control.BLOCK: "{target} blocked",
    Control.UNGROUND: "{count} drones unground",
    Control.RESET: "Queue reset: {count} affected",
    Control.REBALANCE: "{count} packages reclaimed",
    Control.RECLAIM: "{count} packages reclaimed",
    Control.CLEAR_FAILURES: "{count} failures cleared",
    Control.RETRY_FAILURES: "{count} packages queued again",
    Control.CLEAR_HISTORY: "{count} builds forgotten",
}


async def _pause(paused: bool, on: Swarm, request: Request) -> Response:
    name = drone_name(request.params["name"])
    await builds.note_builder(on.cluster, request.actor, name, paused=paused)
    return json_answer({"status": "ok", "drone": name, "paused": paused})


async def set_type(on: Swarm, request: Request) -> Response:
    name = drone_name(request.params["name"])
    sort = (await read_json(request, TypeIn)).sort()
    await builds.note_builder(on.cluster, request.actor, name, sort=sort)
    return json_answer({"status": "ok", "drone": name, "drone_type": sort.value})


# What drones say


async def register(on: Swarm, request: Request) -> Response:
    asked = await read_json(request, RegisterIn)
    says = asked.says(request.actor.address)
    await tokens.check_own(on.cluster, request, says.id, says.name)
    told = await builds.register(on.cluster, request.actor, says)
    token = token_of(on.admin_key(), says.id)
    return json_answer(RegisteredOut.of(told, on.address, on.port(), NAME, token))


def token_of(admin_key: str | None, drone: str) -> str | None:
    """A drone's own, which any node can check."""
    if not admin_key:
        return None
    digest = hmac.digest(admin_key.encode(), f"drone {drone}".encode(), hashlib.sha256)
    return f"{drone}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


async def work(on: Swarm, request: Request) -> Response:
    query = request.args
    drone = drone_id(query.get("id"))
    await tokens.check_own(on.cluster, request, drone)
    found = await builds.work(
        on.cluster, request.actor, drone, cores_of(query),
        syncs=on.syncs, tried=text_of(query.get("synced"), "synced", TREE_CHARS_MAX),
    )  # fmt: skip
    return json_answer(work_out(found))


async def complete(on: Swarm, request: Request) -> Response:
    asked = await read_json(request, CompleteIn)
    outcome, error = asked.outcome()
    finish = partial(builds.finish, duration_ms=asked.duration_ms(), error=error)
    package, drone = text_of(asked.package, "package"), drone_id(asked.id)
    await tokens.check_own(on.cluster, request, drone)
    counted = await shielded(finish, on.cluster, request.actor, drone, package, outcome)
    if counted:
        return json_answer({"status": "ok", "package": package, "accepted": True})
    return json_answer({
        "status": "ok", "package": package, "accepted": False, "stale": True,
        "action": "stop_work",
    })  # fmt: skip


ROUTES: tuple[Route, ...] = (
    Route("GET", f"{API}/health", health),
    Route("GET", f"{API}/status", status),
    Route("GET", f"{API}/nodes", nodes),
    Route("GET", f"{API}/events", events),
    Route("GET", f"{API}/events/history", events_history),
    Route("GET", f"{API}/history", history),
    Route("GET", f"{API}/sessions", sessions),
    Route("GET", f"{API}/queue", queue, admin=True),
    Route("POST", f"{API}/queue", enqueue, admin=True, body_bytes_max=QUEUE_BYTES_MAX),
    Route("POST", f"{API}/control", control, admin=True),
    Route("POST", f"{API}/nodes/{{name}}/pause", partial(_pause, True), admin=True),
    Route("POST", f"{API}/nodes/{{name}}/resume", partial(_pause, False), admin=True),
    Route("POST", f"{API}/nodes/{{name}}/set-type", set_type, admin=True),
    Route("POST", f"{API}/register", register, by_token=True),
    Route("GET", f"{API}/work", work, by_token=True),
    Route("POST", f"{API}/complete", complete, body_bytes_max=REPORT_BYTES_MAX, by_token=True),
)
