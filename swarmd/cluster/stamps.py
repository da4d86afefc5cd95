"""Stamps: the time of day that the leader gives to what enters the log.

It never goes backwards, and never stands still: where a clock was ahead, the log is ahead of the
day, and goes on at half the pace until the day has come so far. What waits for a time then waits
twice as long at most, not for as long as the clock was wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

PACE = 0.5


class Stamps:
    def __init__(self, wall_ms: Callable[[], int]) -> None:
        self._wall_ms = wall_ms
        self._ahead: tuple[int, float] | None = None
        """A stamp that was ahead of the day, and Trio's time when it was seen."""

    def now_ms(self, last: int) -> int:
        """Not before `last`, the latest that is known."""
        told, now = self._wall_ms(), trio.current_time()
        if self._ahead is not None:
            stamp, since = self._ahead
            told = max(told, stamp + int((now - since) * 1000 * PACE))
        if last > told:
            self._ahead = (last, now)
        return max(last, told)
