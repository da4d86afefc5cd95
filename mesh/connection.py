"""One connection between two nodes that have met: its reader and writer, its pulse, its streams.

Whatever the other side does ends at most this connection, with a reason that is kept and counted.
"""

from __future__ import annotations

import logging
import math
import ssl
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec
import trio

from mesh.frames import (
    ENVELOPE_BYTES_MAX,
    KINDS,
    WORDS_CHARS_MAX,
    Broken,
    Bye,
    Credit,
    Data,
    End,
    Frame,
    Ping,
    Pong,
    Reset,
    Stop,
)
from mesh.greeting import Met
from mesh.outbox import Bulk, Outbox
from mesh.pipes import WRITE_BYTES_MAX
from mesh.pool import Deadlines, Workers
from mesh.streams import Stream
from mesh.wires import CallHandler, MessageHandler, StreamHandler, Unreachable

log = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
FLOOD_FACTOR = 4
"""What was under way already when a queue is full may exceed its bound so far."""
_FRAMES_PER_STEP = 128
_PAUSE_S = 0.001
_LOOKS = 10
_ORDINARY = frozenset({"bye", "closing", "done", "handler", "lost", "replaced"})
"""Ends that are counted, and no reason for a warning, or none beside the one there is."""


class Limits(msgspec.Struct, frozen=True):
    """The bounds of each connection. Sizes of frames and windows are told to the other side."""

    frame_bytes_max: int = 1024 * 1024
    """The largest body of a message, call or answer."""
    window_bytes: int = 256 * 1024
    queue_bytes_max: int = 16 * 1024 * 1024
    queue_frames_max: int = 16 * 1024
    calls_max: int = 4096
    streams_max: int = 64
    held_bytes_max: int = 64 * 1024 * 1024
    """Bodies of calls whose handlers run."""
    keepalive_s: float = 1.0
    silence_s: float = 3.0
    """A peer that was not heard for so long is gone."""
    life_bytes_max: int = 2**62
    """So much may come over one connection in all its life."""


class WireCounts(msgspec.Struct):
    """Since the transport was opened."""

    bytes_in: int = 0
    bytes_out: int = 0
    frames_in: int = 0
    writes: int = 0
    accepted: int = 0
    dialed: int = 0
    dials_failed: int = 0
    drops: Counter[str] = msgspec.field(default_factory=Counter)
    """Connections ended and frames thrown away, by reason."""


class Handlers:
    def __init__(self) -> None:
        self.calls: dict[str, CallHandler] = {}
        self.for_applicants: set[str] = set()
        """Methods that may be called without a certificate."""
        self.streams: dict[str, StreamHandler] = {}
        self.message: MessageHandler | None = None
        self.settle: Callable[[], None] | None = None
        """Called behind the last of the messages that came together."""
        self.closing = False

    def close(self) -> None:
        """Those who handled are gone, and must not be called any more."""
        self.closing = True
        self.calls.clear()
        self.for_applicants.clear()
        self.streams.clear()
        self.message = self.settle = None


class Shared:
    """What all connections of a transport have in common."""

    def __init__(self, limits: Limits, nursery: trio.Nursery) -> None:
        self.limits = limits
        self.counts = WireCounts()
        self.handlers = Handlers()
        self.workers = Workers(nursery)
        self.deadlines = Deadlines()
        self._logged_at: dict[str, float] = {}

    def complain(self, why: Broken, address: str, peer: str = "") -> None:
        """Count why a connection ended, or was none; a warning of each sort once a minute."""
        self.counts.drops[why.reason] += 1
        if why.reason not in _ORDINARY and self.may_log(why.reason):
            facts = {"reason": why.reason, "words": why.message, "address": address, "peer": peer}
            count = self.counts.drops[why.reason]
            log.warning("a connection between nodes was dropped", extra={**facts, "count": count})

    def may_log(self, sort: str) -> bool:
        """Once a minute for each sort: what others do must not fill the log. Sorts are few."""
        now = trio.current_time()
        last = self._logged_at.get(sort)
        if last is not None and now - last < LOG_EVERY_S:
            return False
        self._logged_at[sort] = now
        return True


