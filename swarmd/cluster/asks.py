"""Asks: what one node knows in its memory or on its disk and the replicated state does not hold."""

from __future__ import annotations

from typing import Any

import msgspec

from swarmd.cluster.handle import Ask, LogView
from swarmd.domain.jobs import AttemptId, JobId, NodeId


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


class ReadLogView(Ask[LogView], frozen=True):
    """Where the log of the swarm stands, as the node that is asked sees it."""


class HandOver(Ask[None], frozen=True):
    """Have another voter lead: for the node that leads. Refused as `Cluster.hand_over` is."""

    to: NodeId | None = None


AnyAsk = Beat | ListBeats | ReadLog | ReadClock | ReadLogView | HandOver

ANSWERS: dict[type[Any], Any] = {
    Beat: None,
    ListBeats: list[LastBeat],
    ReadLog: LogChunk,
    ReadClock: int,
    ReadLogView: LogView,
    HandOver: None,
}
"""What each is answered with, on the wire too."""
