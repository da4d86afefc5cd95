"""`swarmd doctor` says what is wrong: on nodes that serve, that wait, and where none runs."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import Said, command, environment, swarmd
from tests.daemon import READY_TIMEOUT_S, running_daemon
from tests.e2e.test_swarm import end_lonely, start_lonely, wait_said
from tests.swarms import Node, Swarm, running_swarm, until

LAN: dict[str, Any] = {"mesh": {"timing": "lan"}}


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Swarm]:
    with running_swarm(tmp_path, 3, **LAN) as swarm:
        yield swarm


def doctor(node: Node, *more: object) -> Said:
    config = node.folder / "swarmd.toml"
    return swarmd("doctor", "--data-dir", node.data_dir, "--config", config, *more)


def said_of(node: Node, level: str) -> str:
    return " / ".join(
        f"{f['what']} [{'; '.join(f['todo'])}]"
        for f in doctor(node, "--json").json["findings"]
        if f["level"] == level
    )


def test_a_swarm_falls_and_each_step_is_explained(three: Swarm) -> None:
    node = three.followers()[0]
    others = [n for n in three.nodes if n is not node]
    said = doctor(node)
    assert said.status == 0 and "nothing is wrong" in said.out, said
    # One away from losing it.
    others[0].kill()
    until(lambda: "no further voter may be lost" in said_of(node, "warning"), "no warning")
    until(lambda: doctor(node).status == 0, "it is called wrong")
    warned = f"1 of 3 voters is not there: {others[0].name}"
    until(lambda: warned in said_of(node, "warning"), "it does not say who")
    # Lost.
    others[1].kill()
    until(lambda: "there is no quorum" in said_of(node, "wrong"), "it does not say so")
    said = doctor(node)
    assert said.status == 1, said
    assert "3 voters (n1, n2, n3)" in said.out and "2 are needed, so 1 more" in said.out
    assert f"1. start {sorted(o.name for o in others)[0]}" in said.out
    assert "FOR GOOD" in said.out and "`swarmd recover`" in said.out
    # The same from the files alone, where none runs.
    node.kill()
    said = doctor(node)
    assert said.status == 1, said
    assert "the daemon does not run" in said.out and "can reach 1" in said.out
    assert f"on {node.name} (run `swarmd doctor` on each survivor" in said.out
    assert "this node's log ends at entry" in said.out
    # Who is there again is seen from the files, too.
    three.start(*others)
    until(lambda: "there is no quorum" not in doctor(node).out, "it does not see them")
    node.start()
    three.wait_whole()
    until(lambda: doctor(node).status == 0, "it is still ill")


def test_two_voters_are_warned_of(tmp_path: Path) -> None:
    with running_swarm(tmp_path, 2, **LAN) as swarm:
        until(lambda: "two nodes vote" in said_of(swarm.nodes[0], "warning"), "no warning")


def test_two_that_go_by_one_name_are_told_of(tmp_path: Path) -> None:
    """Without a quorum nobody can refuse the second of them: gossip sees both."""
    with running_swarm(tmp_path, 4, mesh={"timing": "lan", "voters": 3}) as swarm:
        first = swarm["n1"]
        roles = {n["name"]: n["role"] for n in first.status()["nodes"]}
        assert roles["n1"] == "voter", roles
        renamed = swarm[next(name for name, role in roles.items() if role == "learner")]
        away = [n for n in swarm.nodes if n not in (first, renamed)]
        ids = [(n.data_dir / "node-id").read_text()[:8] for n in (first, renamed)]
        renamed.stop()
        for node in away:
            node.kill()
        with (tmp_path / "renamed").open("wb") as said:
            config = renamed.folder / "swarmd.toml"
            double = subprocess.Popen(
                command("up", "--name", "n1", "--data-dir", renamed.data_dir, "--config", config),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
                env=environment(), start_new_session=True,
            )  # fmt: skip
        try:
            shown = until(
                lambda: next((w for w in said_of(first, "warning").split(" / ")
                              if "alive are called n1" in w), None), "no warning"
            )  # fmt: skip
            assert f"{ids[0]} at {first.mesh_address}, the oldest, keeps the name" in shown
            assert f"give {ids[1]} a name of its own there" in shown
            assert "several members have one name" in first.log()
            # With a quorum it is refused.
            swarm.start(*away)
            assert double.wait(READY_TIMEOUT_S) == 1
            words = "another node is called n1; give this one a name of its own"
            assert words in (tmp_path / "renamed").read_text()
            until(lambda: "are called n1" not in said_of(first, "warning"), "it warns yet")
        finally:
            end_lonely(double, renamed.folder)


def test_who_is_not_taken_in_learns_why(three: Swarm, tmp_path: Path) -> None:
    seed = three.nodes[0].mesh_address
    token = three.nodes[0].token()
    swarmd("token", "--revoke", "--data-dir", three.nodes[0].data_dir)
    folder = tmp_path / "late"
    lonely = start_lonely(folder, "late", seed, token)
    try:
        assert lonely.wait(READY_TIMEOUT_S) == 1
    finally:
        end_lonely(lonely, folder)
    said = swarmd("doctor", "--data-dir", folder / "data", "--config", folder / "swarmd.toml")
    assert said.status == 1 and "the token is not good" in said.out, said
    assert f"of these, {seed} can be connected" in said.out
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        nowhere = f"127.0.0.1:{nobody.getsockname()[1]}"
        folder = tmp_path / "lost"
        lonely = start_lonely(folder, "lost", nowhere, token)
        try:
            wait_said(folder, "not joined yet")
            said = swarmd("doctor", "--data-dir", folder / "data")
        finally:
            end_lonely(lonely, folder)
    assert said.status == 1 and "none of them can be connected from here" in said.out, said
    assert "Connection refused" in said.out


def test_files_and_ports_are_looked_at_where_none_runs(tmp_path: Path) -> None:
    said = swarmd("doctor", "--data-dir", tmp_path / "none", "--json")
    assert said.status == 1 and "there is no node in" in said.json["findings"][0]["what"]
    with running_daemon(tmp_path / "one") as daemon:
        daemon.stop()
        port, data = daemon.ports["jobqueue"], daemon.data_dir
    config = tmp_path / "one" / "swarmd.toml"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        said = swarmd("doctor", "--data-dir", data, "--config", config)
        assert f"127.0.0.1 port {port} (surfaces.jobqueue) cannot be had" in said.out, said
    pem = data / "identity" / "node.pem"
    pem.chmod(0o644)
    said = swarmd("doctor", "--data-dir", data, "--config", config)
    assert said.status == 1 and "others may read it" in said.out, said
    pem.chmod(0o600)
    with (data / "raft.db").open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 5000)
    said = swarmd("doctor", "--data-dir", data, "--config", config)
    assert said.status == 1 and "cannot be trusted" in said.out, said
