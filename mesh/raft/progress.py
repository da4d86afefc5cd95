"""What the leader knows of one peer's log: `match` is surely there, `next` is sent next.

match < next always holds. A peer is probed with one message at a time until it answers, then
replicated to at full speed, or left alone while a snapshot is on its way.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec

from mesh.raft.inflights import Inflights


class ProgressState(IntEnum):
    PROBE = 0
    REPLICATE = 1
    SNAPSHOT = 2


class Progress:
    __slots__ = (
        "active",
        "flow_paused",
        "inflights",
        "learner",
        "match",
        "next",
        "pending_snapshot",
        "sent_commit",
        "state",
    )

    def __init__(
        self,
        next_index: int,
        inflights: Inflights,
        *,
        match: int = 0,
        learner: bool = False,
        active: bool = False,
    ) -> None:
        self.match = match
        self.next = next_index
        self.sent_commit = 0
        self.state = ProgressState.PROBE
        self.pending_snapshot = 0
        self.active = active
        self.flow_paused = False
        self.inflights = inflights
        self.learner = learner

    @property
    def paused(self) -> bool:
        """No append may be sent until the peer, or a heartbeat's answer, moves things on."""
        return self.flow_paused or self.state is ProgressState.SNAPSHOT

    @property
    def waits(self) -> bool:
        """It was sent one append, to see how far it is."""
        return self.flow_paused and self.state is ProgressState.PROBE

    def become_probe(self) -> None:
        # After a snapshot that was sent whole the peer has at least that.
        sent = self.pending_snapshot if self.state is ProgressState.SNAPSHOT else 0
        self._enter(ProgressState.PROBE)
        self._rewind(max(self.match, sent) + 1)

    def become_replicate(self) -> None:
        self._enter(ProgressState.REPLICATE)
        self.next = self.match + 1

    def become_snapshot(self, index: int) -> None:
        self._enter(ProgressState.SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1
        self.sent_commit = index

    def sent_entries(self, count: int, size_bytes: int) -> None:
        """An append with this many entries left, perhaps with none."""
        if self.state is ProgressState.REPLICATE:
            if count:
                self.next += count
                self.inflights.add(self.next - 1, size_bytes)
            # With a full window even an empty append counts as a probe: one, then silence.
            self.flow_paused = self.inflights.full
        elif count:
            self.flow_paused = True

    def can_bump_commit(self, commit: int) -> bool:
        """Would an empty append tell the peer of commits that it can use and does not know?"""
        return commit > self.sent_commit and self.sent_commit < self.next - 1

    def acknowledge(self, index: int) -> bool:
        """The peer has everything up to here. False where that is no news."""
        if index <= self.match:
            return False
        self.match = index
        self.next = max(self.next, index + 1)
        self.flow_paused = False
        return True

    def retreat(self, rejected: int, hint: int) -> bool:
        """The peer refused an append after `rejected`; `hint` is where its log may still agree.
        False where the refusal is an old one that later answers have overtaken."""
        if self.state is ProgressState.REPLICATE:
            if rejected <= self.match:
                return False
            self._rewind(self.match + 1)
            return True
        if self.next - 1 != rejected:
            return False
        self._rewind(max(min(rejected, hint + 1), self.match + 1))
        self.flow_paused = False
        return True

    def view(self) -> ProgressView:
        return ProgressView(
            state=self.state,
            match=self.match,
            next=self.next,
            learner=self.learner,
            paused=self.paused,
            pending_snapshot=self.pending_snapshot,
            active=self.active,
            inflight=len(self.inflights),
            inflight_full=self.inflights.full,
        )

    def _enter(self, state: ProgressState) -> None:
        self.state = state
        self.flow_paused = False
        self.pending_snapshot = 0
        self.inflights.clear()

    def _rewind(self, next_index: int) -> None:
        self.next = next_index
        self.sent_commit = min(self.sent_commit, next_index - 1)


class ProgressView(msgspec.Struct, frozen=True):
    """A peer's progress as it was at one moment."""

    state: ProgressState
    match: int
    next: int
    learner: bool
    paused: bool
    pending_snapshot: int
    active: bool
    inflight: int
    inflight_full: bool
