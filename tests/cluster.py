"""A replica of its own for tests: a swarm of one, with the real log, state and wires."""

from __future__ import annotations

import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from mesh.transport import Me, TransportSettings, open_transport
from mesh.wal_sqlite import open_log
from swarmd.cluster.opening import OpeningSettings, open_replica
from swarmd.cluster.replica import Replica
from swarmd.domain.nodes import Node
from swarmd.state.store import StoreSettings, open_store


@asynccontextmanager
async def open_alone(
    place: Path,
    node: Node,
    *,
    now_ms: Callable[[], int],
    settings: OpeningSettings | None = None,
    store_settings: StoreSettings | None = None,
    new_id: Callable[[], str] | None = None,
) -> AsyncIterator[Replica]:
    """It leads, and its swarm knows it, when the body begins."""
    copies = place / "copies"
    copies.mkdir(exist_ok=True)
    numbers = itertools.count()
    rng = random.Random(7)
    async with (
        open_log(place / "raft.db", create=True) as raft_log,
        open_store(place / "state.db", store_settings or StoreSettings()) as store,
        open_transport(TransportSettings(), Me(node.id, raft_log.boot), rng=rng) as wires,
        open_replica(
            node, raft_log, store, wires, copies, settings or OpeningSettings(), now_ms=now_ms,
            new_id=new_id or (lambda: f"id-{next(numbers)}"), rng=rng,
        ) as replica,
    ):  # fmt: skip
        await replica.introduced.wait()
        yield replica
