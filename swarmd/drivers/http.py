"""Downloads over http(s) from servers that may be hostile: every byte, wait and hop has a bound.

asks forms and sends the request; the socket, the head and the body are ours. Left to itself asks
opens sockets through an anyio that no longer loads beside today's Trio, takes `103 Early Hints`
for the answer and a body without a length for an error, follows `https` to `http` with the
credentials of the first hop, breaks an IPv6 host, and unpacks what a server compressed without
a bound. Each hop has a connection of its own, so no stale one from a pool can fail a download.
"""

from __future__ import annotations

import base64
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

import h11
import msgspec
import trio
from asks.request_object import RequestProcessor

from swarmd.domain.errors import Invalid, SwarmError, TooLarge, Unavailable
from swarmd.drivers.files import HashedFile, new_file

URL_CHARS_MAX = 8192
READ_BYTES = 64 * 1024
INFORMATIONAL_MAX = 8
FRAMING_BYTES_MAX = 1024 * 1024
"""What heads and chunk framing may weigh beyond twice the body; more is a server playing games."""
EVENTS_A_TURN = 50
"""Parser events (20 µs each) before other tasks get their turn."""
REDIRECTS = frozenset({301, 302, 303, 307, 308})
DEFAULT_PORTS = {"http": 80, "https": 443}


class HttpSettings(msgspec.Struct, frozen=True):
    connect_timeout_s: float = 10.0
    connect_tries: int = 3
    """Only connecting is tried again; a request that was sent never is."""
    stall_timeout_s: float = 30.0
    """For the whole head of an answer, and for each silence within its body."""
    redirects_max: int = 5
    ca_file: str | None = None
    """Certificates to trust beside the system's own (PEM)."""
    user_agent: str = "swarmd"


DEFAULTS = HttpSettings()


class Downloaded(msgspec.Struct, frozen=True):
    """The bytes as served: nothing is unpacked, whatever `content_encoding` says."""

    sha256: str
    size_bytes: int
    content_encoding: str = "identity"


async def download(
    url: str,
    into: Path,
    *,
    bytes_max: int,
    timeout_s: float,
    settings: HttpSettings = DEFAULTS,
    mode: int = 0o600,
) -> Downloaded:
    """Save what the URL names as a new file, fsynced and closed; no file is left on error.

    Refused with Invalid (the URL), TooLarge (the body) or Unavailable (everything that the
    network or the server did). Credentials and queries of URLs appear in no message.
    """
    place = _Place.of(url)
    try:
        with _within(timeout_s, "the download did not end"):
            async with new_file(into, mode=mode) as file:
                return await _follow(place, file, bytes_max, settings)
    except SwarmError as error:
        error.facts.setdefault("url", redact(url))
        raise


