"""This node's blobs as the swarm sees them: bounded, and removed once nobody needs them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from swarmd.agent.blobs import BlobStore
from swarmd.cluster.feed import FellBehind
from swarmd.cluster.handle import Cluster
from swarmd.domain.blobs import BlobInfo
from swarmd.domain.events import BlobsDropped, Event
from swarmd.state.queries import FindBlob

SWEEP_PAGE = 500


class NodeBlobs:
    """The port through which everyone above stores and reads."""

    def __init__(self, store: BlobStore, blob_bytes_max: int) -> None:
        self._store = store
        self._blob_bytes_max = blob_bytes_max

    async def put(
        self, chunks: AsyncIterator[bytes], *, expected_sha256: str | None = None
    ) -> BlobInfo:
        return await self._store.put(
            chunks, expected_sha256=expected_sha256, bytes_max=self._blob_bytes_max
        )

    async def put_bytes(self, data: bytes) -> BlobInfo:
        return await self._store.put_bytes(data)

    def open(self, sha256: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        return self._store.open(sha256)


async def drop_unneeded(cluster: Cluster, store: BlobStore) -> None:
    """Remove what the swarm forgot: first all of which it knows nothing, then as it is told."""

    def wants(event: Event) -> bool:
        return isinstance(event.body, BlobsDropped)

    while True:
        try:
            async with cluster.watch(wants=wants) as events:
                await _sweep(cluster, store)
                async for event in events:
                    assert isinstance(event.body, BlobsDropped)
                    for sha256 in event.body.sha256s:
                        if await cluster.read(FindBlob(sha256)) is None:
                            await store.delete(sha256)
        except FellBehind:
            continue


async def _sweep(cluster: Cluster, store: BlobStore) -> None:
    """A crash between a blob's write and the word of it leaves a file that nobody knows. Only at
    the start: later, one that is not known yet may be about to be."""
    after = ""
    while page := await store.list_blobs(after=after, limit=SWEEP_PAGE):
        for info in page:
            if await cluster.read(FindBlob(info.sha256)) is None:
                await store.delete(info.sha256)
        after = page[-1].sha256
