"""Serving nodes without a replica: a replica tells them how the swarm stands, reads for them, and
brings their proposals to whoever leads.

Each has one session, held by its node's id; a newer one takes the place of an older one. A node
that does not take what it is sent is cut off, and begins anew where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import trio

from mesh.wires import ByteStream, Refused, WireError, Wires
from swarmd.cluster import sessions as words
from swarmd.cluster.channels import wire_refusal
from swarmd.cluster.feed import Feed, FellBehind, Wanted
from swarmd.cluster.handle import Leadership, LogView, local_reads
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.proposals import FORWARD_BYTES_MAX, FORWARD_REQUESTS_MAX, METHOD
from swarmd.cluster.sending import Outcome, ServedNode
from swarmd.domain.errors import Busy, SwarmError, Unavailable
from swarmd.domain.events import Event
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Request
from swarmd.state.machine import Applied
from swarmd.state.queries import FindOutcomes, ListEvents, Query, T

log = logging.getLogger(__name__)

PASTS_MAX = 8
PAST_SCANNED_MAX = 5000
READ_S_MAX = 30.0
CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class ServingSettings:
    sessions_max: int = 512
    openings_max: int = 16
    """Sessions that begin at once: each is told of all members."""
    backlog_max: int = 8192
    """Events and outcomes that wait for a node."""
    reads_max: int = 256
    """Of one node, at once."""
    relays_max: int = 128
    """Batches of proposals on their way to the leader, of all nodes together."""
    relay_s_max: float = 5.0


class Served(Protocol):
    """The replica, as those need it who have none."""

    node: Node
    cluster_id: str

    @property
    def members(self) -> Mapping[NodeId, Node]: ...

    @property
    def applied(self) -> int: ...

    @property
    def event_seq(self) -> int: ...

    @property
    def entry_at(self) -> int: ...

    def enter(self, requests: Sequence[msgspec.Raw]) -> None: ...

    async def read(self, query: Query[T]) -> T: ...

    async def wait_applied(self, index: int) -> None: ...

    def leadership(self) -> Leadership: ...

    async def leadership_changed(self, seen: Leadership) -> Leadership: ...

    def cluster_version(self) -> int: ...

    def log_view(self) -> LogView: ...

    def staleness_ms(self) -> int | None: ...


class Serving:
    def __init__(
        self, replica: Served, feed: Feed, wires: Wires, settings: ServingSettings | None = None
    ) -> None:
        self._replica = replica
        self._feed = feed
        self._wires = wires
        self._settings = settings or ServingSettings()
        self._sessions: dict[str, ServedNode] = {}
        self._by_origin: dict[int, ServedNode] = {}
        self._openings = 0
        self._members: Mapping[NodeId, Node] = {}
        self._voters = words.Voters((), (), False)
        self._reads: dict[str, int] = {}
        self._pasts = trio.CapacityLimiter(PASTS_MAX)
        self._relays: dict[trio.CancelScope, NodeId] = {}
        self._resting = trio.CancelScope()
        """Until there is something to say, and somebody to say it to."""

    def serve(self) -> None:
        wires = self._wires
        wires.handle_stream(words.SESSION, self._attend)
        wires.handle_stream(words.READ, self._read_long)
        wires.handle_call(words.READ, self._read)
        wires.handle_call(words.PROPOSE, self._propose)
        wires.handle_call(words.PAST, self._find_past)
        wires.handle_call(words.KNOCK, lambda peer, body: words.encode(self._standing()))
        wires.handle_call(words.WHERE, lambda peer, body: words.encode(self._where()))

    async def run(self) -> None:
        """Say how this replica stands, at once when another leads."""
        while True:
            seen = self._replica.leadership()
            for scope, leader in self._relays.items():
                if leader != seen.leader:
                    scope.cancel()
            if self._sessions:
                self._note_changes()
                self._tell_all(words.framed(self._beat()))
            with trio.CancelScope() as self._resting:
                if self._sessions:
                    self._resting.deadline = trio.current_time() + words.BEAT_S
                await self._replica.leadership_changed(seen)

    def deliver(self, outcomes: Sequence[Applied], index: int) -> None:
        """What was applied up to a place of the log, when it is in the state."""
        if not self._by_origin:
            return
        event_seq = self._replica.event_seq
        for outcome in outcomes:
            request = outcome.request
            if request is None or outcome.repeated:
                continue
            session = self._by_origin.get(request.origin)
            if session is not None and session.boot == request.boot:
                session.take(Outcome(request.seq, outcome, index, event_seq))

    def cut_off(self) -> None:
        """Events and outcomes were left out."""
        for session in list(self._sessions.values()):
            session.end("the state was taken over from a copy")

    @property
    def sessions(self) -> int:
        return len(self._sessions)

    # What is told.

    def _tell_all(self, frame: bytes) -> None:
        for session in list(self._sessions.values()):
            session.push(frame)

    def _beat(self) -> words.Beat:
        replica = self._replica
        leadership, view = replica.leadership(), replica.log_view()
        return words.Beat(
            leadership.leader, leadership.term, replica.cluster_version(), replica.entry_at,
            replica.event_seq, view.committed, replica.applied, view.first, view.last,
            replica.staleness_ms(),
        )  # fmt: skip

    def _note_changes(self) -> None:
        """Tell everyone which members, and whose replicas, are others than they were told."""
        members, before = self._replica.members, self._members
        if members is not before:
            self._members = members
            changed = [words.Place(n, node) for n, node in members.items() if before.get(n) != node]
            changed += [words.Place(n, None) for n in before if n not in members]
            for message in _members_in_parts(changed):
                self._tell_all(words.framed(message))
        view = self._replica.log_view()
        voters = words.Voters(view.voters, view.learners, view.joint)
        if voters != self._voters:
            self._voters = voters
            self._tell_all(words.framed(voters))

    def _standing(self) -> words.Standing:
        replica = self._replica
        return words.Standing(
            replica.cluster_id, len(self._sessions), replica.leadership().leader,
            replica.staleness_ms(),
        )  # fmt: skip

    def _where(self) -> words.Whereabouts:
        replica = self._replica
        view = replica.log_view()
        known = {**replica.members, replica.node.id: replica.node}
        holders = [known[n] for n in (*view.voters, *view.learners) if n in known]
        places = tuple((node.id, node.mesh) for node in holders if node.mesh)
        return words.Whereabouts(replica.cluster_id, places)

    # Sessions.

    async def _attend(self, peer: str, body: bytes, stream: ByteStream) -> None:
        opening: words.Opening = words.decoded(_decode_opening, body)
        self._admit(peer, opening)
        session = ServedNode(peer, opening.boot, stream, self._feed, self._settings.backlog_max)
        origin = raft_id_of(peer)
        with session.scope:
            self._openings += 1
            try:
                preface = self._begin(session, origin, opening)
                for message in preface:
                    await stream.send_all(words.framed(message))
                kept = await self._kept(origin, opening)
                await session.greet(kept, words.Welcome(self._replica.cluster_id, session.since))
            finally:
                self._openings -= 1
                if not session.greeted:
                    self._forget(session, origin)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._follow, session)
                    await session.write()
            finally:
                self._forget(session, origin)
        if session.why:
            raise Refused(words.ELSEWHERE, session.why)

    def _admit(self, peer: str, opening: words.Opening) -> None:
        replica, settings = self._replica, self._settings
        if opening.cluster_id and replica.cluster_id not in ("", opening.cluster_id):
            raise Refused(words.ELSEWHERE, "this is another swarm")
        if len(opening.waiting) > words.WAITING_MAX or len(opening.wanted) > words.WANTED_MAX:
            raise Refused("invalid", "a session cannot begin with so much")
        full = len(self._sessions) >= settings.sessions_max and peer not in self._sessions
        if full or self._openings >= settings.openings_max:
            raise Refused(words.ELSEWHERE, "this replica serves as many nodes as it can")

    def _begin(self, session: ServedNode, origin: int, opening: words.Opening) -> list[Any]:
        """From this moment on the session misses nothing. Answers how everything stood."""
        older = self._sessions.get(session.peer)
        if older is not None:
            self._forget(older, origin)
            older.end("a newer session took its place")
        self._note_changes()
        if not self._sessions:
            self._resting.cancel()
        self._sessions[session.peer] = self._by_origin[origin] = session
        session.since = self._replica.event_seq
        session.want(opening.wanted, ())
        places = [words.Place(n, node) for n, node in self._members.items()]
        return [*_members_in_parts(places, whole=True), self._voters, self._beat()]

    async def _kept(self, origin: int, opening: words.Opening) -> list[tuple[int, bytes]]:
        """What this replica's state knows of requests; what it applies later is delivered."""
        if not opening.waiting:
            return []
        with local_reads():
            asked = FindOutcomes(origin, opening.boot, opening.waiting)
            return await self._replica.read(asked)

    async def _follow(self, session: ServedNode) -> None:
        """Heed what the other side wants, until it ends the session."""
        reader = words.Reader(session.stream, words.decode_follow)
        try:
            while follows := await reader.some():
                for follow in follows:
                    session.want(follow.more, follow.less)
                    followed = words.Followed(follow.number, self._replica.event_seq)
                    session.push(words.framed(followed))
        except WireError as error:
            session.end(error.message)
        session.scope.cancel()

    def _forget(self, session: ServedNode, origin: int) -> None:
        self._feed.leave(session)
        if self._sessions.get(session.peer) is session:
            del self._sessions[session.peer]
        if self._by_origin.get(origin) is session:
            del self._by_origin[origin]

    # Reads.

    async def _read(self, peer: str, body: bytes) -> bytes:
        answer = await self._answer(peer, body)
        if len(answer) > words.CALL_ANSWER_BYTES_MAX:
            raise Refused(words.TOO_LONG, f"the answer has {len(answer)} bytes: ask by a stream")
        return answer

    async def _read_long(self, peer: str, body: bytes, stream: ByteStream) -> None:
        answer = await self._answer(peer, body)
        if len(answer) > words.ANSWER_BYTES_MAX:
            raise Refused("too_large", "the answer is too large; ask for less of it")
        for start in range(0, len(answer), CHUNK_BYTES):
            with trio.move_on_after(READ_S_MAX) as scope:
                await stream.send_all(answer[start : start + CHUNK_BYTES])
            if scope.cancelled_caught:
                raise Refused(Unavailable.code, "the answer was not taken")

    async def _answer(self, peer: str, body: bytes) -> bytes:
        ask: words.ReadAsk = words.decoded(_decode_read, body)
        query = words.decoded(words.decode_query, bytes(ask.query))
        under_way = self._reads.get(peer, 0)
        if under_way >= self._settings.reads_max:
            raise wire_refusal(Busy("too many reads of that node are under way; try again shortly"))
        self._reads[peer] = under_way + 1
        try:
            with trio.move_on_after(min(ask.wait_s, READ_S_MAX)):
                await self._replica.wait_applied(ask.at_least)
                with local_reads(ask.local):
                    value = await self._replica.read(query)
                # What was read is committed by now, though it may not be told to be applied.
                index = self._replica.log_view().committed
                return words.encode(words.ReadAnswer(index, msgspec.Raw(words.encode(value))))
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None
        finally:
            self._reads[peer] -= 1
            if not self._reads[peer]:
                del self._reads[peer]
        raise Refused(Unavailable.code, "this replica does not come so far in time")

    async def _find_past(self, peer: str, body: bytes) -> bytes:
        ask: words.PastAsk = words.decoded(_decode_past, body)
        if len(ask.wanted) > words.WANTED_MAX:
            raise Refused("invalid", "too much is wanted at once")
        chosen: list[Event] = []
        at, scanned = ask.after, 0
        choice = _Choice(ask.wanted)
        try:
            async with self._pasts:
                while at < ask.upto and scanned < PAST_SCANNED_MAX:
                    with local_reads():
                        page = await self._replica.read(ListEvents(at))
                    if not page or page[0].seq != at + 1:
                        oldest = page[0].seq if page else ask.upto + 1
                        gone = f"events from {at + 1} on are no longer kept, the oldest is {oldest}"
                        raise Refused(FellBehind.code, gone, after=at, oldest=oldest)
                    for event in page:
                        if event.seq > ask.upto or len(chosen) >= words.PAST_EVENTS_MAX:
                            break
                        at = event.seq
                        scanned += 1
                        if choice.wants(event):
                            chosen.append(event)
                    if len(chosen) >= words.PAST_EVENTS_MAX:
                        break
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None
        return words.encode(words.PastAnswer(tuple(chosen), at))

    # Proposals.

    def _propose(self, peer: str, body: bytes) -> bytes | Coroutine[Any, Any, bytes]:
        """Into the log, or one step further. Nothing is kept here: who asks asks again."""
        requests: list[msgspec.Raw] = words.decoded(_decode_requests, body)
        if len(requests) > FORWARD_REQUESTS_MAX or len(body) > 2 * FORWARD_BYTES_MAX:
            raise Refused("too_large", "too many proposals at once")
        origin = raft_id_of(peer)
        for raw in requests:
            request: Request = words.decoded(_decode_request, bytes(raw))
            if request.id.origin != origin:
                raise Refused("invalid", f"{peer} speaks for another node")
        leader = self._replica.leadership().leader
        if leader is None:
            raise Refused(Unavailable.code, "nobody leads the swarm at present")
        if leader == self._replica.node.id:
            try:
                self._replica.enter(requests)
            except SwarmError as refusal:
                raise wire_refusal(refusal) from None
            return b""
        if len(self._relays) >= self._settings.relays_max:
            raise wire_refusal(
                Busy("too many writes are under way on the replica; try again shortly")
            )
        return self._relay(leader, body)

    async def _relay(self, leader: NodeId, body: bytes) -> bytes:
        with trio.CancelScope() as scope:
            self._relays[scope] = leader
            try:
                return await self._wires.call(leader, METHOD, body, self._settings.relay_s_max)
            except Refused:
                raise
            except WireError as error:
                code = words.LOST if error.handed_over else Unavailable.code
                raise Refused(code, error.message) from None
            finally:
                del self._relays[scope]
        raise Refused(words.LOST, "another leads by now")


class _Choice:
    """Several wants, looked up at once."""

    def __init__(self, wanted: Sequence[Wanted]) -> None:
        self._feed = Feed()
        self._hit = False
        for each in wanted:
            self._feed.want(self, each)

    def wants(self, event: Event) -> bool:
        self._hit = False
        self._feed.publish((event,))
        return self._hit

    def put(self, event: Event) -> None:
        self._hit = True

    def close(self) -> None:
        """Nothing is open."""


def _members_in_parts(
    places: Sequence[words.Place], *, whole: bool = False
) -> list[words.Members]:  # fmt: skip
    step = words.MEMBERS_PER_MESSAGE
    parts = [tuple(places[i : i + step]) for i in range(0, len(places), step)]
    if whole and not parts:
        parts = [()]
    return [words.Members(part, whole and i == 0) for i, part in enumerate(parts)]


_decode_opening = msgspec.msgpack.Decoder(words.Opening)
_decode_read = msgspec.msgpack.Decoder(words.ReadAsk)
_decode_past = msgspec.msgpack.Decoder(words.PastAsk)
_decode_requests = msgspec.msgpack.Decoder(list[msgspec.Raw])
_decode_request = msgspec.msgpack.Decoder(Request)
