"""Why a package waits, or how it stands: the queue, what it waits for, and builder by builder.

The rules by which builders get packages are told here in words; they are made in
`swarmd.state.rules.builds` and `blocking`.
"""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.cluster.handle import Cluster
from swarmd.domain.builds import ASIDE, BLOCKED
from swarmd.domain.jobs import AttemptStatus, Job, JobStatus, NodeId
from swarmd.domain.trees import TREE, is_older
from swarmd.ops.explained import Explanation, NodeVerdict
from swarmd.state.build_queries import BuilderView, BuildTimes, FailedBy, HeldBuild, ListBuilders
from swarmd.state.queries import AheadOf, FindJobs
from swarmd.state.rules.builds import NAME

ERROR_CHARS = 200
"""So much of what a builder said of its failure is repeated."""
NAMES_SHOWN = 5


async def explain_package(cluster: Cluster, job: Job) -> Explanation:
    views = await cluster.read(ListBuilders())
    if job.status is not JobStatus.PENDING:
        return Explanation(job.id, job.status, await _standing(cluster, job, views), (), ())
    failed_by = await cluster.read(FailedBy(job.id))
    now = cluster.now_ms()
    waits_for = await _waits_for(cluster, job, views, failed_by)
    verdicts = []
    for view in views:
        reasons = (*bars(job, view, failed_by), *hindrances(view, now), *_tree(job, view))
        verdicts.append(NodeVerdict(view.node.name, not reasons, reasons))
    ahead = 0 if job.waits else await cluster.read(AheadOf(job.id))
    summary = _summary(job, waits_for, verdicts, ahead)
    return Explanation(job.id, job.status, summary, waits_for, tuple(verdicts))


# Builder by builder


def bars(job: Job, view: BuilderView, failed_by: Sequence[NodeId]) -> tuple[str, ...]:
    """Why a builder does not get a package as it stands, however long it waits for it."""
    found = []
    if job.waits == ASIDE:
        found.append("nobody gets what is put aside")
    elif job.waits == BLOCKED and not view.sweeps:
        found.append("only sweepers get what is blocked")
    elif job.waits != BLOCKED and view.sweeps:
        found.append("it is a sweeper, and gets only what is blocked")
    if view.node.id in failed_by:
        found.append(_failure(job, view.node.id))
    return tuple(found)


def hindrances(view: BuilderView, now: int) -> tuple[str, ...]:
    """Why a builder gets nothing just now."""
    builder, found = view.builder, []
    if not builder.online:
        found.append("it is offline")
    if builder.paused:
        found.append("it is paused")
    if builder.grounded_until is not None and now < builder.grounded_until:
        left = span(builder.grounded_until - now)
        found.append(f"it is grounded for another {left}: builds failed there one after the other")
    if builder.no_work_until is not None and now < builder.no_work_until:
        left = span(builder.no_work_until - now)
        found.append(f"it gets no work for another {left}: its uploads failed")
    if view.held:
        names = ", ".join(held.package for held in view.held[:NAMES_SHOWN])
        found.append(f"it holds {names}, and gets more when that is done")
    return tuple(found)


def _tree(job: Job, view: BuilderView) -> tuple[str, ...]:
    wanted = job.spec.labels.get(TREE, "")
    if not is_older(view.builder.tree_at, wanted):
        return ()
    return (f"its Portage tree is older than the package's, of {_cut(wanted)}: it is to bring that"
            " up to date first, and then gets it all the same",)  # fmt: skip


def _failure(job: Job, node_id: NodeId) -> str:
    """With what it said, where that is still known."""
    for attempt in reversed(job.attempts):
        if attempt.node_id == node_id and attempt.status is AttemptStatus.FAILED and attempt.error:
            return f"it failed it: {_cut(attempt.error)}"
    return "it failed it"


# What it waits for


async def _waits_for(
    cluster: Cluster, job: Job, views: Sequence[BuilderView], failed_by: Sequence[NodeId]
) -> tuple[str, ...]:
    found = []
    if any(view.queue_paused for view in views):
        found.append("the queue of packages to be resumed: it is paused")
    if job.waits == "dependencies":
        found += await _dependencies(cluster, job)
    elif job.waits == BLOCKED:
        found.append(_block(cluster, job, views, failed_by))
    elif job.waits == ASIDE:
        why = f": {_cut(job.error)}" if job.error else ""
        found.append(f"somebody to say that it is to be tried again (retry_failures){why}")
    elif job.waits is not None:
        found.append(job.waits)
    return tuple(found)


