"""The verdict over a state that went through kills: read from its file, against what clients know.

Nothing here asks a daemon: the file and the jobs' own traces are the witnesses.
"""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from swarmd.domain.jobs import RECOVERIES_MAX
from swarmd.runner import trees
from swarmd.state.rows import decode_spec
from swarmd.state.tx import GENESIS_HASH, chained
from tests.load import Load

ACTIVE = ("assigned", "running")


@dataclass
class Run:
    """What one attempt wrote of itself."""

    tag: str
    lines: list[str] = field(default_factory=list)

    @property
    def attempt_id(self) -> int:
        return int(self.tag.rpartition("-")[2])


@dataclass
class JobSeen:
    id: str
    type: str
    status: str
    token: str
    ticks: int
    attempts: list[tuple[int, str, int, int]]
    """Id, status, assigned and ended at."""
    runs: list[Run] = field(default_factory=list)


def check_state(path: Path) -> None:
    """The file is whole, its counts are those of its rows, and the chain of its events unbroken."""
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        check_counts(conn)
        check_chain(conn)
    finally:
        conn.close()


def check_counts(conn: sqlite3.Connection) -> None:
    pairs = (
        ("SELECT kind, status, priority, type, count(*) FROM jobs GROUP BY 1, 2, 3, 4",
         "SELECT kind, status, priority, type, n FROM counts"),
        ("SELECT shape, count(*) FROM jobs WHERE ready = 1 GROUP BY 1",
         "SELECT id, ready FROM shapes WHERE ready != 0"),
        ("SELECT shape, count(*) FROM jobs GROUP BY 1", "SELECT id, jobs FROM shapes"),
        ("SELECT node_id, count(*) FROM attempts WHERE status = 'completed' GROUP BY 1",
         "SELECT id, completed FROM nodes WHERE completed != 0"),
        ("SELECT sha256, count(*) FROM blob_refs WHERE sha256 IN (SELECT sha256 FROM blobs)"
         " GROUP BY 1", "SELECT sha256, refs FROM blobs WHERE refs != 0"),
    )  # fmt: skip
    for counted, kept in pairs:
        assert sorted(conn.execute(counted)) == sorted(conn.execute(kept)), kept


def check_chain(conn: sqlite3.Connection) -> None:
    """Each event's hash is over the one before; of pruned ones the first left is taken on trust."""
    before: tuple[int, bytes] | None = None
    rows = conn.execute("SELECT seq, at, entry, actor, body, hash FROM events ORDER BY seq")
    for seq, at, entry, actor, body, digest in rows:
        if before is not None or seq == 1:
            known_seq, known = before or (0, GENESIS_HASH)
            assert seq == known_seq + 1, f"event {known_seq + 1} is missing"
            assert digest == chained(known, seq, at, entry, actor, body), f"event {seq} is changed"
        before = (seq, digest)
    assert before is not None, "there are no events"


def check_jobs(path: Path, trace: Path, load: Load, *, recoveries: bool) -> list[JobSeen]:
    """What the issue promises of each job. With `recoveries`, runners were killed too, or nodes
    were away for long, so that an attempt may have been lost; without, each was tried once."""
    jobs = read_jobs(path)
    by_id = {job.id: job for job in jobs}
    assert not load.problems, load.problems
    missing = load.acknowledged.keys() - by_id.keys()
    assert not missing, f"{len(missing)} acknowledged jobs are lost: {sorted(missing)[:5]}"
    for job_id, token in load.acknowledged.items():
        assert by_id[job_id].token == token, f"job {job_id} is not the one that was asked for"
    tokens = [job.token for job in jobs]
    assert len(tokens) == len(set(tokens)), "a wish under one key became two jobs"
    _attach(jobs, read_runs(trace))
    for job in jobs:
        _check_job(job, recoveries=recoveries)
    unfinished = [i for i in load.completed if by_id[i].status != "completed"]
    assert not unfinished, f"acknowledged completions are undone: {unfinished[:5]}"
    check_no_remnants(run.tag for job in jobs for run in job.runs)
    return jobs


