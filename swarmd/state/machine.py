"""The machine: applies entries in the order of the log. The table RULES is total over commands.

Applying is deterministic: the same entries leave the same bytes meaning the same on every node."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from swarmd.domain.errors import Conflict, SwarmError
from swarmd.domain.events import Event
from swarmd.state import build_commands as b
from swarmd.state import care_commands as care_
from swarmd.state import commands as c
from swarmd.state import payload_commands as p
from swarmd.state import terminal_commands as t
from swarmd.state.requests import Requests
from swarmd.state.rules import (
    attempts,
    binhost,
    blobs,
    build_control,
    builds,
    care,
    dependents,
    jobs,
    leases,
    nodes,
    payloads,
    removal,
    resigning,
    terminals,
    trust,
)
from swarmd.state.tx import Tx
from swarmd.state.versions import check_known

RULES: dict[type[Any], Callable[[Tx, Any], Any]] = {
    c.SubmitJobs: dependents.submit,
    c.CreateGroup: jobs.create_group,
    c.CancelJobs: jobs.cancel,
    c.WakeJobs: jobs.wake,
    c.SettleDependents: dependents.settle,
    c.PruneJobs: jobs.prune,
    c.ClaimJob: attempts.claim,
    c.AssignJobs: attempts.assign,
    c.ReportAttempts: attempts.report,
    c.FinishClaim: attempts.finish_claim,
    c.ExpireAttempts: attempts.expire,
    c.LoseAttempts: leases.lose,
    c.HoldAttempts: leases.hold,
    c.PutNode: nodes.put_node,
    c.RemoveNode: removal.remove_node,
    c.ForgetGone: removal.forget_gone,
    c.FoundTrust: trust.found,
    c.PutSecret: trust.put_secret,
    c.PutWraps: trust.put_wraps,
    c.PutToken: trust.put_token,
    c.DropTokens: trust.drop_tokens,
    c.PutDroneToken: trust.put_drone_token,
    c.DropDroneToken: trust.drop_drone_token,
    c.AddBlob: blobs.add_blob,
    c.DropBlobs: blobs.drop_blobs,
    c.PutSetting: nodes.put_setting,
    c.PruneEvents: nodes.prune_events,
    c.RaiseVersion: nodes.raise_version,
    b.PutBuilder: builds.put_builder,
    b.ForgetBuilder: builds.forget,
    b.NoteBuilder: builds.note_builder,
    b.NotePresence: builds.note_presence,
    b.TakeBuilds: builds.take,
    b.StartBuild: builds.start_build,
    b.FinishBuild: builds.finish,
    b.ReclaimBuilds: builds.reclaim,
    b.TakeRevoked: builds.take_revoked,
    b.ControlBuilds: build_control.control,
    b.StagePackage: binhost.stage,
    b.DropStaged: binhost.drop_staged,
    b.RemoveBinPkg: binhost.remove,
    b.ReplaceBinPkg: resigning.replace_file,
    p.PutPayload: payloads.put_payload,
    p.DropPayload: payloads.drop_payload,
    p.HoldPayload: payloads.hold_payload,
    p.ReleasePayload: payloads.release_payload,
    p.NoteDeployment: payloads.note_deployment,
    p.ForgetHostKey: payloads.forget_host_key,
    p.BeginRoll: payloads.begin_roll,
    p.TakeRoll: payloads.take_roll,
    p.NoteRoll: payloads.note_roll,
    p.EndRoll: payloads.end_roll,
    care_.BeginCare: care.begin,
    care_.EndCare: care.end,
    care_.EaseCare: care.ease,
    care_.ResetCare: care.reset,
    t.BeginTerminal: terminals.begin,
    t.EndTerminal: terminals.end,
    t.ForgetTerminals: terminals.forget,
}


UNREFUSED = frozenset({c.SubmitJobs, c.PutSetting, c.AddBlob})
"""Commands that are never refused as a whole: there is nothing to go back to, so no savepoint."""


@dataclass(slots=True)
class Applied:
    """What became of one entry: a value or a refusal, and the events it made. A repeated request
    makes nothing: what became of it was told the first time."""

    request: c.RequestId | None
    value: Any
    refusal: SwarmError | None
    events: list[Event]
    repeated: bool = False


class Place(msgspec.Struct, frozen=True):
    """How far the log is applied. It goes with what it left, in one transaction."""

    index: int
    term: int
    conf: bytes | None = None
    """Who votes as of here, in the log's own form; None: as before."""


