"""Why a job waits, or how it stands: in words, node by node."""

from __future__ import annotations

from swarmd.cluster.handle import Cluster
from swarmd.domain.jobs import Job, JobFilter, JobKind, JobStatus
from swarmd.domain.nodes import Node, Usage, obstacles, shortages
from swarmd.ops import jobs
from swarmd.ops.explain_packages import explain_package
from swarmd.ops.explained import Explanation as Explanation
from swarmd.ops.explained import NodeVerdict as NodeVerdict
from swarmd.state.queries import AheadOf, FindJobs, ListJobs, ListNodes, UsageOf


async def explain(cluster: Cluster, job_id: str) -> Explanation:
    """Of a package its name will do: the newest that is called so. NotFound: no such job."""
    job = await _find(cluster, job_id)
    if job.spec.kind is JobKind.PACKAGE:
        return await explain_package(cluster, job)
    if job.status is not JobStatus.PENDING:
        names = {node.id: node.name for node in await cluster.read(ListNodes())}
        where = names.get(job.node_id, job.node_id) if job.node_id else None
        return Explanation(job.id, job.status, _standing(job, where), (), ())
    waits_for = await _waits_for(cluster, job)
    verdicts = []
    for node in await cluster.read(ListNodes()):
        verdicts.append(_verdict(job, node, await cluster.read(UsageOf(node.id))))
    ahead = await cluster.read(AheadOf(job.id))
    return Explanation(
        job.id, job.status, _summary(job, waits_for, verdicts, ahead), waits_for, tuple(verdicts)
    )


async def _find(cluster: Cluster, job_id: str) -> Job:
    if "/" in job_id:
        wanted = JobFilter(JobKind.PACKAGE, type=job_id, limit=1)
        if found := await cluster.read(ListJobs(wanted)):
            return await jobs.find(cluster, found[0].id)
    return await jobs.find(cluster, job_id)


def _standing(job: Job, node: str | None) -> str:
    where = f" on {node}" if node else ""
    match job.status:
        case JobStatus.ASSIGNED:
            return f"given to a node{where}, about to start"
        case JobStatus.RUNNING:
            return f"running{where}"
        case JobStatus.COMPLETED:
            return f"completed{where}"
        case JobStatus.FAILED:
            return f"failed{where}: {job.error}"
        case _:
            return job.status.value


async def _waits_for(cluster: Cluster, job: Job) -> tuple[str, ...]:
    if job.waits == "backoff":
        assert job.not_before is not None
        seconds = max(0, job.not_before - cluster.now_ms()) / 1000
        return (f"its next try in {seconds:.0f} s, after {job.failures} of"
                f" {job.spec.max_retries} retries; last error: {job.error}",)  # fmt: skip
    if job.waits != "dependencies":
        return ()
    deps = await cluster.read(FindJobs(tuple(job.spec.depends_on)))
    open_deps = [dep for dep in deps if dep is not None and dep.status is not JobStatus.COMPLETED]
    return tuple(f"job {dep.id}, which is {dep.status.value}" for dep in open_deps)


def _verdict(job: Job, node: Node, used: Usage) -> NodeVerdict:
    need, constraints = job.spec.resources, job.spec.constraints
    reasons = obstacles(node, need, constraints)
    if not reasons:
        reasons = shortages(node, used, need)
        if used.slots >= node.capacity.slots:
            reasons.append(f"all {node.capacity.slots} slots are taken")
    return NodeVerdict(node.name, not reasons, tuple(reasons))


def _summary(job: Job, waits_for: tuple[str, ...], verdicts: list[NodeVerdict], ahead: int) -> str:
    if waits_for:
        return "waits for " + "; ".join(waits_for)
    if any(verdict.can_run for verdict in verdicts):
        return "can run now and will be placed at once"
    queue = f"{ahead} jobs of its kind go before it" if ahead else "it is next of its kind"
    if not verdicts or all(v.reasons == ("the node runs no jobs",) for v in verdicts):
        return f"no node runs jobs: an executor has to claim it; {queue}"
    return f"no node can take it at present; {queue}"
