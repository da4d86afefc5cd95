"""Queries about builds: see `swarmd.state.queries` for what holds of all."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import msgspec

from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import ASIDE, BLOCKED, SWEEPER, Build, Builder, prefetch
from swarmd.domain.groups import Group
from swarmd.domain.jobs import AttemptId, GroupId, JobId, JobStatus, NodeId
from swarmd.domain.nodes import Node
from swarmd.domain.trees import TREE, tree_time
from swarmd.state.query import Conn, Query
from swarmd.state.rows import decode_spec
from swarmd.state.rules.binhost import decode_binpkg
from swarmd.state.rules.blocking import decode_builder
from swarmd.state.rules.builds import find_builder, is_paused, next_for
from swarmd.state.rules.jobs import decode_group, open_package
from swarmd.state.rules.nodes import decode_node, find_node
from swarmd.state.versions import ONCE_SINCE, in_force

FINDABLE_MAX = 1000
"""Packages that are asked about at once."""
BINPKGS_MAX = 1000


class BuildCounts(msgspec.Struct, frozen=True):
    """Of the packages that the swarm knows of."""

    needed: int
    """Not blocked or put aside; they may wait for others."""
    delegated: int
    received: int
    blocked: int
    aside: int
    paused: bool


class CountBuilds(Query[BuildCounts], frozen=True):
    """How the queue of packages stands."""


class HeldBuild(msgspec.Struct, frozen=True):
    attempt_id: AttemptId
    job_id: JobId
    package: str
    session_id: GroupId | None
    assigned_at: int
    started_at: int | None


class BuilderView(msgspec.Struct, frozen=True):
    builder: Builder
    node: Node
    held: tuple[HeldBuild, ...]
    """Oldest first."""
    revoked: tuple[str, ...]
    """Taken back, and not told of yet."""
    queue_paused: bool

    @property
    def sweeps(self) -> bool:
        return self.node.name.startswith(SWEEPER)


class FindBuilder(Query["BuilderView | None"], frozen=True):
    """By its node's id or, where that is empty, by its name."""

    node_id: str
    name: str = ""


class ListBuilders(Query["list[BuilderView]"], frozen=True):
    """All, by name."""


class ListBuilderNodes(Query["list[Node]"], frozen=True):
    """Where all of them are."""


class AnythingFor(Query[bool], frozen=True):
    """Whether a builder that came for work would be given some."""

    node_id: str
    at: int
    cores: int


class ListHeldBuilds(Query["list[tuple[NodeId, HeldBuild]]"], frozen=True):
    """All packages that builders hold, and who holds each."""


class BuildFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    ok: bool | None = None
    node_name: str | None = None
    limit: int = 100


class ListBuilds(Query["list[Build]"], frozen=True):
    """The history, newest first."""

    wanted: BuildFilter


class BuildTimes(Query["dict[str, int]"], frozen=True):
    """The mean of what a build of each took, in milliseconds: of the package, else of its category,
    else of all. What nobody ever built is left out."""

    names: tuple[str, ...]


class SessionView(msgspec.Struct, frozen=True):
    group: Group
    needed: int
    delegated: int
    received: int
    blocked: int
    aside: int
    dropped: int
    """Cancelled, or failed for the sake of others."""
    ended_at: int | None
    """When the last of it ended, where nothing is needed or delegated."""


class ListSessions(Query["list[SessionView]"], frozen=True):
    """The newest first."""

    limit: int


class FindQueued(Query["dict[str, JobId]"], frozen=True):
    """Which of these packages are in the queue and have not ended, with their jobs."""

    packages: tuple[str, ...]


class ListOpenBuilds(Query["tuple[str, ...]"], frozen=True):
    """Packages that are needed or delegated; that many at most."""

    limit: int


class TreeWanted(Query[str], frozen=True):
    """As of when the tree is that a builder needs for what it would be given, in the words of the
    newest; "": of any time."""

    node_id: str
    cores: int


class FailedBy(Query["tuple[NodeId, ...]"], frozen=True):
    """Builders that failed a package since it was last tried anew: none of them gets it."""

    job_id: str


class BinHost(msgspec.Struct, frozen=True):
    pkgs: tuple[BinPkg, ...]
    """By path."""
    at: int
    """When it last changed; 0: nothing was ever there."""


