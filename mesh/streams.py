"""One byte stream among many on a connection: nobody sends more than the other gave credit for.

What a stream holds is at most the window it announced; data beyond it ends the connection.
"""

from __future__ import annotations

from collections import deque
from types import TracebackType
from typing import Protocol

import trio

from mesh.frames import (
    CHUNK_BYTES_MAX,
    WINDOW_BYTES_MAX,
    WORDS_CHARS_MAX,
    Broken,
    Credit,
    Data,
    End,
    Frame,
    Refusal,
    Reset,
    Stop,
    append,
    plain_facts,
)
from mesh.outbox import Bulk
from mesh.wires import Aborted, Refused, WireError

MERGED_BYTES_MAX = 4096
"""Small pieces are joined up to this: a thousand of one byte shall not cost a thousand objects."""


class Carrier(Protocol):
    """The connection, as a stream sees it."""

    peer: str

    def push(self, frame: Frame) -> None: ...

    def push_bulk(self, bulk: Bulk) -> None: ...

    def forget_stream(self, stream_id: int) -> None: ...


class Stream:
    def __init__(
        self, carrier: Carrier, stream_id: int, window_in: int, window_out: int, chunk_max: int
    ) -> None:
        self._carrier = carrier
        self._id = stream_id
        self._wake_reader = trio.lowlevel.ParkingLot()
        self._wake_sender = trio.lowlevel.ParkingLot()
        self._failure: WireError | None = None
        self._closed = False

        self._window = window_in
        self._granted = window_in
        self._eaten = 0
        self._chunks: deque[memoryview] = deque()
        self._receiving = False
        self._heard_end = False

        self._credit = window_out
        self._chunk_max = min(CHUNK_BYTES_MAX, chunk_max)
        self._out: memoryview | None = None
        self._ending = False
        self._sent_end = False
        self._stopped: Aborted | None = None
        self._offered = False

    @property
    def peer(self) -> str:
        return self._carrier.peer

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._out is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        self._check_sending()
        view = memoryview(data).cast("B")
        if not view:
            return
        self._out = view
        self._offer()
        try:
            while self._out is not None:
                await self._wake_sender.park()
                if self._out is not None:
                    self._check_sending()
        finally:
            self._out = None
            self._offer()

    async def send_eof(self) -> None:
        if self._out is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        await trio.lowlevel.checkpoint()
        if not self._ending:
            self._check_sending()
            self._end()

    async def receive_some(self, size_max: int | None = None) -> bytes:
        if size_max is not None and size_max < 1:
            raise ValueError("size_max is at least 1")
        if self._receiving:
            raise trio.BusyResourceError("another task is receiving from this stream")
        await trio.lowlevel.checkpoint()
        self._receiving = True
        try:
            while not self._chunks:
                if self._failure is not None:
                    raise self._failure
                if self._closed:
                    raise trio.ClosedResourceError("this side closed the stream")
                if self._heard_end:
                    return b""
                await self._wake_reader.park()
        finally:
            self._receiving = False
        return self._eat(size_max)

    def abort(self, reason: str) -> None:
        if not self._closed and self._failure is None:
            self._carrier.push(Reset(self._id, "", reason[:WORDS_CHARS_MAX]))
        self._void()

    def refuse(self, refusal: Refused) -> None:
        """As abort; the other side gets Refused."""
        if not self._closed and self._failure is None:
            words = refusal.message[:WORDS_CHARS_MAX]
            facts = plain_facts(refusal.facts)
            self._carrier.push(Reset(self._id, refusal.code or "failed", words, facts))
        self._void()

    async def aclose(self) -> None:
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        if self._closed or self._failure is not None:
            self._void()
            return
        self._closed = True
        self._chunks.clear()
        if not self._heard_end:
            self._carrier.push(Stop(self._id, "the other side closed the stream"))
        if not self._ending and self._stopped is None:
            self._end()
        self._wake()
        self._leave_if_done()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            await self.aclose()
        else:
            self.abort("the other side gave up")

    # What the connection tells.

    def fill(self, buffer: bytearray) -> bool:
        self._offered = False
        if not self._has_piece():
            return False
        if self._out is not None:
            size = min(self._chunk_max, len(self._out), self._credit)
            append(buffer, Data(self._id, bytes(self._out[:size])))
            self._credit -= size
            self._out = self._out[size:] if size < len(self._out) else None
            if self._out is None:
                self._wake_sender.unpark_all()
        else:
            append(buffer, End(self._id))
            self._sent_end = True
            self._leave_if_done()
        self._offered = self._has_piece()
        return self._offered

    def hear_data(self, body: bytes) -> None:
        self._granted -= len(body)
        if self._granted < 0 or self._heard_end:
            raise Broken("violation", "more of a stream than there was credit for")
        if not body or self._closed:
            return
        if self._chunks and len(self._chunks[-1]) + len(body) <= MERGED_BYTES_MAX:
            self._chunks[-1] = memoryview(bytes(self._chunks[-1]) + body)
        else:
            self._chunks.append(memoryview(body))
        self._wake_reader.unpark_all()

    def hear_end(self) -> None:
        self._heard_end = True
        self._wake_reader.unpark_all()
        self._leave_if_done()

    def hear_stop(self, reason: str) -> None:
        self._stopped = Aborted(f"{self.peer} reads no further: {reason[:WORDS_CHARS_MAX]}")
        self._wake_sender.unpark_all()
        self._leave_if_done()

    def hear_reset(self, frame: Reset) -> None:
        failure = refused(frame) if frame.code else Aborted(frame.message[:WORDS_CHARS_MAX])
        self._chunks.clear()
        self.fail(failure)
        self._carrier.forget_stream(self._id)

    def hear_credit(self, size: int) -> None:
        self._credit += size
        if size <= 0 or self._credit > WINDOW_BYTES_MAX:
            raise Broken("violation", "credit for a stream that cannot be")
        self._offer()

    def fail(self, failure: WireError) -> None:
        """Both directions are over; what came before can still be read."""
        if self._failure is None:
            self._failure = failure
        self._wake()

    # Inside.

    def _eat(self, size_max: int | None) -> bytes:
        chunk = self._chunks[0]
        if size_max is not None and size_max < len(chunk):
            self._chunks[0] = chunk[size_max:]
            chunk = chunk[:size_max]
        else:
            self._chunks.popleft()
        self._eaten += len(chunk)
        if self._eaten * 2 >= self._window and not self._heard_end and self._failure is None:
            self._carrier.push(Credit(self._id, self._eaten))
            self._granted += self._eaten
            self._eaten = 0
        return bytes(chunk)

    def _check_sending(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._stopped is not None:
            raise self._stopped
        if self._ending or self._closed:
            raise trio.ClosedResourceError("this side ended the stream")

    def _end(self) -> None:
        self._ending = True
        self._offer()

    def _has_piece(self) -> bool:
        if self._failure is not None or self._stopped is not None:
            return False
        if self._out is not None:
            return self._credit > 0
        return self._ending and not self._sent_end

    def _offer(self) -> None:
        if not self._offered and self._has_piece():
            self._offered = True
            self._carrier.push_bulk(self)

    def _void(self) -> None:
        self._closed = True
        self._chunks.clear()
        if self._failure is None:
            self._failure = Aborted("this side gave the stream up")
        self._wake()
        self._carrier.forget_stream(self._id)

    def _leave_if_done(self) -> None:
        if (self._sent_end or self._stopped is not None) and (self._heard_end or self._closed):
            self._carrier.forget_stream(self._id)

    def _wake(self) -> None:
        self._wake_reader.unpark_all()
        self._wake_sender.unpark_all()


def refused(frame: Refusal | Reset) -> Refused:
    refusal = Refused(frame.code, frame.message[:WORDS_CHARS_MAX])
    refusal.facts.update(frame.facts)
    return refusal
