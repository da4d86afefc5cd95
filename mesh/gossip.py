"""Membership over real sockets: one owner of a Swim, who feeds it datagrams, time and broken links.

Everything happens between two turns of the loop; only knocks and syncs take a task, and of those
there are few at a time. What this node believes of others is a hint, never a decision.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Protocol

import msgspec
import trio

from mesh.frames import Broken
from mesh.garbage import GARBAGE
from mesh.gossip_knocks import try_to_reach
from mesh.gossip_sockets import Datagrams, open_sockets
from mesh.sealing import WINDOW, UnknownSession
from mesh.swim import (
    Change,
    Dropped,
    Event,
    Knock,
    MemberChanged,
    MemberView,
    NameConflict,
    NotUsable,
    OwnIdTaken,
    Rng,
    RttStats,
    Self,
    Settings,
    SockAddr,
    Swim,
    SwimCounts,
    SyncWanted,
)
from mesh.wires import NotAllowed, Refused, Unreachable, WireError, Wires

log = logging.getLogger(__name__)

SYNC_METHOD = "gossip.sync"
SYNC_TIMEOUT_S = 5.0
SYNCS_MAX = 4
KNOCKS_MAX = 32
SUBSCRIBERS_MAX = 64
SUBSCRIBER_EVENTS_MAX = 1_024
DOUBLE_KEPT_S = 60.0
SESSION_TAG = "session"
_COMPLAIN_S = 60.0
_STRANGERS_MAX = 1_024
_STRANGER_PAUSE_S = 1.0
_QUIET = frozenset({"not_for_me", "removed", "unknown_session"})
"""Dropped in the ordinary course of things: counted, and no reason to warn."""


class Sealer(Protocol):
    """What gossip needs of mesh.sealing.Sealing."""

    session: bytes

    def seal(self, plain: bytes) -> bytes: ...

    def open(self, packet: bytes) -> tuple[str, bytes]:
        """(who sealed it, what). Raises Broken."""

    def allow(self, sender: str, session: bytes, floor: int = 0) -> None: ...

    def forget(self, sender: str) -> None: ...

    def heard(self, sender: str) -> tuple[bytes, int] | None: ...


class _Ask(msgspec.Struct, frozen=True, array_like=True):
    fresh: bool
    """It has just started, and needs to know how far the counters of packets are."""
    body: bytes


class _Answer(msgspec.Struct, frozen=True, array_like=True):
    body: bytes
    heard: dict[str, tuple[bytes, int]] = {}
    """By member: its session, and the highest counter that came from it."""


_encode = msgspec.msgpack.Encoder().encode
_decode_ask = msgspec.msgpack.Decoder(_Ask).decode
_decode_answer = msgspec.msgpack.Decoder(_Answer).decode


class Gossip:
    def __init__(
        self, settings: Settings, me: Self, swim: Swim, wires: Wires, sealer: Sealer,
        sockets: Datagrams, nursery: trio.Nursery,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._id = me.id
        self._swim = swim
        self._wires = wires
        self._sealer = sealer
        self._sockets = sockets
        self._nursery = nursery
        self._open = True
        self._leaving = False
        self._told = trio.Event()
        self._timer = trio.CancelScope()
        self._changed = trio.Event()
        self._subscribers: dict[trio.MemorySendChannel[Event], None] = {}
        self._syncs: dict[SyncWanted, None] = {}
        self._knocks = 0
        self._floors: dict[str, tuple[bytes, int]] = {}
        self._synced = False
        self._strangers: OrderedDict[str, float] = OrderedDict()
        self._complained: dict[str, int] = {}
        self._double: tuple[float, tuple[str, ...]] | None = None
        """When another was last heard under this node's id, and where."""

    # What is known

    @property
    def me(self) -> MemberView:
        return self._swim.me

    @property
    def counts(self) -> SwimCounts:
        return self._swim.counts

    @property
    def health(self) -> int:
        """Of this node, in its own eyes: 0 is well."""
        return self._swim.health

    def members(self) -> list[MemberView]:
        """This node first."""
        return self._swim.members()

    def namesakes(self) -> dict[str, tuple[str, ...]]:
        """Ids of the living that go by one name, where there are several: who keeps it first."""
        return self._swim.namesakes()

    @property
    def double(self) -> tuple[str, ...]:
        """Where another process runs under this node's id, as was heard of late; else nothing."""
        if self._double is None or trio.current_time() - self._double[0] > DOUBLE_KEPT_S:
            return ()
        return self._double[1]

    def member(self, id: str) -> MemberView | None:
        return self._swim.member(id)

    def rtt(self, id: str) -> RttStats | None:
        """Of this node's own probes of it."""
        return self._swim.rtt(id)

    def distance(self, a: str, b: str) -> float | None:
        """The round trip between any two, in seconds: an estimate by coordinates."""
        return self._swim.distance(a, b)

    @property
    def changed(self) -> trio.Event:
        """Set with the next change of any member; take it, look at `members`, then wait for it."""
        return self._changed

    @contextmanager
    def changes(self) -> Iterator[trio.MemoryReceiveChannel[Event]]:
        """All changes from now on, in order. It ends for a reader who falls behind: that one looks
        at `members` and begins anew."""
        if len(self._subscribers) >= SUBSCRIBERS_MAX:
            raise Refused("busy", f"{SUBSCRIBERS_MAX} read the changes of members already")
        send, receive = trio.open_memory_channel[Event](SUBSCRIBER_EVENTS_MAX)
        self._subscribers[send] = None
        try:
            with receive:
                yield receive
        finally:
            self._subscribers.pop(send, None)
            send.close()

    # What this node says

    def update_tags(self, tags: Mapping[str, str]) -> None:
        """Instead of those told before. Raises NotUsable."""
        self._swim.update(trio.current_time(), tags=_with_session(tags, self._sealer))
        self.flush()

    def be_born(self, born: int) -> None:
        """When this node was taken in: it may not have known when it began to talk."""
        self._swim.update(trio.current_time(), born=born)
        self.flush()

    def seed(self, addresses: Sequence[str]) -> None:
        """Where members may answer, instead of those known before. Raises NotUsable."""
        self._swim.seed(trio.current_time(), addresses)
        self.flush()

    def remove(self, id: str) -> None:
        """No part of the swarm any more: forgotten, and not listened to again."""
        with suppress(ValueError):
            self._sealer.forget(id)
        self._swim.remove(trio.current_time(), id)
        self.flush()

    async def leave(self, timeout_s: float = 2.0) -> bool:
        """Tell the others; returns when it was told as often as news are, True, or in time."""
        self._leaving = True
        self._swim.leave(trio.current_time())
        self.flush()
        with trio.move_on_after(timeout_s):
            await self._told.wait()
        return self._told.is_set()

    # The loop

    async def keep_time(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._swim.next_deadline()) as self._timer:
                await trio.sleep_forever()
            self._swim.tick(trio.current_time())
            self.flush()

    def watch_link(self, peer: str, up: bool, reason: str) -> None:
        if self._open and not up:
            self._swim.link_broke(trio.current_time(), peer)
            self.flush()

    async def complain(self) -> None:
        """At most once a minute, and only where there is something new."""
        while True:
            await trio.sleep(_COMPLAIN_S)
            dropped = self._swim.counts.dropped
            new = {
                reason: count - self._complained.get(reason, 0)
                for reason, count in dropped.items()
                if reason not in _QUIET and count > self._complained.get(reason, 0)
            }
            self._complained = dict(dropped)
            if new:
                log.warning("datagrams were dropped", extra={"reasons": new})

    def close(self) -> None:
        self._open = False
        for send in [*self._subscribers]:
            send.close()
        self._subscribers.clear()

    def take(self, now: float, packet: bytes, source: SockAddr) -> None:
        """A datagram came; `flush` behind the last of them."""
        try:
            sender, plain = self._sealer.open(packet)
        except UnknownSession as unknown:
            self._swim.counts.drop(unknown.reason)
            self._ask_stranger(now, unknown.sender)
        except Broken as broken:
            self._swim.counts.drop(broken.reason)
        else:
            self._swim.receive(now, sender, source, plain)

    def flush(self) -> None:
        """Have done what the core wants by now."""
        out = self._swim.take()
        for event in out.events:
            self._tell(event)
        for datagram in out.datagrams:
            dropped = self._sockets.send(datagram.to, self._sealer.seal(datagram.payload))
            if dropped is not None:
                self._swim.counts.drop(dropped)
        for knock in out.knocks:
            if self._knocks < KNOCKS_MAX:
                self._knocks += 1
                self._nursery.start_soon(self._knock, knock)
        for wanted in out.syncs:
            self._start_sync(wanted)
        if self._leaving and self._swim.leave_told:
            self._told.set()
        deadline = self._swim.next_deadline()
        if deadline != self._timer.deadline:
            self._timer.deadline = deadline

    # Sessions

    def _ask_stranger(self, now: float, sender: str) -> None:
        """A new session, or an old one that is played again: the member itself knows."""
        if now - self._strangers.get(sender, -_STRANGER_PAUSE_S) < _STRANGER_PAUSE_S:
            return
        self._strangers[sender] = now
        self._strangers.move_to_end(sender)
        if len(self._strangers) > _STRANGERS_MAX:
            self._strangers.popitem(last=False)
        self._start_sync(SyncWanted(sender, None))

    def _learn_session(self, member: MemberView) -> None:
        try:
            session = bytes.fromhex(member.tags.get(SESSION_TAG, ""))
            named, highest = self._floors.get(member.id, (b"", 0))
            floor = max(0, highest - WINDOW) if named == session else 0
            self._sealer.allow(member.id, session, floor)
        except ValueError:
            self._swim.counts.drop("session")

    # Knocks

    async def _knock(self, knock: Knock) -> None:
        try:
            member = self._swim.member(knock.peer)
            addresses = member.addresses if member is not None else ()
            what = await try_to_reach(self._wires, knock, addresses, self._sockets)
            self._swim.knocked(trio.current_time(), knock.number, what)
            self.flush()
        finally:
            self._knocks -= 1

    # Syncs

    def _start_sync(self, wanted: SyncWanted) -> None:
        if len(self._syncs) < SYNCS_MAX and wanted not in self._syncs:
            self._syncs[wanted] = None
            self._nursery.start_soon(self._sync, wanted)

    async def _sync(self, wanted: SyncWanted) -> None:
        try:
            ask = _Ask(not self._synced, self._swim.sync_ask(trio.current_time()))
            peer, body = await self._call(wanted, _encode(ask))
            answer = _decode_answer(body)
            if not self._synced:
                self._floors = answer.heard
            self._swim.sync_done(trio.current_time(), peer, answer.body)
            self._synced = True
            if (member := self._swim.member(peer)) is not None:
                self._learn_session(member)
            self.flush()
        except (WireError, Dropped, *GARBAGE) as error:
            if not isinstance(error, WireError):
                self._swim.counts.drop("sync")
            facts = {"peer": wanted.peer or wanted.address, "why": str(error)}
            log.debug("a sync with a member failed", extra=facts)
        finally:
            self._floors = {}
            del self._syncs[wanted]

    async def _call(self, wanted: SyncWanted, body: bytes) -> tuple[str, bytes]:
        """Raises WireError."""
        if wanted.peer is None:
            assert wanted.address is not None
            return await self._call_address(wanted.address, body)
        try:
            answer = await self._wires.call(wanted.peer, SYNC_METHOD, body, SYNC_TIMEOUT_S)
        except Unreachable as unreachable:
            member = self._swim.member(wanted.peer)
            if unreachable.handed_over or member is None:
                raise
            return await self._call_address(member.addresses[0], body)
        return wanted.peer, answer

    async def _call_address(self, address: str, body: bytes) -> tuple[str, bytes]:
        return await self._wires.call_address(address, SYNC_METHOD, body, SYNC_TIMEOUT_S)

    def answer_sync(self, peer: str, body: bytes) -> bytes:
        if not self._open:
            raise Refused("busy", "this node is closing")
        try:
            ask = _decode_ask(body)
            answer = self._swim.sync_answer(trio.current_time(), peer, ask.body)
        except (Dropped, *GARBAGE) as error:
            reason = error.reason if isinstance(error, Dropped) else "garbage"
            self._swim.counts.drop(reason)
            raise Refused("not_taken", str(error)) from None
        self.flush()
        return _encode(_Answer(answer, self._heard() if ask.fresh else {}))

    def _heard(self) -> dict[str, tuple[bytes, int]]:
        heard: dict[str, tuple[bytes, int]] = {}
        for member in self._swim.members()[1:]:
            with suppress(ValueError):
                if (of := self._sealer.heard(member.id)) is not None:
                    heard[member.id] = of
        return heard

    # Changes

    def _tell(self, event: Event) -> None:
        match event:
            case MemberChanged(change, member):
                if change is not Change.FORGOTTEN:
                    self._learn_session(member)
                    with suppress(NotAllowed):
                        self._wires.also_at(member.id, member.addresses)
                self._log(change, member)
            case NameConflict(name, kept_by, others):
                facts = {"node_name": name, "kept_by": kept_by, "others": others}
                log.warning("several members have one name: the oldest keeps it", extra=facts)
            case OwnIdTaken(addresses):
                self._double = trio.current_time(), addresses
                log.error(
                    "another process runs under this node's id: was its data directory copied?",
                    extra={"node_id": self._id, "addresses": addresses},
                )
        for send in [*self._subscribers]:
            try:
                send.send_nowait(event)
            except (trio.WouldBlock, trio.BrokenResourceError):
                del self._subscribers[send]
                send.close()
        self._changed.set()
        self._changed = trio.Event()

    def _log(self, change: Change, member: MemberView) -> None:
        facts = {"node_id": member.id, "node_name": member.name}
        match change:
            case Change.JOINED:
                log.info("a member joined", extra=facts)
            case Change.DIED:
                log.warning("a member is dead", extra=facts)
            case Change.RETURNED:
                log.info("a member is back", extra=facts)
            case Change.LEFT:
                log.info("a member left", extra=facts)
            case _:
                log.debug("a member changed", extra={**facts, "change": change.value})