class Staging(msgspec.Struct, frozen=True):
    held: tuple[str, ...]
    """Packages that the builder holds."""
    files: int
    """So many of its files are in staging."""


class ViewStaging(Query[Staging], frozen=True):
    """Of a builder, by its node's id; "": of operators, who hold nothing."""

    node_id: str


class ViewBinHost(Query[BinHost], frozen=True):
    """Binary packages in the order of their paths, from one on; at most BINPKGS_MAX."""

    after: str = ""
    limit: int = BINPKGS_MAX


class FindBinPkg(Query["BinPkg | None"], frozen=True):
    path: str


class ListBinPkgs(Query["tuple[BinPkg, ...]"], frozen=True):
    """Those of one package, whatever their versions, by these; at most BINPKGS_MAX."""

    package: str
    """Category and name."""


class BinHostAt(Query[int], frozen=True):
    """When it last changed."""


def _count_builds(conn: Conn, query: CountBuilds) -> BuildCounts:
    counts = dict(conn.execute(
        "SELECT status, sum(n) FROM counts WHERE kind = 'package' GROUP BY 1"
    ).fetchall())  # fmt: skip
    waits = {
        why: int(conn.execute(
            "SELECT count(*) FROM jobs WHERE kind = 'package' AND waits = ?", (why,)
        ).fetchone()[0])
        for why in (BLOCKED, ASIDE)
    }  # fmt: skip
    return BuildCounts(
        needed=counts.get("pending", 0) - sum(waits.values()),
        delegated=counts.get("assigned", 0) + counts.get("running", 0),
        received=counts.get("completed", 0), blocked=waits[BLOCKED], aside=waits[ASIDE],
        paused=is_paused(conn.execute),
    )  # fmt: skip


_HELD = (
    "SELECT a.node_id, a.id, j.id, j.type, j.group_id, a.assigned_at, a.started_at"
    " FROM attempts a JOIN jobs j ON j.seq = a.job_seq"
    " WHERE a.active = 1 AND j.kind = 'package'"
)


def _held(row: tuple[Any, ...]) -> HeldBuild:
    return HeldBuild(AttemptId(row[1]), JobId(row[2]), row[3], row[4], row[5], row[6])


def _find_builder(conn: Conn, query: FindBuilder) -> BuilderView | None:
    if query.node_id:
        node = find_node(conn.execute, query.node_id)
    else:
        row = conn.execute("SELECT body FROM nodes WHERE name = ?", (query.name,)).fetchone()
        node = None if row is None else decode_node(row[0])
    builder = None if node is None else find_builder(conn.execute, node.id)
    if node is None or builder is None:
        return None
    rows = conn.execute(_HELD + " AND a.node_id = ? ORDER BY a.id", (node.id,))
    held = tuple(map(_held, rows))
    paused = is_paused(conn.execute)
    return BuilderView(builder, node, held, _revoked(conn, node.id), paused)


def _revoked(conn: Conn, node_id: str) -> tuple[str, ...]:
    rows = conn.execute("SELECT package FROM revoked WHERE node_id = ? ORDER BY id", (node_id,))
    return tuple(dict.fromkeys(row[0] for row in rows))


def _list_builders(conn: Conn, query: ListBuilders) -> list[BuilderView]:
    held: dict[str, list[HeldBuild]] = {}
    for row in conn.execute(_HELD + " ORDER BY a.id"):
        held.setdefault(row[0], []).append(_held(row))
    rows = conn.execute(
        "SELECT nodes.body, builders.body FROM builders JOIN nodes ON nodes.id = node_id"
        " ORDER BY name"
    ).fetchall()
    views = []
    paused = is_paused(conn.execute)
    for node_body, body in rows:
        node = decode_node(node_body)
        mine = tuple(held.get(node.id, ()))
        revoked = _revoked(conn, node.id)
        views.append(BuilderView(decode_builder(body), node, mine, revoked, paused))
    return views


def _list_builder_nodes(conn: Conn, query: ListBuilderNodes) -> list[Node]:
    rows = conn.execute("SELECT nodes.body FROM builders JOIN nodes ON nodes.id = node_id")
    return [decode_node(row[0]) for row in rows]


