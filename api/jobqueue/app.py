"""The job queue as a surface: its routes, its envelope and its counts, ready to be served."""

from __future__ import annotations

from functools import partial

from api.common.metrics import RequestMetrics
from api.common.surface import Access, Surface
from api.jobqueue.envelope import ENVELOPE
from api.jobqueue.following import make_app
from api.jobqueue.metrics import PREFIX
from api.jobqueue.routes import API, Queue, hot_routes
from swarmd.cluster.handle import Cluster

NAME = "jobqueue"
PORT = 8080


def surface(
    cluster: Cluster,
    *,
    binds: tuple[str, ...] = ("127.0.0.1",),
    port: int = PORT,
    access: Access = Access.LOOPBACK,
    hosts: tuple[str, ...] = (),
    origins: tuple[str, ...] = (),
) -> Surface:
    metrics = RequestMetrics(PREFIX)
    return Surface(
        name=NAME,
        envelope=ENVELOPE,
        app=partial(make_app, cluster),
        hot=hot_routes(Queue(cluster, metrics)),
        binds=binds,
        port=port,
        access=access,
        hosts=hosts,
        origins=origins,
        probes=frozenset({f"{API}/health"}),
        staleness_ms=cluster.staleness_ms,
        metrics=metrics,
    )
