"""Spans: a bounded memory of numbers, kept as ranges, that forgets the lowest first.

Attempt ids mostly follow one another, so a handful of ranges remembers a node's whole history.
"""

from __future__ import annotations

from bisect import bisect_right

SPANS_MAX = 4096


class Spans:
    def __init__(self, pairs: list[list[int]] | None = None) -> None:
        self._lows: list[int] = []
        self._highs: list[int] = []
        for low, high in sorted(pairs or []):
            self._lows.append(low)
            self._highs.append(high)

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._lows, number) - 1
        return at >= 0 and number <= self._highs[at]

    def add(self, number: int) -> None:
        lows, highs = self._lows, self._highs
        at = bisect_right(lows, number)
        if at and number <= highs[at - 1]:
            return
        joins_left = at > 0 and highs[at - 1] == number - 1
        joins_right = at < len(lows) and lows[at] == number + 1
        if joins_left and joins_right:
            highs[at - 1] = highs[at]
            del lows[at], highs[at]
        elif joins_left:
            highs[at - 1] = number
        elif joins_right:
            lows[at] = number
        else:
            lows.insert(at, number)
            highs.insert(at, number)
            if len(lows) > SPANS_MAX:
                del lows[0], highs[0]

    def pairs(self) -> list[list[int]]:
        return [list(pair) for pair in zip(self._lows, self._highs, strict=True)]
