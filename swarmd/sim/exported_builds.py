"""Exported builds: what a copy of a swarm's state says of its packages and of who builds them.

Only names, standings and times are looked at: neither what a build said nor what came of it.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from swarmd.domain.builds import ASIDE, BLOCKED, OUTSIDE, Builder
from swarmd.domain.groups import Group
from swarmd.domain.jobs import JobId, JobKind, JobStatus, NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.build_queries import FINDABLE_MAX, BuildTimes
from swarmd.state.queries import QUERIES
from swarmd.state.rows import FROM, JOB, job_of
from swarmd.state.rules.blocking import decode_builder
from swarmd.state.rules.builds import NAME, is_paused
from swarmd.state.rules.jobs import decode_group
from swarmd.state.rules.nodes import decode_node

PACKAGES_MAX = 20_000
"""So many are brought over: those that go first."""
NAME_CHARS_MAX = 64


@dataclass(frozen=True)
class OpenPackage:
    """One that had not been received."""

    id: JobId
    name: str
    """With its version, as it was queued."""
    key: str
    """What its history is kept by."""
    priority: int = 50
    session: str | None = None
    depends_on: tuple[JobId, ...] = ()
    disconnect_s: float | None = None
    holder: str | None = None
    """The builder that had it."""
    ran_s: float | None = None
    """For how long it had been built there; None: it was not begun."""
    failed_by: tuple[str, ...] = ()
    """Builders that do not get it any more."""
    blocked_s: float | None = None
    """For how long it is blocked yet."""


@dataclass(frozen=True)
class KnownBuilder:
    """One that was there."""

    id: str
    """As it calls itself; a member's is its node's."""
    name: str
    member: bool
    cores: int
    about: Builder
    rests_s: float = 0.0
    """For how long it gets no work yet: it is grounded, or its uploads failed."""


@dataclass(frozen=True)
class ExportedBuilds:
    packages: tuple[OpenPackage, ...] = ()
    builders: tuple[KnownBuilder, ...] = ()
    sessions: tuple[Group, ...] = ()
    lengths_s: Mapping[str, float] = field(default_factory=dict)
    paused: bool = False

    def __bool__(self) -> bool:
        return bool(self.packages or self.builders)

    def names(self) -> list[str]:
        """Of the builders that are not members."""
        return [each.name for each in self.builders if not each.member]

    def notes(self, usual_s: float) -> list[str]:
        if not self:
            return []
        held = sum(each.holder is not None for each in self.packages)
        blocked = sum(each.blocked_s is not None for each in self.packages)
        keys = {each.key for each in self.packages}
        known = len(keys & self.lengths_s.keys())
        told = [
            f"packages {len(self.packages)} to be built: {held} with builders, {blocked} blocked;"
            f" builders there {len(self.builders)}" + ("; the queue is paused" * self.paused)
        ]
        if keys:
            told.append(
                f"builds   take as long as the swarm expects for {known} of {len(keys)} packages,"
                f" else about {usual_s:g} s"
            )
        return told


def read_builds(
    conn: sqlite3.Connection, last_at: int, left_out: Counter[str]
) -> ExportedBuilds:  # fmt: skip
    """Nothing where the copy is of before there were builds."""
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'builders'"
    if conn.execute(known).fetchone() is None:
        return ExportedBuilds()
    builders = _builders(conn, last_at, left_out)
    packages = _packages(conn, last_at, {_node_id(each): each.name for each in builders}, left_out)
    wanted = {each.session for each in packages}
    rows = conn.execute(
        "SELECT g.body FROM build_sessions s JOIN groups g ON g.id = s.id ORDER BY s.n"
    )
    sessions = tuple(group for row in rows if (group := decode_group(row[0])).id in wanted)
    return ExportedBuilds(
        packages, builders, sessions, _lengths(conn, packages), is_paused(conn.execute)
    )


def _node_id(builder: KnownBuilder) -> NodeId:
    return NodeId(builder.id if builder.member else OUTSIDE + builder.id)


def _builders(
    conn: sqlite3.Connection, last_at: int, left_out: Counter[str]
) -> tuple[KnownBuilder, ...]:
    rows = conn.execute(
        "SELECT nodes.body, builders.body FROM builders JOIN nodes ON nodes.id = node_id"
        " ORDER BY name"
    ).fetchall()
    found = []
    for node_body, body in rows:
        node, about = decode_node(node_body), decode_builder(body)
        if not about.online:
            left_out["builders that were offline"] += 1
        elif not 1 <= len(node.name) <= NAME_CHARS_MAX or not node.name.isprintable():
            left_out["builders whose names nobody can say"] += 1
        else:
            found.append(_builder(node, about, last_at))
    return tuple(found)


def _builder(node: Node, about: Builder, last_at: int) -> KnownBuilder:
    until = max(about.grounded_until or 0, about.no_work_until or 0)
    return KnownBuilder(
        node.id.removeprefix(OUTSIDE), node.name, node.kind is NodeKind.MEMBER,
        max(1, int(node.capacity.cpus)), about, max(0.0, (until - last_at) / 1000),
    )  # fmt: skip


def _packages(
    conn: sqlite3.Connection, last_at: int, names: Mapping[NodeId, str], left_out: Counter[str]
) -> tuple[OpenPackage, ...]:
    """In the order in which they came."""
    kind = JobKind.PACKAGE.value
    aside = conn.execute(
        "SELECT count(*) FROM jobs WHERE kind = ? AND waits = ? AND ended_at IS NULL", (kind, ASIDE)
    ).fetchone()[0]
    if aside:
        left_out["packages that are put aside until somebody says otherwise"] += aside
    open_ = "j.kind = ? AND j.ended_at IS NULL AND j.waits IS NOT ?"
    total = conn.execute(f"SELECT count(*) FROM jobs j WHERE {open_}", (kind, ASIDE)).fetchone()[0]
    rows = conn.execute(
        f"SELECT {JOB}{FROM}WHERE {open_} ORDER BY j.status = ?, j.priority DESC, j.seq LIMIT ?",
        (kind, ASIDE, JobStatus.PENDING.value, PACKAGES_MAX),
    ).fetchall()
    if total > len(rows):
        left_out[f"packages beyond the first {PACKAGES_MAX}"] += total - len(rows)
    failed: dict[int, list[str]] = {}
    for seq, node_id in conn.execute(
        "SELECT job_seq, node_id FROM build_failures ORDER BY job_seq, node_id"
    ):
        if node_id in names:
            failed.setdefault(int(seq), []).append(names[node_id])
    kept: dict[JobId, OpenPackage] = {}
    for row in sorted(rows, key=lambda row: int(row[0])):
        job = job_of(row)
        holder, ran_s, blocked_s = None, None, None
        if job.status is not JobStatus.PENDING:
            holder = names.get(NodeId(str(row[12])))
            if holder is not None and job.started_at is not None:
                ran_s = max(0, last_at - job.started_at) / 1000
        elif job.waits == BLOCKED:
            blocked_s = max(0, (job.not_before or 0) - last_at) / 1000
        # What is put aside, or has ended, is waited for by nobody.
        waits = tuple(dep for dep in job.spec.depends_on if dep in kept and job.waits is not None)
        kept[job.id] = OpenPackage(
            job.id, job.spec.type, job.spec.labels.get(NAME, job.spec.type), job.spec.priority,
            job.group_id, waits, job.spec.disconnect_s, holder, ran_s,
            tuple(failed.get(job.seq, ())), blocked_s,
        )  # fmt: skip
    return tuple(kept.values())


def _lengths(
    conn: sqlite3.Connection, packages: tuple[OpenPackage, ...]
) -> dict[str, float]:  # fmt: skip
    """What the swarm itself expects: by the package, else its category, else all."""
    keys = list(dict.fromkeys(each.key for each in packages))
    found: dict[str, int] = {}
    for at in range(0, len(keys), FINDABLE_MAX):
        found |= QUERIES[BuildTimes](conn, BuildTimes(tuple(keys[at : at + FINDABLE_MAX])))
    return {key: max(1, ms) / 1000 for key, ms in found.items()}