def redact(url: str) -> str:
    """The URL without its credentials, query and fragment, for people to read."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2]
        query = "…" if parts.query else ""
        shown = urlunsplit((parts.scheme, host, parts.path, query, ""))
    except ValueError:
        return "(a URL that cannot be read)"
    shown = "".join(c if c.isprintable() else "?" for c in shown)
    return shown if len(shown) <= 300 else shown[:300] + "…"


class _Place(msgspec.Struct, frozen=True):
    """Where one hop goes: a URL that was checked, without credentials, and those beside it."""

    url: str
    scheme: str
    host: str
    port: int
    authorization: str | None = None

    @classmethod
    def of(cls, url: str) -> _Place:
        if len(url) > URL_CHARS_MAX:
            raise Invalid(f"the URL is longer than {URL_CHARS_MAX} characters", field="url")
        if any(c <= " " or c == "\x7f" for c in url):
            raise Invalid("the URL has blanks or control characters; encode them", field="url")
        try:
            parts = urlsplit(url)
            port = parts.port
            host = _ascii_host(parts.hostname or "")
        except ValueError as error:
            raise Invalid(f"the URL cannot be read: {redact(url)}", field="url") from error
        if parts.scheme not in DEFAULT_PORTS or not host:
            raise Invalid(
                f"cannot fetch {redact(url)}: a URL like http://host/path or https://host/path"
                " is needed",
                field="url",
            )
        port = port or DEFAULT_PORTS[parts.scheme]
        shown = f"[{host}]" if ":" in host else host
        netloc = shown if port == DEFAULT_PORTS[parts.scheme] else f"{shown}:{port}"
        bare = urlunsplit((parts.scheme, netloc, parts.path, parts.query, ""))
        return cls(bare, parts.scheme, host, port, _basic(parts))

    @property
    def netloc(self) -> str:
        return urlsplit(self.url).netloc

    def redirected(self, location: str) -> _Place:
        """The next hop. Credentials stay with the origin that they were given for."""
        try:
            target = _Place.of(urljoin(self.url, location))
        except (Invalid, ValueError) as error:
            raise Unavailable(
                f"{self.netloc} redirects to what is no http or https URL: {redact(location)}"
            ) from error
        if (self.scheme, target.scheme) == ("https", "http"):
            raise Unavailable(f"{self.netloc} redirects from https to http, which is not followed")
        same = (self.scheme, self.host, self.port) == (target.scheme, target.host, target.port)
        if target.authorization is None and same:
            return msgspec.structs.replace(target, authorization=self.authorization)
        return target


def _ascii_host(host: str) -> str:
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _basic(parts: SplitResult) -> str | None:
    if parts.username is None and parts.password is None:
        return None
    pair = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(pair.encode()).decode("ascii")


async def _follow(
    place: _Place, file: HashedFile, bytes_max: int, settings: HttpSettings
) -> Downloaded:
    for _ in range(settings.redirects_max + 1):
        stream = await _open_stream(place, settings)
        try:
            wire = _Wire(stream, settings.stall_timeout_s)
            with _broken_answers(place, file):
                with _within(settings.stall_timeout_s, f"{place.netloc} did not answer"):
                    connection, head = await _ask(place, wire, settings)
                if head.status_code not in REDIRECTS:
                    return await _save(place, head, connection, wire, file, bytes_max)
            location = _header(head, b"location")
        finally:
            # Without a farewell: a peer that does not answer one would hold us up.
            await trio.aclose_forcefully(stream)
        if location is None:
            raise Unavailable(f"{place.netloc} redirects without saying where to")
        place = place.redirected(location)
    raise Unavailable(f"more than {settings.redirects_max} redirects, the last to {place.netloc}")


async def _open_stream(place: _Place, settings: HttpSettings) -> trio.abc.Stream:
    tcp = await _connect(place, settings)
    if place.scheme == "http":
        return tcp
    try:
        context = await _tls_context(settings.ca_file)
        tls = trio.SSLStream(tcp, context, server_hostname=place.host)
        with _within(settings.connect_timeout_s, f"{place.netloc} did not finish the handshake"):
            await tls.do_handshake()
    except BaseException as error:
        await trio.aclose_forcefully(tcp)
        if isinstance(error, ValueError | trio.BrokenResourceError):
            raise Unavailable(f"no TLS with {place.netloc}: {_tls_words(error)}") from error
        raise
    return tls


async def _connect(place: _Place, settings: HttpSettings) -> trio.SocketStream:
    words = "nothing was tried"
    for trial in range(settings.connect_tries):
        if trial:
            await trio.sleep(0.1 * 2**trial)
        try:
            with _within(settings.connect_timeout_s, "no connection"):
                return await trio.open_tcp_stream(place.host, place.port)
        except (OSError, UnicodeError, Unavailable) as error:
            words = _os_words(error)
    raise Unavailable(f"cannot connect to {place.netloc}: {words}")


def _os_words(error: BaseException) -> str:
    """The system's own words, from wherever in the chain or group they are."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, BaseExceptionGroup):
            return _os_words(seen.exceptions[0])
        if isinstance(seen, OSError) and seen.strerror:
            # Trio adds the address; the system's words alone say the same each time.
            if seen.errno is not None and seen.errno > 0:
                return os.strerror(seen.errno)
            return seen.strerror
        seen = seen.__cause__
    return str(error)


async def _tls_context(ca_file: str | None) -> ssl.SSLContext:
    """Loading the system's certificates takes 20 ms: off the loop, and once for each CA file."""
    try:
        stamp = os.stat(ca_file).st_mtime_ns if ca_file else 0
        return await trio.to_thread.run_sync(_load_tls_context, ca_file, stamp)
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(f"the CA file {ca_file} cannot be loaded: {_os_words(error)}") from error


@lru_cache(maxsize=4)
def _load_tls_context(ca_file: str | None, stamp: int) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Python has OpenSSL 3 take a cut connection for the end of the body; whoever sits in between
    # could then cut one off.
    context.options &= ~getattr(ssl, "OP_IGNORE_UNEXPECTED_EOF", 0)
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


def _tls_words(error: BaseException) -> str:
    cause = error.__cause__ if isinstance(error, trio.BrokenResourceError) else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {cause.verify_message}"
    if isinstance(cause, ssl.SSLError) and cause.reason:
        return cause.reason.lower().replace("_", " ")
    return "the connection broke off"


