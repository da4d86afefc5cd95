"""A term of leadership: the loops that only the leader runs, in one nursery, cancelled with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import trio

from swarmd.cluster.asks import Beat, ListBeats
from swarmd.cluster.handle import Cluster
from swarmd.control import upkeep
from swarmd.control.presence import Presence
from swarmd.control.scheduler import schedule
from swarmd.control.upkeep import UpkeepSettings


class Answering(Cluster, Protocol):
    def answers(self, request: type[Any], answer: Callable[[Any], Any]) -> None: ...


@asynccontextmanager
async def open_term(cluster: Answering, settings: UpkeepSettings) -> AsyncIterator[None]:
    """Lead for as long as the body runs."""
    term = cluster.leadership().term
    presence = Presence(cluster)
    cluster.answers(Beat, presence.beat)
    cluster.answers(ListBeats, presence.list_beats)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(upkeep.listen, cluster, presence)
        nursery.start_soon(schedule, cluster, term)
        nursery.start_soon(upkeep.settle_and_wake, cluster, term)
        nursery.start_soon(upkeep.expire, cluster, term, presence)
        nursery.start_soon(upkeep.prune, cluster, term, settings)
        yield
        nursery.cancel_scope.cancel()
