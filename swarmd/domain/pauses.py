"""Pauses between two tries of the same thing."""

from __future__ import annotations

from collections.abc import Iterator


def doubling(first_s: float, most_s: float) -> Iterator[float]:
    """Each twice as long as the one before, up to the most; without end."""
    pause_s = first_s
    while True:
        yield pause_s
        pause_s = min(most_s, 2 * pause_s)
