"""Requests that were applied: the last of each node's present boot, so that none is applied twice.

A boot that is older than one seen, and a request older than those remembered, is refused: it was
answered long ago, or whoever asked is gone."""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgspec

from swarmd.domain.errors import BY_CODE, Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import Job
from swarmd.state.commands import ANSWERS, ONE_BY_ONE, Refusal, RequestId
from swarmd.state.tx import insert_rows

REMEMBERED_MAX = 4096
OUTCOME_BYTES_MAX = 4096
GONE = 2**62
"""The last boot of a node that was removed."""

_encode = msgspec.msgpack.Encoder(enc_hook=str).encode


class _Kept(msgspec.Struct, array_like=True):
    """An outcome as it is stored: a refusal has a code; an answer that was too large, neither."""

    code: str
    message: str
    facts: dict[str, Any]
    value: msgspec.Raw = msgspec.Raw()


class _Session:
    __slots__ = ("boot", "floor", "gathered", "known", "next_place", "order")

    def __init__(self, boot: int, floor: int, next_place: int) -> None:
        self.boot = boot
        self.floor = floor
        self.next_place = next_place
        self.known: set[int] = set()
        self.order: deque[int] = deque()
        """What is known, in the log's order."""
        self.gathered: list[tuple[int, int, int, bytes]] = []

    def remember(self, seq: int) -> None:
        self.known.add(seq)
        self.order.append(seq)


class Requests:
    """Owned by the machine; written with the batch that it belongs to."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._sessions: dict[int, _Session] = {}
        for origin, boot, floor, place in conn.execute("SELECT * FROM sessions ORDER BY origin"):
            self._sessions[origin] = _Session(boot, floor, place)
        rows = conn.execute("SELECT origin, seq FROM outcomes ORDER BY origin, place")
        for origin, seq in rows:
            self._sessions[origin].remember(seq)
        self._touched: dict[int, None] = {}
        self._begun: dict[int, None] = {}

    def admit(self, request: RequestId) -> bool:
        """Whether this is to be applied now: False when it was. Conflict when nobody can say."""
        session = self._sessions.get(request.origin)
        if session is None or session.boot < request.boot < GONE:
            self._sessions[request.origin] = _Session(request.boot, 0, 0)
            self._begun[request.origin] = None
            return True
        if session.boot == GONE:
            raise Conflict("the node that asked was removed from the swarm")
        if request.boot < session.boot:
            raise Conflict("the node that asked has been restarted since")
        if request.seq in session.known:
            return False
        if request.seq <= session.floor:
            raise Conflict("the request is older than those that are remembered")
        return True

    def retire(self, origin: int) -> None:
        """Nothing of this origin counts any more."""
        self._sessions[origin] = _Session(GONE, 0, 0)
        self._begun[origin] = self._touched[origin] = None

    def note(self, request: RequestId, value: Any, refusal: SwarmError | None) -> None:
        origin, seq = request.origin, request.seq
        session = self._sessions[origin]
        session.gathered.append((origin, session.next_place, seq, _kept(value, refusal)))
        session.next_place += 1
        session.remember(seq)
        if len(session.order) > REMEMBERED_MAX:
            oldest = session.order.popleft()
            session.known.discard(oldest)
            session.floor = max(session.floor, oldest)
        self._touched[origin] = None

    def flush(self, conn: sqlite3.Connection) -> None:
        """Write what was gathered; called once, before the commit."""
        for origin in self._begun:
            conn.execute("DELETE FROM outcomes WHERE origin = ?", (origin,))
        self._begun.clear()
        for origin in self._touched:
            session = self._sessions[origin]
            insert_rows(conn.execute, "outcomes", session.gathered[-REMEMBERED_MAX:])
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
    return _LARGE if len(data) > OUTCOME_BYTES_MAX else _DONE + data


_LARGE = _encode(("large", "", {}))
_DONE = _encode(("", "", {}, None)).removesuffix(_encode(None))
"""What a _Kept begins with; its last element, the value, follows."""


def outcome_of(command: type[Any], kept: bytes) -> Any:
    """The answer that was kept, or its refusal raised."""
    found = msgspec.msgpack.decode(kept, type=_Kept)
    if found.code == "large":
        raise Unavailable(
            "it was done, but its answer was lost while this node caught up; look at what is there"
        )
    if found.code:
        kind = BY_CODE.get(found.code.removeprefix("refused:"), Conflict)
        raise kind(found.message, **found.facts)
    if command in ONE_BY_ONE:
        parts = msgspec.msgpack.decode(found.value, type=tuple[msgspec.Raw, ...])
        return tuple(_one_of(part) for part in parts)
    return msgspec.msgpack.decode(found.value, type=ANSWERS[command])


def _one_of(part: msgspec.Raw) -> Job | Refusal:
    """Nothing but what they hold tells the two apart: a refusal alone has a code."""
    names = msgspec.msgpack.decode(part, type=dict[str, msgspec.Raw])
    if "code" in names:
        return msgspec.msgpack.decode(part, type=Refusal)
    return msgspec.msgpack.decode(part, type=Job)


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
