"""Where a builder is reached: where it says, unless another is to be there too."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from swarmd.control.reaching import CareSettings, Ways
from swarmd.domain.builds import Builder
from swarmd.domain.care import Care
from swarmd.domain.errors import Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.drivers.ssh import SshTarget
from swarmd.ops.reach import PLACES_S, Hosts, Reach
from swarmd.state.build_queries import BuilderView, ListBuilderNodes
from swarmd.state.care_queries import Cared


class Swarm:
    """The builders that it knows, and how a node's configuration reaches them."""

    def __init__(self, elsewhere: dict[str, str] | None = None) -> None:
        self.nodes: dict[str, Node] = {}
        self.reads = 0
        hosts = Hosts("key", elsewhere=elsewhere or {})
        self.cluster: Any = self
        self.reach = Reach(self.cluster, hosts)

    async def read(self, query: object) -> Any:
        assert query == ListBuilderNodes()
        self.reads += 1
        return [*self.nodes.values()]

    def says(self, name: str, *addresses: str, kind: NodeKind = NodeKind.DRONE) -> None:
        self.nodes[name] = Node(NodeId(f"builder/{name}"), name, kind, addresses=addresses)

    async def place(self, name: str) -> tuple[str, int]:
        target = await self.reach.target(self.view(self.nodes[name]))
        return target.host, target.port

    def view(self, node: Node) -> BuilderView:
        return BuilderView(Builder(node.id), node, (), (), False)

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
    assert "at 10.0.0.1, this one and drone-01; name a place for each in ssh.hosts" in said
    await trio.sleep(PLACES_S)
    assert "this one and drone-07;" in await swarm.refusal("drone-01")
    swarm.says("drone-08", "10.0.0.1")
    await trio.sleep(PLACES_S)
    assert "this one and drone-07 and 1 more;" in await swarm.refusal("drone-01")


@pytest.mark.parametrize(
    ("one", "same"),
    [
        ("10.0.0.1", "10.1"),
        ("10.0.0.1", "0xa000001"),
        ("10.0.0.1", "012.0.1"),
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


@pytest.mark.parametrize(
    "other", ["10.0.0.256", "10.0.0.1.1", "10.256.1", "0x", "08.0.0.1", "9" * 60]
)
async def test_what_is_no_address_is_a_name(other: str) -> None:
    swarm = Swarm()
    swarm.says("drone-01", "10.0.0.1")
    swarm.says("drone-07", other)
    swarm.says("drone-08", "9" * 5000)  # more digits than Python takes for a number
    assert await swarm.place("drone-07") == (other, 22)


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


async def test_one_place_that_the_configuration_names_for_two_is_neithers() -> None:
    """For payloads and terminals as for self-healing, which is refused in the same words."""
    swarm = Swarm(
        {"drone-01": "build.lan", "drone-07": "Build.LAN.:22", "drone-08": "build.lan:23"}
    )
    for name in swarm.reach._hosts.elsewhere:
        swarm.says(name, "172.17.0.2")
    assert await swarm.place("drone-08") == ("build.lan", 23)
    refusals = {name: await swarm.refusal(name) for name in ("drone-01", "drone-07")}
    assert "at build.lan, this one and drone-07; name a place for each" in refusals["drone-01"]
    all_cared = [Cared(Builder(n.id), n, Care(n.id)) for n in swarm.nodes.values()]

    async def by_the_rule(cared: Cared) -> SshTarget:
        return await swarm.reach.target(swarm.view(cared.node))

    async def as_named(cared: Cared) -> SshTarget:
        host, port = swarm.reach._hosts.place(cared.node.name, cared.node.addresses)
        return SshTarget(host, port, "root", key_file="key", host_keys=("a key",))

    for target in (by_the_rule, as_named):
        found = await Ways(swarm.cluster, CareSettings(), None, target).find(all_cared)
        said = {
            node.name: found[node.id].why for node in swarm.nodes.values() if node.name in refusals
        }
        assert said == refusals


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
