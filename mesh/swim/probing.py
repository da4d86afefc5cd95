"""Probes: a member that does not answer is asked for by others and knocked at before it is accused.

A probe that ends without an answer says something of the prober too: the fewer of its helpers
answered, the less it trusts itself.
"""

from __future__ import annotations

from mesh.swim.alarms import Alarms
from mesh.swim.beliefs import Beliefs, Key
from mesh.swim.coordinates import Locator
from mesh.swim.health import Health
from mesh.swim.messages import Ack, Nack, Ping, PingFor, encode
from mesh.swim.outputs import Knocked, Outbox, SwimCounts, To
from mesh.swim.roster import Member, Roster, State
from mesh.swim.rtt import RttWindow
from mesh.swim.settings import Rng, Settings

_RELAYS_MAX = 256
_NACK_SHARE = 0.8
"""Of the timeout: a helper says in time that it has no answer either."""
_KNOCK_SHARE = 0.9
_FILTER = 3
_NUMBER_BITS = 32


class Probe:
    __slots__ = ("asked", "ends_at", "indirect", "knocked", "nacked", "started", "target")

    def __init__(self, target: str, now: float, ends_at: float) -> None:
        self.target = target
        self.started = now
        self.ends_at = ends_at
        self.indirect = False
        """The time for a direct answer is over."""
        self.asked: dict[str, None] = {}
        self.nacked: dict[str, None] = {}
        """Who of them said that it has no answer either."""
        self.knocked: Knocked | None = None


class Relay:
    __slots__ = ("number", "target", "to")

    def __init__(self, target: str, to: To, number: int) -> None:
        self.target = target
        self.to = to
        self.number = number


