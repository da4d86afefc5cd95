"""This node's blobs are removed once nobody in the swarm needs them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

from swarmd.agent.blobs import BlobStore
from swarmd.cluster.feed import FellBehind
from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import SwarmError
from swarmd.domain.events import BlobsDropped, Event
from swarmd.state.commands import AddBlob
from swarmd.state.queries import FindBlob, ListHolders

log = logging.getLogger(__name__)

T = TypeVar("T")

AGAIN_S = 1.0
SWEEP_PAGE = 500


async def drop_unneeded(cluster: Cluster, store: BlobStore) -> None:
    """Remove what the swarm forgot: first all of which it knows nothing, then as it is told."""

    def wants(event: Event) -> bool:
        return isinstance(event.body, BlobsDropped)

    while True:
        try:
            async with cluster.watch(wants=wants) as events:
                if store.fresh is not None:
                    await _sweep(cluster, store, store.fresh)
                    store.fresh = None
                async for event in events:
                    assert isinstance(event.body, BlobsDropped)
                    for sha256 in event.body.sha256s:
                        if not await _is_known(cluster, sha256):
                            await store.delete(sha256)
        except FellBehind:
            continue


async def _is_known(cluster: Cluster, sha256: str) -> bool:
    return await _patiently(partial(cluster.read, FindBlob(sha256))) is not None


async def _patiently(work: Callable[[], Awaitable[T]]) -> T:
    """Asked of the swarm, for as long as it takes: this node's replica may be behind."""
    while True:
        try:
            return await work()
        except SwarmError as refusal:
            log.debug("blobs are not tidied now", extra={"reason": refusal.message})
            await trio.sleep(AGAIN_S)


async def _sweep(cluster: Cluster, store: BlobStore, fresh: set[str]) -> None:
    """A crash between a blob's write and the word of it leaves a file that nobody knows. Only at
    the start, and not what came since: that is perhaps about to be known."""
    after = ""
    while page := await store.list_blobs(after=after, limit=SWEEP_PAGE):
        for info in page:
            if info.sha256 in fresh:
                continue
            if not await _is_known(cluster, info.sha256):
                await store.delete(info.sha256)
                continue
            holders = await _patiently(partial(cluster.read, ListHolders(info.sha256)))
            if cluster.node.id not in holders:
                # A restored swarm knows of the blob, and not that this node has it.
                held = AddBlob(info.sha256, info.size_bytes, cluster.node.id)
                await _patiently(partial(cluster.propose, held, SYSTEM))
        after = page[-1].sha256
