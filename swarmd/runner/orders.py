"""Orders: what the daemon wants run. One not wholly understood is refused, never guessed."""

from __future__ import annotations

from typing import Any

ID_MAX = 2**63 - 1
ARGUMENTS_MAX = 10_000
ENVIRONMENT_MAX = 10_000
ARGUMENT_BYTES_MAX = 128 * 1024 - 1
"""The kernel's own bound on one string."""
PATH_BYTES_MAX = 4000
DURATION_MS_MAX = 10 * 365 * 24 * 3600 * 1000
ID_32_MAX = 2**32 - 2
GRACE_MS = 5000
NS_PER_MS = 1_000_000

ATTEMPT_VARIABLE = "SWARMD_ATTEMPT"


class Order:
    """One attempt to be started, checked and in the form that the system calls take."""

    __slots__ = (
        "argv", "cpus", "dir", "env", "gid", "grace_ms", "id", "lease_ns", "log_bytes_max",
        "memory_bytes", "pids", "reuse", "timeout_ms", "uid",
    )  # fmt: skip

    def __init__(self, raw: dict[str, Any], tag: str, now_ns: int) -> None:
        """Raise ValueError with a message for people where `raw` cannot be run as it is."""
        self.id = attempt_id(raw.get("id"))
        self.dir: str = raw.get("dir")  # type: ignore[assignment]
        if type(self.dir) is not str or not self.dir.startswith("/"):
            raise ValueError("dir: give an absolute path")
        if len(_bytes("dir", self.dir)) > PATH_BYTES_MAX:
            raise ValueError(f"dir: longer than {PATH_BYTES_MAX} bytes")
        self.reuse: str | None = raw.get("reuse")
        if self.reuse is not None:
            if type(self.reuse) is not str or not self.reuse.startswith("/"):
                raise ValueError("reuse: give an absolute path")
            _bytes("reuse", self.reuse)
        argv = raw.get("argv")
        if type(argv) is not list or not argv or len(argv) > ARGUMENTS_MAX or not argv[0]:
            raise ValueError(f"argv: give a program and at most {ARGUMENTS_MAX - 1} arguments")
        self.argv = [_bytes("argv", item) for item in argv]
        env = raw.get("env", {})
        if type(env) is not dict or len(env) > ENVIRONMENT_MAX:
            raise ValueError(f"env: give at most {ENVIRONMENT_MAX} names with values")
        self.env = {_name(key): _bytes("env", value) for key, value in env.items()}
        self.env[ATTEMPT_VARIABLE.encode()] = tag.encode()
        self.uid = _whole(raw, "uid", 0, ID_32_MAX)
        self.gid = _whole(raw, "gid", 0, ID_32_MAX)
        if (self.uid is None) != (self.gid is None):
            raise ValueError("uid and gid: give both or neither")
        self.timeout_ms = _whole(raw, "timeout_ms", 1, DURATION_MS_MAX)
        lease_ms = _whole(raw, "lease_ms", 1, DURATION_MS_MAX)
        self.lease_ns: int | None = None
        """When it must have ended, started or not. None: whenever it does."""
        if lease_ms is not None:
            self.lease_ns = lease_end_ns(lease_ms, raw.get("lease_from_ns"), now_ns)
        grace_ms = _whole(raw, "grace_ms", 0, DURATION_MS_MAX)
        self.grace_ms = GRACE_MS if grace_ms is None else grace_ms
        self.memory_bytes = _whole(raw, "memory_bytes", 1, ID_MAX)
        self.pids = _whole(raw, "pids", 1, 2**22)
        self.log_bytes_max = _whole(raw, "log_bytes_max", 64 * 1024, ID_MAX)
        cpus = raw.get("cpus")
        if cpus is not None and (type(cpus) not in (int, float) or not 0.01 <= cpus <= 100_000):
            raise ValueError("cpus: give a number from 0.01 on")
        self.cpus: float | None = cpus

    @property
    def limited(self) -> bool:
        return self.memory_bytes is not None or self.cpus is not None or self.pids is not None


def attempt_id(value: object) -> int:
    if type(value) is not int or not 0 <= value <= ID_MAX:
        raise ValueError("id: give a whole number from 0 to 2**63-1")
    return value


def duration_ms(value: object) -> int:
    if type(value) is not int or not 0 <= value <= DURATION_MS_MAX:
        raise ValueError(f"give whole milliseconds from 0 to {DURATION_MS_MAX}")
    return value


def lease_end_ns(lease_ms: int, from_ns: object, now_ns: int) -> int:
    """Counted from when it was asked for, where that is told: an answer that took its time has
    used it up. A time to come is none that anybody can have asked at."""
    if from_ns is None:
        from_ns = now_ns
    if type(from_ns) is not int or from_ns < 0:
        raise ValueError("from_ns: give a time since boot in whole nanoseconds")
    return min(from_ns, now_ns) + lease_ms * NS_PER_MS


def _whole(raw: dict[str, Any], key: str, least: int, most: int) -> int | None:
    value = raw.get(key)
    if value is None:
        return None
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{key}: give a whole number from {least} to {most}")
    return value


def _bytes(what: str, value: object) -> bytes:
    if type(value) is not str:
        raise ValueError(f"{what}: give text")
    try:
        data = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ValueError(f"{what}: holds half a surrogate pair") from None
    if b"\0" in data:
        raise ValueError(f"{what}: holds a NUL byte")
    if len(data) > ARGUMENT_BYTES_MAX:
        raise ValueError(f"{what}: one string is longer than {ARGUMENT_BYTES_MAX} bytes")
    return data


def _name(value: object) -> bytes:
    data = _bytes("env", value)
    if not data or b"=" in data:
        raise ValueError("env: a name is empty or holds '='")
    return data
