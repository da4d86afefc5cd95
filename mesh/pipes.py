"""Connected sockets with or without TLS, and how they come to be: addresses, binding, dialing.

Without TLS, nothing but loopback is bound or dialed, whatever a name resolves to.
"""

from __future__ import annotations

import _ssl
import ipaddress
import os
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from typing import Final, Protocol

import msgspec
import trio

from mesh.frames import Broken
from mesh.wires import NotAllowed

RECEIVE_BYTES = 128 * 1024
WRITE_BYTES_MAX = 256 * 1024
"""One step of the writer: TLS encrypts this much at once, the loop waits meanwhile."""
UNSENT_BYTES_MAX = 128 * 1024
"""The kernel holds no more that is unsent: what is urgent cannot overtake what is in there."""
BACKLOG = 128
_BIND_ADDRESS_NO_PORT = 24  # Linux; socket has a name for it from Python 3.12 on
_TCP_THIN_LINEAR_TIMEOUTS = 16  # linux/tcp.h
_FAMILIES = (socket.AF_INET, socket.AF_INET6)


class Tls(msgspec.Struct, frozen=True):
    """Both contexts speak TLS 1.3 or newer. The client's demands a certificate of the other side,
    the server's verifies what it is shown; who shows none there is an applicant at most."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    peer_id_of: Callable[[bytes], str]
    """From the other side's certificate in DER, which the context has verified. It raises where
    the certificate names no node."""


class Unproven(Enum):
    UNPROVEN = "TLS, but no certificate yet"


UNPROVEN: Final = Unproven.UNPROVEN
"""Instead of a Tls, while there is no certificate: nobody is listened to, and nobody dialed but to
ask for one, with a pin."""

Trust = Tls | Unproven | None
"""How a node knows others and they know it. None: they say who they are, on loopback alone."""


class Target(msgspec.Struct, frozen=True):
    """One address of a socket, resolved."""

    family: socket.AddressFamily
    sockaddr: tuple[str, int] | tuple[str, int, int, int]

    @property
    def loopback(self) -> bool:
        return self._ip.is_loopback

    @property
    def wildcard(self) -> bool:
        return self._ip.is_unspecified

    @property
    def _ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
        return ipaddress.ip_address(self.sockaddr[0].partition("%")[0])

    def __str__(self) -> str:
        return join_address(self.sockaddr[0], self.sockaddr[1])


class Pipe(Protocol):
    """Bytes both ways. One task receives, one sends."""

    @property
    def pending(self) -> bool:
        """There is something to be sent that `receive` brought about, or `send_now` left."""

    async def receive(self) -> bytes:
        """Some bytes; none at the end. Always lets other tasks run. Raises OSError."""

    async def send(self, data: bytes | bytearray) -> None:
        """All of it. Raises OSError. Lets others run only where it has to wait."""

    def send_now(self, data: bytes | bytearray) -> None:
        """As much as goes without waiting; the next `send` begins with the rest. Not while another
        task sends, nor more than WRITE_BYTES_MAX. Raises OSError."""

    def close(self) -> None: ...


class PlainPipe:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._rest = b""

    @property
    def pending(self) -> bool:
        return bool(self._rest)

    async def receive(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                return self._sock.recv(RECEIVE_BYTES)
            except (BlockingIOError, InterruptedError):
                continue

    async def send(self, data: bytes | bytearray) -> None:
        if self._rest:
            data, self._rest = self._rest + data, b""
        with memoryview(data) as view:
            at = 0
            while at < len(view):
                try:
                    with view[at:] as rest:
                        at += self._sock.send(rest)
                except (BlockingIOError, InterruptedError):
                    await trio.lowlevel.wait_writable(self._sock)

    def send_now(self, data: bytes | bytearray) -> None:
        sent = 0
        if not self._rest:
            with suppress(BlockingIOError, InterruptedError):
                sent = self._sock.send(data)
        self._rest += data[sent:]

    def close(self) -> None:
        self._sock.close()


class TlsPipe:
    """TLS in memory around a plain pipe: a read takes whatever records have come, a write is one
    system call, and neither takes a lock or a task of its own."""

    def __init__(self, plain: PlainPipe, context: ssl.SSLContext, *, server: bool) -> None:
        self._plain = plain
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server)
        self._fresh = True

    @property
    def pending(self) -> bool:
        return self._outgoing.pending > 0 or self._plain.pending

    async def handshake(self) -> bytes | None:
        """The other side's certificate in DER; None where it showed none and need not. Raises
        Broken, OSError."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                data = await self._plain.receive()
                if not data:
                    raise Broken("tls", "the other side left during the handshake") from None
                self._incoming.write(data)
            except ssl.SSLError as error:
                await self._flush()
                raise Broken("tls", _tls_words(error)) from None
            else:
                break
        await self._flush()
        return self._tls.getpeercert(binary_form=True)

    def chain(self) -> list[bytes]:
        """The certificates in DER that the other side sent, its own first, as they came: that it
        has the key of the first is proved, nothing else is."""
        if sys.version_info >= (3, 13):
            return list(self._tls.get_unverified_chain())
        # Public from Python 3.13 on; those before it have it under this name, and change no more.
        found = self._tls._sslobj.get_unverified_chain()  # type: ignore[attr-defined]
        return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in found or ()]

    async def receive(self) -> bytes:
        if self._fresh:
            # The last bytes of the handshake may have brought the first of what follows.
            self._fresh = False
            clear = self._clear()
            if clear is not None:
                await trio.lowlevel.checkpoint()
                return clear
        while True:
            data = await self._plain.receive()
            if not data:
                return b""
            self._incoming.write(data)
            clear = self._clear()
            if clear is not None:
                return clear

    async def send(self, data: bytes | bytearray) -> None:
        with memoryview(data) as view:
            for at in range(0, len(view), WRITE_BYTES_MAX):
                with view[at : at + WRITE_BYTES_MAX] as part:
                    self._tls.write(part)
                await self._flush()
        await self._flush()

    def send_now(self, data: bytes | bytearray) -> None:
        self._tls.write(data)
        self._plain.send_now(self._outgoing.read())

    def close(self) -> None:
        self._plain.close()

    async def _flush(self) -> None:
        if self.pending:
            await self._plain.send(self._outgoing.read())

    def _clear(self) -> bytes | None:
        """What can be read at present; None where more must come first, b"" at the end."""
        parts: list[bytes] = []
        try:
            while part := self._tls.read(RECEIVE_BYTES):
                parts.append(part)
        except ssl.SSLWantReadError:
            return b"".join(parts) if parts else None
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            raise Broken("tls", _tls_words(error)) from None
        return b"".join(parts)


