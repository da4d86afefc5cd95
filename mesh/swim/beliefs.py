"""What is believed of each member, and how it changes: by what is heard, by time, by this node.

The rules are memberlist's. Of two claims the one with the higher incarnation holds; of two with the
same, the worse; only a member itself raises its incarnation, and so refutes what others say of it.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from mesh.swim.alarms import Alarms
from mesh.swim.broadcasts import Broadcasts
from mesh.swim.health import Health
from mesh.swim.messages import (
    INCARNATION_MAX,
    VERSION,
    VERSION_OLDEST,
    Alive,
    Dead,
    Left,
    Suspect,
    encode,
    passed_on,
)
from mesh.swim.outputs import (
    Change,
    Knocked,
    MemberChanged,
    NameConflict,
    Outbox,
    OwnIdTaken,
    SwimCounts,
)
from mesh.swim.roster import Member, Roster, State
from mesh.swim.settings import Settings
from mesh.swim.suspicion import Suspicion

Key = tuple[str, str | int]
"""Of an alarm: what for, and for whom or which."""

BOOT_BITS = 20
"""An incarnation begins with the boot: a new life needs not be told what was said of the last."""
_OWN_ID_TOLD_S = 10.0
_TOLD_DIRECTLY_MAX = 64


class Beliefs:
    def __init__(
        self, settings: Settings, roster: Roster, news: Broadcasts, alarms: Alarms[Key],
        health: Health, outbox: Outbox, counts: SwimCounts,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._roster = roster
        self._news = news
        self._alarms = alarms
        self._health = health
        self._outbox = outbox
        self._counts = counts
        self._own_id_told_at: float | None = None
        self.leaving = False
        self.on_suspicion: Callable[[float, Member, bool], None] = lambda now, member, refused: None
        """Another suspects it: have a look oneself, perhaps."""
        self.on_last_look: Callable[[float, Member], None] = lambda now, member: None
        """It would be dead now on the word of others alone: have a look oneself."""
        self.on_return: Callable[[Member], None] = lambda member: None

    # What is heard

    def hear_alive(self, now: float, words: Alive, *, old: bool = False) -> None:
        """`old`: the others know a newcomer already, and need not be told."""
        roster = self._roster
        member = roster.get(words.id)
        if member is not None and words.incarnation <= member.incarnation:
            return  # as most that is heard: many tell of one
        if words.id == roster.me.id:
            self._hear_of_self(now, words)
            return
        if roster.removed(words.id) or roster.buried(words.id, words.incarnation):
            self._counts.drop("removed")
            return
        if words.version < VERSION_OLDEST or words.version_oldest > VERSION:
            self._counts.drop("version")
            return
        if member is None:
            self._meet(now, words, old)
        else:
            self._revive(now, member, words)

    def hear_suspect(self, now: float, claim: Suspect) -> None:
        if claim.id == self._roster.me.id:
            self.refute(claim.incarnation)
            return
        member = self._roster.get(claim.id)
        if member is None or claim.incarnation < member.incarnation or not member.living:
            return
        by = tuple(id for id in claim.by if self._knows(id))
        self._accuse(now, member, claim.incarnation, by, claim.refused_by, claim.held_by)

    def hear_dead(self, now: float, claim: Dead) -> None:
        if claim.id == self._roster.me.id:
            self.refute(claim.incarnation)
            return
        member = self._roster.get(claim.id)
        if member is None or claim.incarnation < member.incarnation or not member.living:
            return
        self._bury(now, member, claim.incarnation, claim.by)

    def hear_left(self, now: float, words: Left) -> None:
        if words.id == self._roster.me.id:
            self.refute(words.incarnation)
            return
        member = self._roster.get(words.id)
        if member is None:
            self._roster.bury(words.id, words.incarnation)
        elif words.incarnation >= member.incarnation and member.state is not State.LEFT:
            self._end_suspicion(member)
            member.incarnation = words.incarnation
            self._become(now, member, State.LEFT, Change.LEFT)
            self._news.add(member.id, encode(words))

    def adopt(self, now: float, words: Alive, state: State, since: float) -> None:
        """One that is not known here, and was lost or left before this node could know it."""
        roster = self._roster
        unwanted = roster.removed(words.id) or roster.buried(words.id, words.incarnation)
        if unwanted or words.id == roster.me.id or now - since > self._settings.forget_s:
            return
        if roster.full:
            self._counts.drop("full")
            return
        member = roster.add(words, state, since)
        change = Change.LEFT if state is State.LEFT else Change.DIED
        self._outbox.tell(MemberChanged(change, roster.view(member)))

    # What this node finds out

    def accuse(self, now: float, member: Member, knocked: Knocked | None) -> None:
        """It did not answer this node's probe; what came of a knock, where one was tried."""
        if member.living:
            me = (self._roster.me.id,)
            refused_by = me if knocked is Knocked.REFUSED else ()
            held_by = me if knocked is Knocked.HELD else ()
            self._accuse(now, member, member.incarnation, me, refused_by, held_by)

    def suspicion_ends(self, now: float, id: str) -> None:
        """Nobody refuted it. But one whose own datagrams came meanwhile is there: it may only not
        have heard what is said of it."""
        member = self._roster.get(id)
        if member is None or member.suspicion is None:
            return
        suspicion = member.suspicion
        latest = suspicion.started + suspicion.longest_s
        if member.heard_at > suspicion.started and now < latest:
            self._alarms.set(("suspicion", id), min(latest, now + suspicion.least_s))
            self.on_last_look(now, member)
            return
        if self._roster.me.id not in suspicion.accusers and not suspicion.looked:
            suspicion.looked = True
            look_s = self._health.scale(self._settings.probe_window_s)
            self._alarms.set(("suspicion", id), now + look_s + self._settings.lag_s)
            self.on_last_look(now, member)
            return
        self._bury(now, member, member.incarnation, self._roster.me.id)

    def newer_words(self, claim: Suspect | Dead) -> bytes:
        """For one who says what was refuted long ago, and has missed it; else nothing."""
        me = self._roster.me
        member = me if claim.id == me.id else self._roster.get(claim.id)
        if member is None or self.leaving:
            return b""
        if member.state is State.LEFT and claim.incarnation <= member.incarnation:
            return encode(Left(member.id, member.incarnation))
        if member.state is State.ALIVE and claim.incarnation < member.words.incarnation:
            return member.encoded
        return b""

    def claim_of(self, member: Member) -> bytes:
        """What is to be refuted by it; nothing where it is held alive, or has left."""
        match member.state:
            case State.SUSPECT:
                return self._suspect_words(member)
            case State.DEAD:
                return encode(Dead(member.id, member.incarnation, self._roster.me.id))
        return b""

    def forget(self, member: Member) -> None:
        self._end_suspicion(member)
        self._news.drop(member.id)
        self._outbox.tell(MemberChanged(Change.FORGOTTEN, self._roster.view(member)))
        self._roster.forget(member)

    def after_stall(self, now: float) -> None:
        """This node was away: every suspicion begins anew."""
        for member in self._roster:
            if member.suspicion is not None:
                member.suspicion.begin_again(now)
                self._alarms.set(("suspicion", member.id), member.suspicion.deadline)

    def after_lag(self, now: float, lag_s: float) -> None:
        """This node was late by so much: what came meanwhile has yet to be read."""
        for member in self._roster:
            if member.suspicion is not None:
                member.suspicion.started += lag_s
                deadline = max(member.suspicion.deadline, now + lag_s)
                self._alarms.set(("suspicion", member.id), deadline)

    # This node itself

    def say(self, words: Alive) -> None:
        """News of this node's own."""
        me = self._roster.me
        self._roster.reword(me, words)
        self._news.add(me.id, me.encoded)

    def leave(self) -> None:
        """Where they are not too many, each is told directly too."""
        me = self._roster.me
        self.leaving = True
        words = encode(Left(me.id, me.incarnation))
        for member in self._roster.pick(_TOLD_DIRECTLY_MAX, lambda member: member.living):
            self._outbox.send(member.address, [words])
        self._news.add(me.id, words)

    def _hear_of_self(self, now: float, words: Alive) -> None:
        me = self._roster.me
        if words.incarnation < me.incarnation or passed_on(words, me.words):
            return
        later_life = words.incarnation >> BOOT_BITS > me.incarnation >> BOOT_BITS
        if later_life or words.incarnation == me.incarnation:
            told_at = self._own_id_told_at
            if told_at is None or now - told_at >= _OWN_ID_TOLD_S:
                self._own_id_told_at = now
                self._outbox.tell(OwnIdTaken(words.addresses))
        self.refute(words.incarnation)

    def refute(self, incarnation: int) -> None:
        me = self._roster.me
        if self.leaving or incarnation < me.incarnation:
            return
        if incarnation >= INCARNATION_MAX:
            self._counts.drop("incarnation")
            return
        self._counts.refutations += 1
        self._health.worsen()
        self.say(msgspec.structs.replace(me.words, incarnation=incarnation + 1))

    # Changes

    def _meet(self, now: float, words: Alive, old: bool) -> None:
        if self._roster.full:
            self._counts.drop("full")
            return
        member = self._roster.add(words, State.ALIVE, now)
        if not old:
            self._news.add(member.id, member.encoded)
        self._outbox.tell(MemberChanged(Change.JOINED, self._roster.view(member)))
        self._look_for_namesakes(member)

    def _revive(self, now: float, member: Member, words: Alive) -> None:
        was, before = member.state, member.words
        self._end_suspicion(member)
        self._roster.reword(member, words)
        self._news.add(member.id, member.encoded)
        if was is not State.ALIVE:
            change = Change.CLEARED if was is State.SUSPECT else Change.RETURNED
            self._become(now, member, State.ALIVE, change)
        elif msgspec.structs.replace(before, incarnation=words.incarnation) != words:
            self._outbox.tell(MemberChanged(Change.UPDATED, self._roster.view(member)))
        named_before = before.name, before.born
        if was > State.SUSPECT or named_before != (words.name, words.born):
            self._look_for_namesakes(member)
        if was is State.DEAD:
            self.on_return(member)

    def _accuse(
        self, now: float, member: Member, incarnation: int, by: tuple[str, ...],
        refused_by: tuple[str, ...], held_by: tuple[str, ...],
    ) -> None:  # fmt: skip
        member.incarnation = incarnation
        suspicion = member.suspicion
        fresh = suspicion is None
        if suspicion is None:
            suspicion = member.suspicion = Suspicion(self._settings, now, self._roster.living)
            self._become(now, member, State.SUSPECT, Change.SUSPECTED)
        if not suspicion.accuse(by, refused_by, held_by) and not fresh:
            return
        self._alarms.set(("suspicion", member.id), suspicion.deadline)
        self._news.add(member.id, self._suspect_words(member))
        if self._roster.me.id not in suspicion.accusers:
            self.on_suspicion(now, member, bool(suspicion.refused))

    def _bury(self, now: float, member: Member, incarnation: int, by: str) -> None:
        self._end_suspicion(member)
        member.incarnation = incarnation
        self._become(now, member, State.DEAD, Change.DIED)
        self._news.add(member.id, encode(Dead(member.id, incarnation, by)))

    def _become(self, now: float, member: Member, state: State, change: Change) -> None:
        self._roster.become(member, state, now)
        self._outbox.tell(MemberChanged(change, self._roster.view(member)))

    def _end_suspicion(self, member: Member) -> None:
        if member.suspicion is not None:
            member.suspicion = None
            self._alarms.drop(("suspicion", member.id))

    def _suspect_words(self, member: Member) -> bytes:
        suspicion = member.suspicion
        assert suspicion is not None, "a suspect without a suspicion"
        kinds = tuple(suspicion.accusers), tuple(suspicion.refused), tuple(suspicion.held)
        return encode(Suspect(member.id, member.incarnation, *kinds))

    def _look_for_namesakes(self, member: Member) -> None:
        keeper, *others = self._roster.namesakes(member) or [member.id]
        if others:
            self._outbox.tell(NameConflict(member.words.name, keeper, tuple(others)))

    def _knows(self, id: str) -> bool:
        return id == self._roster.me.id or self._roster.get(id) is not None
