"""`swarmd drone` as its owner starts it: a real daemon, a real Portage, real builds."""

from __future__ import annotations

import itertools
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli import swarmd
from tests.daemon import Daemon, await_builds, free_ports, running_daemon
from tests.drones import Gate, gone, running_drone, start_drone
from tests.parts import need
from tests.portage import Host, Overlay, lay_host, lay_overlay
from tests.swarms import until

KEY = "a-key-for-tests"
WORDS_S = 60.0
_NUMBERS = itertools.count(1)


class Swarm:
    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self.url = daemon.url("buildswarm")

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = self.daemon.request(
            method, f"/api/v1{path}", body, surface="buildswarm", headers={"X-Admin-Key": KEY}
        )
        assert answer.status < 300, answer.body
        return answer.json

    def queue(self, *packages: str) -> None:
        body = {"packages": [*packages], "session_name": "s"}
        assert self.ask("POST", "/queue", body)["queued"] == len(packages)

    def control(self, action: str, target: str | None = None) -> None:
        self.ask("POST", "/control", {"action": action, "target": target})

    def standing(self, package: str) -> str:
        found = [each for each in self.ask("GET", "/queue") if each["package"] == package]
        return str(found[0]["status"])

    def becomes(self, package: str, standing: str, timeout_s: float = WORDS_S) -> None:
        until(
            lambda: self.standing(package) == standing,
            f"{package} does not become {standing}", timeout_s,
        )  # fmt: skip

    def builds(self, package: str) -> list[Any]:
        rows = self.ask("GET", "/history")["builds"]
        return [row for row in rows if row["package"] == package]

    def begun(self, drone: str, package: str) -> None:
        """Until the swarm knows that it is at it."""

        def known() -> bool:
            (row,) = [row for row in self.ask("GET", "/nodes?all=true") if row["name"] == drone]
            return package in [each["package"] for each in row["build_progress"]]

        until(known, f"{drone} does not begin {package}", WORDS_S)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Overlay:
    need("root", "portage")
    return lay_overlay(tmp_path_factory.mktemp("tree") / "tree")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    place = tmp_path_factory.mktemp("node")
    with running_daemon(place, environment={"ADMIN_KEY": KEY}) as running:
        await_builds(running)
        yield running


@pytest.fixture
def swarm(daemon: Daemon) -> Iterator[Swarm]:
    swarm = Swarm(daemon)
    yield swarm
    swarm.control("resume")
    swarm.control("rebalance")
    for entry in swarm.ask("GET", "/queue"):
        if entry["status"] in ("needed", "delegated"):
            swarm.control("block", entry["package"])
    swarm.control("clear_failures")
    for row in swarm.ask("GET", "/nodes?all=true"):
        # Who asked for work just now counts as idle for a while, and others' would be kept for it.
        swarm.ask("POST", f"/nodes/{row['name']}/pause")


@pytest.fixture
def new_host(tree: Overlay, tmp_path: Path) -> Callable[..., Host]:
    def lay(**more: Any) -> Host:
        return lay_host(tmp_path / f"host-{next(_NUMBERS)}", tree, **more)

    return lay