def _anything_for(conn: Conn, query: AnythingFor) -> bool:
    builder, node = (
        find_builder(conn.execute, query.node_id), find_node(conn.execute, query.node_id)
    )  # fmt: skip
    if builder is None or node is None or not builder.gets_work(query.at):
        return False
    if is_paused(conn.execute):
        return False
    sweeps = node.name.startswith(SWEEPER)
    return bool(next_for(conn.execute, node.id, sweeps, prefetch(query.cores)))


def _list_held(conn: Conn, query: ListHeldBuilds) -> list[tuple[NodeId, HeldBuild]]:
    return [(NodeId(row[0]), _held(row)) for row in conn.execute(_HELD + " ORDER BY a.id")]


def _list_builds(conn: Conn, query: ListBuilds) -> list[Build]:
    wanted, where, values = query.wanted, [], []
    if wanted.node_name is not None:
        where.append("node_name = ?")
        values.append(wanted.node_name)
    if wanted.ok is not None:
        where.append("+ok = ?" if wanted.node_name is not None else "ok = ?")
        values.append(int(wanted.ok))  # type: ignore[arg-type]
    condition = f" WHERE {' AND '.join(where)}" if where else ""
    rows = conn.execute(
        "SELECT id, job_id, package, node_id, node_name, ok, duration_ms, error, session_id, at"
        f" FROM builds{condition} ORDER BY id DESC LIMIT ?",
        (*values, wanted.limit),
    )
    return [
        Build(
            id=row[0], job_id=JobId(row[1]), package=row[2], node_id=NodeId(row[3]),
            node_name=row[4], ok=bool(row[5]), duration_ms=row[6], error=row[7],
            session_id=None if row[8] is None else GroupId(row[8]), at=row[9],
        )
        for row in rows
    ]  # fmt: skip


def _build_times(conn: Conn, query: BuildTimes) -> dict[str, int]:
    found = {}
    for name in query.names[:FINDABLE_MAX]:
        for key in (name, name.partition("/")[0], ""):
            row = conn.execute(
                "SELECT total_ms / n FROM build_times WHERE key = ? AND n > 0", (key,)
            ).fetchone()
            if row is not None:
                found[name] = int(row[0])
                break
    return found


def _list_sessions(conn: Conn, query: ListSessions) -> list[SessionView]:
    rows = conn.execute(
        "SELECT g.body FROM build_sessions s JOIN groups g ON g.id = s.id"
        " ORDER BY s.n DESC LIMIT ?",
        (query.limit,),
    ).fetchall()
    return [_session(conn, decode_group(row[0])) for row in rows]


def _session(conn: Conn, group: Group) -> SessionView:
    rows = conn.execute("SELECT status, waits, ended_at FROM jobs WHERE group_id = ?", (group.id,))
    needed = delegated = blocked = aside = 0
    received, dropped, last = _forgotten(conn, group)
    for status, waits, ended_at in rows:
        last = max(last, ended_at or 0)
        if status == JobStatus.PENDING:
            blocked += waits == BLOCKED
            aside += waits == ASIDE
            needed += waits not in (BLOCKED, ASIDE)
        elif status == JobStatus.COMPLETED:
            received += 1
        elif status in (JobStatus.ASSIGNED, JobStatus.RUNNING):
            delegated += 1
        else:
            dropped += 1
    total = needed + delegated + received + blocked + aside + dropped
    ended_at = last if total else group.created_at  # its packages came to be another's
    over = not needed and not delegated and ended_at
    return SessionView(
        group, needed, delegated, received, blocked, aside, dropped, ended_at if over else None
    )


def _forgotten(conn: Conn, group: Group) -> tuple[int, int, int]:
    """How many were received and dropped that are forgotten by now, and when the last ended."""
    if in_force(conn.execute) < ONCE_SINCE:
        return 0, 0, 0
    row = conn.execute(
        "SELECT received, dropped, ended_at FROM session_sums WHERE id = ?", (group.id,)
    ).fetchone()
    return (0, 0, 0) if row is None else (row[0], row[1], row[2])


def _find_queued(conn: Conn, query: FindQueued) -> dict[str, JobId]:
    found = {}
    for package in query.packages[:FINDABLE_MAX]:
        job_id = open_package(conn.execute, package)
        if job_id is not None:
            found[package] = job_id
    return found


