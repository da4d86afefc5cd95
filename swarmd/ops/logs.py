"""Logs: what an attempt wrote, read from the node that ran it, also while it is being written.

They need no leader: who reads a log may be looking for the reason why there is none.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Literal, NamedTuple

import trio

from swarmd.cluster.asks import LogChunk, ReadLog
from swarmd.cluster.feed import Wanted
from swarmd.cluster.handle import Cluster, local_reads, read_locally, reads_are_local
from swarmd.domain.errors import NotFound, SwarmError, Unavailable
from swarmd.domain.events import JobEnded, JobStarted
from swarmd.domain.jobs import Attempt, Job, Output
from swarmd.ops import jobs

Stream = Literal["stdout", "stderr", "both"]
VOUCHED_S_MAX = 1.0
"""For a leader to vouch for what is known of a job; then this node's own word has to do."""
FOLLOW_WAIT_S = 30.0
AWAY_S_MAX = 10.0
"""A node that is only being restarted is back by then, and its log goes on."""
AWAY_LOOK_S = 0.5
_CHUNKS_AHEAD = 4


class Found(NamedTuple):
    job: Job
    vouched: bool
    """False: as this node's replica knows it, which may be behind."""


async def find(cluster: Cluster, job_id: str) -> Found:
    """The job whose logs are wanted. NotFound; Unavailable: nobody leads, and this node has never
    heard of it."""
    if reads_are_local():
        return Found(await jobs.find(cluster, job_id), vouched=False)
    try:
        with trio.move_on_after(VOUCHED_S_MAX):
            return Found(await jobs.find(cluster, job_id), vouched=True)
    except Unavailable:
        pass
    try:
        with local_reads():
            return Found(await jobs.find(cluster, job_id), vouched=False)
    except NotFound:
        raise Unavailable(
            "this node knows no such job, and reaches no leader to ask", job_id=job_id[:128]
        ) from None


@asynccontextmanager
async def tail(
    cluster: Cluster, found: Found, *, stream: Stream = "both", follow: bool = False,
    from_byte: int = 0,
) -> AsyncIterator[AsyncIterator[bytes]]:  # fmt: skip
    """Bytes of the job's last attempt. With `follow`, wait for it to start, and go on until it
    ends. Where the log itself is out of reach, the output of the job's result is shown."""
    streams = ("stdout", "stderr") if stream == "both" else (stream,)
    async with trio.open_nursery() as nursery:
        send, receive = trio.open_memory_channel[bytes](_CHUNKS_AHEAD)
        nursery.start_soon(_read_all, cluster, found, streams, follow, from_byte, send)
        try:
            yield receive
        finally:
            nursery.cancel_scope.cancel()


async def stream_bytes(
    cluster: Cluster, found: Found, stream: Stream, *, follow: bool, from_byte: int = 0
) -> AsyncGenerator[bytes, None]:
    """The same as a generator, for an answer that is sent while it comes."""
    try:
        async with tail(
            cluster, found, stream=stream, follow=follow, from_byte=from_byte
        ) as chunks:
            async for chunk in chunks:
                yield chunk
    except BaseExceptionGroup as group:
        # A generator that is closed early has GeneratorExit wrapped by the nursery inside it.
        _, others = group.split(GeneratorExit)
        if others is not None:
            raise others from None


async def _read_all(
    cluster: Cluster, found: Found, streams: tuple[str, ...], follow: bool, from_byte: int,
    out: trio.MemorySendChannel[bytes],
) -> None:  # fmt: skip
    if not found.vouched:
        read_locally()
    async with out:
        attempt = await _attempt_of(cluster, found.job, follow)
        if attempt is None:
            job = (await find(cluster, found.job.id)).job
            await _from_result(cluster, job, streams, from_byte, out)
            return
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(
                    _read_stream, cluster, attempt, stream, follow, from_byte, out.clone()
                )


async def _attempt_of(cluster: Cluster, job: Job, follow: bool) -> Attempt | None:
    """The attempt on one of our nodes to read from; None when an executor of someone else's has
    it. Following, wait until there is one."""
    async with cluster.watch(wants=Wanted.of(JobStarted, JobEnded, about=job.id)) as events:
        while True:
            job = (await find(cluster, job.id)).job
            ours = [a for a in job.attempts if not a.external]
            if ours and (job.status.ended or ours[-1].started_at is not None):
                return ours[-1]
            if job.status.ended or not follow:
                return ours[-1] if ours else None
            await anext(events)


async def _read_stream(
    cluster: Cluster, attempt: Attempt, stream: str, follow: bool, offset: int,
    out: trio.MemorySendChannel[bytes],
) -> None:  # fmt: skip
    heard_at = trio.current_time()
    async with out:
        while True:
            request = ReadLog(attempt.id, stream, offset, wait_s=FOLLOW_WAIT_S if follow else 0.0)
            try:
                chunk: LogChunk = await cluster.ask(attempt.node_id, request)
            except NotFound:
                job = (await find(cluster, attempt.job_id)).job
                await _from_result(cluster, job, (stream,), offset, out)
                return
            except Unavailable as away:
                if follow and trio.current_time() - heard_at < AWAY_S_MAX:
                    await trio.sleep(AWAY_LOOK_S)
                    continue
                await _without_its_node(cluster, attempt, stream, offset, away, out)
                return
            heard_at = trio.current_time()
            if chunk.data:
                await out.send(chunk.data)
            offset = chunk.next_offset
            if chunk.ended or (not chunk.data and not follow):
                return


async def _without_its_node(
    cluster: Cluster, attempt: Attempt, stream: str, offset: int, away: Unavailable,
    out: trio.MemorySendChannel[bytes],
) -> None:  # fmt: skip
    """What the result has of it, or at least why there is nothing."""
    job = (await find(cluster, attempt.job_id)).job
    if job.result is not None and job.attempts and job.attempts[-1].id == attempt.id:
        await _from_result(cluster, job, (stream,), offset, out)
    else:
        where = f"attempt {attempt.id} on node {attempt.node_id}"
        await out.send(f"[the log of {where} cannot be read: {away.message}]\n".encode())


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
