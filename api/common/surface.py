"""A surface: one port with one dialect behind it, and the words a dialect uses to describe it.

What a dialect hands over is literal and frozen; nothing here reads a socket.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import parse_qs, unquote

import msgspec
import trio

from api.common.faults import HttpFault, InternalFault, MethodNotAllowed
from swarmd.domain.actors import Actor
from swarmd.domain.errors import ALL_ERRORS, Busy, Invalid, SwarmError, Unauthorized

if TYPE_CHECKING:
    from quart_trio import QuartTrio

    from api.common.metrics import RequestMetrics

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
QUERY_FIELDS_MAX = 100
RETRY_AFTER_S = 1
"""Elections are over by then, as a rule, and a start or a stop has gone on."""
JOIN_BYTES_MAX = 512 * 1024
"""Up to here copying a body together is not worth a thread."""

Headers = tuple[tuple[str, str], ...]


class Access(enum.Enum):
    """Who may use a surface without showing a key."""

    LOOPBACK = "loopback"
    """Open on loopback binds, a credential everywhere else. What every surface does by default."""
    OPEN = "open"
    """Open wherever it listens, because the configuration says so by this surface's name."""
    KEY = "key"
    """A credential even on loopback."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer of a hot route. With `stream` it has no known length and ends with the stream;
    the stream is an async generator and is closed in any case, however the answer ends."""

    status: int = 200
    body: bytes = b""
    content_type: str = JSON
    headers: Headers = ()
    stream: AsyncIterator[bytes] | None = None
    length: int | None = None
    """Of the stream, where it is known."""


class BodySource(Protocol):
    """Where a hot request's body comes from: the connection."""

    async def next_chunk(self) -> bytes:
        """The next piece, b"" at the end. Raises TooLarge, RequestTimeout or ClientGone."""
        ...


@dataclass(slots=True)
class Request:
    """A request on a hot route, already past guard and limits."""

    method: str
    path: str
    """Decoded."""
    params: Mapping[str, str]
    """What the template's `{names}` matched, decoded; a `%2F` stays within its segment."""
    query_string: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case."""
    actor: Actor
    endpoint: str
    body_bytes_max: int
    source: BodySource
    _query: dict[str, list[str]] | None = None

    def header(self, name: bytes) -> str | None:
        for known, value in self.headers:
            if known == name:
                return value.decode("latin-1")
        return None

    @property
    def query(self) -> dict[str, list[str]]:
        """Query parameters; refused with Invalid when there are too many."""
        if self._query is None:
            try:
                self._query = parse_qs(
                    self.query_string.decode("latin-1"),
                    keep_blank_values=True,
                    max_num_fields=QUERY_FIELDS_MAX,
                )
            except ValueError:
                raise Invalid(f"at most {QUERY_FIELDS_MAX} query parameters are read") from None
        return self._query

    def arg(self, name: str) -> str | None:
        """One query parameter, the first of that name."""
        values = self.query.get(name)
        return values[0] if values else None

    @property
    def args(self) -> dict[str, str]:
        """Every query parameter, the first of each name."""
        return {name: values[0] for name, values in self.query.items()}

    async def body(self) -> bytes:
        """The whole body, within the route's bound."""
        first = await self.source.next_chunk()
        if not first:
            return b""
        chunks = [first]
        while chunk := await self.source.next_chunk():
            chunks.append(chunk)
        if len(chunks) == 1:
            return first
        if sum(map(len, chunks)) <= JOIN_BYTES_MAX:
            return b"".join(chunks)
        # Megabytes are copied without the interpreter's lock, while the loop goes on.
        return await trio.to_thread.run_sync(b"".join, chunks)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives: nothing is held but the piece at hand."""
        while chunk := await self.source.next_chunk():
            yield chunk


Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class HotRoute:
    """A route answered before Quart is asked: for what comes thousands of times a second, and
    for uploads and downloads of any size. `template` is `/api/v1/jobs/{job_id}/heartbeat`."""

    method: str
    template: str
    handler: Handler
    body_bytes_max: int | None = None
    """None: the surface's own bound."""
    timeout_s: float | None = -1.0
    """-1: the configured `handler_timeout_s`; None: as long as the client keeps sending."""
    by_token: bool = False
    """Where the key is needed, one of the surface's tokens is enough here."""


