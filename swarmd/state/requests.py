"""Requests that were applied: the last of each node's present boot, so that none is applied twice.

A boot that is older than one seen, and a request older than those remembered, is refused: it was
answered long ago, or whoever asked is gone."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import msgspec

from swarmd.domain.errors import ALL_ERRORS, Conflict, SwarmError, Unavailable
from swarmd.state.commands import ANSWERS, RequestId

REMEMBERED_MAX = 4096
OUTCOME_BYTES_MAX = 4096

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode
_ERRORS = {error.code: error for error in ALL_ERRORS}


class _Kept(msgspec.Struct, array_like=True):
    """An outcome as it is stored: a refusal has a code; an answer that was too large, neither."""

    code: str
    message: str
    facts: dict[str, Any]
    value: msgspec.Raw = msgspec.Raw()


class _Session:
    __slots__ = ("boot", "floor", "gathered", "next_place", "places")

    def __init__(self, boot: int, floor: int, next_place: int) -> None:
        self.boot = boot
        self.floor = floor
        self.next_place = next_place
        self.places: dict[int, int] = {}
        """Place in the log's order, by sequence; the oldest is first."""
        self.gathered: list[tuple[int, int, bytes]] = []


class Requests:
    """Owned by the machine; written with the batch that it belongs to."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._sessions: dict[int, _Session] = {}
        for origin, boot, floor, place in conn.execute("SELECT * FROM sessions ORDER BY origin"):
            self._sessions[origin] = _Session(boot, floor, place)
        rows = conn.execute("SELECT origin, seq, place FROM outcomes ORDER BY origin, place")
        for origin, seq, place in rows:
            self._sessions[origin].places[seq] = place
        self._touched: dict[int, None] = {}
        self._begun: dict[int, None] = {}

    def admit(self, request: RequestId) -> bool:
        """Whether this is to be applied now: False when it was. Conflict when nobody can say."""
        session = self._sessions.get(request.origin)
        if session is None or request.boot > session.boot:
            self._sessions[request.origin] = _Session(request.boot, 0, 0)
            self._begun[request.origin] = None
            return True
        if request.boot < session.boot:
            raise Conflict("the node that asked has been restarted since")
        if request.seq in session.places:
            return False
        if request.seq <= session.floor:
            raise Conflict("the request is older than those that are remembered")
        return True

    def note(self, request: RequestId, value: Any, refusal: SwarmError | None) -> None:
        session = self._sessions[request.origin]
        place = session.next_place
        session.next_place += 1
        session.places[request.seq] = place
        session.gathered.append((place, request.seq, _kept(value, refusal)))
        if len(session.places) > REMEMBERED_MAX:
            oldest = next(iter(session.places))
            del session.places[oldest]
            session.floor = max(session.floor, oldest)
        self._touched[request.origin] = None

    def flush(self, conn: sqlite3.Connection) -> None:
        """Write what was gathered; called once, before the commit."""
        for origin in self._begun:
            conn.execute("DELETE FROM outcomes WHERE origin = ?", (origin,))
        self._begun.clear()
        for origin in self._touched:
            session = self._sessions[origin]
            conn.executemany(
                "INSERT INTO outcomes VALUES (?,?,?,?)",
                [(origin, *row) for row in session.gathered[-REMEMBERED_MAX:]],
            )
            session.gathered.clear()
            gone = session.next_place - REMEMBERED_MAX
            conn.execute("DELETE FROM outcomes WHERE origin = ? AND place < ?", (origin, gone))
            conn.execute(
                "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?)",
                (origin, session.boot, session.floor, session.next_place),
            )
        self._touched.clear()


def _kept(value: Any, refusal: SwarmError | None) -> bytes:
    if refusal is not None:
        kept = _encode(("refused:" + refusal.code, refusal.message[:1024], refusal.facts))
        if len(kept) > OUTCOME_BYTES_MAX:
            kept = _encode(("refused:" + refusal.code, refusal.message[:1024], {}))
        return kept
    data = _encode(value)
    if len(data) > OUTCOME_BYTES_MAX:
        return _encode(("large", "", {}))
    return _encode(("", "", {}, msgspec.Raw(data)))


def outcome_of(command: type[Any], kept: bytes) -> Any:
    """The answer that was kept, or its refusal raised."""
    found = msgspec.msgpack.decode(kept, type=_Kept)
    if found.code == "large":
        raise Unavailable(
            "it was done, but its answer was lost while this node caught up; look at what is there"
        )
    if found.code:
        kind = _ERRORS.get(found.code.removeprefix("refused:"), Conflict)
        raise kind(found.message, **found.facts)
    return msgspec.msgpack.decode(found.value, type=ANSWERS[command])


def last_boot(conn: sqlite3.Connection, origin: int) -> int:
    row = conn.execute("SELECT boot FROM sessions WHERE origin = ?", (origin,)).fetchone()
    return 0 if row is None else int(row[0])


def find_outcomes(
    conn: sqlite3.Connection, origin: int, boot: int, seqs: tuple[int, ...]
) -> Iterator[tuple[int, bytes]]:
    """What is kept of a boot's requests."""
    if last_boot(conn, origin) != boot:
        return
    wanted = set(seqs)
    for seq, kept in conn.execute("SELECT seq, outcome FROM outcomes WHERE origin = ?", (origin,)):
        if seq in wanted:
            yield seq, kept
