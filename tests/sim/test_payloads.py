"""Who deploys is alone: a node that loses the swarm stops before another may begin."""

from __future__ import annotations

import pytest
import trio

from swarmd.cluster.handle import Hosted
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, SwarmError, Unavailable
from swarmd.domain.payloads import PayloadSort
from swarmd.ops.payload_holds import AGAIN_S, HOLD_S, held
from swarmd.sim.bottle import Bottle
from tests.sim.world import bottled

ADMIN = Actor("admin", "buildadmin")
SORT = PayloadSort.BINARY


class Deployer:
    """One that is at it for as long as it may."""

    def __init__(self, bottle: Bottle, name: str, node_id: str = "") -> None:
        self.bottle = bottle
        self.name = name
        self.node_id = node_id
        self.spans: list[tuple[float, float]] = []
        self.refusals: list[SwarmError] = []
        self.at_it = trio.Event()
        self.done = trio.Event()

    async def work(self, cluster: Hosted) -> None:
        async with held(cluster, ADMIN, SORT, self.node_id):
            began = trio.current_time()
            self.at_it.set()
            try:
                await self.done.wait()
            finally:
                self.spans.append((began, trio.current_time()))

    async def run(self) -> None:
        """Again and again, until once it was let."""
        while not self.spans:
            try:
                await self.work(self.bottle.cluster(self.name))
            except SwarmError as refusal:
                self.refusals.append(refusal)
                await trio.sleep(0.5)


@bottled(80)
async def test_one_that_is_cut_off_stops_before_another_begins(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    leader = await bottle.leader()
    first, second = [Deployer(bottle, name) for name in bottle.there() if name != leader]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run)
        await first.at_it.wait()
        await trio.sleep(2 * HOLD_S)  # it holds on for as long as it takes
        assert not first.spans
        bottle.network.isolate(first.name)
        cut = trio.current_time()
        nursery.start_soon(second.run)
        with trio.fail_after(3 * HOLD_S):
            await second.at_it.wait()
        second.done.set()
    ((_, ended),) = first.spans
    ((began, _),) = second.spans
    assert cut + HOLD_S - AGAIN_S - 1 <= ended <= began
    assert isinstance(first.refusals[-1], Unavailable)
    assert second.refusals and all(isinstance(each, Conflict) for each in second.refusals)
    bottle.network.heal()


@bottled(81)
async def test_a_leader_that_dies_costs_no_deployment(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    leader = await bottle.leader()
    name = next(name for name in bottle.there() if name != leader)
    deployer = Deployer(bottle, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deployer.run)
        await deployer.at_it.wait()
        await bottle.crash(leader, power=True)
        await trio.sleep(2 * HOLD_S)
        assert not deployer.spans and not deployer.refusals
        other = next(each for each in bottle.there() if each != name)
        with pytest.raises(Conflict, match="under way"):
            await Deployer(bottle, other, "builder/one").work(bottle.cluster(other))
        deployer.done.set()
    await bottle.start(leader)


@bottled(82)
async def test_what_goes_wrong_within_comes_out_as_it_is(bottle: Bottle) -> None:
    await bottle.populate("a")
    cluster = bottle.cluster("a")
    for _ in range(2):  # it was let go of
        with pytest.raises(Conflict, match="of the body"):
            async with held(cluster, ADMIN, SORT, ""):
                raise Conflict("of the body")
    with trio.move_on_after(1):
        async with held(cluster, ADMIN, SORT, ""):
            await trio.sleep_forever()
    async with held(cluster, ADMIN, SORT, ""):
        pass
