"""The log of `mesh.wal` in a file of SQLite's: a thread writes in groups, memory answers reads.

What a write replaces vanishes from reads at once, and what replaces it appears when it is on disk.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from mesh.raft.errors import Compacted, SnapshotTemporarilyUnavailable, Unavailable
from mesh.raft.sizes import ENTRY_OVERHEAD_BYTES, entries_bytes
from mesh.raft.types import NO_LIMIT, ConfState, Entry, HardState, Snapshot, SnapshotMeta
from mesh.wal import LogSettings, OnDone, RaftLog, Ticket
from mesh.wal_errors import LogBusy, LogError, LogFailed, OutOfOrder
from mesh.wal_file import LogReader, create_file
from mesh.wal_memory import Recent, Terms, term_starts
from mesh.wal_order import Handed
from mesh.wal_writer import LogWriter, Work

log = logging.getLogger(__name__)

FACTS_MAX = 64
FACT_BYTES_MAX = 4096
FACT_NAME_MAX = 64
OWNER = "node:"


@asynccontextmanager
async def open_log(
    path: Path, settings: LogSettings | None = None, *, create: bool
) -> AsyncIterator[RaftLog]:
    """`create` says that this node may have no log yet. Without it a missing file is LogMissing:
    a node that begins anew under its old id would break promises it no longer knows of.

    A write that fails cancels the caller's scope with LogFailed: the process has to end."""
    token = trio.lowlevel.current_trio_token()
    opened = await trio.to_thread.run_sync(_open, path, settings or LogSettings(), create, token)
    opened.start()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(opened.watch)
        try:
            yield opened
        finally:
            with trio.CancelScope(shield=True):
                # What was handed over is written; the last to close writes -wal back as well.
                await trio.to_thread.run_sync(opened.close)
                opened.over.set()


def _open(
    path: Path, settings: LogSettings, create: bool, token: trio.lowlevel.TrioToken
) -> SqliteLog:
    if create and not path.exists():
        create_file(path)
    reader = LogReader(path)
    try:
        return SqliteLog(reader, path, settings, token)
    except BaseException:
        reader.close()
        raise


@dataclass(slots=True, eq=False)
class _Ticket(Work):
    on_done: OnDone | None = None
    shown_before: int = NO_LIMIT
    """A later write replaces everything from this index on: it is never shown."""
    done: bool = False
    error: LogError | None = None
    size_bytes: int = 0
    _event: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.size_bytes = entries_bytes(self.entries) + ENTRY_OVERHEAD_BYTES

    async def wait(self) -> None:
        await self._event.wait()
        if self.error is not None:
            raise _again(self.error)

    def finish(self, error: LogError | None) -> None:
        self.done, self.error = error is None, error
        self._event.set()
        if self.done and self.on_done is not None:
            self.on_done()


