"""Jobs: work that some node runs to its end. A move that is not in JOB_MOVES is refused."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import NewType

import msgspec

from swarmd.domain.errors import Conflict, Invalid

JobId = NewType("JobId", str)
GroupId = NewType("GroupId", str)
AttemptId = NewType("AttemptId", int)
NodeId = NewType("NodeId", str)

INLINE_BYTES_MAX = 16 * 1024
ENTRY_BYTES_MAX = 256 * 1024
OUTPUT_BYTES_MAX = 1024 * 1024
BULK_JOBS_MAX = 1000
RECOVERIES_MAX = 10
RETRIES_MAX = 100
DEPENDENCIES_MAX = 100
DISCONNECT_S_MAX = 7 * 86400
HOLD_MS_MAX = 600_000


class JobKind(StrEnum):
    BINARY = "binary"
    PACKAGE = "package"
    IMAGE = "image"
    TRANSFER = "transfer"
    STEP = "step"
    INSTALL = "install"


class JobStatus(StrEnum):
    PENDING = "pending"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in ENDED


ENDED = frozenset({JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED})

JOB_MOVES: dict[JobStatus, frozenset[JobStatus]] = {
    JobStatus.PENDING: frozenset(
        {JobStatus.ASSIGNED, JobStatus.RUNNING, JobStatus.CANCELLED, JobStatus.FAILED}
    ),
    JobStatus.ASSIGNED: frozenset(
        {JobStatus.PENDING, JobStatus.RUNNING, JobStatus.COMPLETED, JobStatus.FAILED,
         JobStatus.CANCELLED}
    ),
    JobStatus.RUNNING: frozenset(
        {JobStatus.PENDING, JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED}
    ),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}  # fmt: skip


def check_move(job_id: str, status: JobStatus, to: JobStatus) -> None:
    """Refuse with Conflict a move that the table does not have."""
    if to not in JOB_MOVES[status]:
        raise Conflict(f"job is {status.value}", job_id=job_id, status=status.value, to=to.value)


class AttemptStatus(StrEnum):
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    TIMEOUT = "timeout"
    """The executor fell silent; the job went back to the queue."""
    CANCELLED = "cancelled"
    REVOKED = "revoked"
    """Taken back by the swarm or its node; the job went back to the queue."""
    LOST = "lost"
    """The node, or the runner on it, went away with it."""


ATTEMPT_ACTIVE = frozenset({AttemptStatus.ASSIGNED, AttemptStatus.RUNNING})


class Priority:
    """One integer, higher first; dialects map their own words onto it."""

    FOREGROUND = 100
    BACKGROUND = 50
    BEST_EFFORT = 10


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """An executable from http(s) or `blob:sha256:…`, verified by its hash at every run."""

    url: str
    sha256: str


class Installed(msgspec.Struct, frozen=True, tag="installed"):
    """A program that the node has: an absolute path, or a name looked up on the job's PATH."""

    program: str


Source = Fetch | Installed


class Resources(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a job needs; what it names is also its limit. None means: a slot, and no limit."""

    cpus: float | None = None
    memory_bytes: int | None = None
    gpus: int = 0
    pids: int | None = None


_CONSTRAINT = re.compile(
    r"(node\.(?:id|name|kind|arch|os|labels\.[A-Za-z0-9_.\-/]{1,64}))\s*(==|!=)\s*(\S{1,128})"
)


class Constraint(msgspec.Struct, frozen=True, array_like=True):
    key: str
    op: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Constraint:
        match = _CONSTRAINT.fullmatch(text.strip())
        if match is None:
            raise Invalid(
                f"constraint {text[:200]!r} is not understood; write for example"
                " node.labels.disk==ssd or node.name!=a"
                " (keys: node.id, node.name, node.kind, node.arch, node.os, node.labels.NAME)",
                field="constraints",
            )
        return cls(match[1], match[2], match[3])

    def __str__(self) -> str:
        return f"{self.key}{self.op}{self.value}"


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the user asked for. The system never changes it."""

    type: str
    source: Source
    priority: int = Priority.BACKGROUND
    arguments: tuple[str, ...] = ()
    env: dict[str, str] = {}
    labels: dict[str, str] = {}
    timeout_s: float | None = None
    max_retries: int = 0
    depends_on: tuple[JobId, ...] = ()
    idempotency_key: str | None = None
    resources: Resources = Resources()
    constraints: tuple[Constraint, ...] = ()
    disconnect_s: float | None = None
    """How much longer than others it runs on, and is waited for, when its node is cut off."""
    kind: JobKind = JobKind.BINARY
    namespace: str = "default"


class Output(msgspec.Struct, frozen=True, omit_defaults=True):
    """One stream of a result: inline when small, else a blob; already cut to OUTPUT_BYTES_MAX."""

    inline: bytes = b""
    blob: str | None = None
    size: int = 0


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    exit_code: int | None = None
    error: str | None = None
    stdout: Output = Output()
    stderr: Output = Output()
    notes: tuple[str, ...] = ()
    """What of the request could not be enforced on that node, in words for the user."""


class Attempt(msgspec.Struct, frozen=True):
    id: AttemptId
    job_id: JobId
    node_id: NodeId
    """The node's id, or for an external executor the name it gave itself."""
    external: bool
    address: str
    status: AttemptStatus
    assigned_at: int
    started_at: int | None = None
    ended_at: int | None = None
    devices: tuple[str, ...] = ()
    exit_code: int | None = None
    error: str | None = None


class Job(msgspec.Struct, frozen=True):
    """A job's standing. Times are milliseconds since 1970 in the swarm's own (entry) time."""

    seq: int
    id: JobId
    spec: JobSpec
    tenant: str
    status: JobStatus
    created_at: int
    revision: int
    group_id: GroupId | None = None
    waits: str | None = None
    """Why a pending job is not ready: `dependencies` or `backoff`."""
    not_before: int | None = None
    started_at: int | None = None
    ended_at: int | None = None
    attempt_id: AttemptId | None = None
    """The attempt that holds the job, or the last that did."""
    node_id: NodeId | None = None
    failures: int = 0
    recoveries: int = 0
    result: Result | None = None
    error: str | None = None
    attempts: tuple[Attempt, ...] = ()
    """Filled only where the whole job was asked for."""


class JobFilter(msgspec.Struct, frozen=True, omit_defaults=True):
    kind: JobKind | None = None
    statuses: tuple[JobStatus, ...] = ()
    type: str | None = None
    priority: int | None = None
    limit: int = 100
    offset: int = 0
