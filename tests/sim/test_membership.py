"""Members of the log: what a change has brought about when it is said to be done."""

from __future__ import annotations

from swarmd.sim.world import World
from tests.sim.world import simulated


@simulated(seed=61)
async def test_a_change_is_done_when_no_other_set_of_voters_decides_any_more(world: World) -> None:
    await world.swarm_of("a", "b", "c", "d", "e")
    leader = world.replica(await world.leader())
    for _ in range(5):
        view = leader.log_view()
        loses = next(n for n in view.voters if n != leader.node.id)
        await leader.change_members(voters=(view.learners[0],), learners=(loses,))
        after = leader.log_view()
        assert not after.joint
        assert {*after.voters} == {*view.voters} - {loses} | {view.learners[0]}
