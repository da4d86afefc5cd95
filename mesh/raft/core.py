"""The state of one node between two messages, and the moves from role to role.

Nothing here, nor in what works on it, blocks, waits, or knows the time: ticks and messages come in
through `step`, what is to be written, sent and applied is fetched by `node`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mesh.raft import trace
from mesh.raft.changer import Changer
from mesh.raft.config import Config
from mesh.raft.errors import ConfigRefused, LogLost
from mesh.raft.log import Log
from mesh.raft.membership import Membership, Peers, Tracker
from mesh.raft.messages import AFTER_APPEND, TERMLESS, Message, MessageKind
from mesh.raft.progress import Progress
from mesh.raft.reads import ReadQueue, ReadState
from mesh.raft.storage import Storage
from mesh.raft.trace import Role
from mesh.raft.types import NOBODY, HardState

Randrange = Callable[[int], int]


class Core:
    __slots__ = (
        "after_append",
        "config",
        "election_elapsed",
        "election_timeout",
        "heartbeat_elapsed",
        "id",
        "lead",
        "log",
        "outbox",
        "pending_change_index",
        "randrange",
        "read_states",
        "reads",
        "restored_index",
        "role",
        "term",
        "trace",
        "tracker",
        "transferee",
        "uncommitted_bytes",
        "vote",
    )

    def __init__(
        self, config: Config, storage: Storage, randrange: Randrange, listener: trace.Trace | None
    ) -> None:
        self.config = config
        self.id = config.id
        self.trace = listener
        self.randrange = randrange
        self.log = Log(
            storage,
            applying_bytes_max=config.max_committed_size_per_ready or config.max_size_per_msg or 1,
            listener=listener,
        )
        self.tracker = Tracker(config.max_inflight_msgs, config.max_inflight_bytes)
        self.term = 0
        self.vote = NOBODY
        self.lead = NOBODY
        self.role = Role.FOLLOWER
        self.transferee = NOBODY
        # The last change of members in the log that may not be applied yet: one at a time.
        self.pending_change_index = 0
        # The members are those of a snapshot at this index, or of a later entry.
        self.restored_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadQueue()
        self.read_states: list[ReadState] = []
        self.outbox: list[Message] = []
        self.after_append: list[Message] = []
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        self.election_timeout = 0
        self._start(storage)

    def _start(self, storage: Storage) -> None:
        hard_state, conf_state = storage.initial_state()
        self.adopt(*Changer(self.tracker, self.log.last_index).restore(conf_state))
        log, applied = self.log, self.config.applied
        self.term, self.vote = hard_state.term, hard_state.vote
        # The stored commit may lag behind: what was applied, or stands in a snapshot, is committed.
        committed = max(hard_state.commit, applied, log.committed)
        if committed > log.last_index:
            raise LogLost(
                f"entry {committed} was committed (applied {applied}), but the log ends at "
                f"{log.last_index}: it is older than what this node promised"
            )
        log.committed = committed
        if applied:
            if applied < log.applied:
                raise ConfigRefused(
                    f"applied is {applied}, but the log begins only after {log.applied}"
                )
            log.applied_to(applied)
        self.become_follower(self.term, NOBODY)
        if self.trace is not None:
            self.trace(
                trace.Started(
                    peers=tuple(sorted(self.tracker.membership.all_voters)),
                    term=self.term,
                    commit=self.log.committed,
                    applied=self.log.applied,
                    last=self.log.last,
                )
            )

    # What this node is

    @property
    def hard_state(self) -> HardState:
        return HardState(self.term, self.vote, self.log.committed)

    @property
    def own_progress(self) -> Progress | None:
        return self.tracker.peers.get(self.id)

    @property
    def promotable(self) -> bool:
        """May this node stand for election?"""
        own = self.own_progress
        return own is not None and not own.learner and self.log.unstable.snapshot is None

    @property
    def alone(self) -> bool:
        """Is this node the only voter?"""
        members = self.tracker.membership
        return not members.joint and members.voters == {self.id}

    def adopt(self, membership: Membership, peers: Peers) -> None:
        self.tracker.adopt(membership, peers)
        if self.trace is not None:
            self.trace(trace.ConfigSwitched(membership))

    # Sending

    def send(self, kind: MessageKind, to: int, *, term: int = 0, **fields: Any) -> None:
        """In this node's term, but for votes, which name theirs. What promises durability waits
        until everything before it is on disk; so does what this node says to itself."""
        if term == 0 and kind not in TERMLESS:
            term = self.term
        message = Message(kind, to, self.id, term, **fields)
        if kind in AFTER_APPEND:
            self.after_append.append(message)
        else:
            assert to != self.id, f"{kind.name} was sent by a node to itself"
            self.outbox.append(message)

    # From role to role

    def become_follower(self, term: int, lead: int) -> None:
        self._reset(term)
        self.lead = lead
        self._enter(Role.FOLLOWER)

    def become_pre_candidate(self) -> None:
        """Neither the term nor the vote changes: nothing has been asked for yet."""
        assert self.role is not Role.LEADER, "a leader stood for election"
        self.tracker.votes.clear()
        self.lead = NOBODY
        self._enter(Role.PRE_CANDIDATE)

    def become_candidate(self) -> None:
        assert self.role is not Role.LEADER, "a leader stood for election"
        self._reset(self.term + 1)
        self.vote = self.id
        self._enter(Role.CANDIDATE)

    def become_leader(self) -> None:
        assert self.role in (Role.CANDIDATE, Role.PRE_CANDIDATE), "a follower took the lead"
        self._reset(self.term)
        self.lead = self.id
        self.role = Role.LEADER
        own = self.tracker.peers[self.id]
        own.become_replicate()
        own.active = True
        # Whatever is in the log may hold a change of members: none may be made before that.
        self.pending_change_index = self.log.last_index

    def _enter(self, role: Role) -> None:
        self.role = role
        if self.trace is not None:
            self.trace(trace.BecameRole(role, self.term))

    def _reset(self, term: int) -> None:
        if term != self.term:
            self.term = term
            self.vote = NOBODY
        self.lead = NOBODY
        self.election_elapsed = 0
        self.heartbeat_elapsed = 0
        base = self.config.election_tick
        self.election_timeout = base + self.randrange(base)
        self.transferee = NOBODY
        self.tracker.votes.clear()
        self.tracker.start_over(self.id, self.log.last_index)
        self.pending_change_index = 0
        self.uncommitted_bytes = 0
        self.reads = ReadQueue()
