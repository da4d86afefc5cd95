"""One connection with the runner, from its hello to its loss: requests out, each with its replies.

A request that was under way when the connection went is Lost; every request may be repeated."""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from swarmd.domain.errors import Invalid
from swarmd.drivers.frames import Frame, RunnerFacts


class Lost(Exception):
    """The connection went away under a request; all requests may be repeated."""


class Reply:
    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self.done = trio.Event()


class Connection:
    """One connection, from hello to its loss."""

    def __init__(self, stream: trio.SocketStream, facts: RunnerFacts, rest: bytes) -> None:
        self.stream = stream
        self.facts = facts
        self.rest = rest
        self.replies: dict[int, Reply] = {}
        self.lost = False
        self.replaced = False
        """It ends because we told it to."""
        self._out = bytearray()
        self._wake = trio.Event()
        self._seq = 0

    def send(self, frame: dict[str, Any]) -> None:
        self._out += msgspec.json.encode(frame) + b"\n"
        self._wake.set()

    async def request(self, frame: dict[str, Any]) -> list[Frame]:
        if self.lost:
            raise Lost
        self._seq += 1
        seq, reply = self._seq, Reply()
        self.replies[seq] = reply
        try:
            self.send({**frame, "seq": seq})
            await reply.done.wait()
        finally:
            self.replies.pop(seq, None)
        if not reply.frames or reply.frames[-1].more:
            raise Lost
        if reply.frames[-1].error is not None:
            raise Invalid(f"the runner refused: {reply.frames[-1].error}")
        return reply.frames

    async def write(self) -> None:
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            data, self._out = self._out, bytearray()
            await self.stream.send_all(data)

    def lose(self) -> None:
        self.lost = True
        for reply in self.replies.values():
            reply.done.set()
