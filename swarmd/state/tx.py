"""The hands of a rule: statements inside the one write transaction, events and counts beside them.

Nothing here looks at a clock, makes an id or depends on an order that is not the log's."""

from __future__ import annotations

import functools
import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec

from swarmd.domain.actors import Actor
from swarmd.domain.events import Event, EventBody
from swarmd.domain.jobs import JobKind, JobStatus
from swarmd.state.commands import Entry
from swarmd.state.schema import migrate_to

_encode = msgspec.msgpack.Encoder().encode
GENESIS_HASH = bytes(32)

K = TypeVar("K")
CountKey = tuple[str, str, int, str]
TotalKey = tuple[str, str, str]


class Tx:
    """One batch of entries in one transaction; `entry` is the one being applied."""

    entry: Entry

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.execute = conn.execute
        self.executemany = conn.executemany
        self.migrate_to = functools.partial(migrate_to, conn)
        self._events: list[Event] = []
        self._counts: dict[CountKey, int] = {}
        self._totals: dict[TotalKey, int] = {}
        self._ready: dict[int, int] = {}
        self._batch_counts: dict[CountKey, int] = {}
        self._batch_totals: dict[TotalKey, int] = {}
        self._batch_ready: dict[int, int] = {}
        self._event_rows: list[tuple[int, int, int, bytes, bytes, bytes]] = []
        row = self.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        self._event_seq: int = row[0] if row else 0
        self._event_hash: bytes = row[1] if row else GENESIS_HASH
        self._actor: tuple[Actor | None, bytes] = (None, b"")

    @property
    def at(self) -> int:
        return self.entry.at

    @property
    def revision(self) -> int:
        return self.entry.index

    def emit(self, body: EventBody) -> None:
        self._event_seq += 1
        entry = self.entry
        self._events.append(Event(self._event_seq, entry.at, entry.index, entry.actor, body))

    def count(self, kind: str, status: JobStatus, priority: int, type_: str, delta: int) -> None:
        """Keep the number of jobs that stand so; listing and metrics never count rows."""
        key = (kind, status.value, priority, type_)
        self._counts[key] = self._counts.get(key, 0) + delta

    def total(self, kind: JobKind | str, name: str, label: str = "", delta: int = 1) -> None:
        """Count something that only ever grows."""
        key = (str(kind), name, label)
        self._totals[key] = self._totals.get(key, 0) + delta

    def ready(self, shape: int, delta: int) -> None:
        self._ready[shape] = self._ready.get(shape, 0) + delta

    def ready_shapes(self) -> list[int]:
        """Shapes with ready jobs, what this batch has not written yet included."""
        rows = self.execute("SELECT id, ready FROM shapes WHERE ready > 0").fetchall()
        ready = dict(rows)
        for gathered in (self._batch_ready, self._ready):
            for shape, delta in gathered.items():
                ready[shape] = ready.get(shape, 0) + delta
        return sorted(shape for shape, n in ready.items() if n > 0)

    def begin(self, entry: Entry) -> int:
        """Start an entry; answers the mark that `undo` goes back to."""
        self.entry = entry
        return self._event_seq

    def undo(self, mark: int) -> None:
        """The entry was refused: its events and counts never were."""
        self._event_seq = mark
        self._events.clear()
        self._counts.clear()
        self._totals.clear()
        self._ready.clear()

    def keep(self) -> list[Event]:
        """The entry stands. Answers its events, each chained to the one before."""
        if self._counts:
            _add(self._counts, self._batch_counts)
        if self._totals:
            _add(self._totals, self._batch_totals)
        if self._ready:
            _add(self._ready, self._batch_ready)
        events, self._events = self._events, []
        for event in events:
            if self._actor[0] is not event.actor:
                self._actor = (event.actor, _encode(event.actor))
            body = _encode(event.body)
            digest = chained(
                self._event_hash, event.seq, event.at, event.index, self._actor[1], body
            )
            self._event_hash = digest
            self._event_rows.append(
                (event.seq, event.at, event.index, self._actor[1], body, digest)
            )
        return events

    @property
    def newest_event(self) -> int:
        """Of the entries before; 0 where there never was one."""
        return self._event_seq

    def drop_events(self, upto: int, limit: int) -> int:
        """The oldest, so many at most: those that this batch has not written yet as well. How much
        of the log makes a batch is chance, and nothing that is applied may depend on it."""
        row = self.execute("SELECT min(seq) FROM events").fetchone()
        oldest = row[0] if row[0] is not None else next((r[0] for r in self._event_rows), None)
        if oldest is None or oldest > upto:
            return 0
        last = min(upto, int(oldest) + limit - 1)
        self.execute("DELETE FROM events WHERE seq <= ?", (last,))
        self._event_rows = [row for row in self._event_rows if row[0] > last]
        return last - int(oldest) + 1

    def flush(self) -> None:
        """Write what was gathered over the batch; called once, before the commit."""
        insert_rows(self.execute, "events", self._event_rows)
        self._event_rows.clear()
        if self._batch_counts or self._batch_totals or self._batch_ready:
            self._flush_counts()

    def _flush_counts(self) -> None:
        counts = [(*key, n) for key, n in self._batch_counts.items() if n]
        self.executemany(
            "INSERT INTO counts VALUES (?,?,?,?,?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            counts,
        )
        gone = [row[:4] for row in counts if row[4] < 0]
        self.executemany(
            "DELETE FROM counts WHERE kind=? AND status=? AND priority=? AND type=? AND n = 0",
            gone,
        )
        self.executemany(
            "INSERT INTO totals VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET n = n + excluded.n",
            [(*key, n) for key, n in self._batch_totals.items() if n],
        )
        self.executemany(
            "UPDATE shapes SET ready = ready + ? WHERE id = ?",
            [(n, shape) for shape, n in self._batch_ready.items() if n],
        )
        self._batch_counts.clear()
        self._batch_totals.clear()
        self._batch_ready.clear()


ROWS_MAX = 64
"""Rows in one statement. Each statement lets go of the interpreter's lock and waits for it."""


def insert_rows(
    execute: Callable[..., object], table: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    for start in range(0, len(rows), ROWS_MAX):
        part = rows[start : start + ROWS_MAX]
        values = [value for row in part for value in row]
        execute(_insert(table, len(part[0]), len(part)), values)


@functools.cache
def _insert(table: str, width: int, rows: int) -> str:
    row = "(" + ",".join("?" * width) + ")"
    return f"INSERT INTO {table} VALUES " + ",".join([row] * rows)


def chained(previous: bytes, seq: int, at: int, index: int, actor: bytes, body: bytes) -> bytes:
    """The hash of an event: over all of it, and over the hash of the event before."""
    head = b"%d:%d:%d:%d:" % (seq, at, index, len(actor))
    return hashlib.sha256(previous + head + actor + body).digest()


def _add(mine: dict[K, int], batch: dict[K, int]) -> None:
    for key, delta in mine.items():
        batch[key] = batch.get(key, 0) + delta
    mine.clear()
