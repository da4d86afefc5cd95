"""The job queue's counts as Prometheus families, all prefixed `executr_`.

A label's values are bounded: the type is the user's own word, so beyond TYPES_MAX of them the rest
is counted as OTHER. Types are taken in alphabetical order, never by size: whichever new type comes,
a series that is shown, OTHER included, can only grow.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from api.jobqueue.words import PRIORITIES, STATUSES, priority_word, status_word
from swarmd.ops.stats import Histogram, Totals

PREFIX = "executr_"
TYPES_MAX = 200
OTHER = "(other)"


def exposition(totals: Totals, executors_active: int, requests: CollectorRegistry) -> bytes:
    """The whole page: what the swarm counts, then what this surface counted of its requests."""
    counted = CollectorRegistry(auto_describe=False)
    counted.register(_Families(tuple(families(totals, executors_active))))
    return generate_latest(counted) + generate_latest(requests)


@dataclass(frozen=True, eq=False)
class _Families(Collector):
    made: tuple[Metric, ...]

    def collect(self) -> Iterable[Metric]:
        return self.made


def families(totals: Totals, executors_active: int) -> Iterator[Metric]:
    yield _submitted(totals)
    for name, count, said in (
        ("jobs_completed", totals.completed, "Jobs that completed."),
        ("jobs_failed", totals.failed, "Jobs that failed."),
        ("jobs_cancelled", totals.cancelled, "Jobs that were cancelled."),
    ):
        yield CounterMetricFamily(PREFIX + name, said, value=count)
    yield _in_queue(totals)
    yield GaugeMetricFamily(
        f"{PREFIX}executors_active", "Executors heard of within 30 s.", value=executors_active
    )
    yield _histogram(
        "job_wait_duration_seconds", "From a job's submission to its start.", totals.wait
    )
    yield _histogram("job_run_duration_seconds", "From a job's start to its end.", totals.run)


def _submitted(totals: Totals) -> Metric:
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    shown = set(sorted({type_ for type_, _ in totals.submitted})[:TYPES_MAX])
    for (type_, priority), count in totals.submitted.items():
        counts[type_ if type_ in shown else OTHER, priority_word(priority)] += count
    family = CounterMetricFamily(
        f"{PREFIX}jobs_submitted", "Jobs submitted.", labels=("type", "priority")
    )
    for labels, count in sorted(counts.items()):
        family.add_metric(labels, count)
    return family


def _in_queue(totals: Totals) -> Metric:
    counts = {(status, priority): 0 for status in STATUSES for priority in PRIORITIES}
    for (status, priority), count in totals.in_queue.items():
        counts[status_word(status), priority_word(priority)] += count
    family = GaugeMetricFamily(
        f"{PREFIX}jobs_in_queue", "Jobs kept at present.", labels=("status", "priority")
    )
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _histogram(name: str, said: str, histogram: Histogram) -> Metric:
    """`counts` are of each bucket alone, the last of all that is longer; Prometheus wants sums."""
    family = HistogramMetricFamily(PREFIX + name, said)
    below, buckets = 0, []
    bounds: Iterable[str] = (*(f"{bound:g}" for bound in histogram.bounds_s), "+Inf")
    for bound, count in zip(bounds, histogram.counts, strict=True):
        below += count
        buckets.append((bound, float(below)))
    family.add_metric((), buckets, histogram.sum_s)
    return family
