"""How the build swarm says no: `{error, hint}`, and a status for each refusal of the domain."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from api.common.surface import Envelope
from swarmd.domain.errors import (
    Busy,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    SwarmError,
    TooLarge,
    Unauthorized,
    Unavailable,
)

STATUSES: dict[type[SwarmError], int] = {
    Invalid: 400,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 400,
    Unauthorized: 401,
    Forbidden: 403,
    Busy: 503,
    Unavailable: 503,
}
_HINTS = {
    400: "see the API's page for what this operation takes",
    401: "send the admin key: X-Admin-Key, or Authorization: Bearer",
    403: "call this surface from where it may be called",
    404: "look at what there is: GET /api/v1/nodes, /api/v1/sessions, /api/v1/queue",
    409: "look at how it stands, and try again",
    503: "try again shortly, here or on another node",
}


class Failure(msgspec.Struct, frozen=True):
    error: str
    hint: str


def _render(status: int, code: str, message: str, facts: Mapping[str, object]) -> Failure:
    return failure(status, message)


def failure(status: int, message: str) -> Failure:
    """What would be right is often said already, behind a semicolon."""
    what, _, right = message.partition("; ")
    return Failure(what, right or _HINTS.get(status, "the node's log says more"))


ENVELOPE = Envelope(STATUSES, _render)
