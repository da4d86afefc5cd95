"""The durable log of one node: entries, term and vote, and the few facts that it alone knows.

What a ticket calls done is on disk, and reads show nothing else. `mesh.wal_sqlite` holds the one
that nodes use; a simulated world puts its own disk behind the same words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import trio

from mesh.raft.types import NO_LIMIT, ConfState, Entry, HardState, Snapshot, SnapshotMeta
from mesh.wal_errors import LogBusy

OnDone = Callable[[], None]
FULL_PAUSE_S = 0.05


@dataclass(frozen=True)
class LogSettings:
    recent_bytes_max: int = 32 << 20
    """Memory for the newest entries; what is older is read from the file."""
    waiting_max: int = 4096
    """Writes that may wait for the disk; over it one more is refused, never queued."""
    waiting_bytes_max: int = 64 << 20
    group_bytes_max: int = 4 << 20
    """How much is written in one transaction."""
    idle_s: float = 1.0
    """After so long without a write the file is put in order."""
    verify_bytes: int = 64 << 20
    """How much of the end of the log is verified to the last byte when it is opened."""


class Ticket(Protocol):
    @property
    def done(self) -> bool:
        """It is on disk. False for good where the log failed before."""
        ...

    async def wait(self) -> None:
        """Until it is on disk; LogFailed where that will never be known."""
        ...


class RaftLog(Protocol):
    """What the core reads (its `Storage`), and what its owner writes. Everything here is called by
    one task and returns at once. Tickets become done in the order of the calls; `on_done` is called
    then, must be quick and must not raise."""

    boot: int
    """How often this log has been opened."""

    # Read

    def initial_state(self) -> tuple[HardState, ConfState]: ...
    def entries(self, lo: int, hi: int, bytes_max: int = NO_LIMIT) -> Sequence[Entry]: ...
    def term(self, index: int) -> int: ...
    def first_index(self) -> int: ...
    def last_index(self) -> int: ...
    def snapshot(self) -> Snapshot: ...
    def fact(self, name: str) -> bytes | None: ...

    @property
    def hard_state(self) -> HardState: ...

    @property
    def compacted(self) -> SnapshotMeta:
        """The last entry that is gone, and who voted as of it."""
        ...

    @property
    def waiting_bytes(self) -> int: ...

    # Write

    def append(
        self,
        entries: Sequence[Entry] = (),
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
        on_done: OnDone | None = None,
    ) -> Ticket:
        """The snapshot replaces the log first, then these entries replace everything from the
        first of them on. All of it is done, or nothing. LogBusy, OutOfOrder, LogFailed."""
        ...

    def restore(self, snapshot: SnapshotMeta, on_done: OnDone | None = None) -> Ticket:
        """The log begins behind this snapshot, which the machine has durably taken. Entries behind
        it stay where the log holds the snapshot's last entry; else all are gone."""
        ...

    def compact(
        self, upto: int, conf_state: ConfState, *, checkpointed: int, on_done: OnDone | None = None
    ) -> Ticket:
        """Drop entries up to and with `upto`, as of which `conf_state` voted. Never past what the
        machine has durably checkpointed. Done when that is on disk; room is given back after."""
        ...

    def set_fact(self, name: str, value: bytes, on_done: OnDone | None = None) -> Ticket:
        """Keep what this node alone knows: its id, its cluster. OutOfOrder over a bound."""
        ...

    def offer_snapshot(self, snapshot: Snapshot | None) -> None:
        """What `snapshot` answers with, while it is of use: not older than the first entry."""
        ...

    def use_conf_state(self, conf_state: ConfState) -> None:
        """Who votes as of what the machine has applied, where that is more than the log knows."""
        ...


async def write_patiently(write: Callable[[], Ticket]) -> None:
    """Hand a write over, again while too much waits for the disk, and wait until it is there."""
    while True:
        try:
            ticket = write()
        except LogBusy:
            await trio.sleep(FULL_PAUSE_S)
            continue
        await ticket.wait()
        return


@dataclass(frozen=True, slots=True)
class PutBack:
    """One of the node's files is an older copy, or another node's."""

    which: Literal["log", "state"]
    why: str


def find_put_back(
    log: RaftLog, *, applied_index: int, applied_term: int | None = None, acknowledged: int = 0
) -> PutBack | None:
    """Do the log and what else is known of this node fit together?

    `applied_index` and its term are what the machine's own file holds; `acknowledged` is an index
    that a peer proves to be committed, and acknowledged by this node. A log that ends before either
    lost what was promised, and its term and vote are as old: this node must not vote with it, but
    join again under a new id. A state that ends before the log begins only wants a snapshot. What
    nobody else knows (a vote in a term that led nowhere) no comparison can find.
    """
    last, compacted = log.last_index(), log.compacted
    if applied_index > last:
        return PutBack("log", f"entry {applied_index} was applied, and the log ends at {last}")
    if acknowledged > last:
        return PutBack("log", f"entry {acknowledged} was acknowledged, and the log ends at {last}")
    if applied_index < compacted.index:
        return PutBack(
            "state",
            f"the state ends with entry {applied_index}, and the log begins after"
            f" {compacted.index}",
        )
    if applied_term is not None and applied_index and log.term(applied_index) != applied_term:
        return PutBack(
            "log",
            f"entry {applied_index} was applied with term {applied_term}, and the log has it with"
            f" term {log.term(applied_index)}",
        )
    return None
