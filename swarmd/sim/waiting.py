"""Why jobs of an estate wait at the end: in the words of `swarmd explain`, with what only somebody
knows who sees which nodes are there.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

import msgspec
import trio

from swarmd.cluster.handle import Hosted, local_reads
from swarmd.domain.errors import SwarmError
from swarmd.domain.jobs import Job, JobStatus
from swarmd.domain.nodes import Node, obstacles
from swarmd.ops.explain import Explanation, explain
from swarmd.sim.bottle import Gone
from swarmd.sim.estate import Estate
from swarmd.sim.exported import OWN
from swarmd.sim.story import Story
from swarmd.state.queries import FindJobs, ListNodes

LOOKED_AT_MAX = 2000
SORTS_MAX = 20
AT_ONCE = 100
REASONS_MAX = 8
ASK_S_MAX = 30.0


@dataclass(frozen=True)
class Waiting:
    """Jobs that wait, all alike."""

    type: str
    count: int
    example: str
    placeable: bool
    """Some node that is there could take them, now or when others end."""
    summary: str
    reasons: tuple[str, ...]
    gone: tuple[str, ...]
    """Nodes that could, and are not there."""


async def look(estate: Estate, story: Story) -> tuple[list[Waiting] | None, int]:
    """By sort, those with most jobs first; None: no node is left that knows. And how many jobs
    were not looked at."""
    ids = [i for i, job in story.tally.jobs.items() if job.status is JobStatus.PENDING]
    looked_at = ids[:LOOKED_AT_MAX]
    replicas = sorted(estate.up(), key=lambda n: -estate.replica(n).applied)
    found: list[Waiting] = []

    async def ask(cluster: Hosted) -> None:
        with local_reads():
            found.extend(await _look(cluster, looked_at, {*estate.there()}))

    for name in replicas:
        try:
            with trio.move_on_after(ASK_S_MAX):
                await estate.request(name, ask)
                return found, len(ids) - len(looked_at)
        except (SwarmError, Gone):
            found.clear()
    return None, len(ids)


async def _look(cluster: Hosted, ids: list[str], there: set[str]) -> list[Waiting]:
    sorts: dict[bytes, list[Job]] = {}
    for at in range(0, len(ids), AT_ONCE):
        for job in await cluster.read(FindJobs(tuple(ids[at : at + AT_ONCE]))):
            if job is not None and job.status is JobStatus.PENDING:
                sorts.setdefault(_sort(job), []).append(job)
    nodes = await cluster.read(ListNodes())
    most = sorted(sorts.values(), key=lambda jobs: (-len(jobs), jobs[0].seq))
    return [
        _told(jobs, await explain(cluster, jobs[0].id), nodes, there) for jobs in most[:SORTS_MAX]
    ]


def _sort(job: Job) -> bytes:
    spec = job.spec
    return msgspec.msgpack.encode((spec.type, spec.resources, spec.constraints, job.waits))


def _told(jobs: list[Job], explanation: Explanation, nodes: list[Node], there: set[str]) -> Waiting:
    job = jobs[0]
    able = [n.name for n in nodes if not obstacles(n, job.spec.resources, job.spec.constraints)]
    why: Counter[str] = Counter()
    for verdict in explanation.nodes:
        if verdict.node in there:
            why.update(map(_plain, verdict.reasons))
    said = [
        f"{reason} ({count} node{'s' * (count != 1)})"
        for reason, count in sorted(why.items(), key=lambda item: (-item[1], item[0]))
    ]
    here = [name for name in able if name in there]
    gone = tuple(name for name in able if name not in there)
    at_once = any(verdict.can_run and verdict.node in there for verdict in explanation.nodes)
    summary = explanation.summary
    if not explanation.waits_for and not at_once:
        can = "can take it at present" if here else "can ever take it"
        summary = f"no node that is there {can}"
    return Waiting(
        job.spec.type, len(jobs), job.id, bool(here), summary, tuple(said[:REASONS_MAX]), gone
    )


def _plain(reason: str) -> str:
    """Without what differs from node to node, so that they can be counted."""
    return re.sub(r" \(here: .*\)$", "", reason).replace(f"node.labels.{OWN}", OWN)
