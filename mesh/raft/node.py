"""A node of the core as the application holds it: things go in, `Ready` comes out.

The loop: while `has_ready()`, take `ready()`, and in this order write hard state, entries and
snapshot durably, send the messages, apply the committed entries, then call `advance()`. A Ready is
taken once; the next one comes after `advance()`. With `async_storage_writes` there is no
`advance()`: see `Ready.messages`.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from mesh.raft import election, following, reading, reconfiguring, replication
from mesh.raft import step as rules
from mesh.raft.confchange import AnyChange, encode_change
from mesh.raft.config import Config
from mesh.raft.core import Core, Randrange
from mesh.raft.errors import MessageRefused, PeerNotFound
from mesh.raft.messages import (
    APPEND_THREAD,
    APPLY_THREAD,
    FROM_PEERS,
    LOCAL,
    Message,
    MessageKind,
)
from mesh.raft.progress import ProgressView
from mesh.raft.reads import ReadState
from mesh.raft.sizes import entries_bytes
from mesh.raft.storage import Storage
from mesh.raft.trace import Role, Trace
from mesh.raft.types import NO_LIMIT, NOBODY, ConfState, Entry, HardState, Snapshot


class SoftState(msgspec.Struct, frozen=True, gc=False):
    """What changes without a trace on disk."""

    lead: int
    role: Role


class Ready(msgspec.Struct, frozen=True):
    """What is to be done. None and () stand for nothing of the kind."""

    soft_state: SoftState | None = None
    hard_state: HardState | None = None
    """To be durable before any of `messages` leaves."""
    read_states: tuple[ReadState, ...] = ()
    """Reads that may be answered as soon as their index has been applied."""
    entries: tuple[Entry, ...] = ()
    """To be durable before any of `messages` leaves; they replace what has their indexes."""
    snapshot: Snapshot | None = None
    """To take the place of the whole log and of the machine's state."""
    committed_entries: tuple[Entry, ...] = ()
    """To be applied in this order, after `snapshot`; changes by `apply_conf_change`."""
    messages: tuple[Message, ...] = ()
    """To be sent after the write. With async storage writes they may leave at once: all that must
    wait stands in the `responses` of the STORAGE_APPEND and STORAGE_APPLY among them. Those go to
    the node's own threads, in their order; when one is done, each of its responses is sent, or
    given to `step` where it is for this node."""
    must_sync: bool = False
    """Does the write need an fsync? Not where only the commit has moved."""


class Status(msgspec.Struct, frozen=True):
    id: int
    term: int
    vote: int
    commit: int
    applied: int
    last_index: int
    lead: int
    role: Role
    transferee: int
    conf_state: ConfState
    progress: dict[int, ProgressView]
    """Of every member, on the leader; else empty."""


