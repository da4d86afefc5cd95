"""Where a builder is reached: where it says, unless another is to be there too."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from swarmd.domain.builds import Builder
from swarmd.domain.errors import Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.ops.reach import PLACES_S, Hosts, Reach
from swarmd.state.build_queries import BuilderView, ListBuilderNodes


class Swarm:
    """The builders that it knows, and how a node's configuration reaches them."""

    def __init__(self, elsewhere: dict[str, str] | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self.reads = 0
        hosts = Hosts("key", elsewhere=elsewhere or {})
        self.reach = Reach(self, hosts)  # type: ignore[arg-type]

    async def read(self, query: object) -> Any:
        assert query == ListBuilderNodes()
        self.reads += 1
        return [*self.nodes.values()]

    def says(self, name: str, *addresses: str, kind: NodeKind = NodeKind.DRONE) -> None:
        self.nodes[name] = Node(NodeId(f"builder/{name}"), name, kind, addresses=addresses)

    async def place(self, name: str) -> tuple[str, int]:
        node = self.nodes[name]
        view = BuilderView(Builder(node.id), node, (), (), False)
        target = await self.reach.target(view)
        return target.host, target.port

    async def refusal(self, name: str) -> str:
        with pytest.raises(SwarmError) as refused:
            await self.place(name)
        assert isinstance(refused.value, Conflict), refused.value
        return refused.value.message


async def test_who_says_to_be_where_another_is_is_not_believed_nor_is_the_other() -> None:
    swarm = Swarm()
    swarm.says("drone-01", "10.0.0.1")
    swarm.says("drone-07", "10.0.0.7")
    assert await swarm.place("drone-07") == ("10.0.0.7", 22)
    swarm.says("drone-07", "10.0.0.1")
    said = await swarm.refusal("drone-07")
    assert "at 10.0.0.1, where drone-01 should be; name the place of each in ssh.hosts" in said
    await trio.sleep(PLACES_S)
    assert "where drone-07 should be" in await swarm.refusal("drone-01")
    swarm.says("drone-08", "10.0.0.1")
    await trio.sleep(PLACES_S)
    assert "where drone-07 and 1 more should be" in await swarm.refusal("drone-01")


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("10.0.0.1", "10.1"),
        ("10.0.0.1", "0xa000001"),
        ("10.0.0.1", "::ffff:10.0.0.1"),
        ("fd00::1", "FD00:0:0::0001"),
        ("drone-01.lan", "Drone-01.LAN."),
    ],
)
async def test_a_place_is_the_same_however_it_is_written(one: str, same: str) -> None:
    swarm = Swarm()
    swarm.says("drone-01", "10.9.9.9", one)
    swarm.says("drone-07", same)
    assert "drone-01" in await swarm.refusal("drone-07")
    assert await swarm.place("drone-01") == ("10.9.9.9", 22)


async def test_a_node_that_builds_is_another_too() -> None:
    swarm = Swarm()
    swarm.says("n1", "10.0.0.1", kind=NodeKind.MEMBER)
    swarm.says("drone-07", "10.0.0.1")
    assert "n1" in await swarm.refusal("drone-07")


async def test_what_the_configuration_names_is_believed_whatever_others_say() -> None:
    swarm = Swarm({"drone-01": "10.0.0.1"})
    swarm.says("drone-01", "172.17.0.2")
    swarm.says("drone-07", "10.0.0.1")
    swarm.says("drone-08", "172.17.0.2")
    assert await swarm.place("drone-01") == ("10.0.0.1", 22)
    for name in ("drone-07", "drone-08"):
        assert "drone-01" in await swarm.refusal(name)


async def test_builders_behind_one_address_are_reached_by_ports_of_their_own() -> None:
    swarm = Swarm({"drone-01": "10.0.0.1:2201", "drone-02": "10.0.0.1:2202", "broken": "x:y"})
    for name in ("drone-01", "drone-02", "broken"):
        swarm.says(name, "10.0.0.1")
    assert await swarm.place("drone-01") == ("10.0.0.1", 2201)
    assert await swarm.place("drone-02") == ("10.0.0.1", 2202)
    with pytest.raises(Unavailable, match="no port"):
        await swarm.place("broken")
    swarm.says("drone-03", "10.0.0.3")
    assert await swarm.place("drone-03") == ("10.0.0.3", 22)


async def test_where_all_are_is_not_asked_anew_for_each() -> None:
    swarm = Swarm()
    for number in range(50):
        swarm.says(f"drone-{number}", f"10.0.0.{number}")
    for name in swarm.nodes:
        await swarm.place(name)
    assert swarm.reads == 1
