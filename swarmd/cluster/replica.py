"""A replica: this node holds the whole state, and agrees with the others on what changes it.

Every write goes through the log, every read asks the leader how far it must have come; what was
acknowledged anywhere is seen everywhere.
"""

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from mesh.consensus import Consensus
from mesh.raft import ConfState, Entry, EntryKind, LogLost, Message, ProposalDropped, Snapshot
from mesh.timing import beat
from mesh.wal import RaftLog, write_patiently
from mesh.wires import WireError, Wires
from swarmd.cluster.asking import Asking
from swarmd.cluster.asks import HandOver, ReadClock, ReadLogView
from swarmd.cluster.channels import open_channel, serve_channel
from swarmd.cluster.feed import Feed, FellBehind, Subscription
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
from swarmd.cluster.lineage import CLUSTER_ID
from swarmd.cluster.members import Members
from swarmd.cluster.neighbours import Neighbours, view_of
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.proposals import Proposals, ProposalSettings, serve_forwarded
from swarmd.cluster.rotating import Rotating
from swarmd.cluster.serving import Serving
from swarmd.cluster.snapshots import Snapshots, encode_conf
from swarmd.cluster.stamps import Stamps
from swarmd.cluster.trust import Trust
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, SwarmError, Unavailable, instead
from swarmd.domain.events import Event, NodeChanged, SettingChanged
from swarmd.domain.jobs import ENTRY_BYTES_MAX, NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Command
from swarmd.state.machine import Applied, Place
from swarmd.state.queries import (
    FindOutcomes,
    GetSetting,
    GetStanding,
    ListEvents,
    ListNodes,
    Query,
)
from swarmd.state.store import Slot, StateStore, encode_batch
from swarmd.state.versions import VERSION_KEY

log = logging.getLogger(__name__)

PING = "ping"
LINK_LOOK_S = 1.0
INSTALLING = "installing"
"""The log's fact: the index of a copy that is being put in the state's place."""
BATCH_BYTES_MAX = 200 * 1024
BATCH_REQUESTS_MAX = 512


class NotNewest(Unavailable):
    """This node forgot what it promised to others, and must not go on. `seeds` are the mesh
    addresses of those who may take it in as another node; none where it was alone."""

    def __init__(self, message: str, seeds: tuple[str, ...]) -> None:
        super().__init__(message)
        self.seeds = seeds


def not_newest(why: str, me: NodeId, members: Collection[Node]) -> NotNewest:
    message = (
        f"{why}. Going on with it could break promises to the others: put the newest files back,"
        " or move the data directory away and join again as a new node"
    )
    others = [node for node in members if node.id != me and node.mesh]
    return NotNewest(message, tuple(address for node in others for address in node.mesh))


@dataclass(frozen=True)
class ReplicaSettings:
    proposals: ProposalSettings = field(default_factory=ProposalSettings)
    read_s_max: float = 10.0
    """For a leader to vouch for a read, and for this node to have come so far."""
    ask_s_max: float = 35.0
    replicas_max: int = 9
    """Voters and learners; further nodes are served by them."""