class Machine:
    """Owned by the one thread that writes."""

    def __init__(self, conn: sqlite3.Connection, known: int = c.VERSION) -> None:
        """`known` is the newest version that it applies."""
        self._conn = conn
        self._known = known
        self._tx: Tx | None = None
        self._requests: Requests | None = None
        self.place = read_place(conn)
        self.last_at = int(read_meta(conn, "last_at", 0))

    def apply(self, entries: Sequence[c.Entry], upto: Place | None = None) -> list[Applied]:
        """Apply a batch in one transaction, with the place in the log inside it. An error of the
        database rolls the whole batch back and is raised: nothing of it was acknowledged. So does
        Outdated: the others have gone on to a version that is not known here."""
        conn = self._conn
        if upto is None:
            upto = Place(entries[-1].index, entries[-1].term)
        conn.execute("BEGIN IMMEDIATE")
        try:
            if self._tx is None or self._requests is None:
                self._tx, self._requests = Tx(conn), Requests(conn)
            applied = [self._apply_one(self._tx, self._requests, entry) for entry in entries]
            self._tx.flush()
            self._requests.flush(conn)
            last_at = max(self.last_at, entries[-1].at) if entries else self.last_at
            rows: list[tuple[str, Any]] = [
                ("applied", upto.index),
                ("applied_term", upto.term),
                ("last_at", last_at),
            ]
            if upto.conf is not None:
                rows.append(("conf", upto.conf))
            conn.executemany("INSERT OR REPLACE INTO meta VALUES (?,?)", rows)
            conn.execute("COMMIT")
        except BaseException:
            self._tx = self._requests = None
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            raise
        self.place = Place(upto.index, upto.term, upto.conf or self.place.conf)
        self.last_at = last_at
        return applied

    def _apply_one(self, tx: Tx, requests: Requests, entry: c.Entry) -> Applied:
        command, request = entry.command, entry.request
        try:
            if request is not None and not requests.admit(request):
                return Applied(request, None, None, [], repeated=True)
        except SwarmError as refusal:
            return Applied(request, None, refusal, [])
        mark = tx.begin(entry)
        kind = type(command)
        if kind is c.RaiseVersion:
            check_known(command.version, self._known)  # type: ignore[union-attr, arg-type]
        if kind in UNREFUSED:
            outcome = Applied(request, RULES[kind](tx, command), None, tx.keep())
        else:
            outcome = self._try_one(tx, entry, mark)
        if kind is c.RemoveNode and outcome.value == 0:
            requests.retire(command.origin)  # type: ignore[union-attr]
        if request is not None:
            requests.note(request, outcome.value, outcome.refusal)
        return outcome

    def _try_one(self, tx: Tx, entry: c.Entry, mark: int) -> Applied:
        command, request = entry.command, entry.request
        tx.execute("SAVEPOINT entry")
        try:
            term = getattr(command, "term", None)
            if term is not None and term != entry.term:
                raise Conflict("proposed by a leader of another term", term=term)
            value = RULES[type(command)](tx, command)
        except SwarmError as refused:
            tx.execute("ROLLBACK TO entry")
            tx.execute("RELEASE entry")
            tx.undo(mark)
            return Applied(request, None, refused, [])
        tx.execute("RELEASE entry")
        return Applied(request, value, None, tx.keep())


def read_meta(conn: sqlite3.Connection, key: str, default: Any) -> Any:
    row = conn.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else row[0]


def read_place(conn: sqlite3.Connection) -> Place:
    """How far a file's state has come."""
    return Place(
        int(read_meta(conn, "applied", 0)),
        int(read_meta(conn, "applied_term", 0)),
        read_meta(conn, "conf", None),
    )


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
