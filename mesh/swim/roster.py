"""Who is known, and what is believed of each; the beliefs themselves change in `beliefs` alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum

import msgspec

from mesh.swim.coordinates import Coordinate, unpack
from mesh.swim.messages import ALIVE, DEAD, LEFT, SUSPECT, Alive, encode
from mesh.swim.rtt import RttWindow
from mesh.swim.settings import Rng
from mesh.swim.suspicion import Suspicion

_TOMBSTONES_MAX = 8_192
_REMOVED_MAX = 65_536
_PICK_TRIES = 3


Keep = Callable[[Alive], tuple[Alive, bytes]]
"""The words to keep where these were heard, and how they are told."""


def keep(words: Alive) -> tuple[Alive, bytes]:
    return words, encode(words)


class State(IntEnum):
    ALIVE = ALIVE
    SUSPECT = SUSPECT
    DEAD = DEAD
    LEFT = LEFT


class MemberView(msgspec.Struct, frozen=True):
    id: str
    name: str
    addresses: tuple[str, ...]
    state: State
    since: float
    """When it came to be in this state, as this node learnt it, on this node's clock."""
    incarnation: int
    tags: dict[str, str]
    born: int
    version: int
    name_kept_by: str | None
    """Another living member that has the same name and the better right to it."""


class Member:
    __slots__ = (
        "_coordinate",
        "_packed",
        "address_at",
        "encoded",
        "heard_at",
        "incarnation",
        "rtt",
        "since",
        "state",
        "suspicion",
        "told_at",
        "words",
    )

    def __init__(self, words: Alive, encoded: bytes, state: State, since: float) -> None:
        self.words = words
        self.encoded = encoded
        """The words, as they are told."""
        self.state = state
        self.since = since
        self.incarnation = words.incarnation
        """Of the latest that was said of it, by itself or another."""
        self.suspicion: Suspicion | None = None
        self.heard_at = -1.0
        """When a datagram of its own came last."""
        self.told_at = -1.0
        """When it was told last what is believed of it."""
        self.address_at = 0
        self.rtt: RttWindow | None = None
        self._packed = b""
        self._coordinate: Coordinate | None = None

    @property
    def id(self) -> str:
        return self.words.id

    @property
    def living(self) -> bool:
        return self.state <= State.SUSPECT

    @property
    def address(self) -> str:
        addresses = self.words.addresses
        return addresses[self.address_at % len(addresses)]

    @property
    def coordinate(self) -> Coordinate | None:
        if self._packed:
            self._coordinate, self._packed = unpack(self._packed), b""
        return self._coordinate

    def place(self, packed: bytes) -> None:
        """Read only when somebody asks."""
        self._packed = packed


