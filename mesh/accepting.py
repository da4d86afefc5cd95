"""The listening side: whoever connects has one bound of time to say hello, and is one of so many.

A flood of connections that say nothing costs the oldest of them its place, never a peer's.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections import deque
from typing import Protocol

import trio

from mesh.connection import Limits, Shared
from mesh.frames import Broken, Purpose
from mesh.greeting import Greeter, Met, refuse
from mesh.pipes import join_address
from mesh.rpc import Answering

_ACCEPTS_PER_STEP = 64
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class TransportSettings(Limits, frozen=True, kw_only=True):
    binds: tuple[str, ...] = ("127.0.0.1:0",)
    connect_timeout_s: float = 1.0
    """For each address of a peer."""
    hello_timeout_s: float = 3.0
    """TLS included."""
    backoff_min_s: float = 0.05
    backoff_max_s: float = 1.0
    connections_max: int = 256
    """Accepted ones whose hello has come."""
    connections_per_peer_max: int = 8
    strangers_max: int = 64
    """Accepted ones that have not said hello; the oldest makes room for a new one."""
    close_grace_s: float = 0.25


class Carrying(Protocol):
    async def carry_accepted(self, answering: Answering) -> None: ...


class Accepting:
    def __init__(
        self,
        settings: TransportSettings,
        greeter: Greeter,
        shared: Shared,
        carrying: Carrying,
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._greeter = greeter
        self._shared = shared
        self._carrying = carrying
        self._nursery = nursery
        self._strangers: dict[trio.CancelScope, None] = {}
        self._accepted: dict[str, deque[Answering]] = {}
        self._accepted_count = 0

    async def accept(self, listener: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            for _ in range(_ACCEPTS_PER_STEP):
                try:
                    sock, remote = listener.accept()
                except BlockingIOError:
                    break
                except OSError as error:
                    if error.errno in _OUT_OF_RESOURCES:
                        self._shared.complain(Broken("descriptors", str(error)), "")
                        await trio.sleep(0.1)
                    break
                self._shared.counts.accepted += 1
                self._make_room()
                self._nursery.start_soon(self._receive, sock, join_address(*remote[:2]))

    def _make_room(self) -> None:
        if len(self._strangers) >= self._settings.strangers_max:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.cancel()
            self._shared.complain(Broken("flood", "too many connections without a hello"), "")

    async def _receive(self, sock: socket.socket, remote: str) -> None:
        try:
            met = await self._meet(sock, remote)
            if met is not None and met.hello.purpose != Purpose.PROBE:
                await self._carry(met)
        except Broken as broken:
            self._shared.complain(broken, remote)
        except ssl.SSLError as error:
            self._shared.complain(Broken("tls", f"TLS failed: {error.reason}"), remote)
        except OSError as error:
            self._shared.complain(Broken("lost", str(error)), remote)
        finally:
            sock.close()

    async def _meet(self, sock: socket.socket, remote: str) -> Met | None:
        """None where a newer stranger got the place."""
        with trio.move_on_after(self._settings.hello_timeout_s) as scope:
            self._strangers[scope] = None
            try:
                met = await self._greeter.welcome(sock, remote)
                if self._accepted_count >= self._settings.connections_max:
                    why = Broken("busy", "this node has as many connections as it takes")
                    await refuse(met.pipe, why)
                    raise why
                await self._greeter.answer(met)
                return met
            finally:
                self._strangers.pop(scope, None)
        if trio.current_time() >= scope.deadline:
            raise Broken("hello_timeout", "no hello came in time")
        return None

    async def _carry(self, met: Met) -> None:
        answering = Answering(self._shared, met)
        same = self._accepted.setdefault(answering.peer, deque())
        if len(same) >= self._settings.connections_per_peer_max:
            same[0].close("replaced", f"{answering.peer} has newer connections")
        same.append(answering)
        self._accepted_count += 1
        try:
            await self._carrying.carry_accepted(answering)
        finally:
            self._accepted_count -= 1
            same.remove(answering)
            if not same and self._accepted.get(answering.peer) is same:
                del self._accepted[answering.peer]
