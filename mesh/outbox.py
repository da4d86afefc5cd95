"""What waits to be written to one connection: urgent frames in order, then bulk in fair turns.

Urgent frames are encoded as they come, so that all of one tick leave in one write. Bulk is asked
for piece by piece when the writer is free, so that an urgent frame waits for one piece at most.
"""

from __future__ import annotations

from collections import deque
from typing import Protocol

from mesh.frames import CHUNK_BYTES_MAX, Frame, append


class Bulk(Protocol):
    """Something with pieces to send, in turns with others like it."""

    def fill(self, buffer: bytearray) -> bool:
        """Append one frame at most. True: there is more, and it may go now."""


class Parcel:
    """One large frame of its own. Withdrawn before its turn, it is never sent."""

    def __init__(self, frame: Frame, size: int) -> None:
        self._frame: Frame | None = frame
        self.size = size
        self.taken = False

    def withdraw(self) -> None:
        self._frame = None

    def fill(self, buffer: bytearray) -> bool:
        if self._frame is not None:
            append(buffer, self._frame)
            self._frame = None
            self.taken = True
        return False


class Outbox:
    def __init__(self, bytes_max: int, frames_max: int) -> None:
        self._bytes_max = bytes_max
        self._frames_max = frames_max
        self._urgent = bytearray()
        self._bulk: deque[Bulk] = deque()
        self._frames = 0
        self._writing_bytes = 0
        self._writing_frames = 0
        self._parcels = 0
        self._parcel_bytes = 0
        self.pushed = 0
        """Urgent frames so far; each has this number as it is pushed."""
        self.taken = 0
        """The number of the last urgent frame that was given to the writer."""

    def __bool__(self) -> bool:
        return bool(self._urgent or self._bulk)

    @property
    def bulky(self) -> bool:
        """What waits is not only urgent."""
        return bool(self._bulk)

    @property
    def size(self) -> int:
        """Bytes that wait or are being written; what streams hold themselves is not counted."""
        return len(self._urgent) + self._writing_bytes + self._parcel_bytes

    def room(self, size: int) -> bool:
        return (
            self._frames + self._writing_frames + self._parcels < self._frames_max
            and self.size + size <= self._bytes_max
        )

    def push(self, frame: Frame) -> int:
        """Takes any frame; who sends by choice asks for room first."""
        append(self._urgent, frame)
        self._frames += 1
        self.pushed += 1
        return self.pushed

    def push_bulk(self, bulk: Bulk) -> None:
        if isinstance(bulk, Parcel):
            self._parcels += 1
            self._parcel_bytes += bulk.size
        self._bulk.append(bulk)

    def take(self) -> bytearray:
        """What is to be written next: all that is urgent, and where that is little a piece of
        bulk. Call `written` when it has been."""
        buffer = self._urgent
        self._urgent = bytearray()
        self._writing_frames = self._frames
        self._frames = 0
        self.taken = self.pushed
        if self._bulk and len(buffer) < CHUNK_BYTES_MAX:
            bulk = self._bulk.popleft()
            if isinstance(bulk, Parcel):
                self._parcels -= 1
                self._parcel_bytes -= bulk.size
            if bulk.fill(buffer):
                self._bulk.append(bulk)
        self._writing_bytes = len(buffer)
        return buffer

    def written(self) -> None:
        self._writing_bytes = self._writing_frames = 0
