"""Logs: what an attempt wrote, read from the node that ran it, also while it is being written."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal

import trio

from swarmd.cluster.asks import LogChunk, ReadLog
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import NotFound, SwarmError
from swarmd.domain.events import Event, JobEnded, JobStarted
from swarmd.domain.jobs import AttemptId, Job, Output
from swarmd.ops import jobs

Stream = Literal["stdout", "stderr", "both"]
FOLLOW_WAIT_S = 30.0
_CHUNKS_AHEAD = 4


@asynccontextmanager
async def tail(
    cluster: Cluster, job_id: str, *, stream: Stream = "both", follow: bool = False,
    from_byte: int = 0,
) -> AsyncIterator[AsyncIterator[bytes]]:  # fmt: skip
    """Bytes of the job's last attempt. With `follow`, wait for it to start, and go on until it
    ends. NotFound: no such job. A job that ended elsewhere shows the output of its result."""
    job = await jobs.find(cluster, job_id)
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[bytes](_CHUNKS_AHEAD)
        nursery.start_soon(_read_all, cluster, job, streams, follow, from_byte, send)
        try:
            yield receive
        finally:
            nursery.cancel_scope.cancel()


async def stream_bytes(
    cluster: Cluster, job_id: str, stream: Stream, *, follow: bool, from_byte: int = 0
) -> AsyncGenerator[bytes, None]:
    """The same as a generator, for an answer that is sent while it comes."""
    try:
        async with tail(
            cluster, job_id, stream=stream, follow=follow, from_byte=from_byte
        ) as chunks:
            async for chunk in chunks:
                yield chunk
    except BaseExceptionGroup as group:
        # A generator that is closed early has GeneratorExit wrapped by the nursery inside it.
        _, others = group.split(GeneratorExit)
        if others is not None:
            raise others from None


async def _read_all(
    cluster: Cluster, job: Job, streams: tuple[str, ...], follow: bool, from_byte: int,
    out: trio.MemorySendChannel[bytes],
) -> None:  # fmt: skip
    async with out:
        attempt_id = await _attempt_of(cluster, job, follow)
        if attempt_id is None:
            await _from_result(cluster, await jobs.find(cluster, job.id), streams, from_byte, out)
            return
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(
                    _read_stream, cluster, job, attempt_id, stream, follow, from_byte, out.clone()
                )


async def _attempt_of(cluster: Cluster, job: Job, follow: bool) -> AttemptId | None:
    """The attempt on one of our nodes to read from; None when an executor of someone else's has
    it. Following, wait until there is one."""

    def about(event: Event) -> bool:
        body = event.body
        return isinstance(body, JobStarted | JobEnded) and body.job_id == job.id

    async with cluster.watch(wants=about) as events:
        job = await jobs.find(cluster, job.id)
        while True:
            ours = [a for a in job.attempts if not a.external]
            if ours and (job.status.ended or ours[-1].started_at is not None):
                return ours[-1].id
            if job.status.ended or not follow:
                return ours[-1].id if ours else None
            await anext(events)
            job = await jobs.find(cluster, job.id)


async def _read_stream(
    cluster: Cluster, job: Job, attempt_id: AttemptId, stream: str, follow: bool, offset: int,
    out: trio.MemorySendChannel[bytes],
) -> None:  # fmt: skip
    async with out:
        while True:
            request = ReadLog(attempt_id, stream, offset, wait_s=FOLLOW_WAIT_S if follow else 0.0)
            try:
                chunk: LogChunk = await cluster.ask(cluster.node.id, request)
            except NotFound:
                job = await jobs.find(cluster, job.id)
                await _from_result(cluster, job, (stream,), offset, out)
                return
            if chunk.data:
                await out.send(chunk.data)
            offset = chunk.next_offset
            if chunk.ended or (not chunk.data and not follow):
                return


async def _from_result(
    cluster: Cluster, job: Job, streams: tuple[str, ...], from_byte: int,
    out: trio.MemorySendChannel[bytes],
) -> None:  # fmt: skip
    """The log itself is gone or elsewhere; the result still has what was kept of it."""
    if job.result is None:
        return
    for stream in streams:
        output: Output = job.result.stdout if stream == "stdout" else job.result.stderr
        if output.blob is None:
            if output.inline[from_byte:]:
                await out.send(output.inline[from_byte:])
            continue
        try:
            async with cluster.blobs.open(output.blob) as chunks:
                skip = from_byte
                async for chunk in chunks:
                    if chunk[skip:]:
                        await out.send(chunk[skip:])
                    skip = max(0, skip - len(chunk))
        except SwarmError as error:
            await out.send(f"[the output cannot be read: {error.message}]\n".encode())
