"""Counts and durations of requests, for the dialect's own metrics page.

Label values are bounded: a path that matched no route counts as `other`, an odd method too.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
OTHER = "other"


class RequestMetrics:
    """`{prefix}api_requests_total` and `{prefix}api_request_duration_seconds` in `registry`."""

    def __init__(self, prefix: str, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry if registry is not None else CollectorRegistry()
        self._total = Counter(
            f"{prefix}api_requests_total",
            "Requests answered, by method, endpoint and status.",
            ("method", "endpoint", "status"),
            registry=self.registry,
        )
        self._duration = Histogram(
            f"{prefix}api_request_duration_seconds",
            "Time from a request's headers to the end of its answer.",
            ("method", "endpoint"),
            registry=self.registry,
            buckets=BOUNDS_S,
        )
        self._totals: dict[tuple[str, str, int], Counter] = {}
        self._durations: dict[tuple[str, str], Histogram] = {}

    def count(self, method: str, endpoint: str, status: int, duration_s: float | None) -> None:
        """One answer was sent; streams are counted but not timed."""
        if method not in METHODS:
            method = OTHER
        key = (method, endpoint, status)
        total = self._totals.get(key)
        if total is None:
            total = self._totals[key] = self._total.labels(method, endpoint, str(status))
        total.inc()
        if duration_s is not None:
            duration = self._durations.get(key[:2])
            if duration is None:
                duration = self._durations[key[:2]] = self._duration.labels(method, endpoint)
            duration.observe(duration_s)
