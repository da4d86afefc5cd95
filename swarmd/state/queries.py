"""Queries: questions to the state, answered from one snapshot of it. The table QUERIES is total.

A query is a value, so that a node without a replica can send it to one that has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from swarmd.domain.blobs import BlobInfo
from swarmd.domain.builds import OUTSIDE
from swarmd.domain.drone_tokens import DroneToken
from swarmd.domain.jobs import Attempt, AttemptId, JobId, JobKind, JobSpec, NodeId
from swarmd.domain.nodes import Node, NodeKind, Usage
from swarmd.state.build_queries import BUILD_QUERIES
from swarmd.state.care_queries import CARE_QUERIES
from swarmd.state.event_queries import EVENT_QUERIES
from swarmd.state.event_queries import ListEvents as ListEvents
from swarmd.state.event_queries import ListLately as ListLately
from swarmd.state.job_queries import JOB_QUERIES
from swarmd.state.job_queries import AheadOf as AheadOf
from swarmd.state.job_queries import AnyReady as AnyReady
from swarmd.state.job_queries import CountJobs as CountJobs
from swarmd.state.job_queries import FindJob as FindJob
from swarmd.state.job_queries import FindJobs as FindJobs
from swarmd.state.job_queries import ListJobs as ListJobs
from swarmd.state.job_queries import ListTotals as ListTotals
from swarmd.state.payload_queries import PAYLOAD_QUERIES
from swarmd.state.query import Conn as Conn
from swarmd.state.query import Query as Query
from swarmd.state.query import T as T
from swarmd.state.requests import find_outcomes, last_boot
from swarmd.state.rows import ATTEMPT, EXECUTOR, Shape, attempt_of, decode_shape, decode_spec
from swarmd.state.rules.attempts import usage_of
from swarmd.state.rules.nodes import decode_node
from swarmd.state.rules.trust import AUTHORITY, decode_drone_token
from swarmd.state.terminal_queries import TERMINAL_QUERIES
from swarmd.state.versions import ORDER_SINCE, ROLLS_SINCE, in_force


def _ids_from(mark: str) -> tuple[str, str]:
    """All ids that begin with a mark are from the first on and before the second."""
    return mark, mark[:-1] + chr(ord(mark[-1]) + 1)


EXECUTORS = _ids_from(EXECUTOR)


class ReadyJob(msgspec.Struct, frozen=True):
    job_id: JobId
    seq: int
    priority: int
    shape: int


class PlacementView(msgspec.Struct, frozen=True):
    """What the scheduler looks at: nodes, what they hold, and the heads of the queue by shape."""

    nodes: tuple[Node, ...]
    used: dict[str, Usage]
    shapes: dict[int, Shape]
    heads: tuple[ReadyJob, ...]
    holders: dict[AttemptId, str]
    """The node of each attempt that is held."""
    event_seq: int
    """The last event that this view has in it."""


class ViewPlacement(Query[PlacementView], frozen=True):
    """As many ready jobs of each shape as the nodes have slots and `extra`, best first."""

    extra: int
    limit: int


class Duty(msgspec.Struct, frozen=True):
    """An attempt that a node holds, with what it needs to run it."""

    attempt: Attempt
    spec: JobSpec


class ListDuties(Query["list[Duty]"], frozen=True):
    """The active attempts of a node; with `only`, those among them."""

    node_id: str
    only: tuple[AttemptId, ...] | None = None


class ClaimHeld(msgspec.Struct, frozen=True):
    """A job that an external executor holds."""

    attempt_id: AttemptId
    job_id: JobId
    job_type: str
    executor: str
    started_at: int
    deadline_at: int | None


class ListClaims(Query["list[ClaimHeld]"], frozen=True):
    """All that external executors hold."""


class Hold(msgspec.Struct, frozen=True):
    """A node's work is not to be given away, see HoldAttempts."""

    node_id: NodeId
    for_ms: int | None
    revision: int


class LeasesView(msgspec.Struct, frozen=True):
    busy: tuple[NodeId, ...]
    """Nodes, or what used to be one, that hold attempts."""
    holds: tuple[Hold, ...]


class ViewLeases(Query[LeasesView], frozen=True):
    """Whose leases matter."""


class FindHold(Query["Hold | None"], frozen=True):
    node_id: str


class ListMemberIds(Query["frozenset[str]"], frozen=True):
    """Of nodes that are members."""


class ListNodes(Query["list[Node]"], frozen=True):
    """Nodes of the kinds asked for, by name."""

    kinds: tuple[NodeKind, ...] = (NodeKind.MEMBER,)


class CompletedBy(Query["dict[str, int]"], frozen=True):
    """How many jobs each node or executor completed, by the node's id or executor's name."""


class UsageOf(Query[Usage], frozen=True):
    node_id: str


class GetSetting(Query["bytes | None"], frozen=True):
    key: str


class FindBlob(Query["BlobInfo | None"], frozen=True):
    sha256: str


class Standing(msgspec.Struct, frozen=True):
    applied: int
    event_seq: int
    delayed_until: int | None
    """When the next job that backs off is due."""
    unsettled: bool


