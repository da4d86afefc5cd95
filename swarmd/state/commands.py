"""Commands: intentions with a verb. A docstring names the refusals; a rule in `rules` applies it.

A command carries everything that its rule needs: ids made by the proposer, never a clock."""

from __future__ import annotations

from typing import Any

import msgspec

from swarmd.domain.actors import Actor
from swarmd.domain.builds import Builder, Controlled, Outcome
from swarmd.domain.care import Care
from swarmd.domain.groups import Group
from swarmd.domain.jobs import (
    AttemptId,
    AttemptStatus,
    GroupId,
    Job,
    JobId,
    JobSpec,
    NodeId,
    Result,
)
from swarmd.domain.nodes import Node
from swarmd.domain.payloads import Deployment, Payload, Rolling
from swarmd.domain.terminals import Terminal
from swarmd.state.build_commands import (
    BuildEnd,
    ControlBuilds,
    DropStaged,
    FinishBuild,
    ForgetBuilder,
    NoteBuilder,
    NotePresence,
    PutBuilder,
    ReclaimBuilds,
    RemoveBinPkg,
    ReplaceBinPkg,
    StagePackage,
    StartBuild,
    TakeBuilds,
    TakeRevoked,
)
from swarmd.state.care_commands import BeginCare, EaseCare, EndCare, ResetCare
from swarmd.state.command import Command as Command
from swarmd.state.command import Refusal as Refusal
from swarmd.state.command import T as T
from swarmd.state.payload_commands import (
    BeginRoll,
    DropPayload,
    EndRoll,
    ForgetHostKey,
    HoldPayload,
    NoteDeployment,
    NoteRoll,
    PutPayload,
    ReleasePayload,
    TakeRoll,
)
from swarmd.state.terminal_commands import BeginTerminal, EndTerminal, ForgetTerminals


class NewJob(msgspec.Struct, frozen=True, omit_defaults=True):
    id: JobId
    spec: JobSpec


QUEUED_AS = "queued_as"
"""A fact of the refusal of a package that is in the queue: as which job."""


class SubmitJobs(Command[tuple["Job | Refusal", ...]], frozen=True):
    """Queue jobs. Refused one by one: an unknown dependency, one that failed, an idempotency key
    that stands for another job, a package that is in the queue."""

    jobs: tuple[NewJob, ...]
    group_id: GroupId | None = None


class CreateGroup(Command[Group], frozen=True):
    """Conflict when the id is taken."""

    group: Group


class CancelJobs(Command[tuple["Job | Refusal", ...]], frozen=True):
    """Cancel jobs that have not ended; with `only_pending`, only such as have not started.
    Refused one by one: not found, conflict."""

    job_ids: tuple[JobId, ...]
    only_pending: bool = False


class ClaimJob(Command["Job | None"], frozen=True):
    """Give the best ready job to an executor that came for it. None when nothing fits."""

    executor: str
    address: str
    labels: dict[str, str] = {}
    kind: str = "binary"


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    job_id: JobId
    node_id: NodeId
    devices: tuple[str, ...] = ()


class AssignJobs(Command[int], frozen=True):
    """Give ready jobs to nodes. One that is no longer ready, or no longer fits, is passed over.
    Answers how many were given. Fenced by the term that the proposer believes in."""

    assignments: tuple[Assignment, ...]
    term: int


class AttemptReport(msgspec.Struct, frozen=True, omit_defaults=True):
    """A node's word on one of its attempts. Ages are counted back from the entry's time, so that
    clocks that disagree do no harm."""

    attempt_id: AttemptId
    started_age_ms: int | None = None
    ended_age_ms: int | None = None
    status: AttemptStatus | None = None
    """How it ended: completed, failed, timeout, cancelled, revoked or lost."""
    result: Result | None = None
    outcome: Outcome | None = None
    """Of a package, where its status does not say it."""


class ReportAttempts(Command[tuple[bool, ...]], frozen=True):
    """Answers for each whether it counted: a report of an attempt that no longer holds its job is
    noted on the attempt and moves nothing."""

    node_id: NodeId
    reports: tuple[AttemptReport, ...]


class FinishClaim(Command[Job], frozen=True):
    """An executor's end of the job it claimed. NotFound: no such job. Conflict: it is not running,
    or not this executor's."""

    job_id: JobId
    executor: str
    ok: bool
    result: Result


class ExpireAttempts(Command[int], frozen=True):
    """Take work back from executors that fell silent, or fail it when its time was up. Attempts
    that have ended meanwhile are passed over. Fenced by term."""

    silent: tuple[AttemptId, ...]
    overdue: tuple[AttemptId, ...]
    term: int


class LoseAttempts(Command[int], frozen=True):
    """Take work back from a node whose lease ran out, as a recovery of each job. Attempts that have
    ended meanwhile are passed over, and all of them where the node's hold is another than the
    proposer knew of. Fenced by term: who leads no longer has no say in leases."""

    node_id: NodeId
    attempts: tuple[AttemptId, ...]
    hold: int
    """The revision of the node's hold; 0: none."""
    term: int


