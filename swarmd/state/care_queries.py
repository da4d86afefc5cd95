"""Queries about the care for builders: see `swarmd.state.queries` for what holds of all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from swarmd.domain.builds import Builder
from swarmd.domain.care import Care
from swarmd.domain.nodes import Node
from swarmd.state.query import Conn, Query
from swarmd.state.rules.blocking import decode_builder
from swarmd.state.rules.care import decode_care
from swarmd.state.rules.nodes import decode_node


class Cared(msgspec.Struct, frozen=True):
    """A builder, and what was done for it."""

    builder: Builder
    node: Node
    care: Care


class ListCare(Query["list[Cared]"], frozen=True):
    """All builders, by name."""


def _list_care(conn: Conn, query: ListCare) -> list[Cared]:
    rows = conn.execute(
        "SELECT nodes.body, builders.body, care.body FROM builders"
        " JOIN nodes ON nodes.id = builders.node_id"
        " LEFT JOIN care ON care.node_id = builders.node_id ORDER BY name"
    )
    found = []
    for node_body, builder_body, body in rows:
        builder = decode_builder(builder_body)
        care = Care(builder.node_id) if body is None else decode_care(body)
        found.append(Cared(builder, decode_node(node_body), care))
    return found


CARE_QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {ListCare: _list_care}
