"""The build swarm keeps its contract: every operation, every status, every field, every refusal."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from api.buildswarm.binhost import BINHOST
from tests.contract.buildswarm import (
    ENVELOPE,
    ESCALATION,
    NODE,
    OPERATIONS,
    PING,
    STATUS,
)
from tests.contract.cases import check_answer, promised, statuses
from tests.contract.kinds import faults
from tests.contract.table import Operation
from tests.daemon import Daemon, Response, await_builds, running_daemon
from tests.gpkgs import package
from tests.parts import is_here, need
from tests.sshd import Sshd, running_sshd

API = "/api/v1"
KEY = {"X-Admin-Key": "a-key-for-tests"}
_NUMBERS = itertools.count(1)


class Swarm:
    """A daemon, as drones and operators see it."""

    def __init__(self, daemon: Daemon, folder: Path, sshd: Sshd | None = None) -> None:
        self.daemon = daemon
        self.folder = folder
        self.sshd = sshd
        """A host that the daemon reaches, where this machine has what that takes."""

    def ask(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        where = path if path.startswith(BINHOST) else f"{API}{path}"
        return self.daemon.request(method, where, body, surface="buildswarm", headers=headers)

    def admin(self, method: str, path: str, body: object = None) -> Response:
        return self.ask(method, path, body, **KEY)

    def good(self, answer: Response) -> Any:
        assert answer.status in (200, 201), answer.body
        return answer.json

    def reset(self) -> None:
        """Nothing is queued, nothing is held, nothing is paused."""
        for action in ("resume", "rebalance"):
            self.good(self.admin("POST", "/control", {"action": action}))
        for entry in self.good(self.admin("GET", "/queue")):
            if entry["status"] in ("needed", "delegated"):
                body = {"action": "block", "target": entry["package"]}
                self.admin("POST", "/control", body)
        self.good(self.admin("POST", "/control", {"action": "clear_failures"}))

    def drone(self, name: str | None = None, **more: object) -> str:
        name = name or f"drone-{next(_NUMBERS)}"
        self.good(self.register(name, **more))
        return name

    def register(self, name: str, **more: object) -> Response:
        says = {
            "id": f"id-{name}", "name": name, "ip": "10.0.0.175", "type": "drone",
            "capabilities": {"cores": 16, "ram_gb": 32.0, "portage_timestamp": "2026-02-12"},
            "metrics": {"cpu_percent": 45.2, "ram_percent": 62.1, "load_1m": 2.4},
            "current_task": None, "version": "0.4.0-alpha",
        }  # fmt: skip
        return self.ask("POST", "/register", {**says, **more})

    def queue(self, *packages: str) -> list[str]:
        names = [*packages] or [f"app-misc/p-{next(_NUMBERS)}"]
        said = self.good(self.admin("POST", "/queue", {"packages": names, "session_name": "s"}))
        return [*said["packages"]]

    def work(self, name: str) -> Any:
        return self.good(self.ask("GET", f"/work?id=id-{name}&cores=1"))["package"]

    def held(self) -> tuple[str, str]:
        """A drone, and the one package that it holds."""
        self.reset()
        (wanted,) = self.queue()
        name = self.drone()
        assert self.work(name) == wanted
        return name, wanted

    def complete(self, name: str, wanted: str, status: str, **more: object) -> Response:
        body = {"id": f"id-{name}", "package": wanted, "status": status, **more}
        return self.ask("POST", "/complete", body)

    def stage(self, cpv: str, data: bytes | None = None, **headers: str) -> Response:
        file = package(self.folder / "made", cpv).read_bytes() if data is None else data
        return self.ask("PUT", f"{BINHOST}/staging/{cpv}.gpkg.tar", file, **headers)

    def built(self) -> tuple[str, str]:
        name, wanted = self.held()
        token = self.good(self.register(name))["token"]
        assert self.stage(wanted, **{"X-Drone-Token": token}).status == 201
        said = self.good(self.complete(name, wanted, "success", build_duration_s=323.5))
        assert said == {"status": "ok", "package": wanted, "accepted": True}
        return name, wanted


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    folder = tmp_path_factory.mktemp("swarm")
    environment = {"ADMIN_KEY": KEY["X-Admin-Key"]}
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {"jobs": {"executor": False}}
        sshd = None
        if is_here("sshd"):
            sshd = stack.enter_context(running_sshd(folder / "host"))
            settings["ssh"] = sshd.settings(folder / "known_hosts")
        d = stack.enter_context(
            running_daemon(folder / "node", environment=environment, **settings)
        )
        await_builds(d)
        yield Swarm(d, folder, sshd)


def to(method: str, path: str, body: object = None) -> Callable[[Swarm], Response]:
    return lambda swarm: swarm.ask(method, path, body)


def by_admin(method: str, path: str, body: object = None) -> Callable[[Swarm], Response]:
    return lambda swarm: swarm.admin(method, path, body)


def after_a_build(path: str) -> Callable[[Swarm], Response]:
    def ask(swarm: Swarm) -> Response:
        swarm.built()
        return swarm.ask("GET", path)

    return ask


def of_a_drone(verb: str, body: object = None) -> Callable[[Swarm], Response]:
    return lambda swarm: swarm.admin("POST", f"/nodes/{swarm.drone()}/{verb}", body)


def with_a_taken_name(swarm: Swarm) -> Response:
    return swarm.register(swarm.drone(), id="another")


def twice(swarm: Swarm) -> Response:
    (wanted,) = swarm.queue()
    return swarm.admin("POST", "/queue", {"packages": [wanted]})


def listed(swarm: Swarm) -> Response:
    swarm.queue()
    return swarm.admin("GET", "/queue")


def completed(swarm: Swarm) -> Response:
    return swarm.complete(*swarm.held(), "failed", error_detail="gcc")


def binary_package(swarm: Swarm) -> Response:
    _, wanted = swarm.built()
    index = swarm.ask("GET", f"{BINHOST}/Packages").body.decode()
    (path,) = [
        line.removeprefix("PATH: ")
        for entry in index.split("\n\n") if f"CPV: {wanted}\n" in f"{entry}\n"
        for line in entry.splitlines() if line.startswith("PATH: ")
    ]  # fmt: skip
    return swarm.ask("GET", f"{BINHOST}/{path}")


def explained(atom: str) -> Callable[[Swarm], Response]:
    path = f"{API}/binhost/explain?package={atom}"
    return lambda swarm: swarm.daemon.request("GET", path, surface="buildswarm")


def staged(swarm: Swarm) -> Response:
    name, wanted = swarm.held()
    token = swarm.good(swarm.register(name))["token"]
    return swarm.stage(wanted, **{"X-Drone-Token": token})


def staged_unheld(swarm: Swarm) -> Response:
    token = swarm.good(swarm.register(swarm.drone()))["token"]
    return swarm.stage("app-misc/other-1", **{"X-Drone-Token": token})


def reached(swarm: Swarm) -> str:
    """A drone on a real host."""
    need("sshd")
    assert swarm.sshd is not None
    return swarm.drone("reached", ip=swarm.sshd.host)


def pings(swarm: Swarm) -> Response:
    swarm.drone()
    answer = swarm.ask("GET", "/ping")
    drones = swarm.good(answer)["drones"]
    assert drones and not any(faults(each, PING) for each in drones.values())
    return answer


def escalations(swarm: Swarm) -> Response:
    swarm.drone()
    answer = swarm.ask("GET", "/escalation")
    drones = swarm.good(answer)["drones"]
    assert drones and not any(faults(each, ESCALATION) for each in drones.values())
    return answer


CASES: dict[tuple[str, str, int], Callable[[Swarm], Response]] = {
    ("GET", "/api/v1/health", 200): to("GET", "/health"),
    ("GET", "/api/v1/status", 200): after_a_build("/status"),
    ("GET", "/api/v1/nodes", 200): after_a_build("/nodes"),
    ("GET", "/api/v1/nodes", 400): to("GET", "/nodes?format=xml"),
    ("GET", "/api/v1/events", 200): after_a_build("/events"),
    ("GET", "/api/v1/events", 400): to("GET", "/events?type=nothing"),
    ("GET", "/api/v1/events/history", 200): after_a_build("/events/history"),
    ("GET", "/api/v1/events/history", 400): to("GET", "/events/history?since=yesterday"),
    ("GET", "/api/v1/history", 200): after_a_build("/history"),
    ("GET", "/api/v1/history", 400): to("GET", "/history?status=maybe"),
    ("GET", "/api/v1/sessions", 200): after_a_build("/sessions"),
    ("GET", "/api/v1/queue", 200): listed,
    ("GET", "/api/v1/queue", 400): by_admin("GET", "/queue?limit=0"),
    ("GET", "/api/v1/queue", 401): to("GET", "/queue"),
    ("POST", "/api/v1/queue", 200): by_admin("POST", "/queue", {"packages": ["a/new-1"]}),
    ("POST", "/api/v1/queue", 400): by_admin("POST", "/queue", {"packages": ["no package"]}),
    ("POST", "/api/v1/queue", 401): to("POST", "/queue", {"packages": ["a/b-1"]}),
    ("POST", "/api/v1/queue", 409): twice,
    ("POST", "/api/v1/control", 200): by_admin("POST", "/control", {"action": "resume"}),
    ("POST", "/api/v1/control", 400): by_admin("POST", "/control", {"action": "explode"}),
    ("POST", "/api/v1/control", 401): to("POST", "/control", {"action": "pause"}),
    ("POST", "/api/v1/control", 404): by_admin(
        "POST", "/control", {"action": "unblock", "target": "a/none-1"}
    ),
    ("POST", "/api/v1/nodes/{name}/pause", 200): of_a_drone("pause"),
    ("POST", "/api/v1/nodes/{name}/pause", 401): to("POST", "/nodes/drone/pause"),
    ("POST", "/api/v1/nodes/{name}/pause", 404): by_admin("POST", "/nodes/nobody/pause"),
    ("POST", "/api/v1/nodes/{name}/resume", 200): of_a_drone("resume"),
    ("POST", "/api/v1/nodes/{name}/resume", 401): to("POST", "/nodes/drone/resume"),
    ("POST", "/api/v1/nodes/{name}/resume", 404): by_admin("POST", "/nodes/nobody/resume"),
    ("POST", "/api/v1/nodes/{name}/set-type", 200): of_a_drone("set-type", {"drone_type": "lxc"}),
    ("POST", "/api/v1/nodes/{name}/set-type", 400): of_a_drone("set-type", {"drone_type": "pc"}),
    ("POST", "/api/v1/nodes/{name}/set-type", 401): to("POST", "/nodes/drone/set-type", {}),
    ("POST", "/api/v1/nodes/{name}/set-type", 404): by_admin(
        "POST", "/nodes/nobody/set-type", {"drone_type": "lxc"}
    ),
    ("POST", "/api/v1/register", 200): lambda swarm: swarm.register("drone-01"),
    ("POST", "/api/v1/register", 400): lambda swarm: swarm.register("a name"),
    ("POST", "/api/v1/register", 409): with_a_taken_name,
    ("GET", "/api/v1/work", 200): lambda s: s.ask("GET", f"/work?id=id-{s.drone()}&cores=4"),
    ("GET", "/api/v1/work", 400): to("GET", "/work?id="),
    ("GET", "/api/v1/work", 404): to("GET", "/work?id=nobody"),
    ("POST", "/api/v1/complete", 200): completed,
    ("POST", "/api/v1/complete", 400): lambda s: s.complete("x", "a/b-1", "exploded"),
    ("GET", "/api/v1/ping", 200): pings,
    ("GET", "/api/v1/ping/all", 200): to("GET", "/ping/all"),
    ("GET", "/api/v1/escalation", 200): escalations,
    ("POST", "/api/v1/nodes/{name}/ping", 200): lambda s: s.admin(
        "POST", f"/nodes/{reached(s)}/ping"
    ),
    ("POST", "/api/v1/nodes/{name}/ping", 401): to("POST", "/nodes/drone/ping"),
    ("POST", "/api/v1/nodes/{name}/ping", 404): by_admin("POST", "/nodes/nobody/ping"),
    ("POST", "/api/v1/nodes/{name}/ping", 409): of_a_drone("ping"),
    ("POST", "/api/v1/nodes/{name}/reset-escalation", 200): of_a_drone("reset-escalation"),
    ("POST", "/api/v1/nodes/{name}/reset-escalation", 401): to(
        "POST", "/nodes/drone/reset-escalation"
    ),
    ("POST", "/api/v1/nodes/{name}/reset-escalation", 404): by_admin(
        "POST", "/nodes/nobody/reset-escalation"
    ),
    ("GET", "/binhost/", 302): to("GET", f"{BINHOST}/"),
    ("GET", "/binhost/Packages", 200): lambda s: s.ask("GET", f"{BINHOST}/Packages"),
    ("GET", "/binhost/Packages.gz", 200): lambda s: s.ask("GET", f"{BINHOST}/Packages.gz"),
    ("GET", "/binhost/swarm.asc", 200): lambda s: s.ask("GET", f"{BINHOST}/swarm.asc"),
    ("GET", "/api/v1/binhost/explain", 200): explained("app-misc/hello"),
    ("GET", "/api/v1/binhost/explain", 400): explained("@world"),
    ("GET", "/binhost/{category}/{name}/{file}", 200): binary_package,
    ("GET", "/binhost/{category}/{name}/{file}", 404): to("GET", f"{BINHOST}/a/b/b-1-1.gpkg.tar"),
    ("PUT", "/binhost/staging/{category}/{file}", 201): staged,
    ("PUT", "/binhost/staging/{category}/{file}", 400): lambda s: s.stage("a/b-1", b"x", **KEY),
    ("PUT", "/binhost/staging/{category}/{file}", 401): lambda s: s.stage("a/b-1"),
    ("PUT", "/binhost/staging/{category}/{file}", 409): staged_unheld,
}


def test_every_status_of_the_table_has_a_case() -> None:
    assert promised(OPERATIONS) == set(CASES)


@pytest.mark.parametrize(
    ("operation", "status"), [(o, s) for o in OPERATIONS for s in statuses(o)], ids=str
)
def test_answer(swarm: Swarm, operation: Operation, status: int) -> None:
    answer = CASES[operation.method, operation.path, status](swarm)
    check_answer(answer, operation, status, ENVELOPE)


# What a drone lives through


def test_work_is_the_same_until_it_is_reported(swarm: Swarm) -> None:
    swarm.reset()
    one, other = swarm.queue("a/one-1", "a/two-1")
    name = swarm.drone()
    path = f"/work?id=id-{name}&cores=16"
    first = swarm.good(swarm.ask("GET", path))
    assert first["package"] == one and first["session_id"].startswith("session-")
    assert swarm.good(swarm.ask("GET", path)) == first
    told = swarm.good(swarm.register(name, current_task=one))
    assert told["stop_work"] is None
    (entry, *_) = [e for e in swarm.good(swarm.ask("GET", "/nodes")) if e["name"] == name]
    assert faults(entry, NODE) == []
    assert entry["assigned_packages"] == [one, other] and entry["ram_gb"] == 32.0
    (progress,) = entry["build_progress"]
    assert progress["package"] == one
    swarm.good(swarm.complete(name, one, "failed", error_detail="no gcc"))
    assert swarm.work(name) == other
    assert swarm.good(swarm.register(name, current_task="a/one-1"))["stop_work"] == "a/one-1"


def test_a_stale_report_is_answered_and_ignored(swarm: Swarm) -> None:
    name, wanted = swarm.held()
    swarm.good(swarm.admin("POST", "/control", {"action": "pause"}))
    swarm.good(swarm.admin("POST", "/control", {"action": "rebalance"}))
    said = swarm.good(swarm.complete(name, wanted, "success"))
    assert said == {
        "status": "ok", "package": wanted, "accepted": False, "stale": True, "action": "stop_work",
    }  # fmt: skip
    path = f"/work?id=id-{name}&cores=1"
    work = swarm.good(swarm.ask("GET", path))
    assert work["revoke"] == [wanted] and work["package"] is None
    assert "revoke" not in swarm.good(swarm.ask("GET", path))
    swarm.good(swarm.admin("POST", "/control", {"action": "resume"}))
    assert swarm.work(name) == wanted
    swarm.good(swarm.admin("POST", "/control", {"action": "rebalance"}))
    again = swarm.good(swarm.ask("GET", path))
    assert again["package"] == wanted and "revoke" not in again, "it is its own once more"


def test_success_without_a_package_in_staging_is_none(swarm: Swarm) -> None:
    name, wanted = swarm.held()
    swarm.good(swarm.complete(name, wanted, "success"))
    (entry,) = [e for e in swarm.good(swarm.admin("GET", "/queue")) if e["package"] == wanted]
    assert entry["status"] == "needed" and entry["failures"] == 0


def test_a_build_is_received_in_the_history_and_in_the_binhost(swarm: Swarm) -> None:
    name, wanted = swarm.built()
    (build,) = [
        b for b in swarm.good(swarm.ask("GET", f"/history?drone={name}"))["builds"]
        if b["package"] == wanted
    ]  # fmt: skip
    assert build["status"] == "success" and build["duration_seconds"] == 323.5
    answer = binary_package(swarm)
    assert answer.status == 200 and answer.body.count(b"BEGIN PGP SIGNATURE") == 3
    status = swarm.good(swarm.ask("GET", "/status"))
    assert faults(status, STATUS) == [] and status["session"]["status"] == "completed"
    (event, *_) = swarm.good(swarm.ask("GET", "/events?type=complete&limit=1"))["events"]
    assert " completed " in event["message"] and event["details"]["duration_s"] == 323.5


@pytest.mark.parametrize("end", ["", "/"])
def test_whoever_opens_the_binhost_in_a_browser_comes_to_its_index(swarm: Swarm, end: str) -> None:
    answer = swarm.ask("GET", f"{BINHOST}{end}")
    assert (answer.status, answer.headers["location"]) == (302, f"{BINHOST}/Packages")


@pytest.mark.parametrize("path", ["/events", "/events/history"])
def test_a_limit_counts_events_of_the_type_alone(swarm: Swarm, path: str) -> None:
    """However many others came later."""
    name = swarm.drone()
    for action in ("pause", "resume") * 15:
        swarm.good(swarm.admin("POST", f"/nodes/{name}/{action}"))
    found = swarm.good(swarm.ask("GET", f"{path}?type=register&limit=1"))["events"]
    assert [event["message"] for event in found] == [f"{name} came online"]
    found = swarm.good(swarm.ask("GET", f"{path}?type=control&limit=31"))["events"]
    assert [event["type"] for event in found] == ["control"] * 31
    messages = [event["message"] for event in found[:30]]
    assert messages == [f"{name} is resumed", f"{name} is paused"] * 15


def test_a_drone_is_probed_over_ssh_and_others_are_said_not_to_be(swarm: Swarm) -> None:
    name, other = reached(swarm), swarm.drone()
    said = swarm.good(swarm.admin("POST", f"/nodes/{name}/ping"))
    assert said["latency_ms"] > 0 and said["load"] >= 0 and said["disk_percent"] >= 0
    drones = swarm.good(swarm.ask("GET", "/ping"))["drones"]
    assert drones[name]["status"] == said["status"] and drones[name]["last_pong_at"] > 0
    assert drones[other]["status"] == "not_probed" and "10.0.0.175" in drones[other]["message"]
    answer = swarm.admin("POST", f"/nodes/{other}/ping")
    assert answer.status == 409 and "cannot be probed" in answer.json["error"]
    assert swarm.good(swarm.ask("GET", "/ping/all"))["drones"] == [name]


@pytest.mark.parametrize(
    ("said", "becomes"),
    [("upload_failed", "needed"), ("masked", "failed"), ("missing_binary", "needed")],
)
def test_some_drones_say_why_in_the_status(swarm: Swarm, said: str, becomes: str) -> None:
    name, wanted = swarm.held()
    assert swarm.good(swarm.complete(name, wanted, said))["accepted"]
    (entry,) = [e for e in swarm.good(swarm.admin("GET", "/queue")) if e["package"] == wanted]
    assert (entry["status"], entry["failures"]) == (becomes, int(said == "missing_binary"))


@pytest.mark.parametrize(
    ("action", "target", "said"),
    [
        ("pause", "drone-01", "for one drone it is POST /api/v1/nodes/{name}/pause"),
        ("reset", "a/none-1", "reset is about everything and takes no target"),
        ("clear_history", "a/none-1", "takes no target"),
        ("block", None, "say which package is to be blocked: target"),
    ],
)
def test_a_word_that_cannot_be_meant_is_refused(
    swarm: Swarm, action: str, target: str | None, said: str
) -> None:
    answer = swarm.admin("POST", "/control", {"action": action, "target": target})
    assert answer.status == 400 and said in f"{answer.json}", answer.body
    assert not swarm.good(swarm.ask("GET", "/status"))["paused"]


def test_paused_is_paused(swarm: Swarm) -> None:
    swarm.reset()
    swarm.queue()
    name = swarm.drone()
    swarm.good(swarm.admin("POST", "/control", {"action": "pause"}))
    assert swarm.good(swarm.ask("GET", "/status"))["paused"] and swarm.work(name) is None
    swarm.good(swarm.admin("POST", "/control", {"action": "resume"}))
    swarm.good(swarm.admin("POST", f"/nodes/{name}/pause"))
    assert swarm.good(swarm.register(name))["paused"] and swarm.work(name) is None
    swarm.good(swarm.admin("POST", f"/nodes/{name}/resume"))
    assert swarm.work(name) is not None


def test_a_token_is_its_drones_alone(swarm: Swarm) -> None:
    name, wanted = swarm.held()
    other = swarm.drone()
    token = swarm.good(swarm.register(other))["token"]
    assert swarm.stage(wanted, **{"X-Drone-Token": token}).status == 409
    forged = token.replace(f"id-{other}.", f"id-{name}.")
    assert swarm.stage(wanted, **{"X-Drone-Token": forged}).status == 401
    assert swarm.stage(wanted, **{"X-Drone-Token": "x" * 5000}).status == 401


@pytest.mark.parametrize("size_mb", [1, 3, 64])
def test_what_a_drone_does_not_hold_is_refused_at_once(swarm: Swarm, size_mb: int) -> None:
    """Also to one that sends all of it before it looks, and whatever it has promised to send."""
    token = swarm.good(swarm.register(swarm.drone()))["token"]
    address, folder = swarm.daemon.address, swarm.daemon.data_dir
    with socket.create_connection((address, swarm.daemon.ports["buildswarm"]), 20) as sock:
        sock.sendall(
            f"PUT {BINHOST}/staging/app-misc/other-1.gpkg.tar HTTP/1.1\r\nHost: {address}\r\n"
            f"X-Drone-Token: {token}\r\nContent-Length: {size_mb * 10**6}\r\n\r\n".encode()
        )
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # it was cut off, late
            sock.sendall(bytes(size_mb * 10**6))
        answer = http.client.HTTPResponse(sock)
        answer.begin()
        said = json.loads(answer.read())
    assert answer.status == 409 and faults(said, ENVELOPE) == []
    assert "does not hold what app-misc/other-1.gpkg.tar is a file of" in said["error"]
    assert not [*(folder / "staging").glob("*")]


def test_a_third_upload_at_once_is_put_off(swarm: Swarm) -> None:
    name, wanted = swarm.held()
    token = swarm.good(swarm.register(name))["token"]
    address, port = swarm.daemon.address, swarm.daemon.ports["buildswarm"]
    head = (
        f"PUT {BINHOST}/staging/{wanted}.gpkg.tar HTTP/1.1\r\nHost: {address}\r\n"
        f"X-Drone-Token: {token}\r\nContent-Length: 1000000\r\n\r\nhalf of it"
    )
    staging = swarm.daemon.data_dir / "staging"
    with contextlib.ExitStack() as stack:
        for _ in range(2):
            sock = stack.enter_context(socket.create_connection((address, port), 20))
            sock.sendall(head.encode())
        deadline = time.monotonic() + 20
        while len([*staging.glob("*")]) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        answer = swarm.stage(wanted, **{"X-Drone-Token": token})
        assert answer.status == 503 and "under way" in answer.json["error"], answer.body
        assert int(answer.headers["retry-after"]) > 0
    while (answer := swarm.stage(wanted, **{"X-Drone-Token": token})).status == 503:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert answer.status == 201, answer.body
    assert not [*staging.glob("*")]


def test_a_package_under_a_wrong_path_is_refused(swarm: Swarm) -> None:
    name, wanted = swarm.held()
    token = swarm.good(swarm.register(name))["token"]
    made = package(swarm.folder / "made", "a/other-1").read_bytes()
    answer = swarm.stage(wanted, made, **{"X-Drone-Token": token})
    assert answer.status == 400 and "this is a package of a/other-1" in answer.json["error"]
    assert not [*(swarm.daemon.data_dir / "staging").iterdir()]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"id": "", "name": "n"}, "id must be"),
        ({"id": "x" * 129, "name": "n"}, "id must be"),
        ({"id": "../x", "name": "n"}, "id must be"),
        ({"id": "x", "name": "n", "capabilities": {"cores": -1}}, "cores"),
        ({"id": "x", "name": "n", "capabilities": {"ram_gb": 1e300}}, "ram_gb"),
        ({"id": "x", "name": "n", "ip": "not a host"}, "ip must be"),
        ({"id": "x", "name": "n", "metrics": {str(n): 1 for n in range(40)}}, "metrics"),
        ({"id": "x", "name": "n", "version": "a\nb"}, "version"),
        ({"id": "x"}, "name"),
        ([], "object"),
    ],
)
def test_a_registration_that_cannot_be_is_refused(swarm: Swarm, body: object, said: str) -> None:
    answer = swarm.ask("POST", "/register", body)
    assert answer.status == 400 and said in answer.json["error"], answer.body


def test_a_tree_may_be_of_so_many_seconds(swarm: Swarm) -> None:
    name = swarm.drone()
    able = {"cores": 4, "portage_timestamp": 1_700_000_000}
    swarm.good(swarm.register(name, capabilities=able))


def test_a_member_of_the_swarm_is_no_drone_by_its_word(swarm: Swarm) -> None:
    (node,) = swarm.daemon.request("GET", "/api/v1/nodes", surface="console").json["nodes"]
    answer = swarm.register(node["name"])
    assert answer.status == 409 and "another node is called" in answer.json["error"]
    assert answer.json["hint"] == "give this one a name of its own"


def test_the_queue_says_since_when_a_drone_has_a_package(swarm: Swarm) -> None:
    def row(wanted: str) -> Any:
        entries = swarm.good(swarm.admin("GET", "/queue"))
        return next(entry for entry in entries if entry["package"] == wanted)

    swarm.reset()
    began = time.time()
    (wanted,) = swarm.queue()
    assert row(wanted)["assigned_at"] is None
    name = swarm.drone()
    assert swarm.work(name) == wanted
    found = row(wanted)
    assert (found["status"], found["drone_id"]) == ("delegated", f"id-{name}")
    assert began - 1 <= found["assigned_at"] <= time.time() + 1


def test_the_console_has_a_drone_by_its_name(swarm: Swarm) -> None:
    name, wanted = swarm.held()
    ask = partial(swarm.daemon.request, "GET", surface="console")
    (job,) = [j for j in ask("/api/v1/jobs?kind=package").json["jobs"] if j["type"] == wanted]
    assert (job["node"], job["attempts"]) == (name, [])
    job = ask(f"/api/v1/jobs/{job['id']}").json
    assert (job["node"], [each["node"] for each in job["attempts"]]) == (name, [name])


def test_the_hint_of_a_404_names_what_is_there(swarm: Swarm) -> None:
    answer = swarm.admin("POST", "/nodes/nobody/pause")
    named = re.findall(r"/[a-z][a-z0-9/-]*", answer.json["hint"])
    assert answer.status == 404 and named, answer.body
    for each in named:
        assert swarm.admin("GET", each.removeprefix(API)).status == 200, each


def test_a_body_in_another_encoding_is_refused_whoever_reads_it(swarm: Swarm) -> None:
    answer = swarm.admin("POST", "/control", b'{"action":"resume","x":"\xff"}')
    assert answer.status == 400, answer.body
    assert answer.json == {
        "error": "the body is not UTF-8: byte 24 is 0xff", "hint": "send JSON in UTF-8",
    }  # fmt: skip
