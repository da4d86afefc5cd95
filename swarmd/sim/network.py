"""A network in memory: every message is delayed by chance, and may be lost, doubled or overtaken.

Streams and calls keep what TCP promises; one-way messages do not get even that.
"""

from __future__ import annotations

import hashlib
import inspect
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType

import trio

from mesh.frames import plain_facts
from mesh.wires import (
    Aborted,
    CallHandler,
    LinkWatcher,
    MessageHandler,
    PeerFacts,
    Refused,
    StreamHandler,
    TimedOut,
    Unreachable,
    WireError,
)
from swarmd.sim.clockwork import Timers

NOTICED_S = 1.0
"""After so long a silent link counts as broken."""


@dataclass
class Weather:
    delay_s: tuple[float, float] = (0.0005, 0.002)
    loss: float = 0.0
    doubled: float = 0.0


@dataclass
class Network:
    rng: random.Random
    timers: Timers
    weather: Weather = field(default_factory=Weather)
    cut: set[tuple[str, str]] = field(default_factory=set)
    """Directions in which nothing passes."""
    up: dict[str, SimWires] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    delivered: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Messages that their receiver took for an attack or a mistake."""
    on_send: Callable[[str, str, bytes], None] = lambda source, target, body: None
    in_transit: Callable[[str, str, bytes], bytes] = lambda source, target, data: data
    """What a stream's bytes become on their way."""
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of each kind reached whom."""
    trace: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Over everything that was delivered, and when: two runs that differ differ here."""

    def delay(self) -> float:
        return self.rng.uniform(*self.weather.delay_s)

    def passes(self, source: str, target: str) -> bool:
        return target in self.up and (source, target) not in self.cut

    def note(self, kind: str, source: str, target: str, body: bytes) -> None:
        self.delivered += 1
        self.kinds[kind, target] += 1
        self.trace.update(f"{trio.current_time():.6f} {kind} {source} {target} ".encode() + body)

    def isolate(self, *names: str) -> None:
        """Between these and all others nothing passes."""
        for other in self.addresses.values():
            if other not in names:
                for name in names:
                    self.cut |= {(name, other), (other, name)}
        self._broken()

    def cut_one_way(self, source: str, target: str) -> None:
        self.cut.add((source, target))
        self._broken()

    def heal(self) -> None:
        self.cut.clear()
        for wires in list(self.up.values()):
            for other in list(self.up):
                if other != wires.me:
                    wires.tell(other, True, "the network is back")

    def _broken(self) -> None:
        for wires in list(self.up.values()):
            self.timers.after(NOTICED_S, wires.notice_silence)


