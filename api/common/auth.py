"""Who may ask: the checks that every request passes before anything of it is looked at.

On a unix socket the file's permissions are the authority. On an open loopback bind a browser is
the only stranger, so a foreign Host (DNS rebinding) and a cross-site Origin are refused. Off
loopback a key is needed, `X-Admin-Key` or `Authorization: Bearer`, unless the configuration opens
that surface by name; with no key known, that means closed. A surface may name routes on which a
lesser credential, that stands for somebody, is enough. Health checks (a surface's `probes`)
are read without a credential, since load balancers and service managers have none and the answer
says no more than up or down; the checks on Host and Origin hold for them too.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from urllib.parse import unquote_plus, urlsplit

from api.common.surface import Access
from api.common.wire import Head
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Forbidden, SwarmError, Unauthorized

_actor: ContextVar[Actor] = ContextVar("actor")


def current_actor() -> Actor:
    """Who sent the request that this task answers."""
    return _actor.get()


def set_actor(actor: Actor) -> None:
    _actor.set(actor)


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a connection."""

    address: str
    """IP address, or `uid:1000` on a unix socket."""
    port: int = 0
    local: bool = False
    """Came through the unix socket."""


@dataclass(frozen=True, slots=True)
class Bearer:
    """On a route that takes a lesser credential than the key."""

    name: str | None
    """Whom the one stands for that was shown; None: none was, or no good one."""
    hint: str = ""
    """What the credential is, and where it comes from."""


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reached from this machine alone."""
    try:
        return ipaddress.ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """The policy of one listening address of a surface."""

    def __init__(
        self,
        surface: str,
        access: Access,
        *,
        loopback: bool,
        unix: bool,
        names: frozenset[str],
        ports: frozenset[int],
        origins: frozenset[str],
        admin_key: Callable[[], str | None],
        key_wanted: str,
    ) -> None:
        """`names` are the hosts a client may call us by, `ports` those of all surfaces: a page
        that one surface served may call another."""
        self._surface = surface
        self._unix = unix
        self._names = names
        self._ports = ports
        self._origins = origins
        self._admin_key = admin_key
        self._key_wanted = key_wanted
        self._needs_key = not unix and (
            access is Access.KEY or (access is Access.LOOPBACK and not loopback)
        )
        self._checks_host = loopback and not self._needs_key
        self._hosts_seen: dict[str, SwarmError | None] = {}

    @property
    def needs_key(self) -> bool:
        return self._needs_key

    def admit(
        self, head: Head, peer: Peer, *, probe: bool = False, bearer: Bearer | None = None
    ) -> Actor:
        """Who acts. Raises Forbidden for where it comes from, Unauthorized for no right key."""
        if self._unix:
            return Actor("local", self._surface, peer.address)
        if self._checks_host:
            self._check_host(head.host)
        if head.origin is not None or head.fetch_site is not None:
            self._check_origin(head)
        if head.key is not None and (known := self._admin_key()):
            if hmac.compare_digest(head.key.encode(), known.encode()):
                return Actor("admin", self._surface, peer.address)
            if not self._needs_key and (bearer is None or bearer.name is None):
                # A key of some other service must not turn an open surface away.
                return Actor("anonymous", self._surface, peer.address)
        if bearer is not None and bearer.name is not None:
            return Actor(bearer.name, self._surface, peer.address)
        if self._needs_key and not probe:
            raise self._refuse_key(head, bearer)
        return Actor("anonymous", self._surface, peer.address)

    def _refuse_key(self, head: Head, bearer: Bearer | None) -> Unauthorized:
        if not self._admin_key():
            return Unauthorized(
                "this node knows no admin key yet, so its protected surfaces are closed",
                surface=self._surface,
            )
        shown = "the key shown is not the right one" if head.key else "a key is needed"
        other = f". Here a token will do: {bearer.hint}" if bearer is not None else ""
        return Unauthorized(
            f"{shown}; send X-Admin-Key or Authorization: Bearer{self._key_wanted}{other}",
            surface=self._surface,
        )

    def _check_host(self, host: str | None) -> None:
        if host is None:  # HTTP/1.0; no browser speaks it
            return
        if host not in self._hosts_seen:
            if len(self._hosts_seen) >= 256:
                self._hosts_seen.clear()
            self._hosts_seen[host] = None if self._knows(host) else _foreign_host(host)
        if (refusal := self._hosts_seen[host]) is not None:
            raise Forbidden(refusal.message, **refusal.facts)

    def _knows(self, host: str) -> bool:
        name, _ = split_host(host)
        return is_loopback(name) or name in self._names

    def _check_origin(self, head: Head) -> None:
        if head.fetch_site == "cross-site":
            raise Forbidden("a page of another site may not call this surface")
        origin = head.origin
        if origin is None or origin in self._origins:
            return
        try:
            parts = urlsplit(origin)
            name, port = (parts.hostname or "").rstrip("."), parts.port
        except ValueError:
            name, port = "", None
        if port is None:
            port = 443 if origin.startswith("https:") else 80
        own, own_port = split_host(head.host or "")
        same_host = bool(name) and name == own
        if same_host and (port == (own_port or 80) or port in self._ports):
            return
        if name and port in self._ports and (is_loopback(name) or name in self._names):
            return
        raise Forbidden(
            f"Origin is {origin[:200]}; only pages of this swarm may call this surface,"
            " or those that [surfaces] origins names",
            origin=origin[:200],
        )


def take_query_key(head: Head) -> None:
    """`?key=` of a request becomes its key, where it asks to become a WebSocket and shows none; and
    is no part of its target from then on, so that nothing that is logged can have it."""
    path, mark, query = head.target.partition(b"?")
    if not mark:
        return
    kept: list[bytes] = []
    found: str | None = None
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if unquote_plus(name.decode("latin-1")) == "key":
            found = found or unquote_plus(value.decode("latin-1"))
        else:
            kept.append(part)
    if found is None:
        return
    head.target = path + b"?" + b"&".join(kept) if kept else path
    if head.upgrade and head.key is None:
        head.key = found


def _foreign_host(host: str) -> Forbidden:
    return Forbidden(
        f"Host is {host[:200]}; call this surface by a loopback address, localhost, an address"
        " it is bound to, or a name that the configuration's hosts lists",
        host=host[:200],
    )


def split_host(host: str) -> tuple[str, int | None]:
    """`name:port` or `[v6]:port`, the name in lower case without brackets and last dot."""
    host = host.strip().lower()
    if host.startswith("["):
        name, _, rest = host[1:].partition("]")
        port = rest[1:] if rest.startswith(":") else ""
    else:
        name, _, port = host.partition(":")
    return name.rstrip("."), int(port) if port.isdecimal() and len(port) <= 5 else None
