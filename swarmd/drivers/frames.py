"""What the daemon and the runner say to each other: orders, standings, starts and ends, and the
frames that carry them. Fields are only ever added; one that is not known is ignored.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec

from swarmd.domain.errors import TooLarge

VERSION = 1
FRAME_BYTES_MAX = 1024 * 1024
BATCH_BYTES = 512 * 1024
LEASE_S_MAX = 10 * 365 * 86400.0
"""As good as none: the longest lease that a runner takes."""


class AttemptOrder(msgspec.Struct, frozen=True, omit_defaults=True):
    """`env` is the job's whole environment, but for SWARMD_ATTEMPT, which the runner adds."""

    id: int
    dir: str
    argv: tuple[str, ...]
    reuse: str | None = None
    """The directory of an ended attempt, as good as new, to be renamed to `dir`."""
    env: dict[str, str] = {}
    uid: int | None = None
    gid: int | None = None
    timeout_ms: int | None = None
    grace_ms: int = 5000
    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    lease_ms: int | None = None
    """It ends so long after `lease_from_ns`, started or not, unless the lease is renewed."""
    lease_from_ns: int | None = None
    log_bytes_max: int | None = None


class AttemptStanding(msgspec.Struct, frozen=True):
    id: int
    status: str
    """waiting, running, ending or ended."""
    pid: int = 0
    started_boottime_ns: int | None = msgspec.field(default=None, name="started_ns")

    @property
    def age_s(self) -> float:
        """How long ago it was started; 0 where that is not known, or yet to come."""
        return 0.0 if self.started_boottime_ns is None else _age_s(self.started_boottime_ns)


class Refusal(msgspec.Struct, frozen=True):
    """An order that was not taken, and why; asking again may help only where the words say so."""

    id: int | None
    error: str


class Started(msgspec.Struct, frozen=True):
    """Left out for an attempt whose end is there to be told already."""

    id: int
    pid: int
    boottime_ns: int

    @property
    def age_s(self) -> float:
        return _age_s(self.boottime_ns)


class Ended(msgspec.Struct, frozen=True):
    """The whole tree is gone, and the record of it on the disk. Acknowledge it when yours is."""

    id: int
    reason: str
    """exit, timeout, stopped, lease, oom, lost or start_failed."""
    pid: int = 0
    exit_code: int | None = None
    signal: int | None = None
    error: str | None = None
    started_boottime_ns: int | None = msgspec.field(default=None, name="started_ns")
    """None where it never was, or before this machine was restarted."""
    ended_boottime_ns: int | None = msgspec.field(default=None, name="ended_ns")
    user_cpu_ms: float = 0.0
    sys_cpu_ms: float = 0.0
    max_rss_bytes: int = 0
    """0 where it was less than the runner itself takes, some 12 MB."""
    stdout_size: int = 0
    stderr_size: int = 0
    stdout_cut: tuple[int, int] | None = None
    """This range of the file is gone; the rest is at its own offsets."""
    stderr_cut: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    @property
    def started_age_s(self) -> float | None:
        return None if self.started_boottime_ns is None else _age_s(self.started_boottime_ns)

    @property
    def ended_age_s(self) -> float:
        return 0.0 if self.ended_boottime_ns is None else _age_s(self.ended_boottime_ns)

    @property
    def cuts(self) -> dict[str, tuple[int, int]]:
        """Stream to the range of its file that is gone."""
        both = {"stdout": self.stdout_cut, "stderr": self.stderr_cut}
        return {name: cut for name, cut in both.items() if cut is not None}


Event = Started | Ended
Events = list[Event]


class RunnerFacts(msgspec.Struct, frozen=True):
    """What the runner says of itself and of this machine when a connection begins."""

    pid: int
    version: int
    boot_id: str
    now_ns: int
    tracking: str
    """cgroup2, cgroup1, or proc where there is no cgroup to be had."""
    enforces: dict[str, bool]
    """memory, cpus, pids: are such limits kept?"""
    trouble: str = ""


class Frame(msgspec.Struct):
    """Every kind of frame that the runner sends; what a kind lacks stays empty."""

    kind: str
    seq: int | None = None
    error: str | None = None
    refused: list[Refusal] = []
    known: list[AttemptStanding] = []
    unknown: list[int] = []
    attempts: list[AttemptStanding] = []
    more: bool = False
    started: list[tuple[int, int, int]] = []
    ended: list[Ended] = []


FRAMES = msgspec.json.Decoder(Frame)
HELLOS = msgspec.json.Decoder(RunnerFacts)


def batches_of(orders: Sequence[AttemptOrder]) -> list[list[AttemptOrder]]:
    """As many as a frame may hold. TooLarge: one alone is over its bound."""
    batches: list[list[AttemptOrder]] = [[]]
    size = 0
    for order in orders:
        length = len(msgspec.json.encode(order))
        if length > FRAME_BYTES_MAX - 256:
            raise TooLarge(
                f"attempt {order.id}: arguments and environment take {length} bytes,"
                f" at most {FRAME_BYTES_MAX - 256} are possible",
                attempt_id=order.id,
            )
        if size + length > BATCH_BYTES and batches[-1]:
            batches.append([])
            size = 0
        batches[-1].append(order)
        size += length
    return batches if orders else []


def boottime_ns() -> int:
    """The clock that the runner goes by; it counts while the machine is suspended, too."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def _age_s(since_ns: int) -> float:
    return max(0.0, (boottime_ns() - since_ns) / 1e9)
