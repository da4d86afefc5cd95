"""As much of HTTP/2 as a driver of gRPC needs: unary calls, many at once, at little cost.

Heads are sent from the compression table that the first request of a connection fills; answers are
told apart by their frames alone. A call that ends without a message is an error: gRPC says so with
a status and no body.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from bench.facts import percentile

_HEAD = struct.Struct(">HBBBI")
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _CREDIT = 0, 1, 3, 4, 6, 7, 8
_END_STREAM, _ACK, _END_HEADERS = 1, 1, 4
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW_MAX = 2**31 - 1
_WINDOW = 65535
GRACE_S = 10.0


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    size = len(body)
    return _HEAD.pack(size >> 8, size & 0xFF, kind, flags, stream) + body


def _field(index: int, value: bytes, name: bytes = b"") -> bytes:
    """A field that enters the table; the name by its index there, or in full."""
    head = bytes([0x40 | index]) + (bytes([len(name)]) + name if name else b"")
    return head + bytes([len(value)]) + value


class Connection:
    def __init__(self, address: tuple[str, int], path: str) -> None:
        self.sock = socket.create_connection(address)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at: dict[int, float] = {}
        self._answered: set[int] = set()
        self._next = 1
        self._waiting = b""
        self._window = _WINDOW
        self._fields = b"\x83\x86" + b"".join((
            _field(4, path.encode()),
            _field(1, b"%s:%d" % (address[0].encode(), address[1])),
            _field(31, b"application/grpc"),
            _field(0, b"trailers", b"te"),
        ))  # fmt: skip
        self.out = bytearray(
            _PREFACE
            + _frame(_SETTINGS, 0, 0, b"")
            + _frame(_CREDIT, 0, 0, (_WINDOW_MAX - _WINDOW).to_bytes(4, "big"))
        )

    def ask(self, body: bytes, now: float) -> None:
        stream = self._next
        self._next += 2
        size = len(body) + 5
        self._window -= size
        assert self._window > 0, "the server does not grant enough for so many calls"
        self.out += _frame(_HEADERS, _END_HEADERS, stream, self._fields)
        self.out += _frame(_DATA, _END_STREAM, stream, b"\0" + (size - 5).to_bytes(4, "big") + body)
        self._fields = b"\x83\x86\xc1\xc0\xbf\xbe"  # the four as they stand in the table now
        self.sent_at[stream] = now

    def flush(self) -> None:
        if self.out:
            self.sock.sendall(self.out)
            self.out.clear()

    def receive(self) -> tuple[list[float], int]:
        """When those were asked that have been answered now, and how many calls failed."""
        data = self._waiting + self.sock.recv(256 * 1024)
        if len(data) == len(self._waiting):
            raise ConnectionError("the server ended the connection")
        ended: list[float] = []
        failed, at, end = 0, 0, len(data)
        while end - at >= 9:
            high, low, kind, flags, stream = _HEAD.unpack_from(data, at)
            size = high << 8 | low
            if end - at - 9 < size:
                break
            if kind == _DATA:
                self._answered.add(stream)
            elif kind == _HEADERS:
                if flags & _END_STREAM:
                    if stream in self._answered:
                        self._answered.remove(stream)
                        ended.append(self.sent_at.pop(stream))
                    else:
                        del self.sent_at[stream]
                        failed += 1
            else:
                self._control(kind, flags, stream, data[at + 9 : at + 9 + size])
            at += 9 + size
        self._waiting = data[at:]
        return ended, failed

    def _control(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if kind == _CREDIT and stream == 0:
            self._window += int.from_bytes(body, "big")
        elif kind in (_SETTINGS, _PING) and not flags & _ACK:
            self.out += _frame(kind, _ACK, 0, body if kind == _PING else b"")
        elif kind in (_RESET, _GOAWAY):
            raise ConnectionError(f"the server gave up: frame {kind}, {body!r}")


class Client:
    """Calls of one method over several connections."""

    def __init__(self, address: tuple[str, int], path: str, connections: int) -> None:
        self._connections = [Connection(address, path) for _ in range(connections)]
        self._poll = select.epoll()
        self._by_fd = {each.sock.fileno(): each for each in self._connections}
        for fd in self._by_fd:
            self._poll.register(fd, select.EPOLLIN)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._poll.close()
        for each in self._connections:
            each.sock.close()

    def run(self, body: Callable[[], bytes], clients: int, seconds: float) -> dict[str, Any]:
        """So many calls are under way at each moment, until the time is over and all have ended."""
        took: list[float] = []
        errors, under_way = 0, clients
        clock = time.perf_counter
        start = clock()
        until = start + seconds
        for number in range(clients):
            self._connections[number % len(self._connections)].ask(body(), clock())
        for each in self._connections:
            each.flush()
        while under_way:
            if clock() > until + GRACE_S:
                raise TimeoutError(f"{under_way} calls were never answered")
            for fd, _ in self._poll.poll(1.0):
                connection = self._by_fd[fd]
                ended, failed = connection.receive()
                now = clock()
                took += [now - began for began in ended]
                errors += failed
                if now < until:
                    for _ in range(len(ended) + failed):
                        connection.ask(body(), now)
                else:
                    under_way -= len(ended) + failed
                connection.flush()
        return {
            "done": len(took), "wall_s": clock() - start, "errors": errors,
            "p50_ms": percentile(took, 0.5) * 1000, "p99_ms": percentile(took, 0.99) * 1000,
            "max_ms": max(took) * 1000,
        }  # fmt: skip