class SimWires:
    """One node's end of it, for as long as the node runs."""

    def __init__(self, network: Network, me: str, nursery: trio.Nursery) -> None:
        self.network = network
        self.me = me
        self.nursery = nursery
        self._calls: dict[str, CallHandler] = {}
        self._streams: dict[str, StreamHandler] = {}
        self._message: MessageHandler | None = None
        self._settle: Callable[[], None] | None = None
        self._watchers: list[LinkWatcher] = []
        self.open: dict[SimStream, None] = {}

    def plug_in(self) -> None:
        self.network.up[self.me] = self
        for other in list(self.network.up.values()):
            if other is not self:
                other.tell(self.me, True, "it came up")

    def pull(self) -> None:
        """The process is gone: its kernel closes what it had open."""
        del self.network.up[self.me]
        for stream in list(self.open):
            stream.break_off()
        for other in list(self.network.up.values()):
            if (self.me, other.me) not in self.network.cut:
                other.tell(self.me, False, "the connection was closed")

    def tell(self, peer: str, up: bool, reason: str) -> None:
        for watcher in self._watchers:
            watcher(peer, up, reason)

    def notice_silence(self) -> None:
        if self.network.up.get(self.me) is not self:
            return
        for other in list(self.network.addresses.values()):
            if (other, self.me) in self.network.cut:
                self.tell(other, False, "silent")

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        pass  # every name leads somewhere here

    def also_at(self, peer: str, addresses: Sequence[str]) -> None:
        pass

    # Messages

    def send(self, peer: str, body: bytes) -> bool:
        network = self.network
        if peer not in network.up:
            return False
        network.on_send(self.me, peer, body)
        weather, rng = network.weather, network.rng
        if (self.me, peer) in network.cut or (weather.loss and rng.random() < weather.loss):
            return True
        network.timers.after(network.delay(), partial(self._arrive, peer, body))
        if weather.doubled and rng.random() < weather.doubled:
            network.timers.after(network.delay(), partial(self._arrive, peer, body))
        return True

    def _arrive(self, peer: str, body: bytes) -> None:
        network = self.network
        if not network.passes(self.me, peer):
            return
        handler = network.up[peer]._message
        if handler is None:
            return
        network.note("message", self.me, peer, body)
        try:
            handler(self.me, body)
        except WireError as error:
            network.refused.append((peer, error.message))
        if (settle := network.up[peer]._settle) is not None:
            settle()

    # Calls

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes:
        network = self.network
        call = _Call(self.me)
        network.timers.after(
            network.delay(), partial(self._reach, peer, method, body, call)
        )  # fmt: skip
        try:
            with trio.move_on_after(timeout_s):
                await call.done.wait()
                if isinstance(call.answer, Exception):
                    raise call.answer
                return call.answer
        finally:
            if not call.done.is_set():
                network.timers.after(network.delay(), call.scope.cancel)
        raise TimedOut("no answer in time", handed_over=call.handed_over, peer=peer)

    def _reach(self, peer: str, method: str, body: bytes, call: _Call) -> None:
        network = self.network
        if peer not in network.up:
            call.give(Unreachable("nothing listens there", peer=peer))
        elif network.passes(self.me, peer):
            call.handed_over = True
            network.note(method, self.me, peer, body)
            network.up[peer]._take_call(self.me, method, body, call)

    def _take_call(self, peer: str, method: str, body: bytes, call: _Call) -> None:
        handler = self._calls.get(method)
        if handler is None:
            self._answer(peer, call, Refused("unknown_method", f"nobody answers {method}"))
            return
        try:
            found = handler(peer, body)
        except Refused as refused:
            self._answer(peer, call, _travelled(refused))
            return
        if inspect.isawaitable(found):
            self.nursery.start_soon(self._work, peer, found, call)
        else:
            self._answer(peer, call, found)

    async def _work(self, peer: str, work: Awaitable[bytes], call: _Call) -> None:
        """In a task of this node: it ends with the node, and the caller hears of that."""
        answer: bytes | Exception = Unreachable(
            "the connection was lost", handed_over=True, peer=self.me
        )
        try:
            with call.scope:
                answer = await work
        except Refused as refused:
            answer = _travelled(refused)
        finally:
            self._answer(peer, call, answer)

    def _answer(self, peer: str, call: _Call, answer: bytes | Exception) -> None:
        network = self.network

        def arrive() -> None:
            if (self.me, peer) not in network.cut:
                call.give(answer)

        network.timers.after(network.delay(), arrive)

    async def call_address(
        self, address: str, method: str, body: bytes, timeout_s: float, *, pin: bytes | None = None
    ) -> tuple[str, bytes]:
        peer = self.network.addresses.get(address)
        if peer is None:
            raise Unreachable("no such address", address=address)
        return peer, await self.call(peer, method, body, timeout_s)

    async def open_stream(self, peer: str, method: str, body: bytes, timeout_s: float) -> SimStream:
        await trio.sleep(self.network.delay())
        target = self.network.up.get(peer)
        if target is None or not self.network.passes(self.me, peer):
            raise Unreachable("nothing answers there", peer=peer)
        mine, theirs = SimStream(self, peer), SimStream(target, self.me)
        mine.other, theirs.other = theirs, mine
        self.network.note(method, self.me, peer, body)
        target.nursery.start_soon(target._serve, method, body, theirs)
        return mine

    async def _serve(self, method: str, body: bytes, stream: SimStream) -> None:
        handler = self._streams.get(method)
        try:
            if handler is None:
                raise Refused("unknown_method", f"nobody answers {method}")
            await handler(stream.peer, body, stream)
            await stream.aclose()
        except Refused as refused:
            stream.other.fail(_travelled(refused))
        except (Unreachable, Aborted):
            pass

    def handle_call(self, method: str, handler: CallHandler, *, applicants: bool = False) -> None:
        self._calls[method] = handler

    def handle_message(
        self, handler: MessageHandler, settle: Callable[[], None] | None = None
    ) -> None:
        self._message, self._settle = handler, settle

    def handle_stream(self, method: str, handler: StreamHandler) -> None:
        self._streams[method] = handler

    def on_link(self, watcher: LinkWatcher) -> None:
        self._watchers.append(watcher)

    async def probe(self, peer: str, timeout_s: float) -> bool:
        await trio.sleep(self.network.delay())
        if peer in self.network.up and not self.network.passes(self.me, peer):
            await trio.sleep(timeout_s)
        return self.linked(peer)

    def linked(self, peer: str) -> bool:
        return self.network.passes(self.me, peer) and self.network.passes(peer, self.me)

    def about(self, peer: str) -> PeerFacts | None:
        return None


class _Call:
    def __init__(self, caller: str) -> None:
        self.caller = caller
        self.handed_over = False
        self.answer: bytes | Exception = b""
        self.done = trio.Event()
        self.scope = trio.CancelScope()

    def give(self, answer: bytes | Exception) -> None:
        if not self.done.is_set():
            self.answer = answer
            self.done.set()


class SimStream:
    """One end. What is sent arrives in order, after the delay of its link."""

    other: SimStream

    def __init__(self, wires: SimWires, peer: str) -> None:
        self._wires = wires
        self.peer = peer
        self._arrived: deque[bytes] = deque()
        self._ended = False
        self._error: Exception | None = None
        self._news = trio.Event()
        wires.open[self] = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        network = self._wires.network
        await trio.sleep(network.delay())
        if self._error is not None:
            raise self._error
        while not network.passes(self._wires.me, self.peer):
            if self.peer not in network.up:
                raise Unreachable("the connection was lost", peer=self.peer)
            await trio.sleep(NOTICED_S)
        arrived = network.in_transit(self._wires.me, self.peer, bytes(data))
        network.note("stream", self._wires.me, self.peer, arrived)
        self.other._take(arrived)

    def _take(self, data: bytes) -> None:
        self._arrived.append(data)
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
                return data
            if self._error is not None:
                raise self._error
            if self._ended:
                return b""
            await self._news.wait()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._wake()

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


def _travelled(refused: Refused) -> Refused:
    """As it is when it comes out of real wires."""
    return Refused(refused.code, refused.message, **plain_facts(refused.facts))
