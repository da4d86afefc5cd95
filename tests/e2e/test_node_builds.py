"""A node of a swarm that builds by itself: real daemons, a real Portage, and no drone."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import swarmd
from tests.daemon import Daemon, await_builds, runner_pids, running_daemon
from tests.drones import Gate, gone
from tests.e2e.test_drone_cli import KEY, WORDS_S, Swarm
from tests.installs import install, lay_user
from tests.parts import need
from tests.portage import Host, Overlay, lay_host, lay_overlay
from tests.swarms import running_swarm, until

MAIN = "echo 'int main(){}' > m.c; gcc m.c -o ${PN} || die"
SETTINGS: dict[str, Any] = {
    "environment": {"ADMIN_KEY": KEY}, "care": {"enabled": False}, "mesh": {"timing": "lan"},
}  # fmt: skip


def section(host: Host, **more: object) -> dict[str, object]:
    """Of a configuration: build with this host's Portage."""
    env = [f"{name}={value}" for name, value in host.env.items()]
    return {"command": "emerge", "env": env, "cores": 8, **more}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    need("root", "portage")
    return lay_overlay(tmp_path_factory.mktemp("tree") / "tree")


@pytest.fixture(scope="module")
def host(tree: Overlay, tmp_path_factory: pytest.TempPathFactory) -> Host:
    return lay_host(tmp_path_factory.mktemp("host") / "host", tree)


