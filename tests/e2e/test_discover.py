"""Nodes that are told no address find each other on the network, and again where all have moved."""

from __future__ import annotations

from pathlib import Path

from tests.swarms import Node, running_swarm


def test_a_node_finds_its_swarm_and_both_find_each_other_where_they_moved(tmp_path: Path) -> None:
    with running_swarm(tmp_path, 1, first=61, mesh={"discover": True}) as swarm:
        first = swarm.nodes[0]
        mesh = {**first.settings["mesh"], "token": first.token()}
        node = {"name": "n2", "bind": ["127.0.0.62"]}
        settings = {**first.settings, "node": node, "mesh": mesh}
        second = Node("n2", "127.0.0.62", tmp_path / "n2", settings)
        swarm.nodes.append(second)
        second.start()
        swarm.wait_whole()
        job_id = first.run("echo found", constraints=["node.name==n2"])
        assert second.ended(job_id)["status"] == "completed"
        # Both come back at other addresses: none of those that they know is anybody's.
        second.stop()
        first.stop()
        for number, each in enumerate(swarm.nodes, 63):
            each.address = f"127.0.0.{number}"
            moved = {**each.settings["node"], "bind": [each.address]}
            each.settings = {**each.settings, "node": moved}
        swarm.start(*swarm.nodes)
        swarm.wait_whole()
        job_id = second.run("echo again", constraints=["node.name==n1"])
        assert first.ended(job_id)["status"] == "completed"
