"""The build swarm's routes about self-healing, on both of its ports: how drones are and how far
they were escalated is for everybody to see on the public one; the rest takes the admin key."""

from __future__ import annotations

from functools import partial

from api.buildswarm.care_shapes import DetailOut, EscalationOut, MonitorOut, PingedOut, PingOut
from api.buildswarm.requests import drone_name
from api.buildswarm.routes import API, Route, Swarm
from api.common.streams import shielded
from api.common.surface import Request, Response, json_answer
from swarmd.ops import care

ADMIN_API = "/admin/api"


async def pings(on: Swarm, request: Request) -> Response:
    watch = await care.watch(on.cluster)
    return json_answer({"drones": {v.node.name: PingOut.of(v) for v in watch.builders}})


async def ping_all(on: Swarm, request: Request) -> Response:
    names = await care.probe_all(on.cluster)
    return json_answer({"status": "ok", "pinged": len(names), "drones": [*names]})


async def escalations(on: Swarm, request: Request) -> Response:
    watch = await care.watch(on.cluster)
    drones = {view.node.name: EscalationOut.of(view) for view in watch.builders}
    return json_answer({"monitor_running": watch.running, "drones": drones})


async def ping(on: Swarm, request: Request) -> Response:
    view = await care.probe(on.cluster, drone_name(request.params["name"]))
    return json_answer(PingedOut.of(view))


async def reset_escalation(on: Swarm, request: Request) -> Response:
    name = drone_name(request.params["name"])
    reset = partial(care.reset, on.cluster, request.actor, name)
    was = await shielded(reset)
    return json_answer({"status": "ok", "drone": name, "previous_level": was, "current_level": 0})


async def monitor(on: Swarm, request: Request) -> Response:
    return json_answer(MonitorOut.of(await care.watch(on.cluster)))


async def escalation(on: Swarm, request: Request) -> Response:
    view = await care.find(on.cluster, drone_name(request.params["name"]))
    return json_answer(DetailOut.of(view))


ROUTES: tuple[Route, ...] = (
    Route("GET", f"{API}/ping", pings),
    Route("GET", f"{API}/ping/all", ping_all),
    Route("GET", f"{API}/escalation", escalations),
    Route("POST", f"{API}/nodes/{{name}}/ping", ping, admin=True),
    Route("POST", f"{API}/nodes/{{name}}/reset-escalation", reset_escalation, admin=True),
)
ADMIN_ROUTES: tuple[Route, ...] = (
    Route("GET", f"{ADMIN_API}/self-healing/status", monitor, admin=True),
    Route("GET", f"{ADMIN_API}/drones/{{name}}/escalation", escalation, admin=True),
    Route("POST", f"{ADMIN_API}/drones/{{name}}/ping", ping, admin=True),
)
"""Of the port for operators."""
