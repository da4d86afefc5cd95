"""Events: what happened, in the order in which it happened. An event is never changed or removed
but from the old end, and each carries the hash of the one before it, so a changed past shows."""

from __future__ import annotations

import msgspec

from swarmd.domain.actors import Actor
from swarmd.domain.jobs import AttemptId, GroupId, JobId, JobKind, JobStatus, NodeId


class Body(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, gc=False):
    pass


class JobSubmitted(Body, frozen=True):
    job_id: JobId
    kind: JobKind
    ready: bool


class JobReady(Body, frozen=True):
    """What it waited for is over."""

    job_id: JobId


class JobAssigned(Body, frozen=True):
    job_id: JobId
    attempt_id: AttemptId
    node_id: NodeId
    external: bool = False


class JobStarted(Body, frozen=True):
    job_id: JobId
    attempt_id: AttemptId
    node_id: NodeId


class AttemptStopped(Body, frozen=True):
    """The attempt no longer holds its job: its node must end whatever still runs of it."""

    job_id: JobId
    attempt_id: AttemptId
    node_id: NodeId
    reason: str


class JobRequeued(Body, frozen=True):
    job_id: JobId
    attempt_id: AttemptId
    reason: str


class JobRetrying(Body, frozen=True):
    job_id: JobId
    attempt_id: AttemptId
    not_before: int
    error: str = ""


class JobBlocked(Body, frozen=True):
    """It is not to be tried for a while, or not until somebody says so."""

    job_id: JobId
    attempt_id: AttemptId | None
    why: str
    not_before: int | None
    error: str = ""


class JobEnded(Body, frozen=True):
    job_id: JobId
    status: JobStatus
    attempt_id: AttemptId | None = None
    error: str = ""
    dependents: bool = False
    """Others wait for it; they are settled by a later entry."""


class JobsPruned(Body, frozen=True):
    count: int
    before: int


class GroupCreated(Body, frozen=True):
    group_id: GroupId


class NodeChanged(Body, frozen=True):
    node_id: NodeId
    what: str


class BlobAdded(Body, frozen=True):
    sha256: str
    size_bytes: int
    node_id: NodeId


class BlobsDropped(Body, frozen=True):
    sha256s: tuple[str, ...]


class SettingChanged(Body, frozen=True):
    key: str


class TrustChanged(Body, frozen=True):
    """What the swarm keeps sealed, or who may join it."""

    what: str


class BuilderChanged(Body, frozen=True):
    """Something was decided, or found out, about a builder."""

    node_id: NodeId
    what: str
    """joined, online, offline, paused, resumed, grounded, not grounded, typed"""
    detail: str = ""


class CareTaken(Body, frozen=True):
    """A step of what is done for a builder that fails."""

    node_id: NodeId
    what: str
    """begun, done, failed, healthy, reset"""
    action: str
    level: int
    """That it reaches, or was to reach."""
    detail: str = ""


class PackageBuilt(Body, frozen=True):
    """A builder's try at a package came to an end that counts."""

    job_id: JobId
    node_id: NodeId
    package: str
    ok: bool
    duration_ms: int
    error: str = ""


class BinPkgChanged(Body, frozen=True):
    """A binary package is there to be installed, or no longer."""

    path: str
    package: str
    there: bool


class PayloadChanged(Body, frozen=True):
    """A version of what builders are given is known, or no longer; or somebody deploys one."""

    sort: str
    version: str
    sha256: str
    what: str
    """known, forgotten, roll begun, roll left, roll taken over, roll stopped, roll given up, roll
    ended"""


class PayloadMoved(Body, frozen=True):
    """A step of a deployment to a builder ended."""

    node_id: NodeId
    sort: str
    version: str
    step: str
    """begin, deploy, restart, health, rollback, verify"""
    ok: bool
    error: str = ""


class TerminalBegun(Body, frozen=True):
    """Somebody has a shell on a builder: the actor."""

    node_id: NodeId
    terminal_id: str
    name: str
    user: str
    """The account there."""
    via: NodeId


class TerminalEnded(Body, frozen=True):
    node_id: NodeId
    terminal_id: str
    end: str
    """exited, left, lost, idle, overtime, stopped"""
    duration_ms: int
    exit_code: int | None
    sha256: str
    """Of the recording; empty: there is none."""


class BuildsControlled(Body, frozen=True):
    action: str
    target: str
    count: int


EventBody = (
    JobSubmitted
    | JobReady
    | JobAssigned
    | JobStarted
    | AttemptStopped
    | JobRequeued
    | JobRetrying
    | JobBlocked
    | JobEnded
    | JobsPruned
    | GroupCreated
    | NodeChanged
    | BlobAdded
    | BlobsDropped
    | SettingChanged
    | TrustChanged
    | BuilderChanged
    | PackageBuilt
    | BuildsControlled
    | BinPkgChanged
    | PayloadChanged
    | PayloadMoved
    | CareTaken
    | TerminalBegun
    | TerminalEnded
)


class Event(msgspec.Struct, frozen=True, gc=False):
    seq: int
    at: int
    index: int
    actor: Actor
    body: EventBody
