"""The pipes of all attempts that run: which of them the loop's epoll watches, and since when.

A job that ends at once is never watched: two system calls and a wake-up for each of its streams
would cost more than what it prints. What it left in a pipe is taken when it ends. One that lives
longer is watched, and copied as it prints, from `WATCH_AFTER_NS` on.
"""

from __future__ import annotations

import select
from collections import deque

from swarmd.runner.attempts import Attempt
from swarmd.runner.orders import NS_PER_MS
from swarmd.runner.outputs import Output

WATCH_AFTER_NS = 20 * NS_PER_MS
"""Short enough for who follows a log, and for who prints more than a pipe holds."""


class Pipes:
    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._watched: dict[int, Output] = {}
        self._young: deque[tuple[int, Attempt]] = deque()
        """Attempts by when they are to be watched; those that ended before are passed over."""

    def __contains__(self, pipe: int) -> bool:
        return pipe in self._watched

    def add(self, attempt: Attempt, now_ns: int) -> None:
        self._young.append((now_ns + WATCH_AFTER_NS, attempt))

    def due_ns(self) -> int | None:
        """When `watch_due` has something to do."""
        return self._young[0][0] if self._young else None

    def watch_due(self, now_ns: int) -> None:
        while self._young and self._young[0][0] <= now_ns:
            for output in self._young.popleft()[1].outputs:
                if output.pipe >= 0:
                    self._epoll.register(output.pipe, select.EPOLLIN)
                    self._watched[output.pipe] = output

    def take(self, pipe: int, mask: int) -> None:
        """A slice of what came through a pipe; the rest in later turns, after the others'."""
        output = self._watched[pipe]
        # Only hung up: nobody holds its other end any more, and nothing is left in it.
        if not mask & select.EPOLLIN or output.take() == 0:
            self._forget(output)
            output.close_pipe()

    def close(self, attempt: Attempt) -> None:
        """Take what is left in its pipes, and let go of them."""
        for output in attempt.outputs:
            self._forget(output)
            output.close()

    def _forget(self, output: Output) -> None:
        if self._watched.pop(output.pipe, None) is not None:
            self._epoll.unregister(output.pipe)