class Prober:
    def __init__(
        self, settings: Settings, roster: Roster, beliefs: Beliefs, alarms: Alarms[Key],
        health: Health, locator: Locator, outbox: Outbox, counts: SwimCounts, rng: Rng,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._roster = roster
        self._beliefs = beliefs
        self._alarms = alarms
        self._health = health
        self._locator = locator
        self._outbox = outbox
        self._counts = counts
        self._rng = rng
        self._number = rng.randrange(2**_NUMBER_BITS)
        self._probes: dict[int, Probe] = {}
        self._probed: dict[str, int] = {}
        self._relays: dict[int, Relay] = {}

    # Beginning

    def probe_next(self, now: float) -> None:
        target = self._roster.next_in_turn(
            lambda member: member.living and member.id not in self._probed
        )
        if target is not None:
            self._begin(now, target, knock=False)

    def probe_at_once(self, now: float, id: str, *, knock: bool) -> bool:
        """Out of turn; with a knock at the same time where there is more than silence."""
        member = self._roster.get(id)
        if member is None or not member.living:
            return False
        number = self._probed.get(id)
        if number is not None:
            if knock:
                self._knock(number, self._probes[number], now)
            return False
        if len(self._probes) >= self._settings.probes_max:
            return False
        self._begin(now, member, knock=knock)
        return True

    def look_at_suspect(self, now: float, member: Member, refused: bool) -> None:
        """Another suspects it: so many in the swarm have a look themselves."""
        chance = self._settings.verifiers / max(1, self._roster.living - 1)
        if self._rng.random() < chance:
            self.probe_at_once(now, member.id, knock=refused)

    def look_at_last(self, now: float, member: Member) -> None:
        self.probe_at_once(now, member.id, knock=True)

    def ping_lost(self, member: Member) -> None:
        """If it hears, it refutes that it is dead."""
        ping = encode(Ping(self._next_number(), member.id))
        self._outbox.send(member.address, [self._beliefs.claim_of(member), ping])
        member.address_at += 1

    # Going on

    def step(self, now: float, number: int) -> None:
        """The alarm of a probe."""
        probe = self._probes.get(number)
        if probe is None:
            return
        if probe.indirect or probe.knocked is Knocked.REFUSED:
            self._fail(now, number, probe)
        else:
            self._ask_others(now, number, probe)

    def knocked(self, now: float, number: int, what: Knocked) -> None:
        probe = self._probes.get(number)
        if probe is None:
            return
        probe.knocked = what
        if what is Knocked.ANSWERED:
            self._counts.udp_silent += 1
            self._succeed(number, probe)
        elif what is Knocked.REFUSED and probe.indirect:
            self._fail(now, number, probe)

    def hear_ack(self, now: float, sender: str, ack: Ack) -> None:
        number = ack.number
        if (probe := self._probes.get(number)) is not None:
            if sender == probe.target:
                self._measure(now, probe, ack)
            elif sender not in probe.asked:
                return
            self._succeed(number, probe)
        elif (relay := self._relays.get(number)) is not None and sender == relay.target:
            self._end_relay(number)
            self._outbox.send(relay.to, [encode(Ack(relay.number))])

    def hear_nack(self, sender: str, number: int) -> None:
        probe = self._probes.get(number)
        if probe is not None and sender in probe.asked:
            probe.nacked[sender] = None  # once, however often it is said

    # For others

    def relay(self, now: float, asked: PingFor, source: To) -> bytes:
        """What to answer at once: nothing, where there is somebody to ask."""
        member = self._roster.get(asked.target)
        if member is None or len(self._relays) >= _RELAYS_MAX:
            return encode(Nack(asked.number))
        number = self._next_number()
        self._relays[number] = Relay(member.id, source, asked.number)
        timeout_s = _NACK_SHARE * self._settings.probe_timeout_s
        self._alarms.set(("relay", number), now + timeout_s)
        self._send_ping(member, number)
        return b""

    def relay_ends(self, number: int) -> None:
        relay = self._relays.pop(number, None)
        if relay is not None:
            self._outbox.send(relay.to, [encode(Nack(relay.number))])

    # After this node was late, or away

    def after_lag(self, now: float, lag_s: float) -> None:
        """Answers may lie unread: each probe under way has that much longer."""
        timeout_s = self._health.scale(self._settings.probe_timeout_s)
        for number, probe in self._probes.items():
            probe.ends_at += lag_s
            self._alarms.set(("probe", number), now + min(lag_s, timeout_s))

    def abandon(self) -> None:
        """No probe under way says anything any more."""
        for number in [*self._probes]:
            self._drop(number)
        for number in [*self._relays]:
            self._end_relay(number)

    # Within

    def _begin(self, now: float, target: Member, *, knock: bool) -> None:
        number = self._next_number()
        window_s = self._health.scale(self._settings.probe_window_s)
        probe = Probe(target.id, now, now + window_s)
        self._probes[number] = probe
        self._probed[target.id] = number
        self._counts.probes += 1
        timeout_s = self._health.scale(self._settings.probe_timeout_s)
        self._alarms.set(("probe", number), now + timeout_s)
        self._send_ping(target, number)
        if knock:
            self._knock(number, probe, now)

    def _ask_others(self, now: float, number: int, probe: Probe) -> None:
        probe.indirect = True
        self._alarms.set(("probe", number), max(now, probe.ends_at))
        target = self._roster.get(probe.target)
        if target is not None:
            target.address_at += 1
        words = [encode(PingFor(number, probe.target))]
        for helper in self._roster.pick(
            self._settings.indirect_probes,
            lambda member: member.state is State.ALIVE and member.id != probe.target,
        ):
            probe.asked[helper.id] = None
            self._outbox.send(helper.address, words)
        self._knock(number, probe, now)

    def _knock(self, number: int, probe: Probe, now: float) -> None:
        if probe.knocked is None:
            probe.knocked = Knocked.SILENT  # until it is known better
            # Its outcome is to be known before the probe ends.
            timeout_s = _KNOCK_SHARE * max(0.0, probe.ends_at - now)
            self._outbox.knock(number, probe.target, timeout_s)

    def _succeed(self, number: int, probe: Probe) -> None:
        self._drop(number)
        self._health.better()

    def _fail(self, now: float, number: int, probe: Probe) -> None:
        self._drop(number)
        self._counts.probes_failed += 1
        if probe.knocked is not Knocked.REFUSED:
            missing = len(probe.asked) - len(probe.nacked)
            self._health.worsen(missing if probe.asked else 1)
        member = self._roster.get(probe.target)
        if member is not None:
            self._beliefs.accuse(now, member, probe.knocked)

    def _drop(self, number: int) -> None:
        probe = self._probes.pop(number)
        del self._probed[probe.target]
        self._alarms.drop(("probe", number))

    def _end_relay(self, number: int) -> None:
        del self._relays[number]
        self._alarms.drop(("relay", number))

    def _measure(self, now: float, probe: Probe, ack: Ack) -> None:
        member = self._roster.get(probe.target)
        if member is None or now <= probe.started:
            return
        if member.rtt is None:
            member.rtt = RttWindow()
        member.rtt.add(now - probe.started)
        if ack.coordinate:
            member.place(ack.coordinate)
            if (there := member.coordinate) is not None:
                self._locator.measured(there, member.rtt.median_of_last(_FILTER))

    def _send_ping(self, member: Member, number: int) -> None:
        """A suspect hears with it what is said of it."""
        words = [encode(Ping(number, member.id))]
        if claim := self._beliefs.claim_of(member):
            words.append(claim)
        self._outbox.send(member.address, words)

    def _next_number(self) -> int:
        self._number = (self._number + 1) % 2**_NUMBER_BITS
        return self._number
