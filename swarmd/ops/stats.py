"""Numbers over the queue and those who work it off."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import trio

from swarmd.cluster.asks import LastBeat, ListBeats
from swarmd.cluster.handle import LEADER, Cluster, reads_are_local
from swarmd.domain.durations import BOUNDS_S
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import JobKind, JobStatus
from swarmd.state.queries import (
    CompletedBy,
    CountJobs,
    ListClaims,
    ListDuties,
    ListNodes,
    ListTotals,
)

BEATS_S_MAX = 1.0


class Stats(msgspec.Struct, frozen=True):
    by_status: dict[JobStatus, int]
    pending_by_priority: dict[int, int]
    active_executors: int


class ExecutorView(msgspec.Struct, frozen=True):
    executor_id: str
    current_job_id: str | None
    job_type: str | None
    last_heartbeat: int
    jobs_completed: int


class Histogram(msgspec.Struct, frozen=True):
    """counts[i] fell at or under bounds_s[i] and over the one before; the last, over them all."""

    bounds_s: tuple[float, ...]
    counts: tuple[int, ...]
    sum_s: float


class Totals(msgspec.Struct, frozen=True):
    submitted: dict[tuple[str, int], int]
    """(type, priority) → number."""
    completed: int
    failed: int
    cancelled: int
    in_queue: dict[tuple[JobStatus, int], int]
    """(status, priority) → number."""
    wait: Histogram
    run: Histogram


async def stats(cluster: Cluster, kind: JobKind = JobKind.BINARY) -> Stats:
    by_status = dict.fromkeys(JobStatus, 0)
    pending: dict[int, int] = {}
    for (status, priority), n in (await cluster.read(CountJobs(kind))).items():
        by_status[JobStatus(status)] += n
        if status in (JobStatus.PENDING, JobStatus.ASSIGNED):
            pending[priority] = pending.get(priority, 0) + n
    return Stats(by_status, pending, len(await executors(cluster)))


async def executors(cluster: Cluster) -> list[ExecutorView]:
    """Who works the queue off: executors heard of in the last 30 s, and nodes that run jobs."""
    beats = await _beats(cluster)
    completed = await cluster.read(CompletedBy())
    held = await cluster.read(ListClaims())
    claims = {claim.executor: claim for claim in reversed(held)}
    views = []
    for beat in beats:
        claim = claims.get(beat.executor)
        views.append(
            ExecutorView(
                beat.executor,
                claim.job_id if claim else None,
                claim.job_type if claim else None,
                beat.at,
                completed.get(beat.executor, 0),
            )
        )
    for node in await cluster.read(ListNodes()):
        if not node.capacity.slots:
            continue
        duties = await cluster.read(ListDuties(node.id))
        duty = duties[0] if duties else None
        views.append(
            ExecutorView(
                node.name,
                duty.attempt.job_id if duty else None,
                duty.spec.type if duty else None,
                cluster.now_ms(),
                completed.get(node.id, 0),
            )
        )
    return views


async def _beats(cluster: Cluster) -> list[LastBeat]:
    """They are in the leader's memory alone. Who is content with what this node knows gets none
    where the leader does not tell at once."""
    if not reads_are_local():
        return await cluster.ask(LEADER, ListBeats())
    with trio.move_on_after(BEATS_S_MAX), suppress(Unavailable):
        return await cluster.ask(LEADER, ListBeats())
    return []


async def totals(cluster: Cluster, kind: JobKind = JobKind.BINARY) -> Totals:
    grown = await cluster.read(ListTotals(kind))
    counts = await cluster.read(CountJobs(kind))
    submitted = {
        (label, int(name.partition(":")[2])): n
        for (name, label), n in grown.items()
        if name.startswith("submitted:")
    }
    return Totals(
        submitted=submitted,
        completed=grown.get(("completed", ""), 0),
        failed=grown.get(("failed", ""), 0),
        cancelled=grown.get(("cancelled", ""), 0),
        in_queue={(JobStatus(s), p): n for (s, p), n in counts.items()},
        wait=_histogram(grown, "wait"),
        run=_histogram(grown, "run"),
    )


def _histogram(grown: dict[tuple[str, str], int], what: str) -> Histogram:
    labels = [*(str(i) for i in range(len(BOUNDS_S))), "inf"]
    counts = tuple(grown.get((f"{what}_bucket", label), 0) for label in labels)
    return Histogram(BOUNDS_S, counts, grown.get((f"{what}_sum_ms", ""), 0) / 1000)