def test_once_it_builds_what_there_is_and_tells_how_each_went(
    swarm: Swarm, tree: Overlay, new_host: Callable[..., Host]
) -> None:
    """By the second of two nodes, since the first is not there."""
    tree.ebuild("app-misc/hello-1.0")
    tree.ebuild("app-misc/broken-1", compile="gcc nowhere.c -o x || die")
    tree.ebuild("app-misc/hidden-1")
    tree.ebuild("virtual/hello-0", compile="", install="")
    tree.mask("app-misc/hidden")
    host = new_host()
    names = ["app-misc/hello-1.0", "app-misc/broken-1", "app-misc/hidden-1", "virtual/hello-0",
             "app-misc/nameless"]  # fmt: skip
    swarm.queue(*names)
    nobody = f"http://127.0.0.1:{free_ports({'nobody': 0})['nobody']}"
    with running_drone(host, "drone-01", [nobody, swarm.url], "--once") as drone:
        assert drone.wait() == 0, drone.log()
        until(lambda: not drone.runners(), "its runner stays")
    standings = [swarm.standing(name) for name in names]
    assert standings == ["received", "blocked", "failed", "received", "blocked"]
    (built,) = swarm.builds("app-misc/hello-1.0")
    assert built["status"] == "success" and 0.5 < built["duration_seconds"] < 120
    (failed,) = swarm.builds("app-misc/broken-1")
    assert failed["error_message"].startswith("failed in its compile phase")
    assert "nowhere.c: No such file" in failed["error_message"]
    assert len(failed["error_message"]) <= 4000
    (masked,) = swarm.builds("app-misc/hidden-1")
    assert "package.mask" in masked["error_message"]
    (nameless,) = swarm.builds("app-misc/nameless")
    assert "version" in nameless["error_message"]
    logs = [path.name for path in (drone.workdir / "failed").iterdir()]
    assert "app-misc:broken-1.log" in logs
    assert b"nowhere.c" in (drone.workdir / "failed" / "app-misc:broken-1.log").read_bytes()
    assert list((drone.workdir / "builds").iterdir()) == []
    (row,) = swarm.ask("GET", "/nodes?all=true")
    assert row["id"] == (drone.workdir / "drone.id").read_text().strip()
    assert (row["name"], row["builds_completed"]) == ("drone-01", 2)
    assert row["cores"] >= 1 and row["ram_gb"] > 0 and row["ram_percent"] > 0
    index = swarm.daemon.request("GET", "/binhost/Packages", surface="buildswarm").body.decode()
    found = re.findall(r"^CPV: (.*)$", index, re.MULTILINE)
    assert found == ["app-misc/hello-1.0", "virtual/hello-0"]
    assert KEY not in drone.log()


