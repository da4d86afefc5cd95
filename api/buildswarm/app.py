"""The build swarm as a surface: its routes and its envelope, ready to be served."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from api.buildswarm import binhost, care_routes, tokens
from api.buildswarm.binhost import BinHost
from api.buildswarm.envelope import ENVELOPE
from api.buildswarm.routes import API, ROUTES, Swarm, hot_routes
from api.common.surface import Access, Surface, Tokens
from swarmd.cluster.handle import Cluster
from swarmd.ops.binhost import Index, Staging
from swarmd.ops.drone_tokens import DroneTokens
from swarmd.ops.trees import Trees

NAME = "buildswarm"
PORT = 8100


def surface(
    cluster: Cluster,
    *,
    admin_key: Callable[[], str | None],
    version: str,
    uptime_s: Callable[[], float],
    address: str,
    staging: Path,
    package_bytes_max: int,
    trees: Trees,
    drone_tokens: DroneTokens,
    bound_port: Callable[[], int],
    binds: tuple[str, ...] = ("127.0.0.1",),
    port: int = PORT,
    access: Access = Access.LOOPBACK,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> Surface:
    place = Staging(staging, package_bytes_max)
    place.clear()
    swarm = Swarm(cluster, admin_key, version, uptime_s, address, bound_port, trees)
    files = BinHost(swarm, Index(cluster), place)
    return Surface(
        name=NAME,
        envelope=ENVELOPE,
        hot=(*hot_routes(swarm, (*ROUTES, *care_routes.ROUTES)), *binhost.hot_routes(files)),
        binds=binds,
        port=port,
        access=access,
        hosts=hosts,
        origins=origins,
        tokens=Tokens(tokens.HEADER, partial(_actor_of, drone_tokens), tokens.HINT),
        probes=frozenset({f"{API}/health"}),
        staleness_ms=cluster.staleness_ms,
    )


def _actor_of(drone_tokens: DroneTokens, shown: str) -> str | None:
    name = drone_tokens.owner(shown)
    return None if name is None else tokens.ACTOR + name
