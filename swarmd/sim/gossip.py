"""Many Swims on one network in memory, with a clock that jumps: no tasks, no threads, one seed.

Hosts are killed, stopped and cut off; datagrams are lost, doubled and delayed; connections do what
a kernel would do for each of these.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mesh.swim import (
    LAN,
    Change,
    Dropped,
    Event,
    Knock,
    Knocked,
    MemberChanged,
    Self,
    Settings,
    State,
    Swim,
    SyncWanted,
)
from mesh.swim.messages import Alive, decode_ask, decode_words
from mesh.swim.roster import keep

SOCKET_PACKETS_MAX = 270
"""As many small datagrams as a kernel's default buffer holds."""
WAKE_S = 0.0002
"""From a deadline to the process that runs."""


@dataclass
class Weather:
    delay_s: tuple[float, float] = (0.0002, 0.002)
    loss: float = 0.0
    doubled: float = 0.0


@dataclass
class Host:
    """One node: a process with a Swim, and the kernel under it."""

    id: str
    swim: Swim
    boot: int
    started: float
    address: str
    running: bool = True
    stopped_until: float = 0.0
    """SIGSTOP, or no turn on a processor: packets pile up meanwhile."""
    powered: bool = True
    """Off: not even its kernel answers."""
    inbox: list[tuple[str, str, bytes]] = field(default_factory=list)
    woken_at: float = math.inf
    events: list[tuple[float, Event]] = field(default_factory=list)
    sent: int = 0
    sent_bytes: int = 0
    """Of datagrams, before they are sealed."""
    got: int = 0
    got_bytes: int = 0
    syncs: int = 0
    """That it asked for, or answered."""
    sync_bytes: int = 0
    """That it sent in them."""
    sync_bytes_got: int = 0
    by_second: dict[int, int] | None = None
    """Bytes of all kinds that it sent or got in each second, where that is wanted."""

    def carry(self, now: float, size_bytes: int) -> None:
        if self.by_second is not None:
            second = int(now)
            self.by_second[second] = self.by_second.get(second, 0) + size_bytes


