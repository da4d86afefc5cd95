"""Two hundred drones that come at once: each is known once, and each gets a package of its own."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.daemon import Daemon, Response, await_builds, running_daemon

DRONES = range(200)
AT_ONCE = 50
KEY = "a-key-for-tests"


def together(each: Callable[[int], Response]) -> list[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = [*pool.map(each, DRONES)]
    assert {answer.status for answer in answers} == {200}, {answer.body for answer in answers}
    return [answer.json for answer in answers]


def test_two_hundred_at_once(tmp_path: Path) -> None:
    settings: Any = {"jobs": {"executor": False}, "environment": {"ADMIN_KEY": KEY}}
    with running_daemon(tmp_path, **settings) as daemon:
        await_builds(daemon)
        packages = {f"app-misc/p{n:03}-1" for n in DRONES}
        queued = ask(daemon, "POST", "/queue", {"packages": sorted(packages)})
        assert queued.json["queued"] == len(packages), queued.body

        def register(n: int) -> Response:
            return ask(daemon, "POST", "/register", {
                "id": f"id-{n}", "name": f"drone-{n}", "ip": "10.0.0.1",
                "capabilities": {"cores": 4, "ram_gb": 8.0}, "version": "0.4.0",
            })  # fmt: skip

        def work(n: int) -> Response:
            return ask(daemon, "GET", f"/work?id=id-{n}&cores=4")

        together(register)
        given = together(work)
        assert {each["package"] for each in given} == packages
        # Nothing is given twice, to whomever, however often they come.
        assert together(work) == given and together(register)
        nodes = ask(daemon, "GET", "/nodes").json
        assert sorted(node["name"] for node in nodes) == sorted(f"drone-{n}" for n in DRONES)
        held = [node["assigned_packages"] for node in nodes]
        assert {len(each) for each in held} == {1} and {each[0] for each in held} == packages


def ask(daemon: Daemon, method: str, path: str, body: object = None) -> Response:
    return daemon.request(
        method, f"/api/v1{path}", body, surface="buildswarm", headers={"X-Admin-Key": KEY}
    )
