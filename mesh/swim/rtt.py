"""Round trips to one peer: the last, a smoothed one, and percentiles over a bounded window."""

from __future__ import annotations

from array import array

import msgspec

WINDOW = 64
_SMOOTHING = 1 / 8


class RttStats(msgspec.Struct, frozen=True):
    count: int
    """Of all that were ever measured; percentiles are over the last of them."""
    last_s: float
    smoothed_s: float
    min_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


class RttWindow:
    __slots__ = ("_at", "_samples", "count", "last_s", "smoothed_s")

    def __init__(self) -> None:
        self.count = 0
        self.last_s = 0.0
        self.smoothed_s = 0.0
        self._samples = array("f")
        self._at = 0

    def add(self, rtt_s: float) -> None:
        self.smoothed_s += (rtt_s - self.smoothed_s) * (_SMOOTHING if self.count else 1.0)
        self.last_s = rtt_s
        self.count += 1
        if len(self._samples) < WINDOW:
            self._samples.append(rtt_s)
        else:
            self._samples[self._at] = rtt_s
            self._at = (self._at + 1) % WINDOW

    def median_of_last(self, count: int) -> float:
        """Of the newest few: one slow answer says nothing of the distance."""
        size = len(self._samples)
        newest = [
            self._samples[(self._at - 1 - n) % size if size == WINDOW else size - 1 - n]
            for n in range(min(count, size))
        ]
        return sorted(newest)[len(newest) // 2]

    def stats(self) -> RttStats | None:
        if not self.count:
            return None
        ordered = sorted(self._samples)

        def at(share: float) -> float:
            return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

        return RttStats(
            self.count, self.last_s, self.smoothed_s, ordered[0], at(0.5), at(0.9), at(0.99),
            ordered[-1],
        )  # fmt: skip
