"""Builds: packages that builders make, one job each, and what is kept of a builder.

A package waits until it is ready, is held by a builder, and ends well; where builders fail it, it
is blocked for a while, and where none ever could, it is put aside until somebody says otherwise.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from swarmd.domain.jobs import GroupId, JobId, NodeId

BLOCKED = "blocked"
ASIDE = "aside"
"""Why a package is not ready: builders failed it; or it cannot be built as things stand."""
OUTSIDE = "builder/"
"""Goes before the id that a builder gave itself which runs no node of ours."""
SWEEPER = "sweeper-"
"""Builders with such names get what is blocked, and nothing else."""

BUILDERS_FAILED_MAX = 2
FAILURES_MAX = 5
"""So many builders, or failures in all, block a package."""
BLOCKED_MS = 30 * 60_000
FAILURES_IN_A_ROW_MAX = 8
GROUNDED_MS = 5 * 60_000
UPLOADS_FAILED_MAX = 3
NO_WORK_MS = 30 * 60_000
BUILD_S_MAX = 7 * 86_400.0
ERROR_CHARS_MAX = 4000
BUILDERS_MAX = 1000
HISTORY_MAX = 100_000
STAGED_BYTES_MIN = 1024
"""What is smaller is no binary package."""
STAGED_MAX = 32
"""Files of one builder that wait for the end of their builds."""
STAGED_MS_MAX = 24 * 3600_000
"""What nobody has reported by then is dropped."""
VIRTUAL = "virtual/"
"""Packages of this category have no files, and need no binary package."""


def prefetch(cores: int) -> int:
    """How many packages a builder that holds none is given at once."""
    return min(max(1, cores // 4), 2)


class HostSort(StrEnum):
    """What a builder is, which decides whether it may be rebooted."""

    LXC = "lxc"
    QEMU = "qemu"
    BARE_METAL = "bare-metal"
    UNKNOWN = "unknown"

    @property
    def may_reboot(self) -> bool:
        return self in (HostSort.LXC, HostSort.QEMU)


class Builder(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the swarm has agreed on about a builder, beside its node. Whether it is there just now,
    and what it is busy with, is in the leader's memory."""

    node_id: NodeId
    sort: HostSort = HostSort.UNKNOWN
    auto_reboot: bool = True
    tree_at: str = ""
    """Of when its Portage tree is, in its own words."""
    paused: bool = False
    online: bool = False
    failures: int = 0
    """In a row."""
    grounded_until: int | None = None
    groundings: int = 0
    """Since it last built anything."""
    upload_failures: int = 0
    no_work_until: int | None = None
    """Its uploads kept failing."""
    completed: int = 0
    failed: int = 0
    revision: int = 0

    def gets_work(self, at: int) -> bool:
        return not (
            self.paused
            or (self.grounded_until is not None and at < self.grounded_until)
            or (self.no_work_until is not None and at < self.no_work_until)
        )


class Outcome(StrEnum):
    """Of a build, as its builder says."""

    BUILT = "built"
    FAILED = "failed"
    MASKED = "masked"
    """As things are configured nobody may build it."""
    RETURNED = "returned"
    """It did not begin, or gave up for reasons of its own."""
    NOT_UPLOADED = "not uploaded"
    """It was built, and did not come to the binary host."""


class Build(msgspec.Struct, frozen=True):
    """One try that came to an end, kept longer than its job."""

    id: int
    job_id: JobId
    package: str
    node_id: NodeId
    node_name: str
    ok: bool
    duration_ms: int
    error: str | None
    session_id: GroupId | None
    at: int


class Control(StrEnum):
    PAUSE = "pause"
    RESUME = "resume"
    UNBLOCK = "unblock"
    BLOCK = "block"
    UNGROUND = "unground"
    RESET = "reset"
    REBALANCE = "rebalance"
    RECLAIM = "reclaim"
    CLEAR_FAILURES = "clear_failures"
    RETRY_FAILURES = "retry_failures"
    CLEAR_HISTORY = "clear_history"


class Controlled(msgspec.Struct, frozen=True):
    done: int
    left: int
    """So many are to be done by further ones."""
