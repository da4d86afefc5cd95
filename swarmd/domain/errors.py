"""Refusals: every way the swarm says no. A dialect's envelope table must name each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar


class SwarmError(Exception):
    """A refusal with plain facts beside it; nothing was changed."""

    code: ClassVar[str] = "error"

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, object] = facts


class Invalid(SwarmError):
    """What was asked is malformed; asking again the same way cannot help."""

    code = "invalid"


class NotFound(SwarmError):
    """The named thing does not exist, or not any more."""

    code = "not_found"


class Conflict(SwarmError):
    """The thing exists, but its present state forbids the move."""

    code = "conflict"


class Unauthorized(SwarmError):
    """A credential is needed and none, or a wrong one, was shown."""

    code = "unauthorized"


class Forbidden(SwarmError):
    """The request may not come from where it came from, whoever sends it."""

    code = "forbidden"


class TooLarge(SwarmError):
    """A body, batch or value is over its bound."""

    code = "too_large"


class Busy(SwarmError):
    """A bound on work in flight is reached; the same request may pass after `retry_after_s`."""

    code = "busy"

    def __init__(self, message: str, *, retry_after_s: int = 1, **facts: object) -> None:
        super().__init__(message, **facts)
        self.retry_after_s = retry_after_s


class Unavailable(SwarmError):
    """This node cannot answer at present: starting, stopping, or without a leader."""

    code = "unavailable"


ALL_ERRORS: tuple[type[SwarmError], ...] = (
    Invalid, NotFound, Conflict, Unauthorized, Forbidden, TooLarge, Busy, Unavailable,
)  # fmt: skip

BY_CODE: dict[str, type[SwarmError]] = {error.code: error for error in ALL_ERRORS}
"""For a refusal that was written down, or came from another node."""


def leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    """The errors of a group, without the groups inside it."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error


@contextmanager
def instead(
    kinds: type[BaseException] | tuple[type[BaseException], ...],
    say: Callable[[BaseException], BaseException],
) -> Iterator[None]:
    """An error of these kinds comes out as what `say` makes of it: alone, out of the groups of the
    nurseries it came through, or beside what else failed. (`raise` within `except*` does not:
    before Python 3.11.4 it makes a group of the one error.)"""
    try:
        yield
    except kinds as error:
        raise say(error) from None
    except BaseExceptionGroup as group:
        found, rest = group.split(kinds)
        if found is None:
            raise
        other = say(next(leaves(found)))
        if rest is None:
            raise other from None
        raise BaseExceptionGroup(group.message, [other, rest]) from None
