"""Queueing: what a request for packages stands for becomes jobs, each behind what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec.structs import replace

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import GroupId, Installed, JobId, JobKind, JobSpec
from swarmd.domain.packages import parse_all
from swarmd.domain.trees import TREE, in_order
from swarmd.ops.builds import key_of, require_builds
from swarmd.ops.trees import Meant, Trees, literal
from swarmd.state.build_queries import FINDABLE_MAX, FindQueued
from swarmd.state.commands import QUEUED_AS, CreateGroup, NewJob, Refusal, SubmitJobs
from swarmd.state.versions import ORDER_SINCE

DISCONNECT_S = 60.0
"""A build goes on for so long where its node is cut off, as one of a drone's does: it is dear."""
JOBS_AT_ONCE = 100
IDS_AT_ONCE = 1000
"""Of jobs, and of those that they wait for, in one entry of the log."""


class Queued(msgspec.Struct, frozen=True):
    session: Group
    packages: tuple[str, ...]
    known: tuple[str, ...]
    """They were in the queue already, and are not in it twice."""
    notes: tuple[str, ...] = ()
    """What is to be known of them, and kept none from the queue."""


async def look_up(cluster: Cluster, wanted: Sequence[object], trees: Trees | None = None) -> Meant:
    """What a request for packages stands for. Refusals as of `Trees.meant`."""
    require_builds(cluster)
    return literal(parse_all(wanted)) if trees is None else await trees.meant(wanted)


async def enqueue(
    cluster: Cluster, actor: Actor, meant: Meant, session_name: str, session_id: str
) -> Queued:
    """A new session of these packages, in the order in which they need each other and what is in
    the queue. Those that are there already stay as they are; of two requests for the same at once
    the second finds what the first has queued. Conflict: all of them are there."""
    require_builds(cluster)
    packages = meant.packages
    queued = await cluster.read(FindQueued(packages))
    new = in_order([package for package in packages if package not in queued], meant.needs)
    group = Group(GroupId(session_id), GroupKind.SESSION, labels={"name": session_name})
    meanwhile = set[str]()
    if new:
        session = await _new_session(cluster, actor, group)
        meanwhile = await _submit(cluster, actor, session, await _jobs(cluster, meant, new))
        new = tuple(package for package in new if package not in meanwhile)
    if not new:
        raise Conflict("all of these packages are in the queue already", packages=len(packages))
    known = tuple(package for package in packages if package in queued or package in meanwhile)
    return Queued(session, new, known, meant.notes)


async def _submit(
    cluster: Cluster, actor: Actor, session: Group, jobs: Sequence[NewJob]
) -> set[str]:
    """Which of them somebody else has queued meanwhile; what waits for one waits for that job."""
    known, ids = set[str](), dict[JobId, JobId]()
    for batch in _batches(jobs):
        if ids:
            batch = tuple(_renamed(job, ids) for job in batch)
        outcomes = await cluster.propose(SubmitJobs(batch, session.id), actor)
        for job, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Refusal):
                if QUEUED_AS not in outcome.facts:
                    raise Conflict(outcome.message)
                ids[job.id] = JobId(outcome.facts[QUEUED_AS])
                known.add(job.spec.type)
    return known


def _renamed(job: NewJob, ids: Mapping[JobId, JobId]) -> NewJob:
    waits_for = tuple(ids.get(before, before) for before in job.spec.depends_on)
    return replace(job, spec=replace(job.spec, depends_on=waits_for))


async def _new_session(cluster: Cluster, actor: Actor, group: Group) -> Group:
    """Two of one second are told apart by a number."""
    for number in range(2, 1000):
        try:
            return await cluster.propose(CreateGroup(group), actor)
        except Conflict:
            base = group.id.partition("+")[0]
            group = replace(group, id=GroupId(f"{base}+{number}"))
    raise Busy("too many sessions began in this second; try again in the next")


async def _jobs(cluster: Cluster, meant: Meant, new: tuple[str, ...]) -> list[NewJob]:
    """Each waits for what it needs and was queued before it."""
    ids = {package: JobId(cluster.new_id()) for package in new}
    needs: Mapping[str, Sequence[str]] = {}
    if cluster.cluster_version() >= ORDER_SINCE:
        needs = meant.needs
    named = {before for package in new for before in needs.get(package, ())}
    others = sorted(named.difference(ids))
    for start in range(0, len(others), FINDABLE_MAX):
        queued = await cluster.read(FindQueued(tuple(others[start : start + FINDABLE_MAX])))
        ids.update(queued)
    found = []
    for package in new:
        waits_for = tuple(ids[before] for before in needs.get(package, ()) if before in ids)
        tree_at = meant.tree_at if package in meant.known else ""
        found.append(NewJob(ids[package], _spec(package, waits_for, tree_at)))
    return found


def _batches(jobs: Sequence[NewJob]) -> Iterator[tuple[NewJob, ...]]:
    """For the log, of which no entry is long."""
    batch, ids = list[NewJob](), 0
    for job in jobs:
        more = 1 + len(job.spec.depends_on)
        if batch and (len(batch) == JOBS_AT_ONCE or ids + more > IDS_AT_ONCE):
            yield tuple(batch)
            batch, ids = [], 0
        batch.append(job)
        ids += more
    yield tuple(batch)


def _spec(package: str, waits_for: tuple[JobId, ...], tree_at: str) -> JobSpec:
    labels = {"package": key_of(package)} | ({TREE: tree_at} if tree_at else {})
    return JobSpec(
        package, Installed("emerge"), arguments=(package,), kind=JobKind.PACKAGE, labels=labels,
        disconnect_s=DISCONNECT_S, depends_on=waits_for,
    )  # fmt: skip
