"""Every surface is served from here: listen, accept, stop. Leaving the context is the stop.

Every address is bound before anything is accepted, so a taken port is an error at the start and
not a surface that is missing. On the way out nothing new is accepted, what is idle or a stream
ends at once, what runs gets `stop_grace_s`, and then the applications are told.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.trio.lifespan import Lifespan

from api.common.auth import Guard, Peer, is_loopback
from api.common.connection import Connection
from api.common.limits import HttpLimits
from api.common.listen import bind
from api.common.load import Load
from api.common.site import Site
from api.common.surface import Surface
from api.common.websocket import hypercorn_config
from api.common.wire import render_head
from swarmd.domain.errors import Busy

log = logging.getLogger(__name__)

_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_FULL_PAUSE_S = 0.1
_FULL_WARNING_S = 10.0
_REFUSALS_MAX = 64
_REFUSAL_S = 1.0
_LIFESPAN_STOP_S = 0.4


@dataclass(frozen=True)
class Bound:
    """Where each surface is reached."""

    urls: Mapping[str, tuple[str, ...]]
    """By name; an http URL for each address, and `unix:/path` for a socket."""
    load: Load

    def url(self, name: str) -> str:
        return self.urls[name][0]


@dataclass(frozen=True)
class _Listener:
    site: Site
    sock: socket.socket
    guard: Guard


@asynccontextmanager
async def open_surfaces(
    surfaces: Sequence[Surface],
    limits: HttpLimits,
    *,
    admin_key: Callable[[], str | None],
    wall: Callable[[], float],
) -> AsyncIterator[Bound]:
    """Serve the surfaces for as long as the context is open. `wall` tells the time of day for the
    Date header. Raises PortTaken or CannotListen before anything is served."""
    load = Load(limits)
    async with AsyncExitStack() as stack:
        sockets = [(surface, await bind(surface, limits, stack)) for surface in surfaces]
        ports = frozenset(
            sock.getsockname()[1]
            for _, bound in sockets
            for sock in bound
            if sock.family != socket.AF_UNIX
        )
        sites = [Site(surface, load, wall) for surface in surfaces]
        listeners = [
            _Listener(site, sock, _guard(site.surface, sock, ports, admin_key))
            for site, (_, bound) in zip(sites, sockets, strict=True)
            for sock in bound
        ]
        failure: Exception | None = None
        async with _lifespans(sites, limits), trio.open_nursery() as connections:
            accepting = trio.CancelScope()
            connections.start_soon(_accept_all, listeners, load, connections, accepting)
            try:
                yield Bound({s.name: _urls(s, bound) for s, bound in sockets}, load)
            except Exception as error:
                failure = error  # the caller's own: it passes as it is, not wrapped in groups
            finally:
                with trio.CancelScope(shield=True):
                    await _drain(accepting, listeners, sites, load)
                connections.cancel_scope.cancel()
        if failure is not None:
            raise failure


# -- stopping -----------------------------------------------------------------------------------


async def _drain(
    accepting: trio.CancelScope, listeners: list[_Listener], sites: list[Site], load: Load
) -> None:
    accepting.cancel()
    for listener in listeners:
        if listener.sock.fileno() >= 0:
            trio.lowlevel.notify_closing(listener.sock)
            listener.sock.close()
    load.stopping = True
    for site in sites:
        for connection in tuple(site.connections):
            connection.stop()
    with trio.move_on_after(load.limits.stop_grace_s):
        await load.drained()
    if load.connections:
        log.warning("connections were cut at the stop", extra={"connections": load.connections})


@asynccontextmanager
async def _lifespans(sites: list[Site], limits: HttpLimits) -> AsyncIterator[None]:
    """Each application's own start-up and end, by Hypercorn."""
    async with trio.open_nursery() as nursery:
        lifespans: list[Lifespan] = []
        for site in sites:
            if site.quart is not None:
                app = ASGIWrapper(cast(Any, site.quart.asgi))
                lifespan = Lifespan(app, hypercorn_config(limits), {})
                await nursery.start(lifespan.handle_lifespan)
                await lifespan.wait_for_startup()
                lifespans.append(lifespan)
        try:
            yield
        finally:
            with trio.move_on_after(_LIFESPAN_STOP_S, shield=True):
                for lifespan in reversed(lifespans):
                    with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                        await lifespan.wait_for_shutdown()
            nursery.cancel_scope.cancel()


# -- accepting ----------------------------------------------------------------------------------


