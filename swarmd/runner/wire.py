"""Frames between the daemon and the runner: one JSON object a line, at most 1 MiB each.

The protocol is versioned by `hello`, and grows by fields and kinds only: a field that is not known
is ignored, a kind that is not known is answered with an `error` frame, so that a daemon and a
runner of neighbouring versions live together across an upgrade. A daemon has a runner of another
version end as soon as that holds nothing, and starts its own: a program that is to take the place
of those that run has a new version, even where the frames are the same.

To the runner (`seq` comes back in the reply):
  hello {version, credit, slots}    takes the place of the connection before; events begin;
                                    at most `slots` attempts run at once, further ones wait
  ping                              answered with pong, without taking anybody's place
  start {seq, orders: [order]}      reply {refused: [{id, error}], known: [standing]}; an order with
                                    lease_ms ends so long after lease_from_ns (boot time), or
                                    after it came; also while it waits
  stop {seq, ids | null, grace_ms}  reply {unknown: [id]}; null means all
  renew {seq, ids, lease_ms, from_ns} reply {unknown: [id]}; counted from then, or from now
  ack {seq, ids}                    reply {}; these ends are on the daemon's disk now
  list {seq}                        list {attempts: [standing], more} as often as needed
  quit {seq, jobs}                  reply {}; with jobs their end, else when the last has ended
  credit {n}                        the daemon has taken n events and can hold n more
From the runner: hello, pong, reply, list, error {error}, and
  events {started: [[id, pid, boot_ns]], ended: [end]}
"""

from __future__ import annotations

import json
from typing import Any

VERSION = 1
FRAME_BYTES_MAX = 1024 * 1024
CREDIT_MAX = 65_536

Frame = dict[str, Any]


class BrokenFrameError(Exception):
    """What came is no frame; the connection it came on is of no more use."""


_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def dumps(value: object) -> str:
    return _encode(value)


def encode(frame: Frame) -> bytes:
    return _encode(frame).encode("ascii") + b"\n"


class Decoder:
    """Bytes in, frames out. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Frame]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > FRAME_BYTES_MAX or any(len(i) > FRAME_BYTES_MAX for i in lines):
            raise BrokenFrameError(f"a frame is longer than {FRAME_BYTES_MAX} bytes")
        return [self._decode(line) for line in lines]

    @staticmethod
    def _decode(line: bytes) -> Frame:
        try:
            frame = json.loads(line)
        except (ValueError, RecursionError) as exc:
            raise BrokenFrameError("a frame is not JSON") from exc
        if type(frame) is not dict or type(frame.get("kind")) is not str:
            raise BrokenFrameError("a frame is not an object with a kind")
        return frame
