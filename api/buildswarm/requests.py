"""What the build swarm is asked: typed bodies and query parameters, checked into domain objects."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import msgspec

from swarmd.domain.builds import ERROR_CHARS_MAX, Control, HostSort, Outcome
from swarmd.domain.errors import Invalid, NotFound
from swarmd.ops.builds import BuilderSays

ID_CHARS_MAX = 128
TEXT_CHARS_MAX = 255
METRICS_MAX = 32
CORES_MAX = 65_536
RAM_GB_MAX = 1_000_000.0
GIB = 1024**3
LIMIT_MAX = 10_000
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@+\-]{0,127}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._\-]{0,62}")
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9.:_\-]{0,254}")
_FLOAT = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_YES = frozenset({"true", "1", "yes", ""})
_NO = frozenset({"false", "0", "no"})


def text_of(value: str | None, field: str, chars_max: int = TEXT_CHARS_MAX) -> str:
    """A line that may be printed; "" where there is none."""
    if value is None:
        return ""
    if len(value) > chars_max or not value.isprintable():
        raise Invalid(
            f"{field} must be at most {chars_max} printable characters in one line", field=field
        )
    return value


def drone_id(text: str | None) -> str:
    if text is None or not _ID.fullmatch(text):
        raise Invalid(
            "id must be a drone's own, up to 128 letters, digits and . _ : @ + -", field="id"
        )
    return text


def drone_name(text: str) -> str:
    """Of a path: a name that could be nobody's is nobody's."""
    if not _NAME.fullmatch(text):
        raise NotFound("no such drone", name=text[:128])
    return text


class CapabilitiesIn(msgspec.Struct, frozen=True):
    cores: int | None = None
    ram_gb: float | None = None
    auto_reboot: bool | None = None
    portage_timestamp: str | float | None = None


class RegisterIn(msgspec.Struct, frozen=True):
    id: str
    name: str
    ip: str | None = None
    tailscale_ip: str | None = None
    type: str | None = None
    capabilities: CapabilitiesIn | None = None
    metrics: dict[str, float | None] | None = None
    current_task: str | None = None
    version: str | None = None

    def says(self, address: str) -> BuilderSays:
        """`address` is where it calls from, for one that does not say where it is."""
        if not _NAME.fullmatch(self.name):
            raise Invalid(
                "name must be up to 63 letters, digits and . _ -, such as drone-01", field="name"
            )
        able = self.capabilities or CapabilitiesIn()
        return BuilderSays(
            drone_id(self.id), self.name, tuple(self._addresses(address)), _cores(able.cores),
            _memory(able.ram_gb), able.auto_reboot is not False,
            _tree_at(able.portage_timestamp),
            text_of(self.version, "version", 64),
            text_of(self.current_task, "current_task") or None,
            _metrics(self.metrics or {}),
        )  # fmt: skip

    def _addresses(self, address: str) -> list[str]:
        found = []
        for field, value in (("ip", self.ip or address), ("tailscale_ip", self.tailscale_ip)):
            if value:
                if not _HOST.fullmatch(value):
                    raise Invalid(f"{field} must be an address or a host name", field=field)
                found.append(value)
        return found


def _cores(value: int | None) -> int:
    if value is None:
        return 0
    if not 0 <= value <= CORES_MAX:
        raise Invalid(f"capabilities.cores must be 0 to {CORES_MAX}", field="capabilities.cores")
    return value


def _tree_at(value: str | float | None) -> str:
    if isinstance(value, float):
        value = f"{value:.0f}"
    return text_of(value, "capabilities.portage_timestamp", 64)


def _memory(ram_gb: float | None) -> int:
    if ram_gb is None:
        return 0
    if not math.isfinite(ram_gb) or not 0 <= ram_gb <= RAM_GB_MAX:
        raise Invalid("capabilities.ram_gb must be a number of gigabytes",
                      field="capabilities.ram_gb")  # fmt: skip
    return int(ram_gb * GIB)


def _metrics(said: Mapping[str, float | None]) -> dict[str, float]:
    if len(said) > METRICS_MAX or any(len(name) > 64 for name in said):
        raise Invalid(f"at most {METRICS_MAX} metrics, with names of up to 64 characters",
                      field="metrics")  # fmt: skip
    return {n: float(v) for n, v in said.items() if v is not None and math.isfinite(v)}


def cores_of(query: Mapping[str, str]) -> int:
    return _cores(whole_of(query, "cores", 1, CORES_MAX))


_STATUSES = {"success", "failed", "returned", "masked", "upload_failed", "missing_binary"}


class CompleteIn(msgspec.Struct, frozen=True):
    id: str
    package: str
    status: str
    build_duration_s: float | None = None
    error_detail: str | None = None
    upload_failed: bool | None = None
    masked: bool | None = None
    missing_binary: bool | None = None

    def outcome(self) -> tuple[Outcome, str | None]:
        error = (self.error_detail or "")[:ERROR_CHARS_MAX] or None
        if self.status == "returned":
            return Outcome.RETURNED, error
        if self.status not in _STATUSES:
            raise Invalid("status must be success, failed or returned", field="status")
        # Some drones say it in a member of its own, others in the status.
        if self.masked or self.status == "masked":
            return Outcome.MASKED, error or "masked"
        if self.upload_failed or self.status == "upload_failed":
            return Outcome.NOT_UPLOADED, error or "the upload failed"
        if self.missing_binary or self.status == "missing_binary":
            return Outcome.FAILED, error or "it was built, and there is no binary package"
        return (Outcome.BUILT if self.status == "success" else Outcome.FAILED), error

    def duration_ms(self) -> int | None:
        took_s = self.build_duration_s
        if took_s is None:
            return None
        if not math.isfinite(took_s) or not 0 <= took_s <= 1e9:
            raise Invalid("build_duration_s must be a number of seconds", field="build_duration_s")
        return int(took_s * 1000)


class QueueIn(msgspec.Struct, frozen=True):
    packages: list[str]
    session_name: str | None = None


class ControlIn(msgspec.Struct, frozen=True):
    action: str
    target: str | None = None

    def control(self) -> Control:
        if self.action == "optimize":
            return Control.REBALANCE
        try:
            return Control(self.action)
        except ValueError:
            known = ", ".join(sorted([*Control, "optimize"]))
            raise Invalid(
                f"action {self.action[:100]!r} is none that there is; send one of {known}",
                field="action",
            ) from None


class TypeIn(msgspec.Struct, frozen=True):
    drone_type: str

    def sort(self) -> HostSort:
        try:
            return HostSort(self.drone_type)
        except ValueError:
            known = ", ".join(HostSort)
            raise Invalid(f"drone_type is none that there is; send one of {known}",
                          field="drone_type") from None  # fmt: skip


def flag(query: Mapping[str, str], name: str) -> bool:
    value = query.get(name)
    if value is None or value.lower() in _NO:
        return False
    if value.lower() in _YES:
        return True
    raise Invalid(f"{name} must be true or false", field=name)


def limit_of(query: Mapping[str, str], usual: int) -> int:
    return min(whole_of(query, "limit", usual, 10**15, low=1), LIMIT_MAX)


def since_ms(query: Mapping[str, str]) -> int:
    value = query.get("since")
    if value is None or value == "":
        return 0
    if not _FLOAT.fullmatch(value):
        raise Invalid("since must be a time in seconds since 1970", field="since")
    return int(float(value) * 1000)


def whole_of(query: Mapping[str, str], name: str, usual: int, high: int, low: int = 0) -> int:
    value = query.get(name)
    if value is None or value == "":
        return usual
    if not value.isascii() or not value.isdecimal() or len(value) > 15:
        raise Invalid(f"{name} must be a whole number", field=name)
    if not low <= int(value) <= high:
        raise Invalid(f"{name} must be {low} to {high}", field=name)
    return int(value)