async def _dependencies(cluster: Cluster, job: Job) -> list[str]:
    """Those that are still to be built: what was blocked or has ended is waited for by nobody."""
    deps = await cluster.read(FindJobs(tuple(job.spec.depends_on)))
    found = [
        f"{dep.spec.type} (job {dep.id}), which is {_word(dep)}"
        for dep in deps
        if dep is not None and not dep.status.ended and dep.waits not in (BLOCKED, ASIDE)
    ]
    return found or ["the moment in which it is seen that nothing has to be built before it"]


def _word(dep: Job) -> str:
    if dep.status is not JobStatus.PENDING:
        return "with a builder"
    return "waiting for others" if dep.waits == "dependencies" else "needed"


def _block(
    cluster: Cluster, job: Job, views: Sequence[BuilderView], failed_by: Sequence[NodeId]
) -> str:
    assert job.not_before is not None
    words = f"the end of its block in {span(max(0, job.not_before - cluster.now_ms()))}"
    names = {view.node.id: view.node.name for view in views}
    if failed_by:
        words += f", after {_listed([names.get(each, each) for each in failed_by])} failed it"
        if job.error:
            words += f" (the last error: {_cut(job.error)})"
    sweepers = [view.node.name for view in views if view.sweeps and view.builder.online]
    if sweepers:
        return f"{words}, or for a sweeper's turn: {_listed(sweepers)}"
    return f"{words}; no sweeper is there to try it before"


def _summary(
    job: Job, waits_for: tuple[str, ...], verdicts: Sequence[NodeVerdict], ahead: int
) -> str:
    if not verdicts:
        words = (
            "no builder is registered: `swarmd drone` on a host with Portage makes one, and so does"
            " builder.command on a node"
        )
        return f"{words}; waits for {'; '.join(waits_for)}" if waits_for else words
    if waits_for:
        return "waits for " + "; ".join(waits_for)
    queue = f"{ahead} packages go before it" if ahead else "it is next"
    queue = "1 package goes before it" if ahead == 1 else queue
    able = [verdict.node for verdict in verdicts if verdict.can_run]
    if able:
        return f"goes to whoever comes for work first: {_listed(able)}; {queue}"
    return f"no builder can take it at present; {queue}"


# Where it is


async def _standing(cluster: Cluster, job: Job, views: Sequence[BuilderView]) -> str:
    view, held = _held(job, views)
    if held is None or view is None:
        return _ended(job, views)
    now, gone = cluster.now_ms(), ""
    if not view.builder.online:
        gone = "; that builder is offline: it goes back to the queue"
    if held.started_at is None:
        first = next((h.package for h in view.held if h.started_at is not None), None)
        at = f": it is at {first}" if first else ""
        since = span(now - held.assigned_at)
        return f"held by {view.node.name} for {since}, not begun{at}{gone}"
    name = job.spec.labels.get(NAME, job.spec.type)
    times = await cluster.read(BuildTimes((name,)))
    about = f"; such builds take about {span(times[name])}" if name in times else ""
    return f"built by {view.node.name} for {span(now - held.started_at)}{about}{gone}"


def _held(
    job: Job, views: Sequence[BuilderView]
) -> tuple[BuilderView | None, HeldBuild | None]:  # fmt: skip
    for view in views:
        for held in view.held:
            if held.job_id == job.id:
                return view, held
    return None, None


def _ended(job: Job, views: Sequence[BuilderView]) -> str:
    if job.status is not JobStatus.COMPLETED:
        word = job.status.value
        return f"{word}: {_cut(job.error)}" if job.error and job.error != word else word
    name = next((view.node.name for view in views if view.node.id == job.node_id), job.node_id)
    return f"built by {name}" if name else "built"


def span(milliseconds: int) -> str:
    """`40 s`, `12 min`, `3 h 5 min`"""
    minutes, seconds = divmod(max(0, milliseconds) // 1000, 60)
    if minutes < 2:
        return f"{60 * minutes + seconds} s"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if hours else f"{minutes} min"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= ERROR_CHARS else f"{line[:ERROR_CHARS]}…"
