"""Proposals: this node's requests on their way into the log, and the only forwarding there is.

A request is sent until its own replica has applied it, to whoever leads by then; the machine knows
it by its id and applies it once. Between a refusal and an unknown outcome there is always a word.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import trio

from mesh.garbage import GARBAGE
from mesh.wires import Refused, WireError, Wires
from swarmd.cluster.channels import wire_refusal
from swarmd.cluster.handle import Leadership
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, SwarmError, TooLarge, Unavailable
from swarmd.domain.jobs import ENTRY_BYTES_MAX, NodeId
from swarmd.state.commands import Command, Request, RequestId
from swarmd.state.machine import Applied
from swarmd.state.requests import outcome_of
from swarmd.state.store import encode_request
from swarmd.state.versions import needs

log = logging.getLogger(__name__)

METHOD = "propose"
FORWARD_REQUESTS_MAX = 512
FORWARD_BYTES_MAX = 400_000
FORWARDS_MAX = 16
RETRY_S = 0.05
_NOT_TAKEN = frozenset({Busy.code, Unavailable.code, "unknown_method"})
"""Refusals that come before anything is in a log."""


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


class Forwarding(Protocol):
    """The way to whoever leads."""

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes: ...


@dataclass(slots=True, eq=False)
class _Pending:
    id: RequestId
    raw: msgspec.Raw
    command: type[Any]
    term: int | None
    deadline: float
    done: bool = False
    waiter: trio.lowlevel.Task | None = None
    value: Any = None
    refusal: SwarmError | None = None
    told: bool = False
    """Some leader may have it in its log."""
    on_way: int = 0
    """Calls that carry it and have not come back."""

    @property
    def maybe_done(self) -> bool:
        return self.told or self.on_way > 0

    async def wait(self) -> None:
        """For one task. Its deadline is kept by `Proposals`: an event and a cancel scope for each
        request cost more than all else that is done for it here."""
        if self.done:
            await trio.lowlevel.checkpoint()
            return
        self.waiter = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._leave)

    def settle(self, value: Any, refusal: SwarmError | None) -> None:
        self.done, self.value, self.refusal = True, value, refusal
        if self.waiter is not None:
            trio.lowlevel.reschedule(self.waiter)
            self.waiter = None

    def _leave(self, _: object) -> trio.lowlevel.Abort:
        self.waiter = None
        return trio.lowlevel.Abort.SUCCEEDED


class Proposals:
    def __init__(
        self, me: NodeId, origin: int, boot: int, entering: Entering, wires: Forwarding,
        settings: ProposalSettings, hindrance: Callable[[], str] = lambda: "",
    ) -> None:  # fmt: skip
        """`hindrance` says what may stand in the way of writes, as far as this node sees."""
        self._me = me
        self._hindrance = hindrance
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
        self._forwarding: dict[trio.CancelScope, NodeId] = {}

    async def put(self, command: Command[Any], actor: Actor) -> Any:
        """Wait until it is applied here; answer its value or raise its refusal."""
        request = self._begin(command, actor)
        try:
            await request.wait()
        finally:
            self._pending.pop(request.id.seq, None)
        if request.refusal is not None:
            raise request.refusal
        return request.value

    def _begin(self, command: Command[Any], actor: Actor) -> _Pending:
        term: int | None = getattr(command, "term", None)
        leadership = self._entering.leadership()
        if term is not None and (leadership.leader, leadership.term) != (self._me, term):
            raise Conflict("proposed by a leader of another term", term=term)
        if (needed := needs(command)) > self._entering.cluster_version():
            raise Unavailable(
                "not every node can do this yet: the swarm is being upgraded",
                needs_version=needed,
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
        deadline = trio.current_time() + self._settings.wait_s_max
        request = _Pending(request_id, msgspec.Raw(data), type(command), term, deadline)
        self._pending[seq] = request
        self._unsent.append(request)
        self._wake.set()
        return request

    def _given_up(self, request: _Pending) -> Unavailable:
        leader = self._entering.leadership().leader
        why = "nobody leads the swarm at present" if leader is None else "the swarm does not answer"
        if hindrance := self._hindrance():
            why += f" ({hindrance})"
        if not request.maybe_done:
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
        self._pending.pop(pending.id.seq, None)
        if not pending.done:
            pending.settle(value, refusal)

    def leader_changed(self) -> None:
        """What an earlier leader was told may be lost with it: all of it is sent again. Nobody
        waits for the answer of one that leads no longer."""
        leadership = self._entering.leadership()
        for pending in list(self._pending.values()):
            if pending.term not in (None, leadership.term):
                self._settle(pending, None, _deposed(pending))
        self._unsent = deque(self._pending.values())
        for scope, leader in self._forwarding.items():
            if leader != leadership.leader:
                scope.cancel()
        self._wake.set()

    async def run(self) -> None:
        """Hand requests over as they come, those that came together at once."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_deadlines)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                while self._unsent:
                    leader = self._entering.leadership().leader
                    if leader is None:
                        break  # whoever is elected wakes us
                    if leader == self._me:
                        self._enter(nursery, self._take())
                        continue
                    await self._forwards.acquire()
                    if self._unsent and leader == self._entering.leadership().leader:
                        nursery.start_soon(self._forward, nursery, leader, self._take())
                    else:
                        self._forwards.release()

    async def _keep_deadlines(self) -> None:
        """All wait equally long: the first that came is the first whose time is over."""
        while True:
            now = trio.current_time()
            due = now + self._settings.wait_s_max
            for pending in list(self._pending.values()):
                if pending.deadline > now:
                    due = pending.deadline
                    break
                self._settle(pending, None, self._given_up(pending))
            await trio.sleep_until(due)

    def _take(self) -> list[_Pending]:
        taken: list[_Pending] = []
        size = 0
        while self._unsent and len(taken) < FORWARD_REQUESTS_MAX:
            pending = self._unsent[0]
            if pending.done:
                # It was told that nothing was changed: so it shall be.
                self._unsent.popleft()
                continue
            size += memoryview(pending.raw).nbytes
            if taken and size > FORWARD_BYTES_MAX:
                break
            taken.append(self._unsent.popleft())
        return taken

    def _enter(self, nursery: trio.Nursery, batch: list[_Pending]) -> None:
        try:
            self._entering.enter([pending.raw for pending in batch])
            for pending in batch:
                pending.told = True
        except Busy as busy:
            self._refuse(nursery, batch, busy)
        except Unavailable:
            nursery.start_soon(self._again, batch)

    async def _forward(self, nursery: trio.Nursery, leader: NodeId, batch: list[_Pending]) -> None:
        with trio.CancelScope() as scope:
            self._forwarding[scope] = leader
            try:
                refusal = await self._tell(leader, batch)
            finally:
                del self._forwarding[scope]
                self._forwards.release()
            if isinstance(refusal, Busy):
                self._refuse(nursery, batch, refusal)
            elif refusal is not None:
                nursery.start_soon(self._again, batch)

    async def _tell(self, leader: NodeId, batch: list[_Pending]) -> Busy | WireError | None:
        # A deadline may have passed between being taken and being sent.
        batch = [pending for pending in batch if not pending.done]
        if not batch:
            return None
        body = _encode([pending.raw for pending in batch])
        for pending in batch:
            pending.on_way += 1
        told = True
        try:
            await self._wires.call(leader, METHOD, body, self._settings.forward_timeout_s)
            return None
        except Refused as refused:
            told = refused.code not in _NOT_TAKEN
            return Busy(refused.message) if refused.code == Busy.code else refused
        except WireError as error:
            told = error.handed_over
            return error
        finally:
            for pending in batch:
                pending.on_way -= 1
                pending.told = pending.told or told

    def _refuse(self, nursery: trio.Nursery, batch: list[_Pending], busy: Busy) -> None:
        """Busy says that nothing was done: not to those that an earlier leader may have taken."""
        unknown: list[_Pending] = []
        for pending in batch:
            if pending.maybe_done:
                unknown.append(pending)
            else:
                refusal = Busy(busy.message, retry_after_s=busy.retry_after_s)
                self._settle(pending, None, refusal)
        if unknown:
            nursery.start_soon(self._again, unknown)

    async def _again(self, batch: list[_Pending]) -> None:
        await trio.sleep(RETRY_S)
        waiting = [pending for pending in batch if pending.id.seq in self._pending]
        already = set(map(id, self._unsent))
        self._unsent.extendleft(p for p in reversed(waiting) if id(p) not in already)
        self._wake.set()


def _deposed(pending: _Pending) -> SwarmError:
    if not pending.maybe_done:
        return Conflict("this node leads no longer", term=pending.term)
    return Unavailable(
        "this node leads no longer: whether this was done is not known; look before you try again",
        term=pending.term,
    )


def serve_forwarded(entering: Entering, wires: Wires) -> None:
    """Take the requests of other nodes into the log while this one leads."""

    def take(peer: str, body: bytes) -> bytes:
        try:
            requests = _decode(body)
            # What nobody can read must not be in the log: no node would get past it.
            for request in requests:
                _decode_request(request)
            entering.enter(requests)
        except GARBAGE as error:
            raise Refused("invalid", f"these are no requests: {error}") from None
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None
        return b""

    wires.handle_call(METHOD, take)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_request = msgspec.msgpack.Decoder(Request).decode
