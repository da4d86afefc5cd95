"""Chaos of many seeds: `SWARMD_SIM_SEEDS=100-199` (or `103,107`) picks others than the usual."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.chaos import Chaos, cramped, quick
from tests.sim.world import SEEDS, run_world


def seeds(usual: range) -> list[int]:
    if not SEEDS:
        return [*usual]
    found: list[int] = []
    for part in SEEDS.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


@pytest.mark.parametrize("seed", seeds(range(100, 112)))
def test_chaos_loses_nothing_and_no_read_is_stale(seed: int, tmp_path: Path) -> None:
    run_world(seed, tmp_path, Chaos(seed).run, cramped() if seed % 3 == 0 else quick())


@pytest.mark.parametrize("seed", seeds(range(200, 208)))
def test_chaos_while_members_come_and_go(seed: int, tmp_path: Path) -> None:
    run_world(seed, tmp_path, Chaos(seed, members_change=True).run, quick())
