"""What a job writes, as it writes it: a stream of bytes, or text messages over a WebSocket.

A stream ends when the job has ended, when the client goes, or when the surface closes.
"""

from __future__ import annotations

import codecs
from collections.abc import AsyncGenerator

import trio
from quart import websocket
from quart_trio import QuartTrio

from api.jobqueue.requests import LogsWanted, known_form
from swarmd.cluster.handle import Cluster
from swarmd.ops import logs

ENDED = 1000


def tail(cluster: Cluster, found: logs.Found, wanted: LogsWanted) -> AsyncGenerator[bytes, None]:
    return logs.stream_bytes(
        cluster, found, wanted.stream, follow=wanted.follow, from_byte=wanted.from_byte
    )


def make_app(cluster: Cluster) -> QuartTrio:
    """What is not answered by a hot route: the WebSocket of a job's logs, and nothing else."""
    app = QuartTrio("api.jobqueue", static_folder=None)

    @app.websocket("/api/v1/jobs/<id>/logs")
    async def follow_logs(id: str) -> None:
        job_id = known_form(id)
        wanted = LogsWanted.of(websocket.args, follow="true")
        found = await logs.find(cluster, job_id)  # an unknown job refuses the handshake
        await websocket.accept()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignore_messages)
            await _send_all(cluster, found, wanted)
            nursery.cancel_scope.cancel()
        await websocket.close(ENDED)

    return app


async def _send_all(cluster: Cluster, found: logs.Found, wanted: LogsWanted) -> None:
    # A character may be cut in two by the end of a chunk; the decoder keeps its first half.
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    async with logs.tail(
        cluster, found, stream=wanted.stream, follow=wanted.follow, from_byte=wanted.from_byte
    ) as chunks:
        async for chunk in chunks:
            if text := decoder.decode(chunk):
                await websocket.send(text)
    if text := decoder.decode(b"", final=True):
        await websocket.send(text)


async def _ignore_messages() -> None:
    """Take what the client sends, so that its going is seen behind it."""
    while True:
        await websocket.receive()
