"""Exported: what a copy of a swarm's state says of its nodes and its work, for a swarm like it.

The copy is only read, and nothing secret in it is looked at: no environment, no arguments, no
results, no settings but the version in force, and whether packages are paused.
"""

from __future__ import annotations

import sqlite3
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
from msgspec.structs import replace

from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.snapshots import decode_conf
from swarmd.domain.errors import Invalid, SwarmError
from swarmd.domain.jobs import (
    Constraint,
    Installed,
    Job,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
)
from swarmd.domain.nodes import AdminState, Node, NodeKind, TaintEffect
from swarmd.sim.exported_builds import ExportedBuilds, read_builds
from swarmd.sim.topology import PlannedNode, Topology, check_count, check_names
from swarmd.state.machine import read_meta, read_place
from swarmd.state.rows import EXECUTOR, FROM, JOB, job_of
from swarmd.state.rules.nodes import decode_node
from swarmd.state.schema import MIGRATIONS
from swarmd.state.versions import check_known, in_force_in

JOBS_MAX = 20_000
"""So many open jobs are brought over: those that go first."""
LENGTHS_READ_MAX = 50_000
LENGTHS_A_TYPE_MAX = 50
READ_S_MAX = 60.0
LENGTH_S_MAX = 7 * 86_400.0
OWN = "node."
"""Labels that begin so say what a node is, which is otherwise no label."""
_TABLES = frozenset({"meta", "settings", "nodes", "jobs", "job_specs"})


@dataclass(frozen=True)
class OpenJob:
    """One that had not ended. `length_s` is None where nothing is known of jobs of its type."""

    id: JobId
    spec: JobSpec
    ran_s: float | None
    """For how long, when the copy was taken; None: it waited."""


@dataclass(frozen=True)
class Exported:
    topology: Topology
    voters: tuple[str, ...]
    replicas: tuple[str, ...]
    """With the voters."""
    jobs: tuple[OpenJob, ...]
    lengths_s: dict[str, tuple[float, ...]]
    """Of completed jobs, by type, the latest first."""
    left_out: dict[str, int] = field(default_factory=dict)
    index: int = 0
    builds: ExportedBuilds = field(default_factory=ExportedBuilds)


def read_exported(path: Path) -> Exported:
    """Invalid: it is no copy of a swarm's state, is damaged, or is of a newer version."""
    with _opened(path) as conn:
        check_known(in_force_in(conn))
        _check_tables(conn, path)
        place = read_place(conn)
        if place.index == 0:
            raise Invalid(f"{path} holds no state of a swarm")
        left_out: Counter[str] = Counter()
        nodes = _members(conn, path, left_out)
        voting = () if place.conf is None else decode_conf(place.conf)
        voters, learners = (voting.voters, voting.learners) if voting else ((), ())
        by_raft_id = {raft_id_of(node.id): node.name for node in nodes}
        names = {node.id: node.name for node in nodes}
        last_at = int(read_meta(conn, "last_at", 0))
        jobs = _open_jobs(conn, last_at, names, left_out)
        builds = read_builds(conn, last_at, left_out)
        return Exported(
            Topology(tuple(map(_planned, nodes))),
            tuple(by_raft_id[i] for i in voters if i in by_raft_id),
            tuple(by_raft_id[i] for i in (*voters, *learners) if i in by_raft_id),
            jobs, _lengths(conn), dict(left_out), place.index, builds,
        )  # fmt: skip


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """For reading alone; nothing appears beside it. Whatever is wrong with it comes as Invalid."""
    try:
        with path.open("rb") as file:
            if file.read(16) != b"SQLite format 3\x00":
                raise Invalid(f"{path} is no copy that `swarmd raft snapshot save` made")
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    newest = path.with_name(f"{path.name}-wal")
    if newest.exists() and newest.stat().st_size:
        raise Invalid(
            f"{path} is in use: its newest part is in {newest.name}. Have `swarmd raft snapshot"
            " save` make a copy"
        )
    ends = time.monotonic() + READ_S_MAX
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as conn:
            # Whoever wrote the file may have put any query into it: none runs for ever.
            conn.set_progress_handler(lambda: time.monotonic() > ends, 100_000)
            conn.execute("PRAGMA trusted_schema = OFF")
            conn.execute("PRAGMA query_only = ON")
            found = conn.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise Invalid(f"{path} is damaged: {' '.join(str(found).split())}")
            yield conn
    except sqlite3.OperationalError as error:
        raise Invalid(f"{path} cannot be read as a swarm's state: {error}") from error
    except (sqlite3.DatabaseError, msgspec.MsgspecError, ValueError, TypeError) as error:
        raise Invalid(f"{path} is damaged: {error}") from error
    except Invalid:
        raise
    except SwarmError as refusal:
        raise Invalid(f"{path}: {refusal.message}") from refusal


def _check_tables(conn: sqlite3.Connection, path: Path) -> None:
    rows = conn.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
    if missing := _TABLES - {row[0] for row in rows}:
        raise Invalid(f"{path} is no state of a swarm: it has no table {sorted(missing)[0]}")
    made = conn.execute("SELECT name FROM _sqlite_migrations WHERE migration_set = 'swarmd'")
    if {row[0] for row in made} - {name for name, _, _ in MIGRATIONS}:
        raise Invalid(f"{path} was written by a newer swarmd; simulate it with that one")


