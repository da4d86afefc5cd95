"""The wires of a node over TCP: it listens, dials peers on demand and keeps a connection to each.

A peer is known by its id: the one in its certificate, or without TLS (on loopback alone) the one it
says. Whoever answers under another id than the one that was dialed is dropped. A node that has no
certificate yet binds its addresses, and listens from the moment on that it has one.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import trio

from mesh.accepting import Accepting, TransportSettings
from mesh.connection import Connection, Shared, WireCounts
from mesh.doubles import Doubles
from mesh.frames import WINDOW_BYTES_MAX, Broken, Purpose
from mesh.greeting import Dismissed, Greeter, Manners, Me, Met, check_me
from mesh.links import Jitter, Link
from mesh.pipes import (
    BACKLOG,
    UNPROVEN,
    Tls,
    Trust,
    bind,
    check_address,
    check_tls,
    target_of,
)
from mesh.rpc import Answering, Asking
from mesh.timing import beat
from mesh.wires import (
    ByteStream,
    CallHandler,
    LinkWatcher,
    MessageHandler,
    NotAllowed,
    PeerFacts,
    StreamHandler,
    TimedOut,
    Unreachable,
    Wires,
)

__all__ = [
    "UNPROVEN", "Me", "Tls", "Transport", "TransportSettings", "WireCounts", "open_transport",
]  # fmt: skip

log = logging.getLogger(__name__)

ADDRESSES_PER_PEER_MAX = 8


class Transport(Wires):
    def __init__(
        self,
        settings: TransportSettings,
        me: Me,
        greeter: Greeter,
        shared: Shared,
        rng: Jitter,
        sockets: Sequence[socket.socket],
        nursery: trio.Nursery,
    ) -> None:
        self.addresses = tuple(str(target_of(sock)) for sock in sockets)
        """Where it listens, or will, with the ports that were found where 0 was given."""
        self.listening = False
        self._sockets = sockets
        self._settings = settings
        self._me = me
        self._greeter = greeter
        self._rng = rng
        self._nursery = nursery
        self._shared = shared
        self._links: dict[str, Link] = {}
        self._watchers: list[LinkWatcher] = []
        self._connections: dict[Connection, None] = {}
        self._doubles = Doubles(self._standing, settings.double_answer_s_max, nursery)
        self._accepting = Accepting(settings, greeter, shared, self, self._doubles, nursery)

    @property
    def me(self) -> str:
        return self._me.id

    @property
    def counts(self) -> WireCounts:
        return self._shared.counts

    def use(self, tls: Tls) -> None:
        """A first certificate, or a newer one: connections from now on use it, those that stand
        live on. Raises NotAllowed, and OSError where it cannot listen at what it bound."""
        if self._greeter.loopback_only:
            raise NotAllowed("wires that were opened without TLS stay without")
        check_tls(tls)
        self.listen()
        self._greeter.trust = tls
        for link in self._links.values():
            link.hurry()

    def be_of(self, cluster: str) -> None:
        """It is known by now: connections from now on are with nodes of this cluster alone."""
        self._greeter.be_of(cluster)

    def listen(self) -> None:
        if self.listening:
            return
        for sock in self._sockets:
            sock.listen(BACKLOG)
        self.listening = True
        for sock in self._sockets:
            self._nursery.start_soon(self._accepting.accept, sock)

    def shut_out(self, peer: str, words: str) -> None:
        """End what stands with a peer that is admitted no longer; `admit` keeps it out."""
        for connection in self._connections:
            if connection.peer == peer:
                connection.close("shut_out", words)

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        wanted = {peer: tuple(at) for peer, at in peers.items() if peer != self._me.id}
        for peer, addresses in wanted.items():
            self._check_addresses(peer, addresses)
        for peer in [peer for peer in self._links if peer not in wanted]:
            self._links.pop(peer).cut()
        settings = self._settings
        for peer, addresses in wanted.items():
            if peer in self._links:
                self._links[peer].readdress(addresses)
            else:
                bounds = settings.backoff_min_s, settings.backoff_max_s
                self._links[peer] = Link(peer, addresses, *bounds)

    def also_at(self, peer: str, addresses: Sequence[str]) -> None:
        if (link := self._links.get(peer)) is not None:
            self._check_addresses(peer, tuple(addresses))
            link.also_at(tuple(addresses))

    def send(self, peer: str, body: bytes) -> bool:
        link = self._links.get(peer)
        if link is None:
            return False
        if link.wire is None:
            self._want(link)
            return False
        return link.wire.send(body)

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes:
        deadline = trio.current_time() + timeout_s
        link = self._links.get(peer)
        wire = link.wire if link is not None else None
        if wire is None:
            wire = await self._stand(peer, deadline)
        return await wire.call(method, body, deadline)

    async def call_address(
        self,
        address: str,
        method: str,
        body: bytes,
        timeout_s: float,
        *,
        pin: bytes | None = None,
    ) -> tuple[str, bytes]:
        check_address(address, loopback_only=self._greeter.loopback_only)
        self._greeter.check_dial(pin)
        deadline = trio.current_time() + timeout_s
        wire: Asking | None = None
        with trio.move_on_at(deadline):
            try:
                wire = await self._dial((address,), None, Purpose.ASK, pin)
            except Dismissed as dismissed:
                code = dismissed.code
                raise Unreachable(dismissed.message, address=address, refused=code) from None
            except Broken as broken:
                raise Unreachable(broken.message, address=address) from None
        if wire is None:
            raise TimedOut(f"{address} does not answer", handed_over=False, address=address)
        self._nursery.start_soon(self.run_connection, wire)
        try:
            return wire.peer, await wire.call(method, body, deadline)
        finally:
            wire.close("done", "the one call is over")

    async def open_stream(
        self, peer: str, method: str, body: bytes, timeout_s: float
    ) -> ByteStream:
        wire = await self._stand(peer, trio.current_time() + timeout_s)
        return wire.open_stream(method, body)

    def handle_call(self, method: str, handler: CallHandler, *, applicants: bool = False) -> None:
        handlers = self._shared.handlers
        assert method not in handlers.calls, f"{method} has a handler already"
        handlers.calls[method] = handler
        if applicants:
            handlers.for_applicants.add(method)

    def handle_message(
        self, handler: MessageHandler, settle: Callable[[], None] | None = None
    ) -> None:
        assert self._shared.handlers.message is None, "messages have a handler already"
        self._shared.handlers.message = handler
        self._shared.handlers.settle = settle

    def handle_stream(self, method: str, handler: StreamHandler) -> None:
        assert method not in self._shared.handlers.streams, f"{method} has a handler already"
        self._shared.handlers.streams[method] = handler

    def on_link(self, watcher: LinkWatcher) -> None:
        self._watchers.append(watcher)

    async def probe(self, peer: str, timeout_s: float) -> bool:
        link = self._links.get(peer)
        addresses = link.addresses if link is not None else ()
        answered = False

        async def knock(address: str) -> None:
            nonlocal answered
            try:
                met = await self._greeter.dial(address, peer, Purpose.PROBE)
            except (Broken, NotAllowed):
                return
            met.pipe.close()
            answered = True
            nursery.cancel_scope.cancel()

        with trio.move_on_after(timeout_s):
            async with trio.open_nursery() as nursery:
                for address in addresses:
                    nursery.start_soon(knock, address)
        return answered

    def linked(self, peer: str) -> bool:
        link = self._links.get(peer)
        return link is not None and link.wire is not None

    def about(self, peer: str) -> PeerFacts | None:
        link = self._links.get(peer)
        if link is None or link.wire is None:
            return None
        wire, hello = link.wire, link.wire.met.hello
        return PeerFacts(
            wire.met.address, hello.boot, wire.met.version, hello.capabilities,
            wire.rtt_last_s, wire.rtt_smoothed_s,
        )  # fmt: skip

    # What links ask for.

    async def dial_link(self, link: Link) -> Asking:
        return await self._dial(link.addresses, link.peer, Purpose.LINK)

    async def carry(self, wire: Asking) -> None:
        self._tell(wire.peer, True, "dialed")
        wire.ping()
        try:
            await self.run_connection(wire)
        finally:
            self._tell(wire.peer, False, _words(wire))

    # Dialing.

    def _check_addresses(self, peer: str, addresses: tuple[str, ...]) -> None:
        if not 0 < len(addresses) <= ADDRESSES_PER_PEER_MAX:
            raise NotAllowed(f"{peer} needs 1 to {ADDRESSES_PER_PEER_MAX} addresses")
        for address in addresses:
            check_address(address, loopback_only=self._greeter.loopback_only)

    def _want(self, link: Link) -> None:
        if link.start():
            self._nursery.start_soon(link.keep, self, self._rng)

    async def _stand(self, peer: str, deadline: float) -> Asking:
        link = self._links.get(peer)
        if link is None:
            why = "it is this node" if peer == self._me.id else "it is not among the peers"
            raise Unreachable(f"{peer} cannot be reached: {why}", peer=peer)
        self._want(link)
        return await link.stand(deadline)

    async def _dial(
        self,
        addresses: tuple[str, ...],
        expected: str | None,
        purpose: Purpose,
        pin: bytes | None = None,
    ) -> Asking:
        """The first address that answers as it should. Raises Broken."""
        whys: list[str] = []
        code: str | None = None
        for address in addresses:
            try:
                met = await self._meet(address, expected, purpose, pin)
            except Broken as broken:
                self.counts.dials_failed += 1
                whys.append(broken.message)
                if isinstance(broken, Dismissed):
                    code = broken.code
                if broken.reason != "connect":
                    self._shared.complain(broken, address, expected or "")
            except NotAllowed as refusal:
                # A name that came to stand for something else.
                self.counts.dials_failed += 1
                whys.append(refusal.message)
            else:
                self.counts.dialed += 1
                return Asking(self._shared, met)
        if code is not None:
            raise Dismissed(code, "; ".join(whys))
        raise Broken("connect", "; ".join(whys))

    async def _meet(
        self, address: str, expected: str | None, purpose: Purpose, pin: bytes | None
    ) -> Met:
        met = await self._greeter.dial(address, expected, purpose, pin)
        if purpose == Purpose.LINK:
            try:
                await self._doubles.let_in(met)
            except BaseException:
                met.pipe.close()
                raise
        return met

    def _standing(self, peer: str) -> list[Connection]:
        """By which a process is here under this id. Single questions of this node's own are not."""
        link = self._links.get(peer)
        return [
            connection
            for connection in self._connections
            if connection.peer == peer
            and (isinstance(connection, Answering) or (link and connection is link.wire))
        ]

    async def run_connection(self, connection: Connection) -> None:
        self._connections[connection] = None
        try:
            await connection.run()
        finally:
            del self._connections[connection]
            if connection.ended is not None:
                met = connection.met
                self._shared.complain(connection.ended, met.address, connection.peer)

    # What the accepting side asks for.

    async def carry_accepted(self, answering: Answering) -> None:
        """A connection over which a peer asks."""
        if answering.met.hello.purpose != Purpose.LINK:
            await self.run_connection(answering)
            return
        if answering.peer in self._links:
            self._links[answering.peer].hurry()
        self._tell(answering.peer, True, "accepted")
        try:
            await self.run_connection(answering)
        finally:
            if answering.ended is None or answering.ended.reason != "replaced":
                self._tell(answering.peer, False, _words(answering))

    def _tell(self, peer: str, up: bool, reason: str) -> None:
        for watcher in self._watchers:
            try:
                watcher(peer, up, reason)
            except Exception:
                log.exception("a watcher of links broke", extra={"peer": peer})

    # The whole.

    async def pulse(self) -> None:
        while True:
            await beat(self._settings.keepalive_s)
            for connection in list(self._connections):
                connection.tick()

    async def part(self) -> None:
        """Its users are gone. Say goodbye to all, as far as they take it within the grace."""
        self._watchers.clear()
        self._shared.handlers.close()
        with trio.move_on_after(self._settings.close_grace_s, shield=True):
            async with trio.open_nursery() as nursery:
                for connection in self._connections:
                    nursery.start_soon(connection.part, f"{self._me.id} is closing")


