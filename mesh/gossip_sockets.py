"""Datagrams in and out, beside the wires' own addresses. What cannot go out now is dropped and
counted: whoever is asked for something again and again needs no queue.
"""

from __future__ import annotations

import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple, Protocol

import trio

from mesh.pipes import Target, check_address, connect, parse_address, resolve, target_of
from mesh.swim import SockAddr, To
from mesh.wires import NotAllowed

RECEIVE_BYTES = 2_048
"""More than any packet has; a longer one comes cut short, and is refused for its length."""
BUFFER_BYTES = 1 << 20
ROUTES_MAX = 16_384
LOOKUPS_MAX = 4
LOOKUP_TIMEOUT_S = 5.0
NAME_KEPT_S = 60.0
PACKETS_PER_TURN_MAX = 64

Take = Callable[[float, bytes, SockAddr], None]
"""(when it was fetched, the packet, where it came from)"""


class Datagrams(Protocol):
    """Where a node's datagrams go, and come from; a simulated network has one of its own."""

    def begin(self, nursery: trio.Nursery) -> None: ...

    def listen(self, take: Take, taken: Callable[[], None]) -> None:
        """From now on, `taken` behind the last of those that came together."""

    def send(self, to: To, packet: bytes) -> str | None:
        """None, or why it was dropped."""

    async def touch(self, address: str) -> None:
        """Returns when a connection was taken there. Raises OSError, NotAllowed."""

    def close(self) -> None: ...


class _Route(NamedTuple):
    """From which socket to where; or why not."""

    until: float
    sock: socket.socket | None
    target: Target | None
    why: str = "unresolved"


class Sockets:
    def __init__(self, bound: Sequence[socket.socket], *, loopback_only: bool) -> None:
        self.bound = tuple(bound)
        self._loopback_only = loopback_only
        self._by_kind: dict[tuple[int, bool], socket.socket] = {}
        self._routes: OrderedDict[To, _Route] = OrderedDict()
        self._lookups = 0
        self._nursery: trio.Nursery | None = None
        for sock in self.bound:
            here = target_of(sock)
            kinds = (True, False) if here.wildcard else (here.loopback,)
            for kind in kinds:
                self._by_kind.setdefault((sock.family, kind), sock)

    def begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def listen(self, take: Take, taken: Callable[[], None]) -> None:
        assert self._nursery is not None, "it has not begun"
        for sock in self.bound:
            self._nursery.start_soon(self._receive, sock, take, taken)

    async def _receive(self, sock: socket.socket, take: Take, taken: Callable[[], None]) -> None:
        while True:
            await trio.lowlevel.wait_readable(sock)
            now = trio.current_time()
            for _ in range(PACKETS_PER_TURN_MAX):
                try:
                    packet, source = sock.recvfrom(RECEIVE_BYTES)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # an earlier packet's target said no
                take(now, packet, source)
            taken()

    async def touch(self, address: str) -> None:
        for target in await resolve(address, loopback_only=self._loopback_only):
            (await connect(target, None)).close()
            return

    def send(self, to: To, packet: bytes) -> str | None:
        """None, or why it was dropped."""
        route = self._routes.get(to)
        if route is None or route.until <= trio.current_time():
            route = self._find_route(to, route)
        if route.sock is None or route.target is None:
            return route.why
        try:
            route.sock.sendto(packet, route.target.sockaddr)
        except BlockingIOError:
            return "send_full"
        except OSError:
            return "send_failed"
        return None

    def close(self) -> None:
        for sock in self.bound:
            sock.close()

    def _find_route(self, to: To, last: _Route | None) -> _Route:
        target = _literal(to) if isinstance(to, str) else _target_of(to)
        if target is not None:
            return self._keep(to, self._route(target, float("inf")))
        soon = trio.current_time() + LOOKUP_TIMEOUT_S
        # What a name last stood for serves until the answer is there.
        route = last._replace(until=soon) if last is not None else _Route(soon, None, None)
        if self._nursery is not None and self._lookups < LOOKUPS_MAX:
            assert isinstance(to, str)
            self._lookups += 1
            self._keep(to, route)
            self._nursery.start_soon(self._look_up, to, route)
        return route

    async def _look_up(self, address: str, last: _Route) -> None:
        try:
            with trio.move_on_after(LOOKUP_TIMEOUT_S):
                targets: list[Target] = []
                with suppress(OSError, NotAllowed, UnicodeError):
                    targets = await resolve(address, loopback_only=self._loopback_only)
                until = trio.current_time() + NAME_KEPT_S
                routes = [self._route(target, until) for target in targets]
                usable = [route for route in routes if route.sock is not None]
                self._keep(address, usable[0] if usable else last._replace(until=until))
        finally:
            self._lookups -= 1

    def _route(self, target: Target, until: float) -> _Route:
        loopback = target.loopback
        if self._loopback_only and not loopback:
            return _Route(until, None, target, "not_loopback")
        return _Route(until, self._by_kind.get((target.family, loopback)), target, "no_socket")

    def _keep(self, to: To, route: _Route) -> _Route:
        self._routes[to] = route
        self._routes.move_to_end(to)
        if len(self._routes) > ROUTES_MAX:
            self._routes.popitem(last=False)
        return route


def open_sockets(addresses: Sequence[str], *, loopback_only: bool) -> Sockets:
    """At exactly these addresses, which are numbers, as open wires name them. Raises OSError,
    NotAllowed."""
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            check_address(address, loopback_only=loopback_only)
            target = _literal(address)
            if target is None:
                raise NotAllowed(f"{address} is no address of a socket: give a number and a port")
            sock = socket.socket(target.family, socket.SOCK_DGRAM)
            bound.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
            if target.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(target.sockaddr)
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return Sockets(bound, loopback_only=loopback_only)


def _literal(address: str) -> Target | None:
    """Without asking anybody; None for a name, and for what is no address."""
    try:
        host, port = parse_address(address)
        ip = ipaddress.ip_address(host)
    except (NotAllowed, ValueError):
        return None
    if ip.version == 4:
        return Target(socket.AF_INET, (host, port))
    number, _, zone = host.partition("%")
    scope = 0
    if zone:
        with suppress(OSError, ValueError):
            scope = int(zone) if zone.isdecimal() else socket.if_nametoindex(zone)
    return Target(socket.AF_INET6, (number, port, 0, scope))


def _target_of(sockaddr: SockAddr) -> Target:
    family = socket.AF_INET if len(sockaddr) == 2 else socket.AF_INET6
    return Target(family, sockaddr)
