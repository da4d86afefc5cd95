"""Who is there, by gossip, among real daemons: killed, stopped, frozen, flooded with packets."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from tests.swarms import Node, Swarm, running_swarm, until

FROZEN_S = 10.0


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with running_swarm(tmp_path_factory.mktemp("gossip"), first=91) as running:
        yield running


def seen_by(node: Node) -> dict[str, str]:
    return {n["name"]: n["status"] for n in node.status()["nodes"]}


def wait_seen(asked: list[Node], name: str, *states: str) -> None:
    until(
        lambda: all(seen_by(node)[name] in states for node in asked),
        f"{name} is not {' or '.join(states)} everywhere",
    )


def test_a_killed_node_is_dead_to_all_and_alive_when_it_is_back(swarm: Swarm) -> None:
    n1, n2, n3 = swarm.nodes
    n3.kill()
    wait_seen([n1, n2], "n3", "dead")
    n3.start()
    wait_seen([n1, n2, n3], "n3", "alive")
    assert "a member is dead" in n1.log() and "a member is back" in n1.log()


def test_a_node_that_stops_says_so(swarm: Swarm) -> None:
    n1, n2, n3 = swarm.nodes
    n3.stop()
    wait_seen([n1, n2], "n3", "left")
    n3.start()
    wait_seen([n1, n2, n3], "n3", "alive")


def test_a_frozen_node_is_missed_and_blames_nobody_when_it_thaws(swarm: Swarm) -> None:
    n1, n2, n3 = swarm.nodes
    os.kill(n3.daemon.process.pid, signal.SIGSTOP)
    try:
        wait_seen([n1, n2], "n3", "dead")
        time.sleep(FROZEN_S)  # the length of the freeze is what is tried
        before = n3.log().count("a member is dead")
    finally:
        os.kill(n3.daemon.process.pid, signal.SIGCONT)
    wait_seen([n1, n2, n3], "n3", "alive")
    until(lambda: set(seen_by(n3).values()) == {"alive"}, "it blames somebody")
    assert n3.log().count("a member is dead") == before
    swarm.wait_level()


def test_packets_of_strangers_do_nothing(swarm: Swarm) -> None:
    n1 = swarm["n1"]
    rng = random.Random(7)
    port = n1.settings["mesh"]["port"]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        for size in (0, 1, 28, 29, 100, 1400, 1401, 9000, 65_000):
            for _ in range(50):
                stranger.sendto(rng.randbytes(size), (n1.address, port))
    for node in swarm.nodes:
        until(lambda: set(seen_by(node).values()) == {"alive"}, "somebody is gone")  # noqa: B023
    assert n1.ended(n1.run("true"))["status"] == "completed"


def test_round_trips_are_told(swarm: Swarm) -> None:
    n1 = swarm["n1"]

    def measured() -> bool:
        rows = {n["name"]: n["rtt_ms"] for n in n1.console("GET", "/nodes")["nodes"]}
        return rows["n1"] is None and all(0 < (rows[n] or 0) < 1000 for n in ("n2", "n3"))

    until(measured, "no round trips")