class GossipWorld:
    def __init__(self, seed: int, settings: Settings = LAN, weather: Weather | None = None) -> None:
        self.rng = random.Random(seed)
        self.settings = settings
        self.weather = weather or Weather()
        self.now = 1000.0
        self.hosts: dict[str, Host] = {}
        self.cut: set[tuple[str, str]] = set()
        self.udp_cut: set[tuple[str, str]] = set()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self.largest = 0
        self.extra_delay_s: Callable[[str, str], float] = lambda source, target: 0.0
        self.stalls: Callable[[Host], float] = lambda host: 0.0
        """How long a process that wants to run has to wait."""
        self.heeds: Callable[[Host, Event], bool] = lambda host, event: True
        """Whether what a host was told is kept: among thousands it cannot be."""
        self._words: dict[str, tuple[Alive, bytes]] = {}

    # Hosts

    def start(self, id: str, *, seeds: Iterable[str] = (), **more: object) -> Host:
        old = self.hosts.get(id)
        boot = old.boot + 1 if old else 1
        me = Self(id=id, boot=boot, **{"name": id, "addresses": (id,), **more})  # type: ignore[arg-type]
        rng = random.Random(self.rng.random())
        swim = Swim(self.settings, me, self.now, rng, [*seeds], keep=self._keep)
        host = self.hosts[id] = Host(id, swim, boot, self.now, id)
        if old is not None:
            host.events = old.events
        self._settle(host)
        return host

    def start_many(self, count: int) -> list[str]:
        """All know the first, and meet within a few seconds."""
        ids = [f"n{n:03d}" for n in range(count)]
        for id in ids:
            self.start(id, seeds=[ids[0]])
        return ids

    def acquaint(self, ids: Sequence[str]) -> None:
        """All of these have long known each other, at no cost of traffic."""
        bytes_max, all_words = self.settings.sync_bytes_max, []
        for id in ids:
            ask = decode_ask(self.hosts[id].swim.sync_ask(self.now), bytes_max)
            all_words.append(decode_words(ask.entries[0]))
        for id in ids:
            self.hosts[id].swim.knew(self.now, all_words)
            self._settle(self.hosts[id])

    def _keep(self, words: Alive) -> tuple[Alive, bytes]:
        """One copy for all: there may be thousands times thousands."""
        kept = self._words.get(words.id)
        if kept is None or kept[0] != words:
            newer = kept is None or kept[0].incarnation < words.incarnation
            kept = keep(words)
            if newer:
                self._words[words.id] = kept
        return kept

    def settle(self, ids: Iterable[str], bound_s: float = 60.0) -> None:
        """Until all of these hold all of these alive."""
        wanted = [*ids]
        self.run_until(
            lambda: all(self.believes(id, wanted, State.ALIVE) for id in wanted), bound_s
        )

    def start_clone(self, id: str, address: str, *, seeds: Iterable[str]) -> Host:
        """Another process with the same id, elsewhere."""
        me = Self(id=id, boot=self.hosts[id].boot + 1, name=id, addresses=(address,))
        rng = random.Random(self.rng.random())
        swim = Swim(self.settings, me, self.now, rng, [*seeds], keep=self._keep)
        host = self.hosts[address] = Host(id, swim, me.boot, self.now, address)
        self._settle(host)
        return host

    def update(self, id: str, **what: object) -> None:
        self.hosts[id].swim.update(self.now, **what)  # type: ignore[arg-type]
        self._settle(self.hosts[id])

    def leave(self, id: str) -> None:
        self.hosts[id].swim.leave(self.now)
        self._settle(self.hosts[id])

    def link_broke(self, id: str, peer: str) -> None:
        self.hosts[id].swim.link_broke(self.now, peer)
        self._settle(self.hosts[id])

    def kill(self, id: str) -> None:
        """The process: its kernel refuses connections from now on."""
        self.hosts[id].running = False

    def unplug(self, id: str) -> None:
        """The host: nothing answers at all."""
        self.hosts[id].running = self.hosts[id].powered = False

    def stop(self, id: str, duration_s: float) -> None:
        host = self.hosts[id]
        host.stopped_until = max(host.stopped_until, self.now + duration_s)

    def part(self, *sides: Iterable[str]) -> None:
        groups = [[*side] for side in sides]
        self.cut = {
            (a, b)
            for at, mine in enumerate(groups)
            for other, theirs in enumerate(groups)
            if at != other
            for a in mine
            for b in theirs
        }

    # Beliefs

    def state(self, id: str, of: str) -> State | None:
        view = self.hosts[id].swim.member(of)
        return None if view is None else view.state

    def believes(self, id: str, of: Iterable[str], state: State) -> bool:
        return all(self.state(id, other) is state for other in of if other != id)

    def running(self) -> list[Host]:
        return [host for host in self.hosts.values() if host.running]

    def deaths(self, *, of: str | None = None) -> list[tuple[float, str, str]]:
        """(when, who believed it, of whom)."""
        return [
            (at, host.id, event.member.id)
            for host in self.hosts.values()
            for at, event in host.events
            if isinstance(event, MemberChanged)
            and event.change is Change.DIED
            and (of is None or event.member.id == of)
        ]

    # Time

    def after(self, delay_s: float, then: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._due, (self.now + delay_s, self._count, then))

    def run(self, duration_s: float) -> None:
        self.run_until(lambda: False, duration_s, must=False)

    def run_until(
        self, holds: Callable[[], bool], bound_s: float, *, must: bool = True, every_s: float = 0.01
    ) -> float:
        """How long it took, to within `every_s`."""
        began, end, look = self.now, self.now + bound_s, self.now
        while self._due and self._due[0][0] <= end:
            if self._due[0][0] >= look:
                if holds():
                    return self.now - began
                look = self._due[0][0] + every_s
            at, _, then = heapq.heappop(self._due)
            self.now = at
            then()
        self.now = end
        assert holds() or not must, f"it did not come about within {bound_s} s"
        return self.now - began

    # The process

    def _wake(self, host: Host, at: float) -> None:
        if not host.running or self.now < host.woken_at:
            return
        host.woken_at = math.inf
        if host.stopped_until > self.now:
            self._wake_at(host, host.stopped_until)
            return
        swim = host.swim
        # Whether the timer or the socket is looked at first is chance, as in any loop.
        timer_first = self.rng.random() < 0.5
        if timer_first and swim.next_deadline() <= self.now:
            swim.tick(self.now)
        inbox, host.inbox = host.inbox, []
        for sender, source, payload in inbox:
            swim.receive(self.now, sender, source, payload)
        if swim.next_deadline() <= self.now:
            swim.tick(self.now)
        self._settle(host)

    def _settle(self, host: Host) -> None:
        out = host.swim.take()
        for datagram in out.datagrams:
            assert isinstance(datagram.to, str)
            self._send(host, datagram.to, datagram.payload)
        for knock in out.knocks:
            self._knock(host, knock)
        for sync in out.syncs:
            self._sync(host, sync)
        host.events += [(self.now, event) for event in out.events if self.heeds(host, event)]
        self._wake_at(host, host.swim.next_deadline())

    def _wake_at(self, host: Host, at: float) -> None:
        at = max(at, self.now, host.stopped_until)
        if at < host.woken_at:
            stall_s = self.stalls(host)
            host.woken_at = at
            if stall_s:
                host.stopped_until = max(host.stopped_until, at + stall_s)
            self.after(at + WAKE_S - self.now, lambda: self._wake(host, at))

    # The network

    def _send(self, host: Host, to: str, payload: bytes) -> None:
        host.sent += 1
        host.sent_bytes += len(payload)
        host.carry(self.now, len(payload))
        self.largest = max(self.largest, len(payload))
        weather, rng = self.weather, self.rng
        copies = 1 + (rng.random() < weather.doubled)
        for _ in range(copies):
            if rng.random() >= weather.loss:
                delay_s = rng.uniform(*weather.delay_s) + self.extra_delay_s(host.address, to)
                self.after(delay_s, lambda: self._arrive(host, to, payload))

    def _arrive(self, sender: Host, to: str, payload: bytes) -> None:
        host = self.hosts.get(to)
        source = sender.address
        gone = (source, to) in self.cut or (source, to) in self.udp_cut
        if host is None or not host.running or gone or len(host.inbox) >= SOCKET_PACKETS_MAX:
            return
        host.got += 1
        host.got_bytes += len(payload)
        host.carry(self.now, len(payload))
        host.inbox.append((sender.id, source, payload))
        self._wake_at(host, self.now)

    def _open(self, a: str, b: str) -> bool:
        return (a, b) not in self.cut and (b, a) not in self.cut

    def _knock(self, host: Host, knock: Knock) -> None:
        def answer() -> None:
            if host.running:
                self._in_turn(host, lambda: host.swim.knocked(self.now, knock.number, what))

        target = self.hosts.get(knock.peer)
        trip_s = 2 * self.rng.uniform(*self.weather.delay_s)
        if target is None or not target.powered or not self._open(host.id, knock.peer):
            what, after_s = Knocked.SILENT, knock.timeout_s
        elif not target.running:
            what, after_s = Knocked.REFUSED, trip_s
        elif target.stopped_until > self.now + knock.timeout_s:
            what, after_s = Knocked.HELD, knock.timeout_s
        else:
            what, after_s = Knocked.ANSWERED, max(0.0, target.stopped_until - self.now) + trip_s
        self.after(after_s, answer)

    def _sync(self, host: Host, sync: SyncWanted) -> None:
        peer = sync.peer or sync.address
        assert peer is not None
        ask = host.swim.sync_ask(self.now)

        def told(by: Host, to: Host, body: bytes) -> None:
            by.sync_bytes += len(body)
            to.sync_bytes_got += len(body)
            for each in (by, to):
                each.carry(self.now, len(body))

        def reach() -> None:
            target = self.hosts.get(peer)
            if target is not None and target.running and self._open(host.id, peer):
                self._in_turn(target, lambda: take(target))

        def take(target: Host) -> None:
            told(host, target, ask)
            host.syncs += 1
            target.syncs += 1
            try:
                answer = target.swim.sync_answer(self.now, host.id, ask)
            except Dropped:
                return
            trip_s = self.rng.uniform(*self.weather.delay_s)
            self.after(trip_s, lambda: self._in_turn(host, lambda: done(target, answer)))

        def done(target: Host, answer: bytes) -> None:
            told(target, host, answer)
            try:
                host.swim.sync_done(self.now, target.id, answer)
            except Dropped:
                return

        self.after(self.rng.uniform(*self.weather.delay_s), reach)

    def _in_turn(self, host: Host, then: Callable[[], None]) -> None:
        """When its process runs."""
        if not host.running:
            return
        if host.stopped_until > self.now:
            self.after(host.stopped_until - self.now, lambda: self._in_turn(host, then))
            return
        then()
        self._settle(host)
