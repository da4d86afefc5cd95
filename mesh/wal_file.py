"""`raft.db` as it is read: its tables, its checksums, and the proof at opening that all is there.

Entries lie in runs: one row for consecutive entries of one term, under a checksum of all of it.
Whatever is read is verified; what does not verify is refused, never mended and never skipped.
"""

from __future__ import annotations

import os
import sqlite3
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from mesh import wal_tail
from mesh.raft.sizes import ENTRY_OVERHEAD_BYTES
from mesh.raft.types import Entry, HardState, SnapshotMeta
from mesh.wal_errors import LogError, LogMissing, damaged, unreadable, unwritable

FORMAT = 1
RUN_BYTES_MAX = 64 * 1024
RUN_ENTRIES_MAX = 1024
READ_RUNS_MAX = 512
"""A read from the file ends after so many rows, also where more would fit."""
QUICK_CHECK_BYTES_MAX = 1 << 30

# The log's own facts; those of its owner have another prefix.
FORMAT_FACT, HARD, COMPACTED, BOOT, OPEN, WRITTEN_BACK = (
    f"log:{name}" for name in ("format", "hard", "compacted", "boot", "open", "written-back")
)

_SCHEMA = """
CREATE TABLE runs (
  first INTEGER PRIMARY KEY, last INTEGER NOT NULL, term INTEGER NOT NULL,
  sum INTEGER NOT NULL, data BLOB NOT NULL);
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, sum INTEGER NOT NULL)
  WITHOUT ROWID;
"""

Run = tuple[int, int, int, int, bytes]
"""first, last, term, sum, data: a row."""


@dataclass(slots=True)
class Found:
    """What lies in the file, proven whole."""

    facts: dict[str, bytes]
    hard_state: HardState
    compacted: SnapshotMeta
    last: int
    terms: list[tuple[int, int]]
    """Where each term begins, after the compacted point."""
    recent: list[Entry]


