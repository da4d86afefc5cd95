"""Discovery on a LAN, where it is asked for: a beacon on a multicast group says where a swarm's
members are, to whoever looks for the swarm with this mark.

Nothing that comes from here is believed: an address is a hint to dial, and the token or the
certificate decides who answers there. The mark is a hash, and tells nothing of what it was made of.
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Annotated

import msgspec
import trio
from msgspec import Meta

from mesh.pipes import check_address
from mesh.swim import Rng
from mesh.wires import NotAllowed

log = logging.getLogger(__name__)

PORT = 8473
GROUP_V4 = "239.255.84.73"
GROUP_V6 = "ff02::5357:524d"
MARK_BYTES_MAX = 32
PACKET_BYTES_MAX = 512
ADDRESSES_MAX = 4
FOUND_MAX = 64
INTERFACES_MAX = 32
LOOPBACK = "lo"
INTERVAL_S = 5.0
ANSWER_PAUSE_S = 0.5
ASK_INTERVAL_S = 0.5
_PACKETS_PER_TURN_MAX = 64
_HOPS = 1
_IP_MULTICAST_ALL = 49  # Linux; 0: only what comes to the groups that this socket joined

Address = Annotated[str, Meta(min_length=1, max_length=128)]
Mark = Annotated[bytes, Meta(min_length=1, max_length=MARK_BYTES_MAX)]


class Seek(msgspec.Struct, frozen=True, array_like=True, tag="swarmd seek 1"):
    mark: Mark


class Here(msgspec.Struct, frozen=True, array_like=True, tag="swarmd here 1"):
    mark: Mark
    addresses: Annotated[tuple[Address, ...], Meta(min_length=1, max_length=ADDRESSES_MAX)]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Seek | Here).decode


class _Groups:
    """In the groups on every interface that takes part; with `loopback_only` on that one alone."""

    def __init__(self, port: int, loopback_only: bool) -> None:
        self._port = port
        self._v4: list[tuple[socket.socket, bytes]] = []
        self._v6: list[tuple[socket.socket, int]] = []
        self.sockets: list[socket.socket] = []
        interfaces = [
            index for index, name in socket.if_nameindex() if not loopback_only or name == LOOPBACK
        ][:INTERFACES_MAX]
        try:
            self._join_v4(interfaces)
            for index in interfaces:
                self._join_v6(index)
        except BaseException:
            self.close()
            raise
        if not self._v4 and not self._v6:
            self.close()
            raise NotAllowed("no interface takes part in multicast: give an address to join at")

    def send(self, packet: bytes) -> None:
        """On every interface; one that does not take it now is none of its business."""
        for sock, request in self._v4:
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, request)
                sock.sendto(packet, (GROUP_V4, self._port))
        for sock, index in self._v6:
            with suppress(OSError):
                sock.sendto(packet, (GROUP_V6, self._port, 0, index))

    def close(self) -> None:
        for sock in self.sockets:
            sock.close()

    def _join_v4(self, interfaces: Sequence[int]) -> None:
        """One socket for all of them."""
        sock = self._open(socket.AF_INET, (GROUP_V4, self._port))
        if sock is None:
            return
        group = socket.inet_aton(GROUP_V4)
        for index in interfaces:
            request = struct.pack("@4s4si", group, bytes(4), index)
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, request)
                self._v4.append((sock, request))
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, _HOPS)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)

    def _join_v6(self, index: int) -> None:
        """One socket an interface: the group's address is of that link."""
        sock = self._open(socket.AF_INET6, (GROUP_V6, self._port, 0, index))
        if sock is None:
            return
        request = struct.pack("@16si", socket.inet_pton(socket.AF_INET6, GROUP_V6), index)
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, request)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, _HOPS)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
            self._v6.append((sock, index))

    def _open(
        self, family: socket.AddressFamily, at: tuple[str, int] | tuple[str, int, int, int]
    ) -> socket.socket | None:
        """Bound to the group itself: nothing else comes in. None where there is no such family."""
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
        except OSError:
            return None
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(at)
        except OSError:
            sock.close()
            return None
        self.sockets.append(sock)
        return sock


@asynccontextmanager
async def open_beacon(
    mark: bytes, addresses: Sequence[str], *, rng: Rng, loopback_only: bool, port: int = PORT
) -> AsyncIterator[None]:
    """Says from time to time, and whenever it is asked, where this member is. Raises
    NotAllowed."""
    packet = _encode(Here(_checked(mark), tuple(addresses[:ADDRESSES_MAX])))
    groups = _Groups(port, loopback_only)
    asked = trio.Event()

    async def listen(sock: socket.socket) -> None:
        async for heard in _packets(sock):
            if isinstance(heard, Seek) and heard.mark == mark:
                asked.set()

    async def speak() -> None:
        nonlocal asked
        while True:
            groups.send(packet)
            asked = trio.Event()
            # However many ask, it answers so often at most.
            await trio.sleep(ANSWER_PAUSE_S * (0.5 + rng.random()))
            with trio.move_on_after(INTERVAL_S):
                await asked.wait()

    try:
        async with trio.open_nursery() as nursery:
            for sock in groups.sockets:
                nursery.start_soon(listen, sock)
            nursery.start_soon(speak)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()
    finally:
        groups.close()


async def discover(
    mark: bytes, *, timeout_s: float, loopback_only: bool, port: int = PORT
) -> list[str]:
    """Addresses where members of the swarm with this mark say that they are: those that came until
    a moment after the first, or none in time. Raises NotAllowed."""
    seek = _encode(Seek(_checked(mark)))
    groups = _Groups(port, loopback_only)
    found: dict[str, None] = {}
    first = trio.Event()

    async def listen(sock: socket.socket) -> None:
        async for heard in _packets(sock):
            if isinstance(heard, Here) and heard.mark == mark:
                for address in heard.addresses:
                    with suppress(NotAllowed):
                        check_address(address, loopback_only=loopback_only)
                        if len(found) < FOUND_MAX:
                            found[address] = None
                            first.set()

    async def ask() -> None:
        while True:
            groups.send(seek)
            await trio.sleep(ASK_INTERVAL_S)

    try:
        async with trio.open_nursery() as nursery:
            for sock in groups.sockets:
                nursery.start_soon(listen, sock)
            nursery.start_soon(ask)
            with trio.move_on_after(timeout_s):
                await first.wait()
                await trio.sleep(2 * ANSWER_PAUSE_S)
            nursery.cancel_scope.cancel()
    finally:
        groups.close()
    log.debug("looked for members on the LAN", extra={"found": len(found)})
    return list(found)


async def _packets(sock: socket.socket) -> AsyncIterator[Seek | Here]:
    """What is no word of this protocol is passed over, a bounded number at a time."""
    while True:
        await trio.lowlevel.wait_readable(sock)
        for _ in range(_PACKETS_PER_TURN_MAX):
            try:
                packet = sock.recv(PACKET_BYTES_MAX + 1)
            except BlockingIOError:
                break
            except OSError:
                continue
            if len(packet) <= PACKET_BYTES_MAX:
                with suppress(msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    yield _decode(packet)


def _checked(mark: bytes) -> bytes:
    if not 0 < len(mark) <= MARK_BYTES_MAX:
        raise NotAllowed(f"a mark has 1 to {MARK_BYTES_MAX} bytes")
    return mark