class GetStanding(Query[Standing], frozen=True):
    """Where the state stands, and what is due."""


class ListHolders(Query["tuple[NodeId, ...]"], frozen=True):
    """Who has a blob, as far as the swarm knows."""

    sha256: str


class Sealed(msgspec.Struct, frozen=True):
    sealed: bytes
    revision: int


class Trust(msgspec.Struct, frozen=True):
    authority: bytes
    """The certificate of the swarm's authority; empty where it has none yet."""
    secrets: dict[str, Sealed]
    boxes: dict[NodeId, bytes]
    """The key to the secrets, for each node that may open them."""
    tokens: dict[bytes, int]
    """Hash of the secret, and when it ends."""
    gone: frozenset[NodeId]
    """Nodes that were removed for good."""


class GetTrust(Query[Trust], frozen=True):
    """Whom the swarm trusts, and what it keeps sealed."""


class FindSecret(Query["Sealed | None"], frozen=True):
    """One of what the swarm keeps sealed."""

    name: str


class ListDroneTokens(Query["list[DroneToken]"], frozen=True):
    """By name."""


class LastBoot(Query[int], frozen=True):
    """The newest boot of a node whose requests were applied; 0: none was."""

    origin: int


class FindOutcomes(Query["list[tuple[int, bytes]]"], frozen=True):
    """What became of requests of a node's boot, as far as it is remembered: (sequence, outcome)."""

    origin: int
    boot: int
    seqs: tuple[int, ...]


def _view_placement(conn: Conn, query: ViewPlacement) -> PlacementView:
    # A node that is being started again takes nothing new.
    stopping = [row[0] for row in conn.execute("SELECT node_id FROM holds WHERE for_ms > 0")]
    members = _list_nodes(conn, ListNodes())
    nodes = tuple(n for n in members if n.capacity.slots and n.id not in stopping)
    shapes, heads = {}, []
    room = sum(node.capacity.slots for node in nodes)
    limit = min(query.limit, room + query.extra) if room else 0
    ready = conn.execute("SELECT id, key FROM shapes WHERE ready > 0") if limit else ()
    for shape_id, key in ready:
        shape = decode_shape(key)
        if shape.kind is JobKind.PACKAGE:
            continue  # builders come for them
        shapes[shape_id] = shape
        rows = conn.execute(
            "SELECT id, seq, priority FROM jobs WHERE shape = ? AND ready = 1"
            " ORDER BY priority DESC, seq LIMIT ?",
            (shape_id, limit),
        )
        heads += [ReadyJob(JobId(row[0]), row[1], row[2], shape_id) for row in rows]
    heads.sort(key=lambda head: (-head.priority, head.seq))
    used = {str(node.id): usage_of(conn.execute, node.id) for node in nodes}
    holders = {
        AttemptId(row[0]): str(node.id)
        for node in nodes
        for row in conn.execute(
            "SELECT id FROM attempts WHERE node_id = ? AND active = 1", (node.id,)
        )
    }
    seq = conn.execute("SELECT max(seq) FROM events").fetchone()[0] or 0
    return PlacementView(nodes, used, shapes, tuple(heads), holders, seq)


def _list_duties(conn: Conn, query: ListDuties) -> list[Duty]:
    columns = ", ".join("a." + column.strip() for column in ATTEMPT.split(","))
    sql = (
        f"SELECT {columns}, j.id, s.spec FROM attempts a JOIN jobs j ON j.seq = a.job_seq"
        " JOIN job_specs s ON s.seq = a.job_seq WHERE a.active = 1 AND a.node_id = ?"
    )
    if query.only is not None:
        sql += f" AND a.id IN ({','.join(str(int(i)) for i in query.only)})"
    rows = conn.execute(sql + " ORDER BY a.id", (query.node_id,))
    return [Duty(attempt_of(row, JobId(row[11])), decode_spec(row[12])) for row in rows]


def _find_hold(conn: Conn, query: FindHold) -> Hold | None:
    row = conn.execute("SELECT * FROM holds WHERE node_id = ?", (query.node_id,)).fetchone()
    return None if row is None else Hold(*row)


def _view_leases(conn: Conn, query: ViewLeases) -> LeasesView:
    busy = conn.execute(
        "SELECT DISTINCT node_id FROM attempts WHERE active = 1 AND NOT (node_id >= ?1 AND"
        " node_id < ?2) AND NOT (node_id >= ?3 AND node_id < ?4) ORDER BY node_id",
        (*EXECUTORS, *_ids_from(OUTSIDE)),
    )
    holds = conn.execute("SELECT * FROM holds ORDER BY node_id")
    return LeasesView(tuple(row[0] for row in busy), tuple(Hold(*row) for row in holds))


def _list_member_ids(conn: Conn, query: ListMemberIds) -> frozenset[str]:
    return frozenset(row[0] for row in conn.execute("SELECT id FROM nodes WHERE kind = 'member'"))