class SqliteLog:
    """Opened by `open_log`."""

    def __init__(
        self, reader: LogReader, path: Path, settings: LogSettings, token: trio.lowlevel.TrioToken
    ) -> None:
        found = reader.load(settings.verify_bytes, settings.recent_bytes_max)
        self._path, self._settings, self._token = path, settings, token
        # What is on disk, and shown.
        self._facts = dict(found.facts)
        self._hard = found.hard_state
        self._compacted = found.compacted
        self._conf_state = found.compacted.conf_state
        self._last = found.last
        self._recent = Recent(settings.recent_bytes_max)
        self._recent.reset(found.last + 1)
        self._recent.extend(found.recent)
        self._terms = Terms(found.compacted.index, found.compacted.term)
        self._terms.extend(found.terms)
        self._snapshot: Snapshot | None = None
        # How it will be when everything that waits is on disk.
        self._handed = Handed(found)
        self._fact_names = {name for name in found.facts if name.startswith(OWNER)}
        self._pending: deque[_Ticket] = deque()
        self.waiting_bytes = 0

        self._reader = reader
        self._writer = LogWriter(path, found, reader)
        self.boot = self._writer.boot
        self._queue: queue.SimpleQueue[_Ticket | None] = queue.SimpleQueue()
        self._stopping = False
        self._failure: LogError | None = None
        self.over = trio.Event()
        self._thread = threading.Thread(target=self._write_forever, name="log-writer", daemon=True)

    # Reading

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._hard, self._conf_state

    @property
    def hard_state(self) -> HardState:
        return self._hard

    @property
    def compacted(self) -> SnapshotMeta:
        return self._compacted

    def first_index(self) -> int:
        return self._compacted.index + 1

    def last_index(self) -> int:
        return self._last

    def term(self, index: int) -> int:
        if index < self._compacted.index:
            raise Compacted(f"entry {index} was compacted, up to {self._compacted.index}")
        if index > self._last:
            raise Unavailable(f"entry {index} was asked for, {self._last} is the last")
        return self._terms.at(index)

    def entries(self, lo: int, hi: int, bytes_max: int = NO_LIMIT) -> Sequence[Entry]:
        """From the file fewer may come than would fit."""
        if lo <= self._compacted.index:
            raise Compacted(f"entry {lo} was compacted, up to {self._compacted.index}")
        if hi > self._last + 1:
            raise Unavailable(f"entries to {hi - 1} were asked for, {self._last} is the last")
        if lo >= hi:
            return ()
        recent = self._recent
        if lo >= recent.first:
            return recent.take(lo, hi, bytes_max, at_least_one=True)
        found = self._reader.read(lo, min(hi, recent.first), bytes_max)
        if found[-1].index + 1 == recent.first < hi:
            left = bytes_max - entries_bytes(found)
            found += recent.take(recent.first, hi, left, at_least_one=False)
        return found

    def snapshot(self) -> Snapshot:
        if self._snapshot is None or self._snapshot.meta.index < self._compacted.index:
            raise SnapshotTemporarilyUnavailable("no snapshot is ready that the log goes on from")
        return self._snapshot

    def fact(self, name: str) -> bytes | None:
        return self._facts.get(OWNER + name)

    # Writing

    def append(
        self,
        entries: Sequence[Entry] = (),
        hard_state: HardState | None = None,
        snapshot: SnapshotMeta | None = None,
        on_done: OnDone | None = None,
    ) -> Ticket:
        entries = tuple(entries)  # the caller's list may change before it is written
        ticket = _Ticket(snapshot, False, entries, hard_state, on_done=on_done)
        self._check_room(ticket)
        replaces = bool(entries) and entries[0].index <= self._handed.last
        self._handed.take(ticket)
        if snapshot is not None:
            self._hide_for(snapshot, ticket.keep)
        if replaces:
            self._hide_from(entries[0].index)
        return self._hand_over(ticket)

    def restore(self, snapshot: SnapshotMeta, on_done: OnDone | None = None) -> Ticket:
        return self.append(snapshot=snapshot, on_done=on_done)

    def compact(
        self, upto: int, conf_state: ConfState, *, checkpointed: int, on_done: OnDone | None = None
    ) -> Ticket:
        meta = SnapshotMeta(upto, self._handed.compact(upto, checkpointed), conf_state)
        if upto > self._last:
            raise OutOfOrder(f"entry {upto} is not on disk yet, and is to go")
        ticket = _Ticket(compact=meta, on_done=on_done)
        self._check_room(ticket)
        self._handed.note_compacted(meta)
        self._begin_at(meta)
        return self._hand_over(ticket)

    def set_fact(self, name: str, value: bytes, on_done: OnDone | None = None) -> Ticket:
        if len(self._fact_names) >= FACTS_MAX and OWNER + name not in self._fact_names:
            raise OutOfOrder(f"a node keeps at most {FACTS_MAX} facts")
        if len(name) > FACT_NAME_MAX or len(value) > FACT_BYTES_MAX:
            raise OutOfOrder(
                f"the fact {name[:FACT_NAME_MAX]} is too large: {FACT_NAME_MAX} characters and"
                f" {FACT_BYTES_MAX} bytes are allowed"
            )
        ticket = _Ticket(fact=(OWNER + name, value), on_done=on_done)
        self._check_room(ticket)
        self._fact_names.add(OWNER + name)
        return self._hand_over(ticket)

    def offer_snapshot(self, snapshot: Snapshot | None) -> None:
        self._snapshot = snapshot

    def use_conf_state(self, conf_state: ConfState) -> None:
        self._conf_state = conf_state

    def _check_room(self, ticket: _Ticket) -> None:
        if self._failure is not None:
            raise _again(self._failure)
        if self._stopping:
            raise LogError(f"the log {self._path} is closed", file=str(self._path))
        settings = self._settings
        # One write always passes, however large it is.
        if self._pending and (
            len(self._pending) >= settings.waiting_max
            or self.waiting_bytes + ticket.size_bytes > settings.waiting_bytes_max
        ):
            raise LogBusy(
                "too much waits for the disk; try again when some of it is done",
                waiting=len(self._pending), waiting_bytes=self.waiting_bytes,
            )  # fmt: skip

    def _hide_for(self, snapshot: SnapshotMeta, keep: bool) -> None:
        if not keep:
            self._hide_from(self._compacted.index + 1)
        elif snapshot.index <= self._last:
            self._begin_at(snapshot)
        else:
            at = self._last
            self._begin_at(SnapshotMeta(at, self.term(at), self._compacted.conf_state))

    def _hide_from(self, index: int) -> None:
        for ticket in self._pending:
            ticket.shown_before = min(ticket.shown_before, index)
        if index <= self._last:
            self._recent.cut(index)
            self._terms.cut(index)
            self._last = index - 1

    def _begin_at(self, meta: SnapshotMeta) -> None:
        """Everything up to and with this entry is gone."""
        self._compacted = meta
        self._recent.drop(meta.index)
        self._terms.drop(meta.index)

    def _hand_over(self, ticket: _Ticket) -> Ticket:
        self._pending.append(ticket)
        self.waiting_bytes += ticket.size_bytes
        self._queue.put(ticket)
        return ticket

    # What comes back, on Trio's thread

    def _deliver(self, group: Sequence[_Ticket]) -> None:
        for ticket in group:
            assert self._pending.popleft() is ticket
            self.waiting_bytes -= ticket.size_bytes
            self._show(ticket)
        for ticket in group:
            ticket.finish(None)

    def _show(self, ticket: _Ticket) -> None:
        commit = self._hard.commit
        if (snapshot := ticket.snapshot) is not None:
            # What a snapshot keeps may have been hidden since, by a write that waits behind it.
            if not ticket.keep or snapshot.index > self._last:
                self._compacted, self._last = snapshot, snapshot.index
                self._recent.reset(snapshot.index + 1)
                self._terms = Terms(snapshot.index, snapshot.term)
            elif snapshot.index > self._compacted.index:
                self._begin_at(snapshot)
            self._conf_state = snapshot.conf_state
            commit = max(commit, snapshot.index)
        if ticket.entries:
            shown = ticket.entries[: max(ticket.shown_before - ticket.entries[0].index, 0)]
            if shown:
                self._recent.extend(shown)
                self._terms.extend(term_starts(shown))
                self._last = shown[-1].index
        if ticket.compact is not None:
            commit = max(commit, ticket.compact.index)
        hard = ticket.hard_state or self._hard
        self._hard = HardState(hard.term, hard.vote, max(hard.commit, commit))
        if ticket.fact is not None:
            name, value = ticket.fact
            self._facts[name] = value

    def _fail(self) -> None:
        assert self._failure is not None
        pending, self._pending = self._pending, deque()
        for ticket in pending:
            ticket.finish(self._failure)
        self.over.set()

    # The life of it

    def start(self) -> None:
        self._thread.start()

    async def watch(self) -> None:
        """Raise what ended the log before it was closed."""
        await self.over.wait()
        if self._failure is not None:
            log.critical("the log cannot be written", extra={"reason": self._failure.message})
            raise self._failure

    def close(self) -> None:
        self._stopping = True
        self._queue.put(None)
        self._thread.join()
        # The last connection to close writes -wal back and removes it, if it can write at all.
        if self._failure is None:
            self._reader.close()
            self._writer.close()
        else:
            self._writer.close()
            self._reader.close()

    def _write_forever(self) -> None:
        try:
            while (group := self._take()) is not None:
                if group:
                    self._writer.write(group)
                    self._token.run_sync_soon(self._deliver, group)
                    self._writer.write_back()
                elif self._writer.leftover:
                    self._writer.delete_slice()
                else:
                    self._writer.settle()
            self._writer.note_closing()
        except trio.RunFinishedError:
            pass
        except BaseException as error:
            # Nothing of the group was acknowledged, and nothing will be from here on.
            failure = error if isinstance(error, LogError) else LogFailed(
                f"the log {self._path} met what it did not expect: {error!r}", file=str(self._path)
            )  # fmt: skip
            self._failure = failure
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._fail)

    def _take(self) -> list[_Ticket] | None:
        """All that waits, as far as it fits a group. Empty when it is time to tidy up, None when
        the log is being closed."""
        writer, group, size = self._writer, list[_Ticket](), 0
        try:
            ticket = self._queue.get(
                block=not writer.leftover,
                timeout=self._settings.idle_s if writer.unsettled else None,
            )
            while ticket is not None:
                group.append(ticket)
                size += ticket.size_bytes
                if size > self._settings.group_bytes_max:
                    return group
                ticket = self._queue.get_nowait()
        except queue.Empty:
            return group
        if group:
            self._queue.put(None)
        return group or None


def _again(error: LogError) -> LogError:
    """The same once more: an error that is raised twice carries both ways."""
    return type(error)(error.message, **error.facts)
