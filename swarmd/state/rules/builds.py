"""Rules of builds: which packages a builder is given, what its word on them does, and how a builder
that keeps failing is kept from work."""

from __future__ import annotations

from msgspec.structs import replace

from swarmd.domain.builds import (
    BUILD_S_MAX,
    BUILDERS_MAX,
    ERROR_CHARS_MAX,
    FAILURES_IN_A_ROW_MAX,
    GROUNDED_MS,
    NO_WORK_MS,
    OUTSIDE,
    SWEEPER,
    UPLOADS_FAILED_MAX,
    VIRTUAL,
    Builder,
    Outcome,
    prefetch,
)
from swarmd.domain.errors import Conflict, NotFound
from swarmd.domain.events import BuilderChanged, JobAssigned, NodeChanged, PackageBuilt
from swarmd.domain.jobs import AttemptId, AttemptStatus, Job, JobStatus, NodeId, Result
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.build_commands import (
    BuildEnd,
    FinishBuild,
    ForgetBuilder,
    NoteBuilder,
    NotePresence,
    PutBuilder,
    ReclaimBuilds,
    StartBuild,
    TakeBuilds,
    TakeRevoked,
)
from swarmd.state.payload_commands import ForgetHostKey
from swarmd.state.rows import Execute, decode_spec, encode
from swarmd.state.rules import binhost, blocking
from swarmd.state.rules.blocking import decode_builder
from swarmd.state.rules.jobs import Held, end_job, held_by_seq, stop_attempt
from swarmd.state.rules.moves import (
    credit,
    end_attempt,
    give,
    recover,
    requeue,
    start,
    still_held,
    whole,
)
from swarmd.state.rules.nodes import find_node, save_node
from swarmd.state.rules.payloads import forget_host_key
from swarmd.state.tx import Tx
from swarmd.state.versions import FORGET_SINCE, FORGOTTEN_SINCE, ONCE_SINCE, in_force

PAUSED = "builds.paused"
"""The setting that holds the whole queue of packages; b"1"."""
REVOKED_MAX = 1000
"""A builder that never comes to hear of it is told of the last so many."""
NOTHING_STAGED = "there is no binary package of it in staging"
NAME = "package"
"""The label of a package's job: its name without the version, for what is known of it."""


# Builders


def find_builder(execute: Execute, node_id: str) -> Builder | None:
    row = execute("SELECT body FROM builders WHERE node_id = ?", (node_id,)).fetchone()
    return None if row is None else decode_builder(row[0])


def _builder(tx: Tx, node_id: str) -> Builder:
    found = find_builder(tx.execute, node_id)
    if found is None:
        raise NotFound("no such builder; it has to register first", node_id=node_id[:128])
    return found


def save_builder(tx: Tx, builder: Builder) -> Builder:
    known = find_builder(tx.execute, builder.node_id)
    if known is not None and replace(builder, revision=known.revision) == known:
        return known
    builder = replace(builder, revision=tx.revision)
    tx.execute("INSERT OR REPLACE INTO builders VALUES (?,?)", (builder.node_id, encode(builder)))
    return builder


def put_builder(tx: Tx, command: PutBuilder) -> Builder:
    known = find_builder(tx.execute, command.node_id)
    if known is None:
        count = tx.execute("SELECT count(*) FROM builders").fetchone()[0]
        if count >= BUILDERS_MAX:
            raise Conflict(f"there are {count} builders, and no more than that are taken in")
    before = None
    if command.node is not None:
        before = _make_way(tx, command.node)
        save_node(tx, command.node)
    elif find_node(tx.execute, command.node_id) is None:
        raise NotFound("no such node", node_id=command.node_id[:128])
    if known is None:
        tx.emit(BuilderChanged(command.node_id, "joined"))
    new = Builder(command.node_id)
    if before is not None and in_force(tx.execute) >= ONCE_SINCE:
        new = replace(new, paused=before.paused, sort=before.sort)  # an operator's words on a host
    return save_builder(tx, replace(
        known or new,
        auto_reboot=command.auto_reboot, tree_at=command.tree_at,
    ))  # fmt: skip


def _make_way(tx: Tx, node: Node) -> Builder | None:
    """A host that was set up anew comes with its old name and another id: who had the name and is
    not there any more is forgotten, and answered. What it built stays in the history."""
    row = tx.execute(
        "SELECT id FROM nodes WHERE name = ? AND id != ?", (node.name, node.id)
    ).fetchone()
    if row is None or not row[0].startswith(OUTSIDE):
        return None
    other = find_builder(tx.execute, row[0])
    if other is None or other.online:
        return None
    _forget(tx, other.node_id, "another has its builder's name")
    return other


