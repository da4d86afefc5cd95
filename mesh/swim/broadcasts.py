"""News that wait to be told: the latest about each member, so many times, the least told first."""

from __future__ import annotations

_MISFITS_MAX = 16
"""So many that do not fit into what is left of a datagram are looked past."""


class Broadcasts:
    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._tiers: list[dict[str, bytes]] = [{}]
        """By how often they were told: about whom, and the message."""
        self._tier_of: dict[str, int] = {}
        self.dropped = 0
        """Of the most told, for want of room."""

    def __len__(self) -> int:
        return len(self._tier_of)

    def __contains__(self, about: str) -> bool:
        return about in self._tier_of

    def add(self, about: str, message: bytes) -> None:
        """It takes the place of whatever was to be told about the same member."""
        self.drop(about)
        if len(self._tier_of) >= self._count_max:
            self._drop_most_told()
        self._tiers[0][about] = message
        self._tier_of[about] = 0

    def drop(self, about: str) -> None:
        tier = self._tier_of.pop(about, None)
        if tier is not None:
            del self._tiers[tier][about]

    def take(self, size_max: int, count_max: int, times_max: int) -> list[bytes]:
        """For one datagram; each is told `times_max` times in all."""
        if not self._tier_of:
            return []
        taken: list[tuple[int, str, bytes]] = []
        misfits = 0
        for tier, waiting in enumerate(self._tiers):
            for about, message in waiting.items():
                if len(taken) >= count_max or misfits > _MISFITS_MAX:
                    break
                if len(message) > size_max:
                    misfits += 1
                    continue
                size_max -= len(message)
                taken.append((tier, about, message))
        for tier, about, message in taken:
            self._told(tier, about, message, times_max)
        return [message for _, _, message in taken]

    def _told(self, tier: int, about: str, message: bytes, times_max: int) -> None:
        del self._tiers[tier][about]
        if tier + 1 >= times_max:
            del self._tier_of[about]
            return
        if tier + 1 == len(self._tiers):
            self._tiers.append({})
        self._tiers[tier + 1][about] = message
        self._tier_of[about] = tier + 1

    def _drop_most_told(self) -> None:
        for waiting in reversed(self._tiers):
            if waiting:
                self.drop(next(iter(waiting)))
                self.dropped += 1
                return
