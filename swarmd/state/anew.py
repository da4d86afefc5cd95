"""A state begins anew: what a copy holds, without the nodes that held it when it was taken.

Done to a file that nobody has open yet, by the machine's own rules; what happened is in the chain
of events like everything else.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Unavailable
from swarmd.domain.events import NodeChanged
from swarmd.domain.jobs import AttemptId, AttemptStatus, NodeId, Result
from swarmd.domain.nodes import NodeKind
from swarmd.state.commands import AttemptReport, Entry, PutSetting, ReportAttempts
from swarmd.state.machine import Machine, Place
from swarmd.state.rules.trust import AUTHORITY
from swarmd.state.schema import migrate
from swarmd.state.tx import Tx

RESTORED = "the swarm was restored from a copy of its state; the node that had it is no part of it"
_REPORTS_MAX = 100


class Anew(msgspec.Struct, frozen=True):
    place: Place
    nodes_removed: tuple[str, ...]
    """By name."""
    jobs_given_back: int


def begin_anew(
    path: Path, actor: Actor, *, settings: dict[str, bytes], conf: bytes, now_ms: int
) -> Anew:
    """Make a copy the beginning of another swarm: `conf` says who votes, `settings` are
    its own, members are forgotten, and what they ran is lost, which puts it back into the queue.
    External executors keep what they claimed. Unavailable: the copy is damaged, or is of a newer
    version."""
    conn = sqlite3.connect(path, isolation_level=None)
    try:
        conn.execute("PRAGMA synchronous = FULL")
        conn.execute("PRAGMA journal_mode = DELETE")
        found = conn.execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise Unavailable(f"the copy of the state is damaged: {found}")
        migrate(conn)
        return _begin(conn, actor, settings, conf, now_ms)
    except sqlite3.DatabaseError as error:
        raise Unavailable(f"the copy of the state cannot be used: {error}") from error
    finally:
        conn.close()


def _begin(
    conn: sqlite3.Connection, actor: Actor, settings: dict[str, bytes], conf: bytes, now_ms: int
) -> Anew:
    machine = Machine(conn)
    if machine.place.index == 0:
        raise Unavailable("the copy holds no state of a swarm")
    at = max(machine.last_at, now_ms)
    place = Place(machine.place.index + 1, machine.place.term, conf)

    def entry(command: Any) -> Entry:
        return Entry(place.index, place.term, at, actor, command)

    reports = [entry(command) for command in _reports(conn)]
    changed = [entry(PutSetting(key, value)) for key, value in settings.items()]
    applied = machine.apply([*reports, *changed], place)
    if refused := [outcome.refusal for outcome in applied if outcome.refusal is not None]:
        raise refused[0]
    counted = [done for outcome in applied[: len(reports)] for done in outcome.value]
    names = _forget_members(conn, changed[-1])
    return Anew(place, names, sum(counted))


def _reports(conn: sqlite3.Connection) -> Iterator[ReportAttempts]:
    """The end of each attempt that a member holds, as that member would have told it."""
    rows = conn.execute(
        "SELECT node_id, id FROM attempts WHERE active = 1 AND external = 0 ORDER BY node_id, id"
    ).fetchall()
    lost = Result(error=RESTORED)
    for node_id, held in groupby(rows, key=lambda row: str(row[0])):
        ids = [AttemptId(row[1]) for row in held]
        for start in range(0, len(ids), _REPORTS_MAX):
            yield ReportAttempts(
                NodeId(node_id),
                tuple(
                    AttemptReport(attempt_id, status=AttemptStatus.LOST, result=lost)
                    for attempt_id in ids[start : start + _REPORTS_MAX]
                ),
            )


def _forget_members(conn: sqlite3.Connection, entry: Entry) -> tuple[str, ...]:
    """Their names may be taken again; where blobs lie has to be told anew, and requests that only
    they could repeat are of no use."""
    rows = conn.execute(
        "SELECT id, name FROM nodes WHERE kind = ? ORDER BY name", (NodeKind.MEMBER.value,)
    ).fetchall()
    conn.execute("BEGIN IMMEDIATE")
    tx = Tx(conn)
    tx.begin(entry)
    for node_id, _ in rows:
        tx.execute("DELETE FROM nodes WHERE id = ?", (node_id,))
        tx.emit(NodeChanged(NodeId(node_id), "removed"))
    for table in ("blob_holders", "sessions", "outcomes", "holds", "secrets", "wraps", "tokens"):
        tx.execute(f"DELETE FROM {table}")
    # What was sealed only those nodes could open: the new swarm makes an authority of its own.
    tx.execute("DELETE FROM settings WHERE key = ?", (AUTHORITY,))
    tx.keep()
    tx.flush()
    conn.execute("COMMIT")
    return tuple(str(row[1]) for row in rows)