def forget(tx: Tx, command: ForgetBuilder) -> int:
    builder = _builder(tx, command.node_id)
    if not builder.node_id.startswith(OUTSIDE):
        raise Conflict("it is a node of the swarm, which is removed as one")
    if builder.online:
        raise Conflict(
            "it is there, and would come back with its next request: stop it first; it counts as"
            " gone when nothing was heard of it for a while"
        )
    return _forget(tx, builder.node_id, "its builder was forgotten")


def _forget(tx: Tx, node_id: NodeId, reason: str) -> int:
    held = give_back(tx, node_id, reason)
    forget_builder(tx, node_id)
    tx.execute("DELETE FROM nodes WHERE id = ?", (node_id,))
    tx.emit(NodeChanged(node_id, "removed"))
    return held


def forget_builder(tx: Tx, node_id: str) -> None:
    """What stood here of one that is no more; what it holds is given back by others."""
    tables = ["builders", "revoked"]
    if in_force(tx.execute) >= FORGOTTEN_SINCE:
        tables += ["care", "payload_places"]
    for table in tables:
        tx.execute(f"DELETE FROM {table} WHERE node_id = ?", (node_id,))
    if in_force(tx.execute) >= FORGET_SINCE:
        forget_host_key(tx, ForgetHostKey(NodeId(node_id)))


def note_builder(tx: Tx, command: NoteBuilder) -> Builder:
    builder = _builder(tx, command.node_id)
    if command.paused is not None and command.paused != builder.paused:
        builder = replace(builder, paused=command.paused)
        tx.emit(BuilderChanged(builder.node_id, "paused" if command.paused else "resumed"))
    if command.sort is not None and command.sort is not builder.sort:
        builder = replace(builder, sort=command.sort)
        tx.emit(BuilderChanged(builder.node_id, "typed", command.sort.value))
    return save_builder(tx, builder)


def note_presence(tx: Tx, command: NotePresence) -> int:
    changed = 0
    for online, node_ids in ((True, command.came), (False, command.went)):
        for node_id in node_ids:
            builder = find_builder(tx.execute, node_id)
            if builder is not None and builder.online is not online:
                save_builder(tx, replace(builder, online=online))
                tx.emit(BuilderChanged(node_id, "online" if online else "offline"))
                changed += 1
    if command.went:
        blocking.block_hopeless(tx, blocking.HOPELESS_MAX)
    return changed


# What they are given


def take(tx: Tx, command: TakeBuilds) -> tuple[Job, ...]:
    builder = _builder(tx, command.node_id)
    node = find_node(tx.execute, command.node_id)
    if node is None or not builder.gets_work(tx.at) or is_paused(tx.execute):
        return ()
    if _holds_any(tx, builder.node_id):
        return ()
    sweeps = node.name.startswith(SWEEPER)
    found = next_for(tx.execute, builder.node_id, sweeps, prefetch(command.cores))
    external = node.kind is not NodeKind.MEMBER
    taken = []
    for seq in found:
        job = held_by_seq(tx, seq)
        assert job is not None
        attempt_id = give(
            tx, job, builder.node_id, external, command.address, AttemptStatus.ASSIGNED
        )
        tx.emit(JobAssigned(job.id, attempt_id, builder.node_id, external))
        taken.append(whole(tx, seq))
    return tuple(taken)


def next_for(execute: Execute, node_id: str, sweeps: bool, limit: int) -> list[int]:
    """Packages in the order in which a builder gets them: none that it has failed."""
    by = "waiting" if sweeps else "ready"
    where = "waits = 'blocked'" if sweeps else "ready = 1"
    order = "not_before, seq" if sweeps else "priority DESC, seq"
    rows = execute(
        f"SELECT seq FROM jobs INDEXED BY jobs_packages_{by} WHERE kind = 'package'"
        f" AND {where} AND NOT EXISTS (SELECT 1 FROM build_failures f"
        f" WHERE f.job_seq = jobs.seq AND f.node_id = ?) ORDER BY {order} LIMIT ?",
        (node_id, limit),
    )
    return [row[0] for row in rows]


def is_paused(execute: Execute) -> bool:
    row = execute("SELECT value FROM settings WHERE key = ?", (PAUSED,)).fetchone()
    return row is not None and row[0] == b"1"


