"""How soon a death is known to all, and what membership costs meanwhile: figures with a bound.

`pytest -s` prints them.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mesh.swim import State
from swarmd.sim.gossip import GossipWorld, Weather

IDLE_BYTES_MAX = 600
"""A second and node, before they are sealed; 61 more a datagram after."""


def detection_s(
    count: int, seed: int, end: Callable[[GossipWorld, str], None], loss: float
) -> tuple[float, float]:
    """(until all know, bytes a second and node while nothing happened)."""
    world = GossipWorld(seed, weather=Weather(loss=loss))
    ids = world.start_many(count)
    world.settle(ids)
    world.run(10 + world.rng.random())
    before = sum(host.sent_bytes for host in world.running())
    world.run(5)
    idle = (sum(host.sent_bytes for host in world.running()) - before) / 5 / count
    victim = world.rng.choice(ids)
    end(world, victim)
    rest = [id for id in ids if id != victim]
    took = world.run_until(lambda: all(world.state(id, victim) is State.DEAD for id in rest), 30)
    assert {death[2] for death in world.deaths()} == {victim}
    return took, idle


@pytest.mark.parametrize(
    ("count", "runs", "end", "loss", "p50_s", "p99_s"),
    [
        (3, 40, GossipWorld.unplug, 0.0, 2.1, 3.0),
        (5, 40, GossipWorld.unplug, 0.0, 2.1, 3.0),
        (20, 40, GossipWorld.unplug, 0.0, 2.1, 3.0),
        (20, 40, GossipWorld.kill, 0.0, 1.2, 2.0),
        (50, 8, GossipWorld.unplug, 0.05, 2.5, 3.2),
        (200, 1, GossipWorld.unplug, 0.0, 3.5, 3.5),
    ],
)
def test_a_death_is_known_to_all_in_time(
    count: int, runs: int, end: Callable[[GossipWorld, str], None], loss: float, p50_s: float,
    p99_s: float,
) -> None:  # fmt: skip
    took, idle = zip(*(detection_s(count, seed, end, loss) for seed in range(runs)), strict=True)
    ordered = sorted(took)
    median, worst = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
    print(
        f"\n{count} nodes, {end.__name__}: {median:.2f} s, worst {worst:.2f}, {max(idle):.0f} B/s"
    )
    assert median <= p50_s
    assert worst <= p99_s
    assert max(idle) <= IDLE_BYTES_MAX