@dataclass(frozen=True)
class Envelope:
    """How a dialect says no: a status for each error of the domain, and the body's shape.

    `statuses` is total over `ALL_ERRORS`, which is checked here. `render` gets the status, the
    error's code, its message and its facts, and answers what is to be encoded as JSON.
    """

    statuses: Mapping[type[SwarmError], int]
    render: Callable[[int, str, str, Mapping[str, object]], object]
    content_type: str = JSON

    def __post_init__(self) -> None:
        if missing := [e.__name__ for e in ALL_ERRORS if e not in self.statuses]:
            raise ValueError(f"the envelope has no status for {', '.join(missing)}")

    def status_of(self, error: SwarmError) -> int:
        if isinstance(error, HttpFault):
            return error.status
        for kind in type(error).__mro__:
            if kind in self.statuses:
                return self.statuses[kind]
        return InternalFault.status

    def answer(self, error: SwarmError) -> Response:
        """The refusal as this dialect sends it, `Retry-After`, `Allow` and the like included."""
        status = self.status_of(error)
        value = self.render(status, error.code, error.message, error.facts)
        headers: Headers = ()
        if isinstance(error, Busy):
            headers = (("Retry-After", str(error.retry_after_s)),)
        elif status == 503:
            headers = (("Retry-After", str(RETRY_AFTER_S)),)
        elif isinstance(error, MethodNotAllowed):
            headers = (("Allow", error.allow),)
        elif isinstance(error, Unauthorized):
            headers = (("WWW-Authenticate", 'Bearer realm="swarmd"'),)
        return Response(status, encode_json(value), self.content_type, headers)

    def fault(self) -> Response:
        """For what nobody foresaw: no word about the inside."""
        return self.answer(InternalFault("the request failed; the node's log says why"))


@dataclass(frozen=True, slots=True)
class Tokens:
    """A lesser credential than the key, for the routes that take it."""

    header: bytes
    """Where it is shown, in lower case, besides `Authorization: Bearer`."""
    owner: Callable[[str], str | None]
    """The actor's name that one stands for; None: it is no good one."""
    hint: str
    """What one is, and where it comes from."""


@dataclass(frozen=True)
class Surface:
    """One dialect on one port: on each address of `binds`, on `unix_path`, or on both."""

    name: str
    envelope: Envelope
    app: Callable[[], QuartTrio] | None = None
    hot: tuple[HotRoute, ...] = ()
    binds: tuple[str, ...] = ("127.0.0.1",)
    """IP addresses or names; empty together with a `unix_path` means the socket alone."""
    port: int = 0
    """0: a free one, the same on all binds."""
    unix_path: Path | None = None
    """A socket that only this account may open; its permissions are the authority there."""
    access: Access = Access.LOOPBACK
    hosts: tuple[str, ...] = ()
    """Names besides the bound addresses under which clients may call, such as the advertised."""
    origins: tuple[str, ...] = ()
    """Origins besides its own whose pages may call, `https://swarm.example` each."""
    query_keys: str = ""
    """WebSockets whose path begins so may show the key as `?key=`: a browser can send no header
    with them. It is taken out of the request before anybody else sees it."""
    tokens: Tokens | None = None
    probes: frozenset[str] = frozenset()
    """Paths that GET and HEAD may read without a credential: health checks have none."""
    body_limits: Mapping[tuple[str, str], int] = field(default_factory=dict)
    """(method, Quart rule such as `/api/v1/jobs/<job_id>/complete`) to a bound of its own."""
    metrics: RequestMetrics | None = None
    staleness_ms: Callable[[], int | None] = lambda: None
    """How far what is behind the surface may be behind the swarm; None: nobody knows."""

    @property
    def setting(self) -> str:
        """Where the port is configured."""
        return f"[surfaces.{self.name}] port, or SWARMD_SURFACES_{self.name.upper()}_PORT"


def encode_json(value: object) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def json_answer(value: object, status: int = 200, headers: Headers = ()) -> Response:
    """An answer of a hot route, encoded as JSON."""
    return Response(status, encode_json(value), JSON, headers)


def template_of(rule: str) -> str:
    """A Quart rule as a template: `/jobs/<string:job_id>` is `/jobs/{job_id}`."""
    return "/".join(
        "{" + part[1:-1].rpartition(":")[2] + "}" if part.startswith("<") else part
        for part in rule.split("/")
    )


Found = tuple[dict[str, HotRoute], dict[str, str]]
"""Of a path: its routes by method, and its parameters."""


class Router:
    """Finds the hot route of a method and a raw path. Literal paths win over templates, and of
    these the one that is literal where another has a name, from the left."""

    def __init__(self, routes: tuple[HotRoute, ...]) -> None:
        self._literal: dict[bytes, dict[str, HotRoute]] = {}
        self._templates: dict[int, list[tuple[tuple[str, ...], dict[str, HotRoute]]]] = {}
        for route in routes:
            parts = tuple(route.template.split("/"))
            if not any(part.startswith("{") for part in parts):
                known = self._literal.setdefault(route.template.encode(), {})
            else:
                alike = self._templates.setdefault(len(parts), [])
                known = next((methods for seen, methods in alike if seen == parts), {})
                if not known:
                    alike.append((parts, known))
            if route.method in known:
                raise ValueError(f"{route.method} {route.template} is given twice")
            known[route.method] = route
        for alike in self._templates.values():
            alike.sort(key=lambda each: [part.startswith("{") for part in each[0]])

    def find(self, raw_path: bytes) -> Found | None:
        """None: no hot route has this path."""
        if (methods := self._literal.get(raw_path)) is not None:
            return methods, {}
        parts = raw_path.decode("latin-1").split("/")
        for template, methods in self._templates.get(len(parts), ()):
            params: dict[str, str] = {}
            for wanted, part in zip(template, parts, strict=True):
                if wanted.startswith("{"):
                    if not part:
                        break
                    params[wanted[1:-1]] = unquote(part)
                elif wanted != part:
                    break
            else:
                return methods, params
        return None
