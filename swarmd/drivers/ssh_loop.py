"""asyncssh's loop upon Trio's. Nothing of asyncio gets out of here: no future, no task, none of its
cancellations; and no callback of its own ends the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncssh
import trio
import trio_asyncio

log = logging.getLogger(__name__)
# It would log each command, which may carry secrets.
asyncssh.set_log_level(logging.CRITICAL)
asyncssh.set_sftp_log_level(logging.CRITICAL)

LINGER_S = 1.0
"""For what was cancelled to end by itself, before nobody waits for it."""
T = TypeVar("T")


class Loop:
    """Where asyncssh runs."""

    def __init__(self, aio: trio_asyncio.TrioEventLoop) -> None:
        self._aio = aio

    async def run(self, coroutine: Coroutine[Any, Any, T], *, linger_s: float = 0.0) -> T:
        """Its result. Cancelled: it may go on for `linger_s`, and where it then has a result, that
        is returned all the same, for the caller to undo; else it is cancelled too. A cancellation
        of asyncio's own, which nobody here asked for, is a connection that went away."""
        with self.inside():
            task = asyncio.ensure_future(coroutine, loop=self._aio)
        done = trio.Event()
        task.add_done_callback(lambda _: done.set())
        try:
            await done.wait()
        except trio.Cancelled:
            with trio.move_on_after(linger_s, shield=True):
                await done.wait()
            if not task.done():
                task.cancel()
                with trio.move_on_after(LINGER_S, shield=True):
                    await done.wait()
            if not task.done() or task.cancelled() or task.exception() is not None:
                raise
        try:
            return task.result()
        except asyncio.CancelledError:
            raise asyncssh.ConnectionLost("Connection closed") from None

    @contextmanager
    def inside(self) -> Iterator[None]:
        """For calls of asyncssh from our own tasks: it asks for the loop that runs, and what it
        starts inherits the answer."""
        token = trio_asyncio.current_loop.set(self._aio)
        try:
            yield
        finally:
            trio_asyncio.current_loop.reset(token)


@asynccontextmanager
async def open_loop() -> AsyncIterator[Loop]:
    async with trio_asyncio.open_loop() as aio:
        # Left to itself, a callback that fails would end the loop, and with it the daemon.
        aio.set_exception_handler(_report)
        yield Loop(aio)


def _report(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    log.warning("a callback of ssh failed", extra={"error": type(error).__name__})