def _holds_any(tx: Tx, node_id: str) -> bool:
    sql = (
        "SELECT 1 FROM attempts a JOIN jobs j ON j.seq = a.job_seq"
        " WHERE a.node_id = ? AND a.active = 1 AND j.kind = 'package' LIMIT 1"
    )
    return tx.execute(sql, (node_id,)).fetchone() is not None


def _held(tx: Tx, node_id: str, package: str) -> Held | None:
    """The package as this builder holds it."""
    row = tx.execute(
        "SELECT a.job_seq FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE a.node_id = ?"
        " AND a.active = 1 AND j.kind = 'package' AND j.type = ? ORDER BY a.id LIMIT 1",
        (node_id, package),
    ).fetchone()
    return None if row is None else held_by_seq(tx, row[0])


# What they say of it


def start_build(tx: Tx, command: StartBuild) -> bool:
    job = _held(tx, command.node_id, command.package)
    if job is None or job.status is not JobStatus.ASSIGNED:
        return False
    assert job.attempt_id is not None
    start(tx, job, job.attempt_id, command.node_id, tx.at)
    return True


def finish(tx: Tx, command: FinishBuild) -> BuildEnd:
    job = _held(tx, command.node_id, command.package)
    if job is None:
        return BuildEnd(None)
    assert job.attempt_id is not None
    took_ms = tx.at - job.started_at if job.started_at is not None else 0
    if command.duration_ms is not None:
        took_ms = min(max(0, command.duration_ms), int(BUILD_S_MAX * 1000))
    result = command.result
    if result.error is not None:
        result = replace(result, error=result.error[:ERROR_CHARS_MAX])
    # One that never said that it began has said so by its end.
    began = job.started_at if job.started_at is not None else tx.at - took_ms
    status = _STATUS[command.outcome]
    end_attempt(tx, job.attempt_id, status, began, tx.at, result)
    job.started_at = began
    settle(tx, job, command.outcome, took_ms, result)
    return BuildEnd(whole(tx, job.seq))


_STATUS = {
    Outcome.BUILT: AttemptStatus.COMPLETED,
    Outcome.FAILED: AttemptStatus.FAILED,
    Outcome.MASKED: AttemptStatus.FAILED,
    Outcome.RETURNED: AttemptStatus.REVOKED,
    Outcome.NOT_UPLOADED: AttemptStatus.FAILED,
}


def settle(tx: Tx, job: Held, outcome: Outcome, took_ms: int, result: Result) -> None:
    """What the end of an attempt does to the package that it held, and to its builder."""
    assert job.node_id is not None
    builder = _builder(tx, job.node_id)
    error = result.error or ""
    if outcome is Outcome.BUILT and not _is_there(tx, job):
        outcome, error = Outcome.NOT_UPLOADED, NOTHING_STAGED
    if outcome in (Outcome.BUILT, Outcome.FAILED, Outcome.MASKED):
        _remember(tx, job, outcome is Outcome.BUILT, took_ms, error)
    if outcome is Outcome.BUILT:
        credit(tx, job.node_id)
        binhost.publish(tx, job.node_id, job.type, job.id)
        end_job(tx, job, JobStatus.COMPLETED, result=result)
        tx.execute("DELETE FROM build_failures WHERE job_seq = ?", (job.seq,))
        save_builder(tx, replace(
            builder, completed=builder.completed + 1, failures=0, groundings=0,
            upload_failures=0, grounded_until=None, no_work_until=None,
        ))  # fmt: skip
        return
    binhost.drop_staged_of(tx, job.node_id, job.type)
    if outcome is Outcome.MASKED:
        blocking.put_aside(tx, job, error or "masked")
        save_builder(tx, replace(builder, failed=builder.failed + 1))
    elif outcome is Outcome.FAILED:
        blocking.note_failure(tx, job, result)
        requeue(tx, job, error or "it failed")
        _ground(tx, replace(builder, failed=builder.failed + 1, failures=builder.failures + 1))
    elif outcome is Outcome.NOT_UPLOADED:
        requeue(tx, job, error or "it was not uploaded")
        failed = builder.upload_failures + 1
        until = tx.at + NO_WORK_MS if failed % UPLOADS_FAILED_MAX == 0 else builder.no_work_until
        save_builder(tx, replace(builder, upload_failures=failed, no_work_until=until))
    else:
        requeue(tx, job, error or "returned")


