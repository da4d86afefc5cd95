"""Proposals: this node's requests on their way into the log, and the only forwarding there is.

A request is sent until its own replica has applied it, to whoever leads by then; the machine knows
it by its id and applies it once. Between a refusal and an unknown outcome there is always a word.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import trio

from mesh.wires import Refused, WireError, Wires
from swarmd.cluster.handle import Leadership
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, SwarmError, TooLarge, Unavailable
from swarmd.domain.jobs import ENTRY_BYTES_MAX, NodeId
from swarmd.state.commands import SINCE, Command, Request, RequestId
from swarmd.state.machine import Applied
from swarmd.state.requests import outcome_of
from swarmd.state.store import encode_request

log = logging.getLogger(__name__)

METHOD = "propose"
FORWARD_REQUESTS_MAX = 512
FORWARD_BYTES_MAX = 400_000
FORWARDS_MAX = 16
RETRY_S = 0.05


@dataclass(frozen=True)
class ProposalSettings:
    in_flight_max: int = 2048
    """Requests of this node that are not applied yet; one more is refused."""
    wait_s_max: float = 10.0
    """For a leader, and for the log."""
    forward_timeout_s: float = 5.0


class Entering(Protocol):
    """The way into the log, on the node that leads."""

    def enter(self, requests: Sequence[msgspec.Raw]) -> None:
        """Into the log of the leader's. Unavailable: this node does not lead, or is handing over;
        Busy: too much is under way. Then none of them is in it."""

    def leadership(self) -> Leadership: ...

    def cluster_version(self) -> int: ...


@dataclass(slots=True, eq=False)
class _Pending:
    id: RequestId
    raw: msgspec.Raw
    command: type[Any]
    term: int | None
    done: trio.Event = field(default_factory=trio.Event)
    value: Any = None
    refusal: SwarmError | None = None
    sent: bool = False


class Proposals:
    def __init__(
        self, me: NodeId, origin: int, boot: int, entering: Entering, wires: Wires,
        settings: ProposalSettings,
    ) -> None:  # fmt: skip
        self._me = me
        self._origin = origin
        self.boot = boot
        self._entering = entering
        self._wires = wires
        self._settings = settings
        self._last_seq = 0
        self._pending: dict[int, _Pending] = {}
        self._unsent: deque[_Pending] = deque()
        self._wake = trio.Event()
        self._forwards = trio.Semaphore(FORWARDS_MAX)

    async def put(self, command: Command[Any], actor: Actor) -> Any:
        """Wait until it is applied here; answer its value or raise its refusal."""
        request = self._begin(command, actor)
        try:
            with trio.move_on_after(self._settings.wait_s_max):
                await request.done.wait()
        finally:
            self._pending.pop(request.id.seq, None)
        if request.refusal is not None:
            raise request.refusal
        if not request.done.is_set():
            raise self._given_up(request)
        return request.value

    def _begin(self, command: Command[Any], actor: Actor) -> _Pending:
        term: int | None = getattr(command, "term", None)
        leadership = self._entering.leadership()
        if term is not None and (leadership.leader, leadership.term) != (self._me, term):
            raise Conflict("proposed by a leader of another term", term=term)
        if SINCE[type(command)] > self._entering.cluster_version():
            raise Unavailable(
                "not every node can do this yet: the swarm is being upgraded",
                needs_version=SINCE[type(command)],
            )
        if len(self._pending) >= self._settings.in_flight_max:
            raise Busy("too many writes are under way on this node; try again shortly")
        seq = self._last_seq + 1
        request_id = RequestId(self._origin, self.boot, seq)
        data = encode_request(Request(request_id, actor, command))  # type: ignore[arg-type]
        if len(data) > ENTRY_BYTES_MAX:
            raise TooLarge(
                f"the command is over {ENTRY_BYTES_MAX} bytes; send less at once, or put what is"
                " large into a blob",
                bytes_max=ENTRY_BYTES_MAX,
            )
        self._last_seq = seq
        request = _Pending(request_id, msgspec.Raw(data), type(command), term)
        self._pending[seq] = request
        self._unsent.append(request)
        self._wake.set()
        return request

    def _given_up(self, request: _Pending) -> Unavailable:
        leader = self._entering.leadership().leader
        why = "nobody leads the swarm at present" if leader is None else "the swarm does not answer"
        if not request.sent:
            return Unavailable(f"{why}: nothing was changed; try again later")
        return Unavailable(f"{why}: whether this was done is not known; look before you try again")

    def deliver(self, applied: Iterable[Applied]) -> None:
        """Tell those who wait what became of their requests."""
        for outcome in applied:
            request = outcome.request
            if request is None or request.origin != self._origin or request.boot != self.boot:
                continue
            pending = self._pending.get(request.seq)
            if pending is not None and not outcome.repeated:
                self._settle(pending, outcome.value, outcome.refusal)

    def waiting(self) -> tuple[int, ...]:
        """The sequences of those that are not applied yet, as far as is known here."""
        return tuple(self._pending)

    def deliver_kept(self, kept: Sequence[tuple[int, bytes]]) -> None:
        """What became of requests while this node caught up by a copy of the state."""
        for seq, outcome in kept:
            pending = self._pending.get(seq)
            if pending is None:
                continue
            try:
                self._settle(pending, outcome_of(pending.command, outcome), None)
            except SwarmError as refusal:
                self._settle(pending, None, refusal)

    def _settle(self, pending: _Pending, value: Any, refusal: SwarmError | None) -> None:
        pending.value, pending.refusal = value, refusal
        pending.done.set()
        self._pending.pop(pending.id.seq, None)

    def leader_changed(self) -> None:
        """What an earlier leader was told may be lost with it: all of it is sent again."""
        leadership = self._entering.leadership()
        for pending in list(self._pending.values()):
            if pending.term not in (None, leadership.term):
                refusal = Conflict("this node leads no longer", term=pending.term)
                self._settle(pending, None, refusal)
        self._unsent = deque(self._pending.values())
        self._wake.set()

    async def run(self) -> None:
        """Hand requests over as they come, those that came together at once."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._unsent:
                    leadership = self._entering.leadership()
                    if leadership.leader is None:
                        break  # whoever is elected wakes us
                    batch = self._take()
                    if leadership.leader == self._me:
                        self._enter(nursery, batch)
                    else:
                        await self._forwards.acquire()
                        nursery.start_soon(self._forward, nursery, leadership.leader, batch)

    def _take(self) -> list[_Pending]:
        taken: list[_Pending] = []
        size = 0
        while self._unsent and len(taken) < FORWARD_REQUESTS_MAX:
            pending = self._unsent[0]
            size += memoryview(pending.raw).nbytes
            if taken and size > FORWARD_BYTES_MAX:
                break
            taken.append(self._unsent.popleft())
        return taken

    def _enter(self, nursery: trio.Nursery, batch: list[_Pending]) -> None:
        try:
            self._entering.enter([pending.raw for pending in batch])
            for pending in batch:
                pending.sent = True
        except Busy as busy:
            self._refuse(batch, busy)
        except Unavailable:
            nursery.start_soon(self._again, batch)

    async def _forward(self, nursery: trio.Nursery, leader: NodeId, batch: list[_Pending]) -> None:
        try:
            body = _encode([pending.raw for pending in batch])
            for pending in batch:
                pending.sent = True
            await self._wires.call(leader, METHOD, body, self._settings.forward_timeout_s)
        except Refused as refused:
            if refused.code == Busy.code:
                self._refuse(batch, Busy(refused.message))
            else:
                nursery.start_soon(self._again, batch)
        except WireError as error:
            if not error.handed_over:
                for pending in batch:
                    pending.sent = False
            nursery.start_soon(self._again, batch)
        finally:
            self._forwards.release()

    def _refuse(self, batch: list[_Pending], busy: Busy) -> None:
        for pending in batch:
            self._settle(pending, None, Busy(busy.message, retry_after_s=busy.retry_after_s))

    async def _again(self, batch: list[_Pending]) -> None:
        await trio.sleep(RETRY_S)
        waiting = [pending for pending in batch if pending.id.seq in self._pending]
        already = set(map(id, self._unsent))
        self._unsent.extendleft(p for p in reversed(waiting) if id(p) not in already)
        self._wake.set()


def serve_forwarded(entering: Entering, wires: Wires) -> None:
    """Take the requests of other nodes into the log while this one leads."""

    def take(peer: str, body: bytes) -> bytes:
        try:
            entering.enter(_decode(body))
        except SwarmError as refusal:
            raise Refused(refusal.code, refusal.message) from None
        return b""

    wires.handle_call(METHOD, take)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
