"""A network in memory: every message is delayed by chance, and may be lost, doubled or overtaken.

Streams and calls keep what TCP promises; one-way messages do not get even that. Ways are between
hosts; peers are known by their ids, which a host may change.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from swarmd.sim.clockwork import Timers

if TYPE_CHECKING:
    from swarmd.sim.ports import SimPorts
    from swarmd.sim.wires import SimWires

NOTICED_S = 3.0
"""After so long a silent link counts as broken; as mesh.connection has it."""
CLOGGED_MAX = 10_000
"""So much is held on one way; what comes then is lost, as a full queue loses it."""

Way = tuple[str, str]
"""From a host to another."""


@dataclass
class Weather:
    delay_s: tuple[float, float] = (0.0005, 0.002)
    loss: float = 0.0
    doubled: float = 0.0


@dataclass
class Network:
    rng: random.Random
    timers: Timers
    weather: Weather = field(default_factory=Weather)
    noticed_s: float = 1.0
    """After so long a silent link counts as broken. Real ones take NOTICED_S."""
    links: dict[Way, Weather] = field(default_factory=dict)
    """Ways that have a weather of their own."""
    cut: set[Way] = field(default_factory=set)
    """Directions in which nothing passes."""
    clogged: dict[Way, deque[Callable[[], None]]] = field(default_factory=dict)
    """Directions in which everything waits, to come at once."""
    up: dict[str, SimWires] = field(default_factory=dict)
    """By the id of the peer."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Which peer is reached there."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Where a peer lives, unless its id is its host's name."""
    off: set[str] = field(default_factory=set)
    """Hosts without power: not even a kernel answers there."""
    stopped: set[str] = field(default_factory=set)
    """Hosts whose process is stopped for so long that its links count as broken."""
    ports: dict[str, SimPorts] = field(default_factory=dict)
    """Where datagrams are taken, by address."""
    delivered: int = 0
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Messages that their receiver took for an attack or a mistake."""
    on_send: Callable[[str, str, bytes], None] = lambda source, target, body: None
    in_transit: Callable[[str, str, str, bytes], bytes] = lambda method, source, target, data: data
    """What a stream's bytes become on their way."""
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How many of each kind reached whom."""
    trace: hashlib._Hash = field(default_factory=hashlib.sha256)
    """Over everything that was delivered, and when: two runs that differ differ here."""

    def host(self, peer: str) -> str:
        return self.hosts.get(peer, peer)

    def weather_of(self, way: Way) -> Weather:
        return self.links.get(way, self.weather) if self.links else self.weather

    def delay(self, way: Way | None = None) -> float:
        weather = self.weather if way is None else self.weather_of(way)
        return self.rng.uniform(*weather.delay_s)

    def passes(self, source: str, target: str) -> bool:
        """From one peer to another."""
        return target in self.up and (
            not self.cut or (self.host(source), self.host(target)) not in self.cut
        )

    def carry(self, way: Way, then: Callable[[], None]) -> None:
        """What is to happen at the other end, in the time that the way takes."""
        if self.clogged and (held := self.clogged.get(way)) is not None:
            if len(held) < CLOGGED_MAX:
                held.append(then)
            return
        self.timers.after(self.delay(way), then)

    def carry_loosely(self, way: Way, then: Callable[[], None]) -> None:
        """The same without a promise: it may be lost, or come twice."""
        weather, rng = self.weather_of(way), self.rng
        if way in self.cut or (weather.loss and rng.random() < weather.loss):
            return
        self.carry(way, then)
        if weather.doubled and rng.random() < weather.doubled:
            self.carry(way, then)

    def clog(self, source: str, target: str) -> None:
        """From now on what goes this way waits, and nobody is told."""
        self.clogged.setdefault((source, target), deque())

    def unclog(self) -> None:
        """What waited comes in a burst."""
        clogged, self.clogged = self.clogged, {}
        for way, held in clogged.items():
            for then in held:
                self.timers.after(self.delay(way), then)

    def note(self, kind: str, source: str, target: str, body: bytes) -> None:
        self.delivered += 1
        self.kinds[kind, target] += 1
        self.trace.update(f"{trio.current_time():.6f} {kind} {source} {target} ".encode() + body)

    def isolate(self, *names: str) -> None:
        """Between these hosts and all others nothing passes."""
        for other in {self.host(peer): None for peer in self.addresses.values()}:
            if other not in names:
                for name in names:
                    self.cut |= {(name, other), (other, name)}
        self._broken()

    def cut_one_way(self, source: str, target: str) -> None:
        self.cut.add((source, target))
        self._broken()

    def heal(self) -> None:
        self.cut.clear()
        for wires in list(self.up.values()):
            for other in list(self.up):
                if other != wires.me:
                    wires.tell(other, True, "the network is back")

    def _broken(self) -> None:
        for wires in list(self.up.values()):
            self.timers.after(self.noticed_s, wires.notice_silence)

    def note_stopped(self, host: str, stopped: bool) -> None:
        """Its links broke by its silence, or it is back."""
        (self.stopped.add if stopped else self.stopped.discard)(host)
        why = "silent" if stopped else "it goes on"
        mine = [wires for wires in self.up.values() if wires.host == host]
        others = [wires for wires in self.up.values() if wires.host != host]
        for wires in mine:
            for other in others:
                other.tell(wires.me, not stopped, why)
                if not stopped:
                    wires.tell(other.me, False, "it was closed meanwhile")
                    wires.tell(other.me, True, "dialed anew")