def _members(conn: sqlite3.Connection, path: Path, left_out: Counter[str]) -> list[Node]:
    rows = conn.execute("SELECT body, kind FROM nodes ORDER BY name").fetchall()
    nodes = [decode_node(body) for body, kind in rows if kind == NodeKind.MEMBER.value]
    for _, kind in rows:
        if kind not in (NodeKind.MEMBER.value, NodeKind.DRONE.value):
            left_out[f"nodes of kind {kind}"] += 1
    if not nodes:
        raise Invalid(f"{path} knows no member of a swarm: there is nobody to simulate")
    check_count(len(nodes))
    check_names([node.name for node in nodes])
    return nodes


def _planned(node: Node) -> PlannedNode:
    """What it cannot say of itself in the bottle it says by labels; one that takes no work for now
    has no slots."""
    capacity = node.capacity
    barred = any(t.effect is not TaintEffect.PREFER_NO_SCHEDULE for t in node.taints)
    if node.admin is not AdminState.ACTIVE or barred:
        capacity = replace(capacity, slots=0)
    own = {f"{OWN}arch": node.arch, f"{OWN}os": node.os}
    return PlannedNode(node.name, "", capacity, {**node.labels, **own})


def _open_jobs(
    conn: sqlite3.Connection, last_at: int, names: Mapping[NodeId, str], left_out: Counter[str]
) -> tuple[OpenJob, ...]:
    """In the order in which they came, without those that nothing here can run."""
    pending, package = JobStatus.PENDING.value, JobKind.PACKAGE.value
    open_ = "j.ended_at IS NULL AND j.kind IS NOT ?"
    total = conn.execute(f"SELECT count(*) FROM jobs j WHERE {open_}", (package,)).fetchone()[0]
    rows = conn.execute(
        f"SELECT {JOB}{FROM}WHERE {open_} ORDER BY j.status = ?, j.priority DESC, j.seq LIMIT ?",
        (package, pending, JOBS_MAX),
    ).fetchall()
    if total > len(rows):
        left_out[f"jobs beyond the first {JOBS_MAX}"] += total - len(rows)
    kept: dict[JobId, OpenJob] = {}
    for row in sorted(rows, key=lambda row: int(row[0])):
        job = job_of(row)
        if str(row[12] or "").startswith(EXECUTOR) and job.status is not JobStatus.PENDING:
            left_out["jobs that executors hold"] += 1
        elif job.spec.kind is not JobKind.BINARY:
            left_out[f"jobs of kind {job.spec.kind.value}"] += 1
        elif (waits := _open_dependencies(conn, job)) <= kept.keys():
            ran_s = None
            if job.status is JobStatus.RUNNING and job.started_at is not None:
                ran_s = max(0, last_at - job.started_at) / 1000
            elif job.status is not JobStatus.PENDING:
                ran_s = 0.0
            kept[job.id] = OpenJob(job.id, _spec(job.spec, waits, names), ran_s)
        else:
            left_out["jobs that wait for one that was left out"] += 1
    return tuple(kept.values())


def _open_dependencies(conn: sqlite3.Connection, job: Job) -> set[JobId]:
    if job.waits != "dependencies":
        return set()
    found = set()
    for dep in job.spec.depends_on:
        row = conn.execute("SELECT ended_at FROM jobs WHERE id = ?", (dep,)).fetchone()
        if row is not None and row[0] is None:
            found.add(dep)
    return found


def _spec(spec: JobSpec, waits: set[JobId], names: Mapping[NodeId, str]) -> JobSpec:
    """What placement looks at. Nodes have other ids here, so one that is named by its id is named
    by its name."""

    def here(each: Constraint) -> Constraint:
        if each.key == "node.id" and each.value in names:
            return Constraint("node.name", each.op, names[NodeId(each.value)])
        if each.key in ("node.arch", "node.os"):
            return replace(each, key=f"node.labels.{each.key}")
        return each

    return JobSpec(
        spec.type, Installed("sleep"), spec.priority, timeout_s=spec.timeout_s,
        max_retries=spec.max_retries, depends_on=tuple(d for d in spec.depends_on if d in waits),
        resources=spec.resources, constraints=tuple(map(here, spec.constraints)),
        disconnect_s=spec.disconnect_s, kind=spec.kind, namespace=spec.namespace,
    )  # fmt: skip


def _lengths(conn: sqlite3.Connection) -> dict[str, tuple[float, ...]]:
    rows = conn.execute(
        "SELECT type, ended_at - started_at FROM jobs WHERE status = ? AND started_at IS NOT NULL"
        " ORDER BY seq DESC LIMIT ?", (JobStatus.COMPLETED.value, LENGTHS_READ_MAX),
    )  # fmt: skip
    found: dict[str, list[float]] = defaultdict(list)
    for type_, length_ms in rows:
        known = found[str(type_)]
        if len(known) < LENGTHS_A_TYPE_MAX:
            known.append(min(max(0.001, length_ms / 1000), LENGTH_S_MAX))
    return {type_: tuple(known) for type_, known in found.items()}
