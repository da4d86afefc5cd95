"""The console's shapes: jobs of every kind, as the command line and the web page read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import msgspec
import trio
from pydantic import BaseModel, ConfigDict, ValidationError

from api.common.bodies import decode_body
from api.common.jobfields import (
    NAME_CHARS_MAX,
    SHA256,
    TYPE,
    ResourcesIn,
    arguments_of,
    bound_size,
    checked_url,
    constraints_of,
    dependencies_of,
    disconnect_s_of,
    env_of,
    key_of,
    labels_of,
    retries_of,
    timeout_s_of,
)
from api.common.texts import Held
from swarmd.domain.builds import OUTSIDE
from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import (
    Attempt,
    Fetch,
    Installed,
    Job,
    JobSpec,
    Priority,
    Resources,
    Source,
)
from swarmd.ops.trust import TTL_S

B = TypeVar("B", bound="Body")
PRIORITIES = {
    "foreground": Priority.FOREGROUND,
    "background": Priority.BACKGROUND,
    "best_effort": Priority.BEST_EFFORT,
}
PROGRAM_CHARS_MAX = 4096


class Body(BaseModel):
    """What the console is asked. Unknown members are refused: they are mistakes of one's own."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class BinaryIn(Body):
    url: str
    sha256: str


class StopIn(Body):
    jobs: bool = False


class TokenIn(Body):
    ttl_s: float = TTL_S
    rotate: bool = False


class DroneTokenIn(Body):
    name: str
    hash: str
    """In hexadecimal digits; the token stays with whoever made it."""


class DroneIn(Body):
    name: str


class TransferIn(Body):
    node: str | None = None


class NeedsIn(Body):
    cpus: float | None = None
    memory: int | str | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    pids: int | None = None


class JobIn(Body):
    """A program that the nodes have, or a binary by URL or blob; one of them."""

    type: str | None = None
    program: str | None = None
    binary: BinaryIn | None = None
    arguments: list[str] = []
    env: dict[str, str] = {}
    priority: str | int = "background"
    timeout_seconds: float | None = None
    disconnect_seconds: float | None = None
    max_retries: int = 0
    depends_on: list[str] = []
    idempotency_key: str | None = None
    resources: NeedsIn | None = None
    constraints: list[str] = []
    labels: dict[str, str] = {}

    def spec(self) -> JobSpec:
        source, name = self._source()
        type_ = name if self.type is None else self.type
        if not TYPE.fullmatch(type_):
            raise Invalid(
                f"type must be 1 to {NAME_CHARS_MAX} characters without spaces", field="type"
            )
        spec = JobSpec(
            type=type_,
            source=source,
            priority=self._priority(),
            arguments=arguments_of(self.arguments),
            env=env_of(self.env),
            labels=labels_of(self.labels),
            timeout_s=timeout_s_of(self.timeout_seconds),
            disconnect_s=disconnect_s_of(self.disconnect_seconds),
            max_retries=retries_of(self.max_retries),
            depends_on=dependencies_of(self.depends_on),
            idempotency_key=key_of(self.idempotency_key),
            resources=self._resources(),
            constraints=constraints_of(self.constraints),
        )
        bound_size(spec)
        return spec

    def _source(self) -> tuple[Source, str]:
        """Where the program comes from, and a name for the job's type where none was given."""
        if (self.program is None) == (self.binary is None):
            raise Invalid("give a program or a binary, one of them", field="program")
        if self.binary is not None:
            if not SHA256.fullmatch(self.binary.sha256):
                raise Invalid("binary.sha256 must be 64 hexadecimal digits", field="binary.sha256")
            sha256 = self.binary.sha256.lower()
            return Fetch(checked_url(self.binary.url, sha256), sha256), "binary"
        assert self.program is not None
        program = self.program
        if not 0 < len(program) <= PROGRAM_CHARS_MAX or not program.isprintable():
            raise Invalid("program must be a name on PATH or an absolute path", field="program")
        if "/" in program and not program.startswith("/"):
            raise Invalid("program must be a name on PATH or an absolute path", field="program")
        return Installed(program), program.rpartition("/")[2].replace(" ", "-")[:NAME_CHARS_MAX]

    def _resources(self) -> Resources:
        if self.resources is None:
            return Resources()
        return ResourcesIn(**self.resources.model_dump()).resources()

    def _priority(self) -> int:
        if isinstance(self.priority, int):
            if not -1000 <= self.priority <= 1000:
                raise Invalid("priority must be from -1000 to 1000", field="priority")
            return self.priority
        if self.priority not in PRIORITIES:
            raise Invalid(
                f"priority must be a number or one of {', '.join(PRIORITIES)}", field="priority"
            )
        return PRIORITIES[self.priority]


