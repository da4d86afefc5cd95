"""Spans: how many jobs stand so within each run of SPAN_JOBS numbers, so that a page far down is
found by adding up a few counts. Whatever changes a job's status counts it here, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from swarmd.domain.jobs import JobStatus
from swarmd.state.tx import Tx

SPAN_BITS = 11
SPAN_JOBS = 2**SPAN_BITS
ALL_TYPES = ""
"""In the column of the type: the sum over all types. No job has an empty type."""

_ADD = "INSERT INTO spans VALUES (?,?,?,?,?,?) ON CONFLICT DO UPDATE SET n = n + excluded.n"
_DROP = (
    "DELETE FROM spans WHERE kind = ? AND type = ? AND span = ? AND status = ? AND priority = ?"
    " AND n = 0"
)
"""Nothing is left of what came to nothing: a state that was counted anew is the same."""


class Tally:
    """What one command moves, gathered: written once, by the command's rule at its end."""

    def __init__(self) -> None:
        self._gathered: dict[tuple[str, int, str, int, str], int] = {}

    def add(self, kind: str, seq: int, status: str, priority: int, type_: str, n: int) -> None:
        key = (kind, seq >> SPAN_BITS, status, priority, type_)
        self._gathered[key] = self._gathered.get(key, 0) + n

    def write(self, tx: Tx) -> None:
        rows = [
            (kind, counted, span, status, priority, n)
            for (kind, span, status, priority, type_), n in self._gathered.items()
            if n
            for counted in (type_, ALL_TYPES)
        ]
        tx.executemany(_ADD, rows)
        tx.executemany(_DROP, [row[:5] for row in rows if row[5] < 0])
        self._gathered.clear()


class Standing(Protocol):
    """What counting needs to know of a job."""

    seq: int
    kind: str
    type: str
    priority: int
    status: JobStatus
    tally: Tally | None
    """Of a command about many jobs. Without one, what is counted is written at once."""


def count_new(
    tx: Tx, tally: Tally, seq: int, kind: str, priority: int, type_: str
) -> None:  # fmt: skip
    """A pending job came in."""
    tx.count(kind, JobStatus.PENDING, priority, type_, 1)
    tally.add(kind, seq, JobStatus.PENDING.value, priority, type_, 1)


def count_move(tx: Tx, job: Standing, to: JobStatus) -> None:
    """`job` leaves the status that it has for another."""
    tally = job.tally or Tally()
    for status, n in ((job.status, -1), (to, 1)):
        tx.count(job.kind, status, job.priority, job.type, n)
        tally.add(job.kind, job.seq, status.value, job.priority, job.type, n)
    if job.tally is None:
        tally.write(tx)


def count_gone(tx: Tx, jobs: Iterable[tuple[int, str, str, int, str]]) -> None:
    """Jobs are forgotten, each (seq, kind, status, priority, type)."""
    tally = Tally()
    for seq, kind, status, priority, type_ in jobs:
        tx.count(kind, JobStatus(status), priority, type_, -1)
        tally.add(kind, seq, status, priority, type_, -1)
    tally.write(tx)
