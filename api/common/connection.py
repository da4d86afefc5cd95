"""One connection, from accept to close: requests one after another, each wait with an end.

A single cancel scope is the watchdog. Its deadline is the nearest of what is being waited for (a
head, a body, the handler, a slow reader), so a connection cannot be forgotten in any state, and
nothing that goes wrong here leaves `run`.
"""

from __future__ import annotations

import logging
import math
import select
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from api.common.auth import Guard, Peer
from api.common.exchange import CLIENT_GONE_STATUS, ClientGone, Exchange
from api.common.faults import HttpFault, RequestTimeout
from api.common.wire import Head, RawHeaders, check_beginning, parse_head
from swarmd.domain.errors import Unavailable

if TYPE_CHECKING:
    from api.common.site import Site

log = logging.getLogger(__name__)

READ_BYTES = 64 * 1024
AHEAD_BYTES_MAX = 64 * 1024
"""What a client may send ahead of the answer it waits for; more stays in the kernel."""
GONE_POLL_S = 0.5
LAST_WORDS_S = 1.0
LINGER_S = 1.0
LINGER_BYTES_MAX = 4 * 1024 * 1024


class Connection:
    def __init__(
        self, site: Site, guard: Guard, sock: socket.socket, peer: Peer, server: tuple[str, int]
    ) -> None:
        self.site = site
        self.guard = guard
        self.peer = peer
        self.server = server
        self.buffer = bytearray()
        self.eof = False
        self.scope = trio.CancelScope()
        self._sock = sock
        self._limits = site.limits
        self._exchange: Exchange | None = None
        self._requests = 0
        self._idle = True
        self._read_deadline = math.inf
        self._handler_deadline = math.inf
        self._write_deadline = math.inf
        self._body_budget_s = 0.0

    async def run(self) -> None:
        """Serve until either side is done. Raises nothing but Cancelled."""
        try:
            with self.scope:
                await self._serve()
            if self.scope.cancelled_caught:
                with trio.move_on_after(LAST_WORDS_S):
                    await self._say_why()
        except ClientGone:
            pass
        except Exception:
            log.exception("a connection failed", extra={"surface": self.site.surface.name})
        finally:
            self._end_exchange()
            self.close()

    def stop(self) -> None:
        """The surfaces are closing: idle connections and streams end now, requests may finish."""
        exchange = self._exchange
        if self._idle or (exchange is not None and exchange.is_stream):
            self.scope.cancel()

    def close(self) -> None:
        if self._sock.fileno() >= 0:
            trio.lowlevel.notify_closing(self._sock)
            self._sock.close()

    @property
    def last_request(self) -> bool:
        return (
            self.site.load.stopping
            or self.eof
            or self._requests >= self._limits.keep_alive_requests_max
        )

    def common_headers(self) -> RawHeaders:
        return self.site.common_headers()

    # -- the life of a connection ---------------------------------------------------------------

    async def _serve(self) -> None:
        while True:
            try:
                head = await self._read_head()
            except HttpFault as fault:
                await self._refuse_unread(fault)
                return
            if head is None:
                return
            self._requests += 1
            self._idle = False
            exchange = Exchange(self, self.site.load, head, self._limits.body_bytes_max)
            self._exchange = exchange
            self._body_budget_s = self._limits.body_timeout_s
            await self.site.handle(self, exchange)
            if not exchange.status and exchange.refusal is not None:
                return
            self._end_exchange()
            if not exchange.finished:
                return
            if not exchange.keep_alive:
                await self._linger()
                return
            if self.buffer:
                await trio.lowlevel.checkpoint()

    def _end_exchange(self) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self._handler_deadline = self._read_deadline = math.inf
            timed = not exchange.is_stream
            exchange.give_places()
            self.site.count(exchange, exchange.status or CLIENT_GONE_STATUS, timed=timed)

    async def _read_head(self) -> Head | None:
        """The next request's head; None when the client is done."""
        limits = self._limits
        buffer = self.buffer
        fresh = self._requests == 0
        self._idle = not buffer
        if self._idle and self.site.load.stopping:
            return None
        wait_s = limits.header_timeout_s if fresh or buffer else limits.idle_timeout_s
        self._read_deadline = trio.current_time() + wait_s
        self._arm()
        while True:
            if buffer[:2] == b"\r\n":  # some clients send an empty line after a body
                del buffer[:2]
            if buffer:
                end = buffer.find(b"\r\n\r\n", 0, limits.header_bytes_max + 4)
                if end >= 0:
                    data = bytes(buffer[: end + 4])
                    del buffer[: end + 4]
                    self._read_deadline = math.inf
                    self._handler_deadline = trio.current_time() + limits.handler_timeout_s
                    self._arm()
                    return parse_head(data, limits)
                check_beginning(buffer, limits)
            if not await self._receive():
                return None
            if self._idle:
                self._idle = False
                self._read_deadline = trio.current_time() + limits.header_timeout_s
                self._arm()

    async def _refuse_unread(self, fault: HttpFault) -> None:
        """What came is no request: say so in the dialect's words, and hang up."""
        head = Head("GET", b"/", 1, [], keep_alive=False)
        exchange = self._exchange = Exchange(self, self.site.load, head, 0)
        await exchange.answer(self.site.surface.envelope.answer(fault))
        self._end_exchange()
        await self._linger()

    async def _say_why(self) -> None:
        """The watchdog, a refused body or the stop ended the work: tell the client if it can
        still be told."""
        exchange = self._exchange
        now = trio.current_time()
        if exchange is None:
            if self.buffer and now >= self._read_deadline:
                await self._refuse_unread(
                    RequestTimeout(
                        f"the headers took longer than {self._limits.header_timeout_s:g} s"
                    )
                )
            return
        refusal = exchange.refusal
        if refusal is None and now >= self._read_deadline:
            refusal = RequestTimeout("the body came too slowly, or not at all")
        if refusal is None and now >= self._handler_deadline:
            log.warning("a request took too long", extra={"endpoint": exchange.endpoint})
            refusal = Unavailable(
                f"no answer within {self._limits.handler_timeout_s:g} s; it may still take effect"
            )
        exchange.keep_alive = False
        if self._write_deadline != math.inf:
            return  # in the middle of a write: whatever came next would be read as a part of it
        if not exchange.status and refusal is not None:
            await exchange.answer(self.site.surface.envelope.answer(refusal))
            await self._linger()
        elif exchange.last_words:
            await self.write(exchange.last_words)
            await self._linger()
        elif exchange.status and exchange.is_stream and not exchange.finished:
            await exchange.finish()
            await self._linger()

    async def _linger(self) -> None:
        """Say that nothing more comes, and let the client read the answer before it would see a
        reset for what it still sends."""
        self._send_eof()
        left = LINGER_BYTES_MAX
        with trio.move_on_after(LINGER_S):
            while left > 0 and not self.eof:
                self.buffer.clear()
                await self._receive()
                left -= len(self.buffer)

    def _send_eof(self) -> None:
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # -- bytes ----------------------------------------------------------------------------------

    async def _receive(self) -> bool:
        """Add what comes next to the buffer; False at the end."""
        if self.eof:
            return False
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # reset
                data = b""
            if not data:
                self.eof = True
                return False
            self.buffer += data
            return True

    async def fill_body(self) -> bool:
        """More of a body; the client may keep us waiting for so long in all, and each
        `body_bytes_per_s_min` bytes earn one more second. False at the end."""
        limits = self._limits
        began = trio.current_time()
        before = len(self.buffer)
        self._read_deadline = began + self._body_budget_s
        handler_deadline, self._handler_deadline = self._handler_deadline, math.inf
        self._arm()
        alive = await self._receive()
        waited_s = trio.current_time() - began
        earned_s = (len(self.buffer) - before) / limits.body_bytes_per_s_min
        self._body_budget_s = min(self._body_budget_s - waited_s + earned_s, limits.body_timeout_s)
        self._read_deadline = math.inf
        streams = self._exchange is not None and self._exchange.is_stream
        self._handler_deadline = math.inf if streams else handler_deadline + waited_s
        self._arm()
        return alive

    async def receive_some(self, bytes_max: int) -> bytes:
        """For what a request has turned the connection into: the bytes here, b"" at the end."""
        if self.buffer:
            await trio.lowlevel.checkpoint()
        else:
            await self._receive()
        data = bytes(self.buffer[:bytes_max])
        del self.buffer[:bytes_max]
        return data

    async def wait_gone(self) -> None:
        """Return when the client has closed. What it sends ahead is kept for its turn; when that
        is as much as we keep, the kernel is asked now and then whether the other end is shut."""
        while len(self.buffer) < AHEAD_BYTES_MAX:
            if not await self._receive():
                return
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        while not poll.poll(0):  # noqa: ASYNC110 - only the kernel knows
            await trio.sleep(GONE_POLL_S)
        self.eof = True

    async def write(self, data: bytes) -> None:
        """Send all of it; a reader who takes no 64 KiB within the stall limit is cut off. Raises
        ClientGone."""
        sent = self._send(data)
        if sent == len(data):
            return
        rest = memoryview(data)[sent:]
        while rest:
            self._write_deadline = trio.current_time() + self._limits.write_stall_timeout_s
            self._arm()
            goal = max(len(rest) - READ_BYTES, 0)
            while len(rest) > goal:
                await trio.lowlevel.wait_writable(self._sock)
                rest = rest[self._send(rest[: len(rest) - goal]) :]
        self._write_deadline = math.inf
        self._arm()

    def _send(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.eof = True
            raise ClientGone from None

    # -- the watchdog ---------------------------------------------------------------------------

    def _arm(self) -> None:
        deadline = min(self._read_deadline, self._handler_deadline, self._write_deadline)
        if deadline != self.scope.deadline:
            self.scope.deadline = deadline

    def handler_may_take(self, timeout_s: float | None) -> None:
        """A route's own bound in place of the configured one."""
        self._handler_deadline = math.inf if timeout_s is None else trio.current_time() + timeout_s
        self._arm()

    def disarm_handler(self) -> None:
        self._handler_deadline = math.inf
        self._arm()