class RawNode:
    """Not to be used from two tasks at once."""

    def __init__(
        self,
        config: Config,
        storage: Storage,
        *,
        randrange: Randrange,
        trace: Trace | None = None,
    ) -> None:
        """`randrange(n)` draws a number from 0 to n - 1: nothing else here is left to chance."""
        self.core = Core(config, storage, randrange, trace)
        self._async = config.async_storage_writes
        self._soft_state = self._soft_state_now()
        self._hard_state = self.core.hard_state
        self._on_advance: list[Message] | None = None

    # In

    def tick(self) -> None:
        rules.tick(self.core)

    def ticks_to_act(self) -> int:
        """With which of the next ticks something is due, should nothing happen before."""
        return max(1, rules.ticks_to_act(self.core))

    def step(self, message: Message) -> None:
        """Take a message of a peer, or an answer of this node's own threads."""
        if message.to != self.core.id:
            # Whoever had this address before may have had another id.
            raise MessageRefused(f"{message.kind.name} is for node {message.to}")
        if message.kind in LOCAL:
            if message.sender not in (APPEND_THREAD, APPLY_THREAD):
                raise MessageRefused(f"{message.kind.name} came from node {message.sender}")
        elif message.kind in FROM_PEERS and message.sender not in self.core.tracker.peers:
            raise PeerNotFound(f"node {message.sender} is no member")
        rules.step(self.core, message)

    def campaign(self) -> None:
        """Stand for election now."""
        election.start(self.core)

    def propose(self, *data: bytes) -> None:
        """Append these, one entry each, or pass them on to the leader: all or none.

        ProposalDropped where there is no leader, or too much is under way. An entry that was
        taken may still be lost with its leader.
        """
        self._propose(Entry(0, 0, item) for item in data)

    def propose_conf_change(self, change: AnyChange) -> None:
        """As `propose`. A change that may not be made now, because another one is under way,
        becomes an empty entry; one that could never be applied is dropped."""
        kind, data = encode_change(change)
        self._propose([Entry(0, 0, data, kind)])

    def apply_conf_change(self, change: AnyChange, index: int = NO_LIMIT) -> ConfState:
        """To be called for each committed change, when the entry at `index` is applied.

        Returns the members as this node goes by them now. With async storage writes a snapshot
        may have overtaken the entry: then nothing is done, and what the machine keeps of the
        members is to be had from `conf_state_after`.
        """
        if index <= self.core.restored_index:
            return self.core.tracker.membership.conf_state()
        return reconfiguring.apply_change(self.core, change.as_v2())

    def read_index(self, context: bytes, *, at_once: bool = True) -> None:
        """Ask for an index that a read must wait for; it comes as a ReadState with this context,
        or never: ask again in time. No context may be used twice in a swarm. A leader can have it
        wait for its next heartbeat. ReadDropped."""
        if not context:
            raise ValueError("a read needs a context of its own")
        message = Message(MessageKind.READ_INDEX, NOBODY, self.core.id, context=context)
        if at_once or self.core.role is not Role.LEADER:
            rules.step(self.core, message)
        else:
            reading.on_read_as_leader(self.core, message, at_once=False)

    def transfer_leader(self, to: int) -> None:
        """Have this node lead, if it is up to date within an election timeout."""
        rules.step(self.core, Message(MessageKind.TRANSFER_LEADER, NOBODY, to))

    def forget_leader(self) -> None:
        """The leader is known to be gone: do not wait for it before voting for others."""
        following.forget_leader(self.core)

    def report_unreachable(self, peer: int) -> None:
        """A message to this peer was lost for sure."""
        if self.core.role is Role.LEADER:
            replication.on_unreachable(self.core, peer)

    def report_snapshot(self, peer: int, succeeded: bool) -> None:
        """A snapshot has been sent whole, or not. To be called for every one."""
        if self.core.role is Role.LEADER:
            replication.on_snapshot_report(self.core, peer, succeeded)

    # Out

    def has_ready(self) -> bool:
        core = self.core
        unstable = core.log.unstable
        return (
            bool(core.outbox)
            or bool(core.after_append)
            or bool(core.read_states)
            or unstable.has_new_entries
            or unstable.new_snapshot is not None
            or core.log.has_next_committed(allow_unstable=not self._async)
            or core.role is not self._soft_state.role
            or core.lead != self._soft_state.lead
            or core.hard_state != self._hard_state
        )

    def ready(self) -> Ready:
        """All there is to do now. It is taken for granted that it will be done."""
        assert self._on_advance is None, "advance() is due for the last Ready"
        core = self.core
        log = core.log
        soft_state = self._soft_state_now()
        hard_state = core.hard_state
        entries = log.unstable.new_entries()
        snapshot = log.unstable.new_snapshot
        committed = log.next_committed(allow_unstable=not self._async)
        changed = hard_state if hard_state != self._hard_state else None
        must_sync = bool(entries) or (
            hard_state.term != self._hard_state.term or hard_state.vote != self._hard_state.vote
        )
        messages = core.outbox
        if self._async:
            messages = [*messages, *self._storage_work(changed, entries, snapshot, committed)]
        else:
            mine = [message for message in core.after_append if message.to == core.id]
            messages = [*messages, *(m for m in core.after_append if m.to != core.id)]
            self._on_advance = [*mine, *self._answers(snapshot, committed)]
        ready = Ready(
            soft_state=soft_state if soft_state != self._soft_state else None,
            hard_state=changed,
            read_states=tuple(core.read_states),
            entries=entries,
            snapshot=snapshot,
            committed_entries=committed,
            messages=tuple(messages),
            must_sync=must_sync,
        )
        self._soft_state, self._hard_state = soft_state, hard_state
        core.read_states = []
        core.outbox, core.after_append = [], []
        log.unstable.accept()
        if committed:
            log.accept_applying(
                committed[-1].index, entries_bytes(committed), allow_unstable=not self._async
            )
        return ready

    def advance(self) -> None:
        """All that the last Ready asked for has been done."""
        assert not self._async, "with async storage writes the responses take the place of this"
        assert self._on_advance is not None, "there is no Ready that was taken"
        due, self._on_advance = self._on_advance, None
        for message in due:
            rules.step(self.core, message)

    def status(self) -> Status:
        core = self.core
        leads = core.role is Role.LEADER
        return Status(
            id=core.id,
            term=core.term,
            vote=core.vote,
            commit=core.log.committed,
            applied=core.log.applied,
            last_index=core.log.last_index,
            lead=core.lead,
            role=core.role,
            transferee=core.transferee,
            conf_state=core.tracker.membership.conf_state(),
            progress={p: known.view() for p, known in core.tracker.peers.items()} if leads else {},
        )

    def _propose(self, entries: Iterable[Entry]) -> None:
        core = self.core
        rules.step(core, Message(MessageKind.PROPOSE, core.id, core.id, entries=tuple(entries)))

    def _soft_state_now(self) -> SoftState:
        return SoftState(self.core.lead, self.core.role)

    def _storage_work(
        self,
        hard_state: HardState | None,
        entries: tuple[Entry, ...],
        snapshot: Snapshot | None,
        committed: tuple[Entry, ...],
    ) -> list[Message]:
        core = self.core
        work = []
        if hard_state or entries or snapshot or core.after_append:
            state = hard_state or HardState()
            # The answers of an earlier write may still be on their way: each write promises
            # all that was said until then.
            work.append(
                Message(
                    MessageKind.STORAGE_APPEND,
                    APPEND_THREAD,
                    core.id,
                    state.term,
                    commit=state.commit,
                    vote=state.vote,
                    entries=entries,
                    snapshot=snapshot,
                    responses=(*core.after_append, *self._append_answer(snapshot)),
                )
            )
        if committed:
            work.append(
                Message(
                    MessageKind.STORAGE_APPLY,
                    APPLY_THREAD,
                    core.id,
                    entries=committed,
                    responses=(self._apply_answer(committed),),
                )
            )
        return work

    def _answers(self, snapshot: Snapshot | None, committed: tuple[Entry, ...]) -> list[Message]:
        answers = self._append_answer(snapshot)
        return [*answers, self._apply_answer(committed)] if committed else answers

    def _append_answer(self, snapshot: Snapshot | None) -> list[Message]:
        """What the append thread says when it is done. It bears this term: of a later one it is
        ignored, for a write of that term may then be overwriting the same entries."""
        core = self.core
        log = core.log
        waiting = bool(log.unstable.entries)
        if not waiting and snapshot is None:
            return []
        return [
            Message(
                MessageKind.STORAGE_APPEND_RESPONSE,
                core.id,
                APPEND_THREAD,
                core.term,
                log_term=log.last_term if waiting else 0,
                index=log.last_index if waiting else 0,
                snapshot=snapshot,
            )
        ]

    def _apply_answer(self, committed: tuple[Entry, ...]) -> Message:
        return Message(
            MessageKind.STORAGE_APPLY_RESPONSE, self.core.id, APPLY_THREAD, entries=committed
        )
