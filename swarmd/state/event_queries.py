"""Queries about events: see `swarmd.state.queries` for what holds of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from swarmd.domain.actors import Actor
from swarmd.domain.events import Event, EventBody
from swarmd.state.query import Conn, Query


class ListEvents(Query["list[Event]"], frozen=True):
    """Events after one, oldest first. The first may be later than asked for when older ones were
    forgotten: then the answer's first seq shows the gap."""

    after: int
    limit: int = 500


class Only(msgspec.Struct, frozen=True):
    """Of the events of a kind those whose field has one of the values; with `but` all others."""

    kind: str
    field: str
    values: tuple[str | bool, ...]
    but: bool = False

    def takes(self, body: EventBody) -> bool:
        if type(body).__name__ != self.kind:
            return True
        return (getattr(body, self.field) in self.values) is not self.but


class ListLately(Query["list[Event]"], frozen=True):
    """Events of some kinds, the newest first, not older than `since`, about one node or any; looked
    for among the last `scan`. `limit` counts those that fit."""

    kinds: tuple[str, ...]
    limit: int
    scan: int
    since: int = 0
    about: str = ""
    only: Only | None = None


_decode_actor = msgspec.msgpack.Decoder(Actor).decode
_decode_body: Callable[[bytes], EventBody] = msgspec.msgpack.Decoder(EventBody).decode


def _list_events(conn: Conn, query: ListEvents) -> list[Event]:
    rows = conn.execute(
        "SELECT seq, at, entry, actor, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
        (query.after, query.limit),
    )
    return [
        Event(row[0], row[1], row[2], _decode_actor(row[3]), _decode_body(row[4])) for row in rows
    ]


def _list_lately(conn: Conn, query: ListLately) -> list[Event]:
    found: list[Event] = []
    rows = conn.execute(
        "SELECT seq, at, entry, actor, body FROM events ORDER BY seq DESC LIMIT ?", (query.scan,)
    )
    # Most events are of other kinds, and to read one takes ten times as long as to see that.
    marks, about = [kind.encode() for kind in query.kinds], query.about.encode()
    for row in rows:
        if row[1] < query.since or len(found) >= query.limit:
            break
        if about not in row[4] or not any(mark in row[4] for mark in marks):
            continue
        body = _decode_body(row[4])
        if type(body).__name__ not in query.kinds:
            continue
        if query.about and getattr(body, "node_id", None) != query.about:
            continue
        if query.only is not None and not query.only.takes(body):
            continue
        found.append(Event(row[0], row[1], row[2], _decode_actor(row[3]), body))
    return found


EVENT_QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {
    ListEvents: _list_events,
    ListLately: _list_lately,
}
