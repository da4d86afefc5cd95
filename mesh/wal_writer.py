"""`raft.db` as it is written: one group of works in one transaction, fsynced before it returns.

An error here is final: whoever gets one never writes with this object again.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mesh.raft.types import Entry, HardState, SnapshotMeta
from mesh.wal_errors import LogError, OutOfOrder
from mesh.wal_file import (
    BOOT,
    COMPACTED,
    HARD,
    OPEN,
    PUT_FACT,
    WRITTEN_BACK,
    Found,
    LogReader,
    Run,
    encode,
    fact_row,
    runs_of,
    writing,
)

WAL_PAGES_MAX = 1000
"""Pages in -wal after which it is written back, when those who wait have their answer."""
WAL_BYTES_KEPT = 16 << 20
"""What -wal shrinks to when it has been written back."""
SLICE_RUNS = 512
SLICE_BYTES = 4 << 20
"""How much of what was compacted is deleted at once, so that no write waits long for it."""
ROWS_MAX = 64
"""Rows in one statement. Each statement lets go of the interpreter's lock and waits for it."""


@dataclass(slots=True, eq=False)
class Work:
    """What one caller wants on disk. The parts are done in the order they stand in."""

    snapshot: SnapshotMeta | None = None
    keep: bool = False
    """The log goes on behind the snapshot: it has the snapshot's last entry."""
    entries: Sequence[Entry] = ()
    hard_state: HardState | None = None
    compact: SnapshotMeta | None = None
    fact: tuple[str, bytes] | None = None


