"""The listening side: whoever connects has one bound of time to say hello, and is one of so many.

A flood costs the flooder: who is to make room is the oldest of the source that has most, whether
they have not said hello yet or are applicants. The places of peers are apart from both.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections import Counter, deque
from typing import Protocol

import trio

from mesh.allowances import Allowances, source_of
from mesh.connection import Limits, Shared
from mesh.doubles import Doubles
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
    double_answer_s_max: float = 1.0
    """For a process that is here when another comes under its id. Shorter than a hello may take."""
    backoff_min_s: float = 0.05
    backoff_max_s: float = 1.0
    connections_max: int = 256
    """Accepted ones whose hello has come."""
    connections_per_peer_max: int = 8
    strangers_max: int = 64
    """Accepted ones that have not said hello."""
    accepts_per_s: float = 50.0
    """From one source, with TLS: a handshake costs half a millisecond."""
    accepts_at_once: float = 256.0
    applicants_max: int = 16
    """Accepted ones without a certificate; and below, what each of them may."""
    applicants_per_s: float = 5.0
    """From one source."""
    applicants_at_once: float = 32.0
    applicant_bytes_max: int = 64 * 1024
    """The largest body."""
    applicant_s: float = 15.0
    """The whole connection."""
    close_grace_s: float = 0.25

    def of_applicants(self) -> Limits:
        body = min(self.applicant_bytes_max, self.frame_bytes_max)
        return Limits(
            frame_bytes_max=body, window_bytes=1, queue_bytes_max=4 * body, queue_frames_max=64,
            calls_max=1, streams_max=1, held_bytes_max=2 * body, keepalive_s=self.keepalive_s,
            silence_s=self.silence_s, life_bytes_max=2 * body,
        )  # fmt: skip


class Carrying(Protocol):
    async def carry_accepted(self, answering: Answering) -> None: ...


class Crowd:
    """Who is there and may be sent away, in the order of coming, each with its source."""

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._there: dict[trio.CancelScope, str] = {}

    def enter(self, scope: trio.CancelScope, source: str) -> bool:
        """True: somebody was sent away for it."""
        crowded = len(self._there) >= self._count_max
        if crowded:
            [(most, _)] = Counter(self._there.values()).most_common(1)
            oldest = next(scope for scope, source in self._there.items() if source == most)
            del self._there[oldest]
            oldest.cancel()
        self._there[scope] = source
        return crowded

    def leave(self, scope: trio.CancelScope) -> None:
        self._there.pop(scope, None)


class Accepting:
    def __init__(
        self,
        settings: TransportSettings,
        greeter: Greeter,
        shared: Shared,
        carrying: Carrying,
        doubles: Doubles,
        nursery: trio.Nursery,
    ) -> None:
        self._settings = settings
        self._greeter = greeter
        self._shared = shared
        self._carrying = carrying
        self._doubles = doubles
        self._nursery = nursery
        self._strangers = Crowd(settings.strangers_max)
        self._applicants = Crowd(settings.applicants_max)
        self._limits_of_applicants = settings.of_applicants()
        self._accepts = Allowances(settings.accepts_per_s, settings.accepts_at_once)
        self._applications = Allowances(settings.applicants_per_s, settings.applicants_at_once)
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
                source = source_of(remote[0])
                scope = trio.CancelScope()
                if not self._may_come(source):
                    sock.close()
                    continue
                if self._strangers.enter(scope, source):
                    why = Broken("flood", "too many connections without a hello")
                    self._shared.complain(why, source)
                address = join_address(*remote[:2])
                self._nursery.start_soon(self._receive, sock, address, source, scope)

    def _may_come(self, source: str) -> bool:
        if self._greeter.loopback_only or self._accepts.take(source, trio.current_time()):
            return True
        self._shared.complain(Broken("flood", "too many connections in a short time"), source)
        return False

    async def _receive(
        self, sock: socket.socket, remote: str, source: str, scope: trio.CancelScope
    ) -> None:
        try:
            met = await self._meet(sock, remote, source, scope)
            if met is None or met.hello.purpose == Purpose.PROBE:
                return
            if met.applicant:
                await self._carry_applicant(met, source)
            else:
                await self._carry(met)
        except Broken as broken:
            self._shared.complain(broken, remote)
        except ssl.SSLError as error:
            self._shared.complain(Broken("tls", f"TLS failed: {error.reason}"), remote)
        except OSError as error:
            self._shared.complain(Broken("lost", str(error)), remote)
        finally:
            sock.close()

    async def _meet(
        self, sock: socket.socket, remote: str, source: str, scope: trio.CancelScope
    ) -> Met | None:
        """None where a newer stranger got the place."""
        scope.deadline = trio.current_time() + self._settings.hello_timeout_s
        with scope:
            try:
                met = await self._greeter.welcome(sock, remote)
                try:
                    await self._let_in(met, source)
                except Broken as why:
                    await refuse(met.pipe, why)
                    raise
                with self._doubles.arriving(met):
                    await self._greeter.answer(met)
                return met
            finally:
                self._strangers.leave(scope)
        if trio.current_time() >= scope.deadline:
            raise Broken("hello_timeout", "no hello came in time")
        return None

    async def _let_in(self, met: Met, source: str) -> None:
        """Raises Broken."""
        if met.applicant:
            if not self._applications.take(source, trio.current_time()):
                raise Broken("busy", "too many without a certificate come from there")
            return
        if self._accepted_count >= self._settings.connections_max:
            raise Broken("busy", "this node has as many connections as it takes")
        if met.hello.purpose != Purpose.PROBE:
            await self._doubles.let_in(met)

    async def _carry_applicant(self, met: Met, source: str) -> None:
        answering = Answering(self._shared, met, self._limits_of_applicants)
        with trio.move_on_after(self._settings.applicant_s) as scope:
            if self._applicants.enter(scope, source):
                self._shared.complain(Broken("flood", "too many without a certificate"), source)
            try:
                await self._carrying.carry_accepted(answering)
            finally:
                self._applicants.leave(scope)

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