def create_file(path: Path) -> None:
    """Make an empty log, whole or not at all: `path` appears when everything is in it."""
    if (wal := wal_path(path)).exists():
        raise damaged(path, f"{wal.name} is here and the file that it belongs to is not")
    made = path.with_name(path.name + ".new")
    for old in (made, wal_path(made), made.with_name(made.name + "-shm")):
        old.unlink(missing_ok=True)
    os.close(os.open(made, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    with writing(path):
        conn = sqlite3.connect(made, isolation_level=None)
        try:
            conn.execute("PRAGMA synchronous = FULL")
            conn.executescript(f"BEGIN; {_SCHEMA} COMMIT")
            facts = {
                FORMAT_FACT: encode(FORMAT), HARD: encode(HardState()), BOOT: encode(0),
                COMPACTED: encode(SnapshotMeta()), OPEN: encode(False),
            }  # fmt: skip
            conn.execute("BEGIN")
            conn.executemany(PUT_FACT, [fact_row(*fact) for fact in facts.items()])
            conn.execute("COMMIT")
            conn.execute("PRAGMA journal_mode = WAL")
        finally:
            conn.close()
    made.rename(path)
    sync_directory(path.parent)


class LogReader:
    """The connection that reads and cannot write. It closes last where -wal must outlive it."""

    def __init__(self, path: Path) -> None:
        """Prove that what is on disk can be what was acknowledged, before anything is written."""
        self._path = path
        if not path.exists():
            raise LogMissing(
                f"there is no log at {path}, and this node has one: without it the node cannot know"
                " what it promised. Move its data away and let it join again under a new id",
                file=str(path),
            )
        wal = wal_path(path)
        # Seen before SQLite opens the file, which makes an empty -wal where there is none.
        has_wal = wal.exists() and wal.stat().st_size > 0
        if has_wal and (damage := wal_tail.examine(wal).damage):
            raise damaged(path, damage)
        self._conn = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None,
            check_same_thread=False, timeout=10,
        )  # fmt: skip
        try:
            with reading(path):
                self._check_structure()
                self.facts = self._load_facts()
            if not has_wal and self.fact(OPEN, bool):
                raise damaged(
                    path,
                    f"{wal.name} is missing or empty, though this log was never closed: what was"
                    " written last was in it",
                )
        except BaseException:
            self._conn.close()
            raise

    def load(self, verify_bytes: int, recent_bytes: int) -> Found:
        """The whole index is read, and the newest entries to their last byte."""
        with reading(self._path):
            hard = self.fact(HARD, HardState)
            compacted = self.fact(COMPACTED, SnapshotMeta)
            last, terms = self._walk(compacted)
            if hard.commit > last:
                raise self._damage(f"{hard.commit} entries are committed and it ends at {last}")
            if hard.term < (terms[-1][1] if terms else compacted.term):
                raise self._damage("its newest entry is of a later term than the node ever was in")
            recent = self._load_newest(compacted.index + 1, last, verify_bytes, recent_bytes)
        return Found(self.facts, hard, compacted, last, terms, recent)

    def read(self, low: int, high: int, bytes_max: int) -> list[Entry]:
        """Entries low to high - 1, at least one, then as many as fit and READ_RUNS_MAX hold."""
        found: list[Entry] = []
        wanted, left = low, bytes_max
        with reading(self._path):
            # Every row is fetched, or the cursor closed: no transaction stays open behind it.
            cursor = self._conn.execute(_READ, (low, high, READ_RUNS_MAX))
            try:
                for row in cursor:
                    entries = self.verified(row)
                    if not entries[0].index <= wanted <= entries[-1].index:
                        break
                    part = entries[wanted - entries[0].index : high - entries[0].index]
                    for count, entry in enumerate(part):
                        left -= len(entry.data) + ENTRY_OVERHEAD_BYTES
                        if left < 0 and (found or count):
                            return [*found, *part[:count]]
                    found += part
                    wanted += len(part)
            finally:
                cursor.close()
        if not found:
            raise self._damage(f"entry {low} is missing")
        return found

    def verified(self, row: Sequence[Any]) -> list[Entry]:
        """The entries of a run, or LogDamaged."""
        try:
            first, last, term, found, data = row
            if found != run_sum(first, last, term, data):
                raise self._damage(f"the checksum of entries {first} to {last} is wrong")
            entries = _ENTRIES.decode(data)
            if not is_run(entries, first, last, term):
                raise self._damage(f"the run of entries {first} to {last} holds others")
        except (TypeError, ValueError, struct.error, msgspec.MsgspecError) as error:
            raise self._damage(f"a run of entries is no such thing ({error})") from error
        return entries

    def fact(self, name: str, type_: type[Any]) -> Any:
        try:
            return msgspec.msgpack.decode(self.facts[name], type=type_)
        except (KeyError, msgspec.MsgspecError) as error:
            raise self._damage(f"its fact {name} is missing or malformed") from error

    def close(self) -> None:
        self._conn.close()

    def _check_structure(self) -> None:
        self._conn.execute("PRAGMA cell_size_check = ON")
        if self._path.stat().st_size <= QUICK_CHECK_BYTES_MAX:
            (verdict,) = self._conn.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise self._damage(f"SQLite finds it malformed ({verdict})")

    def _load_facts(self) -> dict[str, bytes]:
        facts: dict[str, bytes] = {}
        for row in self._conn.execute("SELECT name, value, sum FROM facts LIMIT 1024").fetchall():
            try:
                matches = fact_row(row[0], row[1]) == row
            except (TypeError, AttributeError):
                matches = False
            if not matches:
                raise self._damage("the checksum of a fact is wrong")
            facts[row[0]] = row[1]
        self.facts = facts
        if (found := self.fact(FORMAT_FACT, int)) != FORMAT:
            raise LogError(
                f"the log {self._path} is of format {found}, and this version reads format"
                f" {FORMAT}: start the version that wrote it",
                file=str(self._path),
            )
        return facts

    def _walk(self, compacted: SnapshotMeta) -> tuple[int, list[tuple[int, int]]]:
        """No gap, no falling term, from the compacted point to the end."""
        last, newest = compacted.index, compacted.term
        terms: list[tuple[int, int]] = []
        cursor = self._conn.execute(
            "SELECT first, last, term FROM runs WHERE last > ? ORDER BY first", (compacted.index,)
        )
        while rows := cursor.fetchmany(4096):
            for row in rows:
                if not all(isinstance(each, int) for each in row):
                    raise self._damage("a run of entries has no proper bounds")
                begin, end, term = row
                if last == compacted.index and begin <= last < end and term == newest:
                    begin = last + 1  # compacted in the middle of a run
                if begin != last + 1 or end < begin:
                    raise self._damage(f"after entry {last} comes {row[0]}")
                if term < newest:
                    raise self._damage(f"the term falls from {newest} to {term} at entry {begin}")
                if term != newest:
                    terms.append((begin, term))
                last, newest = end, term
        return last, terms

    def _load_newest(
        self, first: int, last: int, verify_bytes: int, recent_bytes: int
    ) -> list[Entry]:
        """Verified from the end on; those that memory shall begin with are kept, in their order."""
        parts: list[list[Entry]] = []
        kept = seen = 0
        cursor = self._conn.execute(
            "SELECT first, last, term, sum, data FROM runs WHERE last >= ? ORDER BY first DESC",
            (first,),
        )
        try:
            for row in cursor:
                if seen >= verify_bytes:
                    break
                entries = self.verified(row)
                seen += len(row[4])
                if kept < recent_bytes:
                    kept += len(row[4])
                    parts.append([each for each in entries if each.index >= first])
        finally:
            cursor.close()
        return [entry for part in reversed(parts) for entry in part]

    def _damage(self, what: str) -> LogError:
        return damaged(self._path, what)


_READ = """SELECT first, last, term, sum, data FROM runs
WHERE first >= coalesce((SELECT max(first) FROM runs WHERE first <= ?1), 0) AND first < ?2
ORDER BY first LIMIT ?3"""
PUT_FACT = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)"


