"""Vouching: an index that covers all that was acknowledged, by the word of a quorum asked after the
caller came. Those who come together share a word; one that was lost is asked for again.

Whoever is not in a hurry gets the word that comes with the leader's next heartbeat: it costs no
message.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from mesh.raft import RawNode, ReadDropped
from mesh.timing import Timing


@dataclass(slots=True, eq=False)
class _Read:
    """What several wait for."""

    done: trio.Event = field(default_factory=trio.Event)
    context: bytes = b""
    asked_at: float = -math.inf
    index: int | None = None


class Vouching:
    def __init__(
        self, node: RawNode, timing: Timing, prefix: bytes, *, leads: Callable[[], bool],
        knows: Callable[[], bool], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        """`knows`: whether this node, as the leader, knows what is committed."""
        self._node = node
        self._timing = timing
        self._prefix = prefix
        self._leads = leads
        self._knows = knows
        self._wake = wake
        self._number = 0
        self._gathering: _Read | None = None
        self._flying: _Read | None = None
        self._patient: _Read | None = None
        """Waits for the next heartbeat."""
        self._beating: _Read | None = None
        """Went with a heartbeat."""

    @property
    def wanted(self) -> bool:
        """There is something to ask for at once."""
        return self._flying is not None or self._gathering is not None

    async def read(self) -> int:
        """Waits for a leader."""
        if self._gathering is None:
            self._gathering = _Read()
            self._wake()
        read = self._gathering
        await read.done.wait()
        assert read.index is not None
        return read.index

    async def read_with_heartbeat(self) -> int | None:
        """On the leader. None: it led no longer, before the word came."""
        if not self._leads():
            return None
        if self._node.core.alone:
            return await self.read()
        if self._patient is None:
            self._patient = _Read()
        read = self._patient
        await read.done.wait()
        return read.index

    def ask(self) -> None:
        """One read is under way at a time; those who come meanwhile share the next, because theirs
        must begin after them."""
        if self._leads() and not self._knows():
            return  # what it commits wakes us
        now = trio.current_time()
        if self._flying is None:
            self._flying, self._gathering = self._gathering, None
        elif now - self._flying.asked_at < self._timing.read_again_s:
            return
        if self._flying is None:
            return
        self._flying.asked_at = now
        if not self._send(self._flying, at_once=True):
            self._flying.asked_at = -math.inf

    def ask_with_heartbeat(self) -> None:
        """Before the ticks with which one may be due. A word that was lost comes with the answers
        to later heartbeats: they carry the newest of all that is waited for."""
        if self._patient is None or self._beating is not None or not self._knows():
            return
        if self._send(self._patient, at_once=False):
            self._beating, self._patient = self._patient, None

    def answered(self, context: bytes, index: int) -> None:
        if self._flying is not None and self._flying.context == context:
            _settle(self._flying, index)
            self._flying = None
            self._wake()
        elif self._beating is not None and self._beating.context == context:
            _settle(self._beating, index)
            self._beating = None

    def forget(self) -> None:
        """Another leads, or in another term: what the core was asked for may be lost."""
        if self._flying is not None:
            self._flying.asked_at = -math.inf
            self._wake()
        for read in (self._beating, self._patient):
            if read is not None:
                read.done.set()
        self._beating = self._patient = None

    def _send(self, read: _Read, *, at_once: bool) -> bool:
        self._number += 1
        read.context = self._prefix + self._number.to_bytes(8, "big")
        try:
            self._node.read_index(read.context, at_once=at_once)
        except ReadDropped:
            return False
        return True


def _settle(read: _Read, index: int) -> None:
    read.index = index
    read.done.set()
