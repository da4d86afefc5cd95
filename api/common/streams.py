"""Answers without an end of their own, and work that a client's going must not tear.

A stream holds a place among `streams_max`, not among the requests; it ends when its source ends,
when the client goes, and when the surfaces close, and its source is closed in each case.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Protocol, TypeVar, TypeVarTuple, Unpack

import trio

from api.common.surface import TEXT, Headers, Response
from swarmd.domain.errors import Unavailable

if TYPE_CHECKING:
    import quart

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

SHIELDED_S_MAX = 30.0


class Exchange(Protocol):
    """The request being answered, as far as its handlers have to know it."""

    endpoint: str
    status: int

    def become_stream(self) -> None:
        """Leave the requests' places for one of the streams'. Raises Busy when all are taken."""
        ...


current_exchange: ContextVar[Exchange] = ContextVar("current_exchange")


def stream_bytes(
    chunks: AsyncIterator[bytes], *, content_type: str = TEXT, headers: Headers = ()
) -> quart.Response:
    """A Quart answer that sends each chunk as it comes, for as long as they come."""
    import quart

    current_exchange.get().become_stream()
    answer = quart.Response(chunks, content_type=content_type, headers=dict(headers))
    answer.timeout = None
    return answer


def stream_answer(
    chunks: AsyncIterator[bytes],
    *,
    content_type: str = TEXT,
    headers: Headers = (),
    length: int | None = None,
) -> Response:
    """The same for a hot route; `length` where the size is known, as of a blob."""
    return Response(200, b"", content_type, headers, chunks, length)


async def shielded(
    work: Callable[[Unpack[Ts]], Awaitable[T]], *args: *Ts, limit_s: float = SHIELDED_S_MAX
) -> T:
    """Run what commits to its end although the client may go meanwhile; `limit_s` bounds it.
    Unavailable: it takes longer than that, and nobody can tell what of it will be."""
    with trio.move_on_after(limit_s) as scope:
        scope.shield = True
        return await work(*args)
    raise Unavailable(
        f"this was not done within {limit_s:g} s, and may be yet, in part or as a whole: look"
        " before you ask again"
    )
