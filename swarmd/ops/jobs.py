"""Jobs: submit, look, cancel; and the executor's side: claim, beat, finish."""

from __future__ import annotations

from collections.abc import Sequence

from swarmd.cluster.asks import Beat
from swarmd.cluster.handle import LEADER, Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.errors import BY_CODE, NotFound, SwarmError, TooLarge
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    BULK_JOBS_MAX,
    GroupId,
    Job,
    JobFilter,
    JobId,
    JobSpec,
    Output,
    Result,
)
from swarmd.ops.outputs import to_output
from swarmd.state.commands import (
    CancelJobs,
    ClaimJob,
    CreateGroup,
    FinishClaim,
    NewJob,
    Refusal,
    SubmitJobs,
)
from swarmd.state.queries import AnyReady, FindJob, FindJobs, ListJobs
from swarmd.state.store import encoded_size

BULK_ENTRY_JOBS = 100
BULK_ENTRY_BYTES = 128 * 1024


def _raised(outcome: Job | Refusal) -> Job:
    if isinstance(outcome, Refusal):
        raise _error(outcome)
    return outcome


def _error(refusal: Refusal) -> SwarmError:
    return BY_CODE[refusal.code](refusal.message, **refusal.facts)


async def submit(cluster: Cluster, actor: Actor, spec: JobSpec) -> Job:
    """Queue one job. Refusals: those of SubmitJobs."""
    new = NewJob(JobId(cluster.new_id()), spec)
    (outcome,) = await cluster.propose(SubmitJobs((new,)), actor)
    return _raised(outcome)


async def submit_many(
    cluster: Cluster, actor: Actor, specs: Sequence[JobSpec | SwarmError]
) -> list[Job | SwarmError]:
    """Queue several as one group; of each, its job or its refusal, in its place. They go in as
    entries of up to 100, so that others' requests come between."""
    if len(specs) > BULK_JOBS_MAX:
        raise TooLarge(f"at most {BULK_JOBS_MAX} jobs at once", count_max=BULK_JOBS_MAX)
    outcomes: list[Job | SwarmError | None] = [
        spec if isinstance(spec, SwarmError) else None for spec in specs
    ]
    if all(outcomes):
        return [outcome for outcome in outcomes if outcome is not None]
    group_id = GroupId(cluster.new_id())
    await cluster.propose(CreateGroup(Group(group_id, GroupKind.BULK)), actor)
    batch: list[tuple[int, NewJob]] = []
    size = 0

    async def flush() -> None:
        nonlocal batch, size
        command = SubmitJobs(tuple(new for _, new in batch), group_id)
        answers = await cluster.propose(command, actor)
        for (place, _), got in zip(batch, answers, strict=True):
            outcomes[place] = _error(got) if isinstance(got, Refusal) else got
        batch, size = [], 0

    for place, spec in enumerate(specs):
        if isinstance(spec, SwarmError):
            continue
        new = NewJob(JobId(cluster.new_id()), spec)
        new_size = encoded_size(new)
        if batch and (len(batch) >= BULK_ENTRY_JOBS or size + new_size > BULK_ENTRY_BYTES):
            await flush()
        batch.append((place, new))
        size += new_size
    await flush()
    return [outcome for outcome in outcomes if outcome is not None]


async def find(cluster: Cluster, job_id: str) -> Job:
    job = await cluster.read(FindJob(job_id))
    if job is None:
        raise NotFound("no such job", job_id=job_id[:128])
    return job


async def list_jobs(cluster: Cluster, wanted: JobFilter) -> list[Job]:
    """Newest first, without attempts, results, arguments and environment."""
    return await cluster.read(ListJobs(wanted))


async def cancel(cluster: Cluster, actor: Actor, job_id: str, *, only_pending: bool = False) -> Job:
    """Conflict once it has ended or, with `only_pending`, once it runs."""
    command = CancelJobs((JobId(job_id),), only_pending)
    (outcome,) = await cluster.propose(command, actor)
    return _raised(outcome)


async def cancel_many(
    cluster: Cluster, actor: Actor, job_ids: Sequence[str], *, only_pending: bool = False
) -> list[Job | SwarmError]:
    if len(job_ids) > BULK_JOBS_MAX:
        raise TooLarge(f"at most {BULK_JOBS_MAX} jobs at once", count_max=BULK_JOBS_MAX)
    outcomes: list[Job | SwarmError] = []
    for start in range(0, len(job_ids), BULK_ENTRY_JOBS):
        ids = tuple(JobId(i) for i in job_ids[start : start + BULK_ENTRY_JOBS])
        got = await cluster.propose(CancelJobs(ids, only_pending), actor)
        outcomes += [_error(one) if isinstance(one, Refusal) else one for one in got]
    return outcomes


async def claim(
    cluster: Cluster, actor: Actor, executor: str, address: str,
    labels: dict[str, str] | None = None,
) -> Job | None:  # fmt: skip
    """The best job that is ready for this executor. An empty queue proposes nothing."""
    if not await cluster.read(AnyReady()):
        return None
    return await cluster.propose(ClaimJob(executor, address, labels or {}), actor)


async def beat(cluster: Cluster, executor: str, job_id: str) -> None:
    """NotFound when the job is unknown, not running, or not this executor's."""
    await cluster.ask(LEADER, Beat(executor, JobId(job_id)))


async def finish(
    cluster: Cluster, actor: Actor, job_id: str, executor: str, *, ok: bool,
    stdout: Sequence[str], stderr: Sequence[str], exit_code: int | None, error: str | None,
) -> Job:  # fmt: skip
    """End a claimed job with what it said, in pieces of text. NotFound; Conflict when it is not
    running there."""
    job = (await cluster.read(FindJobs((job_id,))))[0]
    if job is None:
        raise NotFound("no such job", job_id=job_id[:128])
    outputs = [Output(), Output()]
    if job.node_id == executor and not job.status.ended:
        outputs = [await to_output(cluster, actor, text) for text in (stdout, stderr)]
    result = Result(exit_code=exit_code, error=error, stdout=outputs[0], stderr=outputs[1])
    return await cluster.propose(FinishClaim(JobId(job_id), executor, ok, result), actor)
