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
_ADMIN_HINTS = _HINTS | {
    404: "look at what there is: GET /admin/api/payloads, and /admin/api/payloads/status by drone",
}
_NODES_SETTING = " (node.name)"
"""It ends the refusal of a name that is another's; drones have no such setting."""


class Failure(msgspec.Struct, frozen=True):
    error: str
    hint: str


def _render(status: int, code: str, message: str, facts: Mapping[str, object]) -> Failure:
    return _failure(status, message, _HINTS)


def _render_admin(status: int, code: str, message: str, facts: Mapping[str, object]) -> Failure:
    return admin_failure(status, message)


def admin_failure(status: int, message: str) -> Failure:
    return _failure(status, message, _ADMIN_HINTS)


def _failure(status: int, message: str, hints: Mapping[int, str]) -> Failure:
    """What would be right is often said already, behind a semicolon."""
    what, _, right = message.partition("; ")
    right = right.removesuffix(_NODES_SETTING)
    return Failure(what, right or hints.get(status, "the node's log says more"))


ENVELOPE = Envelope(STATUSES, _render)
ADMIN_ENVELOPE = Envelope(STATUSES, _render_admin)
"""Of port 8093."""
