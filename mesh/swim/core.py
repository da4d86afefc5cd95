"""Swim: who is there, as far as one node can know. Calls and time go in, what is to be done comes
out of `take`; nothing here waits, sends, logs or knows the time by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from mesh.swim.alarms import Alarms
from mesh.swim.beliefs import BOOT_BITS, Beliefs, Key
from mesh.swim.broadcasts import Broadcasts
from mesh.swim.coordinates import Locator, distance
from mesh.swim.errors import Dropped, NotUsable
from mesh.swim.health import Health
from mesh.swim.messages import (
    INCARNATION_MAX,
    VERSION,
    VERSION_OLDEST,
    Ack,
    Alive,
    Dead,
    Left,
    Message,
    Nack,
    Ping,
    PingFor,
    Suspect,
    Who,
    check_alive,
    encode,
    unpack,
)
from mesh.swim.outputs import Knocked, Outbox, Output, SwimCounts, To
from mesh.swim.probing import Prober
from mesh.swim.roster import Keep, Member, MemberView, Roster, State, keep
from mesh.swim.rtt import RttStats
from mesh.swim.seeds import Seeds
from mesh.swim.settings import Rng, Settings
from mesh.swim.syncing import Syncing

_SYNC_DOUBLES_FROM = 32
_STALL_PROBES = 4
"""Away for longer than so many probe windows, a node knows nothing any more."""
_FEW_SLOWER = (2.0, 2.0, 2.0)
"""By the number of others: among few each one's turn comes round soon without hurry."""
_LATE_SEEDS_SLOWER = 30
_DIGITS_LEAST = 2
"""Among eight, one digit's worth of telling missed one of them in every fifteenth change."""
_TOLD_S = 60.0
"""After so long who is there, a new node asks all its seeds again, told or not."""
_REAP_S = 60.0
_GO_ON_S = 0.001
"""Between two parts of a long sync: whatever else is due has its turn."""

PROBE, GOSSIP, SYNC, GO_ON, RECONNECT, SEED, REAP = (
    ("next probe", 0), ("gossip", 0), ("sync", 0), ("go on", 0), ("reconnect", 0), ("seed", 0),
    ("reap", 0),
)  # fmt: skip


class Self(msgspec.Struct, frozen=True, kw_only=True):
    """What a node says of itself when it starts."""

    id: str
    boot: int
    """Grows with each start: a new life outdoes whatever was said of the last."""
    name: str
    addresses: tuple[str, ...]
    """Where it is reached, the best first."""
    tags: Mapping[str, str] = {}
    born: int = 0
    """Of two with one name the one with the smaller keeps it."""


