"""What the job queue is asked: typed bodies and query parameters, checked into domain objects.

Every text that will become a path, an argument, a name or a key is bounded and checked here, and
a refusal names the field and what would be right. Members that are not known are ignored, since
stock clients send some; inside `resources` they are refused, for a limit that is silently not
applied is worse than an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Self

import msgspec

from api.common.jobfields import (
    HOST,
    NAME,
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
from api.common.texts import Text
from api.jobqueue.words import priority_of, statuses_of
from swarmd.domain.errors import Invalid, NotFound, TooLarge
from swarmd.domain.jobs import (
    BULK_JOBS_MAX,
    Fetch,
    JobFilter,
    JobId,
    JobKind,
    JobSpec,
    Resources,
)
from swarmd.ops.logs import Stream

ERROR_CHARS_MAX = 4096
LIST_LIMIT_MAX = 1000
LIST_LIMIT = 100
OFFSET_MAX = 2**62
STREAMS: dict[str, Stream] = {"stdout": "stdout", "stderr": "stderr", "both": "both"}
_YES_NO = {"true": True, "1": True, "yes": True, "": True, "false": False, "0": False, "no": False}
_INTEGER = re.compile(r"[+-]?[0-9]{1,1000}")

ExitCode = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**32 - 1)]


class JobIn(msgspec.Struct, frozen=True):
    """The body of a submit, and each element of a bulk one. A null is as good as an absence."""

    type: str
    binary_url: str
    binary_sha256: str
    priority: str
    arguments: list[str] | None = None
    env_variables: dict[str, str] | None = None
    timeout_seconds: float | None = None
    disconnect_seconds: float | None = None
    max_retries: int | None = None
    depends_on: list[str] | None = None
    idempotency_key: str | None = None
    resources: ResourcesIn | None = None
    constraints: list[str] | None = None
    labels: dict[str, str] | None = None

    def spec(self) -> JobSpec:
        """Refused with Invalid naming the first field that is wrong."""
        if not TYPE.fullmatch(self.type):
            raise Invalid(
                f"type must be 1 to {NAME_CHARS_MAX} characters without spaces,"
                " such as data-processing",
                field="type",
            )
        if not SHA256.fullmatch(self.binary_sha256):
            raise Invalid(
                "binary_sha256 must be the 64 hexadecimal digits of the binary's SHA-256",
                field="binary_sha256",
            )
        sha256 = self.binary_sha256.lower()
        spec = JobSpec(
            type=self.type,
            source=Fetch(checked_url(self.binary_url, sha256), sha256),
            priority=priority_of(self.priority),
            arguments=arguments_of(self.arguments or []),
            env=env_of(self.env_variables or {}),
            labels=labels_of(self.labels or {}),
            timeout_s=timeout_s_of(self.timeout_seconds),
            disconnect_s=disconnect_s_of(self.disconnect_seconds),
            max_retries=retries_of(self.max_retries),
            depends_on=dependencies_of(self.depends_on or []),
            idempotency_key=key_of(self.idempotency_key),
            resources=self.resources.resources() if self.resources else Resources(),
            constraints=constraints_of(self.constraints or []),
        )
        bound_size(spec)
        return spec


class ClaimIn(msgspec.Struct, frozen=True):
    executor_id: str
    executor_ip: str | None = None
    labels: dict[str, str] | None = None

    def checked_labels(self) -> dict[str, str]:
        return labels_of(self.labels or {})

    def address(self, seen: str) -> str:
        """What the executor says of itself, else where the request came from."""
        if not self.executor_ip:
            return seen
        if not HOST.fullmatch(self.executor_ip):
            raise Invalid("executor_ip must be an address or a host name", field="executor_ip")
        return self.executor_ip


class BeatIn(msgspec.Struct, frozen=True):
    executor_id: str


class CompleteIn(msgspec.Struct, frozen=True):
    executor_id: str
    stdout: Text | None = None
    stderr: Text | None = None
    exit_code: ExitCode | None = None


class FailIn(msgspec.Struct, frozen=True):
    executor_id: str
    stdout: Text | None = None
    stderr: Text | None = None
    exit_code: ExitCode | None = None
    error_message: Text | None = None

    def reason(self) -> str:
        """Never empty; as long as an error may be, which is not a place for output."""
        said = self.error_message.start(ERROR_CHARS_MAX + 1) if self.error_message else ""
        said = said.replace("\0", "\N{REPLACEMENT CHARACTER}")
        if len(said) > ERROR_CHARS_MAX:
            said = said[: ERROR_CHARS_MAX - 1] + "…"
        return said or "the executor reported a failure"


class CancelManyIn(msgspec.Struct, frozen=True):
    job_ids: list[str]

    def checked_ids(self) -> list[str]:
        if not self.job_ids:
            raise Invalid("job_ids must name at least one job", field="job_ids")
        if len(self.job_ids) > BULK_JOBS_MAX:
            raise TooLarge(
                f"{len(self.job_ids)} jobs are too many at once; send up to {BULK_JOBS_MAX}",
                field="job_ids",
            )
        return self.job_ids


class LogsWanted(msgspec.Struct, frozen=True):
    """From `stream`, `follow`, `from_byte` of a query."""

    stream: Stream = "both"
    follow: bool = False
    from_byte: int = 0

    @classmethod
    def of(cls, query: Mapping[str, str], *, follow: str = "false") -> Self:
        """`follow` is what holds where the query says nothing of it."""
        stream = query.get("stream", "both")
        if stream not in STREAMS:
            raise Invalid(
                f"stream {stream[:64]!r} is not known; use one of {', '.join(STREAMS)}",
                field="stream",
            )
        follow = query.get("follow", follow).lower()
        if follow not in _YES_NO:
            raise Invalid("follow must be true or false", field="follow")
        from_byte = _integer(query, "from_byte", 0)
        if from_byte < 0:
            raise Invalid(f"from_byte must be at least 0, not {from_byte}", field="from_byte")
        return cls(STREAMS[stream], _YES_NO[follow], min(from_byte, OFFSET_MAX))


def executor_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise Invalid(
            f"executor_id must be 1 to {NAME_CHARS_MAX} characters without control characters",
            field="executor_id",
        )
    return text


def known_form(job_id: str) -> JobId:
    """Refused with NotFound where no job can have such an id, before anything is asked."""
    if not NAME.fullmatch(job_id):
        raise NotFound(
            "there is no such job", job_id=job_id[:64].encode("ascii", "replace").decode()
        )
    return JobId(job_id)


def list_filter(query: Mapping[str, str]) -> JobFilter:
    """From `status`, `type`, `priority`, `limit`, `offset`; an empty filter is no filter."""
    limit = _integer(query, "limit", LIST_LIMIT)
    offset = _integer(query, "offset", 0)
    if limit < 1:
        raise Invalid(f"limit must be at least 1, not {limit}", field="limit")
    if offset < 0:
        raise Invalid(f"offset must be at least 0, not {offset}", field="offset")
    return JobFilter(
        kind=JobKind.BINARY,
        statuses=statuses_of(query["status"]) if query.get("status") else (),
        type=query.get("type") or None,
        priority=priority_of(query["priority"]) if query.get("priority") else None,
        limit=min(limit, LIST_LIMIT_MAX),
        offset=min(offset, OFFSET_MAX),
    )


def _integer(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text):
        raise Invalid(f"{name} must be a whole number, not {text[:64]!r}", field=name)
    return int(text)
