"""A node's wires in the simulated network: what mesh.transport does with sockets and TLS.

Who has no certificate is an applicant, and who is admitted no longer is refused, as there; the
certificates themselves are real, the handshakes are not made.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

import trio

from mesh.frames import plain_facts
from mesh.wal_errors import LogError
from mesh.wires import (
    APPLICANT_MARK,
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
from swarmd.sim.freezing import Gate
from swarmd.sim.network import Network
from swarmd.sim.streams import SimStream


class SimWires:
    """One node's end of it, for as long as the node runs."""

    def __init__(
        self, network: Network, me: str, nursery: trio.Nursery, *, gate: Gate | None = None,
        address: str = "", admit: Callable[[str], str | None] = lambda peer: None,
        pin: Callable[[], bytes | None] = lambda: None,
    ) -> None:  # fmt: skip
        """`pin` tells of which swarm it has a certificate, where certificates count."""
        self.network = network
        self.me = me
        self.host = network.host(me)
        self.nursery = nursery
        self.gate = gate or Gate()
        self.dead = False
        """Its process is being killed: nothing leaves any more."""
        self._address = address or me
        self._admit = admit
        self._pin = pin
        self._calls: dict[str, CallHandler] = {}
        self._for_applicants: set[str] = set()
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

    def listen(self) -> None:
        """It has a certificate, the first or a newer one."""
        if self.network.up.get(self.me) is not self:
            self.plug_in()

    def pull(self, *, silently: bool = False) -> None:
        """The process is gone: its kernel closes what it had open, where it has power."""
        self.dead = True
        if self.network.up.pop(self.me, None) is None:
            return
        for stream in list(self.open):
            if silently:
                self.network.timers.after(self.network.noticed_s, stream.break_off)
            else:
                stream.break_off()
        for other in list(self.network.up.values()):
            if (self.host, other.host) in self.network.cut:
                continue
            if silently:
                self.network.timers.after(self.network.noticed_s, partial(other.notice_gone, self))
            else:
                other.tell(self.me, False, "the connection was closed")

    def notice_gone(self, wires: SimWires) -> None:
        if self.network.up.get(wires.me) is None:
            self.tell(wires.me, False, "silent")

    def tell(self, peer: str, up: bool, reason: str) -> None:
        self.gate(partial(self._tell, peer, up, reason))

    def _tell(self, peer: str, up: bool, reason: str) -> None:
        if not self.dead:
            for watcher in self._watchers:
                watcher(peer, up, reason)

    def notice_silence(self) -> None:
        if self.network.up.get(self.me) is not self:
            return
        for other in list(self.network.addresses.values()):
            if (self.network.host(other), self.host) in self.network.cut:
                self.tell(other, False, "silent")

    def shut_out(self, peer: str, words: str) -> None:
        """It is admitted no longer: what stands with it ends."""
        other = self.network.up.get(peer)
        if other is not None:
            other.tell(self.me, False, words)

    def set_peers(self, peers: Mapping[str, Sequence[str]]) -> None:
        pass  # every name leads somewhere here

    def also_at(self, peer: str, addresses: Sequence[str]) -> None:
        pass

    # Messages

    def send(self, peer: str, body: bytes) -> bool:
        network = self.network
        target = network.up.get(peer)
        if target is None or self.dead:
            return False
        network.on_send(self.me, peer, body)
        network.carry_loosely((self.host, target.host), partial(self._arrive, peer, body))
        return True

    def _arrive(self, peer: str, body: bytes) -> None:
        if self.network.passes(self.me, peer):
            target = self.network.up[peer]
            if target.gate.shut:
                target.gate(partial(target._take_message, self.me, body))
            else:
                target._take_message(self.me, body)

    def _take_message(self, peer: str, body: bytes) -> None:
        handler = self._message
        if handler is None or self.dead or self._admit(peer) is not None:
            return
        self.network.note("message", peer, self.me, body)
        try:
            handler(peer, body)
        except WireError as error:
            self.network.refused.append((self.me, error.message))
        if (settle := self._settle) is not None:
            settle()

    # Calls

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes:
        return await self._ask(self.me, peer, method, body, timeout_s, None)

    async def _ask(
        self, asker: str, peer: str, method: str, body: bytes, timeout_s: float, pin: bytes | None
    ) -> bytes:
        network = self.network
        way = (self.host, network.host(peer))
        call = _Call(self, asker)
        if self.dead:
            raise Unreachable("this process has ended", peer=peer)
        network.carry(way, partial(self._reach, peer, method, body, call, pin))
        try:
            with trio.move_on_after(timeout_s):
                await call.done.wait()
                if isinstance(call.answer, Exception):
                    raise call.answer
                return call.answer
        finally:
            if not call.done.is_set():
                network.carry(way, call.scope.cancel)
        raise TimedOut("no answer in time", handed_over=call.handed_over, peer=peer)

    def _reach(self, peer: str, method: str, body: bytes, call: _Call, pin: bytes | None) -> None:
        network = self.network
        target = network.up.get(peer)
        if target is None:
            host = network.host(peer)
            if host not in network.off and (self.host, host) not in network.cut:
                call.give(Unreachable("nothing listens there", peer=peer))
        elif network.passes(self.me, peer):
            if pin is not None and target._pin() != pin:
                call.give(Unreachable("it belongs to another swarm", peer=peer))
            else:
                target.gate(partial(target._take_call, method, body, call))

    def _take_call(self, method: str, body: bytes, call: _Call) -> None:
        if self.dead:
            return
        applies = call.asker.startswith(APPLICANT_MARK)
        if not applies and (words := self._admit(call.asker)) is not None:
            self._answer(call, Unreachable(words, peer=self.me, refused="shut_out"))
            return
        call.handed_over = True
        self.network.note(method, call.asker, self.me, body)
        handler = self._calls.get(method)
        if handler is None:
            self._answer(call, Refused("unknown_method", f"nobody answers {method}"))
            return
        if applies and method not in self._for_applicants:
            self._answer(call, Refused("no_member", "it takes a certificate to ask this"))
            return
        try:
            found = handler(call.asker, body)
        except Refused as refused:
            self._answer(call, _travelled(refused))
            return
        except LogError as failure:
            # A node ends where its log fails, and whoever asked hears of its end alone.
            found = _failing(failure)
        if isinstance(found, bytes):
            self._answer(call, found)
        else:
            self.nursery.start_soon(self._work, found, call)

    async def _work(self, work: Awaitable[bytes], call: _Call) -> None:
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
            self._answer(call, answer)

    def _answer(self, call: _Call, answer: bytes | Exception) -> None:
        network, caller = self.network, call.caller
        way = (self.host, caller.host)

        def arrive() -> None:
            if way not in network.cut:
                caller.gate(partial(call.give, answer))

        network.carry(way, arrive)

    async def call_address(
        self, address: str, method: str, body: bytes, timeout_s: float, *, pin: bytes | None = None
    ) -> tuple[str, bytes]:
        peer = self.network.addresses.get(address)
        if peer is None:
            raise Unreachable("no such address", address=address)
        asker = self.me if pin is None else f"{APPLICANT_MARK}{self._address} {self.me}"
        return peer, await self._ask(asker, peer, method, body, timeout_s, pin)

    async def open_stream(self, peer: str, method: str, body: bytes, timeout_s: float) -> SimStream:
        way = (self.host, self.network.host(peer))
        await trio.sleep(self.network.delay(way))
        target = self.network.up.get(peer)
        if target is None or not self.network.passes(self.me, peer) or self.dead:
            raise Unreachable("nothing answers there", peer=peer)
        if (words := target._admit(self.me)) is not None:
            raise Unreachable(words, peer=peer, refused="shut_out")
        mine, theirs = SimStream(self, peer, method), SimStream(target, self.me, method)
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
        if applicants:
            self._for_applicants.add(method)

    def handle_message(
        self, handler: MessageHandler, settle: Callable[[], None] | None = None
    ) -> None:
        self._message, self._settle = handler, settle

    def handle_stream(self, method: str, handler: StreamHandler) -> None:
        self._streams[method] = handler

    def on_link(self, watcher: LinkWatcher) -> None:
        self._watchers.append(watcher)

    async def probe(self, peer: str, timeout_s: float) -> bool:
        network = self.network
        await trio.sleep(network.delay((self.host, network.host(peer))))
        target = network.up.get(peer)
        if target is None:
            if network.host(peer) in network.off:
                await trio.sleep(timeout_s)
        elif target.gate.shut or not network.passes(self.me, peer):
            await trio.sleep(timeout_s)
        return self.meets(peer)

    def meets(self, peer: str) -> bool:
        """Whether it is linked, and goes on."""
        target = self.network.up.get(peer)
        return target is not None and not target.gate.shut and self.linked(peer)

    def linked(self, peer: str) -> bool:
        network = self.network
        target = network.up.get(peer)
        if target is None or self.me not in network.up:
            return False
        ways = ((self.host, target.host), (target.host, self.host))
        return (
            not (network.cut and (ways[0] in network.cut or ways[1] in network.cut))
            and not (network.stopped and {self.host, target.host} & network.stopped)
            and target._admit(self.me) is None
            and self._admit(peer) is None
        )

    def about(self, peer: str) -> PeerFacts | None:
        return None


class _Call:
    def __init__(self, caller: SimWires, asker: str) -> None:
        self.caller = caller
        self.asker = asker
        """The caller's id; without a certificate it is an applicant."""
        self.handed_over = False
        self.answer: bytes | Exception = b""
        self.done = trio.Event()
        self.scope = trio.CancelScope()

    def give(self, answer: bytes | Exception) -> None:
        if not self.done.is_set():
            self.answer = answer
            self.done.set()


def _travelled(refused: Refused) -> Refused:
    """As it is when it comes out of real wires."""
    return Refused(refused.code, refused.message, **plain_facts(refused.facts))


async def _failing(error: Exception) -> bytes:
    raise error
