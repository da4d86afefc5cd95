"""Chaos of many seeds: some the same each time, some that nobody has tried yet.

`SWARMD_SIM_SEEDS=100-199` (or `103,107`) runs others than the usual; `SWARMD_SIM_SHRINK_S=0` leaves
a failure as long as it is. `python -m tests.sim` runs as many as are wanted.
"""

from __future__ import annotations

import os
import random

import pytest

from swarmd.sim.faults import Fault, decode_schedule, encode_schedule
from tests.sim.seeds import chaos_of, run_seed
from tests.sim.shrink import Budget, explain
from tests.sim.world import SEEDS

FIXED = 180
FRESH = 20
SEEDS_A_TEST = 10
SECONDS = 60.0
SHRINK_S = float(os.environ.get("SWARMD_SIM_SHRINK_S", "45"))
SHRINK_TRIES = 60
FIXED_FROM = 100
FRESH_MAX = 10**9


def chosen() -> list[range]:
    """One test each."""
    if not SEEDS:
        fixed = range(FIXED_FROM, FIXED_FROM + FIXED, SEEDS_A_TEST)
        return [range(n, n + SEEDS_A_TEST) for n in fixed]
    found: list[range] = []
    for part in SEEDS.split(","):
        low, _, high = part.partition("-")
        found += [range(n, n + 1) for n in range(int(low), int(high or low) + 1)]
    return found


def passes(seed: int) -> None:
    outcome = run_seed(seed, SECONDS)
    if outcome.failure:
        tries = SHRINK_TRIES if SHRINK_S > 0 else 0
        lines = explain(outcome, SECONDS, Budget(tries, SHRINK_S))
        pytest.fail("\n".join(lines), pytrace=False)


@pytest.mark.parametrize("seeds", chosen(), ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_chaos_breaks_no_rule(seeds: range) -> None:
    for seed in seeds:
        passes(seed)


@pytest.mark.skipif(bool(SEEDS), reason="the seeds are said")
@pytest.mark.parametrize("part", range(FRESH // SEEDS_A_TEST))
def test_chaos_that_nobody_has_tried_breaks_no_rule(part: int) -> None:
    fresh = random.SystemRandom()
    for _ in range(SEEDS_A_TEST):
        passes(fresh.randrange(FIXED_FROM + FIXED, FRESH_MAX))


def test_the_same_seed_and_schedule_are_the_same_run() -> None:
    """Read back from text, too; and another schedule is another run."""
    schedule = chaos_of(7, 12).schedule
    first = run_seed(7, 12)
    assert not first.failure, first.failure
    again = run_seed(7, 12, decode_schedule(encode_schedule(schedule), chaos_of(7, 12).kinds))
    other = run_seed(7, 12, schedule[: len(schedule) // 2])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_a_failure_says_how_to_see_it_again_and_with_fewer_faults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A rule that two kinds of faults break together, planted where the end is checked."""
    drawn = chaos_of(8, 9).schedule
    guilty = {drawn[1].kind, drawn[4].kind}

    def check(self, world, observer):  # type: ignore[no-untyped-def]
        assert not guilty <= {fault.kind for fault in self.schedule}, "as if"

    monkeypatch.setattr("tests.sim.chaos.Chaos._check", check)
    failed = run_seed(8, 9)
    assert failed.kind == "AssertionError: as if"
    said = "\n".join(explain(failed, 9, Budget(40)))
    assert "seed 8; again: python -m tests.sim --seed 8 --seconds 9" in said
    lines = said.partition("<<'END'\n")[2].partition("\nEND")[0]
    short: list[Fault] = decode_schedule(lines, chaos_of(8, 9).kinds)
    assert {fault.kind for fault in short} == guilty
    assert len(short) == len(guilty)
