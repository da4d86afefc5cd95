"""The build swarm's admin port as a surface: its routes, and a key for each of them, wherever it is
asked from."""

from __future__ import annotations

from functools import partial

from api.buildswarm import care_routes, payload_routes
from api.buildswarm.envelope import ADMIN_ENVELOPE
from api.buildswarm.payload_routes import Admin
from api.buildswarm.routes import hot_routes
from api.buildswarm.terminal import make_app
from api.common.surface import Access, HotRoute, Surface
from swarmd.ops.terminals import Terminals

NAME = "buildadmin"
PORT = 8093


def surface(
    on: Admin,
    terminals: Terminals,
    *,
    binds: tuple[str, ...] = ("127.0.0.1",),
    port: int = PORT,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> Surface:
    return Surface(
        name=NAME,
        envelope=ADMIN_ENVELOPE,
        app=partial(make_app, terminals),
        hot=all_routes(on),
        binds=binds,
        port=port,
        access=Access.KEY,
        hosts=hosts,
        origins=origins,
        query_keys="/ws/ssh/",
        staleness_ms=on.swarm.cluster.staleness_ms,
    )


def all_routes(on: Admin) -> tuple[HotRoute, ...]:
    return (*payload_routes.hot_routes(on), *hot_routes(on.swarm, care_routes.ADMIN_ROUTES))
