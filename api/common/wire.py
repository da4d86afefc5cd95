"""HTTP/1.1 as bytes: a request's head, chunked bodies and an answer's head, without I/O.

Stricter than the standard asks where two readers could differ: what is refused here is what a
proxy in front might have read another way. Whatever is accepted, h11 accepts too and reads the
same (a test holds it to that).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from api.common.faults import (
    BadRequest,
    ExpectationFailed,
    HeadersTooLarge,
    HttpFault,
    NotImplementedFault,
    UriTooLong,
)
from api.common.limits import HttpLimits

RawHeaders = list[tuple[bytes, bytes]]

_REQUEST_LINE = re.compile(rb"([A-Z]{1,20}) ([!-~]+) HTTP/(\d)\.(\d)")
_HEADER = rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)\r\n"
_HEADERS = re.compile(
    rb"(?:[!#$%&'*+\-.^_`|~0-9A-Za-z]++:[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)*+", re.DOTALL
)
_ONE_HEADER = re.compile(_HEADER)
_ABSOLUTE = re.compile(rb"https?://([^/?#@]+)([/?][!-~]*)?", re.IGNORECASE)
_HOST = re.compile(rb"(?:[A-Za-z0-9\-._~]+|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\])?(?::\d{0,5})?")
_LENGTH = re.compile(rb"\d{1,18}")
_START = re.compile(rb"[A-Z]{1,20}(?: |$)")


@dataclass(slots=True)
class Head:
    """A request up to its body."""

    method: str
    target: bytes
    """Origin form: path and query; `*` for OPTIONS alone."""
    minor: int
    headers: RawHeaders
    """Names in lower case."""
    host: str | None = None
    content_length: int | None = None
    chunked: bool = False
    keep_alive: bool = True
    wants_continue: bool = False
    upgrade: bool = False
    """Asks to become a WebSocket."""
    origin: str | None = None
    fetch_site: str | None = None
    key: str | None = None

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.content_length)


def check_beginning(buffer: bytes | bytearray, limits: HttpLimits) -> None:
    """Refuse what can no longer become a request, before all of its headers are here."""
    line_end = buffer.find(b"\n")
    if (line_end if line_end >= 0 else len(buffer)) > limits.request_line_bytes_max:
        raise _line_too_long(limits)
    if line_end < 0:
        if not _START.match(buffer[:21]):
            raise BadRequest("this is not an HTTP request; the port speaks plain HTTP/1.1")
    elif not _REQUEST_LINE.fullmatch(buffer, 0, max(line_end - 1, 0)):
        raise BadRequest("the request line is malformed; it is METHOD SP TARGET SP HTTP/1.1")
    if len(buffer) > limits.header_bytes_max:
        raise _too_large(limits)


def parse_head(data: bytes, limits: HttpLimits) -> Head:
    """A whole head, up to and with its empty line. Raises an HttpFault."""
    line_end = data.find(b"\r\n")
    if line_end > limits.request_line_bytes_max:
        raise _line_too_long(limits)
    if len(data) > limits.header_bytes_max:
        raise _too_large(limits)
    line = _REQUEST_LINE.fullmatch(data, 0, line_end)
    if line is None:
        raise BadRequest("the request line is malformed; it is METHOD SP TARGET SP HTTP/1.1")
    raw_method, target, major, raw_minor = line.groups()
    if major != b"1" or raw_minor not in b"01":
        raise NotImplementedFault("only HTTP/1.1 and HTTP/1.0 are served")
    if not _HEADERS.fullmatch(data, line_end + 2, len(data) - 2):
        raise BadRequest("a header line is malformed")
    found = _ONE_HEADER.findall(data, line_end + 2, len(data) - 2)
    if len(found) > limits.headers_max:
        raise HeadersTooLarge(
            f"{len(found)} headers; at most {limits.headers_max} are read",
            limit=limits.headers_max,
        )
    minor = int(raw_minor)
    headers = [(name.lower(), value.rstrip(b" \t")) for name, value in found]
    head = Head(raw_method.decode(), target, minor, headers, keep_alive=minor == 1)
    _interpret(head)
    _normalize_target(head)
    return head


def _interpret(head: Head) -> None:
    """What the headers mean for framing, routing and the guard. Each of these at most once."""
    seen: set[bytes] = set()
    connection: set[bytes] = set()
    upgrade = b""
    for name, value in head.headers:
        if name not in _MEANT:
            continue
        if name == b"connection":
            connection.update(token.strip().lower() for token in value.split(b","))
            continue
        if name in seen:
            raise BadRequest(f"{name.decode()} is given twice", header=name.decode())
        seen.add(name)
        if name == b"host":
            if not _HOST.fullmatch(value):
                raise BadRequest("Host is malformed; it is a name or an address, and a port")
            head.host = value.decode("ascii")
        elif name == b"content-length":
            if not _LENGTH.fullmatch(value):
                raise BadRequest("Content-Length is not a number of bytes")
            head.content_length = int(value)
        elif name == b"transfer-encoding":
            if value.lower() != b"chunked":
                raise NotImplementedFault("the only transfer coding that is served is chunked")
            head.chunked = True
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise ExpectationFailed("the only expectation that is met is 100-continue")
            head.wants_continue = head.minor == 1
        elif name == b"upgrade":
            upgrade = value.lower()
        elif name == b"origin":
            head.origin = value.decode("latin-1")
        elif name == b"sec-fetch-site":
            head.fetch_site = value.decode("latin-1").lower()
        elif name == b"x-admin-key":
            head.key = value.decode("latin-1")
        elif name == b"authorization" and value[:7].lower() == b"bearer ":
            head.key = head.key or value[7:].strip().decode("latin-1")
    if head.host is None and head.minor == 1:
        raise BadRequest("HTTP/1.1 needs a Host")
    if head.chunked and (head.content_length is not None or head.minor == 0):
        raise BadRequest("a chunked body has no Content-Length and is HTTP/1.1")
    if b"close" in connection or (head.minor == 0 and b"keep-alive" not in connection):
        head.keep_alive = False
    elif head.minor == 0:
        head.keep_alive = True
    head.upgrade = (
        upgrade == b"websocket"
        and b"upgrade" in connection
        and head.method == "GET"
        and head.minor == 1
        and not head.has_body
    )


_MEANT = frozenset(
    {
        b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"upgrade",
        b"origin", b"sec-fetch-site", b"x-admin-key", b"authorization", b"content-type",
    }
)  # fmt: skip


def _normalize_target(head: Head) -> None:
    target = head.target
    if target[:1] == b"/":
        return
    if target == b"*" and head.method == "OPTIONS":
        return
    if absolute := _ABSOLUTE.fullmatch(target):
        if not _HOST.fullmatch(absolute[1]):
            raise BadRequest("the request target names no host")
        head.host = absolute[1].decode("ascii")  # it outranks the header
        path = absolute[2] or b"/"
        head.target = path if path[:1] == b"/" else b"/" + path
        return
    raise BadRequest("the request target is a path that begins with /")


def _line_too_long(limits: HttpLimits) -> HttpFault:
    return UriTooLong(
        f"the request line is over {limits.request_line_bytes_max} bytes",
        limit=limits.request_line_bytes_max,
    )


def _too_large(limits: HttpLimits) -> HttpFault:
    return HeadersTooLarge(
        f"the headers are over {limits.header_bytes_max} bytes", limit=limits.header_bytes_max
    )


class ChunkedReader:
    """A chunked body, byte by byte as the standard has it; extensions and trailers are dropped."""

    _SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
    _LINE_BYTES_MAX = 256
    _TRAILER_BYTES_MAX = 4096
    _CHUNKS_A_CALL = 512

    def __init__(self) -> None:
        self._left = 0
        self._state = "size"
        self._trailer_bytes = 0
        self.done = False

    def feed(self, buffer: bytearray) -> bytes:
        """Take what `buffer` holds of the body out of it, 512 chunks at most in one call; nothing
        means that more bytes are needed, or `done`. Raises BadRequest."""
        out: list[bytes] = []
        at = 0
        while not self.done and len(out) < self._CHUNKS_A_CALL:
            if self._state == "data":
                piece = bytes(buffer[at : at + self._left])
                out.append(piece)
                at += len(piece)
                self._left -= len(piece)
                if self._left:
                    break
                self._state = "data-end"
            if self._state == "data-end":
                if len(buffer) - at < 2:
                    break
                if buffer[at : at + 2] != b"\r\n":
                    raise BadRequest("a chunk is longer than its size said")
                at += 2
                self._state = "size"
            end = buffer.find(b"\n", at, at + self._LINE_BYTES_MAX)
            if end < 0:
                if len(buffer) - at >= self._LINE_BYTES_MAX:
                    raise BadRequest("a chunk's size line is too long")
                break
            if self._state == "size":
                size = self._SIZE.fullmatch(buffer, at, end + 1)
                if size is None:
                    raise BadRequest("a chunk's size is malformed")
                self._left = int(size[1], 16)
                self._state = "data" if self._left else "trailer"
            else:
                self._trailer_bytes += end + 1 - at
                if self._trailer_bytes > self._TRAILER_BYTES_MAX:
                    raise HeadersTooLarge("the body's trailers are too long")
                if buffer[at : end + 1] == b"\r\n":
                    self.done = True
                elif not _HEADERS.fullmatch(buffer, at, end + 1):
                    raise BadRequest("a trailer line is malformed")
            at = end + 1
        del buffer[:at]
        return b"".join(out)


STATUS_LINES: dict[int, bytes] = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}


def render_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """An answer's head. A header that breaks out of its line is our own mistake: ValueError."""
    lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d Status\r\n" % status]
    lines += [b"%b: %b\r\n" % header for header in headers]
    lines.append(b"\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or b"\0" in head:
        raise ValueError("a response header holds a line break")
    return head
