"""Where a Portage tree is at hand: what names stand for, who goes first, whose tree is too old."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.daemon import Daemon, Response, await_builds, running_daemon
from tests.gpkgs import package
from tests.parts import need
from tests.portage import Host, lay_host, lay_overlay
from tests.swarms import running_swarm, until

pytestmark = pytest.mark.needs("root", "portage")

API = "/api/v1"
KEY = {"X-Admin-Key": "a-key-for-tests"}
OLD, NEW = "Thu, 12 Feb 2026 00:30:01 +0000", "Fri, 13 Feb 2026 00:30:01 +0000"
NEWER = "Sat, 14 Feb 2026 00:30:01 +0000"
_NUMBERS = itertools.count(1)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    need("root", "portage")
    folder = tmp_path_factory.mktemp("portage")
    tree = lay_overlay(folder / "tree")
    for version in ("1.0", "1.10", "1.9"):
        tree.ebuild(f"app-misc/hello-{version}")
    tree.ebuild("app-misc/hello-2.0", keywords="~amd64")
    tree.ebuild("app-misc/hidden-1")
    tree.mask("app-misc/hidden")
    for name, needs in (
        ("lib", ""), ("tool", ""), ("app", "app-misc/lib app-misc/tool"), ("end", "app-misc/app"),
        ("egg", "app-misc/hen"), ("hen", "app-misc/egg"), ("late", "app-misc/lib"),
    ):  # fmt: skip
        tree.ebuild(f"app-misc/{name}-1", DEPEND=needs)
    stamp(tree.path, NEW)
    made = lay_host(folder / "host", tree)
    made.world("app-misc/hello", "app-misc/app", "app-misc/removed")
    return made


def stamp(tree: Path, at: str) -> None:
    (tree / "metadata" / "timestamp.chk").write_text(f"{at}\n")


def at_hand(host: Host) -> dict[str, object]:
    env = host.env
    given = [f"{name}={value}" for name, value in env.items()]
    return {"lookup": True, "env": given, "python": sys.executable}


class Swarm:
    def __init__(self, daemon: Daemon, folder: Path) -> None:
        self.daemon = daemon
        self.folder = folder

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        where = path if path.startswith("/binhost") else f"{API}{path}"
        return self.daemon.request(
            method, where, body, surface="buildswarm", headers={**KEY, **headers}
        )

    def good(self, method: str, path: str, body: object = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status == 200, answer.body
        return answer.json

    def queue(self, *packages: str) -> Any:
        return self.good("POST", "/queue", {"packages": packages})

    def refused(self, *packages: str, status: int = 400) -> str:
        """Why, and nothing of it is queued."""
        before = self.good("GET", "/queue")
        answer = self.ask("POST", "/queue", {"packages": packages})
        assert answer.status == status and answer.json.keys() == {"error", "hint"}, answer.body
        assert self.good("GET", "/queue") == before
        return f"{answer.json['error']}; {answer.json['hint']}"

    def drone(self, tree_at: str = NEW, name: str | None = None) -> str:
        name = name or f"drone-{next(_NUMBERS)}"
        self.good("POST", "/register", {
            "id": name, "name": name, "ip": "10.0.0.9", "capabilities": {
                "cores": 1, "portage_timestamp": tree_at,
            },
        })  # fmt: skip
        return name

    def work(self, name: str, **more: str) -> Any:
        return self.good("GET", f"/work?{urlencode({'id': name, 'cores': 1, **more})}")

    def complete(self, name: str, wanted: str, status: str = "success", **more: object) -> None:
        if status == "success":
            made = package(self.folder / "made", wanted).read_bytes()
            answer = self.ask("PUT", f"/binhost/staging/{wanted}.gpkg.tar", made)
            assert answer.status == 201, answer.body
        said = {"id": name, "package": wanted, "status": status, **more}
        assert self.good("POST", "/complete", said)["accepted"]

    def reset(self) -> None:
        for action in ("resume", "rebalance"):
            self.good("POST", "/control", {"action": action})
        for entry in self.good("GET", "/queue"):
            if entry["status"] in ("needed", "delegated"):
                body = {"action": "block", "target": entry["package"]}
                self.ask("POST", "/control", body)
        self.good("POST", "/control", {"action": "clear_failures"})


@pytest.fixture(scope="module")
def running(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("trees")
    settings: dict[str, Any] = {"jobs": {"executor": False}, "portage": at_hand(host)}
    environment = {"ADMIN_KEY": KEY["X-Admin-Key"]}
    with running_daemon(folder / "node", environment=environment, **settings) as daemon:
        await_builds(daemon)
        yield Swarm(daemon, folder)


@pytest.fixture
def swarm(running: Swarm, host: Host) -> Swarm:
    stamp(host.overlay.path, NEW)
    running.reset()
    return running


# What names stand for


def test_a_name_without_a_version_is_the_newest_that_the_tree_offers(swarm: Swarm) -> None:
    said = swarm.queue("app-misc/hello", "app-misc/lib:0", "<app-misc/hello-1.10")
    assert said["packages"] == ["app-misc/hello-1.10", "app-misc/lib-1", "app-misc/hello-1.9"]
    assert (said["status"], said["queued"], said["notes"]) == ("ok", 3, [])
    said = swarm.queue("app-misc/hello", "app-misc/tool")
    assert said["packages"] == ["app-misc/tool-1"]
    assert said["already_queued"] == ["app-misc/hello-1.10"]


def test_what_the_tree_does_not_offer_is_refused_and_nothing_is_queued(swarm: Swarm) -> None:
    words = swarm.refused("app-misc/lib", "app-misc/helo")
    assert "there is no package app-misc/helo in the tree" in words
    assert "did you mean app-misc/hello?" in words
    words = swarm.refused("=app-misc/hello-9:1", "@wold")
    assert "has no =app-misc/hello-9:1 (and 1 more like it); it has app-misc/hello-2.0" in words
    assert "app-misc/hidden-1, by package.mask" in swarm.refused("app-misc/hidden")


def test_a_version_that_is_named_is_taken_and_what_the_tree_says_of_it_is_told(
    swarm: Swarm,
) -> None:
    named = ["app-misc/hello-1.0", "app-misc/hello-9", "app-misc/hello-2.0", "a/unknown-1"]
    said = swarm.queue(*named)
    assert said["packages"] == named
    gone, masked, unknown = said["notes"]
    assert gone.startswith("the tree has no =app-misc/hello-9; it has app-misc/hello-2.0")
    assert masked == "app-misc/hello-2.0 is masked here by ~amd64 keyword"
    assert unknown.startswith("there is no package =a/unknown-1 in the tree")


def test_flags_choose_a_version_and_no_more(swarm: Swarm) -> None:
    said = swarm.queue("app-misc/hello[loud]")
    assert said["packages"] == ["app-misc/hello-1.10"]
    assert "each builder has its own USE flags" in said["notes"][0]


def test_a_set_stands_for_its_members(swarm: Swarm) -> None:
    said = swarm.queue("@selected")
    assert said["packages"] == ["app-misc/app-1", "app-misc/hello-1.10"]
    assert len(said["notes"]) == 1 and "no package app-misc/removed" in said["notes"][0]
    assert "name 1 to 1000 packages, not 0" in swarm.refused("@system")


# Who goes first


def test_two_drones_get_what_others_need_first(swarm: Swarm) -> None:
    said = swarm.queue("app-misc/end", "app-misc/app", "app-misc/lib", "app-misc/tool")
    assert said["packages"] == [f"app-misc/{name}-1" for name in ("lib", "tool", "app", "end")]
    one, two = swarm.drone(), swarm.drone()
    assert swarm.work(one)["package"] == "app-misc/lib-1"
    assert swarm.work(two)["package"] == "app-misc/tool-1"
    swarm.complete(one, "app-misc/lib-1")
    assert swarm.work(one)["package"] is None, "the other half is not built yet"
    swarm.complete(two, "app-misc/tool-1")
    until(lambda: swarm.work(two)["package"] == "app-misc/app-1", "it is not let go")
    assert swarm.work(one)["package"] is None
    swarm.complete(two, "app-misc/app-1")
    until(lambda: swarm.work(one)["package"] == "app-misc/end-1", "it is not let go")


def test_what_is_queued_later_waits_for_what_is_there(swarm: Swarm) -> None:
    swarm.queue("app-misc/lib")
    one, two = swarm.drone(), swarm.drone()
    assert swarm.work(one)["package"] == "app-misc/lib-1"
    swarm.queue("app-misc/late")
    assert swarm.work(two)["package"] is None
    swarm.complete(one, "app-misc/lib-1")
    until(lambda: swarm.work(two)["package"] == "app-misc/late-1", "it is not let go")


def test_a_package_that_is_given_up_holds_up_nobody(swarm: Swarm) -> None:
    swarm.queue("app-misc/late", "app-misc/lib")
    one = swarm.drone()
    assert swarm.work(one)["package"] == "app-misc/lib-1"
    swarm.complete(one, "app-misc/lib-1", "failed", masked=True)
    until(lambda: swarm.work(one)["package"] == "app-misc/late-1", "it waits for ever")


def test_those_that_need_each_other_are_built_all_the_same(swarm: Swarm) -> None:
    said = swarm.queue("app-misc/egg", "app-misc/hen")
    one, two = swarm.drone(), swarm.drone()
    first, second = said["packages"]
    assert swarm.work(one)["package"] == first and swarm.work(two)["package"] is None
    swarm.complete(one, first)
    until(lambda: swarm.work(two)["package"] == second, "it is not let go")


# Whose tree is too old


def test_a_drone_with_an_old_tree_brings_it_up_to_date_first(swarm: Swarm) -> None:
    swarm.queue("app-misc/lib")
    old = swarm.drone(OLD)
    told = swarm.work(old)
    assert told == {"package": None, "action": "sync_portage", "expected_timestamp": NEW}
    assert swarm.work(old) == told
    assert swarm.work(swarm.drone(NEWER))["package"] == "app-misc/lib-1"
    assert swarm.work(old) == {"package": None}, "there is nothing for it, whatever its tree"
    swarm.queue("app-misc/tool")
    swarm.drone(NEW, old)
    assert swarm.work(old)["package"] == "app-misc/tool-1"


def test_a_drone_that_has_tried_gets_work_with_the_tree_that_it_has(swarm: Swarm) -> None:
    swarm.queue("app-misc/lib")
    old = swarm.drone(OLD)
    assert swarm.work(old)["action"] == "sync_portage"
    assert swarm.work(old, synced=OLD)["action"] == "sync_portage"
    assert swarm.work(old, synced=NEW)["package"] == "app-misc/lib-1"
    assert swarm.work(old)["package"] == "app-misc/lib-1", "what it holds is its own"


def test_the_tree_that_is_wanted_is_the_one_that_was_looked_into(swarm: Swarm, host: Host) -> None:
    stamp(host.overlay.path, NEWER)
    swarm.queue("app-misc/lib", "app-misc/hello-9")
    drone = swarm.drone(NEW)
    assert swarm.work(drone)["expected_timestamp"] == NEWER
    assert swarm.work(drone, synced=NEWER)["package"] == "app-misc/lib-1"
    swarm.complete(drone, "app-misc/lib-1")
    assert swarm.work(drone)["package"] == "app-misc/hello-9", "the tree does not have that one"
    for words in ("x" * 65, "a%0Ab"):
        assert swarm.ask("GET", f"/work?id={drone}&synced={words}").status == 400


# Without a tree, with a slow one, and with one of another node's


def until_spoilt(sign: Path) -> str:
    """Portage's Python, which works until that file is there."""
    python = sign.with_name(f"python-{sign.name}")
    words = f"[ -e {sign} ] && {{ echo it is spoilt >&2; exit 3; }}"
    python.write_text(f'#!/bin/sh\n{words}\nexec python3 "$@"\n')
    python.chmod(0o755)
    return str(python)


