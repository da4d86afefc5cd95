"""A majority is gone for good: a survivor goes on alone, and whoever comes back finds its place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Said, swarmd
from tests.daemon import running_daemon
from tests.swarms import Node, Swarm, joining, running_swarm, until

LAN: dict[str, Any] = {"mesh": {"timing": "lan"}}
YES = "--yes-majority-is-lost"
COMES_BACK_S = 60.0


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Swarm]:
    with running_swarm(tmp_path, 3, **LAN) as swarm:
        yield swarm


def run(node: Node, *args: object) -> Said:
    return swarmd(*args, "--data-dir", node.data_dir)


def names(node: Node) -> set[str]:
    return {n["name"] for n in node.status()["nodes"]}


def done_jobs(node: Node) -> set[str]:
    return {j["id"] for j in node.console("GET", "/jobs")["jobs"] if j["status"] == "completed"}


def whole(swarm: Swarm, among: list[Node]) -> None:
    def seen() -> bool:
        for node in among:
            status = node.status()
            if status["leader"] is None or not all(
                n["status"] == "alive" and n["role"] == "voter" for n in status["nodes"]
            ):
                return False
        return True

    until(seen, "it does not come whole again", COMES_BACK_S)


def start(node: Node) -> None:
    """Who comes back may be ready late: it has to find out first."""
    node.start()


def test_who_comes_back_follows_where_its_log_fits(three: Swarm) -> None:
    first = three.nodes[0]
    jobs = {first.run("true") for _ in range(5)}
    for job in jobs:
        first.ended(job)
    three.stop()  # all equally far
    survivor, *others = three.nodes
    ids = {node.name: (node.data_dir / "node-id").read_text() for node in three.nodes}
    said = run(survivor, "recover", YES, "--json")
    assert said.status == 0, said
    assert sorted(said.json["voters_lost"]) == [n.name for n in others]
    kept = Path(said.json["kept"])
    assert {"raft.db", "state.db"} <= {p.name for p in kept.iterdir()}
    survivor.start()
    status = survivor.status()
    assert status["cluster_id"] == said.json["cluster_id"]
    assert jobs <= done_jobs(survivor)
    after = survivor.run("true")
    assert survivor.ended(after)["status"] == "completed"
    # One after the other: together they would be a majority of the swarm that was.
    for node in others:
        node.start()
    whole(three, three.nodes)
    three.wait_level()
    assert {node.name: (node.data_dir / "node-id").read_text() for node in three.nodes} == ids
    assert {node.status()["cluster_id"] for node in three.nodes} == {said.json["cluster_id"]}
    # The keys of the swarm are at hand: others join, with certificates of the same authority.
    three.stop()
    three.check_replicas()


def test_who_knows_more_begins_anew(three: Swarm) -> None:
    survivor = three.followers()[0]
    others = [n for n in three.nodes if n is not survivor]
    kept = survivor.run("true")
    survivor.ended(kept)
    three.wait_level()
    survivor.stop()
    lost = others[0].run("true")
    others[0].ended(lost)
    ids = {node.name: (node.data_dir / "node-id").read_text() for node in others}
    for node in others:
        node.stop()
    said = run(survivor, "recover", YES)
    assert said.status == 0, said
    survivor.start()
    assert lost not in done_jobs(survivor) and kept in done_jobs(survivor)
    new = survivor.run("true")
    # One alone of those who know more: it has no quorum of its own.
    back = others[0]
    back.start()
    until(lambda: names(survivor) and (back.data_dir / "node-id").read_text() != ids[back.name],
          "it goes on as who it was", COMES_BACK_S)  # fmt: skip
    until(lambda: new in done_jobs(back), "it has not what the others have", COMES_BACK_S)
    assert lost not in done_jobs(back)
    assert (back.data_dir / "set-aside" / "raft.db").exists()
    other = others[1]
    other.start()
    whole(three, three.nodes)
    assert (other.data_dir / "node-id").read_text() != ids[other.name]
    three.stop()
    three.check_replicas()


def test_two_that_were_recovered_apart_never_mix(three: Swarm) -> None:
    one, two, third = three.nodes
    three.stop()
    assert run(one, "recover", YES).status == 0
    assert run(two, "recover", YES).status == 0
    three.start(one, two)
    mine, theirs = one.run("true"), two.run("true")
    one.ended(mine)
    two.ended(theirs)
    a, b = one.status()["cluster_id"], two.status()["cluster_id"]
    assert a != b and a.partition("+")[0] == b.partition("+")[0]
    with pytest.raises(AssertionError):
        third.start()
    assert "recovered more than once, apart" in third.log()
    third.end()
    assert theirs not in done_jobs(one) and mine not in done_jobs(two)
    # One of them is given up: its host joins the other as a new node.
    two.end()
    three.start(third)
    until(lambda: mine in done_jobs(third), "it does not follow the one that is left", COMES_BACK_S)
    assert run(one, "remove", "n2").status == 0
    two.data_dir.rename(two.folder / "given-up")
    two.settings = joining(two.settings, one)
    two.start()
    whole(three, three.nodes)
    assert mine in done_jobs(two) and theirs not in done_jobs(two)


def test_a_majority_that_is_there_is_left_alone(three: Swarm) -> None:
    node = three.followers()[0]
    said = run(node, "recover", YES)
    assert said.status == 1 and "another swarmd runs on" in said.err, said
    node.stop()
    before = (node.data_dir / "raft.db").read_bytes()
    said = run(node, "recover", YES)
    assert said.status == 1 and "a majority is not lost" in said.err, said
    node.start()
    three.wait_whole()
    assert "+" not in node.status()["cluster_id"]
    assert before
    said = swarmd("recover", YES, "--data-dir", three.folder / "nowhere")
    assert said.status == 1 and "there is no node in" in said.err
    # Without a word of confirmation nothing is done.
    three.stop()
    said = run(node, "recover")
    assert said.status == 130 and "Type the node's name" in said.err, said
    assert not list(node.data_dir.glob("before-recover*"))


def test_a_node_that_is_alone_has_nothing_to_recover(tmp_path: Path) -> None:
    with running_daemon(tmp_path) as daemon:
        daemon.stop()
        said = swarmd("recover", YES, "--data-dir", daemon.data_dir)
        assert said.status == 1 and "is the only voter: `swarmd up`" in said.err, said


def test_one_that_never_voted_says_what_that_means(tmp_path: Path) -> None:
    with running_swarm(tmp_path, 4, mesh={"timing": "lan", "voters": 3}) as swarm:
        first = swarm.nodes[0]
        until(lambda: sorted(n["role"] for n in first.status()["nodes"]) ==
              ["learner", "voter", "voter", "voter"], "no learner")  # fmt: skip
        name = next(n["name"] for n in first.status()["nodes"] if n["role"] == "learner")
        for node in swarm.nodes:
            node.stop()
        said = run(swarm[name], "recover", YES)
        assert said.status == 1 and "never voted" in said.err and "raft restore" in said.err, said