def _is_there(tx: Tx, job: Held) -> bool:
    assert job.node_id is not None
    return job.type.startswith(VIRTUAL) or binhost.is_staged(tx, job.node_id, job.type)


def _remember(tx: Tx, job: Held, ok: bool, took_ms: int, error: str) -> None:
    """In the history, and of what was built for how long it takes."""
    assert job.node_id is not None
    node = find_node(tx.execute, job.node_id)
    group, packed = tx.execute(
        "SELECT j.group_id, s.spec FROM jobs j JOIN job_specs s ON s.seq = j.seq WHERE j.seq = ?",
        (job.seq,),
    ).fetchone()
    tx.execute(
        "INSERT INTO builds(job_id, package, node_id, node_name, ok, duration_ms, error,"
        " session_id, at) VALUES (?,?,?,?,?,?,?,?,?)",
        (job.id, job.type, job.node_id, "" if node is None else node.name, int(ok), took_ms,
         error or None, group, tx.at),
    )  # fmt: skip
    name = decode_spec(packed).labels.get(NAME, job.type)
    if ok and took_ms:
        for key in {name: 0, name.partition("/")[0]: 0, "": 0}:
            tx.execute(
                "INSERT INTO build_times VALUES (?,1,?) ON CONFLICT DO UPDATE SET n = n + 1,"
                " total_ms = total_ms + excluded.total_ms",
                (key, took_ms),
            )
    tx.total(job.kind, "built" if ok else "build_failed")
    tx.total(job.kind, "build_ms", delta=took_ms)
    tx.emit(PackageBuilt(job.id, job.node_id, job.type, ok, took_ms, error))


def _ground(tx: Tx, builder: Builder) -> None:
    """One that fails again and again gets nothing for a while, and what it holds goes back."""
    if builder.failures < FAILURES_IN_A_ROW_MAX:
        save_builder(tx, builder)
        return
    save_builder(tx, replace(
        builder, failures=0, groundings=builder.groundings + 1,
        grounded_until=tx.at + GROUNDED_MS,
    ))  # fmt: skip
    tx.emit(BuilderChanged(builder.node_id, "grounded", f"{builder.failures} failures in a row"))
    give_back(tx, builder.node_id, "its builder is grounded")


# What is taken from them


def give_back(tx: Tx, node_id: str, reason: str) -> int:
    """All that a builder holds; it is told."""
    rows = tx.execute(
        "SELECT a.id FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE a.node_id = ?"
        " AND a.active = 1 AND j.kind = 'package' ORDER BY a.id",
        (node_id,),
    ).fetchall()
    for job in still_held(tx, [AttemptId(row[0]) for row in rows]):
        revoke(tx, job, reason)
    return len(rows)


def revoke(tx: Tx, job: Held, reason: str) -> None:
    """Back to the queue, through no fault of anybody's."""
    _take_back(tx, job)
    stop_attempt(tx, job, AttemptStatus.REVOKED, reason)
    requeue(tx, job, reason)


def _take_back(tx: Tx, job: Held) -> None:
    """Its builder is told, and what it has staged of it already counts no more."""
    assert job.node_id is not None
    if in_force(tx.execute) >= ONCE_SINCE:
        binhost.drop_staged_of(tx, job.node_id, job.type)
    tx.execute("INSERT INTO revoked(node_id, package) VALUES (?,?)", (job.node_id, job.type))
    tx.execute(
        "DELETE FROM revoked WHERE id <= (SELECT id FROM revoked WHERE node_id = ?"
        " ORDER BY id DESC LIMIT 1 OFFSET ?) AND node_id = ?",
        (job.node_id, REVOKED_MAX, job.node_id),
    )


def reclaim(tx: Tx, command: ReclaimBuilds) -> int:
    done = 0
    for job in still_held(tx, command.attempts):
        if command.lost:
            _take_back(tx, job)
            stop_attempt(tx, job, AttemptStatus.TIMEOUT, command.reason)
            recover(tx, job, command.reason)
        else:
            revoke(tx, job, command.reason)
        done += 1
    return done


def take_revoked(tx: Tx, command: TakeRevoked) -> tuple[str, ...]:
    rows = tx.execute(
        "SELECT id, package FROM revoked WHERE node_id = ? ORDER BY id LIMIT ?",
        (command.node_id, command.limit),
    ).fetchall()
    tx.executemany("DELETE FROM revoked WHERE id = ?", [row[:1] for row in rows])
    return tuple(dict.fromkeys(package for _, package in rows))
