"""What the core wants done: fetched with `take` after each call, and done by its owner in order."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

import msgspec

from mesh.swim.broadcasts import Broadcasts
from mesh.swim.messages import MESSAGES_MAX, PACK_BYTES, SPOKEN, pack
from mesh.swim.roster import MemberView

SockAddr = tuple[str, int] | tuple[str, int, int, int]
"""As a socket has it: where a datagram came from, and its answer goes."""
To = str | SockAddr


class Datagram(NamedTuple):
    to: To
    payload: bytes


class Knock(NamedTuple):
    """Try a fresh connection to the member; then tell `knocked` what came of it."""

    number: int
    peer: str
    timeout_s: float


class Knocked(Enum):
    ANSWERED = "answered"
    SILENT = "silent"
    HELD = "held"
    """Its host takes connections, and no process answers them: it is stopped, or starved."""
    REFUSED = "refused"
    """Its host says that nobody listens on any of its addresses."""


class SyncWanted(NamedTuple):
    """Push-pull over the wires, with a member or whoever answers at the address."""

    peer: str | None
    address: str | None


class Change(Enum):
    JOINED = "joined"
    SUSPECTED = "suspected"
    CLEARED = "cleared"
    DIED = "died"
    RETURNED = "returned"
    LEFT = "left"
    UPDATED = "updated"
    FORGOTTEN = "forgotten"


class MemberChanged(NamedTuple):
    change: Change
    member: MemberView


class NameConflict(NamedTuple):
    name: str
    kept_by: str
    others: tuple[str, ...]


class OwnIdTaken(NamedTuple):
    """Another process speaks under this node's id: a copied data directory, most likely."""

    addresses: tuple[str, ...]


Event = MemberChanged | NameConflict | OwnIdTaken


class Output(NamedTuple):
    datagrams: list[Datagram]
    knocks: list[Knock]
    syncs: list[SyncWanted]
    events: list[Event]

    def __bool__(self) -> bool:
        return bool(self.datagrams or self.knocks or self.syncs or self.events)


class SwimCounts(msgspec.Struct):
    """Totals since this node started."""

    datagrams: int = 0
    bytes: int = 0
    probes: int = 0
    probes_failed: int = 0
    udp_silent: int = 0
    """Probes that only a connection answered: datagrams do not pass."""
    refutations: int = 0
    stalls: int = 0
    unknown_kinds: int = 0
    dropped: dict[str, int] = {}
    """By reason."""

    def drop(self, reason: str) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + 1


class Outbox:
    """Datagrams take along as much news as they hold."""

    def __init__(self, news: Broadcasts, counts: SwimCounts, payload_bytes_max: int) -> None:
        self._news = news
        self._counts = counts
        self._room = payload_bytes_max - PACK_BYTES
        self.times_max = 1
        """How often each of the news is told; the core follows the number of members."""
        self._out = Output([], [], [], [])

    def send(self, to: To, messages: list[bytes]) -> None:
        room = self._room - sum(map(len, messages))
        news = self._news.take(room, MESSAGES_MAX - len(messages), self.times_max)
        if messages or news:
            payload = pack(SPOKEN, messages + news)
            self._counts.datagrams += 1
            self._counts.bytes += len(payload)
            self._out.datagrams.append(Datagram(to, payload))

    def knock(self, number: int, peer: str, timeout_s: float) -> None:
        self._out.knocks.append(Knock(number, peer, timeout_s))

    def sync(self, peer: str | None, address: str | None = None) -> None:
        wanted = SyncWanted(peer, address)
        if wanted not in self._out.syncs:
            self._out.syncs.append(wanted)

    def tell(self, event: Event) -> None:
        self._out.events.append(event)

    def take(self) -> Output:
        out = self._out
        if out:
            self._out = Output([], [], [], [])
        return out