class HoldAttempts(Command[None], frozen=True):
    """A node's word that what it runs goes on without renewal: for so long, counted by whoever
    leads from when it learns of it; None: until it says otherwise, as a swarm of one does; 0: the
    leases count again. Invalid: too long. NotFound: no such node."""

    node_id: NodeId
    for_ms: int | None


class WakeJobs(Command[int], frozen=True):
    """Make jobs whose backoff is over ready again. Fenced by term."""

    limit: int
    term: int


class SettleDependents(Command[int], frozen=True):
    """Carry the end of jobs to those that waited for them. Answers how many are left.
    Fenced by term."""

    limit: int
    term: int


class PruneJobs(Command[int], frozen=True):
    """Forget jobs that ended before a time, oldest first. Answers how many. Fenced by term."""

    before: int
    limit: int
    term: int


class PruneEvents(Command[int], frozen=True):
    """Forget the oldest events beyond `keep`. Fenced by term."""

    keep: int
    limit: int
    term: int


class PutNode(Command[Node], frozen=True):
    """Make a node known, or change what is known of it. Proposed only where something changed.
    Conflict: another node has the name, or this one was removed."""

    node: Node


class RemoveNode(Command[int], frozen=True):
    """Forget a node for good; its id never comes back. Where many blobs are known to lie there,
    that takes several: answers how many are left, 0 and it is gone. NotFound: no such node."""

    node_id: NodeId
    origin: int
    """By which number its requests are known: none of them counts from then on."""
    limit: int


class ForgetGone(Command[int], frozen=True):
    """Forget that nodes were removed before a time, when nothing of theirs is accepted any more.
    Answers how many. Fenced by term."""

    before: int
    limit: int
    term: int


class AddBlob(Command[None], frozen=True):
    """A node has a blob, fsynced."""

    sha256: str
    size_bytes: int
    node_id: NodeId


class DropBlobs(Command[tuple[str, ...]], frozen=True):
    """Forget blobs that nothing has referred to since `before`. Answers which. Fenced by term."""

    before: int
    limit: int
    term: int


class PutSetting(Command[bytes], frozen=True):
    """Set a value; with `only_new`, keep and answer the one that is there."""

    key: str
    value: bytes
    only_new: bool = False


class FoundTrust(Command[bytes], frozen=True):
    """Give a new swarm its authority and its first keys, sealed; the key that they are sealed with
    is in the box, for this node alone. Answers the authority in force: one that is there stays."""

    authority: bytes
    """Its certificate, which is no secret."""
    secrets: dict[str, bytes]
    node_id: NodeId
    box: bytes


class PutSecret(Command[int], frozen=True):
    """Keep something sealed, in place of what has the revision `replaces` (0: nothing). Answers
    its revision. Conflict: another came between. Invalid: it is too large."""

    name: str
    sealed: bytes
    replaces: int


class PutWraps(Command[int], frozen=True):
    """Let nodes open what is sealed, or no longer. Answers for how many that was new. Fenced by
    term."""

    boxes: dict[NodeId, bytes]
    """The key that everything is sealed with, for each of them alone."""
    dropped: tuple[NodeId, ...]
    term: int


class PutToken(Command[int], frozen=True):
    """Let whoever knows the secret with this hash join, for so long; with `alone`, nobody with an
    older one. Answers when it ends. Invalid: too long. Conflict: too many."""

    hash: bytes
    ttl_ms: int
    alone: bool = False


class DropTokens(Command[int], frozen=True):
    """Let nobody join by a token that was given out. NotFound: none is good."""


class PutDroneToken(Command[None], frozen=True):
    """Let a builder from outside with this name speak for itself where others need the admin key,
    by the token with this hash, in place of one it had. Invalid: no name, or no hash. Conflict:
    too many."""

    name: str
    hash: bytes


class DropDroneToken(Command[None], frozen=True):
    """Let it do so no longer. NotFound: it has none."""

    name: str


class RaiseVersion(Command[int], frozen=True):
    """Let the machine do what came with a version, now that every replica can. Never lowered:
    answers the version in force. Fenced by term."""

    version: int
    term: int


AnyCommand = (
    SubmitJobs
    | CreateGroup
    | CancelJobs
    | ClaimJob
    | AssignJobs
    | ReportAttempts
    | FinishClaim
    | ExpireAttempts
    | LoseAttempts
    | HoldAttempts
    | WakeJobs
    | SettleDependents
    | PruneJobs
    | PruneEvents
    | PutNode
    | RemoveNode
    | ForgetGone
    | AddBlob
    | DropBlobs
    | PutSetting
    | FoundTrust
    | PutSecret
    | PutWraps
    | PutToken
    | DropTokens
    | RaiseVersion
    | PutBuilder
    | ForgetBuilder
    | NoteBuilder
    | NotePresence
    | TakeBuilds
    | StartBuild
    | FinishBuild
    | ReclaimBuilds
    | TakeRevoked
    | ControlBuilds
    | StagePackage
    | DropStaged
    | RemoveBinPkg
    | ReplaceBinPkg
    | PutPayload
    | DropPayload
    | HoldPayload
    | ReleasePayload
    | NoteDeployment
    | ForgetHostKey
    | BeginRoll
    | TakeRoll
    | NoteRoll
    | EndRoll
    | PutDroneToken
    | DropDroneToken
    | BeginCare
    | EndCare
    | EaseCare
    | ResetCare
    | BeginTerminal
    | EndTerminal
    | ForgetTerminals
)


