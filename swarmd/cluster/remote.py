"""A node without a replica: the same four verbs, against a replica that serves it.

It keeps nothing but where replicas are. What it proposes is applied where it reads before it is
answered; what it reads is vouched for as on any node; what it is told of events is what it wants.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import trio

from mesh.timing import Rng
from mesh.wal import RaftLog
from mesh.wires import Refused, Unreachable, Wires
from swarmd.cluster import sessions as words
from swarmd.cluster.asking import Asking
from swarmd.cluster.asks import ReadClock, ReadLogView
from swarmd.cluster.attaching import NO_REPLICA, Attaching, AttachingSettings
from swarmd.cluster.channels import open_channel, serve_channel
from swarmd.cluster.feed import EVERYTHING, Feed, Subscription, Wanted
from swarmd.cluster.handle import (
    Ask,
    BlobPort,
    Channel,
    ChannelAnswer,
    Doubles,
    Leader,
    Leadership,
    LogView,
    PeerView,
    Role,
    StateCopy,
    T,
    reads_are_local,
)
from swarmd.cluster.neighbours import Neighbours, view_of
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.patience import make_known
from swarmd.cluster.proposals import Proposals, ProposalSettings
from swarmd.cluster.replica import PING
from swarmd.cluster.rotating import Rotating
from swarmd.cluster.trust import Trust
from swarmd.cluster.whereabouts import keep_boot, next_boot, remember, remembered
from swarmd.domain.actors import Actor
from swarmd.domain.errors import SwarmError, Unavailable
from swarmd.domain.events import Event
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Command
from swarmd.state.queries import LastBoot, Query

log = logging.getLogger(__name__)

AGAIN_S = 0.5
LEADER_KEPT_S = 3.0
"""Who led when this node last heard of it is taken to lead for so long."""
NO_COPY = "this node holds no replica: ask one that does; `swarmd nodes` shows them"


@dataclass(frozen=True)
class RemoteSettings:
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    attaching: AttachingSettings = field(default_factory=AttachingSettings)
    read_s_max: float = 10.0
    """For a replica to be found, and for it to answer."""
    ask_s_max: float = 35.0


class Remote:
    """The four verbs on a node that has not the state."""

    blobs: BlobPort

    def __init__(
        self,
        node: Node,
        boot: int,
        raft_log: RaftLog,
        wires: Wires,
        known: words.Whereabouts,
        seeds: tuple[str, ...],
        settings: RemoteSettings,
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
        rng: Rng,
        neighbours: Neighbours | None = None,
    ) -> None:
        self.node = node
        self.cluster_id = known.cluster_id
        self.trust: Trust | None = None
        """None where the wires prove nothing: in a simulated swarm."""
        self.introduced = trio.Event()
        """The swarm knows this node as it is."""
        self.removed = trio.Event()
        """The swarm takes no word of this node any more."""
        self.new_id = new_id
        self._log = raft_log
        self._wires = wires
        self._settings = settings
        self._now_ms = now_ms
        self.neighbours = neighbours or Neighbours()
        self._feed = Feed()
        self._attaching = Attaching(
            self, wires, self._feed, known, seeds, settings.attaching, rng,
            partial(self.neighbours.distance_s, node.id),
        )  # fmt: skip
        self._origin = raft_id_of(node.id)
        self._proposals = Proposals(
            node.id, self._origin, boot, _Door(self._attaching),
            _Relay(self._attaching, wires), settings.proposals,
        )  # fmt: skip
        self._asking = Asking(
            node.id, wires, lambda: self.members, self.leadership, settings.ask_s_max
        )
        self._boot_is_new = trio.Event()
        """No request of an earlier boot can be taken for one of this."""
        self._changed = trio.Event()
        self._remembered = known

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part, until it is cancelled."""
        self._asking.serve()
        self._wires.handle_call(PING, lambda peer, body: self.cluster_id.encode())
        self._wires.handle_call(words.WHERE, lambda peer, body: words.encode(self._attaching.known))
        self.answers(ReadClock, self._read_clock)
        self.answers(ReadLogView, self._read_log_view)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._attaching.run)
            nursery.start_soon(self._proposals.run)
            nursery.start_soon(self._make_sure_of_boot)
            nursery.start_soon(self._remember)
            if self.trust is not None:
                self.trust.serve(self, self._wires)
                Rotating(self, self.trust, self._wires).serve()
                nursery.start_soon(self.trust.run, self, self._wires)
            task_status.started()

    # The four verbs.

    async def propose(self, command: Command[T], actor: Actor) -> T:
        if not self._boot_is_new.is_set():
            with trio.move_on_after(self._settings.proposals.wait_s_max):
                await self._boot_is_new.wait()
        if not self._boot_is_new.is_set():
            raise Unavailable(f"{NO_REPLICA}: nothing was changed; try again later")
        value: T = await self._proposals.put(command, actor)
        return value

    async def vouched(self, *, at_once: bool) -> int:
        raise Unavailable("this node does not lead; ask the one that does")

    async def read(self, query: Query[T]) -> T:
        local = reads_are_local()
        asked = msgspec.Raw(words.encode(query))
        deadline = trio.current_time() + self._settings.read_s_max
        attaching = self._attaching

        async def attempt(peer: NodeId, left_s: float) -> words.ReadAnswer:
            ask = words.ReadAsk(asked, local, attaching.at_least, left_s)
            body = words.encode(ask)
            try:
                answer = await self._wires.call(peer, words.READ, body, left_s)
            except Refused as refused:
                if refused.code != words.TOO_LONG:
                    raise
                answer = await self._read_long(peer, body, left_s)
            found: words.ReadAnswer = words.decoded(_decode_answer, answer)
            return found

        answer = await attaching.through(deadline, attempt)
        attaching.at_least = max(attaching.at_least, answer.at_least)
        value: T = msgspec.msgpack.decode(answer.value, type=words.ANSWERS[type(query)])
        return value

    async def _read_long(self, peer: NodeId, body: bytes, left_s: float) -> bytes:
        stream = await self._wires.open_stream(peer, words.READ, body, left_s)
        async with stream:
            answer = bytearray()
            while data := await stream.receive_some():
                answer += data
                if len(answer) > words.ANSWER_BYTES_MAX:
                    raise Refused("too_large", "the answer is too large; ask for less of it")
            return bytes(answer)

    @asynccontextmanager
    async def watch(
        self, after: int | None = None, wants: Callable[[Event], bool] | None = None
    ) -> AsyncIterator[Subscription]:
        """What is `Wanted` is picked out by the replica; of anything else all events come here."""
        wanted = wants if isinstance(wants, Wanted) else EVERYTHING
        attaching = self._attaching
        if after is not None:
            await attaching.standing(trio.current_time() + self._settings.read_s_max)
        live = _Live(attaching, wanted, wants)
        start = attaching.event_seq if after is None else after
        async with (
            self._feed.subscribe(live.past(after), start, wants) as events,
            attaching.following(wanted),
        ):
            live.since = attaching.event_seq
            if after is None:
                events.last_seq = max(start, live.since)
            yield events

    async def ask(self, target: NodeId | Leader, request: Ask[T]) -> T:
        return await self._asking.ask(target, request)

    def answers(
        self, request: type[Ask[Any]], answer: Callable[[Any], Awaitable[Any]]
    ) -> Callable[[], None]:
        return self._asking.answers(request, answer)

    def open_channel(
        self, target: NodeId, name: str, asked: bytes
    ) -> AbstractAsyncContextManager[Channel]:
        return open_channel(self._wires, target, name, asked)

    def answers_channel(self, name: str, answer: ChannelAnswer) -> None:
        serve_channel(self._wires, name, answer)

    def now_ms(self) -> int:
        beat = self._attaching.beat
        return max(0 if beat is None else beat.entry_at, self._now_ms())

    def clock_ms(self) -> int:
        return self._now_ms()

    async def _read_clock(self, ask: ReadClock) -> int:
        return self._now_ms()

    # Who leads, and who is there, as the replica says.

    @property
    def members(self) -> Mapping[NodeId, Node]:
        return self._attaching.members

    @property
    def acquainted(self) -> Collection[NodeId]:
        """One that comes back knows replicas alone, until one of them serves it."""
        return {**self.members, **dict(self._attaching.known.replicas)}

    @property
    def served_by(self) -> NodeId | None:
        session = self._attaching.session
        return None if session is None else session.peer

    @property
    def replicas(self) -> tuple[NodeId, ...]:
        """Whoever holds a replica, as far as is known: with fewer than the swarm may have, this
        node may ask to become one."""
        return tuple(self._attaching.replicas())

    def leadership(self) -> Leadership:
        beat = self._attaching.beat
        if beat is None:
            return Leadership(None, 0)
        fresh = trio.current_time() - self._attaching.beat_at < LEADER_KEPT_S
        return Leadership(beat.leader if fresh else None, beat.term)

    async def leadership_changed(self, seen: Leadership) -> Leadership:
        while self.leadership() == seen:
            with trio.move_on_after(LEADER_KEPT_S):
                await self._changed.wait()
        return self.leadership()

    def cluster_version(self) -> int:
        beat = self._attaching.beat
        return 1 if beat is None else beat.cluster_version

    def staleness_ms(self) -> int | None:
        """The replica's own, and the time since it was heard."""
        attaching = self._attaching
        if attaching.beat is None or attaching.beat.staleness_ms is None:
            return None
        since_s = trio.current_time() - attaching.beat_at
        return attaching.beat.staleness_ms + int(since_s * 1000)

    def peer(self, node_id: NodeId) -> PeerView:
        voters = self._attaching.voters
        role = Role.AGENT
        if node_id in voters.voters:
            role = Role.VOTER
        elif node_id in voters.learners:
            role = Role.LEARNER
        if node_id == self.node.id:
            return PeerView(role, alive=True)
        return view_of(role, node_id, self.neighbours, self._wires)

    def doubles(self) -> Doubles:
        return self.neighbours.doubles()

    def log_view(self) -> LogView:
        """The replica's."""
        beat, voters = self._attaching.beat, self._attaching.voters
        if beat is None:
            beat = words.Beat(None, 0, 1, 0, 0, 0, 0, 0, 0, None)
        return LogView(
            beat.term, beat.committed, beat.applied, beat.first, beat.last, voters.voters,
            voters.learners, voters.joint, {},
        )  # fmt: skip

    async def _read_log_view(self, ask: ReadLogView) -> LogView:
        return self.log_view()

    async def change_members(
        self, *, learners: tuple[NodeId, ...] = (), voters: tuple[NodeId, ...] = (),
        removed: tuple[NodeId, ...] = (),
    ) -> None:  # fmt: skip
        raise Unavailable("this node does not lead; ask the one that does")

    async def hand_over(self, to: NodeId | None = None) -> None:
        if to is not None and to != self.leadership().leader:
            raise Unavailable("this node does not lead; ask the one that does")

    async def copy_state(self, path: Path) -> StateCopy:
        raise Unavailable(NO_COPY)

    # What the session tells, and needs to know.

    @property
    def boot(self) -> int:
        return self._proposals.boot

    def waiting(self) -> tuple[int, ...]:
        return self._proposals.waiting()

    def know_outcomes(self, kept: Sequence[tuple[int, bytes]]) -> None:
        self._proposals.deliver_kept(kept)

    def changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._proposals.leader_changed()

    async def _make_sure_of_boot(self) -> None:
        """A log that was lost counts anew: then the swarm remembers a later boot than this."""
        while True:
            try:
                last = await self.read(LastBoot(self._origin))
                break
            except SwarmError as refusal:
                log.debug("not in touch with the swarm yet", extra={"reason": refusal.message})
                await trio.sleep(AGAIN_S)
        if last >= self._proposals.boot:
            self._proposals.boot = last + 1
            await keep_boot(self._log, last + 1)
            if (session := self._attaching.session) is not None:
                session.end("it began with the number of an earlier boot")
        self._boot_is_new.set()

    async def _remember(self) -> None:
        """Where replicas are, for the next start."""
        while True:
            known = self._attaching.known
            if known != self._remembered and known.replicas:
                await remember(self._log, known)
                self._remembered = known
            await self._changed.wait()


