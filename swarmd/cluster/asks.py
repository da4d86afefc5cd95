"""Asks: what one node knows in its memory or on its disk and the replicated state does not hold."""

from __future__ import annotations

from typing import Any

import msgspec

from swarmd.cluster.handle import Ask
from swarmd.domain.jobs import AttemptId, JobId


class Beat(Ask[None], frozen=True):
    """An executor's sign of life for the job it runs; the leader keeps it in memory."""

    executor: str
    job_id: JobId


class LastBeat(msgspec.Struct, frozen=True):
    executor: str
    at: int
    """Milliseconds since 1970, by the leader's clock."""


class ListBeats(Ask["list[LastBeat]"], frozen=True):
    """Executors that gave a sign of life lately."""


class ReadLog(Ask["LogChunk"], frozen=True):
    """Bytes of an attempt's output from an offset on. With `wait_s` it waits that long for some."""

    attempt_id: AttemptId
    stream: str
    offset: int
    bytes_max: int = 65536
    wait_s: float = 0.0


class LogChunk(msgspec.Struct, frozen=True):
    data: bytes
    next_offset: int
    """Past `offset` plus the data where a hole was cut out of a log that grew too long."""
    ended: bool
    """The attempt is over and this reaches the end of its log."""


class ReadClock(Ask[int], frozen=True):
    """The node's own clock, in milliseconds since 1970."""


AnyAsk = Beat | ListBeats | ReadLog | ReadClock

ANSWERS: dict[type[Any], Any] = {
    Beat: None,
    ListBeats: list[LastBeat],
    ReadLog: LogChunk,
    ReadClock: int,
}
"""What each is answered with, on the wire too."""
