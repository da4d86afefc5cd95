"""The feed: each event to each subscriber, in order; who falls too far behind is dropped.

What a subscriber wants is named where it can be: then an event costs those alone whom it concerns.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import msgspec
import trio

from swarmd.domain.errors import SwarmError
from swarmd.domain.events import Body, Event

BACKLOG_MAX = 4096
KINDS_MAX = 64
ABOUT_CHARS_MAX = 200

Wants = Callable[[Event], bool]


class FellBehind(SwarmError):
    """The subscriber was too slow and was dropped; watch again after its last event."""

    code = "fell_behind"


class Wanted(msgspec.Struct, frozen=True, array_like=True):
    """Events by name, so that another node can pick them out: of some kinds or of all, about one
    node or one job or about anything."""

    kinds: tuple[str, ...] = ()
    about: str = ""

    @classmethod
    def of(cls, *kinds: type[Body], about: str = "") -> Wanted:
        return cls(tuple(kind.__name__ for kind in kinds), about)

    def __call__(self, event: Event) -> bool:
        body = event.body
        if self.kinds and type(body).__name__ not in self.kinds:
            return False
        return not self.about or self.about in (
            getattr(body, "node_id", None),
            getattr(body, "job_id", None),
        )

    def keys(self) -> list[_Key] | None:
        """Under which an event is looked up that is wanted; None: each has to be looked at."""
        if not self.kinds or len(self.kinds) > KINDS_MAX or len(self.about) > ABOUT_CHARS_MAX:
            return None
        return [(kind, self.about) for kind in self.kinds]


EVERYTHING = Wanted()

_Key = tuple[str, str]


class Outlet(Protocol):
    """Where a subscriber's events go, and what tells one subscriber from another."""

    def put(self, event: Event) -> None:
        """Raises trio.WouldBlock where the subscriber is full, BrokenResourceError where it is
        gone; the same event may come twice in a row."""

    def close(self) -> None:
        """It was dropped."""


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


class _Channel:
    """The outlet of a subscription on this node."""

    def __init__(self, send: trio.MemorySendChannel[Event]) -> None:
        self._send = send
        self.put = send.send_nowait
        self.close = send.close


class Feed:
    """Owned by the cluster's handle, which publishes what was applied."""

    def __init__(self) -> None:
        self._looking: dict[Outlet, dict[Wants | None, None]] = {}
        """Those who look at each event by themselves."""
        self._named: dict[_Key, dict[Outlet, None]] = {}
        self._keys: dict[Outlet, dict[_Key, int]] = {}
        """How often an outlet wants a key: what is wanted may overlap."""

    def publish(self, events: Sequence[Event]) -> None:
        for event in events:
            for outlet, wants in list(self._looking.items()):
                if any(want is None or want(event) for want in list(wants)):
                    self._put(outlet, event)
            if self._named:
                for key in _keys_of(event):
                    for outlet in list(self._named.get(key, ())):
                        self._put(outlet, event)

    def _put(self, outlet: Outlet, event: Event) -> None:
        try:
            outlet.put(event)
        except (trio.WouldBlock, trio.BrokenResourceError):
            self.leave(outlet)
            outlet.close()

    def cut_off(self) -> None:
        """Events were left out: everyone watches again from where it was."""
        for outlet in [*self._looking, *self._keys]:
            self.leave(outlet)
            outlet.close()

    def want(self, outlet: Outlet, wants: Wants | None) -> None:
        """Publish to an outlet what it wants, beside what it wanted before."""
        keys = wants.keys() if isinstance(wants, Wanted) else None
        if keys is None:
            self._looking.setdefault(outlet, {})[wants] = None
            return
        counts = self._keys.setdefault(outlet, {})
        for key in keys:
            counts[key] = counts.get(key, 0) + 1
            self._named.setdefault(key, {})[outlet] = None

    def unwant(self, outlet: Outlet, wants: Wants | None) -> None:
        """Take back one `want`."""
        keys = wants.keys() if isinstance(wants, Wanted) else None
        if keys is None:
            looking = self._looking.get(outlet, {})
            looking.pop(wants, None)
            if not looking:
                self._looking.pop(outlet, None)
            return
        counts = self._keys.get(outlet, {})
        for key in keys:
            if key in counts:
                counts[key] -= 1
                if not counts[key]:
                    del counts[key]
                    self._forget(outlet, key)
        if not counts:
            self._keys.pop(outlet, None)

    def leave(self, outlet: Outlet) -> None:
        self._looking.pop(outlet, None)
        for key in self._keys.pop(outlet, ()):
            self._forget(outlet, key)

    def _forget(self, outlet: Outlet, key: _Key) -> None:
        outlets = self._named.get(key)
        if outlets is not None:
            outlets.pop(outlet, None)
            if not outlets:
                del self._named[key]

    @asynccontextmanager
    async def subscribe(
        self, past: AsyncIterator[Event], after: int, wants: Wants | None
    ) -> AsyncIterator[Subscription]:
        send, receive = trio.open_memory_channel[Event](BACKLOG_MAX)
        outlet = _Channel(send)
        self.want(outlet, wants)
        try:
            with receive:
                yield Subscription(past, receive, after)
        finally:
            self.leave(outlet)
            send.close()
            if isinstance(past, AsyncGenerator):
                await past.aclose()


def _keys_of(event: Event) -> list[_Key]:
    body = event.body
    kind = type(body)
    fields = _ABOUT.get(kind)
    if fields is None:
        names: Any = kind.__struct_fields__
        fields = _ABOUT[kind] = tuple(f for f in ("node_id", "job_id") if f in names)
    name = kind.__name__
    keys = [(name, "")]
    keys += [(name, getattr(body, field)) for field in fields]
    return keys


_ABOUT: dict[type[Any], tuple[str, ...]] = {}
"""What events of a kind are about."""