class _Door:
    """The way into the log: a replica that knows who leads."""

    def __init__(self, attaching: Attaching) -> None:
        self._attaching = attaching

    def enter(self, requests: Sequence[msgspec.Raw]) -> None:
        raise Unavailable("this node does not lead")

    def leadership(self) -> Leadership:
        session, beat = self._attaching.session, self._attaching.beat
        if session is None or beat is None:
            return Leadership(None, 0)
        return Leadership(None if beat.leader is None else session.peer, beat.term)

    def cluster_version(self) -> int:
        beat = self._attaching.beat
        return 1 if beat is None else beat.cluster_version


class _Relay:
    """Proposals go to the leader by the replica that serves this node."""

    def __init__(self, attaching: Attaching, wires: Wires) -> None:
        self._attaching = attaching
        self._wires = wires

    async def call(self, peer: str, method: str, body: bytes, timeout_s: float) -> bytes:
        session = self._attaching.session
        if session is None or session.peer != peer:
            raise Unreachable("that replica does not serve this node any more")
        return await self._wires.call(peer, words.PROPOSE, body, timeout_s)


class _Live:
    """A watch: where what it gets by itself begins, and what was before that."""

    def __init__(
        self, attaching: Attaching, wanted: Wanted, wants: Callable[[Event], bool] | None
    ) -> None:
        self.since = 0
        self._attaching = attaching
        self._wanted = wanted
        self._wants = wants

    async def past(self, after: int | None) -> AsyncIterator[Event]:
        at = self.since if after is None else after
        while at < self.since:
            page = await self._attaching.past(at, self.since, self._wanted, PAST_S_MAX)
            for event in page.events:
                if self._wants is None or self._wants(event):
                    yield event
            at = page.upto


