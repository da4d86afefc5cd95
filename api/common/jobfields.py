"""Checks of a job's fields, each into its domain form. A refusal names the field and what is right.

Every text that will become a path, an argument, a name or a key is bounded here.
"""

from __future__ import annotations

import math
import re
from urllib.parse import urlsplit

import msgspec

from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import (
    DEPENDENCIES_MAX,
    DISCONNECT_S_MAX,
    RETRIES_MAX,
    Constraint,
    Fetch,
    JobId,
    JobSpec,
    Resources,
)

SPEC_BYTES_MAX = 200 * 1024
"""All texts of one job together; a job travels whole in one entry of the log."""
ARGUMENT_BYTES_MAX = 128 * 1024 - 1
"""Linux refuses to start a program with a longer argument or NAME=value."""
ARGUMENTS_MAX = 1000
ENV_MAX = 1000
LABELS_MAX = 64
CONSTRAINTS_MAX = 64
NAME_CHARS_MAX = 128
URL_CHARS_MAX = 8192
TIMEOUT_S_MAX = 10 * 365 * 86400

TYPE = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]{1,128}")
NAME = re.compile(r"[^\x00-\x1f\x7f-\x9f]{1,128}")
HOST = re.compile(r"[^\s\x00-\x1f\x7f-\x9f]{1,255}")
SHA256 = re.compile(r"[0-9a-fA-F]{64}")
_LABEL = re.compile(r"[A-Za-z0-9_.\-/]{1,64}")
_SIZE = re.compile(r"([0-9]{1,15})(?:\.([0-9]{1,9}))? ?([KMGT]?)(i?)B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class ResourcesIn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    cpus: float | None = None
    memory: int | str | None = None
    memory_bytes: int | None = None
    gpus: int | None = None
    pids: int | None = None

    def resources(self) -> Resources:
        if self.memory is not None and self.memory_bytes is not None:
            raise Invalid("give memory or memory_bytes, not both", field="resources.memory")
        memory = self.memory if self.memory_bytes is None else self.memory_bytes
        if self.cpus is not None and not 0 < self.cpus <= 65536:
            raise Invalid("cpus must be above 0, such as 0.5 or 2", field="resources.cpus")
        if self.gpus is not None and not 0 <= self.gpus <= 1024:
            raise Invalid("gpus must be a whole number from 0 to 1024", field="resources.gpus")
        if self.pids is not None and not 1 <= self.pids <= 2**22:
            raise Invalid(f"pids must be from 1 to {2**22}", field="resources.pids")
        return Resources(
            cpus=self.cpus,
            memory_bytes=None if memory is None else memory_bytes_of(memory),
            gpus=self.gpus or 0,
            pids=self.pids,
        )


def checked_url(url: str, sha256: str) -> str:
    """The URL as given: http, https, or a blob by the very hash that the job names."""
    wrong = "binary_url must be http://…, https://… or blob:sha256:…"
    if len(url) > URL_CHARS_MAX:
        raise Invalid(f"binary_url must be at most {URL_CHARS_MAX} characters", field="binary_url")
    if not url.isprintable() or " " in url:
        raise Invalid(f"{wrong}, without spaces or control characters", field="binary_url")
    scheme, colon, rest = url.partition(":")
    if colon and scheme.lower() == "blob":
        named = rest.removeprefix("sha256:")
        if named == rest or not SHA256.fullmatch(named):
            raise Invalid(
                "a blob is named blob:sha256: and 64 hexadecimal digits", field="binary_url"
            )
        if named.lower() != sha256:
            raise Invalid("the blob and binary_sha256 name different hashes", field="binary_url")
        return f"blob:sha256:{sha256}"
    if scheme.lower() not in ("http", "https"):
        # The scheme alone is repeated: the rest of a URL may hold a password.
        raise Invalid(f"{wrong}, not {scheme[:16]!r}" if colon else wrong, field="binary_url")
    try:
        parts = urlsplit(url)
        if not parts.hostname or parts.port == 0:
            raise ValueError
    except ValueError:
        raise Invalid(
            f"{wrong}, with a host and a port from 1 to 65535", field="binary_url"
        ) from None
    return url


def arguments_of(arguments: list[str]) -> tuple[str, ...]:
    if len(arguments) > ARGUMENTS_MAX:
        raise Invalid(f"at most {ARGUMENTS_MAX} arguments, not {len(arguments)}", field="arguments")
    for index, argument in enumerate(arguments):
        _startable(argument, f"arguments[{index}]")
    return tuple(arguments)


def env_of(env: dict[str, str]) -> dict[str, str]:
    if len(env) > ENV_MAX:
        raise Invalid(f"at most {ENV_MAX} variables, not {len(env)}", field="env_variables")
    for name, value in env.items():
        if not name or "=" in name:
            raise Invalid(
                f"a variable's name must not be empty or hold '=': {name[:64]!r}",
                field="env_variables",
            )
        _startable(f"{name}={value}", f"env_variables.{name[:64]}")
    return env


def _startable(text: str, field: str) -> None:
    """Refuse what the kernel could not hand to a program."""
    if "\0" in text:
        raise Invalid(f"{field} holds a NUL character, which no program can be given", field=field)
    if len(text) > ARGUMENT_BYTES_MAX or (
        len(text) * 4 > ARGUMENT_BYTES_MAX and len(text.encode()) > ARGUMENT_BYTES_MAX
    ):
        raise Invalid(f"{field} is longer than {ARGUMENT_BYTES_MAX} bytes", field=field)


def labels_of(labels: dict[str, str]) -> dict[str, str]:
    if len(labels) > LABELS_MAX:
        raise Invalid(f"at most {LABELS_MAX} labels, not {len(labels)}", field="labels")
    for name, value in labels.items():
        if not _LABEL.fullmatch(name):
            raise Invalid(
                f"a label's name is 1 to 64 of A-Z a-z 0-9 _ . - /, not {name[:64]!r}",
                field="labels",
            )
        if value and not NAME.fullmatch(value):
            raise Invalid(
                f"label {name} must have at most {NAME_CHARS_MAX} characters, none of them control",
                field=f"labels.{name}",
            )
    return labels


def timeout_s_of(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= TIMEOUT_S_MAX):
        raise Invalid(
            f"timeout_seconds must be above 0 and at most {TIMEOUT_S_MAX}", field="timeout_seconds"
        )
    return seconds


def disconnect_s_of(seconds: float | None) -> float | None:
    if seconds is not None and not (math.isfinite(seconds) and 0 <= seconds <= DISCONNECT_S_MAX):
        raise Invalid(
            f"disconnect_seconds must be from 0 to {DISCONNECT_S_MAX}", field="disconnect_seconds"
        )
    return seconds or None


def retries_of(retries: int | None) -> int:
    if retries is not None and not 0 <= retries <= RETRIES_MAX:
        raise Invalid(f"max_retries must be from 0 to {RETRIES_MAX}", field="max_retries")
    return retries or 0


def dependencies_of(job_ids: list[str]) -> tuple[JobId, ...]:
    if len(job_ids) > DEPENDENCIES_MAX:
        raise Invalid(
            f"at most {DEPENDENCIES_MAX} dependencies, not {len(job_ids)}", field="depends_on"
        )
    for job_id in job_ids:
        if not NAME.fullmatch(job_id):
            raise Invalid("depends_on must name jobs by their ids", field="depends_on")
    return tuple(JobId(job_id) for job_id in dict.fromkeys(job_ids))


def key_of(key: str | None) -> str | None:
    if key is not None and not NAME.fullmatch(key):
        raise Invalid(
            f"idempotency_key must be 1 to {NAME_CHARS_MAX} characters without control characters",
            field="idempotency_key",
        )
    return key


def constraints_of(texts: list[str]) -> tuple[Constraint, ...]:
    if len(texts) > CONSTRAINTS_MAX:
        raise Invalid(
            f"at most {CONSTRAINTS_MAX} constraints, not {len(texts)}", field="constraints"
        )
    return tuple(Constraint.parse(text) for text in texts)


def memory_bytes_of(memory: int | str) -> int:
    """Bytes, or a text such as 512MiB or 1.5G: each unit a power of 1024, but 500MB of 1000."""
    size_bytes = memory if isinstance(memory, int) else _size_bytes(memory.strip())
    if not 2**20 <= size_bytes <= 2**50:
        raise Invalid(
            "memory must be from 1 MiB to 1 PiB, in bytes or for example 512MiB",
            field="resources.memory",
        )
    return size_bytes


def _size_bytes(text: str) -> int:
    size = _SIZE.fullmatch(text)
    if size is None:
        raise Invalid(
            f"memory {text[:64]!r} is not understood; write bytes or for example 512MiB",
            field="resources.memory",
        )
    whole, part, unit, binary = size.groups()
    decimal = unit and not binary and text[-1] in "bB"
    factor: int = (1000 if decimal else 1024) ** _POWERS[unit.lower()]
    tenths: int = 10 ** len(part or "")
    return int(whole) * factor + int(part or 0) * factor // tenths


def bound_size(spec: JobSpec) -> None:
    texts = [spec.type, spec.source.url if isinstance(spec.source, Fetch) else ""]
    texts += spec.arguments
    texts += spec.env
    texts += spec.env.values()
    texts += spec.labels
    texts += spec.labels.values()
    texts += spec.depends_on
    texts += map(str, spec.constraints)
    chars = sum(map(len, texts))
    # Ten bytes a text pay for its frame; only what may be over is encoded and counted in bytes.
    if chars * 4 + 10 * len(texts) <= SPEC_BYTES_MAX:
        return
    size_bytes = sum(len(text.encode()) + 10 for text in texts)
    if size_bytes > SPEC_BYTES_MAX:
        raise Invalid(
            f"the job is {size_bytes} bytes; all its texts together may be {SPEC_BYTES_MAX}."
            " Pass large input as a file that the job downloads",
            field="arguments",
        )
