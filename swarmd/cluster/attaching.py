"""Attaching to a replica: a node without one keeps a session with the nearest that has room, and
moves to another when that one is gone, silent, or knows less than others.

Where it stood goes with it: the last event and the place in the log that it has seen. So a watch
misses nothing and repeats nothing, and no read shows an older state than one before.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import msgspec
import trio

from mesh.timing import Rng
from mesh.wires import ByteStream, Refused, TimedOut, WireError, Wires
from swarmd.cluster import sessions as words
from swarmd.cluster.channels import refusal_of
from swarmd.cluster.choosing import Chooser, ChoosingSettings
from swarmd.cluster.feed import Feed, FellBehind, Wanted
from swarmd.domain.errors import Busy, Unavailable
from swarmd.domain.events import Event
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

log = logging.getLogger(__name__)

T = TypeVar("T")

OUTGOING_MAX = 4096
NO_REPLICA = "no replica of the swarm answers this node at present"


@dataclass(frozen=True)
class AttachingSettings:
    silence_s: float = 0.4
    """Then the replica is asked whether it is there."""
    stream_silence_s_max: float = 3.0
    """A replica that answers, and says nothing in the session, is left all the same."""
    choosing: ChoosingSettings = field(default_factory=ChoosingSettings)
    connect_s: float = 3.0
    past_s: float = 3.0
    again_s: float = 0.25
    jitter_s: float = 0.1
    """Those that one replica served do not come to the next at one moment."""
    unwell_s: float = 1.0
    """Without a leader, or behind: then others are asked whether they know more."""
    restored_s: float = 5.0
    ending_s: float = 0.2
    """A replica that refuses may be about to end the session: then the next is asked."""
    gap_events_max: int = 20_000
    """Whoever was away for longer begins anew from the state."""


class Holder(Protocol):
    """The node, as its session needs it."""

    node: Node
    cluster_id: str

    @property
    def boot(self) -> int: ...

    def waiting(self) -> tuple[int, ...]: ...

    def know_outcomes(self, kept: Sequence[tuple[int, bytes]]) -> None: ...

    def changed(self) -> None:
        """Who serves this node, who leads, or who is a member, is another than before."""


@dataclass(eq=False)
class Session:
    peer: NodeId
    heard_at: float
    far_s: float
    asked: dict[Wanted, None]
    """What the replica was told to send."""
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    over: trio.Event = field(default_factory=trio.Event)
    why: str = ""
    welcomed: bool = False
    settling: bool = False
    members: dict[NodeId, Node] = field(default_factory=dict)
    """As they come, until the replica said welcome."""
    users: dict[trio.CancelScope, None] = field(default_factory=dict)
    acks: dict[int, trio.Event] = field(default_factory=dict)
    number: int = 0
    levels_at: int = 0
    outgoing: deque[bytes] = field(default_factory=deque)
    wake: trio.Event = field(default_factory=trio.Event)
    unwell_since: float | None = None
    before_us_since: float | None = None
    looking: bool = False

    def end(self, why: str) -> None:
        self.why = self.why or why
        self.scope.cancel()

    def follow(self, more: Sequence[Wanted], less: Sequence[Wanted]) -> int:
        self.number += 1
        self.asked.update(dict.fromkeys(more))
        for each in less:
            self.asked.pop(each, None)
        if len(self.outgoing) > OUTGOING_MAX:
            self.end("the replica does not take what it is told")
        for start in range(0, max(len(more), len(less)), 256):
            part = words.Follow(
                self.number, tuple(more[start : start + 256]), tuple(less[start : start + 256])
            )
            self.outgoing.append(words.framed(part))
        self.wake.set()
        return self.number


class Attaching:
    def __init__(
        self,
        holder: Holder,
        wires: Wires,
        feed: Feed,
        known: words.Whereabouts,
        seeds: tuple[str, ...],
        settings: AttachingSettings,
        rng: Rng,
        distance_s: Callable[[NodeId], float | None],
    ) -> None:
        self._holder = holder
        self._wires = wires
        self._feed = feed
        self._seeds = seeds
        self._settings = settings
        self._rng = rng
        self._chooser = Chooser(wires, settings.choosing, rng, distance_s)
        self._wanted: dict[Wanted, int] = {}
        self._attached = trio.Event()
        self._seq: int | None = None
        self.known = known
        """Where replicas are, as far as was heard."""
        self.session: Session | None = None
        """The one that stands."""
        self.members: dict[NodeId, Node] = {}
        self.voters = words.Voters((), (), False)
        self.beat: words.Beat | None = None
        self.beat_at = 0.0
        self.sessions_begun = 0
        """Since the start; more than one says that replicas were left, or lost."""
        self.at_least = 0
        """The place in the log that this node has seen."""
        self._tell_peers()

    @property
    def event_seq(self) -> int:
        """All events up to here were published, as far as they are wanted."""
        return self._seq or 0

    async def run(self) -> None:
        while True:
            chosen = await self._chooser.choose(self.replicas(), self._holder.cluster_id)
            if chosen is not None:
                peer, far_s = chosen
                try:
                    await self._attend(peer, far_s)
                except WireError as error:
                    log.info(
                        "a replica does not serve this node",
                        extra={"replica": peer, "reason": error.message},
                    )
                self._chooser.avoid(peer)
                await trio.sleep(self._rng.uniform(0, self._settings.jitter_s))
            else:
                await self._ask_around()
                await trio.sleep(self._settings.again_s * self._rng.uniform(1, 2))

    # What is done through the replica.

    async def through(
        self, deadline: float, attempt: Callable[[NodeId, float], Awaitable[T]]
    ) -> T:  # fmt: skip
        """Do what may be done twice, with whatever replica serves this node by then; the attempt
        is told which, and how long it may take. Refusals come out as they are."""
        while True:
            session = await self.standing(deadline)
            failed: WireError | None = None
            with trio.CancelScope(deadline=deadline) as scope:
                session.users[scope] = None
                try:
                    return await attempt(session.peer, deadline - trio.current_time())
                except WireError as error:
                    failed = error
                finally:
                    del session.users[scope]
            if failed is not None:
                await self._look_after(session, failed)

    async def _look_after(self, session: Session, failed: WireError) -> None:
        """Whether to try again; else raise what the failure means."""
        if isinstance(failed, TimedOut) and failed.handed_over:
            raise Unavailable("the replica that serves this node does not answer in time")
        with trio.move_on_after(self._settings.ending_s):
            await session.over.wait()
            return
        if isinstance(failed, Refused):
            raise refusal_of(failed)
        session.end(failed.message)

    async def standing(self, deadline: float) -> Session:
        """The session, once there is one."""
        while self.session is None:
            with trio.CancelScope(deadline=deadline) as scope:
                await self._attached.wait()
            if scope.cancelled_caught:
                raise Unavailable(f"{NO_REPLICA}; try again later")
        if trio.current_time() >= deadline:
            raise Unavailable("the replica that serves this node does not answer in time")
        return self.session

    @asynccontextmanager
    async def following(self, wanted: Wanted) -> AsyncIterator[None]:
        """Within the body the feed has the events that are wanted, from `event_seq` on at the
        latest. Where no replica serves this node, from when one does; nobody reads before that."""
        if wanted not in self._wanted and len(self._wanted) >= words.WANTED_MAX:
            raise Busy("too many wait for events on this node; try again shortly")
        self._wanted[wanted] = self._wanted.get(wanted, 0) + 1
        try:
            session = self.session
            if session is not None:
                if wanted not in session.asked:
                    number = session.follow([wanted], [])
                    session.acks[number] = trio.Event()
                await self._acknowledged(session)
            yield
        finally:
            self._wanted[wanted] -= 1
            if not self._wanted[wanted]:
                del self._wanted[wanted]
                session = self.session
                if session is not None and wanted in session.asked:
                    session.follow([], [wanted])

    async def _acknowledged(self, session: Session) -> None:
        """All that was asked for so far is heeded, or the session is over."""
        with trio.CancelScope() as scope:
            session.users[scope] = None
            try:
                for ack in list(session.acks.values()):
                    await ack.wait()
            finally:
                del session.users[scope]

    async def past(self, after: int, upto: int, wanted: Wanted, wait_s: float) -> words.PastAnswer:
        deadline = trio.current_time() + wait_s

        async def attempt(peer: NodeId, left_s: float) -> words.PastAnswer:
            return await self._past(peer, after, upto, (wanted,), left_s)

        return await self.through(deadline, attempt)

    async def _past(
        self, peer: NodeId, after: int, upto: int, wanted: tuple[Wanted, ...], wait_s: float
    ) -> words.PastAnswer:
        ask = words.PastAsk(after, upto, wanted)
        try:
            body = await self._wires.call(peer, words.PAST, words.encode(ask), wait_s)
        except Refused as refused:
            if refused.code == FellBehind.code:
                raise FellBehind(refused.message, **refused.facts) from None
            raise
        answer: words.PastAnswer = words.decoded(_decode_past, body)
        return answer

    # Whom to choose.

    def replicas(self) -> list[NodeId]:
        """Who may serve this node, as far as is known."""
        told = [*self.voters.voters, *self.voters.learners]
        known = told or [node_id for node_id, _ in self.known.replicas]
        return [node_id for node_id in known if node_id != self._holder.node.id]

    async def _ask_around(self) -> None:
        """No replica that is known answers: the addresses of the configuration may lead to one, or
        to a node that knows of one."""
        for seed in self._seeds:
            try:
                _, body = await self._wires.call_address(
                    seed, words.WHERE, b"", self._settings.connect_s
                )
                where: words.Whereabouts = words.decoded(_decode_where, body)
            except WireError:
                continue
            if where.cluster_id and self._holder.cluster_id in ("", where.cluster_id):
                self.voters = words.Voters((), (), False)
                self._know(where.replicas)
                return

    def _know(self, replicas: tuple[tuple[NodeId, tuple[str, ...]], ...]) -> None:
        if replicas and replicas != self.known.replicas:
            self.known = words.Whereabouts(self._holder.cluster_id, replicas)
            self._tell_peers()
            self._holder.changed()

    def _tell_peers(self) -> None:
        peers: dict[str, Sequence[str]] = dict(self.known.replicas)
        peers |= {n: node.mesh for n, node in self.members.items() if node.mesh}
        peers.pop(self._holder.node.id, None)
        self._wires.set_peers(peers)

    # A session.

    async def _attend(self, peer: NodeId, far_s: float) -> None:
        holder = self._holder
        wanted = tuple(self._wanted)
        opening = words.Opening(
            words.WORDS_VERSION, holder.cluster_id, holder.boot, holder.waiting(), wanted
        )
        session = Session(peer, trio.current_time(), far_s, dict.fromkeys(wanted))
        stream = await self._wires.open_stream(
            peer, words.SESSION, words.encode(opening), self._settings.connect_s
        )
        try:
            async with stream:
                with session.scope:
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self._watch_over, session, nursery)
                        nursery.start_soon(self._write, session, stream)
                        await self._hear(session, stream)
        finally:
            self._leave(session)
        log.info("a session with a replica is over", extra={"replica": peer, "reason": session.why})

    def _leave(self, session: Session) -> None:
        session.over.set()
        if self.session is session:
            self.session = None
            self._attached = trio.Event()
            self._holder.changed()
        for scope in list(session.users):
            scope.cancel()

    async def _write(self, session: Session, stream: ByteStream) -> None:
        try:
            while True:
                await session.wake.wait()
                session.wake = trio.Event()
                while session.outgoing:
                    await stream.send_all(session.outgoing.popleft())
        except WireError as error:
            session.end(error.message)

    async def _hear(self, session: Session, stream: ByteStream) -> None:
        reader = words.Reader(stream, words.decode_from_replica)
        try:
            while messages := await reader.some():
                session.heard_at = trio.current_time()
                for message in messages:
                    if isinstance(message, words.Welcome):
                        await self._settle(session, message)
                    else:
                        self._take(session, message)
            session.end("the replica ended it")
        except WireError as error:
            session.end(error.message)

    def _take(self, session: Session, message: words.FromReplica) -> None:
        match message:
            case words.Beat():
                self._take_beat(session, message)
            case words.Outcomes(kept, applied, event_seq):
                if session.welcomed:
                    self._seq = max(self.event_seq, event_seq)
                    self.at_least = max(self.at_least, applied)
                self._holder.know_outcomes(kept)
            case words.Events(events) if session.welcomed:
                self._publish(events)
            case words.Followed(number, event_seq) if session.welcomed:
                self._take_followed(session, number, event_seq)
            case words.Events() | words.Followed():
                raise Refused("invalid", "the replica sent events before its welcome")
            case words.Members(changed, whole):
                self._take_members(session, changed, whole)
            case words.Voters():
                self.voters = message
                self._note_replicas()

    def _take_beat(self, session: Session, beat: words.Beat) -> None:
        now = trio.current_time()
        before, self.beat, self.beat_at = self.beat, beat, now
        if not session.welcomed:
            return
        assert self._seq is not None
        self._seq = max(self._seq, beat.event_seq)
        self.at_least = max(self.at_least, beat.applied)
        if before is None or (before.leader, before.term) != (beat.leader, beat.term):
            self._holder.changed()
        if self._chooser.is_well(beat.leader, beat.staleness_ms):
            session.unwell_since = None
        elif session.unwell_since is None:
            session.unwell_since = now
        if beat.committed >= self.at_least or session.unwell_since is not None:
            session.before_us_since = None
        elif session.before_us_since is None:
            session.before_us_since = now
        elif now - session.before_us_since > self._settings.restored_s:
            self._begin_anew(session)

    def _begin_anew(self, session: Session) -> None:
        """A replica that is up to date has less than this node has seen."""
        log.warning("the swarm was restored to an earlier state", extra={"seen": self.at_least})
        self.at_least, self._seq = 0, None
        self._feed.cut_off()
        session.end("the swarm was restored to an earlier state")

    def _publish(self, events: Sequence[Event]) -> None:
        assert self._seq is not None
        fresh = [event for event in events if event.seq > self.event_seq]
        if fresh:
            self._seq = fresh[-1].seq
            self.at_least = max(self.at_least, fresh[-1].index)
            self._feed.publish(fresh)

    def _take_members(
        self, session: Session, changed: Sequence[words.Place], whole: bool
    ) -> None:  # fmt: skip
        members = session.members if not session.welcomed else dict(self.members)
        if whole:
            members.clear()
        for place in changed:
            if place.node is None:
                members.pop(place.id, None)
            else:
                members[place.id] = place.node
        if session.welcomed:
            self._take_over_members(members)

    def _take_over_members(self, members: dict[NodeId, Node]) -> None:
        if members != self.members:
            self.members = members
            self._tell_peers()
            self._note_replicas()
            self._holder.changed()

    def _note_replicas(self) -> None:
        holders = [self.members.get(n) for n in (*self.voters.voters, *self.voters.learners)]
        self._know(tuple((node.id, node.mesh) for node in holders if node and node.mesh))

    def _take_followed(self, session: Session, number: int, event_seq: int) -> None:
        self._seq = max(self.event_seq, event_seq)
        ack = session.acks.pop(number, None)
        if ack is not None:
            ack.set()
        if number == session.levels_at:
            session.levels_at = 0
            self._level(session)

    async def _settle(self, session: Session, welcome: words.Welcome) -> None:
        """Fetch what happened since the last session; then have the same wanted on both sides."""
        if welcome.cluster_id:
            if self._holder.cluster_id not in ("", welcome.cluster_id):
                raise Refused(words.ELSEWHERE, "this is another swarm")
            self._holder.cluster_id = welcome.cluster_id
        session.settling = True
        await self._close_gap(session, welcome.event_seq)
        session.settling, session.welcomed = False, True
        session.heard_at = trio.current_time()
        self._take_over_members(session.members)
        self._level(session)

    async def _close_gap(self, session: Session, upto: int) -> None:
        if self._seq is None:
            self._seq = upto
        try:
            if upto - self._seq > self._settings.gap_events_max:
                raise FellBehind("this node was away for too long")
            while self._seq < upto:
                wanted = tuple(self._wanted)
                if not wanted:
                    self._seq = upto
                    break
                past = await self._past(
                    session.peer, self._seq, upto, wanted, self._settings.past_s
                )
                if past.upto <= self._seq:
                    raise Refused("invalid", "the replica does not come to the end of its events")
                self._publish(past.events)
                self._seq = max(self._seq, past.upto)
        except FellBehind:
            self._feed.cut_off()
            self._seq = max(self._seq, upto)

    def _level(self, session: Session) -> None:
        more = [each for each in self._wanted if each not in session.asked]
        less = [each for each in session.asked if each not in self._wanted]
        if more or less:
            session.levels_at = session.follow(more, less)
            return
        if self.session is None:
            self.session = session
            self.sessions_begun += 1
            self._attached.set()
            log.info("a replica serves this node", extra={"replica": session.peer})
            self._holder.changed()

    async def _watch_over(self, session: Session, nursery: trio.Nursery) -> None:
        settings = self._settings
        spoke_at = session.heard_at
        while True:
            due = spoke_at + settings.silence_s
            await trio.sleep_until(max(due, trio.current_time() + settings.silence_s / 4))
            now = trio.current_time()
            spoke_at = now if session.settling else max(spoke_at, session.heard_at)
            unwell = session.unwell_since
            if unwell is not None and now - unwell > settings.unwell_s and not session.looking:
                session.looking = True
                nursery.start_soon(self._look_elsewhere, session)
            if now - spoke_at < settings.silence_s:
                continue
            if now - spoke_at > settings.stream_silence_s_max:
                session.end("the replica says nothing any more")
            elif not await self._chooser.answers(session.peer, session.far_s):
                if session.heard_at <= spoke_at:
                    session.end("the replica does not answer any more")

    async def _look_elsewhere(self, session: Session) -> None:
        """Leave a replica that is cut off from the others for one that is not."""
        others = [n for n in self.replicas() if n != session.peer]
        better = await self._chooser.any_well(others, self._holder.cluster_id)
        if better and session.unwell_since is not None:
            session.end("other replicas know more")
        session.looking = False


_decode_past: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(words.PastAnswer)
_decode_where: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(words.Whereabouts)
