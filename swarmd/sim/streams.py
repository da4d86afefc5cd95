"""Streams of the simulated network: bytes arrive in order, after the delay of their way.

A sender waits while the reader is behind; a reader learns of a process that ended, not of silence.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING

import trio

from mesh.wires import Aborted, Unreachable

if TYPE_CHECKING:
    from swarmd.sim.wires import SimWires

CLOG_LOOK_S = 0.05
STREAM_BYTES_MAX = 1 << 20
"""A sender waits while so much was not read."""


class SimStream:
    """One end. What is sent arrives in order, after the delay of its link."""

    other: SimStream

    def __init__(self, wires: SimWires, peer: str, method: str) -> None:
        self._wires = wires
        self.method = method
        self.peer = peer
        self._arrived: deque[bytes] = deque()
        self._arrived_bytes = 0
        self._ended = False
        self._error: Exception | None = None
        self._news = trio.Event()
        wires.open[self] = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        network, me = self._wires.network, self._wires.me
        way = (self._wires.host, network.host(self.peer))
        await trio.sleep(network.delay(way))
        self._check()
        while way in network.clogged or not network.passes(me, self.peer):
            if self.peer not in network.up:
                raise Unreachable("the connection was lost", peer=self.peer)
            await trio.sleep(CLOG_LOOK_S if way in network.clogged else network.noticed_s)
            self._check()
        arrived = network.in_transit(self.method, me, self.peer, bytes(data))
        network.note("stream", me, self.peer, arrived)
        other = self.other
        other._take(arrived)
        while other._arrived_bytes > STREAM_BYTES_MAX and self._error is None:
            await other._news.wait()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _take(self, data: bytes) -> None:
        self._arrived.append(data)
        self._arrived_bytes += len(data)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = trio.Event()

    async def send_eof(self) -> None:
        self.other._ended = True
        self.other._wake()

    async def receive_some(self, size_max: int | None = None) -> bytes:
        while True:
            if self._arrived:
                data = self._arrived.popleft()
                if size_max is not None and len(data) > size_max:
                    self._arrived.appendleft(data[size_max:])
                    data = data[:size_max]
                full = self._arrived_bytes > STREAM_BYTES_MAX
                self._arrived_bytes -= len(data)
                if full:
                    self._wake()
                return data
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._news.wait()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake()
        self.other._wake()

    def break_off(self) -> None:
        """The process at this end is gone."""
        self._wires.open.pop(self, None)
        self.other.fail(Unreachable("the connection was lost", peer=self._wires.me))

    def abort(self, reason: str) -> None:
        self.other.fail(Aborted(reason))

    async def aclose(self) -> None:
        self._wires.open.pop(self, None)
        self.other._ended = True
        self.other._wake()

    async def __aenter__(self) -> SimStream:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._wires.open.pop(self, None)
        if kind is None:
            await self.aclose()
        else:
            self.abort("the other side gave up")
