"""How the console says no: `{error: {code, message, facts}}`."""

from __future__ import annotations

from collections.abc import Mapping

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
    Unauthorized: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooLarge: 413,
    Busy: 503,
    Unavailable: 503,
}


def _render(status: int, code: str, message: str, facts: Mapping[str, object]) -> object:
    plain = {k: v if isinstance(v, str | int | float | bool) else str(v) for k, v in facts.items()}
    return {"error": {"code": code, "message": message, "facts": plain}}


ENVELOPE = Envelope(STATUSES, _render)
