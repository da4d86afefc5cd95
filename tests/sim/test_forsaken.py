"""A node that does not vote gives up a silent leader, too: it would tell of it for ever."""

from __future__ import annotations

import trio

from swarmd.sim.world import World
from tests.sim.world import simulated


@simulated(61)
async def test_a_learner_that_is_cut_off_with_the_old_leader_knows_that_nobody_leads(
    world: World,
) -> None:
    await world.swarm_of("a", "b", "c", "d")
    old = await world.leader()
    view = world.replica(old).log_view()
    (learner,) = view.learners
    rest = tuple(name for name in "abcd" if name not in (old, learner))
    world.network.isolate(old, learner)
    await world.until(
        lambda: world.replica(learner).leadership().leader is None, 5, "the learner gives it up"
    )
    assert await world.leader(among=rest) in rest
    world.network.heal()
    await world.settle()
    assert world.replica(learner).leadership().leader in rest


@simulated(62)
async def test_a_learner_of_a_leader_that_is_there_stays_with_it(world: World) -> None:
    await world.swarm_of("a", "b", "c", "d")
    leader = await world.leader()
    (learner,) = world.replica(leader).log_view().learners
    seen = world.replica(learner).leadership()
    with trio.move_on_after(30):
        changed = await world.replica(learner).leadership_changed(seen)
        raise AssertionError(f"it took {seen} for gone: {changed}")
