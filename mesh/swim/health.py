"""Local health: how far this node doubts itself before it doubts others (Lifeguard's awareness)."""

from __future__ import annotations


class Health:
    def __init__(self, score_max: int) -> None:
        self._score_max = score_max
        self.score = 0
        """0 is well."""

    def worsen(self, by: int = 1) -> None:
        assert by >= 0, "it would be better than well, and probe without end"
        self.score = min(self._score_max - 1, self.score + by)

    def better(self) -> None:
        self.score = max(0, self.score - 1)

    def scale(self, duration_s: float) -> float:
        return duration_s * (self.score + 1)
