"""The console as a surface: the same routes on its port and on the node's own socket."""

from __future__ import annotations

from pathlib import Path

from api.common.surface import Access, Surface
from api.console.envelope import ENVELOPE
from api.console.routes import API, Console, hot_routes

NAME = "console"
PORT = 8470


def surface(
    console: Console, *, binds: tuple[str, ...], port: int, unix_path: Path | None,
    access: Access = Access.LOOPBACK, hosts: tuple[str, ...] = (), origins: tuple[str, ...] = (),
) -> Surface:  # fmt: skip
    return Surface(
        name=NAME,
        envelope=ENVELOPE,
        hot=hot_routes(console),
        binds=binds,
        port=port,
        unix_path=unix_path,
        access=access,
        hosts=hosts,
        origins=origins,
        probes=frozenset({f"{API}/health"}),
        staleness_ms=console.cluster.staleness_ms,
    )
