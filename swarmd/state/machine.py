"""The machine: applies entries in the order of the log. The table RULES is total over commands.

Applying is deterministic: the same entries leave the same bytes meaning the same on every node."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from swarmd.domain.errors import Conflict, SwarmError
from swarmd.domain.events import Event
from swarmd.state import commands as c
from swarmd.state.rules import attempts, jobs, nodes
from swarmd.state.tx import Tx

RULES: dict[type[Any], Callable[[Tx, Any], Any]] = {
    c.SubmitJobs: jobs.submit,
    c.CreateGroup: jobs.create_group,
    c.CancelJobs: jobs.cancel,
    c.WakeJobs: jobs.wake,
    c.SettleDependents: jobs.settle,
    c.PruneJobs: jobs.prune,
    c.ClaimJob: attempts.claim,
    c.AssignJobs: attempts.assign,
    c.ReportAttempts: attempts.report,
    c.FinishClaim: attempts.finish_claim,
    c.ExpireAttempts: attempts.expire,
    c.PutNode: nodes.put_node,
    c.AddBlob: nodes.add_blob,
    c.DropBlobs: nodes.drop_blobs,
    c.PutSetting: nodes.put_setting,
    c.PruneEvents: nodes.prune_events,
}


@dataclass(slots=True)
class Applied:
    """What became of one entry: a value or a refusal, and the events it made."""

    index: int
    value: Any
    refusal: SwarmError | None
    events: list[Event]


class Machine:
    """Owned by the one thread that writes."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._tx: Tx | None = None
        self.applied = int(self._meta("applied", 0))
        self.last_at = int(self._meta("last_at", 0))

    def _meta(self, key: str, default: int) -> Any:
        row = self._conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    def apply(self, entries: Sequence[c.Entry]) -> list[Applied]:
        """Apply a batch in one transaction, with the applied index inside it. An error of the
        database rolls the whole batch back and is raised: nothing of it was acknowledged."""
        conn = self._conn
        conn.execute("BEGIN IMMEDIATE")
        try:
            if self._tx is None:
                self._tx = Tx(conn)
            tx = self._tx
            applied = [self._apply_one(tx, entry) for entry in entries]
            tx.flush()
            last = entries[-1]
            conn.executemany(
                "INSERT OR REPLACE INTO meta VALUES (?,?)",
                (("applied", last.index), ("last_at", last.at)),
            )
            conn.execute("COMMIT")
        except BaseException:
            self._tx = None
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
        self.applied, self.last_at = last.index, last.at
        return applied

    def _apply_one(self, tx: Tx, entry: c.Entry) -> Applied:
        mark = tx.begin(entry)
        command = entry.command
        tx.execute("SAVEPOINT entry")
        try:
            term = getattr(command, "term", None)
            if term is not None and term != entry.term:
                raise Conflict("proposed by a leader of another term", term=term)
            value = RULES[type(command)](tx, command)
        except SwarmError as refusal:
            tx.execute("ROLLBACK TO entry")
            tx.execute("RELEASE entry")
            tx.undo(mark)
            return Applied(entry.index, None, refusal, [])
        tx.execute("RELEASE entry")
        return Applied(entry.index, value, None, tx.keep())


def dump_hash(conn: sqlite3.Connection) -> str:
    """A hash over everything in every table, in key order: equal on equal replicas."""
    digest = hashlib.sha256()
    names = conn.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_stat%'"
        " AND name NOT LIKE '\\_sqlite%' ESCAPE '\\' ORDER BY name"
    ).fetchall()
    for (name,) in names:
        width = len(conn.execute(f"SELECT * FROM {name} LIMIT 0").description)
        order = ",".join(str(i + 1) for i in range(width))
        digest.update(f"{name}\n".encode())
        for row in conn.execute(f"SELECT * FROM {name} ORDER BY {order}"):
            digest.update(repr(row).encode())
    return digest.hexdigest()
