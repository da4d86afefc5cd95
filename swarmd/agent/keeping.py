"""This node's blobs are removed once nobody in the swarm needs them."""

from __future__ import annotations

import logging
from functools import partial
from typing import TypeVar

import trio

from swarmd.agent.blobs import BlobStore
from swarmd.cluster.feed import FellBehind, Wanted
from swarmd.cluster.handle import Cluster
from swarmd.cluster.patience import AGAIN_S, patiently
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import Unavailable
from swarmd.domain.events import BlobsDropped
from swarmd.state.commands import AddBlob
from swarmd.state.queries import FindBlob, ListHolders

log = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_PAGE = 500


async def drop_unneeded(cluster: Cluster, store: BlobStore) -> None:
    """Remove what the swarm forgot: first all of which it knows nothing, then as it is told."""
    while True:
        try:
            async with cluster.watch(wants=Wanted.of(BlobsDropped)) as events:
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
        except Unavailable:
            await trio.sleep(AGAIN_S)  # no replica is in reach


async def _is_known(cluster: Cluster, sha256: str) -> bool:
    return await patiently(partial(cluster.read, FindBlob(sha256))) is not None


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
            holders = await patiently(partial(cluster.read, ListHolders(info.sha256)))
            if cluster.node.id not in holders:
                # A restored swarm knows of the blob, and not that this node has it.
                held = AddBlob(info.sha256, info.size_bytes, cluster.node.id)
                await patiently(partial(cluster.propose, held, SYSTEM))
        after = page[-1].sha256