def check_tls(tls: Tls) -> None:
    if tls.client.verify_mode != ssl.CERT_REQUIRED:
        raise NotAllowed("the client context must demand a certificate: CERT_REQUIRED")
    if tls.server.verify_mode == ssl.CERT_NONE:
        raise NotAllowed(
            "the server context must verify certificates: CERT_OPTIONAL, or CERT_REQUIRED where"
            " nobody may apply"
        )
    for name, context in (("server", tls.server), ("client", tls.client)):
        if context.minimum_version < ssl.TLSVersion.TLSv1_3:
            raise NotAllowed(f"the {name} context must have TLSv1_3 as its minimum version")
    if tls.client.check_hostname:
        raise NotAllowed(
            "the client context must not check host names: a node is known by the id in its"
            " certificate, never by its address"
        )


def parse_address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port`. Raises NotAllowed."""
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    host = host[1:-1] if bracketed else host
    usable = colon and host and len(host) <= 255 and port.isascii() and port.isdecimal()
    if not usable or int(port) > 65535 or (":" in host) != bracketed:
        raise NotAllowed(f"{text[:300]!r} is no address: write host:port or [v6]:port")
    return host, int(port)


def check_address(address: str, *, loopback_only: bool) -> tuple[str, int]:
    """As parse_address; what a name stands for shows only when it is resolved."""
    host, port = parse_address(address)
    with suppress(ValueError):
        if loopback_only and not ipaddress.ip_address(host.partition("%")[0]).is_loopback:
            raise _no_loopback(address)
    return host, port


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


async def resolve(address: str, *, loopback_only: bool) -> list[Target]:
    """Raises NotAllowed where it is not loopback though it must be, OSError."""
    host, port = check_address(address, loopback_only=loopback_only)
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    targets = [
        Target(family, sockaddr)  # type: ignore[arg-type]
        for family, _, _, _, sockaddr in found
        if family in _FAMILIES
    ]
    if loopback_only and not all(target.loopback for target in targets):
        raise _no_loopback(address)
    return targets


async def bind(addresses: Sequence[str], *, loopback_only: bool) -> list[socket.socket]:
    """One socket for each resolved address, which does not listen yet. Raises NotAllowed,
    OSError."""
    bound: list[socket.socket] = []
    try:
        for address in addresses:
            for target in await resolve(address, loopback_only=loopback_only):
                sock = socket.socket(target.family, socket.SOCK_STREAM)
                bound.append(sock)
                sock.setblocking(False)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if target.family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                sock.bind(target.sockaddr)
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def target_of(sock: socket.socket) -> Target:
    """Where a socket is bound."""
    return Target(sock.family, sock.getsockname())


async def connect(target: Target, source: Target | None) -> PlainPipe:
    """From the given address, with any port. Raises OSError."""
    sock = socket.socket(target.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if source is not None:
            # The kernel then picks the port by both ends, so that ports do not run out.
            with suppress(OSError):
                sock.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source.sockaddr[0], 0, *source.sockaddr[2:]))
        try:
            sock.connect(target.sockaddr)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code)) from None
        return plain_pipe(sock)
    except BaseException:
        sock.close()
        raise


def plain_pipe(sock: socket.socket) -> PlainPipe:
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # What is lost is sent again at an even pace: a heartbeat must not wait for a doubled pause.
    with suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
    if hasattr(socket, "TCP_NOTSENT_LOWAT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES_MAX)
    return PlainPipe(sock)


def _no_loopback(address: str) -> NotAllowed:
    return NotAllowed(
        f"{address} is not a loopback address: without TLS a node neither listens there nor"
        " dials it; give both TLS contexts, or use 127.0.0.0/8 or ::1"
    )


def _tls_words(error: ssl.SSLError) -> str:
    reason = error.reason or error.strerror or type(error).__name__
    if reason == "CERTIFICATE_VERIFY_FAILED":
        return (
            "TLS failed: the other side's certificate is another swarm's, or has ended"
            f" ({getattr(error, 'verify_message', reason)})"
        )
    return f"TLS failed: {reason}"