class _Wire:
    """What asks takes for its socket: a Trio stream on which no wait is without a bound."""

    _active = False  # asks asks it: not to be pooled

    def __init__(self, stream: trio.abc.Stream, stall_timeout_s: float) -> None:
        self.received_bytes = 0
        self._stream = stream
        self._stall_timeout_s = stall_timeout_s

    async def send(self, data: bytes) -> None:
        with _within(self._stall_timeout_s, "the server did not take the request"):
            await self._stream.send_all(data)

    async def receive(self) -> bytes:
        with _within(self._stall_timeout_s, "the server sent nothing"):
            data = await self._stream.receive_some(READ_BYTES)
        self.received_bytes += len(data)
        return bytes(data)


class _Request(RequestProcessor):  # type: ignore[misc]
    """asks up to where the request is sent; from there on we read, as far as the head."""

    connection: h11.Connection

    async def _request_io(
        self, request: h11.Request, body: h11.Data | None, connection: h11.Connection
    ) -> h11.Response:
        await self._send(request, body, connection)
        self.connection = connection
        self.streaming = True  # the body is still to come
        return await _read_head(connection, self.sock)


async def _ask(
    place: _Place, wire: _Wire, settings: HttpSettings
) -> tuple[h11.Connection, h11.Response]:
    headers: dict[str, Any] = {
        "Host": place.netloc,
        "User-Agent": settings.user_agent,
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    if place.authorization is not None:
        headers["Authorization"] = place.authorization
    request = _Request(None, "GET", place.url, str(place.port), sock=wire, headers=headers)
    _, head = await request.make_request()
    return request.connection, head


async def _read_head(connection: h11.Connection, wire: _Wire) -> h11.Response:
    """The final head; h11 refuses one over 16 KiB."""
    for _ in range(INFORMATIONAL_MAX + 1):
        event = await _next_event(connection, wire)
        if isinstance(event, h11.Response):
            return event
        if not isinstance(event, h11.InformationalResponse):
            break
    raise Unavailable("the server sends heads without end and no answer")


async def _next_event(connection: h11.Connection, wire: _Wire) -> h11.Event:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Event):
            return event
        if event is h11.PAUSED:
            raise Unavailable("the server wants to speak another protocol than HTTP")
        connection.receive_data(await wire.receive())


async def _save(
    place: _Place,
    head: h11.Response,
    connection: h11.Connection,
    wire: _Wire,
    file: HashedFile,
    bytes_max: int,
) -> Downloaded:
    if head.status_code not in (200, 203):
        raise Unavailable(
            f"{place.netloc} answered {_status(head)} for {redact(place.url)}",
            status=head.status_code,
        )
    too_large = f"what {place.netloc} serves is larger than the {bytes_max} bytes allowed"
    if int(_header(head, b"content-length") or 0) > bytes_max:
        raise TooLarge(too_large, bytes_max=bytes_max)
    events = 0
    while not isinstance(event := await _next_event(connection, wire), h11.EndOfMessage):
        if not isinstance(event, h11.Data):
            raise Unavailable(f"{place.netloc} broke off before the whole body had come")
        if file.size_bytes + len(event.data) > bytes_max:
            raise TooLarge(too_large, bytes_max=bytes_max)
        if wire.received_bytes > 2 * (file.size_bytes + len(event.data)) + FRAMING_BYTES_MAX:
            raise Unavailable(f"{place.netloc} sends mostly framing and little content")
        await file.write(event.data)
        events += 1
        if events % EVENTS_A_TURN == 0:
            await trio.lowlevel.checkpoint()
    written = await file.finish()
    encoding = (_header(head, b"content-encoding") or "identity")[:40]
    return Downloaded(written.sha256, written.size_bytes, encoding)


def _header(head: h11.Response, name: bytes) -> str | None:
    values = [value for key, value in head.headers if key == name]
    return values[0].decode("latin-1") if values else None


def _status(head: h11.Response) -> str:
    """In our own words: the server's may be anything."""
    try:
        return f"{head.status_code} {HTTPStatus(head.status_code).phrase}"
    except ValueError:
        return str(head.status_code)


@contextmanager
def _broken_answers(place: _Place, file: HashedFile) -> Iterator[None]:
    try:
        yield
    except h11.RemoteProtocolError as error:
        if "without sending complete" in str(error) or "incomplete" in str(error):
            words = f"broke off before the whole body had come ({file.size_bytes} bytes did)"
        else:
            words = "does not answer in HTTP/1.1"
        raise Unavailable(f"{place.netloc} {words}") from error
    except trio.BrokenResourceError as error:
        raise Unavailable(
            f"the connection to {place.netloc} broke off after {file.size_bytes} bytes"
        ) from error


@contextmanager
def _within(limit_s: float, words: str) -> Iterator[None]:
    try:
        with trio.fail_after(limit_s):
            yield
    except trio.TooSlowError:
        raise Unavailable(f"{words} within {limit_s:g} s", timeout_s=limit_s) from None
