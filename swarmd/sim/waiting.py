"""Why jobs and packages of an estate wait at the end: in the words of `swarmd explain`, with what
only somebody knows who sees which machines are there.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import trio

from swarmd.cluster.handle import Hosted, local_reads
from swarmd.domain.builds import ASIDE, BLOCKED
from swarmd.domain.errors import SwarmError
from swarmd.domain.jobs import Job, JobKind, JobStatus, NodeId
from swarmd.domain.nodes import Node, obstacles
from swarmd.ops.explain import Explanation, explain
from swarmd.ops.explain_packages import bars
from swarmd.sim.bottle import Gone
from swarmd.sim.estate import Estate
from swarmd.sim.exported import OWN
from swarmd.sim.story import Story
from swarmd.sim.topology import counted
from swarmd.state.build_queries import BuilderView, FailedBy, ListBuilders
from swarmd.state.queries import FindJobs, ListNodes

LOOKED_AT_MAX = 2000
SORTS_MAX = 20
AT_ONCE = 100
REASONS_MAX = 8
ASK_S_MAX = 30.0


@dataclass(frozen=True)
class Waiting:
    """Jobs that wait, all alike; or packages."""

    kind: str
    """As their spec has it."""
    type: str
    """Of packages: package."""
    count: int
    example: str
    placeable: bool
    """Some node or builder that is there could take them, now or when others end."""
    summary: str
    reasons: tuple[str, ...]
    gone: tuple[str, ...]
    """Nodes or builders that could, and are not there."""


async def look(
    estate: Estate, story: Story, builders: Sequence[str] = ()
) -> tuple[list[Waiting] | None, int]:
    """With these builders there. By sort, those with most jobs first; None: no node is left that
    knows. And how many jobs were not looked at."""
    ids = [i for i, job in story.tally.jobs.items() if job.status is JobStatus.PENDING]
    looked_at = ids[:LOOKED_AT_MAX]
    replicas = sorted(estate.up(), key=lambda n: -estate.replica(n).applied)
    found: list[Waiting] = []

    async def ask(cluster: Hosted) -> None:
        with local_reads():
            found.extend(await _look(cluster, looked_at, {*estate.there()}, {*builders}))

    for name in replicas:
        try:
            with trio.move_on_after(ASK_S_MAX):
                await estate.request(name, ask)
                return found, len(ids) - len(looked_at)
        except (SwarmError, Gone):
            found.clear()
    return None, len(ids)


async def _look(
    cluster: Hosted, ids: list[str], there: set[str], builders: set[str]
) -> list[Waiting]:
    sorts: dict[bytes, list[Job]] = {}
    nodes, views = await cluster.read(ListNodes()), await cluster.read(ListBuilders())
    for at in range(0, len(ids), AT_ONCE):
        for job in await cluster.read(FindJobs(tuple(ids[at : at + AT_ONCE]))):
            if job is None or job.status is not JobStatus.PENDING:
                continue
            if job.spec.kind is JobKind.PACKAGE:
                able = _able(job, views, await cluster.read(FailedBy(job.id)))
                sort = _sort_of_package(job, not builders.isdisjoint(able))
            else:
                sort = _sort(job)
            sorts.setdefault(sort, []).append(job)
    most = sorted(sorts.values(), key=lambda jobs: (-len(jobs), jobs[0].seq))
    found = []
    for jobs in most[:SORTS_MAX]:
        explanation = await explain(cluster, jobs[0].id)
        if jobs[0].spec.kind is JobKind.PACKAGE:
            able = _able(jobs[0], views, await cluster.read(FailedBy(jobs[0].id)))
            found.append(_told_packages(jobs, explanation, able, builders))
        else:
            found.append(_told(jobs, explanation, nodes, there))
    return found


def _sort(job: Job) -> bytes:
    spec = job.spec
    what = (spec.kind.value, spec.type, spec.resources, spec.constraints, job.waits)
    return msgspec.msgpack.encode(what)


def _sort_of_package(job: Job, placeable: bool) -> bytes:
    return msgspec.msgpack.encode((job.spec.kind.value, job.waits, placeable))


def _able(job: Job, views: list[BuilderView], failed_by: tuple[NodeId, ...]) -> list[str]:
    """Builders that may get a package some time, were they there. A block is over some time, and
    then whoever failed it may try again."""
    return [
        view.node.name for view in views
        if not bars(job, view, failed_by) or (job.waits == BLOCKED and not view.sweeps)
    ]  # fmt: skip


def _told_packages(
    jobs: list[Job], explanation: Explanation, able: list[str], there: set[str]
) -> Waiting:
    job = jobs[0]
    why: Counter[str] = Counter()
    for verdict in explanation.nodes:
        if verdict.node in there:
            why.update(map(_plain_of_builder, verdict.reasons))
    here = [name for name in able if name in there]
    summary = explanation.summary
    if not here and job.waits != ASIDE:
        summary = "no builder that is there ever gets it"
    return Waiting(
        JobKind.PACKAGE.value, JobKind.PACKAGE.value, len(jobs), job.spec.type, bool(here),
        summary, _counted(why, "builder"), tuple(name for name in able if name not in there),
    )  # fmt: skip


def _plain_of_builder(reason: str) -> str:
    reason = re.sub(r"^it holds .*, and gets", "it holds others, and gets", reason)
    reason = re.sub(r" for another [0-9hmins ]+:", ":", reason)
    return re.sub(r"^it failed it: .*", "it failed it", reason)


def _counted(why: Counter[str], of: str) -> tuple[str, ...]:
    return tuple(
        f"{reason} ({counted(count, of)})"
        for reason, count in sorted(why.items(), key=lambda item: (-item[1], item[0]))
    )[:REASONS_MAX]


def _told(jobs: list[Job], explanation: Explanation, nodes: list[Node], there: set[str]) -> Waiting:
    job = jobs[0]
    able = [n.name for n in nodes if not obstacles(n, job.spec.resources, job.spec.constraints)]
    why: Counter[str] = Counter()
    for verdict in explanation.nodes:
        if verdict.node in there:
            why.update(map(_plain, verdict.reasons))
    here = [name for name in able if name in there]
    gone = tuple(name for name in able if name not in there)
    at_once = any(verdict.can_run and verdict.node in there for verdict in explanation.nodes)
    summary = explanation.summary
    if not explanation.waits_for and not at_once:
        can = "can take it at present" if here else "can ever take it"
        summary = f"no node that is there {can}"
    return Waiting(
        job.spec.kind.value, job.spec.type, len(jobs), job.id, bool(here), summary,
        _counted(why, "node"), gone,
    )  # fmt: skip


def _plain(reason: str) -> str:
    """Without what differs from node to node, so that they can be counted."""
    return re.sub(r" \(here: .*\)$", "", reason).replace(f"node.labels.{OWN}", OWN)
