"""WebSockets by Hypercorn's stream, fed so that none of its faults can be reached.

What a client sends along with its upgrade is kept until the upgrade was answered (Hypercorn would
raise out of the server), compression is not offered (a small frame may unfold to any size), a
message over its bound ends the connection instead of growing on, and a peer that answers no ping
is cut off.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.protocol import events
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.worker_context import WorkerContext
from wsproto.utilities import ProtocolError

from api.common.exchange import ClientGone, Exchange
from api.common.faults import BadRequest
from api.common.limits import HttpLimits
from api.common.wire import RawHeaders, render_head

if TYPE_CHECKING:
    from api.common.connection import Connection
    from api.common.quart_app import Asgi

log = logging.getLogger(__name__)

_GOING_AWAY = b"\x88\x02\x03\xe9"
"""A close frame with 1001."""
_PINGS_MISSED_MAX = 3
_CLOSING_S_MAX = 2.0
_STREAM_ID = 1
_QUEUE_MAX = 8
_SLICE_BYTES = 1024
"""Fed at a time: frames are unmasked in Python, and empty ones cost 20 us each."""


def hypercorn_config(limits: HttpLimits) -> Config:
    """Hypercorn's settings where it is at work: WebSockets and the application's start and end."""
    config = Config()
    config.accesslog = None
    config.errorlog = log
    config.websocket_max_message_size = limits.websocket_message_bytes_max
    config.websocket_ping_interval = limits.websocket_ping_s
    config.max_app_queue_size = _QUEUE_MAX
    config.startup_timeout = 30
    config.shutdown_timeout = 1
    return config


async def serve_websocket(
    app: Asgi, connection: Connection, exchange: Exchange, scope: dict[str, Any]
) -> None:
    """Run one WebSocket to its end. Raises BadRequest for a handshake that is none."""
    _check_handshake(exchange)
    connection.disarm_handler()
    bridge = _Bridge(connection, exchange)
    exchange.keep_alive = False
    async with trio.open_nursery() as nursery:
        await bridge.run(app, nursery, scope)
        nursery.cancel_scope.cancel()
    exchange.finished = bool(exchange.status)


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
        self._writing = trio.Lock()

    async def run(self, app: Asgi, nursery: trio.Nursery, scope: dict[str, Any]) -> None:
        limits = self._connection.site.limits
        tasks = _Tasks(nursery)
        stream = WSStream(
            ASGIWrapper(cast(Any, app)),
            hypercorn_config(limits),
            cast(Any, WorkerContext(None)),
            cast(Any, tasks),
            False,
            scope["client"],
            scope["server"],
            cast(Any, self._on_event),
            _STREAM_ID,
        )
        # No extension is offered to Hypercorn: the only one it knows is compression.
        headers = [h for h in scope["headers"] if h[0] != b"sec-websocket-extensions"]
        target = self._exchange.head.target
        with self._reading:
            await stream.handle(
                events.Request(_STREAM_ID, headers, "1.1", "GET", target, cast(Any, {}))
            )
            await self._answered.wait()
            await self._read(stream, limits)
        with trio.move_on_after(_CLOSING_S_MAX):
            try:
                await stream.handle(events.StreamClosed(stream_id=_STREAM_ID))
            except trio.BrokenResourceError:
                pass  # the application is done already
            await tasks.done.wait()

    async def _read(self, stream: WSStream, limits: HttpLimits) -> None:
        """Feed frames. The deadline also ends a peer whose messages nobody takes any more."""
        silence_s = limits.websocket_ping_s * _PINGS_MISSED_MAX
        while True:
            wait_s = _CLOSING_S_MAX if self._closing else silence_s
            self._reading.deadline = trio.current_time() + wait_s
            data = await self._connection.receive_some(_SLICE_BYTES)
            if not data:
                return
            try:
                await stream.handle(events.Data(stream_id=_STREAM_ID, data=data))
            except (ProtocolError, trio.BrokenResourceError):
                return
            if stream.buffer.length > limits.websocket_message_bytes_max:
                return
            if stream.state is ASGIWebsocketState.CLOSED:
                self._closing = True

    async def _on_event(self, event: events.Event) -> None:
        if isinstance(event, events.Response):
            self._exchange.status = event.status_code
            headers: RawHeaders = [*event.headers, *self._exchange.staleness()]
            headers += self._connection.common_headers()
            if event.status_code != 101 and not any(n.lower() == b"connection" for n, _ in headers):
                headers.append((b"Connection", b"close"))
            await self._write(render_head(event.status_code, headers))
            if event.status_code == 101:
                self._exchange.last_words = _GOING_AWAY
                self._answered.set()
        elif isinstance(event, (events.Body, events.Data)):
            await self._write(event.data)
        elif isinstance(event, events.EndData):
            self._closing = True
            self._reading.deadline = trio.current_time() + _CLOSING_S_MAX
        elif isinstance(event, events.StreamClosed):
            self._reading.cancel()

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            try:
                await self._connection.write(data)
            except ClientGone:
                self._reading.cancel()


class _Tasks:
    """Where Hypercorn's stream starts the application and its pings: a task group of its kind
    that says when the application is done, and logs its faults with our facts."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.done = trio.Event()
        self._nursery = nursery

    async def spawn_app(
        self,
        app: Callable[..., Awaitable[None]],
        config: Config,
        scope: dict[str, Any],
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        put, take = trio.open_memory_channel[Any](config.max_app_queue_size)
        self._nursery.start_soon(self._run_app, app, scope, take, send)
        return put.send

    def spawn(self, func: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(func, *args)

    async def _run_app(
        self,
        app: Callable[..., Awaitable[None]],
        scope: dict[str, Any],
        take: trio.MemoryReceiveChannel[Any],
        send: Callable[[Any], Awaitable[None]],
    ) -> None:
        try:
            await app(scope, take.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
        except Exception:
            log.exception("a WebSocket failed", extra={"path": scope["path"][:200]})
        finally:
            take.close()
            self.done.set()
        await send(None)
