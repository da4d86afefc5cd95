"""What a replica has to send to a node that it serves: it waits in order, and has a bound.

A node that does not take it is cut off; it begins anew where it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from mesh.wires import ByteStream, Refused, WireError
from swarmd.cluster import sessions as words
from swarmd.cluster.feed import Feed, Wanted
from swarmd.domain.events import Event
from swarmd.state.machine import Applied


@dataclass(slots=True, eq=False)
class Outcome:
    seq: int
    applied: Applied
    index: int
    event_seq: int


class ServedNode:
    """One node's session, as an outlet of the feed too."""

    def __init__(
        self, peer: str, boot: int, stream: ByteStream, feed: Feed, backlog_max: int
    ) -> None:
        self.peer = peer
        self.boot = boot
        self.stream = stream
        self.scope = trio.CancelScope()
        self.since = 0
        self.greeted = False
        self.why = ""
        """Why this side ended it."""
        self._feed = feed
        self._backlog_max = backlog_max
        self._wanted: dict[Wanted, None] = {}
        self._waiting: deque[bytes | Event | Outcome] = deque()
        self._wake = trio.Event()
        self._last_seq = 0

    def end(self, why: str) -> None:
        self.why = self.why or why
        self.scope.cancel()

    # What is to be sent.

    def push(self, frame: bytes) -> None:
        self._queue(frame)

    def take(self, outcome: Outcome) -> None:
        self._queue(outcome)

    def put(self, event: Event) -> None:
        if event.seq > self._last_seq:  # it may be wanted for more than one reason
            self._last_seq = event.seq
            self._queue(event)

    def close(self) -> None:
        self.end("what was sent was not taken")

    def want(self, more: Sequence[Wanted], less: Sequence[Wanted]) -> None:
        for wanted in less:
            if wanted in self._wanted:
                del self._wanted[wanted]
                self._feed.unwant(self, wanted)
        for wanted in more:
            if wanted in self._wanted:
                continue
            if len(self._wanted) >= words.WANTED_MAX:
                raise Refused("invalid", "too much is wanted at once")
            self._wanted[wanted] = None
            self._feed.want(self, wanted)

    def _queue(self, item: bytes | Event | Outcome) -> None:
        if len(self._waiting) >= self._backlog_max:
            self.end("what was sent was not taken")
            return
        self._waiting.append(item)
        self._wake.set()

    # Sending.

    async def greet(self, kept: list[tuple[int, bytes]], welcome: words.Welcome) -> None:
        for start in range(0, len(kept), words.OUTCOMES_PER_MESSAGE):
            part = tuple(kept[start : start + words.OUTCOMES_PER_MESSAGE])
            await self.stream.send_all(words.framed(words.Outcomes(part, 0, 0)))
        await self.stream.send_all(words.framed(welcome))
        self.greeted = True

    async def write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._waiting:
                    await self.stream.send_all(self._next_bytes())
        except WireError as error:
            self.end(error.message)

    def _next_bytes(self) -> bytes:
        """Some of what waits, in its order; what is of one sort shares a message."""
        sent = bytearray()
        waiting = self._waiting
        while waiting and len(sent) < words.BATCH_BYTES_MAX:
            first = waiting.popleft()
            if isinstance(first, bytes):
                sent += first
            elif isinstance(first, Event):
                events = [first]
                while waiting and len(events) < words.EVENTS_PER_MESSAGE:
                    following = waiting[0]
                    if not isinstance(following, Event):
                        break
                    events.append(following)
                    waiting.popleft()
                sent += words.framed(words.Events(tuple(events)))
            else:
                sent += self._outcomes(first)
        return bytes(sent)

    def _outcomes(self, last: Outcome) -> bytes:
        waiting = self._waiting
        kept = [(last.seq, words.outcome_kept(last.applied))]
        size = len(kept[0][1])
        while waiting and len(kept) < words.OUTCOMES_PER_MESSAGE and size < words.BATCH_BYTES_MAX:
            following = waiting[0]
            if not isinstance(following, Outcome):
                break
            waiting.popleft()
            last = following
            kept.append((last.seq, words.outcome_kept(last.applied)))
            size += len(kept[-1][1])
        return words.framed(words.Outcomes(tuple(kept), last.index, last.event_seq))