def _list_claims(conn: Conn, query: ListClaims) -> list[ClaimHeld]:
    rows = conn.execute(
        "SELECT a.id, j.id, j.type, a.node_id, a.started_at, a.deadline_at FROM attempts a"
        " JOIN jobs j ON j.seq = a.job_seq WHERE a.active = 1 AND a.node_id >= ? AND a.node_id < ?"
        " ORDER BY a.id",
        EXECUTORS,
    )
    return [ClaimHeld(row[0], row[1], row[2], row[3].removeprefix(EXECUTOR), row[4], row[5])
            for row in rows]  # fmt: skip


def _list_nodes(conn: Conn, query: ListNodes) -> list[Node]:
    rows = conn.execute("SELECT body, kind FROM nodes ORDER BY name")
    return [decode_node(row[0]) for row in rows if row[1] in query.kinds]


def _get_trust(conn: Conn, query: GetTrust) -> Trust:
    known = conn.execute("SELECT value FROM settings WHERE key = ?", (AUTHORITY,)).fetchone()
    secrets = conn.execute("SELECT name, sealed, revision FROM secrets")
    return Trust(
        b"" if known is None else bytes(known[0]),
        {name: Sealed(sealed, revision) for name, sealed, revision in secrets},
        {NodeId(row[0]): row[1] for row in conn.execute("SELECT node_id, box FROM wraps")},
        {row[0]: row[1] for row in conn.execute("SELECT hash, ends_at FROM tokens")},
        frozenset(NodeId(row[0]) for row in conn.execute("SELECT id FROM gone")),
    )


def _list_drone_tokens(conn: Conn) -> list[DroneToken]:
    if in_force(conn.execute) < ROLLS_SINCE:
        return []
    rows = conn.execute("SELECT body FROM drone_tokens ORDER BY name")
    return [decode_drone_token(row[0]) for row in rows]


def _find_secret(conn: Conn, query: FindSecret) -> Sealed | None:
    row = conn.execute(
        "SELECT sealed, revision FROM secrets WHERE name = ?", (query.name,)
    ).fetchone()
    return None if row is None else Sealed(row[0], row[1])


def _completed_by(conn: Conn, query: CompletedBy) -> dict[str, int]:
    return {
        row[0].removeprefix(EXECUTOR): row[1]
        for row in conn.execute("SELECT id, completed FROM nodes")
    }


def _get_setting(conn: Conn, query: GetSetting) -> bytes | None:
    row = conn.execute("SELECT value FROM settings WHERE key = ?", (query.key,)).fetchone()
    return None if row is None else bytes(row[0])


def _find_blob(conn: Conn, query: FindBlob) -> BlobInfo | None:
    row = conn.execute(
        "SELECT sha256, size_bytes FROM blobs WHERE sha256 = ?", (query.sha256,)
    ).fetchone()
    return None if row is None else BlobInfo(*row)


def _get_standing(conn: Conn, query: GetStanding) -> Standing:
    def first(sql: str) -> Any:
        row = conn.execute(sql).fetchone()
        return None if row is None else row[0]

    delayed = first("SELECT min(not_before) FROM jobs WHERE waits = 'backoff'")
    blocked = first("SELECT min(not_before) FROM jobs WHERE kind = 'package' AND waits = 'blocked'")
    return Standing(
        applied=first("SELECT value FROM meta WHERE key = 'applied'") or 0,
        event_seq=first("SELECT max(seq) FROM events") or 0,
        delayed_until=min((at for at in (delayed, blocked) if at is not None), default=None),
        unsettled=first("SELECT 1 FROM settled LIMIT 1") is not None
        or (
            in_force(conn.execute) >= ORDER_SINCE
            and first("SELECT 1 FROM given_up LIMIT 1") is not None
        ),
    )


QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {
    ViewPlacement: _view_placement,
    ListDuties: _list_duties,
    ListClaims: _list_claims,
    ViewLeases: _view_leases,
    FindHold: _find_hold,
    ListMemberIds: _list_member_ids,
    ListNodes: _list_nodes,
    GetTrust: _get_trust,
    FindSecret: _find_secret,
    ListDroneTokens: lambda conn, query: _list_drone_tokens(conn),
    CompletedBy: _completed_by,
    UsageOf: lambda conn, query: usage_of(conn.execute, query.node_id),
    GetSetting: _get_setting,
    FindBlob: _find_blob,
    GetStanding: _get_standing,
    ListHolders: lambda conn, query: tuple(
        NodeId(row[0])
        for row in conn.execute(
            "SELECT node_id FROM blob_holders WHERE sha256 = ? ORDER BY node_id", (query.sha256,)
        )
    ),
    LastBoot: lambda conn, query: last_boot(conn, query.origin),
    FindOutcomes: lambda conn, query: list(
        find_outcomes(conn, query.origin, query.boot, query.seqs)
    ),
    **JOB_QUERIES,
    **EVENT_QUERIES,
    **BUILD_QUERIES,
    **PAYLOAD_QUERIES,
    **TERMINAL_QUERIES,
    **CARE_QUERIES,
}
