"""Nodes beyond the replicas, as real daemons: they run jobs, answer anything, and take over."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.swarms import Node, Swarm, running_swarm, until

SETTINGS = {"mesh": {"replicas": 3}}


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with running_swarm(
        tmp_path_factory.mktemp("remote"), first=101, count=5, **SETTINGS
    ) as running:
        yield running


def roles(node: Node) -> dict[str, str]:
    return {n["name"]: n["role"] for n in node.status()["nodes"]}


def remotes(swarm: Swarm) -> list[Node]:
    found = roles(swarm["n1"])
    return [swarm[name] for name, role in found.items() if role == "agent"]


def test_two_of_five_hold_no_replica_and_answer_all_the_same(swarm: Swarm) -> None:
    served = remotes(swarm)
    assert len(served) == 2
    for node in swarm.nodes:
        until(lambda node=node: sorted(roles(node).values()).count("voter") == 3, "three vote")
        job_id = node.run(f"echo from {node.name}")
        assert all(n.ended(job_id)["status"] == "completed" for n in swarm.nodes)
    for node in served:
        status = node.status()
        assert status["leader"] in ("n1", "n2", "n3", "n4", "n5")
        assert len(status["nodes"]) == 5


def test_they_run_jobs(swarm: Swarm) -> None:
    for node in remotes(swarm):
        job_id = swarm["n1"].run("echo here", constraints=[f"node.name=={node.name}"])
        job = node.ended(job_id)
        assert (job["status"], job["node"]) == ("completed", node.name), job


def test_a_replica_that_dies_takes_nobody_with_it(swarm: Swarm) -> None:
    served = remotes(swarm)[0]
    leader = swarm.leader()
    leader.kill()
    job_id = served.run("echo on")
    assert served.ended(job_id)["status"] == "completed"
    leader.start()
    until(lambda: served.status()["leader"], "no leader")


def test_it_needs_no_token_when_it_starts_again(swarm: Swarm) -> None:
    served = remotes(swarm)[0]
    served.stop()
    served.start()
    assert served.ended(served.run("true"))["status"] == "completed"