async def read_body(kind: type[B], data: bytes) -> B:
    """The body as a `kind`. Refused with Invalid, naming the first member that is wrong."""
    value = await decode_body(data or b"{}", dict[str, Any])
    await trio.lowlevel.checkpoint()
    try:
        return kind.model_validate(value)
    except ValidationError as wrong:
        first = wrong.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        said = f"{field}: {first['msg']}" if field else f"the body is refused: {first['msg']}"
        raise Invalid(said[:500], field=field[:128]) from None


def moment(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


class AttemptOut(msgspec.Struct, frozen=True):
    id: int
    node: str
    address: str
    status: str
    assigned_at: str | None
    started_at: str | None
    ended_at: str | None
    devices: tuple[str, ...]
    exit_code: int | None
    error: str | None

    @classmethod
    def of(cls, attempt: Attempt, names: dict[str, str]) -> Self:
        return cls(
            attempt.id,
            _name(attempt.node_id, names),
            attempt.address,
            attempt.status.value,
            moment(attempt.assigned_at),
            moment(attempt.started_at),
            moment(attempt.ended_at),
            attempt.devices,
            attempt.exit_code,
            attempt.error,
        )


class JobOut(msgspec.Struct, frozen=True):
    id: str
    type: str
    kind: str
    status: str
    priority: int
    program: str | None
    binary: dict[str, str] | None
    arguments: tuple[str, ...] | None
    """None in a listing, which does not carry what may be large."""
    labels: dict[str, str]
    node: str | None
    exit_code: int | None
    error: str | None
    created_at: str | None
    started_at: str | None
    ended_at: str | None
    duration_ms: int | None
    waits: str | None
    failures: int
    recoveries: int
    group_id: str | None
    attempts: tuple[AttemptOut, ...] = ()
    stdout: Held | None = None
    stderr: Held | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, job: Job, names: dict[str, str], texts: tuple[Held, Held] | None = None,
        *, brief: bool = False,
    ) -> Self:  # fmt: skip
        """`names` maps the ids of nodes to their names."""
        source = job.spec.source
        over = job.started_at is not None and job.ended_at is not None
        return cls(
            id=job.id,
            type=job.spec.type,
            kind=job.spec.kind.value,
            status=job.status.value,
            priority=job.spec.priority,
            program=source.program if isinstance(source, Installed) else None,
            binary=(
                {"url": source.url, "sha256": source.sha256} if isinstance(source, Fetch) else None
            ),
            arguments=None if brief else job.spec.arguments,
            labels=job.spec.labels,
            node=_name(job.node_id, names) if job.node_id else None,
            exit_code=job.result.exit_code if job.result else None,
            error=job.error,
            created_at=moment(job.created_at),
            started_at=moment(job.started_at),
            ended_at=moment(job.ended_at),
            duration_ms=job.ended_at - job.started_at if over else None,  # type: ignore[operator]
            waits=job.waits,
            failures=job.failures,
            recoveries=job.recoveries,
            group_id=job.group_id,
            attempts=() if brief else tuple(AttemptOut.of(each, names) for each in job.attempts),
            stdout=texts[0] if texts else None,
            stderr=texts[1] if texts else None,
            notes=job.result.notes if job.result else (),
        )


def _name(node_id: str, names: dict[str, str]) -> str:
    """Of a drone that is forgotten, by the id that it gave itself."""
    return names.get(node_id, node_id.removeprefix(OUTSIDE))


Json = dict[str, Any]
