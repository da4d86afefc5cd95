"""The feed: each event to each subscriber, in order; who falls too far behind is dropped."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio

from swarmd.domain.errors import SwarmError
from swarmd.domain.events import Event

BACKLOG_MAX = 4096

Wants = Callable[[Event], bool]


class FellBehind(SwarmError):
    """The subscriber was too slow and was dropped; watch again after its last event."""

    code = "fell_behind"


class Subscription:
    """An async iterator of events. `last_seq` is where to resume."""

    def __init__(self, past: AsyncIterator[Event], live: trio.MemoryReceiveChannel[Event],
                 last_seq: int) -> None:  # fmt: skip
        self._past = past
        self._live = live
        self._replayed = False
        self.last_seq = last_seq

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Event:
        while True:
            event = await self._next()
            if event.seq > self.last_seq:
                self.last_seq = event.seq
                return event

    async def _next(self) -> Event:
        if not self._replayed:
            try:
                return await self._past.__anext__()
            except StopAsyncIteration:
                self._replayed = True
        try:
            return await self._live.receive()
        except trio.EndOfChannel:
            raise FellBehind(
                "events came faster than they were taken", after=self.last_seq
            ) from None

    def take_waiting(self, limit: int = BACKLOG_MAX) -> list[Event]:
        """What is there already, without waiting: for a reader that works in batches."""
        taken: list[Event] = []
        if not self._replayed:
            return taken
        while len(taken) < limit:
            try:
                event = self._live.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                break
            if event.seq > self.last_seq:
                self.last_seq = event.seq
                taken.append(event)
        return taken


class Feed:
    """Owned by the cluster's handle, which publishes what was applied."""

    def __init__(self) -> None:
        self._subscribers: dict[trio.MemorySendChannel[Event], Wants | None] = {}

    def publish(self, events: Sequence[Event]) -> None:
        for channel, wants in list(self._subscribers.items()):
            try:
                for event in events:
                    if wants is None or wants(event):
                        channel.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                del self._subscribers[channel]
                channel.close()

    def cut_off(self) -> None:
        """Events were left out: everyone watches again from where it was."""
        for channel in list(self._subscribers):
            channel.close()
        self._subscribers.clear()

    @asynccontextmanager
    async def subscribe(
        self, past: AsyncIterator[Event], after: int, wants: Wants | None
    ) -> AsyncIterator[Subscription]:
        send, receive = trio.open_memory_channel[Event](BACKLOG_MAX)
        self._subscribers[send] = wants
        try:
            with receive:
                yield Subscription(past, receive, after)
        finally:
            self._subscribers.pop(send, None)
            send.close()
            if isinstance(past, AsyncGenerator):
                await past.aclose()