def runs_of(entries: Sequence[Entry]) -> Iterator[Run]:
    """Rows that hold these entries, which follow one another."""
    start = 0
    while start < len(entries):
        first, size = entries[start], 0
        stop = start
        for entry in entries[start : start + RUN_ENTRIES_MAX]:
            size += len(entry.data) + ENTRY_OVERHEAD_BYTES
            if entry.term != first.term or (size > RUN_BYTES_MAX and stop > start):
                break
            stop += 1
        part = entries[start:stop]
        data = encode(part)
        last = part[-1].index
        yield first.index, last, first.term, run_sum(first.index, last, first.term, data), data
        start = stop


def is_run(entries: Sequence[Entry], first: int, last: int, term: int) -> bool:
    return len(entries) == last - first + 1 > 0 and all(
        entry.index == index and entry.term == term for index, entry in enumerate(entries, first)
    )


def run_sum(first: int, last: int, term: int, data: bytes) -> int:
    return zlib.crc32(data, zlib.crc32(_RUN_HEAD.pack(first, last, term)))


def fact_row(name: str, value: bytes) -> tuple[str, bytes, int]:
    return name, value, zlib.crc32(value, zlib.crc32(name.encode()))


def wal_path(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """SQLite's complaints in the log's own words."""
    try:
        yield
    except sqlite3.Error as error:
        raise unreadable(error, path) from error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise unwritable(error, path) from error


encode = msgspec.msgpack.Encoder().encode
_ENTRIES = msgspec.msgpack.Decoder(list[Entry])
_RUN_HEAD = struct.Struct(">QQQ")