def test_what_is_taken_back_is_no_longer_built(
    swarm: Swarm, tree: Overlay, new_host: Callable[..., Host], tmp_path: Path
) -> None:
    gate, package = Gate(tmp_path / "gate"), "app-misc/taken-1"
    tree.ebuild(package, compile=f"{gate.words}\n\techo 'int main(){{}}' > t.c; gcc t.c -o ${{PN}}")
    gate.shut()
    swarm.queue(package)
    with running_drone(new_host(), "drone-02", [swarm.url]) as drone:
        pid = gate.waiting()
        swarm.begun("drone-02", package)
        swarm.control("pause")
        swarm.control("reclaim", "drone-02")
        until(lambda: gone(pid), "the build goes on", 30)
        until(lambda: "stale=True" in drone.log(), "it does not report", 30)
        assert swarm.standing(package) == "needed"
        gate.open()
        swarm.control("resume")
        swarm.becomes(package, "received")
        assert drone.stop() == 0
    assert [row["status"] for row in swarm.builds(package)] == ["success"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_ends_the_build_and_gives_back_what_it_holds(
    swarm: Swarm, tree: Overlay, new_host: Callable[..., Host], tmp_path: Path, number: int
) -> None:
    gate = Gate(tmp_path / "gate")
    names = [f"app-misc/{word}-{int(number)}" for word in ("held", "next")]
    for each in names:
        tree.ebuild(each, compile=gate.words)
    gate.shut()
    swarm.queue(*names)
    name = f"drone-03-{int(number)}"
    with running_drone(new_host(), name, [swarm.url], "--jobs", 8) as drone:
        pid = gate.waiting()
        assert [swarm.standing(each) for each in names] == ["delegated", "delegated"]
        drone.process.send_signal(number)
        assert drone.wait(40) == 0
        assert gone(pid)
        until(lambda: not drone.runners(), "its runner stays")
    assert [swarm.standing(each) for each in names] == ["needed", "needed"]
    assert [swarm.builds(each) for each in names] == [[], []]


def test_killed_and_started_again_it_goes_on_with_what_it_holds(
    swarm: Swarm, tree: Overlay, new_host: Callable[..., Host], tmp_path: Path
) -> None:
    gate, package, host = Gate(tmp_path / "gate"), "app-misc/again-1", new_host()
    tree.ebuild(package, compile=f"{gate.words}\n\techo 'int main(){{}}' > t.c; gcc t.c -o ${{PN}}")
    gate.shut()
    swarm.queue(package)
    with running_drone(host, "drone-04", [swarm.url]) as first:
        pid = gate.waiting()
        first.kill()
        assert not gone(pid)  # for as long as its lease lasts
        gate.open()
        with running_drone(host, "drone-04", [swarm.url], "--once") as second:
            assert second.wait() == 0, second.log()
            assert gone(pid)
    assert [row["status"] for row in swarm.builds(package)] == ["success"]


def test_what_was_built_is_kept_until_a_node_is_there_again(
    tree: Overlay, new_host: Callable[..., Host], tmp_path: Path
) -> None:
    gate, package, place = Gate(tmp_path / "gate"), "app-misc/kept-1", tmp_path / "node"
    tree.ebuild(package, compile=f"{gate.words}\n\techo 'int main(){{}}' > t.c; gcc t.c -o ${{PN}}")
    gate.shut()
    admin = {"ADMIN_KEY": KEY}
    with running_daemon(place, environment=admin) as daemon:
        await_builds(daemon)
        Swarm(daemon).queue(package)
        with running_drone(new_host(), "drone-10", [Swarm(daemon).url]) as drone:
            gate.waiting()
            daemon.kill()
            gate.let_through()
            until(lambda: "no node takes the upload" in drone.log(), "it is not tried", WORDS_S)
            ports = {f"surfaces__{name}": {"port": port} for name, port in daemon.ports.items()}
            with running_daemon(place, environment=admin, **ports) as again:
                Swarm(again).becomes(package, "received")
                (build,) = Swarm(again).builds(package)
                assert (build["status"], build["drone_name"]) == ("success", "drone-10")
                assert drone.stop() == 0
    assert drone.log().count("building package") == 1


def test_what_is_refused_as_it_is_has_failed(
    swarm: Swarm, tree: Overlay, new_host: Callable[..., Host]
) -> None:
    """Packages of the old format are refused, however often they are built."""
    package = "app-misc/old-1"
    tree.ebuild(package)
    host = new_host(make_conf='BINPKG_FORMAT="xpak"')
    swarm.queue(package)
    with running_drone(host, "drone-09", [swarm.url], "--once") as drone:
        assert drone.wait() == 0, drone.log()
        assert drone.log().count("building package") == 1
    (build,) = swarm.builds(package)
    assert build["status"] == "failed"
    assert "of the old format (xpak) cannot be signed; build a gpkg" in build["error_message"]


def test_two_drones_do_not_share_a_directory(swarm: Swarm, new_host: Callable[..., Host]) -> None:
    host = new_host()
    with running_drone(host, "drone-06", [swarm.url]) as drone:
        until(lambda: "registered" in drone.log(), "it does not register", WORDS_S)
        other = start_drone(host, "drone-07", [swarm.url])
        assert other.wait() == 1
        assert "another drone works in" in other.log() and "--workdir" in other.log()
        with running_drone(new_host(), "drone-06", [swarm.url]) as namesake:
            assert namesake.wait() == 1
            assert "another node is called drone-06" in namesake.log()
            assert "(--id-file)" in namesake.log()
        assert drone.process.poll() is None


def test_where_no_build_swarm_is_it_says_so(
    swarm: Swarm, daemon: Daemon, new_host: Callable[..., Host]
) -> None:
    host = new_host()
    for surface in ("jobqueue", "console"):
        with running_drone(host, "drone-08", [daemon.url(surface)]) as drone:
            assert drone.wait() == 1
            assert "not as a build swarm; name port 8100" in drone.log()
    (host.path / "drone" / "drone.id").write_text("no id at all\n")
    with running_drone(host, "drone-08", [swarm.url]) as drone:
        assert drone.wait() == 1
        assert "holds no id of a drone; delete it to begin anew" in drone.log()


def test_words_that_are_none_are_refused(tmp_path: Path) -> None:
    url = "--url=http://127.0.0.1:1"
    for args, status, words in (
        ([], 2, "Missing option '--url'"),
        (["--url=127.0.0.1:8100"], 2, "write for example http://10.0.0.1:8100"),
        (["--url=http://user:word@host:8100"], 2, "is no URL of a build swarm"),
        ([url, "--name=a b"], 2, "is no name"),
        ([url, "--emerge="], 2, "the command is empty"),
        ([url, "--timeout=0"], 2, "a build may take"),
        ([url, "--env=NOWHERE_SET"], 2, "is not set here"),
        ([url, "word"], 2, "unexpected extra argument"),
        ([url, "--emerge=no-such-emerge"], 1, "there is no program 'no-such-emerge'"),
        ([url, "--emerge=true"], 1, "says nothing of Portage"),
    ):
        said = swarmd("drone", "--workdir", tmp_path / "work", *args)
        assert (said.status, words in said.err) == (status, True), (args, said.err)
    assert not (tmp_path / "work").exists()
