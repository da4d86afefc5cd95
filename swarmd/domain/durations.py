"""Bounds of the histograms in which the swarm counts how long things took."""

from __future__ import annotations

BOUNDS_S = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0)


def bucket_of(duration_ms: int) -> str:
    """The label of the bucket a duration falls into: an index into BOUNDS_S, or `inf`."""
    return next((str(i) for i, b in enumerate(BOUNDS_S) if duration_ms <= b * 1000), "inf")
