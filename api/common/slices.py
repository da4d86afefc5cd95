"""Slices: what is translated between two chances for other requests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any, TypeVar

import trio

SLICE_S = 0.001

T = TypeVar("T")
U = TypeVar("U")


async def in_slices(things: Iterable[T], of: Callable[[T], U]) -> AsyncIterator[U]:
    """Translate many without holding the loop for all of them."""
    until = trio.current_time() + SLICE_S
    for thing in things:
        if trio.current_time() >= until:
            await trio.lowlevel.checkpoint()
            until = trio.current_time() + SLICE_S
        yield of(thing)


async def let_go(*lists: list[Any]) -> None:
    """Empty lists that belong together. A thousand jobs may be made of half a million strings;
    freed all at once, when the request ends, they would hold the loop."""
    until = trio.current_time() + SLICE_S
    while any(lists):
        for held in lists:
            if held:
                held.pop()
        if trio.current_time() >= until:
            await trio.lowlevel.checkpoint()
            until = trio.current_time() + SLICE_S
