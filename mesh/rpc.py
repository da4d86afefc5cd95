"""The two ends of a connection: Asking, which dialed it, and Answering, which accepted it.

Only the side that dialed asks; who wants to ask dials a connection of its own. So no two sides ever
number the same thing, and no tie has to be broken when both dial at once. The answering side stops
reading while its answers are not fetched; the asking side always reads, so that neither waits for
the other in turn.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from typing import Any

import trio

from mesh.connection import FLOOD_FACTOR, Connection, Limits, Shared
from mesh.frames import (
    METHOD_CHARS_MAX,
    WORDS_CHARS_MAX,
    Answer,
    Broken,
    Call,
    Cancel,
    Note,
    Open,
    Refusal,
    Reset,
    plain_facts,
)
from mesh.greeting import Met
from mesh.outbox import Parcel
from mesh.streams import Stream, refused
from mesh.wires import Refused, StreamHandler, TimedOut, TooLarge, Unreachable, WireError

log = logging.getLogger(__name__)

SMALL_BYTES_MAX = 64 * 1024
"""A call or an answer up to this size goes with the urgent frames."""
REFUSED_CALLS_MAX = 4
"""An applicant that goes on to call what is not open to it is cut off."""


class _Pending:
    """A call that waits for its answer, in the task that made it."""

    __slots__ = ("answer", "asking", "error", "id", "mark", "over", "parcel", "task")

    def __init__(self, asking: Asking, call_id: int) -> None:
        self.asking = asking
        self.id = call_id
        self.task = trio.lowlevel.current_task()
        self.mark = 0
        self.parcel: Parcel | None = None
        self.over = False
        self.answer = b""
        self.error: WireError | None = None

    def finish(self, answer: bytes, error: WireError | None) -> None:
        self.over = True
        self.answer = answer
        self.error = error
        trio.lowlevel.reschedule(self.task)

    def take(self) -> bytes:
        """The answer, once: the heap of deadlines keeps this object, and shall not keep that."""
        answer, error = self.answer, self.error
        self.answer, self.error = b"", None
        if error is not None:
            raise error
        return answer

    def expire(self) -> None:
        handed_over = self.asking.drop(self)
        words = f"{self.asking.peer} did not answer in time"
        self.finish(b"", TimedOut(words, handed_over=handed_over, peer=self.asking.peer))

    def give_up(self, _: object) -> trio.lowlevel.Abort:
        self.over = True
        self.asking.drop(self)
        return trio.lowlevel.Abort.SUCCEEDED


class Asking(Connection):
    def __init__(self, shared: Shared, met: Met) -> None:
        super().__init__(shared, met)
        self._last_id = 0
        self._pending: dict[int, _Pending] = {}
        self._on |= {Answer: self._on_answer, Refusal: self._on_refusal}

    def send(self, body: bytes) -> bool:
        size = len(body)
        if size > self._body_bytes_max:
            raise self._too_large(size)
        if self.ended is not None or not self._outbox.room(size):
            return False
        self._outbox.push(Note(body))
        self._wake_writer()
        return True

    async def call(self, method: str, body: bytes, deadline: float) -> bytes:
        self._check_request(method, len(body))
        if len(self._pending) >= self._limits.calls_max:
            raise Refused("busy", f"{len(self._pending)} calls to {self.peer} are under way")
        self._last_id += 1
        pending = self._pending[self._last_id] = _Pending(self, self._last_id)
        frame = Call(pending.id, method, body)
        if len(body) <= SMALL_BYTES_MAX:
            pending.mark = self._outbox.push(frame)
        else:
            pending.parcel = Parcel(frame, len(body))
            self._outbox.push_bulk(pending.parcel)
        self._wake_writer()
        self._shared.deadlines.add(deadline, pending)
        await trio.lowlevel.wait_task_rescheduled(pending.give_up)
        return pending.take()

    def open_stream(self, method: str, body: bytes) -> Stream:
        self._check_request(method, len(body))
        if len(self._streams) >= self._limits.streams_max:
            raise Refused("busy", f"{len(self._streams)} streams to {self.peer} are open")
        self._last_id += 1
        self.push(Open(self._last_id, method, body))
        return self._new_stream(self._last_id)

    def drop(self, pending: _Pending) -> bool:
        """Nobody waits any more. True: the other side has the request or will, and is told."""
        self._pending.pop(pending.id, None)
        if pending.parcel is not None and not pending.parcel.taken:
            pending.parcel.withdraw()
            return False
        self.push(Cancel(pending.id))
        return True

    def _pings(self) -> bool:
        return True

    def _lose(self, why: Broken) -> None:
        super()._lose(why)
        words = f"the connection with {self.peer} was lost: {why.message}"
        for pending in self._pending.values():
            taken = pending.mark <= self._outbox.taken
            handed_over = taken if pending.parcel is None else pending.parcel.taken
            pending.finish(b"", Unreachable(words, handed_over=handed_over, peer=self.peer))
        self._pending.clear()

    def _check_request(self, method: str, size: int) -> None:
        if size > self._body_bytes_max:
            raise self._too_large(size)
        if not 0 < len(method) <= METHOD_CHARS_MAX:
            raise ValueError(f"a method has 1 to {METHOD_CHARS_MAX} characters")
        if self.ended is not None:
            raise Unreachable(f"the connection with {self.peer} was lost: {self.ended.message}")
        if not self._outbox.room(size):
            raise Refused("busy", f"too much waits to be sent to {self.peer}")

    def _too_large(self, size: int) -> TooLarge:
        return TooLarge(
            f"a body of {size} bytes; {self.peer} takes {self._body_bytes_max}: use a stream",
            size_bytes=size,
        )

    def _on_answer(self, frame: Answer) -> None:
        pending = self._pending.pop(frame.id, None)
        if pending is not None:
            pending.finish(frame.body, None)

    def _on_refusal(self, frame: Refusal) -> None:
        pending = self._pending.pop(frame.id, None)
        if pending is not None:
            pending.finish(b"", refused(frame))


class _Running:
    """A call or a stream whose handler runs, or waits for its turn."""

    def __init__(self, answering: Answering, request_id: int, method: str, size: int) -> None:
        self.answering = answering
        self.id = request_id
        self.method = method
        self.size = size
        self.scope: trio.CancelScope | None = None
        self.dropped = False

    def cancel(self) -> None:
        self.dropped = True
        if self.scope is not None:
            self.scope.cancel()


class _RunningCall(_Running):
    def __init__(
        self,
        answering: Answering,
        request_id: int,
        method: str,
        size: int,
        work: Coroutine[Any, Any, bytes],
    ) -> None:
        super().__init__(answering, request_id, method, size)
        self._work = work

    def cancel(self) -> None:
        super().cancel()
        if self.scope is None:
            self._work.close()

    async def run(self) -> None:
        answering = self.answering
        try:
            answering.answer(self.id, await self._work)
        except Refused as refusal:
            answering.refuse(self.id, refusal)
        except WireError as error:
            answering.refuse(self.id, Refused("failed", error.message))
        except Exception:
            answering.refuse(self.id, answering.failed(self.method))
        finally:
            answering.over(self)


class _RunningStream(_Running):
    def __init__(
        self,
        answering: Answering,
        request_id: int,
        method: str,
        body: bytes,
        handler: StreamHandler,
        stream: Stream,
    ) -> None:
        super().__init__(answering, request_id, method, len(body))
        self._body = body
        self._handler = handler
        self._stream = stream

    async def run(self) -> None:
        stream = self._stream
        try:
            await self._handler(stream.peer, self._body, stream)
        except Refused as refusal:
            stream.refuse(refusal)
        except WireError as error:
            stream.abort(error.message)
        except Exception:
            stream.refuse(self.answering.failed(self.method))
        else:
            stream.close()
        finally:
            self.answering.over(self)
            if self.dropped:
                stream.abort("the other side's handler was cancelled")


class Answering(Connection):
    """Of an applicant it takes calls alone, and those that are open to applicants."""

    def __init__(self, shared: Shared, met: Met, limits: Limits | None = None) -> None:
        super().__init__(shared, met, limits)
        self._running: dict[int, _Running] = {}
        self._running_streams = 0
        self._held_bytes = 0
        self._refused_calls = 0
        self._on |= {
            Note: self._on_note,
            Call: self._on_call,
            Cancel: self._on_cancel,
            Open: self._on_open,
        }
        if met.applicant:
            self._on |= dict.fromkeys((Note, Open), self._on_closed_to_applicants)

    def answer(self, call_id: int, body: bytes) -> None:
        if self.ended is not None:
            return
        if len(body) > self._body_bytes_max:
            words = f"the answer has {len(body)} bytes, {self._body_bytes_max} fit: use a stream"
            self.refuse(call_id, Refused("too_large", words))
        elif len(body) <= SMALL_BYTES_MAX:
            self._outbox.push(Answer(call_id, body))
            self._wake_writer()
        else:
            self.push_bulk(Parcel(Answer(call_id, body), len(body)))
        size = self._outbox.size
        if size > self._queue_bytes_max:
            self._crowded = True
            if size > FLOOD_FACTOR * self._queue_bytes_max:
                self.close("flood", f"{self.peer} asks for more than it fetches")

    def refuse(self, call_id: int, refusal: Refused) -> None:
        if self.ended is None:
            words, facts = refusal.message[:WORDS_CHARS_MAX], plain_facts(refusal.facts)
            self.push(Refusal(call_id, refusal.code, words, facts))

    def failed(self, method: str) -> Refused:
        """Called where an exception is handled."""
        if self._shared.may_log(f"the handler of {method}"):
            facts = {"peer": self.peer, "method": method}
            log.exception("a handler of the wires broke", extra=facts)
        return Refused("failed", f"the handler of {method} broke; its node's log says how")

    def over(self, running: _Running) -> None:
        if self._running.pop(running.id, None) is None:
            return
        self._held_bytes -= running.size
        self._running_streams -= isinstance(running, _RunningStream)

    def _pings(self) -> bool:
        return self._silent_ticks > 0

    def _lose(self, why: Broken) -> None:
        super()._lose(why)
        for running in list(self._running.values()):
            self._end(running)

    def _end(self, running: _Running) -> None:
        waited = running.scope is None
        running.cancel()
        if waited:
            self.over(running)

    def _has_room(self, size: int) -> bool:
        limits = self._limits
        return (
            len(self._running) < limits.calls_max + limits.streams_max
            and self._held_bytes + size <= limits.held_bytes_max
        )

    def _start(self, running: _RunningCall | _RunningStream) -> None:
        self._running[running.id] = running
        self._held_bytes += running.size
        self._running_streams += isinstance(running, _RunningStream)
        self._shared.workers.start(running)

    def _unknown(self, method: str) -> Refused:
        if self._shared.handlers.closing:
            return Refused("busy", "this node is closing")
        return Refused("unknown_method", f"nobody here handles {method[:METHOD_CHARS_MAX]!r}")

    def _on_note(self, frame: Note) -> None:
        handler = self._shared.handlers.message
        if handler is None:
            self._shared.counts.drops["no_handler"] += 1
        else:
            try:
                handler(self.peer, frame.body)
            except WireError as error:
                raise Broken("message", f"{self.peer}: {error.message}") from None

    def _on_closed_to_applicants(self, frame: Note | Open | Call) -> None:
        raise Broken("applicant", "who shows no certificate may only call what is open to it")

    def _on_call(self, frame: Call) -> None:
        handlers = self._shared.handlers
        handler = handlers.calls.get(frame.method)
        if self.met.applicant and frame.method not in handlers.for_applicants:
            # Which methods there are is no business of strangers.
            self._refused_calls += 1
            if self._refused_calls > REFUSED_CALLS_MAX:
                self._on_closed_to_applicants(frame)
            words = "this needs the certificate of a node of this swarm: join it first"
            self._shared.counts.drops["applicant"] += 1
            self.refuse(frame.id, Refused("no_member", words))
            return
        if handler is None:
            self.refuse(frame.id, self._unknown(frame.method))
            return
        if frame.id in self._running:
            raise Broken("violation", "two requests with one number")
        size = len(frame.body)
        if not self._has_room(size):
            self.refuse(frame.id, Refused("busy", "too many calls are under way"))
            return
        try:
            answer = handler(self.peer, frame.body)
        except Refused as refusal:
            self.refuse(frame.id, refusal)
        except Exception:
            self.refuse(frame.id, self.failed(frame.method))
        else:
            if isinstance(answer, bytes):
                self.answer(frame.id, answer)
            else:
                self._start(_RunningCall(self, frame.id, frame.method, size, answer))

    def _on_cancel(self, frame: Cancel) -> None:
        running = self._running.get(frame.id)
        if running is not None:
            self._end(running)

    def _on_reset(self, frame: Reset) -> None:
        super()._on_reset(frame)
        running = self._running.get(frame.id)
        if running is not None:
            self._end(running)

    def _on_open(self, frame: Open) -> None:
        if frame.id in self._running or frame.id in self._streams:
            raise Broken("violation", "two requests with one number")
        stream = self._new_stream(frame.id)
        handler = self._shared.handlers.streams.get(frame.method)
        limits = self._limits
        if handler is None:
            stream.refuse(self._unknown(frame.method))
        elif (
            max(self._running_streams, len(self._streams) - 1) >= limits.streams_max
            or not self._has_room(len(frame.body))
        ):  # fmt: skip
            stream.refuse(Refused("busy", "too many streams are open"))
        else:
            self._start(_RunningStream(self, frame.id, frame.method, frame.body, handler, stream))