def _check_job(job: JobSeen, *, recoveries: bool) -> None:
    said = f"{job}"
    statuses = [status for _, status, _, _ in job.attempts]
    if recoveries and statuses == ["lost"] * RECOVERIES_MAX:
        assert job.status == "failed", said  # given up: the node kept dying of it
        return
    assert job.status == "completed", said
    assert statuses[-1:] == ["completed"], f"run again after its end, or never run: {said}"
    if recoveries and job.type != "outside":
        assert set(statuses[:-1]) <= {"lost"}, said
    else:
        assert len(statuses) == 1, f"restarted although it had been taken back: {said}"
    for (_, _, _, ended), (_, _, assigned, _) in zip(job.attempts, job.attempts[1:], strict=False):
        assert ended <= assigned, f"held twice at once: {said}"
    if job.type == "trace":
        _check_runs(job, said)


def _check_runs(job: JobSeen, said: str) -> None:
    """Runs are in the order in which their lines reached the file."""
    ids = [run.attempt_id for run in job.runs]
    assert ids == sorted(set(ids)), f"ran twice at once, or an attempt was started twice: {said}"
    assert set(ids) <= {attempt_id for attempt_id, _, _, _ in job.attempts}, said
    whole = ["start", *["tick"] * job.ticks, "end"]
    for run in job.runs:
        assert run.lines == whole[: len(run.lines)], f"attempt {run.attempt_id} wrote that: {said}"
    finished = [run.attempt_id for run in job.runs if run.lines == whole]
    assert job.runs and job.runs[-1].lines == whole, f"completed, but did not reach its end: {said}"
    # A runner that is killed may have been about to tell of an end: that one is told as lost.
    statuses = {attempt_id: status for attempt_id, status, _, _ in job.attempts}
    for attempt_id in finished[:-1]:
        assert statuses[attempt_id] == "lost", said


def check_no_remnants(tags: Iterable[str]) -> None:
    """No process of any attempt is left, daemonized or not."""
    ours = set(tags)
    left = {pid: tag for pid in trees.scan() if (tag := trees.tag_of(pid)) in ours}
    assert not left, f"processes are left of {left}"


def read_jobs(path: Path) -> list[JobSeen]:
    conn = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        attempts: dict[int, list[tuple[int, str, int, int]]] = defaultdict(list)
        for seq, *attempt in conn.execute(
            "SELECT job_seq, id, status, assigned_at, ended_at FROM attempts ORDER BY id"
        ):
            attempts[seq].append(tuple(attempt))  # type: ignore[arg-type]
        jobs = []
        for seq, job_id, kind, status, packed in conn.execute(
            "SELECT j.seq, j.id, j.type, j.status, s.spec FROM jobs j JOIN job_specs s"
            " ON s.seq = j.seq ORDER BY j.seq"
        ):
            spec = decode_spec(packed)
            ticks = int(spec.arguments[-1]) if kind == "trace" else 0
            jobs.append(JobSeen(job_id, kind, status, spec.labels["token"], ticks, attempts[seq]))
        return jobs
    finally:
        conn.close()


def read_runs(trace: Path) -> dict[str, list[Run]]:
    """By token, in the order of the file: a new run begins where the attempt changes, or starts."""
    runs: dict[str, list[Run]] = defaultdict(list)
    for line in trace.read_text().splitlines():
        token, tag, said = line.split(" ")
        mine = runs[token]
        if not mine or mine[-1].tag != tag or said == "start":
            mine.append(Run(tag))
        mine[-1].lines.append(said)
    return runs


def _attach(jobs: list[JobSeen], runs: dict[str, list[Run]]) -> None:
    for job in jobs:
        job.runs = runs.pop(job.token, [])
    assert not runs, f"jobs ran that the state does not know: {sorted(runs)[:5]}"
