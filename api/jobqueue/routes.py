"""The job queue's routes: each reads what was asked, calls one operation, and answers its shape.

All of them are hot routes, answered without Quart; only the WebSocket of logs is not (app.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from api.common.bodies import read_json, read_json_array
from api.common.metrics import RequestMetrics
from api.common.slices import in_slices, let_go
from api.common.streams import shielded, stream_answer
from api.common.surface import (
    RETRY_AFTER_S,
    Handler,
    HotRoute,
    Request,
    Response,
    json_answer,
)
from api.common.texts import answer_with_texts
from api.jobqueue.envelope import ENVELOPE
from api.jobqueue.following import tail
from api.jobqueue.metrics import exposition
from api.jobqueue.requests import (
    BeatIn,
    CancelManyIn,
    ClaimIn,
    CompleteIn,
    FailIn,
    JobIn,
    LogsWanted,
    executor_name,
    known_form,
    list_filter,
)
from api.jobqueue.shapes import (
    CancelledMany,
    Created,
    Details,
    ExecutorOut,
    ExplanationOut,
    Failure,
    HealthOut,
    Rejected,
    Row,
    Standing,
    StatsOut,
)
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import Invalid, SwarmError
from swarmd.domain.jobs import BULK_JOBS_MAX, Job, JobSpec
from swarmd.ops import explain, jobs, logs, outputs, stats, swarm

API = "/api/v1"
SUBMIT_BYTES_MAX = 1024 * 1024
BULK_BYTES_MAX = 4 * 1024 * 1024
REPORT_BYTES_MAX = 8 * 1024 * 1024
"""Two streams of 1 MiB, escaped, and then some: what is over is cut, not refused."""

OUTPUTS = frozenset({"stdout", "stderr", "error_message"})
"""Members that nobody executes: they may hold any character, NUL too."""


@dataclass(frozen=True, slots=True)
class Queue:
    """What the routes stand on."""

    cluster: Cluster
    metrics: RequestMetrics


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    template: str
    answer: Callable[[Queue, Request], Awaitable[Response]]
    body_bytes_max: int | None = None


def hot_routes(queue: Queue) -> tuple[HotRoute, ...]:
    return tuple(
        HotRoute(route.method, route.template, _bound(route.answer, queue), route.body_bytes_max)
        for route in ROUTES
    )


def _bound(answer: Callable[[Queue, Request], Awaitable[Response]], queue: Queue) -> Handler:
    return lambda request: answer(queue, request)


async def health(queue: Queue, request: Request) -> Response:
    found = await swarm.health(queue.cluster)
    return json_answer(HealthOut.of(found), 200 if found.healthy else 503)


async def metrics(queue: Queue, request: Request) -> Response:
    totals = await stats.totals(queue.cluster)
    active = len(await stats.executors(queue.cluster))
    # Hundreds of types make thousands of lines, in a library that knows no pause.
    text = await trio.to_thread.run_sync(exposition, totals, active, queue.metrics.registry)
    return Response(200, text, "text/plain; version=0.0.4; charset=utf-8")


async def submit(queue: Queue, request: Request) -> Response:
    asked = await read_json(request, JobIn)
    job = await shielded(jobs.submit, queue.cluster, request.actor, asked.spec())
    return json_answer(Created.of(job), 201)


async def submit_many(queue: Queue, request: Request) -> Response:
    asked = await read_json_array(request, JobIn, count_max=BULK_JOBS_MAX)
    if not asked:
        raise Invalid(f"send an array of 1 to {BULK_JOBS_MAX} jobs")
    specs = [spec async for spec in in_slices(asked, _spec_or_refusal)]
    await let_go(asked)
    outcomes = await shielded(jobs.submit_many, queue.cluster, request.actor, specs)
    answers = [answer async for answer in in_slices(enumerate(outcomes), _accepted_or_rejected)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, SwarmError)]
    await let_go(specs, outcomes)
    if len(refusals) < len(answers):
        return json_answer(answers, 201)
    # Nothing came of it: the client's fault, unless the node could take none of them just now.
    said = f"all {len(refusals)} jobs were refused; the first: {refusals[0].message}"
    failure = Failure(said, {"rejected": answers})
    if all(ENVELOPE.status_of(refusal) == 503 for refusal in refusals):
        return json_answer(failure, 503, (("Retry-After", str(RETRY_AFTER_S)),))
    return json_answer(failure, 400)


def _spec_or_refusal(asked: JobIn | SwarmError) -> JobSpec | SwarmError:
    if isinstance(asked, SwarmError):
        return asked
    try:
        return asked.spec()
    except SwarmError as refusal:
        return refusal


def _accepted_or_rejected(outcome: tuple[int, Job | SwarmError]) -> Standing | Rejected:
    index, found = outcome
    return Rejected.of(found, index) if isinstance(found, SwarmError) else Standing.of(found)


async def list_jobs(queue: Queue, request: Request) -> Response:
    found = await jobs.list_jobs(queue.cluster, list_filter(request.args))
    names = await swarm.node_names(queue.cluster)
    return json_answer([row async for row in in_slices(found, lambda job: Row.of(job, names))])


async def find(queue: Queue, request: Request) -> Response:
    job = await jobs.find(queue.cluster, known_form(request.params["id"]))
    return await _details(queue, job)


async def cancel_pending(queue: Queue, request: Request) -> Response:
    job_id = known_form(request.params["id"])
    job = await shielded(
        partial(jobs.cancel, only_pending=True), queue.cluster, request.actor, job_id
    )
    return json_answer(Standing.of(job))


async def cancel(queue: Queue, request: Request) -> Response:
    job_id = known_form(request.params["id"])
    job = await shielded(jobs.cancel, queue.cluster, request.actor, job_id)
    return json_answer(Standing.of(job))


async def cancel_many(queue: Queue, request: Request) -> Response:
    asked = (await read_json(request, CancelManyIn)).checked_ids()
    outcomes = await shielded(
        partial(jobs.cancel_many, only_pending=True), queue.cluster, request.actor, asked
    )
    cancelled = CancelledMany.of(asked, outcomes)
    await let_go(outcomes)
    return json_answer(cancelled)


async def claim(queue: Queue, request: Request) -> Response:
    asked = await read_json(request, ClaimIn)
    job = await jobs.claim(
        queue.cluster,
        request.actor,
        executor_name(asked.executor_id),
        asked.address(request.actor.address),
        asked.checked_labels(),
    )
    return Response(204) if job is None else await _details(queue, job)


async def heartbeat(queue: Queue, request: Request) -> Response:
    job_id = known_form(request.params["id"])
    asked = await read_json(request, BeatIn)
    await jobs.beat(queue.cluster, executor_name(asked.executor_id), job_id)
    return json_answer({"id": job_id, "status": "running"})


async def complete(queue: Queue, request: Request) -> Response:
    asked = await read_json(request, CompleteIn, texts=OUTPUTS)
    exit_code = asked.exit_code or 0
    return await _finish(
        queue,
        request,
        asked,
        ok=exit_code == 0,
        exit_code=exit_code,
        error=f"exit code {exit_code}" if exit_code else None,
    )


async def fail(queue: Queue, request: Request) -> Response:
    asked = await read_json(request, FailIn, texts=OUTPUTS)
    return await _finish(
        queue, request, asked, ok=False, exit_code=asked.exit_code, error=asked.reason()
    )


async def _finish(
    queue: Queue, request: Request, asked: CompleteIn | FailIn, *, ok: bool,
    exit_code: int | None, error: str | None,
) -> Response:  # fmt: skip
    finish = partial(
        jobs.finish,
        ok=ok,
        stdout=asked.stdout.pieces if asked.stdout else (),
        stderr=asked.stderr.pieces if asked.stderr else (),
        exit_code=exit_code,
        error=error,
    )
    job = await shielded(
        finish,
        queue.cluster,
        request.actor,
        known_form(request.params["id"]),
        executor_name(asked.executor_id),
    )
    return json_answer(Standing.of(job))


async def read_logs(queue: Queue, request: Request) -> Response:
    job_id = known_form(request.params["id"])
    wanted = LogsWanted.of(request.args)
    # Found first, so that an unknown job is 404, not a broken stream.
    found = await logs.find(queue.cluster, job_id)
    return stream_answer(tail(queue.cluster, found, wanted))


async def explain_job(queue: Queue, request: Request) -> Response:
    job_id = known_form(request.params["id"])
    return json_answer(ExplanationOut.of(await explain.explain(queue.cluster, job_id)))


async def show_stats(queue: Queue, request: Request) -> Response:
    return json_answer(StatsOut.of(await stats.stats(queue.cluster)))


async def show_executors(queue: Queue, request: Request) -> Response:
    found = await stats.executors(queue.cluster)
    return json_answer([view async for view in in_slices(found, ExecutorOut.of)])


async def _details(queue: Queue, job: Job) -> Response:
    """What a job wrote is known once it has ended; a part of a try that failed before is not it."""
    ours = any(not attempt.external for attempt in job.attempts)
    names = await swarm.node_names(queue.cluster) if ours else {}
    if job.result is None or not job.status.ended:
        return json_answer(Details.of(job, names, None, None))
    return await answer_with_texts(
        lambda stdout, stderr: Details.of(job, names, stdout, stderr),
        await outputs.output_pieces(queue.cluster, job.result.stdout),
        await outputs.output_pieces(queue.cluster, job.result.stderr),
    )


ROUTES: tuple[Route, ...] = (
    Route("GET", f"{API}/health", health),
    Route("GET", f"{API}/metrics", metrics),
    Route("POST", f"{API}/jobs", submit, SUBMIT_BYTES_MAX),
    Route("GET", f"{API}/jobs", list_jobs),
    Route("POST", f"{API}/jobs/bulk", submit_many, BULK_BYTES_MAX),
    Route("POST", f"{API}/jobs/bulk/cancel", cancel_many),
    Route("POST", f"{API}/jobs/claim", claim),
    Route("GET", f"{API}/jobs/{{id}}", find),
    Route("DELETE", f"{API}/jobs/{{id}}", cancel_pending),
    Route("POST", f"{API}/jobs/{{id}}/cancel", cancel),
    Route("PUT", f"{API}/jobs/{{id}}/heartbeat", heartbeat),
    Route("PUT", f"{API}/jobs/{{id}}/complete", complete, REPORT_BYTES_MAX),
    Route("PUT", f"{API}/jobs/{{id}}/fail", fail, REPORT_BYTES_MAX),
    Route("GET", f"{API}/jobs/{{id}}/logs", read_logs),
    Route("GET", f"{API}/jobs/{{id}}/explain", explain_job),
    Route("GET", f"{API}/admin/stats", show_stats),
    Route("GET", f"{API}/admin/executors", show_executors),
)
