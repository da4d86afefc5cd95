"""How the job queue says no: `{error, context}`, and a status for each refusal of the domain."""

from __future__ import annotations

from collections.abc import Mapping

from api.common.surface import Envelope
from api.jobqueue.shapes import Failure, plain_facts
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
    # The page has one status for a state that forbids the move, and for a request out of bounds.
    Conflict: 400,
    TooLarge: 400,
    Unauthorized: 401,
    Forbidden: 403,
    Busy: 503,
    Unavailable: 503,
}


def _render(status: int, code: str, message: str, facts: Mapping[str, object]) -> Failure:
    return Failure(message, plain_facts(facts))


ENVELOPE = Envelope(STATUSES, _render)