async def _accept_all(
    listeners: list[_Listener], load: Load, connections: trio.Nursery, scope: trio.CancelScope
) -> None:
    with scope:
        async with trio.open_nursery() as nursery:
            for listener in listeners:
                nursery.start_soon(_accept, listener, load, connections)


async def _accept(listener: _Listener, load: Load, connections: trio.Nursery) -> None:
    refusals = 0

    async def refuse(sock: socket.socket) -> None:
        nonlocal refusals
        refusals += 1
        try:
            await _refuse_busy(listener.site, sock)
        finally:
            refusals -= 1

    sock = listener.sock
    limits = load.limits
    site = listener.site
    next_warning = 0.0
    while True:
        try:
            client, address = sock.accept()
        except BlockingIOError:
            await trio.lowlevel.wait_readable(sock)
            continue
        except OSError as error:
            if error.errno in _FULL:
                if trio.current_time() >= next_warning:
                    next_warning = trio.current_time() + _FULL_WARNING_S
                    log.warning(
                        "no descriptor left for a connection; raise LimitNOFILE",
                        extra={"surface": site.surface.name},
                    )
                await trio.sleep(_FULL_PAUSE_S)
            else:  # the client went before it was accepted
                await trio.lowlevel.checkpoint()
            continue
        client.setblocking(False)
        if (
            load.connections < limits.connections_max
            and len(site.connections) < limits.connections_per_surface_max
        ):
            with suppress(OSError):
                connection = _connect(listener, client, address)
                load.connections += 1
                connections.start_soon(_serve, connection, load)
        elif refusals < _REFUSALS_MAX:
            connections.start_soon(refuse, client)
        else:
            client.close()
        await trio.lowlevel.checkpoint()


def _connect(listener: _Listener, client: socket.socket, address: Any) -> Connection:
    """Raises OSError when the client is gone already; its socket is then closed."""
    try:
        if client.family == socket.AF_UNIX:
            size = struct.calcsize("3i")
            credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
            _, uid, _ = struct.unpack("3i", credentials)
            peer, server = Peer(f"uid:{uid}"), ("unix", 0)
        else:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            peer = Peer(address[0], address[1])
            name = client.getsockname()
            server = (name[0], name[1])
    except OSError:
        client.close()
        raise
    return Connection(listener.site, listener.guard, client, peer, server)


async def _serve(connection: Connection, load: Load) -> None:
    site = connection.site
    site.connections.add(connection)
    try:
        await connection.run()
    finally:
        site.connections.discard(connection)
        load.give_connection()


async def _refuse_busy(site: Site, client: socket.socket) -> None:
    """One connection too many: a polite 503 to a client that has at most a second to read it."""
    answer = site.surface.envelope.answer(
        Busy("this node holds as many connections as it may", retry_after_s=2)
    )
    headers = [(name.encode(), value.encode("latin-1")) for name, value in answer.headers]
    headers += [
        (b"Content-Type", answer.content_type.encode()),
        (b"Content-Length", b"%d" % len(answer.body)),
        (b"Connection", b"close"),
    ]
    try:
        with trio.move_on_after(_REFUSAL_S), suppress(OSError):
            client.send(render_head(answer.status, headers) + answer.body)
            client.shutdown(socket.SHUT_WR)
            while True:
                await trio.lowlevel.wait_readable(client)
                if not client.recv(65536):
                    break
    finally:
        trio.lowlevel.notify_closing(client)
        client.close()


def _guard(
    surface: Surface,
    sock: socket.socket,
    ports: frozenset[int],
    admin_key: Callable[[], str | None],
) -> Guard:
    unix = sock.family == socket.AF_UNIX
    address = "" if unix else str(sock.getsockname()[0])
    names = {host.strip("[]").rstrip(".").lower() for host in (*surface.hosts, *surface.binds)}
    return Guard(
        surface.name,
        surface.access,
        loopback=not unix and is_loopback(address),
        unix=unix,
        names=frozenset({*names, address}),
        ports=ports,
        origins=frozenset(surface.origins),
        admin_key=admin_key,
        key_wanted=". `swarmd admin-key` on the node shows it",
    )


def _urls(surface: Surface, bound: list[socket.socket]) -> tuple[str, ...]:
    urls: list[str] = []
    for sock in bound:
        if sock.family == socket.AF_UNIX:
            urls.append(f"unix:{surface.unix_path}")
        else:
            host, port = sock.getsockname()[:2]
            urls.append(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")
    return tuple(urls)
