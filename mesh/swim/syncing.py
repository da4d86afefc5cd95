"""Push-pull: two members tell each other all that they know, within a bound, over their wires.

Nobody is called dead because another says so in a sync: it is suspected, and has time to refute.
What both know is compared as bytes, and a long tale is heard in parts, so that no sync holds up the
loop for long; and who is asked by many at once tells most of them of a few, whom they may ask.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

from mesh.swim.beliefs import Beliefs
from mesh.swim.errors import Dropped
from mesh.swim.messages import (
    ENTRY_BYTES,
    SPOKEN,
    Entry,
    Left,
    Suspect,
    SyncAnswer,
    SyncAsk,
    decode_answer,
    decode_ask,
    decode_words,
    encode,
    encode_sync,
)
from mesh.swim.outputs import SwimCounts
from mesh.swim.roster import Member, Roster, State
from mesh.swim.settings import Rng, Settings

AT_ONCE = 128
"""So many that are news are taken in before the loop has another turn."""
_HEAD_BYTES = 16
_COMPARED_FROM = 16
"""A shorter tale is read faster than it is compared."""
_FEW = 32
_LITTLE = 2
"""So much news is no reason to ask another soon."""
_GROWS = 8
"""One whose news are such a share of all asks on at once; else it takes twice as long each time."""


class _Told(NamedTuple):
    """What one member says of another, which is not known here to the letter."""

    entry: Entry
    since: float
    old: bool
    """The others need not be told."""


class Syncing:
    def __init__(
        self, settings: Settings, now: float, roster: Roster, beliefs: Beliefs, counts: SwimCounts,
        rng: Rng,
    ) -> None:  # fmt: skip
        self._settings = settings
        self._roster = roster
        self._beliefs = beliefs
        self._counts = counts
        self._rng = rng
        self._waiting: deque[_Told] = deque()
        self._pause_s = settings.reconnect_interval_s
        self._is_new = True
        self._spent_bytes = 0.0
        """By answers of late; it fades with time."""
        self._spent_at = now

    @property
    def is_new(self) -> bool:
        """This node has yet to be told who is there."""
        return self._is_new

    @property
    def waiting(self) -> int:
        """Of what was told, so many are not taken in yet."""
        return len(self._waiting)

    def ask(self, now: float) -> bytes:
        return encode_sync(SyncAsk(SPOKEN, self._entries(now, self._roster)))

    def answer(self, now: float, peer: str, body: bytes) -> bytes:
        """Raises Dropped, and then nothing has changed."""
        asked = decode_ask(body, self._settings.sync_bytes_max)
        same, rest = self._compare(peer, asked.entries)
        known = {member.id: (member.words.incarnation, int(State.ALIVE)) for member in same}
        for entry in rest:
            words = decode_words(entry)
            known[words.id] = words.incarnation, entry.state
        self._hear(now, rest, learning=False)
        if self._may_tell_all(now):
            news: Iterable[Member] = self._roster
        else:
            news = self._roster.pick(_FEW, lambda member: member.living)
        fresh = [m for m in news if known.get(m.id, (-1, 0)) < (m.incarnation, m.state)]
        answer = encode_sync(SyncAnswer(SPOKEN, self._entries(now, fresh)))
        self._spent_bytes += len(answer)
        return answer

    def merge(self, now: float, peer: str, body: bytes) -> float | None:
        """After how long another should be asked, where there may be more news. Raises Dropped, and
        then nothing has changed."""
        _, rest = self._compare(peer, decode_answer(body, self._settings.sync_bytes_max).entries)
        learning = self._is_new
        self._is_new &= (more := len(rest) > _LITTLE)
        grows = len(rest) * _GROWS > len(self._roster)
        self._hear(now, rest, learning=learning)
        slower = more and not grows
        least_s, most_s = self._settings.reconnect_interval_s, self._settings.sync_interval_s
        self._pause_s = min(2 * self._pause_s, most_s) if slower else least_s
        return self._pause_s if more else None

    def go_on(self, now: float) -> None:
        """Take in the next of what was told."""
        for _ in range(min(AT_ONCE, len(self._waiting))):
            self._take(now, self._waiting.popleft())

    def _may_tell_all(self, now: float) -> bool:
        bytes_max = self._settings.sync_answers_bytes_s
        faded = (now - self._spent_at) * bytes_max
        self._spent_at, self._spent_bytes = now, max(0.0, self._spent_bytes - faded)
        return self._spent_bytes < bytes_max

    # What is told

    def _entries(self, now: float, of: Iterable[Member]) -> tuple[Entry, ...]:
        """This node first. Where not all fit, each sync begins with another."""
        me, members = self._roster.me, [*of]
        own = Entry(State.LEFT if self._beliefs.leaving else State.ALIVE, msgspec.Raw(me.encoded))
        entries = [own]
        room = self._settings.sync_bytes_max - _HEAD_BYTES - ENTRY_BYTES - len(me.encoded)
        first = self._rng.randrange(len(members)) if members else 0
        for member in members[first:] + members[:first]:
            words = member.encoded
            if member.words.incarnation != member.incarnation:
                words = encode(
                    msgspec.structs.replace(member.words, incarnation=member.incarnation)
                )
            room -= ENTRY_BYTES + len(words)
            if room < 0:
                break
            age_s = max(0.0, now - member.since)
            entries.append(Entry(member.state, msgspec.Raw(words), age_s))
        return tuple(entries)

    # What is heard

    def _compare(self, peer: str, entries: Sequence[Entry]) -> tuple[list[Member], Sequence[Entry]]:
        """Whom both know to the letter, and the rest. Raises Dropped."""
        if not entries or decode_words(entries[0]).id != peer:
            raise Dropped("identity", f"a sync of {peer} that does not begin with itself")
        if len(entries) < _COMPARED_FROM:
            return [], entries
        here = {member.encoded: member for member in self._roster}
        same, rest = [], []
        for entry in entries:
            member = here.get(bytes(entry.words)) if entry.state == State.ALIVE else None
            if member is None:
                rest.append(entry)
            else:
                same.append(member)
        return same, rest

    def _hear(self, now: float, entries: Sequence[Entry], *, learning: bool) -> None:
        """The first at once: the peer itself is among them. What has been there for long is news to
        nobody but one who has yet to learn it."""
        old_s = self._settings.sync_interval_s if learning else math.inf
        told = [_Told(entry, now - entry.age_s, entry.age_s > old_s) for entry in entries]
        for one in told[:AT_ONCE]:
            self._take(now, one)
        rest = told[AT_ONCE:]
        self._waiting.extend(rest[: max(0, self._settings.members_max - len(self._waiting))])

    def _take(self, now: float, told: _Told) -> None:
        try:
            words, state = decode_words(told.entry), told.entry.state
        except Dropped as dropped:
            self._counts.drop(dropped.reason)
            return
        beliefs = self._beliefs
        known = words.id == self._roster.me.id or self._roster.get(words.id) is not None
        if state == State.ALIVE:
            beliefs.hear_alive(now, words, old=told.old)
        elif state == State.LEFT and known:
            beliefs.hear_left(now, Left(words.id, words.incarnation))
        elif not known and state != State.SUSPECT:
            beliefs.adopt(now, words, State(state), told.since)
        else:
            if not known:
                beliefs.hear_alive(now, words)
            beliefs.hear_suspect(now, Suspect(words.id, words.incarnation, ()))
