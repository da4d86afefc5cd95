"""Push-pull: two members tell each other all that they know, within a bound, over their wires.

Nobody is called dead because another says so in a sync: it is suspected, and has time to refute.
"""

from __future__ import annotations

import msgspec

from mesh.swim.beliefs import Beliefs
from mesh.swim.errors import Dropped
from mesh.swim.messages import (
    SPOKEN,
    Alive,
    Entry,
    Left,
    Suspect,
    SyncAnswer,
    SyncAsk,
    decode_answer,
    decode_ask,
    encode_sync,
    entry_bytes,
)
from mesh.swim.roster import Member, Roster, State
from mesh.swim.settings import Rng

_HEAD_BYTES = 16


class Syncing:
    def __init__(self, bytes_max: int, roster: Roster, beliefs: Beliefs, rng: Rng) -> None:
        self._bytes_max = bytes_max
        self._roster = roster
        self._beliefs = beliefs
        self._rng = rng

    def ask(self, now: float) -> bytes:
        return encode_sync(SyncAsk(SPOKEN, self._entries(now, {})))

    def answer(self, now: float, peer: str, body: bytes) -> bytes:
        """Raises Dropped."""
        asked = decode_ask(body, self._bytes_max)
        self._merge(now, peer, asked.entries)
        known = {entry.words.id: (entry.words.incarnation, entry.state) for entry in asked.entries}
        return encode_sync(SyncAnswer(SPOKEN, self._entries(now, known)))

    def merge(self, now: float, peer: str, body: bytes) -> None:
        """Raises Dropped."""
        self._merge(now, peer, decode_answer(body, self._bytes_max).entries)

    def _entries(self, now: float, known: dict[str, tuple[int, int]]) -> tuple[Entry, ...]:
        """This node first; of the others those that are not known as well. Where not all fit, each
        sync begins with another."""
        me = self._roster.me
        own = Entry(State.LEFT if self._beliefs.leaving else State.ALIVE, me.words)
        entries, room = [own], self._bytes_max - _HEAD_BYTES - entry_bytes(own)
        news = [
            member
            for member in self._roster
            if known.get(member.id, (-1, 0)) < (member.incarnation, member.state)
        ]
        first = self._rng.randrange(len(news)) if news else 0
        for member in news[first:] + news[:first]:
            entry = self._entry(now, member)
            room -= entry_bytes(entry)
            if room < 0:
                break
            entries.append(entry)
        return tuple(entries)

    def _entry(self, now: float, member: Member) -> Entry:
        words = member.words
        if words.incarnation != member.incarnation:
            words = msgspec.structs.replace(words, incarnation=member.incarnation)
        return Entry(member.state, words, max(0.0, now - member.since))

    def _merge(self, now: float, peer: str, entries: tuple[Entry, ...]) -> None:
        if not entries or entries[0].words.id != peer:
            raise Dropped("identity", f"a sync of {peer} that does not begin with itself")
        for entry in entries:
            self._take(now, entry.words, State(entry.state), now - entry.age_s)

    def _take(self, now: float, words: Alive, state: State, since: float) -> None:
        beliefs = self._beliefs
        known = words.id == self._roster.me.id or self._roster.get(words.id) is not None
        if state is State.ALIVE:
            beliefs.hear_alive(now, words)
        elif state is State.LEFT and known:
            beliefs.hear_left(now, Left(words.id, words.incarnation))
        elif not known and state is not State.SUSPECT:
            beliefs.adopt(now, words, state, since)
        else:
            if not known:
                beliefs.hear_alive(now, words)
            beliefs.hear_suspect(now, Suspect(words.id, words.incarnation, ()))
