"""Reads that wait until a quorum has confirmed that its leader still leads.

They wait in the order in which they came: who confirms one confirms all before it.
"""

from __future__ import annotations

import msgspec

from mesh.raft.messages import Message


class ReadState(msgspec.Struct, frozen=True, gc=False):
    """The read with this context may be answered once this index has been applied."""

    index: int
    context: bytes


class PendingRead:
    __slots__ = ("acks", "index", "request")

    def __init__(self, request: Message, index: int) -> None:
        self.request = request
        self.index = index
        self.acks: dict[int, bool] = {}


class ReadQueue:
    __slots__ = ("_queue", "postponed")

    def __init__(self) -> None:
        self._queue: dict[bytes, PendingRead] = {}
        # Until the leader has committed an entry of its own term it does not know what is
        # committed; these came too early.
        self.postponed: list[Message] = []

    def __len__(self) -> int:
        return len(self._queue) + len(self.postponed)

    def add(self, request: Message, index: int) -> None:
        """One that came again keeps its place: its first index serves it as well."""
        if request.context not in self._queue:
            self._queue[request.context] = PendingRead(request, index)

    def acknowledge(self, peer: int, context: bytes) -> dict[int, bool]:
        """Who has confirmed this read by now; empty where it is not waited for (any more)."""
        read = self._queue.get(context)
        if read is None:
            return {}
        read.acks[peer] = True
        return read.acks

    def release_up_to(self, context: bytes) -> list[PendingRead]:
        released = []
        for waiting in list(self._queue):
            released.append(self._queue.pop(waiting))
            if waiting == context:
                break
        return released

    @property
    def last_context(self) -> bytes:
        """What a heartbeat carries, so that its answers confirm all reads there are."""
        return next(reversed(self._queue), b"")
