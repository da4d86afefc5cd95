"""Outputs of jobs: small ones travel inside the result, larger ones as blobs. Texts are pieces all
the way, since to encode or to decode megabytes in one call would hold the loop, from any thread.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator, Sequence

import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.cutting import cut
from swarmd.domain.jobs import INLINE_BYTES_MAX, OUTPUT_BYTES_MAX, Output
from swarmd.state.commands import AddBlob

_LOOP_CHARS_MAX = 64 * 1024
_SLICE_BYTES = 64 * 1024


async def to_output(cluster: Cluster, actor: Actor, said: Sequence[str]) -> Output:
    """Cut to its bound, stored where needed before anything refers to it."""
    if sum(map(len, said)) > _LOOP_CHARS_MAX:
        data = await trio.to_thread.run_sync(_encoded, said)
    else:
        data = _encoded(said)
    if len(data) <= INLINE_BYTES_MAX:
        return Output(inline=data, size=len(data))
    info = await cluster.blobs.put_bytes(data)
    await cluster.propose(AddBlob(info.sha256, info.size_bytes, cluster.node.id), actor)
    return Output(blob=info.sha256, size=len(data))


def _encoded(said: Sequence[str]) -> bytes:
    data = b"".join([piece.encode("utf-8", "replace") for piece in said])
    return data if len(data) <= OUTPUT_BYTES_MAX else cut(data)


async def output_pieces(cluster: Cluster, output: Output) -> list[str]:
    """The output as text. What is no UTF-8 is replaced."""
    if output.blob is None:
        return [output.inline.decode("utf-8", "replace")]
    async with cluster.blobs.open(output.blob) as chunks:
        return [piece async for piece in _decoded(chunks)]


async def _decoded(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async for chunk in chunks:
        for start in range(0, len(chunk), _SLICE_BYTES):
            yield decoder.decode(chunk[start : start + _SLICE_BYTES])
            await trio.lowlevel.checkpoint()
    yield decoder.decode(b"", final=True)
