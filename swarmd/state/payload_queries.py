"""Queries about payloads: see `swarmd.state.queries` for what holds of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from msgspec.structs import replace

from swarmd.domain.payloads import Deployment, Payload, PayloadSort, Place, Rolling
from swarmd.state.query import Conn, Query
from swarmd.state.rules.payloads import (
    decode_payload,
    decode_place,
    decode_rolling,
    find_payload,
)
from swarmd.state.versions import ROLLS_SINCE, in_force

decode_deployment = msgspec.msgpack.Decoder(Deployment).decode


class ListPayloads(Query["list[Payload]"], frozen=True):
    """Of one sort or of all, the newest first."""

    sort: PayloadSort | None = None


class FindPayload(Query["Payload | None"], frozen=True):
    sort: PayloadSort
    version: str


class ListPlaces(Query["list[Place]"], frozen=True):
    """What lies where, as last seen: of one sort or of all."""

    sort: PayloadSort | None = None


class FindPlace(Query["Place | None"], frozen=True):
    sort: PayloadSort
    node_id: str


class ListDeployments(Query["list[Deployment]"], frozen=True):
    """Steps of deployments, the newest first; of one builder, or of all."""

    sort: PayloadSort
    limit: int
    node_id: str = ""


class ListRolls(Query["list[Rolling]"], frozen=True):
    """Those that did not end."""


def _list_payloads(conn: Conn, query: ListPayloads) -> list[Payload]:
    if query.sort is None:
        rows = conn.execute("SELECT body FROM payloads ORDER BY id DESC")
    else:
        rows = conn.execute(
            "SELECT body FROM payloads WHERE sort = ? ORDER BY id DESC", (query.sort.value,)
        )
    return [decode_payload(row[0]) for row in rows]


def _list_places(conn: Conn, query: ListPlaces) -> list[Place]:
    if query.sort is None:
        rows = conn.execute("SELECT body FROM payload_places ORDER BY sort, node_id")
    else:
        rows = conn.execute(
            "SELECT body FROM payload_places WHERE sort = ? ORDER BY node_id", (query.sort.value,)
        )
    return [decode_place(row[0]) for row in rows]


def _find_place(conn: Conn, query: FindPlace) -> Place | None:
    row = conn.execute(
        "SELECT body FROM payload_places WHERE sort = ? AND node_id = ?",
        (query.sort.value, query.node_id),
    ).fetchone()
    return None if row is None else decode_place(row[0])


def _list_deployments(conn: Conn, query: ListDeployments) -> list[Deployment]:
    if query.node_id:
        rows = conn.execute(
            "SELECT body FROM payload_log WHERE sort = ? AND node_id = ? ORDER BY id DESC LIMIT ?",
            (query.sort.value, query.node_id, query.limit),
        )
    else:
        rows = conn.execute(
            "SELECT body FROM payload_log WHERE sort = ? ORDER BY id DESC LIMIT ?",
            (query.sort.value, query.limit),
        )
    return [decode_deployment(row[0]) for row in rows]


def _list_rolls(conn: Conn) -> list[Rolling]:
    if in_force(conn.execute) < ROLLS_SINCE:
        return []
    rows = conn.execute(
        "SELECT body, (SELECT max(ends_at) FROM payload_holds h WHERE h.sort = payload_rolls.sort)"
        " FROM payload_rolls ORDER BY sort"
    )
    return [replace(decode_rolling(body), held_until=ends_at or 0) for body, ends_at in rows]


PAYLOAD_QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {
    ListPayloads: _list_payloads,
    FindPayload: lambda conn, query: find_payload(conn.execute, query.sort, query.version),
    ListPlaces: _list_places,
    FindPlace: _find_place,
    ListDeployments: _list_deployments,
    ListRolls: lambda conn, query: _list_rolls(conn),
}