@asynccontextmanager
async def open_gossip(
    settings: Settings, me: Self, wires: Wires, sealer: Sealer, *, binds: Sequence[str], rng: Rng,
    seeds: Sequence[str] = (), loopback_only: bool = False,
    opens: Callable[[Sequence[str]], Datagrams] | None = None,
) -> AsyncIterator[Gossip]:  # fmt: skip
    """`binds`: where the wires listen, as they name it; datagrams come and go there too, by way of
    `opens` where that is given. Leaving it is silent: call `leave` before, where the node goes for
    good. Raises NotUsable, NotAllowed, OSError."""
    sockets: Datagrams = (
        open_sockets(binds, loopback_only=loopback_only) if opens is None else opens(binds)
    )
    try:
        me = msgspec.structs.replace(me, tags=_with_session(me.tags, sealer))
        swim = Swim(settings, me, trio.current_time(), rng, seeds)
        async with trio.open_nursery() as nursery:
            sockets.begin(nursery)
            gossip = Gossip(settings, me, swim, wires, sealer, sockets, nursery)
            wires.handle_call(SYNC_METHOD, gossip.answer_sync)
            wires.on_link(gossip.watch_link)
            nursery.start_soon(gossip.keep_time)
            nursery.start_soon(gossip.complain)
            sockets.listen(gossip.take, gossip.flush)
            try:
                yield gossip
            finally:
                gossip.close()
                nursery.cancel_scope.cancel()
    finally:
        sockets.close()


def _with_session(tags: Mapping[str, str], sealer: Sealer) -> dict[str, str]:
    if SESSION_TAG in tags:
        raise NotUsable(f"the tag {SESSION_TAG!r} is gossip's own")
    return {**tags, SESSION_TAG: sealer.session.hex()}