class Connection:
    """Either side. `run` returns when it is over; `ended` then says why."""

    def __init__(self, shared: Shared, met: Met, limits: Limits | None = None) -> None:
        self._shared = shared
        self._limits = limits = limits or shared.limits
        self._pipe = met.pipe
        self.met = met
        self.peer = met.peer
        self.ended: Broken | None = None
        self.rtt_last_s: float | None = None
        self.rtt_smoothed_s: float | None = None
        self._body_bytes_max = min(limits.frame_bytes_max, met.hello.frame_bytes_max)
        self._queue_bytes_max = limits.queue_bytes_max
        self._outbox = Outbox(limits.queue_bytes_max, limits.queue_frames_max)
        self._streams: dict[int, Stream] = {}
        self._scope = trio.CancelScope()
        self._writer: trio.lowlevel.Task | None = None
        self._progress: trio.Event | None = None
        self.lost = trio.Event()
        """It has ended, and whoever used it was told."""
        self._answered = trio.Event()
        self._left_bytes = limits.life_bytes_max
        self._heard = True
        self._wrote_at = -math.inf
        self._crowded = False
        """More answers wait than may."""
        self._paused = False
        self._silent_ticks = 0
        self._nonce = 0
        self._pinged_at: float | None = None
        self._on: dict[type[Any], Callable[[Any], None]] = {
            **dict.fromkeys(KINDS, self._on_misplaced),
            Bye: self._on_bye,
            Ping: self._on_ping,
            Pong: self._on_pong,
            Data: self._on_data,
            End: self._on_end,
            Stop: self._on_stop,
            Reset: self._on_reset,
            Credit: self._on_credit,
        }

    async def run(self) -> None:
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._write)
                    await self._guard(self._read)
        finally:
            if self.ended is None:
                self.ended = Broken("closing", "this side was stopped")
            self._pipe.close()
            self._lose(self.ended)

    def close(self, reason: str, message: str) -> None:
        if self.ended is None:
            self.ended = Broken(reason, message)
        self._scope.cancel()

    async def part(self, message: str) -> None:
        """Say that nothing follows and wait until it is written; the caller bounds the wait."""
        self.push(Bye("closing", message))
        while (self._outbox.size or self._pipe.pending) and self.ended is None:
            await self._wait_for_progress()

    def tick(self) -> None:
        """Once in each keepalive_s. Silence is counted in ticks: a process that was stopped itself
        must not take its own absence for that of others."""
        limits = self._limits
        self._silent_ticks = 0 if self._heard else self._silent_ticks + 1
        self._heard = False
        if self._silent_ticks * limits.keepalive_s >= limits.silence_s:
            self.close("silent", f"nothing was heard of {self.peer} for {limits.silence_s} s")
        elif self._pinged_at is None and self._pings():
            self.ping()

    def ping(self) -> None:
        self._nonce += 1
        self._pinged_at = trio.current_time()
        self.push(Ping(self._nonce))

    async def answers(self, within_s: float) -> bool:
        """Is there a process at the other end? Its connection may end meanwhile: no. One that is
        slow to send what was asked for before is there, too. Looked at in steps, so that a process
        that was held up itself does not take its own absence for the other's."""
        self._answered = answered = trio.Event()
        self.ping()
        before = self._left_bytes
        for look in range(_LOOKS):
            if look == _LOOKS // 2:
                # What was under way when it was asked has come by now.
                before = self._left_bytes
            with trio.move_on_after(within_s / _LOOKS):
                await answered.wait()
                break
        else:
            return self._paused or self._left_bytes != before
        return self.ended is None

    def push(self, frame: Frame) -> None:
        """Takes any frame: what is sent by choice asks for room first."""
        self._outbox.push(frame)
        self._wake_writer()

    def push_bulk(self, bulk: Bulk) -> None:
        self._outbox.push_bulk(bulk)
        self._wake_writer()

    def forget_stream(self, stream_id: int) -> None:
        self._streams.pop(stream_id, None)

    def _pings(self) -> bool:
        raise NotImplementedError

    def _lose(self, why: Broken) -> None:
        self._answered.set()
        self.lost.set()
        if self._progress is not None:
            self._progress.set()
        failure = Unreachable(
            f"the connection with {self.peer} was lost: {why.message}",
            handed_over=True,
            peer=self.peer,
        )
        for stream in list(self._streams.values()):
            stream.fail(failure)
        self._streams.clear()

    async def _guard(self, task: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            await task()
        except Broken as broken:
            self.close(broken.reason, broken.message)
        except ssl.SSLError as error:
            self.close("tls", f"TLS failed: {error.reason}")
        except (OSError, trio.ClosedResourceError) as error:
            self.close("lost", str(error))
        except Exception:
            if self._shared.may_log("handler"):
                log.exception("the handler of messages broke", extra={"peer": self.peer})
            self.close("handler", "a handler broke")

    async def _read(self) -> None:
        counts, on, frames = self._shared.counts, self._on, self.met.rest
        decoder = self.met.decoder
        decoder.frame_bytes_max = self._limits.frame_bytes_max + ENVELOPE_BYTES_MAX
        receive, feed, handlers = self._pipe.receive, decoder.feed, self._shared.handlers
        while True:
            counts.frames_in += len(frames)
            for number, frame in enumerate(frames, 1):
                on[type(frame)](frame)
                if self._crowded:
                    await self._relieve()
                elif number % _FRAMES_PER_STEP == 0:
                    await trio.lowlevel.checkpoint()
            if frames and handlers.settle is not None:
                handlers.settle()
            if self._outbox.size > FLOOD_FACTOR * self._queue_bytes_max:
                raise Broken("flood", f"{self.peer} asks for more than it fetches")
            data = await receive()
            if not data:
                raise Broken("lost", f"{self.peer} ended the connection")
            self._heard = True
            counts.bytes_in += len(data)
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                raise Broken("flood", f"{self.peer} has sent more than it may")
            if self._pipe.pending:
                self._wake_writer()
            frames = feed(data)

    async def _relieve(self) -> None:
        """More waits than may: nothing further is read until half of it has gone."""
        self._paused = True
        try:
            while self._outbox.size > self._queue_bytes_max // 2:
                await self._wait_for_progress()
        finally:
            self._paused = self._crowded = False

    async def _write(self) -> None:
        outbox, send = self._outbox, self._pipe.send
        while True:
            if not outbox and not self._pipe.pending:
                self._writer = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(self._leave_writing)
            buffer = outbox.take()
            await send(buffer)
            self._note_written(len(buffer))
            if self._paused:
                self._heard = True
            if outbox:
                await trio.lowlevel.checkpoint()

    def _leave_writing(self, _: object) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _note_written(self, size: int) -> None:
        self._outbox.written()
        counts = self._shared.counts
        counts.writes += 1
        counts.bytes_out += size
        if self._progress is not None:
            self._progress.set()
            self._progress = None

    def _write_now(self) -> None:
        """What comes after a pause is written at once: waking the writer would take a turn of the
        loop. In a rush, when many leave in one write, the writer does it."""
        outbox, now = self._outbox, trio.current_time()
        if now - self._wrote_at < _PAUSE_S or outbox.bulky or outbox.size > WRITE_BYTES_MAX:
            return
        self._wrote_at = now
        buffer = outbox.take()
        try:
            self._pipe.send_now(buffer)
        except ssl.SSLError as error:
            self.close("tls", f"TLS failed: {error.reason}")
        except OSError as error:
            self.close("lost", str(error))
        self._note_written(len(buffer))

    def _wake_writer(self) -> None:
        if self._writer is not None and self._outbox:
            self._write_now()
        if self._writer is not None and (self._outbox or self._pipe.pending):
            trio.lowlevel.reschedule(self._writer)
            self._writer = None

    async def _wait_for_progress(self) -> None:
        if self._progress is None:
            self._progress = trio.Event()
        await self._progress.wait()

    def _on_bye(self, frame: Bye) -> None:
        words = f"{self.peer} says: {frame.message[:WORDS_CHARS_MAX]}"
        raise Broken("bye", words)

    def _on_ping(self, frame: Ping) -> None:
        self.push(Pong(frame.nonce))

    def _on_pong(self, frame: Pong) -> None:
        if self._pinged_at is None or frame.nonce != self._nonce:
            return
        rtt_s = trio.current_time() - self._pinged_at
        self._pinged_at = None
        self._answered.set()
        self.rtt_last_s = rtt_s
        before_s = self.rtt_smoothed_s
        self.rtt_smoothed_s = rtt_s if before_s is None else before_s + (rtt_s - before_s) / 8

    def _on_misplaced(self, frame: Frame) -> None:
        raise Broken("violation", f"{type(frame).__name__} is no frame for this side")

    # A stream that this side has forgotten may be spoken of for a while.

    def _on_data(self, frame: Data) -> None:
        if stream := self._streams.get(frame.id):
            stream.hear_data(frame.body)

    def _on_end(self, frame: End) -> None:
        if stream := self._streams.get(frame.id):
            stream.hear_end()

    def _on_stop(self, frame: Stop) -> None:
        if stream := self._streams.get(frame.id):
            stream.hear_stop(frame.reason)

    def _on_reset(self, frame: Reset) -> None:
        if stream := self._streams.get(frame.id):
            stream.hear_reset(frame)

    def _on_credit(self, frame: Credit) -> None:
        if stream := self._streams.get(frame.id):
            stream.hear_credit(frame.size)

    def _new_stream(self, stream_id: int) -> Stream:
        window = self._limits.window_bytes
        stream = Stream(self, stream_id, window, self.met.hello.window_bytes, self._body_bytes_max)
        self._streams[stream_id] = stream
        return stream