class LogWriter:
    """Opens the file for writing, once `LogReader` has proven it."""

    def __init__(self, path: Path, found: Found, reader: LogReader) -> None:
        self._path = path
        self._reader = reader
        self._compacted = found.compacted
        self._last = found.last
        self._hard = found.hard_state
        self._hard_changed = False
        self._wal_pages = 0
        self._written_back = 0
        self._rows: list[Entry] = []
        self.leftover = True
        """Entries before the compacted point may still take up room."""
        self.unsettled = True
        """-wal holds what could be written back while nothing else is to be done."""
        with writing(path):
            self._conn = sqlite3.connect(
                path,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=128,
                timeout=10,
            )
            for pragma in _PRAGMAS:
                self._conn.execute(f"PRAGMA {pragma}").fetchone()
        try:
            self._begin()
        except BaseException:
            self._conn.close()
            raise

    def _begin(self) -> None:
        with writing(self._path):
            # What a failed fsync left in the cache of the kernel alone is written once more, to
            # the file itself, before this node counts on it.
            if not self._checkpoint("RESTART"):
                raise LogError(
                    f"another process reads {self._path} and does not let go: end it, `fuser"
                    f" {self._path}` names it",
                    file=str(self._path),
                )
            self.boot = self._reader.fact(BOOT, int) + 1
            with self._transaction():
                self._put(BOOT, encode(self.boot))
                self._put(OPEN, encode(True))
            # From here on the file itself says that there must be a -wal beside it.
            self._checkpoint("PASSIVE")

    def write(self, group: Sequence[Work]) -> None:
        """Returns when all of it is on disk, but for a commit index that may lag."""
        with writing(self._path):
            if not self.leftover and self._only_follow(group):
                # The usual case, and one statement where that will do: it is a transaction by
                # itself, and each further one would have to wait for the interpreter's lock.
                for work in group:
                    if work.entries:
                        self._append(work.entries)
                runs = self._taken_runs()
                if len(runs) > ROWS_MAX:
                    with self._transaction():
                        self._insert(runs)
                else:
                    self._insert(runs)
                self._note_hard_state(group)
            else:
                with self._transaction():
                    for work in group:
                        self._write(work)
                    self._insert(self._taken_runs())
                    self._note_hard_state(group)
                    self._put_hard()
                    if self.leftover:
                        self._delete_slice()

    def write_back(self) -> None:
        """Empty -wal where it has grown enough. The transaction that made it grow needs not wait
        for this; and unlike SQLite's own way of doing it, an error is heard."""
        if self._wal_pages > WAL_PAGES_MAX:
            self.settle()

    def delete_slice(self) -> None:
        """Give back the room of some of what was compacted, with no write to do it beside."""
        with writing(self._path), self._transaction():
            self._delete_slice()

    def settle(self) -> None:
        """What may lag is written too, and -wal written back."""
        with writing(self._path):
            if self._hard_changed:
                with self._transaction():
                    self._put_hard()
            if self._checkpoint("PASSIVE"):
                # SQLite begins -wal anew with the next write: now. Otherwise, were the end of it
                # cut off, older pages in what is left would hide newer ones in the file.
                self._written_back += 1
                with self._transaction():
                    self._put(WRITTEN_BACK, encode(self._written_back))
        self.unsettled = False

    def note_closing(self) -> None:
        """The next to open need not find a -wal."""
        with writing(self._path), self._transaction():
            self._put_hard()
            self._put(OPEN, encode(False))

    def close(self) -> None:
        """Where no reader is open any more this also writes -wal back and removes it."""
        self._conn.close()

    def _only_follow(self, group: Sequence[Work]) -> bool:
        """Is there nothing but entries that follow the last one, and later commit indexes?"""
        term, vote, last = self._hard.term, self._hard.vote, self._last
        for work in group:
            hard = work.hard_state
            if work.snapshot or work.compact or work.fact:
                return False
            if hard is not None and (hard.term != term or hard.vote != vote):
                return False
            if work.entries:
                if work.entries[0].index != last + 1:
                    return False
                last = work.entries[-1].index
        return True

    def _note_hard_state(self, group: Sequence[Work]) -> None:
        for work in group:
            if work.hard_state is not None:
                self._raise_hard(work.hard_state)

    def _raise_hard(self, state: HardState) -> None:
        commit = max(state.commit, self._hard.commit)
        hard = HardState(state.term, state.vote, commit)
        if hard != self._hard:
            self._hard, self._hard_changed, self.unsettled = hard, True, True

    def _write(self, work: Work) -> None:
        if work.snapshot is not None:
            # What lies before it is deleted later, in slices, like all that is compacted.
            if not work.keep:
                self._rows.clear()
                if work.snapshot.index < self._last:
                    self._cut(work.snapshot.index + 1)
            self._compact(work.snapshot)
            self._last = max(self._last, work.snapshot.index)
        if work.entries:
            self._append(work.entries)
        if work.compact is not None:
            self._compact(work.compact)
        if work.fact is not None:
            self._put(*work.fact)

    def _append(self, entries: Sequence[Entry]) -> None:
        first = entries[0].index
        if not self._compacted.index < first <= self._last + 1:
            raise OutOfOrder(f"entry {first} does not follow {self._last}", file=str(self._path))
        if any(entry.index != index for index, entry in enumerate(entries, first)):
            raise OutOfOrder(f"entries from {first} on have a gap", file=str(self._path))
        if first <= self._last:
            self._cut(first)
        self._rows.extend(entries)
        self._last = entries[-1].index

    def _cut(self, index: int) -> None:
        """Nothing from `index` on stays."""
        if self._rows and self._rows[0].index < index:
            del self._rows[index - self._rows[0].index :]
        else:
            self._rows.clear()
            row: Run | None = self._conn.execute(
                "SELECT first, last, term, sum, data FROM runs WHERE first < ?"
                " ORDER BY first DESC LIMIT 1",
                (index,),
            ).fetchone()
            self._conn.execute("DELETE FROM runs WHERE first >= ?", (index,))
            if row is not None and row[1] >= index:
                kept = self._reader.verified(row)[: index - row[0]]
                self._conn.execute("DELETE FROM runs WHERE first = ?", (row[0],))
                self._insert(list(runs_of(kept)))
        self._last = index - 1

    def _compact(self, meta: SnapshotMeta) -> None:
        self._compacted = meta
        self._put(COMPACTED, encode(meta))
        # A commit index that lags must not fall behind what is gone: the core would refuse it.
        self._raise_hard(HardState(self._hard.term, self._hard.vote, meta.index))
        self.leftover = True

    def _delete_slice(self) -> None:
        runs = self._conn.execute(
            "SELECT first, last, length(data) FROM runs WHERE first <= ? ORDER BY first LIMIT ?",
            (self._compacted.index, SLICE_RUNS),
        ).fetchall()
        gone, size = 0, 0
        for first, last, data_bytes in runs:
            if last > self._compacted.index or size > SLICE_BYTES:
                break
            gone, size = first, size + data_bytes
        if gone:
            self._conn.execute("DELETE FROM runs WHERE first <= ?", (gone,))
            self._wal_pages += 16
        self.leftover = gone > 0

    def _taken_runs(self) -> list[Run]:
        rows, self._rows = self._rows, []
        return list(runs_of(rows))

    def _insert(self, runs: Sequence[Run]) -> None:
        for start in range(0, len(runs), ROWS_MAX):
            part = runs[start : start + ROWS_MAX]
            self._conn.execute(_insert(len(part)), [value for run in part for value in run])
            self._wal_pages += 2 + sum(len(run[4]) // 4000 + 1 for run in part)
            self.unsettled = True

    def _put_hard(self) -> None:
        self._put(HARD, encode(self._hard))
        self._hard_changed = False

    def _put(self, name: str, value: bytes) -> None:
        self._conn.execute(PUT_FACT, fact_row(name, value))
        self._wal_pages += 1

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._conn.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                self._conn.execute("ROLLBACK")
            raise
        self._wal_pages += 2
        self.unsettled = True

    def _checkpoint(self, mode: str) -> bool:
        """Write -wal back; False where a reader was in the way of some of it."""
        busy, pages, done = self._conn.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        self._wal_pages = pages - done
        return not busy and pages == done


@functools.cache
def _insert(rows: int) -> str:
    return "INSERT INTO runs VALUES " + ", ".join(["(?, ?, ?, ?, ?)"] * rows)


_PRAGMAS = (
    "journal_mode = WAL",
    "synchronous = FULL",
    "wal_autocheckpoint = 0",
    f"journal_size_limit = {WAL_BYTES_KEPT}",
    # Debian's build overwrites what is deleted; here that would only cost.
    "secure_delete = OFF",
    # A page that cannot be read shall be an error, not a signal.
    "mmap_size = 0",
    "cache_size = -16384",
    "temp_store = MEMORY",
    "cell_size_check = ON",
)
