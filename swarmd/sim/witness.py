"""The witness: sees what every host sends and applies, and speaks up at the first broken rule.

One leader a term; one entry at each place of the log, whoever applies it; nothing applied that is
not on the disks of a majority; no entry skipped or applied twice; time that never goes backwards;
the same history after the same entries.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence

import msgspec

from mesh.raft import MemoryStorage, Message, MessageKind
from swarmd.state.commands import Batch, PutSetting
from swarmd.state.machine import Place
from swarmd.state.store import Slot

_OF_A_LEADER = {MessageKind.APPEND, MessageKind.HEARTBEAT, MessageKind.SNAPSHOT}


class Broken(AssertionError):
    """A rule that holds for every run was broken in this one."""


class Witness:
    def __init__(self) -> None:
        self.leaders: dict[int, str] = {}
        """By term."""
        self.entries: dict[int, tuple[int, bytes]] = {}
        """Term and content by index, as applied first."""
        self.order: dict[bytes, int] = {}
        """Where each value that a client wrote came first in the log."""
        self.voters: Callable[[], Mapping[str, MemoryStorage] | None] = lambda: None
        """The disks of those who vote, while nobody comes or goes; None: not to be judged now."""
        self._histories: dict[int, tuple[str, object]] = {}
        self._last = 0
        self._last_at = 0

    def sent(self, source: str, target: str, body: bytes) -> None:
        message = _decode_head(body)
        if message.kind in _OF_A_LEADER:
            first = self.leaders.setdefault(message.term, source)
            if first != source:
                raise Broken(f"{first} and {source} both lead in term {message.term}")

    def applies(self, name: str, place: Place, slots: Sequence[Slot], upto: Place) -> None:
        if not slots:
            return
        if slots[0].index != place.index + 1 or upto.index != slots[-1].index:
            raise Broken(f"{name} applies {slots[0].index} to {upto.index} after {place.index}")
        disks = self.voters()
        for slot in slots:
            entry = (slot.term, slot.data)
            known = self.entries.setdefault(slot.index, entry)
            if known != entry:
                raise Broken(f"{name} applies another entry {slot.index} than others did")
            if slot.index > self._last:
                self._first_applied(name, slot, disks)

    def _first_applied(
        self, name: str, slot: Slot, disks: Mapping[str, MemoryStorage] | None
    ) -> None:
        self._last = slot.index
        if slot.data:
            batch = _decode_batch(slot.data)
            if batch.at < self._last_at:
                raise Broken(f"time goes back from {self._last_at} to {batch.at} at {slot.index}")
            self._last_at = batch.at
            for request in batch.requests:
                if isinstance(request.command, PutSetting):
                    self.order.setdefault(request.command.value, len(self.order))
        if disks is None:
            return
        having = [n for n, disk in disks.items() if _holds(disk, slot.index, slot.term)]
        if 2 * len(having) <= len(disks):
            raise Broken(f"{name} applies {slot.index}, which only {having} of {[*disks]} have")

    def applied(self, name: str, place: Place, conn: sqlite3.Connection) -> None:
        row = conn.execute("SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1").fetchone()
        first, history = self._histories.setdefault(place.index, (name, row))
        if history != row:
            raise Broken(f"{name} and {first} differ after entry {place.index}")

    def installed(self, name: str, place: Place) -> None:
        if place.index > self._last:
            raise Broken(f"{name} was given a copy at {place.index}, and only {self._last} is done")

    def check_logs(self, disks: Mapping[str, MemoryStorage]) -> None:
        """Where two logs have the same term at an index, they are the same up to there."""
        names = sorted(disks)
        for i, one in enumerate(names):
            for other in names[i + 1 :]:
                _check_match(one, disks[one], other, disks[other])


def _check_match(one: str, a: MemoryStorage, other: str, b: MemoryStorage) -> None:
    low = max(a.first_index(), b.first_index())
    high = min(a.last_index(), b.last_index())
    while high >= low and a.term(high) != b.term(high):
        high -= 1
    if high >= low:
        mine, theirs = a.entries(low, high + 1), b.entries(low, high + 1)
        if list(mine) != list(theirs):
            raise Broken(f"the logs of {one} and {other} differ below {high}, where they agree")


def _holds(disk: MemoryStorage, index: int, term: int) -> bool:
    if index < disk.first_index():
        return True
    return index <= disk.last_index() and disk.term(index) == term


class _Head(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Of a Message: what the rules need of it."""

    kind: MessageKind
    to: int
    sender: int = 0
    term: int = 0


assert Message.__struct_fields__[:4] == _Head.__struct_fields__
_decode_head = msgspec.msgpack.Decoder(_Head).decode
_decode_batch = msgspec.msgpack.Decoder(Batch).decode