def _list_open(conn: Conn, query: ListOpenBuilds) -> tuple[str, ...]:
    found: list[str] = []
    for status in (JobStatus.PENDING, JobStatus.ASSIGNED, JobStatus.RUNNING):
        rows = conn.execute(
            "SELECT type FROM jobs WHERE kind = 'package' AND status = ?"
            " AND (waits IS NULL OR waits NOT IN (?,?)) ORDER BY priority, seq LIMIT ?",
            (status.value, BLOCKED, ASIDE, query.limit - len(found)),
        )
        found += (row[0] for row in rows)
    return tuple(found)


def _tree_wanted(conn: Conn, query: TreeWanted) -> str:
    node = find_node(conn.execute, query.node_id)
    if node is None:
        return ""
    sweeps = node.name.startswith(SWEEPER)
    said = [
        decode_spec(
            conn.execute("SELECT spec FROM job_specs WHERE seq = ?", (seq,)).fetchone()[0]
        ).labels.get(TREE, "")
        for seq in next_for(conn.execute, node.id, sweeps, prefetch(query.cores))
    ]
    return max(said, key=lambda text: tree_time(text) or 0.0, default="")


def _failed_by(conn: Conn, query: FailedBy) -> tuple[NodeId, ...]:
    rows = conn.execute(
        "SELECT f.node_id FROM jobs j JOIN build_failures f ON f.job_seq = j.seq WHERE j.id = ?"
        " ORDER BY f.node_id",
        (query.job_id,),
    )
    return tuple(NodeId(row[0]) for row in rows)


def _view_staging(conn: Conn, query: ViewStaging) -> Staging:
    rows = conn.execute(_HELD + " AND a.node_id = ? ORDER BY a.id", (query.node_id,))
    held = tuple(_held(row).package for row in rows)
    files = conn.execute("SELECT count(*) FROM staged WHERE node_id = ?", (query.node_id,))
    return Staging(held, int(files.fetchone()[0]))


def _view_binhost(conn: Conn, query: ViewBinHost) -> BinHost:
    rows = conn.execute(
        "SELECT body FROM binpkgs WHERE path > ? ORDER BY path LIMIT ?",
        (query.after, min(query.limit, BINPKGS_MAX)),
    )
    pkgs = tuple(decode_binpkg(row[0]) for row in rows)
    return BinHost(pkgs, _binhost_at(conn, BinHostAt()))


def _find_binpkg(conn: Conn, query: FindBinPkg) -> BinPkg | None:
    row = conn.execute("SELECT body FROM binpkgs WHERE path = ?", (query.path,)).fetchone()
    return None if row is None else decode_binpkg(row[0])


def _list_binpkgs(conn: Conn, query: ListBinPkgs) -> tuple[BinPkg, ...]:
    # The index has versions in the order of their letters, and others' between them: a/b-c-1.
    rows = conn.execute(
        "SELECT body FROM binpkgs WHERE cpv >= ? AND cpv < ? ORDER BY cpv",
        (f"{query.package}-", f"{query.package}."),
    )
    of_package = (pkg for row in rows if (pkg := decode_binpkg(row[0])).package == query.package)
    return tuple(islice(of_package, BINPKGS_MAX))


def _binhost_at(conn: Conn, query: BinHostAt) -> int:
    row = conn.execute("SELECT value FROM meta WHERE key = 'binhost_at'").fetchone()
    return 0 if row is None else int(row[0])


BUILD_QUERIES: dict[type[Any], Callable[[Conn, Any], Any]] = {
    CountBuilds: _count_builds,
    FindBuilder: _find_builder,
    ListBuilders: _list_builders,
    ListBuilderNodes: _list_builder_nodes,
    AnythingFor: _anything_for,
    ListHeldBuilds: _list_held,
    ListBuilds: _list_builds,
    BuildTimes: _build_times,
    ListSessions: _list_sessions,
    FindQueued: _find_queued,
    ListOpenBuilds: _list_open,
    TreeWanted: _tree_wanted,
    FailedBy: _failed_by,
    ViewStaging: _view_staging,
    ViewBinHost: _view_binhost,
    FindBinPkg: _find_binpkg,
    ListBinPkgs: _list_binpkgs,
    BinHostAt: _binhost_at,
}
