"""The console's routes: each calls one operation and answers its shape."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from api.common.streams import shielded, stream_answer
from api.common.surface import HotRoute, Request, Response, json_answer
from api.common.texts import answer_with_texts
from api.console import binhost, members, raft, terminals, trust
from api.console.shapes import JobIn, JobOut, Json, StopIn, read_body
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import Job, JobFilter, JobId, JobKind, JobStatus
from swarmd.ops import blobs, explain, jobs, logs, outputs, swarm, waiting
from swarmd.ops.raft import Copies

API = "/api/v1"
SPEC_BODY_BYTES_MAX = 512 * 1024
WAIT_S_MAX = 50.0
LIMIT_MAX = 1000


@dataclass(frozen=True, slots=True)
class Console:
    """What the routes stand on. `stop` has the daemon end; `settings` is what is in force."""

    cluster: Cluster
    settings: Callable[[], list[Json]]
    stop: Callable[[bool], None]
    admin_key: Callable[[], str | None]
    blob_bytes_max: int
    copies: Copies
    data_dir: Path
    leave: Callable[[], None]
    """Have the daemon end as one that is no member any more."""
    removed: trio.Event
    """The swarm knows this node no more."""
    builds_not: Callable[[], str | None] = lambda: None
    """Why this node, which is to build packages, does not."""
    signing: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(1))
    """Packages are signed anew one after the other."""


async def health(console: Console, request: Request) -> Response:
    found = await swarm.health(console.cluster)
    return json_answer(found, 200 if found.healthy else 503)


async def status(console: Console, request: Request) -> Response:
    return json_answer(await swarm.status(console.cluster))


async def nodes(console: Console, request: Request) -> Response:
    return json_answer({"nodes": (await swarm.status(console.cluster)).nodes})


async def submit(console: Console, request: Request) -> Response:
    asked = await read_body(JobIn, await request.body())
    job = await shielded(jobs.submit, console.cluster, request.actor, asked.spec())
    return json_answer(JobOut.of(job, await _names(console, job)), 201)


async def list_jobs(console: Console, request: Request) -> Response:
    found = await jobs.list_jobs(console.cluster, _filter(request))
    names = await _names(console, *found)
    rows = []
    for number, job in enumerate(found):
        if number % 50 == 49:
            await trio.lowlevel.checkpoint()
        rows.append(JobOut.of(job, names, brief=True))
    return json_answer({"jobs": rows})


def _filter(request: Request) -> JobFilter:
    return JobFilter(
        kind=_one_of(JobKind, "kind", request.arg("kind")),
        statuses=tuple(
            found
            for text in request.query.get("status", [])
            if (found := _one_of(JobStatus, "status", text)) is not None
        ),
        type=request.arg("type"),
        limit=min(LIMIT_MAX, _number(request, "limit", 100, 1)),
        offset=_number(request, "offset", 0, 0),
    )


def _one_of(words: Any, name: str, text: str | None) -> Any:
    if text is None:
        return None
    try:
        return words(text)
    except ValueError:
        known = ", ".join(word.value for word in words)
        raise Invalid(f"{name} must be one of {known}", field=name) from None


def _number(request: Request, name: str, default: int, low: int) -> int:
    text = request.arg(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= low):
        raise Invalid(f"{name} must be a whole number from {low} on", field=name)
    return int(text)


async def find(console: Console, request: Request) -> Response:
    return await _whole(console, await jobs.find(console.cluster, _id(request)))


async def wait(console: Console, request: Request) -> Response:
    timeout_s = min(WAIT_S_MAX, float(_number(request, "timeout_s", 30, 0)))
    job = await waiting.ended(console.cluster, _id(request), timeout_s)
    return await _whole(console, job)


async def cancel(console: Console, request: Request) -> Response:
    job = await shielded(jobs.cancel, console.cluster, request.actor, _id(request))
    return json_answer(JobOut.of(job, await _names(console, job)))


async def explain_job(console: Console, request: Request) -> Response:
    return json_answer(await explain.explain(console.cluster, _id(request)))


async def read_logs(console: Console, request: Request) -> Response:
    stream = request.arg("stream") or "both"
    if stream not in ("stdout", "stderr", "both"):
        raise Invalid("stream must be stdout, stderr or both", field="stream")
    follow = (request.arg("follow") or "0").lower() in ("1", "true", "yes")
    found = await logs.find(console.cluster, _id(request))
    return stream_answer(
        logs.stream_bytes(console.cluster, found, stream, follow=follow),  # type: ignore[arg-type]
        headers=(("X-Content-Type-Options", "nosniff"),),
    )


async def put_blob(console: Console, request: Request) -> Response:
    info = await blobs.put(
        console.cluster, request.actor, request.chunks(),
        expected_sha256=request.header(b"x-sha256"),
    )  # fmt: skip
    return json_answer(info, 201)


async def get_blob(console: Console, request: Request) -> Response:
    chunks = blobs.read(console.cluster, request.params["sha256"])
    return stream_answer(chunks, content_type="application/octet-stream")


async def show_config(console: Console, request: Request) -> Response:
    return json_answer({"settings": console.settings()})


async def admin_key(console: Console, request: Request) -> Response:
    raft.local_only(request)
    return json_answer({"admin_key": console.admin_key()})


async def stop(console: Console, request: Request) -> Response:
    raft.local_only(request)
    asked = await read_body(StopIn, await request.body())
    console.stop(asked.jobs)
    return json_answer({"stopping": True, "jobs": asked.jobs}, 202)


def _id(request: Request) -> JobId:
    return JobId(request.params["id"][:256])


async def _whole(console: Console, job: Job) -> Response:
    names = await _names(console, job)
    if job.result is None:
        return json_answer(JobOut.of(job, names))
    return await answer_with_texts(
        lambda stdout, stderr: JobOut.of(job, names, (stdout, stderr)),
        await outputs.output_pieces(console.cluster, job.result.stdout),
        await outputs.output_pieces(console.cluster, job.result.stderr),
    )


async def _names(console: Console, *found: Job) -> dict[str, str]:
    """Of the nodes that these jobs are at; drones hold packages alone."""
    packages = any(job.spec.kind is JobKind.PACKAGE for job in found)
    return await swarm.node_names(console.cluster, drones=packages)


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    template: str
    answer: Callable[[Console, Request], Awaitable[Response]]
    body_bytes_max: int | None = None
    timeout_s: float | None = -1.0


ROUTES = (
    Route("GET", f"{API}/health", health),
    Route("GET", f"{API}/status", status),
    Route("GET", f"{API}/nodes", nodes),
    Route("GET", f"{API}/jobs", list_jobs),
    Route("POST", f"{API}/jobs", submit, SPEC_BODY_BYTES_MAX),
    Route("GET", f"{API}/jobs/{{id}}", find),
    Route("GET", f"{API}/jobs/{{id}}/logs", read_logs),
    Route("GET", f"{API}/jobs/{{id}}/wait", wait),
    Route("GET", f"{API}/jobs/{{id}}/explain", explain_job),
    Route("POST", f"{API}/jobs/{{id}}/cancel", cancel),
    Route("GET", f"{API}/blobs/{{sha256}}", get_blob),
    Route("GET", f"{API}/config", show_config),
    Route("GET", f"{API}/admin-key", admin_key),
    Route("POST", f"{API}/stop", stop),
    Route("POST", f"{API}/tokens", trust.make_token),
    Route("POST", f"{API}/tokens/revoke", trust.drop_tokens),
    Route("GET", f"{API}/drone-tokens", trust.list_drone_tokens),
    Route("POST", f"{API}/drone-tokens", trust.put_drone_token),
    Route("POST", f"{API}/drone-tokens/revoke", trust.revoke_drone_token),
    Route("POST", f"{API}/members/remove", members.remove),
    Route("POST", f"{API}/members/leave", members.leave, timeout_s=None),
    Route("POST", f"{API}/members/promote", members.promote),
    Route("GET", f"{API}/binhost", binhost.list_pkgs),
    Route("GET", f"{API}/binhost/explain", binhost.explain),
    Route("GET", f"{API}/binhost/key", binhost.key),
    Route("POST", f"{API}/binhost/key/rotate", binhost.rotate),
    Route("POST", f"{API}/binhost/remove", binhost.remove),
    # To copy and sign a large package takes what it takes.
    Route("POST", f"{API}/binhost/resign", binhost.resign, timeout_s=None),
    Route("GET", f"{API}/terminals", terminals.list_terminals),
    Route("GET", f"{API}/terminals/{{id}}", terminals.find),
    Route("GET", f"{API}/terminals/{{id}}/recording", terminals.recording),
    Route("GET", f"{API}/keyring", members.keyring),
    Route("POST", f"{API}/keyring/rotate", members.rotate),
    Route("POST", f"{API}/ping", members.measure),
    Route("GET", f"{API}/doctor", members.examine),
    Route("GET", f"{API}/raft", raft.status),
    Route("POST", f"{API}/raft/transfer", raft.transfer),
    # To copy and check a large state takes what it takes; one at a time is let in.
    Route("GET", f"{API}/raft/snapshot", raft.snapshot, timeout_s=None),
)


def hot_routes(console: Console) -> tuple[HotRoute, ...]:
    def bound(route: Route) -> Callable[[Request], Awaitable[Response]]:
        return lambda request: route.answer(console, request)

    upload = HotRoute(
        "PUT", f"{API}/blobs", lambda request: put_blob(console, request),
        console.blob_bytes_max, timeout_s=None,
    )  # fmt: skip
    return (
        upload,
        *(HotRoute(r.method, r.template, bound(r), r.body_bytes_max, r.timeout_s) for r in ROUTES),
    )