class Swim:
    def __init__(
        self, settings: Settings, me: Self, now: float, rng: Rng, seeds: Sequence[str] = (), *,
        keep: Keep = keep,
    ) -> None:  # fmt: skip
        """Many in one process may `keep` one copy of what they hear. Raises NotUsable."""
        if not 0 <= me.boot < INCARNATION_MAX >> BOOT_BITS:
            raise NotUsable(f"a boot is a number from 0 to {INCARNATION_MAX >> BOOT_BITS}")
        words = Alive(
            me.id, me.boot << BOOT_BITS, me.name, me.addresses, dict(me.tags), me.born,
            VERSION_OLDEST, VERSION,
        )  # fmt: skip
        check_alive(words)
        self._settings = settings
        self._rng = rng
        self.counts = SwimCounts()
        self._news = Broadcasts(settings.broadcasts_max)
        self._alarms: Alarms[Key] = Alarms()
        self._health = Health(settings.health_max)
        self._outbox = Outbox(self._news, self.counts, settings.payload_bytes_max)
        self._roster = Roster(words, now, settings.members_max, rng, keep)
        self._beliefs = Beliefs(
            settings, self._roster, self._news, self._alarms, self._health, self._outbox,
            self.counts,
        )  # fmt: skip
        self._locator = Locator(rng)
        self._prober = Prober(
            settings, self._roster, self._beliefs, self._alarms, self._health, self._locator,
            self._outbox, self.counts, rng,
        )  # fmt: skip
        self._syncing = Syncing(settings, now, self._roster, self._beliefs, self.counts, rng)
        self._beliefs.on_suspicion = self._prober.look_at_suspect
        self._beliefs.on_last_look = self._prober.look_at_last
        self._beliefs.on_return = self._returned
        self._gossiped_at = now - settings.gossip_interval_s
        self._worsened_at = now - settings.probe_interval_s
        self._alone_since = now
        self._seeds = Seeds(self._roster, seeds, rng)
        self._told_by = now + _TOLD_S
        self._beliefs.say(words)
        self._alarms.set(PROBE, now + rng.random() * settings.probe_interval_s)
        # The first soon: of many that start together nobody has heard of all.
        self._sync_within(now, settings.reconnect_interval_s)
        self._alarms.set(RECONNECT, now + rng.random() * settings.reconnect_interval_s)
        self._alarms.set(SEED, now)
        self._alarms.set(REAP, now + _REAP_S)

    # What comes in

    def receive(self, now: float, sender: str, source: To, payload: bytes) -> None:
        """A datagram, whose seal proved its sender. What cannot be taken is counted."""
        self._notice(now)
        try:
            self._receive(now, sender, source, payload)
        except Dropped as dropped:
            self.counts.drop(dropped.reason)
        self._settle(now)

    def tick(self, now: float) -> None:
        """Call it at `next_deadline`, or earlier."""
        self._notice(now)
        while (alarm := self._alarms.pop(now)) is not None:
            kind, which = alarm
            self._DUE[kind](self, now, which)
        self._settle(now)

    def knocked(self, now: float, number: int, what: Knocked) -> None:
        """What came of a `Knock`."""
        self._notice(now)
        self._prober.knocked(now, number, what)
        self._settle(now)

    def link_broke(self, now: float, peer: str) -> None:
        """A stream with it ended: no evidence, but a reason to have a look at once."""
        self._notice(now)
        if not self._beliefs.leaving:
            self._prober.probe_at_once(now, peer, knock=True)
        self._settle(now)

    def sync_ask(self, now: float) -> bytes:
        return self._syncing.ask(now)

    def sync_answer(self, now: float, peer: str, body: bytes) -> bytes:
        """Raises Dropped."""
        self._notice(now)
        self._check_peer(peer)
        answer = self._syncing.answer(now, peer, body)
        self._go_on_later(now)
        self._settle(now)
        return answer

    def sync_done(self, now: float, peer: str, body: bytes) -> None:
        """The answer to `sync_ask` has come. Raises Dropped."""
        self._notice(now)
        self._check_peer(peer)
        if (pause_s := self._syncing.merge(now, peer, body)) is not None:
            self._sync_within(now, pause_s)
        self._go_on_later(now)
        self._settle(now)

    def lag(self, now: float, lag_s: float) -> None:
        """The loop of this process was late by so much, by its owner's own measure."""
        if lag_s > self._settings.lag_s:
            self._late(now, lag_s)

    def knew(self, now: float, others: Iterable[Alive]) -> None:
        """These have been there for long, and all know it: nobody need be told."""
        for words in others:
            if words.id != self._roster.me.id and self._roster.get(words.id) is None:
                self._roster.add(words, State.ALIVE, now)
        self._settle(now)

    # What this node says

    def update(
        self, now: float, *, tags: Mapping[str, str] | None = None, name: str | None = None,
        addresses: tuple[str, ...] | None = None, born: int | None = None,
    ) -> None:  # fmt: skip
        """Raises NotUsable, and then nothing has changed."""
        words = self._roster.me.words
        new = msgspec.structs.replace(
            words,
            incarnation=words.incarnation + 1,
            tags=words.tags if tags is None else dict(tags),
            name=words.name if name is None else name,
            addresses=words.addresses if addresses is None else addresses,
            born=words.born if born is None else born,
        )
        check_alive(new)
        if msgspec.structs.replace(new, incarnation=words.incarnation) != words:
            self._beliefs.say(new)
            self._settle(now)

    def leave(self, now: float) -> None:
        """Tell all that this node goes; it answers on until it is stopped, and probes nobody."""
        if not self._beliefs.leaving:
            self._beliefs.leave()
            self._prober.abandon()
            self._settle(now)

    @property
    def leave_told(self) -> bool:
        """The news of it was told as often as news are, or there is nobody to tell."""
        return self._roster.me.id not in self._news or not self._roster.living

    def remove(self, now: float, id: str) -> None:
        """It is no part of the swarm any more: forgotten, and not listened to again."""
        if id == self._roster.me.id:
            raise NotUsable("a node does not remove itself: it leaves")
        self._roster.remove(id)
        if (member := self._roster.get(id)) is not None:
            self._beliefs.forget(member)
        self._settle(now)

    def seed(self, now: float, seeds: Sequence[str]) -> None:
        """Addresses where members may answer, instead of those known before."""
        self._seeds.replace(seeds)
        self._alarms.set(SEED, now)

    # What comes out

    def next_deadline(self) -> float:
        return self._alarms.next()

    def take(self) -> Output:
        """What is to be done since the last call."""
        return self._outbox.take()

    # What is known

    @property
    def health(self) -> int:
        """0 is well."""
        return self._health.score

    @property
    def me(self) -> MemberView:
        view = self._roster.view(self._roster.me)
        return msgspec.structs.replace(view, state=State.LEFT) if self._beliefs.leaving else view

    def members(self) -> list[MemberView]:
        """This node first."""
        return [self.me, *(self._roster.view(member) for member in self._roster)]

    def member(self, id: str) -> MemberView | None:
        if id == self._roster.me.id:
            return self.me
        member = self._roster.get(id)
        return None if member is None else self._roster.view(member)

    def namesakes(self) -> dict[str, tuple[str, ...]]:
        """Ids of the living that go by one name, where there are several: who keeps it first."""
        return self._roster.shared_names()

    def rtt(self, id: str) -> RttStats | None:
        member = self._roster.get(id)
        return None if member is None or member.rtt is None else member.rtt.stats()

    def distance(self, a: str, b: str) -> float | None:
        """The round trip between any two, in seconds: an estimate, also where neither is this
        node. None while one of them has not been measured."""
        if a == b:
            return 0.0
        places = [
            self._locator.here if id == self._roster.me.id else member and member.coordinate
            for id, member in ((a, self._roster.get(a)), (b, self._roster.get(b)))
        ]
        return distance(places[0], places[1]) if places[0] and places[1] else None

    # Datagrams

    def _receive(self, now: float, sender: str, source: To, payload: bytes) -> None:
        self._check_peer(sender)
        messages, unknown = unpack(payload)
        self.counts.unknown_kinds += unknown
        member = self._roster.get(sender)
        if member is not None:
            member.heard_at = now
        replies: list[bytes] = []
        for message in messages:
            if reply := self._hear(now, sender, source, message):
                replies.append(reply)
        if member is None:
            if self._roster.get(sender) is None:
                replies.append(encode(Who()))
        elif (
            member.state in (State.SUSPECT, State.DEAD)
            and now - member.told_at >= self._settings.gossip_interval_s
        ):
            member.told_at = now
            replies.append(self._beliefs.claim_of(member))
        if replies:
            self._outbox.send(source, replies)

    def _hear(self, now: float, sender: str, source: To, message: Message) -> bytes:
        """What is to be answered."""
        me = self._roster.me
        match message:
            case Ping(number, target):
                if target == me.id:
                    return encode(Ack(number, self._locator.packed))
                self.counts.drop("not_for_me")
            case Ack():
                self._prober.hear_ack(now, sender, message)
            case Alive():
                self._beliefs.hear_alive(now, message)
            case Suspect():
                self._beliefs.hear_suspect(now, message)
                return self._beliefs.newer_words(message)
            case Dead():
                self._beliefs.hear_dead(now, message)
                return self._beliefs.newer_words(message)
            case Left():
                self._beliefs.hear_left(now, message)
            case PingFor():
                return self._prober.relay(now, message, source)
            case Nack(number):
                self._prober.hear_nack(sender, number)
            case Who():
                leaving = self._beliefs.leaving
                return encode(Left(me.id, me.incarnation)) if leaving else me.encoded
        return b""

    def _check_peer(self, peer: str) -> None:
        if peer == self._roster.me.id:
            raise Dropped("self", "this node's own words, or those of one with its id")
        if self._roster.removed(peer):
            raise Dropped("removed", f"{peer} is no part of the swarm any more")

    # What is due

    def _due_probe(self, now: float, which: str | int) -> None:
        """Rounds that were missed are not made up for."""
        interval_s = self._health.scale(self._settings.probe_interval_s)
        if (others := self._roster.living) < len(_FEW_SLOWER):
            interval_s *= _FEW_SLOWER[others]
        self._alarms.set(PROBE, now + interval_s)
        if not self._beliefs.leaving:
            self._prober.probe_next(now)

    def _due_step(self, now: float, which: str | int) -> None:
        assert isinstance(which, int)
        self._prober.step(now, which)

    def _due_relay(self, now: float, which: str | int) -> None:
        assert isinstance(which, int)
        self._prober.relay_ends(which)

    def _due_suspicion(self, now: float, which: str | int) -> None:
        assert isinstance(which, str)
        self._beliefs.suspicion_ends(now, which)

    def _due_gossip(self, now: float, which: str | int) -> None:
        self._gossiped_at = now
        dead_since = now - self._settings.gossip_to_the_dead_s
        for member in self._roster.pick(
            self._settings.gossip_nodes,
            lambda member: (
                member.living or (member.state is State.DEAD and member.since >= dead_since)
            ),
        ):
            self._outbox.send(member.address, [])

    def _due_sync(self, now: float, which: str | int) -> None:
        scale = max(1.0, (len(self._roster) + 1) / _SYNC_DOUBLES_FROM)
        doublings = (int(scale) - 1).bit_length()
        pause_s = self._settings.sync_interval_s * (1 + doublings)
        self._alarms.set(SYNC, now + pause_s * (0.75 + self._rng.random() / 2))
        for member in self._roster.pick(1, lambda member: member.state is State.ALIVE):
            self._outbox.sync(member.id)

    def _due_go_on(self, now: float, which: str | int) -> None:
        self._syncing.go_on(now)
        self._go_on_later(now)

    def _due_reconnect(self, now: float, which: str | int) -> None:
        """As often as one a second for each that is lost, however many are there to do it."""
        self._alarms.set(RECONNECT, now + self._settings.reconnect_interval_s)
        lost, living = self._roster.dead, self._roster.living
        if lost and not self._beliefs.leaving and self._rng.random() * max(1, living) < lost:
            for member in self._roster.pick(1, lambda member: member.state is State.DEAD):
                self._prober.ping_lost(member)

    def _due_seed(self, now: float, which: str | int) -> None:
        settings = self._settings
        alone = not self._roster.living
        if not alone:
            self._alone_since = now
        pause_s = settings.reconnect_interval_s if alone else settings.reconnect_sync_s
        if now - self._alone_since > settings.forget_s:
            pause_s = settings.reconnect_sync_s * _LATE_SEEDS_SLOWER
        self._alarms.set(SEED, now + pause_s * (0.75 + self._rng.random() / 2))
        if self._beliefs.leaving:
            return
        # Who is just being told who is there is told of its seeds, too: where many start at once
        # each would send all that it knows to each.
        being_told = not alone and self._syncing.is_new and now < self._told_by
        if not being_told and (seed := self._seeds.unmet()) is not None:
            self._outbox.sync(None, seed)
        lost, living = self._roster.dead, self._roster.living
        if lost and self._rng.random() * max(1, living) < lost:
            for member in self._roster.pick(1, lambda member: member.state is State.DEAD):
                self._outbox.sync(member.id)

    def _due_reap(self, now: float, which: str | int) -> None:
        self._alarms.set(REAP, now + _REAP_S)
        before = now - self._settings.forget_s
        for member in [m for m in self._roster if not m.living and m.since < before]:
            self._beliefs.forget(member)
            self._roster.bury(member.id, member.incarnation)

    _DUE: Mapping[str, Callable[[Swim, float, str | int], None]] = {
        "next probe": _due_probe,
        "probe": _due_step,
        "relay": _due_relay,
        "suspicion": _due_suspicion,
        "gossip": _due_gossip,
        "sync": _due_sync,
        "go on": _due_go_on,
        "reconnect": _due_reconnect,
        "seed": _due_seed,
        "reap": _due_reap,
    }

    # Time

    def _notice(self, now: float) -> None:
        """An alarm that should have gone off long ago: this node was held up, not the others."""
        late_s = now - self._alarms.next()
        if late_s > self._settings.lag_s:
            self._late(now, late_s)

    def _late(self, now: float, late_s: float) -> None:
        settings = self._settings
        if late_s > _STALL_PROBES * settings.probe_window_s:
            self.counts.stalls += 1
            self._health.worsen(2)
            self._prober.abandon()
            self._beliefs.after_stall(now)
            self._alarms.set(SYNC, now)
        else:
            if now - self._worsened_at >= settings.probe_interval_s:
                self._worsened_at = now
                self._health.worsen()
            self._prober.after_lag(now, late_s)
            self._beliefs.after_lag(now, late_s)
        self._alarms.hold(now)

    def _settle(self, now: float) -> None:
        """There is news: it need not wait for the next round of gossip where the last is over."""
        members = self._roster.living + 1
        digits = max(_DIGITS_LEAST, len(str(members)))
        self._outbox.times_max = self._settings.retransmit_mult * digits
        if len(self._news) and members > 1 and GOSSIP not in self._alarms:
            at = max(now, self._gossiped_at + self._settings.gossip_interval_s)
            self._alarms.set(GOSSIP, at)

    def _sync_within(self, now: float, pause_s: float) -> None:
        self._alarms.set_by(SYNC, now + (1 + 2 * self._rng.random()) * pause_s)

    def _go_on_later(self, now: float) -> None:
        if self._syncing.waiting:
            self._alarms.set_by(GO_ON, now + _GO_ON_S)

    # Whom to meet

    def _returned(self, member: Member) -> None:
        """Whom it was with has been missed too, perhaps."""
        if self._roster.dead:
            self._outbox.sync(member.id)