SEALED_BYTES_MAX = 64 * 1024


class RequestId(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Which request of which boot of which node: the same one is never applied twice."""

    origin: int
    boot: int
    seq: int


class Request(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command on its way: what a node hands to the leader, and what the log holds."""

    id: RequestId
    actor: Actor
    command: AnyCommand


class Batch(msgspec.Struct, frozen=True, array_like=True):
    """The data of one entry of the log: the leader's time, and requests that came together."""

    at: int
    requests: tuple[Request, ...]


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A command in its place: several of one batch share an index. `at` never goes backwards."""

    index: int
    term: int
    at: int
    actor: Actor
    command: AnyCommand
    request: RequestId | None = None


ANSWERS: dict[type[Any], Any] = {
    SubmitJobs: tuple[Job | Refusal, ...],
    CreateGroup: Group,
    CancelJobs: tuple[Job | Refusal, ...],
    ClaimJob: Job | None,
    AssignJobs: int,
    ReportAttempts: tuple[bool, ...],
    FinishClaim: Job,
    ExpireAttempts: int,
    LoseAttempts: int,
    HoldAttempts: None,
    WakeJobs: int,
    SettleDependents: int,
    PruneJobs: int,
    PruneEvents: int,
    PutNode: Node,
    RemoveNode: int,
    ForgetGone: int,
    AddBlob: None,
    DropBlobs: tuple[str, ...],
    PutSetting: bytes,
    FoundTrust: bytes,
    PutSecret: int,
    PutWraps: int,
    PutToken: int,
    DropTokens: int,
    RaiseVersion: int,
    PutBuilder: Builder,
    ForgetBuilder: int,
    NoteBuilder: Builder,
    NotePresence: int,
    TakeBuilds: tuple[Job, ...],
    StartBuild: bool,
    FinishBuild: BuildEnd,
    ReclaimBuilds: int,
    TakeRevoked: tuple[str, ...],
    ControlBuilds: Controlled,
    StagePackage: None,
    DropStaged: int,
    RemoveBinPkg: None,
    ReplaceBinPkg: None,
    PutPayload: Payload,
    DropPayload: None,
    HoldPayload: int,
    ReleasePayload: bool,
    NoteDeployment: Deployment,
    ForgetHostKey: bool,
    BeginRoll: Rolling,
    TakeRoll: Rolling | None,
    NoteRoll: None,
    EndRoll: bool,
    PutDroneToken: None,
    DropDroneToken: None,
    BeginCare: Care,
    EndCare: bool,
    EaseCare: int,
    ResetCare: int,
    BeginTerminal: Terminal,
    EndTerminal: Terminal,
    ForgetTerminals: int,
}
"""What each command answers, for an answer that has to be read back from the state."""

ONE_BY_ONE: frozenset[type[Any]] = frozenset({SubmitJobs, CancelJobs})
"""Those that answer a job or a refusal for each of their elements."""

VERSION = 5
"""The newest version of the machine that this program can apply."""

_BUILDS: tuple[type[Any], ...] = (
    PutBuilder, NoteBuilder, NotePresence, TakeBuilds, StartBuild, FinishBuild, ReclaimBuilds,
    TakeRevoked, ControlBuilds, StagePackage, DropStaged, RemoveBinPkg,
    PutPayload, DropPayload, HoldPayload, ReleasePayload, NoteDeployment, ForgetHostKey,
    BeginCare, EndCare, EaseCare, ResetCare,
)  # fmt: skip
SINCE: dict[type[Any], int] = {
    **dict.fromkeys(ANSWERS, 1),
    **dict.fromkeys(_BUILDS, 3),
    **dict.fromkeys((BeginRoll, TakeRoll, NoteRoll, EndRoll), 4),
    PutDroneToken: 4,
    DropDroneToken: 4,
    ReplaceBinPkg: 4,
    BeginTerminal: 4,
    EndTerminal: 4,
    ForgetTerminals: 4,
    ForgetBuilder: 5,
    LoseAttempts: 2,
    HoldAttempts: 2,
}
"""The version that brought each command: it is not proposed while an older one is in force."""

FIELDS_SINCE: dict[type[Any], dict[str, int]] = {AttemptReport: {"outcome": 3}}
"""The same of fields that came later than the command, or what is in it: those that differ from
their default are not proposed before. An older program would leave them out."""