class Roster:
    def __init__(
        self, me: Alive, now: float, members_max: int, rng: Rng, keep: Keep = keep
    ) -> None:
        self._keep = keep
        self.me = Member(*keep(me), State.ALIVE, now)
        self._members_max = members_max
        self._rng = rng
        self._members: dict[str, Member] = {}
        self._ids: list[str] = []
        """For picks by chance; in the order of probing, which is shuffled with each round."""
        self._next = 0
        self._named: dict[str, str] = {}
        """The living by name: the one that has it, or any of those that do."""
        self._sharers: dict[str, dict[str, None]] = {}
        """Where there are several, all of them."""
        self._tombstones: dict[str, int] = {}
        self._removed: dict[str, None] = {}
        self.living = 0
        """Other than this node."""
        self.dead = 0
        self._name(self.me)

    # Who is there

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Member]:
        return iter(self._members.values())

    def get(self, id: str) -> Member | None:
        return self._members.get(id)

    @property
    def full(self) -> bool:
        return len(self._members) >= self._members_max

    def view(self, member: Member) -> MemberView:
        words = member.words
        return MemberView(
            words.id, words.name, words.addresses, member.state, member.since, member.incarnation,
            words.tags, words.born, words.version, self.name_kept_by(member),
        )  # fmt: skip

    # Coming, changing, going

    def add(self, words: Alive, state: State, since: float) -> Member:
        """At a place by chance, so that those who join together are not probed together."""
        member = Member(*self._keep(words), state, since)
        self._members[member.id] = member
        self._tombstones.pop(member.id, None)
        self._ids.append(member.id)
        at, last = self._rng.randrange(len(self._ids)), len(self._ids) - 1
        self._ids[at], self._ids[last] = self._ids[last], self._ids[at]
        self._count(member.state, 1)
        if member.living:
            self._name(member)
        return member

    def become(self, member: Member, state: State, now: float) -> None:
        self._count(member.state, -1)
        self._count(state, 1)
        member.state, member.since = state, now
        if member.living:
            self._name(member)
        else:
            self._unname(member)

    def reword(self, member: Member, words: Alive) -> None:
        self._unname(member)
        if words.addresses != member.words.addresses:
            member.address_at = 0
        member.words, member.encoded = self._keep(words)
        member.incarnation = words.incarnation
        if member.living:
            self._name(member)

    def forget(self, member: Member) -> None:
        self._count(member.state, -1)
        self._unname(member)
        del self._members[member.id]
        self._ids.remove(member.id)

    def bury(self, id: str, incarnation: int) -> None:
        """Nothing of that life, or an earlier one, brings it back."""
        self._tombstones[id] = max(incarnation, self._tombstones.pop(id, 0))
        while len(self._tombstones) > _TOMBSTONES_MAX:
            del self._tombstones[next(iter(self._tombstones))]

    def buried(self, id: str, incarnation: int) -> bool:
        return incarnation <= self._tombstones.get(id, -1)

    def remove(self, id: str) -> None:
        """For good: it is no part of the swarm any more, whatever is said."""
        self._removed[id] = None
        while len(self._removed) > _REMOVED_MAX:
            del self._removed[next(iter(self._removed))]

    def removed(self, id: str) -> bool:
        return id in self._removed

    # Names

    def name_kept_by(self, member: Member) -> str | None:
        sharers = self._sharers.get(member.words.name)
        if sharers is None or member.id not in sharers:
            return None
        keeper = min(sharers, key=self._seniority)
        return keeper if keeper != member.id else None

    def namesakes(self, member: Member) -> list[str]:
        """All living ones of its name, the one that keeps it first."""
        sharers = self._sharers.get(member.words.name)
        if sharers is not None:
            return sorted(sharers, key=self._seniority)
        only = self._named.get(member.words.name)
        return [] if only is None else [only]

    def shared_names(self) -> dict[str, tuple[str, ...]]:
        """Whoever goes by a name that others have too, the one that keeps it first."""
        return {
            name: tuple(sorted(ids, key=self._seniority)) for name, ids in self._sharers.items()
        }

    def _seniority(self, id: str) -> tuple[int, str]:
        member = self.me if id == self.me.id else self._members[id]
        return member.words.born, id

    def _name(self, member: Member) -> None:
        name = member.words.name
        other = self._named.setdefault(name, member.id)
        if other != member.id:
            self._sharers.setdefault(name, {other: None})[member.id] = None

    def _unname(self, member: Member) -> None:
        name = member.words.name
        sharers = self._sharers.get(name)
        if sharers is None:
            if self._named.get(name) == member.id:
                del self._named[name]
            return
        sharers.pop(member.id, None)
        self._named[name] = next(iter(sharers))
        if len(sharers) == 1:
            del self._sharers[name]

    # Chance

    def next_in_turn(self, fits: Callable[[Member], bool]) -> Member | None:
        """Round robin; each round in an order of its own."""
        for _ in range(len(self._ids)):
            if self._next >= len(self._ids):
                self._rng.shuffle(self._ids)
                self._next = 0
            member = self._members[self._ids[self._next]]
            self._next += 1
            if fits(member):
                return member
        return None

    def pick(self, count: int, fits: Callable[[Member], bool]) -> list[Member]:
        """Some by chance; in a small swarm all that fit are considered."""
        ids = self._ids
        if len(ids) <= 4 * _PICK_TRIES * max(count, 1):
            members = [member for id in ids if fits(member := self._members[id])]
            self._rng.shuffle(members)
            return members[:count]
        picked: dict[str, Member] = {}
        for _ in range(_PICK_TRIES * len(ids)):
            if len(picked) >= count:
                break
            member = self._members[ids[self._rng.randrange(len(ids))]]
            if member.id not in picked and fits(member):
                picked[member.id] = member
        return list(picked.values())

    def _count(self, state: State, by: int) -> None:
        if state <= State.SUSPECT:
            self.living += by
        elif state is State.DEAD:
            self.dead += by
