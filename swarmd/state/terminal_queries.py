"""Queries about terminals: see `swarmd.state.queries` for what holds of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from swarmd.domain.jobs import NodeId
from swarmd.domain.terminals import KEPT_MAX, Terminal
from swarmd.state.query import Conn, Query
from swarmd.state.rules.terminals import decode_terminal, find_terminal


class ListTerminals(Query["list[Terminal]"], frozen=True):
    """The newest first."""

    limit: int = KEPT_MAX


class FindTerminal(Query["Terminal | None"], frozen=True):
    id: str


class ListOpenTerminals(Query["list[Terminal]"], frozen=True):
    """Those through a node of which no end is known."""

    via: NodeId


class OldestTerminal(Query["int | None"], frozen=True):
    """When it began; None where none is kept."""


def _list(conn: Conn, query: ListTerminals) -> list[Terminal]:
    rows = conn.execute(
        "SELECT body FROM terminals ORDER BY n DESC LIMIT ?", (min(query.limit, KEPT_MAX),)
    )
    return [decode_terminal(row[0]) for row in rows]


def _list_open(conn: Conn, query: ListOpenTerminals) -> list[Terminal]:
    rows = conn.execute("SELECT body FROM terminals WHERE via = ? ORDER BY n", (query.via,))
    return [terminal for row in rows if (terminal := decode_terminal(row[0])).end is None]


def _oldest(conn: Conn, query: OldestTerminal) -> int | None:
    """The log's time never goes back: they are in the order in which they began."""
    row = conn.execute("SELECT began_at FROM terminals ORDER BY n LIMIT 1").fetchone()
    return None if row is None else int(row[0])


TERMINAL_QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {
    ListTerminals: _list,
    FindTerminal: lambda conn, query: find_terminal(conn.execute, query.id),
    ListOpenTerminals: _list_open,
    OldestTerminal: _oldest,
}