@asynccontextmanager
async def open_transport(
    settings: TransportSettings,
    me: Me,
    *,
    rng: Jitter,
    tls: Trust = None,
    wall: Callable[[], float] | None = None,
    admit: Callable[[str], str | None] | None = None,
    foreign: Callable[[str, str], None] | None = None,
) -> AsyncIterator[Transport]:
    """Listens from the first moment on; leaving it says goodbye to all and closes everything.

    Without TLS only loopback addresses are bound and dialed. With UNPROVEN it listens when `use`
    gives it a certificate, and until then only applies, by `call_address` with a pin, for which
    `wall` tells the time of day. `admit` says of a proved id why it is kept out, or None; `foreign`
    is told of one that is of another cluster. Raises NotAllowed, OSError."""
    _check_settings(settings)
    check_me(me)
    if isinstance(tls, Tls):
        check_tls(tls)
    sockets = await bind(settings.binds, loopback_only=tls is None)
    try:
        manners = Manners(
            settings.frame_bytes_max, settings.window_bytes, settings.applicant_bytes_max,
            settings.connect_timeout_s, settings.hello_timeout_s, admit, foreign,
            wall,
        )  # fmt: skip
        greeter = Greeter(me, tls, [target_of(sock) for sock in sockets], manners)
        async with trio.open_nursery() as nursery:
            shared = Shared(settings, nursery)
            transport = Transport(settings, me, greeter, shared, rng, sockets, nursery)
            if tls is not UNPROVEN:
                transport.listen()
            nursery.start_soon(transport.pulse)
            nursery.start_soon(shared.deadlines.run)
            try:
                yield transport
            finally:
                await transport.part()
                nursery.cancel_scope.cancel()
    finally:
        for sock in sockets:
            sock.close()


def _words(connection: Connection) -> str:
    return connection.ended.message if connection.ended is not None else "this side was stopped"


def _check_settings(settings: TransportSettings) -> None:
    for name in settings.__struct_fields__:
        value = getattr(settings, name)
        if not isinstance(value, tuple) and value <= 0:
            raise NotAllowed(f"{name} must be above 0")
    if not settings.binds:
        raise NotAllowed("at least one address to listen on is needed")
    if settings.window_bytes > WINDOW_BYTES_MAX:
        raise NotAllowed(f"window_bytes is {WINDOW_BYTES_MAX} at most")
    if settings.queue_bytes_max < settings.frame_bytes_max:
        raise NotAllowed("queue_bytes_max must hold one frame at least")
    if settings.silence_s < settings.keepalive_s:
        raise NotAllowed("silence_s must not be below keepalive_s")
