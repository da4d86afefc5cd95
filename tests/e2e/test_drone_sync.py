"""A drone whose Portage tree is older than its work needs: it brings it up to date, once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import Daemon, await_builds, running_daemon
from tests.drones import running_drone
from tests.parts import need
from tests.portage import Host, Overlay, lay_host, lay_overlay
from tests.swarms import until

pytestmark = pytest.mark.needs("root", "portage")

KEY = {"X-Admin-Key": "a-key-for-tests"}
OLD, NEW = "Thu, 12 Feb 2026 00:30:01 +0000", "Fri, 13 Feb 2026 00:30:01 +0000"


def lay_tree(path: Path, at: str, *names: str) -> Overlay:
    tree = lay_overlay(path)
    for name in names:
        tree.ebuild(f"virtual/{name}", compile="", install="")
    (path / "metadata" / "timestamp.chk").write_text(f"{at}\n")
    return tree


def ask(daemon: Daemon, method: str, path: str, body: object = None) -> Any:
    answer = daemon.request(method, f"/api/v1{path}", body, surface="buildswarm", headers=KEY)
    assert answer.status == 200, answer.body
    return answer.json


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """Its tree is new, and has more."""
    need("root", "portage")
    tree = lay_tree(tmp_path / "new", NEW, "both-1", "both-2", "fresh-1")
    env = [f"{name}={value}" for name, value in lay_host(tmp_path / "swarm", tree).env.items()]
    settings: dict[str, Any] = {
        "jobs": {"executor": False}, "portage": {"lookup": True, "env": env},
        "environment": {"ADMIN_KEY": KEY["X-Admin-Key"]},
    }  # fmt: skip
    with running_daemon(tmp_path / "node", **settings) as running:
        await_builds(running)
        yield running


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """The drone's, with a tree of yesterday."""
    need("root", "portage")
    return lay_host(tmp_path / "drone", lay_tree(tmp_path / "old", OLD, "both-1"))


def script(host: Host, words: str) -> Path:
    """It notes each time that it runs."""
    file = host.path / "sync"
    file.write_text(f"#!/bin/sh\necho >> {host.path}/synced\n{words}\n")
    file.chmod(0o755)
    return file


def synced(host: Host) -> int:
    return len((host.path / "synced").read_text().splitlines())


def test_the_tree_is_brought_up_to_date_and_then_the_work_is_done(
    daemon: Daemon, host: Host, tmp_path: Path
) -> None:
    ask(daemon, "POST", "/queue", {"packages": ["virtual/fresh", "virtual/both"]})
    fresh = shutil.copytree(tmp_path / "new" / "virtual", tmp_path / "fresh")
    metadata = tmp_path / "new" / "metadata" / "timestamp.chk"
    tree = host.overlay.path
    sync = script(host, f"cp -r {fresh}/. {tree}/virtual/; cp {metadata} {tree}/metadata/")
    url = daemon.url("buildswarm")
    with running_drone(host, "drone-01", [url], "--once", "--sync", sync) as drone:
        assert drone.wait() == 0, drone.log()
    assert synced(host) == 1
    standings = {e["package"]: e["status"] for e in ask(daemon, "GET", "/queue")}
    assert standings == {"virtual/fresh-1": "received", "virtual/both-2": "received"}
    (row,) = ask(daemon, "GET", "/nodes?all=true")
    assert row["portage_timestamp"] == NEW


def test_a_tree_that_cannot_be_brought_up_to_date_keeps_nobody_from_work(
    daemon: Daemon, host: Host
) -> None:
    ask(daemon, "POST", "/queue", {"packages": ["virtual/fresh"]})
    sync = script(host, "echo the mirror is away >&2; exit 3")
    url = daemon.url("buildswarm")
    with running_drone(host, "drone-01", [url], "--sync", sync) as drone:
        until(lambda: ask(daemon, "GET", "/history")["builds"] != [], "it is given no work", 240)
        (build,) = ask(daemon, "GET", "/history")["builds"]
        assert build["status"] == "failed"
        assert "the builder's tree does not have virtual/fresh-1" in build["error_message"]
        assert "it was not brought up to date" in drone.log()
        assert "ended with 3: the mirror is away" in drone.log()
        assert drone.stop() == 0
    assert synced(host) == 1
