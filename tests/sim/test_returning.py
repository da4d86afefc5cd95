"""A node that is told to hold a replica gets one, though whom it joined by is gone."""

from __future__ import annotations

import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.remote import Remote
from swarmd.cluster.replica import Replica, ReplicaSettings
from swarmd.sim.bottle import Bottle
from tests.sim.world import bottled

THREE = OpeningSettings(replica=ReplicaSettings(replicas_max=3))


@bottled(1, THREE)
async def test_a_node_takes_the_place_of_the_one_by_which_it_joined(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c", "d")
    (served,) = [name for name in "abcd" if isinstance(bottle.cluster(name), Remote)]
    assert served != "a", "the first founded it"
    await trio.sleep(3)
    await bottle.leave("a")
    await bottle.until(
        lambda: isinstance(bottle.machine(served).cluster, Replica), 60, "a replica in its place"
    )
    await bottle.settle()