@pytest.fixture(scope="module")
def daemon(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A swarm of one, which builds and runs no other jobs."""
    place = tmp_path_factory.mktemp("node")
    node, jobs = {"name": "builder-1"}, {"executor": False}
    with running_daemon(place, node=node, jobs=jobs, builder=section(host), **SETTINGS) as running:
        await_builds(running)
        yield running


@pytest.fixture
def swarm(daemon: Daemon) -> Iterator[Swarm]:
    swarm = Swarm(daemon)
    yield swarm
    swarm.control("reset")


def gated(tree: Overlay, folder: Path, package: str) -> Gate:
    folder.mkdir(exist_ok=True)
    gate = Gate(folder / "gate")
    tree.ebuild(package, compile=f"echo at the gate\n\t{gate.words}\n\t{MAIN}")
    gate.shut()
    return gate


def job_of(daemon: Daemon, package: str) -> Any:
    jobs = daemon.request("GET", "/api/v1/jobs", surface="console").json["jobs"]
    (found,) = [job for job in jobs if job["type"] == package]
    return found


def log_of(daemon: Daemon, package: str) -> str:
    path = f"/api/v1/jobs/{job_of(daemon, package)['id']}/logs"
    return daemon.request("GET", path, surface="console").body.decode()


def test_it_builds_and_tells_how_each_went(swarm: Swarm, tree: Overlay) -> None:
    tree.ebuild("app-misc/hello-1.0")
    tree.ebuild("app-misc/broken-1", compile="gcc nowhere.c -o x || die")
    tree.ebuild("app-misc/hidden-1")
    tree.ebuild("virtual/hello-0", compile="", install="")
    tree.mask("app-misc/hidden")
    names = ["app-misc/hello-1.0", "app-misc/broken-1", "app-misc/hidden-1", "virtual/hello-0"]
    swarm.queue(*names)
    for name, standing in zip(
        names, ("received", "blocked", "failed", "received"), strict=True
    ):  # fmt: skip
        swarm.becomes(name, standing)
    (built,) = swarm.builds("app-misc/hello-1.0")
    assert (built["status"], built["drone_name"]) == ("success", "builder-1")
    (failed,) = swarm.builds("app-misc/broken-1")
    assert failed["error_message"].startswith("failed in its compile phase")
    assert "nowhere.c: No such file" in failed["error_message"]
    (masked,) = swarm.builds("app-misc/hidden-1")
    assert "package.mask" in masked["error_message"]
    assert "nowhere.c: No such file" in log_of(swarm.daemon, "app-misc/broken-1")
    folder = swarm.daemon.data_dir / "builder"
    assert b"nowhere.c" in (folder / "failed" / "app-misc:broken-1.log").read_bytes()
    until(lambda: not [*folder.glob("*.staging")], "what was built stays")
    (row,) = swarm.ask("GET", "/nodes?all=true")
    assert (row["name"], row["status"], row["builds_completed"]) == ("builder-1", "online", 2)
    assert row["cores"] >= 1 and row["ram_gb"] > 0 and row["ram_percent"] > 0
    assert not {b["status"] for b in swarm.builds("virtual/hello-0")} - {"success"}


def test_what_is_taken_back_is_no_longer_built(swarm: Swarm, tree: Overlay, tmp_path: Path) -> None:
    package = "app-misc/taken-1"
    gate = gated(tree, tmp_path, package)
    swarm.queue(package)
    pid = gate.waiting()
    until(lambda: "at the gate" in log_of(swarm.daemon, package), "its log is not followed")
    swarm.begun("builder-1", package)
    swarm.control("pause")
    swarm.control("reclaim", "builder-1")
    until(lambda: gone(pid), "the build goes on")
    assert swarm.standing(package) == "needed"
    gate.open()
    swarm.control("resume")
    swarm.becomes(package, "received")
    assert [row["status"] for row in swarm.builds(package)] == ["success"]


def test_while_it_is_paused_it_begins_nothing(swarm: Swarm, tree: Overlay, tmp_path: Path) -> None:
    """Not even what it holds already."""
    first, second = "app-misc/first-1", "app-misc/second-1"
    gate = gated(tree, tmp_path, first)
    tree.ebuild(second, compile=MAIN)
    swarm.queue(first, second)
    gate.waiting()
    until(lambda: swarm.standing(second) == "delegated", "it holds one alone")
    swarm.ask("POST", "/nodes/builder-1/pause")
    until(lambda: row_of(swarm)["current_task"] == first, "it does not say what it is at")
    gate.let_through()
    swarm.becomes(first, "received")
    assert swarm.standing(second) == "delegated"
    assert row_of(swarm)["build_progress"] == []
    swarm.ask("POST", "/nodes/builder-1/resume")
    swarm.becomes(second, "received")


def row_of(swarm: Swarm) -> Any:
    (row,) = swarm.ask("GET", "/nodes?all=true")
    return row


def test_a_build_that_takes_too_long_has_failed_and_the_node_goes_on(
    tree: Overlay, host: Host, tmp_path: Path
) -> None:
    package = "app-misc/endless-1"
    tree.ebuild(package, compile="sleep 1000")
    with running_daemon(
        tmp_path / "node", builder=section(host, build_timeout_s=5), **SETTINGS
    ) as daemon:
        await_builds(daemon)
        swarm = Swarm(daemon)
        swarm.queue(package)
        swarm.becomes(package, "blocked")
        (failed,) = swarm.builds(package)
        assert failed["error_message"].startswith("the build did not end within 5 s"), failed
        result = daemon.request("GET", f"/api/v1/jobs/{job_of(daemon, package)['id']}",
                                surface="console").json  # fmt: skip
        assert [each["status"] for each in result["attempts"]] == ["failed"], result
        assert daemon.stop() == 0


def test_without_a_portage_it_is_no_builder_and_says_so(
    tree: Overlay, host: Host, tmp_path: Path
) -> None:
    package, emerge = "app-misc/later-1", tmp_path / "emerge"
    tree.ebuild(package, compile=MAIN)
    builder = section(host, command=str(emerge))
    with running_daemon(tmp_path / "node", builder=builder, **SETTINGS) as daemon:
        await_builds(daemon)
        swarm = Swarm(daemon)
        swarm.queue(package)
        words = f"there is no program '{emerge}'"
        until(lambda: words in daemon.stderr(), "it does not say so")
        assert words in wrong_with(daemon)
        assert swarm.ask("GET", "/nodes?all=true") == []
        assert swarm.standing(package) == "needed"
    config = tmp_path / "node" / "swarmd.toml"
    said = swarmd("doctor", "--data-dir", daemon.data_dir, "--config", config)
    assert (said.status, words in said.out) == (1, True), said


def test_when_its_portage_goes_it_gives_back_what_it_cannot_build(
    tree: Overlay, host: Host, tmp_path: Path
) -> None:
    package, emerge = "app-misc/never-1", tmp_path / "emerge"
    tree.ebuild(package, compile=MAIN)
    emerge.write_text('#!/bin/sh\nexec emerge "$@"\n')
    emerge.chmod(0o755)
    builder = section(host, command=str(emerge))
    with running_daemon(tmp_path / "node", builder=builder, **SETTINGS) as daemon:
        await_builds(daemon)
        swarm = Swarm(daemon)
        until(lambda: swarm.ask("GET", "/nodes"), "it is no builder")
        assert wrong_with(daemon) == ""
        emerge.unlink()
        swarm.queue(package)
        until(lambda: "cannot be run" in daemon.stderr(), "it does not try", WORDS_S)
        swarm.becomes(package, "needed")
        until(lambda: "there is no program" in wrong_with(daemon), "it does not see it")
        assert swarm.builds(package) == [], "no package is to blame"


def wrong_with(daemon: Daemon) -> str:
    seen = daemon.request("GET", "/api/v1/doctor", surface="console").json
    return " / ".join(f["what"] for f in seen["findings"] if f["level"] == "wrong")


def test_killed_in_the_middle_it_goes_on_and_what_is_lost_is_built_again(
    tree: Overlay, host: Host, tmp_path: Path
) -> None:
    """Of three nodes one builds. It is killed, and its build goes on; then its runner is killed.
    Each package is received once, and can be installed from another node."""
    need("gpg")
    slow, lost, plain = "app-misc/slow-1", "app-misc/lost-1", "app-misc/plain-1"
    gates = {name: gated(tree, tmp_path / split(name), name) for name in (slow, lost)}
    tree.ebuild(plain, compile=MAIN)
    with running_swarm(tmp_path / "swarm", **SETTINGS) as three:
        leader = three.leader()
        await_builds(leader.daemon)
        swarm = Swarm(leader.daemon)
        builder = three.followers()[0]
        builder.stop()
        builder.settings = {**builder.settings, "builder": section(host)}
        builder.start()
        swarm.queue(slow, lost, plain)

        pid = gates[slow].waiting()
        builder.kill()
        assert not gone(pid)
        builder.start()
        assert not gone(pid)
        gates[slow].let_through()
        swarm.becomes(slow, "received")

        pid = gates[lost].waiting()
        builder.kill()
        for each in runner_pids(builder.data_dir):
            os.kill(each, signal.SIGKILL)
        gates[lost].open()
        builder.start()
        until(lambda: gone(pid), "the build that was lost goes on")
        swarm.becomes(lost, "received")
        swarm.becomes(plain, "received")

        built = swarm.ask("GET", "/history?limit=1000")["builds"]
        assert sorted((b["package"], b["status"]) for b in built) == [
            (name, "success") for name in (lost, plain, slow)
        ]
        assert {b["drone_name"] for b in built} == {builder.name}
        key = leader.daemon.request("GET", "/binhost/swarm.asc", surface="buildswarm").body
        binhost = f"{leader.daemon.url('buildswarm')}/binhost"
        fresh = lay_user(tmp_path / "fresh", tree, binhost, key)
        done = install(fresh, f"={slow}", f"={lost}", f"={plain}")
        assert done.returncode == 0, done.stdout[-4000:]


def split(package: str) -> str:
    return package.partition("/")[2]
