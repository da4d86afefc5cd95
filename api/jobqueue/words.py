"""The job queue's own words for the domain's priorities and standings, each way.

Both tables are total over the domain, so that nothing the swarm knows is without a word here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import overload

from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import AttemptStatus, JobStatus, Priority

PRIORITIES = {
    "foreground": Priority.FOREGROUND,
    "background": Priority.BACKGROUND,
    "best_effort": Priority.BEST_EFFORT,
}
STATUSES = {
    # An assigned job has a node but has not started, so its user still sees it wait.
    "pending": (JobStatus.PENDING, JobStatus.ASSIGNED),
    "running": (JobStatus.RUNNING,),
    "completed": (JobStatus.COMPLETED,),
    "failed": (JobStatus.FAILED,),
    "cancelled": (JobStatus.CANCELLED,),
}
ATTEMPT_WORDS: dict[AttemptStatus, str | None] = {
    AttemptStatus.ASSIGNED: None,
    AttemptStatus.RUNNING: "running",
    AttemptStatus.COMPLETED: "completed",
    AttemptStatus.FAILED: "failed",
    AttemptStatus.TIMEOUT: "timeout",
    AttemptStatus.CANCELLED: "failed",
    AttemptStatus.REVOKED: None,
    AttemptStatus.LOST: "timeout",
}
"""None: the attempt never started, so this dialect, which knows no such thing, leaves it out."""

_STATUS_WORDS = {status: word for word, statuses in STATUSES.items() for status in statuses}


def status_word(status: JobStatus) -> str:
    return _STATUS_WORDS[status]


def priority_word(priority: int) -> str:
    """The word for any integer: jobs that came in elsewhere may lie between the three."""
    if priority >= Priority.FOREGROUND:
        return "foreground"
    return "background" if priority >= Priority.BACKGROUND else "best_effort"


def priority_of(word: str) -> int:
    try:
        return PRIORITIES[word]
    except KeyError:
        raise Invalid(
            f"priority {word[:64]!r} is not known; use one of {', '.join(PRIORITIES)}",
            field="priority",
        ) from None


def statuses_of(word: str) -> tuple[JobStatus, ...]:
    try:
        return STATUSES[word]
    except KeyError:
        raise Invalid(
            f"status {word[:64]!r} is not known; use one of {', '.join(STATUSES)}",
            field="status",
        ) from None


@overload
def moment(at_ms: int) -> datetime: ...
@overload
def moment(at_ms: None) -> None: ...
def moment(at_ms: int | None) -> datetime | None:
    """Whole seconds in UTC, which the encoder writes as 2024-01-01T12:00:00Z."""
    return None if at_ms is None else datetime.fromtimestamp(at_ms // 1000, UTC)