class Replica:
    """The four verbs on a node that has the state."""

    blobs: BlobPort

    def __init__(
        self,
        node: Node,
        boot: int,
        raft_log: RaftLog,
        consensus: Consensus,
        store: StateStore,
        wires: Wires,
        snapshots: Snapshots,
        settings: ReplicaSettings,
        *,
        now_ms: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self.node = node
        self.cluster_id = ""
        self.introduced = trio.Event()
        """The swarm knows this node as it is."""
        self.removed = trio.Event()
        """The swarm knows this node no more, and takes no word of it."""
        self.new_id = new_id
        self._log = raft_log
        self._consensus = consensus
        self._store = store
        self._wires = wires
        self._snapshots = snapshots
        self._settings = settings
        self._now_ms = now_ms
        self._feed = Feed()
        self._raft_id = raft_id_of(node.id)
        self._proposals = Proposals(
            node.id, self._raft_id, boot, self, wires, settings.proposals, self._hindrance
        )
        self._members = Members(self, consensus, wires, settings.replicas_max)
        self._asking = Asking(
            node.id, wires, lambda: self.members, self.leadership, settings.ask_s_max
        )
        self._serving = Serving(self, self._feed, wires)
        self._stamped_at = store.last_at
        self._stamps = Stamps(now_ms)
        self._applied = store.place.index
        self._applied_waits: list[tuple[int, int, trio.Event]] = []
        self._wait_numbers = itertools.count()
        self._last_event_seq = 0
        self._version = 1
        self._leadership = Leadership(None, 0)
        self._changed = trio.Event()
        self._members_stale = trio.Event()
        self.members: dict[NodeId, Node] = {}
        self.neighbours = Neighbours()
        self.trust: Trust | None = None
        """None where the wires prove nothing: in a simulated swarm."""
        self.told: Mapping[str, Sequence[str]] = {}
        """Members and where they live, as a node is told when it joins: it must be able to answer
        them before its replica has them."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part, until it is cancelled."""
        self._last_event_seq = (await self._store.read(GetStanding())).event_seq
        await self._load_members()
        serve_forwarded(self, self._wires)
        self._asking.serve()
        self._serving.serve()
        self._wires.handle_call(PING, lambda peer, body: self.cluster_id.encode())
        self._members.serve()
        self.answers(ReadClock, self._read_clock)
        self.answers(ReadLogView, self._read_log_view)
        self.answers(HandOver, self._asked_to_hand_over)
        async with trio.open_nursery() as nursery:
            self._snapshots.begin(nursery, self._consensus.step)
            nursery.start_soon(self._proposals.run)
            nursery.start_soon(self._keep_members)
            nursery.start_soon(self._keep_linked)
            nursery.start_soon(self._serving.run)
            if self.trust is not None:
                self.trust.serve(self, self._wires)
                Rotating(self, self.trust, self._wires).serve()
                nursery.start_soon(self.trust.run, self, self._wires)
            nursery.start_soon(self._agree)
            task_status.started()

    async def _agree(self) -> None:
        def lost(error: BaseException) -> BaseException:
            why = "another node proves that the log on disk is not the newest of this node"
            return not_newest(f"{why}: {error}", self.node.id, self.members.values())

        with instead(LogLost, lost):
            await self._consensus.run(self)

    # The four verbs.

    async def propose(self, command: Command[T], actor: Actor) -> T:
        value: T = await self._proposals.put(command, actor)
        return value

    async def read(self, query: Query[T]) -> T:
        if not reads_are_local():
            await self._catch_up(self._consensus.read_index)
        return await self._store.read(query)

    async def vouched(self, *, at_once: bool) -> int:
        if not self._consensus.leads:
            raise Unavailable("this node does not lead")
        consensus = self._consensus
        asking = consensus.read_index if at_once else consensus.read_index_with_heartbeat
        return await self._catch_up(asking)

    async def _catch_up(self, asking: Callable[[], Awaitable[int | None]]) -> int:
        with trio.move_on_after(self._settings.read_s_max):
            index = await asking()
            if index is None:
                raise Unavailable("this node leads no longer")
            await self.wait_applied(index)
            return index
        raise Unavailable(
            "nobody vouches for the state at present: this node reaches no leader. Ask with"
            " `X-Swarm-Consistency: local` for what it knows by itself"
        )

    def watch(
        self, after: int | None = None, wants: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[Subscription]:
        start = self._last_event_seq if after is None else after
        return self._feed.subscribe(self._past(start, self._last_event_seq, wants), start, wants)

    async def _past(
        self, after: int, upto: int, wants: Callable[[Event], bool] | None
    ) -> AsyncIterator[Event]:
        while after < upto:
            events = await self._store.read(ListEvents(after))
            if not events or events[0].seq != after + 1:
                oldest = events[0].seq if events else upto + 1
                raise FellBehind(
                    f"events from {after + 1} on are no longer kept, the oldest is {oldest}: begin"
                    " anew from the state",
                    after=after,
                    oldest=oldest,
                )
            for event in events:
                if event.seq > upto:
                    return
                after = event.seq
                if wants is None or wants(event):
                    yield event

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
        return self._stamps.now_ms(self.entry_at)

    def clock_ms(self) -> int:
        return self._now_ms()

    async def _read_clock(self, ask: ReadClock) -> int:
        return self._now_ms()

    # Who leads, and who is there.

    def leadership(self) -> Leadership:
        return self._leadership

    async def leadership_changed(self, seen: Leadership) -> Leadership:
        while self._leadership == seen:
            await self._changed.wait()
        return self._leadership

    def cluster_version(self) -> int:
        return self._version

    @property
    def applied(self) -> int:
        return self._applied

    @property
    def event_seq(self) -> int:
        return self._last_event_seq

    @property
    def entry_at(self) -> int:
        return max(self._stamped_at, self._store.last_at)

    def staleness_ms(self) -> int | None:
        if self._consensus.leads:
            return 0
        heard = self._consensus.heard_at
        return None if heard is None else int((trio.current_time() - heard) * 1000)

    def peer(self, node_id: NodeId) -> PeerView:
        conf, raft_id = self._consensus.conf, raft_id_of(node_id)
        role = Role.AGENT
        if raft_id in conf.voters or raft_id in conf.voters_outgoing:
            role = Role.VOTER
        elif raft_id in conf.learners or raft_id in conf.learners_next:
            role = Role.LEARNER
        if node_id == self.node.id:
            return PeerView(role, alive=True)
        return view_of(role, node_id, self.neighbours, self._wires)

    def _hindrance(self) -> str:
        voters = self._members.view().voters
        there = sum(self.peer(voter).alive for voter in voters)
        needed = len(voters) // 2 + 1
        return f"this node sees {there} of {len(voters)} voters, {needed} are needed"

    @property
    def acquainted(self) -> Collection[NodeId]:
        return self.members

    def doubles(self) -> Doubles:
        return self.neighbours.doubles()

    def log_view(self) -> LogView:
        return self._members.view()

    async def change_members(
        self, *, learners: tuple[NodeId, ...] = (), voters: tuple[NodeId, ...] = (),
        removed: tuple[NodeId, ...] = (),
    ) -> None:  # fmt: skip
        await self._members.change(learners=learners, voters=voters, removed=removed)

    async def hand_over(self, to: NodeId | None = None) -> None:
        await self._members.hand_over(to)

    async def _read_log_view(self, ask: ReadLogView) -> LogView:
        return self.log_view()

    async def _asked_to_hand_over(self, ask: HandOver) -> None:
        await self.hand_over(ask.to)

    async def hand_over_and_leave(self) -> None:
        """Before this node stops: those who go on need not miss it first."""
        if self._consensus.leads:
            try:
                await self.hand_over()
            except SwarmError as refusal:
                log.warning("stopping as the leader", extra={"reason": refusal.message})

    async def conf_changed(self) -> None:
        """Wait until the membership, or who leads, may be another."""
        await self._changed.wait()

    async def copy_state(self, path: Path) -> StateCopy:
        file = await self._store.copy_to(path)
        return StateCopy(file.place.index, file.place.term, file.size_bytes, file.sha256)

    async def wait_applied(self, index: int) -> None:
        """Until this node's replica has come so far."""
        if self._applied < index:
            event = trio.Event()
            heapq.heappush(self._applied_waits, (index, next(self._wait_numbers), event))
            await event.wait()

    # The way into the log: cluster.proposals calls these.

    def enter(self, requests: Sequence[msgspec.Raw]) -> None:
        leadership = self._leadership
        if leadership.leader != self.node.id or not leadership.ready:
            raise Unavailable("this node does not lead")
        self._stamped_at = self.now_ms()
        entries = [encode_batch(self._stamped_at, part) for part in _parts(requests)]
        try:
            self._consensus.propose(entries)
        except ProposalDropped as dropped:
            if self._consensus.leads and not self._consensus.transferring:
                raise Busy("too much is under way in the log; try again shortly") from dropped
            raise Unavailable("this node leads no longer") from dropped

    # The application of the log: mesh.consensus calls these.

    def apply(
        self, entries: Sequence[Entry], conf: ConfState | None, done: Callable[[], None]
    ) -> None:
        slots = [
            Slot(e.index, e.term, e.data if e.kind is EntryKind.NORMAL else b"") for e in entries
        ]
        last = entries[-1]
        place = Place(last.index, last.term, None if conf is None else encode_conf(conf))

        def applied(outcomes: Sequence[Applied], upto: Place) -> None:
            self._applied = upto.index
            self._publish(outcomes)
            self._proposals.deliver(outcomes)
            self._serving.deliver(outcomes, upto.index)
            done()
            self._wake_applied()

        self._store.submit(slots, place, applied)

    def _publish(self, applied: Sequence[Applied]) -> None:
        events = [event for outcome in applied for event in outcome.events]
        if not events:
            return
        self._last_event_seq = events[-1].seq
        for event in events:
            body = event.body
            if isinstance(body, NodeChanged) or (
                isinstance(body, SettingChanged) and body.key in (VERSION_KEY, CLUSTER_ID)
            ):
                self._members_stale.set()
        self._feed.publish(events)

    def _wake_applied(self) -> None:
        while self._applied_waits and self._applied_waits[0][0] <= self._applied:
            heapq.heappop(self._applied_waits)[2].set()
        self._note_leadership()

    async def install(self, snapshot: Snapshot, restore_log: Callable[[], Awaitable[None]]) -> None:
        file = self._snapshots.received(snapshot)
        # Should the process end between the two, the next start ends what this one began.
        await self._note_installing(snapshot.meta.index)
        await self._store.install(file)
        await restore_log()
        await self._note_installing(0)
        self._applied = snapshot.meta.index
        self._last_event_seq = (await self._store.read(GetStanding())).event_seq
        self._feed.cut_off()
        self._serving.cut_off()
        waiting = self._proposals.waiting()
        if waiting:
            asked = FindOutcomes(self._raft_id, self._proposals.boot, waiting)
            kept = await self._store.read(asked)
            self._proposals.deliver_kept(kept)
        self._members_stale.set()
        self._wake_applied()
        log.info("the state was taken over from a copy", extra={"index": self._applied})

    async def _note_installing(self, index: int) -> None:
        await write_patiently(lambda: self._log.set_fact(INSTALLING, str(index).encode()))

    def send_snapshot(self, peer: str, message: Message, sent: Callable[[bool], None]) -> None:
        self._snapshots.send(peer, message, sent)

    def changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
        self._note_leadership()

    def _note_leadership(self) -> None:
        consensus = self._consensus
        leader = consensus.name_of(consensus.leader) if consensus.leader else None
        ready = consensus.leads and self._applied >= consensus.term_began > 0
        now = Leadership(None if leader is None else NodeId(leader), consensus.term, ready)
        if now == self._leadership:
            return
        before, self._leadership = self._leadership, now
        if now.leader is not None and before.leader != now.leader:
            log.info("a leader is known", extra={"leader": now.leader, "term": now.term})
        self._changed.set()
        self._changed = trio.Event()
        self._proposals.leader_changed()

    async def _keep_members(self) -> None:
        while True:
            await self._members_stale.wait()
            self._members_stale = trio.Event()
            await self._load_members()

    async def _keep_linked(self) -> None:
        """A stream to every member, so that one that breaks is noticed."""
        while True:
            for node_id in self.members:
                if node_id != self.node.id and not self._wires.linked(node_id):
                    with suppress(WireError):
                        await self._wires.call(node_id, PING, b"", LINK_LOOK_S)
            await beat(LINK_LOOK_S)

    async def _load_members(self) -> None:
        nodes = await self._store.read(ListNodes())
        was_member = self.node.id in self.members
        self.members = {node.id: node for node in nodes}
        if was_member and self.node.id not in self.members:
            self.removed.set()
        known = await self._store.read(GetSetting(VERSION_KEY))
        self._version = 1 if known is None else int(known)
        self.cluster_id = (await self._store.read(GetSetting(CLUSTER_ID)) or b"").decode() or (
            self.cluster_id
        )
        self._consensus.know({raft_id_of(node.id): node.id for node in nodes})
        told = {} if self.node.id in self.members else self.told
        known_peers: dict[str, Sequence[str]] = {n.id: n.mesh for n in nodes if n.mesh}
        peers = {**told, **known_peers}
        peers.pop(self.node.id, None)
        self._wires.set_peers(peers)


def _parts(requests: Sequence[msgspec.Raw]) -> list[list[msgspec.Raw]]:
    """Requests in entries: many share one, none is over the bound."""
    parts: list[list[msgspec.Raw]] = [[]]
    size = 0
    for request in requests:
        size += memoryview(request).nbytes
        if parts[-1] and (size > BATCH_BYTES_MAX or len(parts[-1]) >= BATCH_REQUESTS_MAX):
            parts.append([])
            size = memoryview(request).nbytes
        parts[-1].append(request)
    return parts


assert BATCH_BYTES_MAX < ENTRY_BYTES_MAX
