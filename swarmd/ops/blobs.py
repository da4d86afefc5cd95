"""Blobs: bytes that jobs refer to by their hash."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.blobs import BlobInfo, checked_sha256
from swarmd.state.commands import AddBlob


async def put(
    cluster: Cluster, actor: Actor, chunks: AsyncIterator[bytes], *,
    expected_sha256: str | None = None,
) -> BlobInfo:  # fmt: skip
    """Store a blob; it is on disk and known to the swarm when this returns. It is kept for an hour,
    and for as long as something refers to it."""
    if expected_sha256 is not None:
        expected_sha256 = checked_sha256(expected_sha256)
    info = await cluster.blobs.put(chunks, expected_sha256=expected_sha256)
    await cluster.propose(AddBlob(info.sha256, info.size_bytes, cluster.node.id), actor)
    return info


def open_blob(cluster: Cluster, sha256: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """NotFound when nobody has it."""
    return cluster.blobs.open(checked_sha256(sha256))


async def read(cluster: Cluster, sha256: str) -> AsyncIterator[bytes]:
    """The same as a plain stream of bytes."""
    async with open_blob(cluster, sha256) as chunks:
        async for chunk in chunks:
            yield chunk
