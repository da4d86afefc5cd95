"""Patience: what a node must know before it can go on is asked for until it is told."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from swarmd.domain.errors import Busy, Unavailable

log = logging.getLogger(__name__)

T = TypeVar("T")
AGAIN_S = 1.0


async def patiently(work: Callable[[], Awaitable[T]]) -> T:
    """For as long as it takes: nobody may lead at present, or no replica be in reach."""
    while True:
        try:
            return await work()
        except (Busy, Unavailable) as refusal:
            log.debug("asked for again soon", extra={"reason": refusal.message})
            await trio.sleep(AGAIN_S)
