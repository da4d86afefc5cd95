"""One request and its answer on one connection: the body in, the answer out, as calls or ASGI.

Everything is pulled: nothing of a body is read before someone asks for it, nothing is queued, and
an answer is written by the task that makes it. So there is nothing that could grow.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Any, cast

import trio

from api.common.consistency import STALENESS
from api.common.metrics import OTHER
from api.common.surface import Response
from api.common.wire import ChunkedReader, Head, RawHeaders, render_head
from swarmd.domain.errors import Busy, SwarmError, TooLarge

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from api.common.connection import Connection
    from api.common.load import Load

CLIENT_GONE_STATUS = 499
"""Counted, never sent: the client left before there was an answer."""
_NO_BODY = frozenset({204, 304})
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class ClientGone(Exception):
    """The client closed or reset its connection; there is nobody left to answer."""


class Exchange:
    """The state of one request; the connection makes one after another."""

    def __init__(self, connection: Connection, load: Load, head: Head, body_bytes_max: int) -> None:
        self.connection = connection
        self.head = head
        self.endpoint = OTHER
        self.status = 0
        """0 until an answer has begun."""
        self.finished = False
        self.is_stream = False
        self.refusal: SwarmError | None = None
        """Why the work on it was cancelled, to be told to the client if nothing was yet."""
        self.last_words = b""
        """What a stream of another protocol says when the surfaces close."""
        self.keep_alive = head.keep_alive
        self.started = trio.current_time()
        self._load = load
        self._counted = False
        self._body_bytes_max = body_bytes_max
        self._body_bytes = 0
        self._left = head.content_length or 0
        self._chunked = ChunkedReader() if head.chunked else None
        self.body_done = not head.has_body
        self._body_announced = False
        self._continue_owed = head.wants_continue and head.has_body
        self._held: tuple[int, RawHeaders] | None = None
        self._held_length = 0
        self._framed = ""
        self._left_to_send = 0
        self._is_local = False
        self._stale_ms: int | None = None

    def answer_locally(self, stale_ms: int | None) -> None:
        """This node's replica answers alone; so old it was when the request came, where known."""
        self._is_local, self._stale_ms = True, stale_ms

    def staleness(self) -> RawHeaders:
        """What the answer says of its age. The time since the request came counts: what is read
        while it is worked on is no older than that."""
        if not self._is_local:
            return []
        if self._stale_ms is None:
            return [(STALENESS, b"unknown")]
        taken_ms = int((trio.current_time() - self.started) * 1000)
        return [(STALENESS, b"%d" % (self._stale_ms + taken_ms))]

    # -- places ---------------------------------------------------------------------------------

    def take_place(self) -> None:
        """Count as a request being answered. Raises Busy."""
        if self._load.requests >= self._load.limits.requests_max:
            raise Busy("this node answers as many requests as it may at present", retry_after_s=1)
        self._load.requests += 1
        self._counted = True

    def become_stream(self) -> None:
        """Leave the requests' places for one of the streams'. Raises Busy."""
        if self.is_stream:
            return
        if self._load.streams >= self._load.limits.streams_max:
            raise Busy("this node holds as many open streams as it may", retry_after_s=5)
        self._load.streams += 1
        self.is_stream = True
        self._give_request_place()
        self.connection.disarm_handler()

    def give_places(self) -> None:
        """The exchange is over, however it went."""
        self._give_request_place()
        if self.is_stream:
            self._load.streams -= 1
            self.is_stream = False

    def _give_request_place(self) -> None:
        if self._counted:
            self._counted = False
            self._load.requests -= 1

    # -- the body -------------------------------------------------------------------------------

    def allow_body(self, bytes_max: int) -> None:
        """Set the route's bound. Raises TooLarge for a length that is announced over it."""
        self._body_bytes_max = bytes_max
        if self._left > bytes_max:
            raise self._too_large()

    async def next_chunk(self) -> bytes:
        """The next piece of the body, b"" at its end. Raises TooLarge, BadRequest, ClientGone."""
        connection = self.connection
        buffer = connection.buffer
        while not self.body_done:
            if buffer:
                piece = self._take(buffer)
                if self._chunked is not None:  # the buffer may hold thousands of tiny chunks
                    await trio.lowlevel.checkpoint()
                if piece:
                    self._body_bytes += len(piece)
                    if self._body_bytes > self._body_bytes_max:
                        raise self._too_large()
                    return piece
                if self._chunked is not None and self._chunked.done:
                    break
            if self._continue_owed:
                self._continue_owed = False
                if not self.status:
                    await connection.write(_CONTINUE)
            if not await connection.fill_body():
                raise ClientGone
        return b""

    def _take(self, buffer: bytearray) -> bytes:
        if self._chunked is not None:
            piece = self._chunked.feed(buffer)
            self.body_done = self._chunked.done
            return piece
        if len(buffer) <= self._left:
            piece = bytes(buffer)
            buffer.clear()
        else:
            piece = bytes(buffer[: self._left])
            del buffer[: self._left]
        self._left -= len(piece)
        self.body_done = not self._left
        return piece

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self._body_bytes_max} bytes, which is the bound here",
            limit=self._body_bytes_max,
        )

    def drop_buffered_body(self) -> None:
        """An answer came before the body was read: what is here of it is skipped, and if that is
        not all of it, the connection cannot be used again."""
        if self._chunked is None and not self.body_done and not self._continue_owed:
            self._take(self.connection.buffer)
        if not self.body_done:
            self.keep_alive = False

    # -- answers of hot routes and refusals -----------------------------------------------------

    async def answer(self, response: Response) -> None:
        """Send a whole answer, or one that streams."""
        headers: RawHeaders = [(b"Content-Type", response.content_type.encode())]
        headers += [(name.encode(), value.encode("latin-1")) for name, value in response.headers]
        if response.stream is not None:
            await self._answer_stream(response, headers)
            return
        head = self._begin(response.status, headers, len(response.body))
        bare = self.head.method == "HEAD" or response.status in _NO_BODY
        await self.connection.write(head if bare else head + response.body)
        self.finished = True

    async def _answer_stream(self, response: Response, headers: RawHeaders) -> None:
        # Only an async generator can be closed, which a stream has to be.
        stream = cast("AsyncGenerator[bytes, None]", response.stream)
        try:
            self.become_stream()
            await self.connection.write(self._begin(response.status, headers, response.length))
        except BaseException:
            await stream.aclose()  # it was not begun, so there is nothing to wait for
            raise
        # Once begun it is closed inside the nursery: it may hold scopes of its own, which have to
        # be left in the order in which they were entered.
        async with trio.open_nursery() as nursery, aclosing(stream):
            if self.head.method != "HEAD":
                nursery.start_soon(self._watch_client, nursery.cancel_scope)
                async for chunk in stream:
                    await self._write_part(chunk)
            nursery.cancel_scope.cancel()
        if self.connection.eof:
            raise ClientGone
        await self.finish()

    async def _watch_client(self, answering: trio.CancelScope) -> None:
        with suppress(OSError):  # a connection that was reset is gone as well
            await self.connection.wait_gone()
        answering.cancel()

    async def finish(self) -> None:
        """End the answer's body; one that is shorter than announced ends the connection."""
        if self.finished:
            return
        self.finished = True
        if self._framed == "chunked":
            await self.connection.write(b"0\r\n\r\n")
        elif self._framed == "close" or (self._framed == "length" and self._left_to_send):
            self.keep_alive = False

    async def _write_part(self, data: bytes) -> None:
        # A write that does not block lets nobody else run, and a source may be quick and endless.
        await trio.lowlevel.checkpoint()
        if not data or self._framed == "none":
            return
        if self._framed == "chunked":
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif self._framed == "length":
            self._left_to_send -= len(data)
            if self._left_to_send < 0:
                raise ValueError("the answer is longer than its Content-Length")
        await self.connection.write(data)

    def _begin(self, status: int, headers: RawHeaders, length: int | None) -> bytes:
        """The head of the answer, framed as this client can read it."""
        self.drop_buffered_body()
        self.status = status
        self._left_to_send = 0
        if self.head.method == "HEAD" or status in _NO_BODY:
            self._framed = "none"
            if status != 204 and length is not None:
                headers.append((b"Content-Length", b"%d" % length))
        elif length is not None:
            self._framed = "length"
            self._left_to_send = length
            headers.append((b"Content-Length", b"%d" % length))
        elif self.head.minor == 1:
            self._framed = "chunked"
            headers.append((b"Transfer-Encoding", b"chunked"))
        else:
            self._framed = "close"
            self.keep_alive = False
        if not self.keep_alive or self.connection.last_request:
            self.keep_alive = False
            headers.append((b"Connection", b"close"))
        elif self.head.minor == 0:
            headers.append((b"Connection", b"keep-alive"))
        headers += self.staleness()
        return render_head(status, [*headers, *self.connection.common_headers()])

    # -- ASGI -----------------------------------------------------------------------------------

    async def asgi_receive(self) -> dict[str, Any]:
        """The body, then the client's going. What is wrong with a body cancels the app, and the
        connection tells the client."""
        if not self.body_done or not self._body_announced:
            self._body_announced = True
            try:
                chunk = await self.next_chunk()
            except ClientGone:
                return {"type": "http.disconnect"}
            except SwarmError as refusal:
                self.refusal = refusal
                self.connection.scope.cancel()
                await trio.lowlevel.checkpoint()
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": chunk, "more_body": not self.body_done}
        await self.connection.wait_gone()
        return {"type": "http.disconnect"}

    async def asgi_send(self, message: dict[str, Any]) -> None:
        """Head and body go out in one write where the body is whole; a stream's head at once."""
        if message["type"] == "http.response.start":
            if self.status or self._held:
                raise RuntimeError("the answer was begun twice")
            length, headers = _split_length(message.get("headers", ()))
            if length is None:
                await self.connection.write(self._begin(message["status"], headers, None))
            else:
                self._held = (message["status"], headers)
                self._held_length = length
        elif message["type"] == "http.response.body":
            body: bytes = message.get("body", b"")
            if self._held is not None:
                status, headers = self._held
                self._held = None
                head = self._begin(status, headers, self._held_length)
                if self._framed == "length" and len(body) <= self._left_to_send:
                    self._left_to_send -= len(body)
                    await self.connection.write(head + body)
                else:
                    await self.connection.write(head)
                    await self._write_part(body)
            else:
                await self._write_part(body)
            if not message.get("more_body", False):
                await self.finish()
            elif self._framed == "none":  # nobody is to see the rest, which may have no end
                self.finished = True
                self.connection.scope.cancel()


def _split_length(headers: Iterable[tuple[bytes, bytes]]) -> tuple[int | None, RawHeaders]:
    length: int | None = None
    kept: RawHeaders = []
    for name, value in headers:
        lower = name.lower()
        if lower == b"content-length":
            length = int(value)
        elif lower not in (b"connection", b"transfer-encoding", b"date", b"server"):
            kept.append((name, value))
    return length, kept
