"""The runner's one loop: its signals, its socket, the daemon's connection, and the turn between.

One daemon is connected at a time; the newest hello wins. Nothing here waits for the daemon: events
go out as far as it gave credit, replies are bounded by not reading on while they are not taken.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from swarmd.runner.core import Core
from swarmd.runner.orders import attempt_id, duration_ms
from swarmd.runner.wire import (
    CREDIT_MAX,
    VERSION,
    BrokenFrameError,
    Decoder,
    Frame,
    dumps,
    encode,
)  # fmt: skip

CONNECTIONS_MAX = 16
OUT_BYTES_MAX = 4 * 1024 * 1024
IDS_MAX = 100_000
EVENT_BYTES = 256 * 1024
RECEIVE_BYTES = 64 * 1024
"""Small enough for the allocator to have it at hand; more would be mapped anew each time."""
EVENTS_PER_TURN = 2048
LIST_PER_FRAME = 1000
QUIT_LINGER_S = 1.0
_S = 1_000_000_000


def now_ns() -> int:
    """Time since boot, in which a suspended machine's time counts: leases must run out."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Connection:
    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.decoder = Decoder()
        self.out = bytearray()
        self.credit = 0
        self.mask = select.EPOLLIN
        self.closing = False


class Loop:
    def __init__(
        self, core: Core, epoll: select.epoll, listener: socket.socket, idle_s: float,
        log: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._core = core
        self._listener = listener
        self._idle_ns = int(idle_s * _S)
        self._log = log
        self._epoll = epoll
        self._connections: dict[int, Connection] = {}
        self._daemon: Connection | None = None
        self._signals, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(number, _only_wake)
        self._epoll.register(self._signals, select.EPOLLIN)
        self._epoll.register(listener, select.EPOLLIN)
        self._told_trouble = ""
        self._requests: dict[str, Callable[[Frame], Frame]] = {
            "start": self._start,
            "stop": self._stop,
            "renew": self._renew,
            "ack": self._ack,
            "quit": self._quit,
        }

    def run(self) -> None:
        """Until there is nothing to do and nobody to do it for."""
        idle_since_ns = now_ns()
        reap = True
        while True:
            now = now_ns()
            self._core.turn(now, reap=reap)
            self._tell_daemon()
            if self._core.trouble != self._told_trouble:
                self._told_trouble = self._core.trouble
                self._log(self._core.trouble)
            if self._core.busy or (self._daemon is not None and not self._core.draining):
                idle_since_ns = now
            elif self._core.draining or now - idle_since_ns >= self._idle_ns:
                break
            reap = self._wait(now, idle_since_ns)
        self._linger()

    def _wait(self, now: int, idle_since_ns: int) -> bool:
        """Sleep until something is due, serve what came; was there a sign of a dead child?"""
        sleep_ns = self._core.sleep_ns(now)
        if sleep_ns is None and self._daemon is None:
            sleep_ns = max(0, idle_since_ns + self._idle_ns - now)
        reap = bool(self._core.running)
        for fd, mask in self._epoll.poll(-1 if sleep_ns is None else sleep_ns / _S):
            if fd in self._core.pipes:
                self._core.pipes.take(fd, mask)
            elif fd in self._core.starter.launchers:
                self._core.starter.hear(fd, now)
            elif fd == self._signals:
                if signal.SIGTERM in os.read(fd, 65536):
                    self._log("told to end by SIGTERM")
                    self._end_all(None)
            elif fd == self._listener.fileno():
                self._accept()
            elif fd in self._connections:
                self._serve(self._connections[fd], mask)
        return reap

    def _end_all(self, grace_ms: int | None) -> None:
        self._core.draining = True
        self._core.stop(None, grace_ms, "stopped", now_ns())

    def _linger(self) -> None:
        """Give the daemon the last events, as long as it takes them."""
        deadline = now_ns() + int(QUIT_LINGER_S * _S)
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.sock.settimeout(max(0.001, (deadline - now_ns()) / _S))
                connection.sock.sendall(connection.out, socket.MSG_NOSIGNAL)

    # -- connections -----------------------------------------------------------------------------

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        creds = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        uid = struct.unpack("3i", creds)[1]
        if uid not in (0, os.geteuid()) or len(self._connections) >= CONNECTIONS_MAX:
            sock.close()
            return
        self._connections[sock.fileno()] = Connection(sock)
        self._epoll.register(sock, select.EPOLLIN)

    def _drop(self, connection: Connection) -> None:
        fd = connection.sock.fileno()
        if self._connections.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            connection.sock.close()
        if self._daemon is connection:
            self._daemon = None

    def _serve(self, connection: Connection, mask: int) -> None:
        try:
            if mask & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                data = connection.sock.recv(RECEIVE_BYTES)
                if not data:
                    self._drop(connection)
                    return
                for frame in connection.decoder.feed(data):
                    self._handle(connection, frame)
            self._flush(connection)
        except BlockingIOError:
            pass
        except BrokenFrameError as exc:
            self._log(f"a connection was closed: {exc}")
            connection.out += encode({"kind": "error", "error": str(exc)})
            connection.closing = True
            self._flush(connection)
        except OSError:
            self._drop(connection)

    def _flush(self, connection: Connection) -> None:
        try:
            while connection.out:
                sent = connection.sock.send(connection.out[:262_144], socket.MSG_NOSIGNAL)
                del connection.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(connection)
            return
        if connection.closing and not connection.out:
            self._drop(connection)
            return
        mask = select.EPOLLOUT if connection.out else 0
        if len(connection.out) < OUT_BYTES_MAX and not connection.closing:
            mask |= select.EPOLLIN
        if mask != connection.mask:
            connection.mask = mask
            self._epoll.modify(connection.sock, mask)

    # -- requests --------------------------------------------------------------------------------

    def _handle(self, connection: Connection, frame: Frame) -> None:
        kind = frame["kind"]
        if kind == "ping":
            connection.out += encode({"kind": "pong", "version": VERSION, "pid": os.getpid()})
        elif kind == "hello":
            self._hello(connection, frame)
        elif connection is not self._daemon:
            connection.out += encode({"kind": "error", "error": "say hello first"})
            connection.closing = True
        elif kind == "credit":
            connection.credit = min(CREDIT_MAX, connection.credit + _count(frame.get("n")))
        elif kind == "list":
            self._list(connection, frame)
        elif kind in self._requests:
            try:
                reply = self._requests[kind](frame)
            except ValueError as exc:
                reply = {"error": str(exc)}
            connection.out += encode({"kind": "reply", "seq": frame.get("seq"), **reply})
        else:
            error = f"the runner (protocol {VERSION}) knows no {kind[:40]!r}"
            connection.out += encode({"kind": "error", "error": error, "seq": frame.get("seq")})

    def _hello(self, connection: Connection, frame: Frame) -> None:
        if self._daemon is not None and self._daemon is not connection:
            self._daemon.closing = True
            self._flush(self._daemon)
        core = self._core
        self._daemon = connection
        connection.credit = min(CREDIT_MAX, _count(frame.get("credit")))
        if frame.get("slots") is not None:
            self._core.bound_running(_count(frame["slots"]))
        core.news = dict.fromkeys([*core.running, *core.journal.ended])
        connection.out += encode(
            {
                "kind": "hello",
                "version": VERSION,
                "pid": os.getpid(),
                "boot_id": core.journal.boot_id,
                "now_ns": now_ns(),
                "tracking": core.cgroups.tracking,
                "enforces": core.cgroups.enforces(),
                "trouble": core.trouble,
            }
        )

    def _start(self, frame: Frame) -> Frame:
        orders = frame.get("orders")
        if type(orders) is not list:
            raise ValueError("orders: give a list")
        refused, known = self._core.start(orders, now_ns())
        for item in known:
            self._core.news[item["id"]] = None
        return {"refused": refused, "known": known}

    def _stop(self, frame: Frame) -> Frame:
        ids = None if frame.get("ids") is None else _ids(frame)
        grace_ms = None if frame.get("grace_ms") is None else duration_ms(frame["grace_ms"])
        return {"unknown": self._core.stop(ids, grace_ms, "stopped", now_ns())}

    def _renew(self, frame: Frame) -> Frame:
        lease_ms, from_ns = duration_ms(frame.get("lease_ms")), frame.get("from_ns")
        return {"unknown": self._core.renew(_ids(frame), lease_ms, from_ns, now_ns())}

    def _ack(self, frame: Frame) -> Frame:
        self._core.acknowledge(_ids(frame))
        return {}

    def _quit(self, frame: Frame) -> Frame:
        if frame.get("jobs"):
            grace_ms = None if frame.get("grace_ms") is None else duration_ms(frame["grace_ms"])
            self._end_all(grace_ms)
        self._core.draining = True
        return {}

    def _list(self, connection: Connection, frame: Frame) -> None:
        ids = self._core.known()
        for at in range(0, max(1, len(ids)), LIST_PER_FRAME):
            part = [self._core.standing(i) for i in ids[at : at + LIST_PER_FRAME]]
            more = at + LIST_PER_FRAME < len(ids)
            connection.out += encode(
                {"kind": "list", "seq": frame.get("seq"), "attempts": part, "more": more}
            )

    # -- events ----------------------------------------------------------------------------------

    def _tell_daemon(self) -> None:
        connection, core = self._daemon, self._core
        if connection is None:
            return
        while core.news and connection.credit > 0 and len(connection.out) < OUT_BYTES_MAX:
            started: list[Any] = []
            ended: list[str] = []
            size = 0
            while core.news and connection.credit > 0 and size < EVENT_BYTES:
                told_id = next(iter(core.news))
                del core.news[told_id]
                match core.told(told_id):
                    case ("started", event):
                        started.append(event)
                        size += 64
                    case ("ended", str(text)):
                        ended.append(text)
                        size += len(text)
                    case _:
                        continue
                connection.credit -= 1
            if started or ended:
                text = f'{{"kind":"events","started":{dumps(started)},"ended":[{",".join(ended)}]}}'
                connection.out += text.encode("ascii") + b"\n"
        if connection.out:
            self._flush(connection)


def _only_wake(number: int, frame: object) -> None:
    """The wakeup descriptor has told the loop; a handler, unlike SIG_IGN, is not inherited."""


def _ids(frame: Frame) -> list[int]:
    ids = frame.get("ids")
    if type(ids) is not list or len(ids) > IDS_MAX:
        raise ValueError(f"ids: give a list of at most {IDS_MAX}")
    return [attempt_id(item) for item in ids]


def _count(value: object) -> int:
    return value if type(value) is int and 0 <= value <= CREDIT_MAX else 0