def test_a_portage_that_does_not_answer_keeps_nobody_from_named_versions(
    host: Host, tmp_path: Path
) -> None:
    spoilt = tmp_path / "spoilt"
    portage = {**at_hand(host), "python": until_spoilt(spoilt)}
    environment = {"ADMIN_KEY": KEY["X-Admin-Key"]}
    settings: dict[str, Any] = {"jobs": {"executor": False}, "portage": portage}
    with running_daemon(tmp_path / "node", environment=environment, **settings) as daemon:
        await_builds(daemon)
        swarm = Swarm(daemon, tmp_path)
        assert swarm.queue("app-misc/hello")["packages"] == ["app-misc/hello-1.10"]
        spoilt.touch()
        assert "ended with 3: it is spoilt" in swarm.refused("app-misc/lib", status=503)
        said = swarm.queue("app-misc/lib-1")
        assert said["packages"] == ["app-misc/lib-1"]
        assert "not in the order in which they need each other" in said["notes"][0]


def test_a_node_without_a_tree_asks_the_one_that_has_it(host: Host, tmp_path: Path) -> None:
    stamp(host.overlay.path, NEW)
    environment = {"ADMIN_KEY": KEY["X-Admin-Key"]}
    jobs = {"executor": False}
    with running_swarm(tmp_path, environment=environment, jobs=jobs) as swarm:
        plain, other, _ = (Swarm(node.daemon, tmp_path) for node in swarm.nodes)
        for node in swarm.nodes:
            await_builds(node.daemon)
        said = plain.queue("app-misc/literal", "app-misc/lib-7")
        assert said["packages"] == ["app-misc/literal", "app-misc/lib-7"]
        assert said["notes"][0].startswith("app-misc/literal without a version: no Portage tree")
        assert "no Portage tree is at hand" in plain.refused("@world")
        # From here on one has a tree; the others ask it.
        last = swarm.nodes[-1]
        last.stop()
        last.settings = {**last.settings, "portage": at_hand(host)}
        last.start()
        until(
            lambda: "did you mean app-misc/hello?" in plain.refused("app-misc/helo"),
            "the tree is not asked",
        )
        said = plain.queue("app-misc/late", "app-misc/lib", "app-misc/hello-9")
        assert said["packages"] == ["app-misc/lib-1", "app-misc/late-1", "app-misc/hello-9"]
        assert len(said["notes"]) == 1
        drone = other.drone(OLD)
        assert other.work(drone)["package"] == "app-misc/literal"
        other.complete(drone, "app-misc/literal", "failed", masked=True)
        assert other.work(drone)["package"] == "app-misc/lib-7"
        other.complete(drone, "app-misc/lib-7", "failed", masked=True)
        assert plain.work(drone)["expected_timestamp"] == NEW
        # One's own that does not answer is as none, for oneself and for others.
        first, spoilt = swarm.nodes[0], tmp_path / "spoilt"
        first.stop()
        portage = {**at_hand(host), "python": until_spoilt(spoilt)}
        first.settings = {**first.settings, "portage": portage}
        first.start()
        plain = Swarm(first.daemon, tmp_path)
        until(lambda: "packages are looked up here" in first.daemon.stderr(), "it has no Portage")
        spoilt.touch()
        assert plain.queue("app-misc/hello")["packages"] == ["app-misc/hello-1.10"]
        assert other.queue("app-misc/egg")["packages"] == ["app-misc/egg-1"]
        last.kill()
        assert "ended with 3: it is spoilt" in plain.refused("app-misc/end", status=503)
        assert plain.queue("app-misc/tool-1")["packages"] == ["app-misc/tool-1"]
