"""Outputs of jobs: small ones travel inside the result, larger ones as blobs."""

from __future__ import annotations

import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.cutting import cut
from swarmd.domain.jobs import INLINE_BYTES_MAX, OUTPUT_BYTES_MAX, Output
from swarmd.state.commands import AddBlob

_LOOP_BYTES_MAX = 256 * 1024


async def to_output(cluster: Cluster, actor: Actor, said: str | bytes) -> Output:
    """Cut to its bound, stored where needed before anything refers to it."""
    if len(said) > _LOOP_BYTES_MAX:
        data = await trio.to_thread.run_sync(_encoded, said)
    else:
        data = _encoded(said)
    if len(data) <= INLINE_BYTES_MAX:
        return Output(inline=data, size=len(data))
    info = await cluster.blobs.put_bytes(data)
    await cluster.propose(AddBlob(info.sha256, info.size_bytes, cluster.node.id), actor)
    return Output(blob=info.sha256, size=len(data))


def _encoded(said: str | bytes) -> bytes:
    data = said.encode("utf-8", "replace") if isinstance(said, str) else said
    return data if len(data) <= OUTPUT_BYTES_MAX else cut(data)


async def output_text(cluster: Cluster, output: Output) -> str:
    if output.blob is None:
        return output.inline.decode("utf-8", "replace")
    async with cluster.blobs.open(output.blob) as chunks:
        return b"".join([chunk async for chunk in chunks]).decode("utf-8", "replace")
