"""Every bound on what a client may send, hold or make this node wait for.

A number that bounds a request stands here and nowhere else; configuration fills it in.
"""

from __future__ import annotations

from dataclasses import dataclass

KIB = 1024
MIB = 1024 * KIB


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """Bounds of all surfaces together; a route may raise `body_bytes_max` for itself."""

    request_line_bytes_max: int = 12 * KIB
    header_bytes_max: int = 16 * KIB
    """Request line and headers together."""
    headers_max: int = 100
    header_timeout_s: float = 10.0
    """From the first byte of a request (or the connection's start) to the end of its headers."""
    body_bytes_max: int = 4 * MIB
    body_timeout_s: float = 60.0
    """What a client may keep us waiting for a body, besides what `body_bytes_per_s_min` earns."""
    body_bytes_per_s_min: int = 16 * KIB
    """Each this many bytes received earn one more second, so that a long upload may be long."""
    idle_timeout_s: float = 75.0
    """Between two requests on one connection."""
    write_stall_timeout_s: float = 30.0
    """A client has to take each 64 KiB of an answer within this."""
    handler_timeout_s: float = 60.0
    """A hot route that has no answer by then is cancelled; streams are not bound by it."""
    connections_max: int = 1000
    connections_per_surface_max: int = 800
    requests_max: int = 256
    """Requests being answered at one time; one more gets 503 at once."""
    streams_max: int = 256
    """Followed logs, event streams and WebSockets open at one time."""
    keep_alive_requests_max: int = 100_000
    websocket_message_bytes_max: int = 1 * MIB
    websocket_ping_s: float = 20.0
    stop_grace_s: float = 1.5
    """What running requests get to finish once the surfaces are closing."""
    backlog: int = 512
