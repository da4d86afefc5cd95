"""Random histories of small clusters. A failure names the seed that brings it back."""

from __future__ import annotations

import os

import pytest

from tests.unit.raft_world import World

# RAFT_SEEDS=5000 makes it a soak.
SEEDS = int(os.environ.get("RAFT_SEEDS", "12"))


@pytest.mark.parametrize("nodes", [3, 5])
def test_nothing_that_raft_promises_is_broken(nodes: int) -> None:
    for seed in range(SEEDS):
        world = World(seed, nodes=nodes)
        try:
            world.run(2000)
            world.heal()
        except Exception as error:
            pytest.fail(f"seed {seed} with {nodes} nodes: {type(error).__name__}: {error}")
        assert world.committed, f"seed {seed} with {nodes} nodes: nothing was ever committed"
