"""Consensus with its I/O: one task makes writes, messages and applies of what the core wants.

The core is touched from Trio's thread alone. Nothing that promises durability leaves before the log
has it on disk; the log's and the state's threads answer by callbacks, in the order of asking.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import msgspec
import trio

from mesh.garbage import GARBAGE
from mesh.raft import (
    APPEND_THREAD,
    APPLY_THREAD,
    NOBODY,
    AnyChange,
    Config,
    ConfState,
    Entry,
    EntryKind,
    HardState,
    LogLost,
    Message,
    MessageKind,
    PeerNotFound,
    ProposalDropped,
    RawNode,
    ReadDropped,
    Snapshot,
    Status,
    conf_state_after,
    decode_change,
)
from mesh.succession import Succession
from mesh.ticking import Ticking
from mesh.timing import Rng, Timing
from mesh.vouching import Vouching
from mesh.wal import RaftLog, write_patiently
from mesh.wal_errors import LogBusy
from mesh.wires import Refused, Wires

log = logging.getLogger(__name__)


class Application(Protocol):
    """What is agreed on goes here."""

    def apply(
        self, entries: Sequence[Entry], conf: ConfState | None, done: Callable[[], None]
    ) -> None:
        """Apply in order; `conf` is the membership from the last of these entries on."""

    async def install(self, snapshot: Snapshot, restore_log: Callable[[], Awaitable[None]]) -> None:
        """Put a snapshot that was received in the place of the state, and the log with it."""

    def send_snapshot(self, peer: str, message: Message, sent: Callable[[bool], None]) -> None:
        """Bring a snapshot to a peer, with the message that announces it; say how it went."""

    def changed(self) -> None:
        """Who leads, in which term, or who is a member, is another than before."""


class Consensus:
    def __init__(
        self,
        raft_id: int,
        node: RawNode,
        raft_log: RaftLog,
        wires: Wires,
        timing: Timing,
        rng: Rng,
        boot: int,
        conf: ConfState,
    ) -> None:
        self.raft_id = raft_id
        self._node = node
        self._core = node.core
        self._conf = conf
        """As of what was handed to the application."""
        self._log = raft_log
        self._wires = wires
        self._timing = timing
        self._rng = rng
        self._application: Application
        self._nursery: trio.Nursery
        self._wake = trio.Event()
        self._names: dict[int, str] = {}
        self._appends: deque[Message] = deque()
        self._installing = False
        self._writing = 0
        """Writes that the log has not finished."""
        self._lagging: HardState | None = None
        """A commit index that the log was not told of yet."""
        self._standing = (0, 0)
        self.term_began = 0
        """On the leader: what must be applied before it knows all that was acknowledged."""
        self._known_commit = 0
        self.heard_at: float | None = None
        """When this node last knew that it was in touch with the leader of the day."""
        prefix = raft_id.to_bytes(8, "big") + boot.to_bytes(8, "big")
        self._vouching = Vouching(
            node, timing, prefix, leads=lambda: self.leads, knows=self._knows_committed,
            wake=self._kick,
        )  # fmt: skip
        self._succession = Succession(raft_id, node, wires, timing, rng, self._kick)
        self._broken: BaseException | None = None
        self._runs = False
        self._ticking = Ticking(node, timing, lambda: self.leads)

    # What others ask of it.

    @property
    def term(self) -> int:
        return self._core.term

    @property
    def leader(self) -> int:
        return self._core.lead

    @property
    def leads(self) -> bool:
        return self._core.lead == self.raft_id

    @property
    def transferring(self) -> bool:
        return self._node.status().transferee != NOBODY

    @property
    def conf(self) -> ConfState:
        return self._node.status().conf_state

    def first_index(self) -> int:
        return self._log.first_index()

    def status(self) -> Status:
        return self._node.status()

    def name_of(self, raft_id: int) -> str | None:
        return self._names.get(raft_id)

    def know(self, names: Mapping[int, str]) -> None:
        """By which names the wires know the members, beside those known before."""
        self._names.update(names)

    def propose(self, data: Sequence[bytes]) -> None:
        """Into the leader's log, in this order. ProposalDropped: none of it."""
        self._node.propose(*data)
        self._work()

    def propose_change(self, change: AnyChange) -> None:
        self._node.propose_conf_change(change)
        self._wake.set()

    def campaign(self) -> None:
        self._node.campaign()
        self._wake.set()

    def transfer(self, to: int) -> None:
        self._node.transfer_leader(to)
        self._wake.set()

    async def read_index(self) -> int:
        """An index that covers everything acknowledged before this call. Waits for a leader."""
        return await self._vouching.read()

    async def read_index_with_heartbeat(self) -> int | None:
        """The same on the leader, at the price of no message. None: it leads no longer."""
        return await self._vouching.read_with_heartbeat()

    def _knows_committed(self) -> bool:
        """As a leader: it has committed an entry of its term. The core asks for that too, but not
        of one that is the only voter, whose commit index may have lagged when the power went."""
        standing = (self._core.term, self._core.lead)
        return standing == self._standing and self._core.log.committed >= self.term_began

    # The task.

    async def run(self, application: Application) -> None:
        """Until it is cancelled. LogLost and failures of the disks are raised: end the process."""
        self._application = application
        self._wires.handle_message(self._receive, self._settle)
        self._wires.on_link(self._link_changed)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                self._runs = True
                self._succession.begin(nursery)
                nursery.start_soon(
                    self._ticking.run, self._vouching.ask_with_heartbeat, self._ticked
                )
                while True:
                    self._work()
                    await self._wake.wait()
                    self._wake = trio.Event()
        finally:
            self._runs = False
            self._succession.end()  # the wires live longer, and go on telling of links

    def _kick(self) -> None:
        self._wake.set()

    def _link_changed(self, peer: str, up: bool, reason: str) -> None:
        if not up and self._names.get(self._core.lead) == peer:
            self._succession.suspect(peer)

    def _ticked(self) -> None:
        self._succession.look()
        self._settle()

    def _receive(self, peer: str, body: bytes) -> None:
        if self._broken is not None:
            return
        try:
            message = _decode(body)
        except GARBAGE as error:
            raise Refused("invalid", f"{peer} sent no message of the log: {error}") from None
        if message.sender not in self._names:
            self._names[message.sender] = peer
        if self._names[message.sender] != peer or message.to != self.raft_id:
            raise Refused("invalid", f"{peer} speaks for another node")
        if message.kind is MessageKind.SNAPSHOT:
            raise Refused("invalid", f"{peer} sent a snapshot without its content")
        self._take(message)

    def _settle(self) -> None:
        """What came together is worked on together, and in the turn of the loop that it came in:
        a heartbeat is answered in one waking."""
        if not self._is_due() or not self._runs:
            return
        if self._broken is None:
            try:
                self._work()
                return
            except BaseException as error:
                self._broken = error
        self._wake.set()

    def step(self, message: Message) -> None:
        """A message whose sender was made sure of."""
        self._take(message)
        self._wake_if_due()

    def _take(self, message: Message) -> None:
        self._ticking.catch_up()
        try:
            self._node.step(message)
        except (PeerNotFound, ProposalDropped, ReadDropped):
            pass
        except LogLost as lost:
            self._broken = lost
        if message.sender == self._core.lead:
            # A heartbeat names no more than this node has; an append, how far the leader is.
            self._known_commit = max(self._known_commit, message.commit)
            if self._core.log.applied >= self._known_commit:
                self.heard_at = trio.current_time()

    def _wake_if_due(self) -> None:
        """Each turn of the task is a turn of the loop: it is not woken for nothing."""
        if not self._wake.is_set() and self._is_due():
            self._wake.set()

    def _is_due(self) -> bool:
        return bool(
            self._broken is not None
            or self._appends
            or self._vouching.wanted
            or self._node.has_ready()
        )

    def _work(self) -> None:
        """Everything that the core wants by now."""
        if self._broken is not None:
            raise self._broken
        self._vouching.ask()
        node = self._node
        while node.has_ready():
            ready = node.ready()
            for message in ready.messages:
                if message.to == APPEND_THREAD:
                    self._appends.append(message)
                elif message.to == APPLY_THREAD:
                    self._apply(message)
                elif message.kind is MessageKind.SNAPSHOT:
                    self._send_snapshot(message)
                else:
                    self._send(message)
            for state in ready.read_states:
                self._vouching.answered(state.context, state.index)
            self._write()
        standing = (self._core.term, self._core.lead)
        if standing != self._standing:
            self._standing = standing
            self.term_began = node.status().last_index if self.leads else 0
            self._vouching.forget()
            self._application.changed()
        self._succession.look()
        self._ticking.look()

    def _send(self, message: Message) -> None:
        peer = self._names.get(message.to)
        if peer is None or not self._wires.send(peer, _encode(message)):
            self._node.report_unreachable(message.to)

    def _send_snapshot(self, message: Message) -> None:
        peer = self._names.get(message.to)

        def sent(ok: bool) -> None:
            self._node.report_snapshot(message.to, ok)
            self._wake.set()

        if peer is None:
            sent(False)
        else:
            self._application.send_snapshot(peer, message, sent)

    def _write(self) -> None:
        """Hand writes to the log in order; one that brings a snapshot holds up those behind it."""
        while self._appends and not self._installing:
            message = self._appends.popleft()
            if message.snapshot is not None:
                self._installing = True
                self._nursery.start_soon(self._install, message, message.snapshot)
                return
            if not self._writing and not message.entries and self._may_lag(message.hard_state):
                self._lagging = message.hard_state or self._lagging
                self._stored(message)
                continue
            written = partial(self._written, message)
            hard_state = message.hard_state or self._lagging
            try:
                self._log.append(message.entries, hard_state, on_done=written)
            except LogBusy:  # each write that ends wakes us
                self._appends.appendleft(message)
                return
            self._writing += 1
            self._lagging = None

    def _may_lag(self, state: HardState | None) -> bool:
        """Nothing of it has to be on disk: a commit index is a hint, and goes with the next write.
        So, with no write under way, what waits for it need not wait for the log's thread."""
        if state is None:
            return True
        durable = self._log.hard_state
        return (state.term, state.vote) == (durable.term, durable.vote)

    def _written(self, message: Message) -> None:
        self._writing -= 1
        self._stored(message)

    async def _install(self, message: Message, snapshot: Snapshot) -> None:
        async def restore_log() -> None:
            await write_patiently(
                lambda: self._log.append(message.entries, message.hard_state, snapshot.meta)
            )

        self._conf = snapshot.meta.conf_state
        await self._application.install(snapshot, restore_log)
        self._installing = False
        self._stored(message)

    def _stored(self, message: Message) -> None:
        for response in message.responses:
            if response.to == self.raft_id:
                self.step(response)
            else:
                self._send(response)
        self._wake_if_due()

    def _apply(self, message: Message) -> None:
        conf: ConfState | None = None
        for entry in message.entries:
            if entry.kind is not EntryKind.NORMAL:
                change = decode_change(entry)
                assert change is not None
                self._node.apply_conf_change(change, entry.index)
                # Not what the core goes by: a snapshot may have overtaken this entry there.
                conf = self._conf = conf_state_after(self._conf, change)

        def applied() -> None:
            for response in message.responses:
                self.step(response)

        self._application.apply(message.entries, conf, applied)
        if conf is not None:
            self._application.changed()


def core_config(raft_id: int, timing: Timing, applied: int) -> Config:
    """How the product runs the core."""
    return Config(
        id=raft_id,
        election_tick=timing.election_ticks,
        heartbeat_tick=timing.heartbeat_ticks,
        max_size_per_msg=512 * 1024,
        max_committed_size_per_ready=1024 * 1024,
        max_uncommitted_bytes=32 * 1024 * 1024,
        max_inflight_msgs=64,
        max_inflight_bytes=8 * 1024 * 1024,
        check_quorum=True,
        pre_vote=True,
        disable_proposal_forwarding=True,
        step_down_on_removal=True,
        async_storage_writes=True,
        applied=applied,
    )


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Message).decode
