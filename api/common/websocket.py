"""WebSockets by Hypercorn's stream, fed so that none of its faults can be reached.

What a client sends along with its upgrade is kept until the upgrade was answered (Hypercorn would
raise out of the server), compression is not offered (a small frame may unfold to any size), and a
peer that answers no ping is cut off.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol import events
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext

from api.common.faults import BadRequest
from api.common.limits import HttpLimits
from api.common.wire import RawHeaders, render_head

if TYPE_CHECKING:
    from api.common.connection import Connection
    from api.common.exchange import Exchange
    from api.common.quart_app import Asgi

log = logging.getLogger(__name__)

_GOING_AWAY = 1001
_PINGS_MISSED_MAX = 3
_CLOSING_S_MAX = 5.0
_STREAM_ID = 1


def hypercorn_config(limits: HttpLimits) -> Config:
    """Hypercorn's settings where it is at work: WebSockets and the application's start and end."""
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.websocket_max_message_size = limits.websocket_message_bytes_max
    config.websocket_ping_interval = limits.websocket_ping_s
    config.max_app_queue_size = 8
    config.startup_timeout = 30
    config.shutdown_timeout = 1
    return config


async def serve_websocket(
    app: Asgi, connection: Connection, exchange: Exchange, scope: dict[str, Any]
) -> None:
    """Run one WebSocket to its end. Raises BadRequest for a handshake that is none."""
    _check_handshake(exchange)
    bridge = _Bridge(connection, exchange)
    try:
        async with TaskGroup() as group:
            await bridge.run(app, group, scope)
    finally:
        exchange.finished = True
        exchange.keep_alive = False


def _check_handshake(exchange: Exchange) -> None:
    found = [v for name, v in exchange.head.headers if name == b"sec-websocket-version"]
    if found != [b"13"]:
        raise BadRequest("Sec-WebSocket-Version has to be 13")
    keys = [v for name, v in exchange.head.headers if name == b"sec-websocket-key"]
    if len(keys) != 1 or not 16 <= len(keys[0]) <= 64:
        raise BadRequest("Sec-WebSocket-Key has to be given once, 16 bytes in base64")


class _Bridge:
    """Between the connection's bytes and Hypercorn's events."""

    def __init__(self, connection: Connection, exchange: Exchange) -> None:
        self._connection = connection
        self._exchange = exchange
        self._answered = trio.Event()
        self._reading = trio.CancelScope()
        self._closing = False
        self._write_lock = trio.Lock()

    async def run(self, app: Asgi, group: Any, scope: dict[str, Any]) -> None:
        limits = self._connection.site.limits
        # Every argument that Hypercorn reads by attribute; its own listener is not involved.
        stream = WSStream(
            ASGIWrapper(cast(Any, app)),
            hypercorn_config(limits),
            cast(Any, WorkerContext(None)),
            group,
            False,
            scope["client"],
            scope["server"],
            cast(Any, self._on_event),
            _STREAM_ID,
        )
        offered = b"sec-websocket-extensions"
        headers = [header for header in scope["headers"] if header[0] != offered]
        await stream.handle(
            events.Request(
                stream_id=_STREAM_ID,
                headers=headers,
                http_version="1.1",
                method="GET",
                raw_path=self._exchange.head.target,
                state=cast(Any, {}),
            )
        )
        with self._reading:
            await self._answered.wait()
            await self._read(stream, limits.websocket_ping_s * _PINGS_MISSED_MAX)
        if not stream.closed:
            await stream.handle(events.StreamClosed(stream_id=_STREAM_ID))

    async def _read(self, stream: WSStream, silence_s: float) -> None:
        connection = self._connection
        while True:
            self._reading.deadline = trio.current_time() + (
                _CLOSING_S_MAX if self._closing else silence_s
            )
            data = await connection.receive_some()
            self._reading.deadline = math.inf
            if not data:
                return
            await stream.handle(events.Data(stream_id=_STREAM_ID, data=data))
            if stream.state is ASGIWebsocketState.CLOSED:
                self._closing = True

    async def _on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Response):
            self._exchange.status = event.status_code
            headers: RawHeaders = [*event.headers, *self._connection.common_headers()]
            await self._write(render_head(event.status_code, headers))
            if event.status_code == 101:
                self._answered.set()
        elif isinstance(event, (events.Body, events.Data)):
            await self._write(event.data)
        elif isinstance(event, (events.EndBody, events.EndData)):
            self._closing = True
            self._reading.deadline = trio.current_time() + _CLOSING_S_MAX
        elif isinstance(event, events.StreamClosed):
            self._reading.cancel()

    async def _write(self, data: bytes) -> None:
        async with self._write_lock:
            await self._connection.write(data)
