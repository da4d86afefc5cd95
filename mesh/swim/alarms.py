"""What is to happen when: one time for each key, which may be moved or dropped."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

NEVER = float("inf")
_SPARE = 64


class Alarms(Generic[K]):
    def __init__(self) -> None:
        self._at: dict[K, float] = {}
        self._heap: list[tuple[float, int, K]] = []
        self._count = 0

    def __contains__(self, key: K) -> bool:
        return key in self._at

    def set(self, key: K, at: float) -> None:
        if self._at.get(key) == at:
            return
        self._at[key] = at
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, key))
        if len(self._heap) > 2 * len(self._at) + _SPARE:
            self._compact()

    def set_by(self, key: K, at: float) -> None:
        """Then, where it is not set for earlier."""
        if at < self._at.get(key, NEVER):
            self.set(key, at)

    def drop(self, key: K) -> None:
        self._at.pop(key, None)

    def next(self) -> float:
        """When the next is due."""
        heap = self._heap
        while heap:
            at, _, key = heap[0]
            if self._at.get(key) == at:
                return at
            heapq.heappop(heap)
        return NEVER

    def pop(self, now: float) -> K | None:
        """The first that is due."""
        if self.next() > now:
            return None
        key = heapq.heappop(self._heap)[2]
        del self._at[key]
        return key

    def hold(self, now: float) -> None:
        """What was due before is due now."""
        while self.next() < now:
            self.set(heapq.heappop(self._heap)[2], now)

    def _compact(self) -> None:
        heap = [(at, number, key) for at, number, key in self._heap if self._at.get(key) == at]
        heapq.heapify(heap)
        self._heap = heap
