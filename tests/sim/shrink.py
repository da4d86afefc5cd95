"""Shrinking: the fewest and the smallest faults that still fail, found by trying with fewer.

Delta debugging over a list, and then each that is left is made smaller. A try is a whole run, so
how many there may be is said beforehand; what was found by then is still a schedule that fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

from msgspec.structs import replace

from swarmd.sim.faults import Fault, encode_schedule
from tests.sim.seeds import Outcome, chaos_of, run_seed

T = TypeVar("T")
FOR_S_MIN = 0.05


@dataclass
class Budget:
    tries: int
    wall_s: float = 3600.0
    """Begins with the budget."""

    def __post_init__(self) -> None:
        self._ends = time.monotonic() + self.wall_s

    def spend(self) -> bool:
        """Whether there was one more try."""
        self.tries -= 1
        return self.tries >= 0 and time.monotonic() < self._ends


def fewest(items: Sequence[T], fails: Callable[[list[T]], bool], budget: Budget) -> list[T]:
    """Some of the items that fail, of which none can be left out; or as far as the budget goes.
    All of them are known to fail."""
    kept = list(range(len(items)))
    tried: dict[tuple[int, ...], bool] = {}

    def still(chosen: list[int]) -> bool:
        key = tuple(chosen)
        if key not in tried:
            if not budget.spend():
                return False
            tried[key] = fails([items[n] for n in chosen])
        return tried[key]

    if kept and still([]):
        return []
    parts = 2
    while len(kept) > 1:
        chunks = _cut(kept, parts)
        for n, chunk in enumerate(chunks):
            rest = [each for m, other in enumerate(chunks) if m != n for each in other]
            if parts > 2 and still(chunk):
                kept, parts = chunk, 2
                break
            if still(rest):
                kept, parts = rest, max(2, parts - 1)
                break
        else:
            if parts >= len(kept) or budget.tries <= 0:
                break
            parts = min(len(kept), 2 * parts)
    return [items[n] for n in kept]


def _cut(kept: list[int], parts: int) -> list[list[int]]:
    size, more = divmod(len(kept), parts)
    bounds = [n * size + min(n, more) for n in range(parts + 1)]
    return [kept[a:b] for a, b in pairwise(bounds) if a < b]


def smaller(
    schedule: Sequence[Fault], fails: Callable[[list[Fault]], bool], budget: Budget
) -> list[Fault]:
    """Each fault shorter, for as long as it still fails."""
    kept = list(schedule)
    for n in range(len(kept)):
        for simpler in _simpler(kept[n]):
            changed = [*kept[:n], simpler, *kept[n + 1 :]]
            if not budget.spend():
                return kept
            if not fails(changed):
                break
            kept = changed
    return kept


def _simpler(fault: Fault) -> Iterator[Fault]:
    while fault.for_s > FOR_S_MIN:
        fault = replace(fault, for_s=round(fault.for_s / 2, 3))
        yield fault


def shrink(
    schedule: Sequence[Fault], fails: Callable[[list[Fault]], bool], budget: Budget
) -> list[Fault]:
    return smaller(fewest(schedule, fails, budget), fails, budget)


def explain(failed: Outcome, seconds: float, budget: Budget) -> Iterator[str]:
    """What was wrong, how to see it again, and the shortest way to it that was found; line by line,
    for the last takes its time."""
    drawn = chaos_of(failed.seed, seconds).schedule
    again = f"python -m tests.sim --seed {failed.seed} --seconds {seconds:g}"
    yield failed.failure.rstrip()
    yield f"seed {failed.seed}; again: {again}"

    def fails(schedule: list[Fault]) -> bool:
        return run_seed(failed.seed, seconds, schedule).kind == failed.kind

    tries = budget.tries
    few = fewest(drawn, fails, budget)
    if few == drawn:
        yield f"all {len(drawn)} faults are needed, as far as was tried"
        return
    only = ",".join(str(drawn.index(fault)) for fault in few)
    yield f"with {len(few)} of {len(drawn)} faults: {again} --only '{only}'"
    small = smaller(few, fails, budget)
    yield f"or, after {tries - max(0, budget.tries)} tries:"
    yield f"{again} --schedule - <<'END'\n{encode_schedule(small)}END"
