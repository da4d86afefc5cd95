"""Where a surface listens: TCP addresses and unix sockets, bound before anything is accepted.

Whatever keeps an address from being bound is a CannotListen that names the surface, the address
and the setting that moves it.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import trio

from api.common.faults import CannotListen, PortTaken
from api.common.limits import HttpLimits
from api.common.surface import Surface

_PORT_TRIES = 20


async def bind(surface: Surface, limits: HttpLimits, stack: AsyncExitStack) -> list[socket.socket]:
    """Every listening socket of a surface; `stack` closes them. Raises PortTaken, CannotListen."""
    bound: list[socket.socket] = []
    if surface.binds:
        for attempt in range(_PORT_TRIES):
            try:
                bound = await _bind_addresses(surface, limits)
                break
            except PortTaken:
                # Port 0 found one that is free on the first address, not on each.
                if surface.port or attempt == _PORT_TRIES - 1:
                    raise
        for sock in bound:
            stack.callback(sock.close)
    if surface.unix_path is not None:
        sock = _bind_unix(surface, surface.unix_path, limits)
        stack.callback(_unlink_own, sock, surface.unix_path, surface.unix_path.stat().st_ino)
        bound.append(sock)
    return bound


async def _bind_addresses(surface: Surface, limits: HttpLimits) -> list[socket.socket]:
    bound: list[socket.socket] = []
    port = surface.port
    try:
        for host in dict.fromkeys(surface.binds):
            before = len(bound)
            reason: OSError | None = None
            for family, address in await _resolve(surface, host, port):
                try:
                    bound.append(_listen_tcp(family, address, limits))
                except OSError as error:
                    if error.errno != errno.EADDRNOTAVAIL:
                        raise _cannot_listen(surface, host, port, error) from None
                    reason = error
                else:
                    port = bound[0].getsockname()[1]
            if len(bound) == before and reason is not None:
                raise _cannot_listen(surface, host, port, reason)
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


async def _resolve(surface: Surface, host: str, port: int) -> list[tuple[int, Any]]:
    try:
        found = await trio.socket.getaddrinfo(
            host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise CannotListen(
            f"surface {surface.name} cannot listen on {host}: the name is not known ({error})",
            surface=surface.name,
        ) from None
    return list(dict.fromkeys((family, address) for family, _, _, _, address in found))


def _listen_tcp(family: int, address: Any, limits: HttpLimits) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(address)
        sock.listen(limits.backlog)
    except BaseException:
        sock.close()
        raise
    return sock


def _cannot_listen(surface: Surface, host: str, port: int, error: OSError) -> CannotListen:
    place = f"[{host}]:{port}" if ":" in host.strip("[]") else f"{host}:{port}"
    facts = {"surface": surface.name, "address": place}
    if error.errno == errno.EADDRINUSE:
        return PortTaken(
            f"surface {surface.name} cannot listen on {place}: the port is taken."
            f" Move it with {surface.setting}, or end what holds it",
            **facts,
        )
    why = {
        errno.EACCES: "ports below 1024 need root or CAP_NET_BIND_SERVICE",
        errno.EADDRNOTAVAIL: "this machine has no such address",
    }.get(error.errno or 0, error.strerror or str(error))
    return CannotListen(
        f"surface {surface.name} cannot listen on {place}: {why}. Change it with {surface.setting}",
        **facts,
    )


def _bind_unix(surface: Surface, path: Path, limits: HttpLimits) -> socket.socket:
    """A socket that only its owner may open. One that a dead daemon left is replaced, one that
    answers is not. The folder is held open and named by its descriptor, since a socket's path
    may have only 107 bytes."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        place = f"/proc/self/fd/{folder}"
        final, fresh = f"{place}/{path.name}", f"{place}/.{path.name}.new"
        if _answers(final):
            raise PortTaken(
                f"surface {surface.name} cannot listen on {path}: another daemon answers there."
                " End it, or choose another --data-dir",
                surface=surface.name,
                address=str(path),
            )
        if Path(final).exists() and not stat.S_ISSOCK(Path(final).stat().st_mode):
            raise CannotListen(
                f"surface {surface.name} cannot listen on {path}: a file of that name is there",
                surface=surface.name,
                address=str(path),
            )
        Path(fresh).unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            os.fchmod(sock.fileno(), 0o600)  # Linux gives the file the mode of the socket
            sock.bind(fresh)
            Path(fresh).chmod(0o600)
            sock.listen(limits.backlog)
            Path(fresh).rename(final)
        except BaseException as error:
            sock.close()
            if isinstance(error, OSError):
                raise CannotListen(
                    f"surface {surface.name} cannot listen on {path}: {error.strerror}",
                    surface=surface.name,
                    address=str(path),
                ) from None
            raise
        return sock
    finally:
        os.close(folder)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except BlockingIOError:  # its backlog is full, so somebody listens
            return True
        except OSError:
            return False
    return True


def _unlink_own(sock: socket.socket, path: Path, inode: int) -> None:
    sock.close()
    with suppress(FileNotFoundError):
        if path.stat().st_ino == inode:
            path.unlink()