@asynccontextmanager
async def open_remote(
    node: Node,
    raft_log: RaftLog,
    wires: Wires,
    settings: RemoteSettings,
    *,
    cluster_id: str = "",
    replicas: Mapping[NodeId, Sequence[str]] | None = None,
    seeds: Sequence[str] = (),
    trust: Trust | None = None,
    now_ms: Callable[[], int],
    new_id: Callable[[], str],
    rng: Rng,
    neighbours: Neighbours | None = None,
) -> AsyncIterator[Remote]:
    """Take part while the body runs. `replicas` are whom the swarm named when it took this node
    in; a later start needs neither them nor `seeds`."""
    known = remembered(raft_log)
    if replicas:
        places = tuple((n, tuple(addresses)) for n, addresses in replicas.items())
        known = words.Whereabouts(cluster_id, places)
        await remember(raft_log, known)
    if known is None and not seeds:
        raise Unavailable("this node knows of no replica: start it with mesh.join (--join)")
    remote = Remote(
        node, await next_boot(raft_log), raft_log, wires,
        known or words.Whereabouts(cluster_id, ()), tuple(seeds), settings,
        now_ms=now_ms, new_id=new_id, rng=rng, neighbours=neighbours,
    )  # fmt: skip
    remote.trust = trust
    async with trio.open_nursery() as nursery:
        await nursery.start(remote.run)
        nursery.start_soon(_introduce, remote)
        try:
            yield remote
        finally:
            nursery.cancel_scope.cancel()


async def _introduce(remote: Remote) -> None:
    if await make_known(remote):
        remote.introduced.set()


PAST_S_MAX = 10.0
_decode_answer: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(words.ReadAnswer)
