"""Seeds: addresses where members may answer. Whoever lives at one of them has been met there."""

from __future__ import annotations

from collections.abc import Sequence

from mesh.swim.errors import NotUsable
from mesh.swim.roster import Member, Roster
from mesh.swim.settings import Rng

SEEDS_MAX = 64


class Seeds:
    def __init__(self, roster: Roster, addresses: Sequence[str], rng: Rng) -> None:
        """Raises NotUsable."""
        self._roster = roster
        # Many have the same list: not all of them call the same one first.
        self._next = rng.randrange(len(addresses)) if len(addresses) > 1 else 0
        self._met: dict[str, Member] = {}
        """Who was found to live where."""
        self.replace(addresses)

    def replace(self, addresses: Sequence[str]) -> None:
        """Raises NotUsable."""
        if len(addresses) > SEEDS_MAX:
            raise NotUsable(f"{len(addresses)} seeds; {SEEDS_MAX} are the most")
        self._addresses = [*addresses]

    def unmet(self) -> str | None:
        """The next that is no living member's address. All members are looked at only where one
        of these is, or where somebody has gone."""
        if not all(self._is_met(address) for address in self._addresses):
            sought = frozenset(self._addresses)
            self._met = {
                at: member for member in (self._roster.me, *self._roster) if member.living
                for at in member.words.addresses if at in sought
            }  # fmt: skip
        for _ in self._addresses:
            self._next = (self._next + 1) % len(self._addresses)
            if (address := self._addresses[self._next]) not in self._met:
                return address
        return None

    def _is_met(self, address: str) -> bool:
        member = self._met.get(address)
        if member is None or not member.living or address not in member.words.addresses:
            return False
        return member is self._roster.me or self._roster.get(member.id) is member
