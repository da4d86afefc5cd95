"""The build swarm's admin port keeps its contract: every operation, status, field and refusal."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.contract.buildswarm import ENVELOPE
from tests.contract.buildswarm_admin import ADMIN, OPERATIONS, TYPES
from tests.contract.cases import check_answer, promised, statuses
from tests.contract.table import Operation
from tests.daemon import Daemon, Response, await_builds, running_daemon
from tests.parts import need
from tests.sshd import Sshd, running_sshd
from tests.swarms import until

KEY = {"X-Admin-Key": "a-key-for-tests"}
JOURNAL = "#!/bin/sh\necho 'Feb 12 15:30:01 drone-01 swarm-drone[1234]: Heartbeat sent'\n"
"""The host's, which may have none of its own."""
_NUMBERS = itertools.count(1)


class Admin:
    """A daemon as its operators see it, and one host that it reaches."""

    def __init__(self, daemon: Daemon, host: Sshd, files: Path) -> None:
        self.daemon = daemon
        self.host = host
        self.files = files

    def ask(
        self, method: str, path: str, body: object = None, key: bool = True, **more: Any
    ) -> Response:
        headers = KEY if key else {}
        return self.daemon.request(
            method, f"{ADMIN}{path}", body, surface="buildadmin", headers=headers, **more
        )

    def good(self, answer: Response) -> Any:
        assert answer.status in (200, 201), answer.body
        return answer.json

    def drone(self, name: str = "drone-01", ip: str | None = None) -> str:
        """One that says that it is there; by default the host."""
        says = {"id": f"id-{name}", "name": name, "ip": ip or self.host.host}
        answer = self.daemon.request("POST", "/api/v1/register", says, surface="buildswarm")
        assert answer.status == 200, answer.body
        return name

    def elsewhere(self) -> str:
        """One whose key nobody knows."""
        return self.drone("stranger", ip="127.0.0.77")

    def register(self, sort: str = "config", content: bytes | None = None, **more: Any) -> str:
        version = str(more.pop("version", f"1.{next(_NUMBERS)}"))
        data = f"of {version}".encode() if content is None else content
        body = {"type": sort, "version": version, "content": base64.b64encode(data).decode()}
        self.good(self.ask("POST", "/payloads", {**body, **more}))
        return version

    def deployed(self, sort: str = "config") -> str:
        version = self.register(sort)
        path = f"/payloads/{sort}/{version}/deploy"
        self.good(self.ask("POST", path, {"drone": self.drone()}))
        return version


@pytest.fixture(scope="module")
def admin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Admin]:
    need("sshd")
    folder = tmp_path_factory.mktemp("admin")
    files = folder / "files"
    files.mkdir()
    (tools := folder / "tools").mkdir()
    (tools / "journalctl").write_text(JOURNAL)
    (tools / "journalctl").chmod(0o755)
    path = f"{tools}:/usr/sbin:/usr/bin:/sbin:/bin"
    with running_sshd(folder / "host", env={"PATH": path}) as host:
        ssh = host.settings(folder / "known_hosts")
        payloads = {
            "binary": str(files / "swarm-drone"), "init_script": str(files / "init"),
            "config": str(files / "config.json"), "portage_config": str(files / "binhost.conf"),
            "service": "no-such-service",
        }  # fmt: skip
        with running_daemon(
            folder / "node", jobs={"executor": False}, ssh=ssh, payloads=payloads,
            # Others say that they are there too.
            ssh__hosts={"drone-01": f"{host.host}:{host.port}"},
            care={"enabled": False}, environment={"ADMIN_KEY": KEY["X-Admin-Key"]},
        ) as daemon:  # fmt: skip
            await_builds(daemon)
            yield Admin(daemon, host, files)


def to(method: str, path: str, body: object = None) -> Callable[[Admin], Response]:
    return lambda admin: admin.ask(method, path, body)


def bare(method: str, path: str) -> Callable[[Admin], Response]:
    return lambda admin: admin.ask(method, path, {}, key=False)


def about_a_drone(method: str, path: str) -> Callable[[Admin], Response]:
    return lambda admin: admin.ask(method, path.format(name=admin.drone()))


def posted(**fields: object) -> Callable[[Admin], Response]:
    def ask(admin: Admin) -> Response:
        new = f"2.{next(_NUMBERS)}"
        body = {"type": "config", "version": new, "content": base64.b64encode(b"c").decode()}
        return admin.ask("POST", "/payloads", {**body, **fields})

    return ask


def posted_again(content: bytes) -> Callable[[Admin], Response]:
    def ask(admin: Admin) -> Response:
        version = admin.register(content=b"first")
        return posted(version=version, content=base64.b64encode(content).decode())(admin)

    return ask


def put(content: bytes = b"bytes", kind: str = "drone_binary") -> Callable[[Admin], Response]:
    path = "/payloads/{}/{}?description=d&notes=n&created_by=me"
    return lambda admin: admin.ask("PUT", path.format(kind, f"3.{next(_NUMBERS)}"), content)


def put_again(content: bytes) -> Callable[[Admin], Response]:
    def ask(admin: Admin) -> Response:
        version = admin.register(content=b"first")
        return admin.ask("PUT", f"/payloads/config/{version}", content)

    return ask


def dropped(admin: Admin) -> Response:
    return admin.ask("DELETE", f"/payloads/config/{admin.register()}")


def dropped_in_use(admin: Admin) -> Response:
    return admin.ask("DELETE", f"/payloads/config/{admin.deployed()}")


def after_a_deployment(path: str) -> Callable[[Admin], Response]:
    def ask(admin: Admin) -> Response:
        admin.deployed()
        return admin.ask("GET", path)

    return ask


def deploy(verb: str, **body: object) -> Callable[[Admin], Response]:
    def ask(admin: Admin) -> Response:
        said = {key: value(admin) if callable(value) else value for key, value in body.items()}
        return admin.ask("POST", f"/payloads/config/{admin.register()}/{verb}", said)

    return ask


def one(admin: Admin) -> list[str]:
    return [admin.drone()]


def refused_by_the_host(admin: Admin) -> Response:
    """There is a directory where the file should be."""
    admin.drone()
    version = admin.register("portage_config")
    place = admin.files / "binhost.conf"
    place.mkdir()
    try:
        path = f"/payloads/portage_config/{version}/deploy"
        return admin.ask("POST", path, {"drone": "drone-01"})
    finally:
        place.rmdir()


def unreachable(admin: Admin) -> Response:
    admin.host.stop()
    try:
        return deploy("deploy", drone=Admin.drone)(admin)
    finally:
        admin.host.start()


def verified_unreachable(admin: Admin) -> Response:
    admin.deployed()
    admin.host.stop()
    try:
        return admin.ask("POST", "/payloads/config/verify", {"drone": "drone-01"})
    finally:
        admin.host.start()


def two_rolls(admin: Admin) -> Response:
    """The second, while the host of the first does not move."""
    version, other = (admin.register("drone_binary", words) for words in (b"one", b"another"))
    body = {"drones": one(admin), "health_check": False}
    path = "/payloads/drone_binary/{}/rolling-deploy"
    with ThreadPoolExecutor(1) as pool, admin.host.frozen():
        pool.submit(admin.ask, "POST", path.format(other), body, timeout_s=60)

        def under_way() -> bool:
            drones = admin.good(admin.ask("GET", "/payloads/status"))["drones"]
            return bool(drones["drone-01"].get("drone_binary", {}).get("status") == "deploying")

        until(under_way, "the first does not begin")
        return admin.ask("POST", path.format(version), body)


_DEPLOY = f"{ADMIN}/payloads/{{type}}/{{version}}/deploy"
_ROLL = f"{ADMIN}/payloads/{{type}}/{{version}}/rolling-deploy"
_LOG = f"{ADMIN}/payloads/{{type}}/deploy-log"
_VERIFY = f"{ADMIN}/payloads/{{type}}/verify"
_FILE = f"{ADMIN}/payloads/{{type}}/{{version}}"
_SYSLOG = f"{ADMIN}/drones/{{name}}/syslog"
_KEY = f"{ADMIN}/drones/{{name}}/host-key"

CASES: dict[tuple[str, str, int], Callable[[Admin], Response]] = {
    ("GET", f"{ADMIN}/system/info", 200): to("GET", "/system/info"),
    ("GET", f"{ADMIN}/logs/control-plane", 200): to("GET", "/logs/control-plane?lines=3"),
    ("GET", f"{ADMIN}/logs/control-plane", 400): to("GET", "/logs/control-plane?lines=few"),
    ("GET", _SYSLOG, 200): about_a_drone("GET", "/drones/{name}/syslog?lines=5"),
    ("GET", _SYSLOG, 400): about_a_drone("GET", "/drones/{name}/syslog?lines=0"),
    ("GET", _SYSLOG, 404): to("GET", "/drones/nobody/syslog"),
    ("GET", _SYSLOG, 503): lambda admin: stopped(admin, "GET", "/drones/drone-01/syslog"),
    ("GET", f"{ADMIN}/self-healing/status", 200): to("GET", "/self-healing/status"),
    ("GET", f"{ADMIN}/drones/{{name}}/escalation", 200): about_a_drone(
        "GET", "/drones/{name}/escalation"
    ),
    ("GET", f"{ADMIN}/drones/{{name}}/escalation", 404): to("GET", "/drones/nobody/escalation"),
    ("POST", f"{ADMIN}/drones/{{name}}/ping", 200): about_a_drone("POST", "/drones/{name}/ping"),
    ("POST", f"{ADMIN}/drones/{{name}}/ping", 404): to("POST", "/drones/nobody/ping"),
    ("POST", f"{ADMIN}/drones/{{name}}/clean", 410): to("POST", "/drones/drone-01/clean"),
    ("DELETE", _KEY, 200): about_a_drone("DELETE", "/drones/{name}/host-key"),
    ("DELETE", _KEY, 404): to("DELETE", "/drones/nobody/host-key"),
    ("GET", f"{ADMIN}/payloads", 200): after_a_deployment("/payloads"),
    ("POST", f"{ADMIN}/payloads", 201): posted(description="d", notes="n\nm", created_by="me"),
    ("POST", f"{ADMIN}/payloads", 200): posted_again(b"first"),
    ("POST", f"{ADMIN}/payloads", 400): posted(content="not base64!"),
    ("POST", f"{ADMIN}/payloads", 409): posted_again(b"second"),
    ("PUT", _FILE, 201): put(),
    ("PUT", _FILE, 200): put_again(b"first"),
    ("PUT", _FILE, 400): put(b""),
    ("PUT", _FILE, 404): put(kind="kernel"),
    ("PUT", _FILE, 409): put_again(b"second"),
    ("DELETE", _FILE, 200): dropped,
    ("DELETE", _FILE, 404): to("DELETE", "/payloads/config/0.0"),
    ("DELETE", _FILE, 409): dropped_in_use,
    ("GET", f"{ADMIN}/payloads/status", 200): after_a_deployment("/payloads/status"),
    ("GET", f"{ADMIN}/payloads/{{type}}/versions", 200): after_a_deployment(
        "/payloads/config/versions"
    ),
    ("GET", f"{ADMIN}/payloads/{{type}}/versions", 404): to("GET", "/payloads/kernel/versions"),
    ("GET", _LOG, 200): after_a_deployment("/payloads/config/deploy-log?drone=drone-01"),
    ("GET", _LOG, 400): to("GET", "/payloads/config/deploy-log?limit=0"),
    ("GET", _LOG, 404): to("GET", "/payloads/config/deploy-log?drone=nobody"),
    ("POST", _DEPLOY, 200): deploy("deploy", drone=Admin.drone, verify=True, deployed_by="me"),
    ("POST", _DEPLOY, 400): deploy("deploy"),
    ("POST", _DEPLOY, 404): deploy("deploy", drone="nobody"),
    ("POST", _DEPLOY, 409): refused_by_the_host,
    ("POST", _DEPLOY, 503): unreachable,
    ("POST", _ROLL, 200): deploy("rolling-deploy", drones=one, health_check=True),
    ("POST", _ROLL, 400): deploy("rolling-deploy", drones=[]),
    ("POST", _ROLL, 404): deploy("rolling-deploy", drones=["nobody"]),
    ("POST", _ROLL, 409): two_rolls,
    ("POST", _VERIFY, 200): lambda admin: stays_so(admin),
    ("POST", _VERIFY, 400): to("POST", "/payloads/config/verify", {}),
    ("POST", _VERIFY, 404): to("POST", "/payloads/config/verify", {"drone": "nobody"}),
    ("POST", _VERIFY, 503): verified_unreachable,
}
PLAIN = tuple(operation for operation in OPERATIONS if operation.method != "WS")
"""Terminals have tests of their own."""
for _operation in PLAIN:
    _path = _operation.path.removeprefix(ADMIN)
    for _part in ("{name}", "{type}", "{version}"):
        _path = _path.replace(_part, "x")
    CASES[_operation.method, _operation.path, 401] = bare(_operation.method, _path)


def stopped(admin: Admin, method: str, path: str) -> Response:
    admin.drone()
    admin.host.stop()
    try:
        return admin.ask(method, path)
    finally:
        admin.host.start()


def stays_so(admin: Admin) -> Response:
    admin.deployed()
    return admin.ask("POST", "/payloads/config/verify", {"drone": "drone-01"})


def test_every_status_of_the_table_has_a_case() -> None:
    assert promised(PLAIN) == set(CASES)


@pytest.mark.parametrize(
    ("operation", "status"), [(o, s) for o in PLAIN for s in statuses(o)], ids=str
)
def test_answer(admin: Admin, operation: Operation, status: int) -> None:
    answer = CASES[operation.method, operation.path, status](admin)
    check_answer(answer, operation, status, ENVELOPE)


# What is true of versions, and of what lies where


def test_a_version_is_told_as_it_was_given(admin: Admin) -> None:
    version = admin.register(content=b"x", description="d", notes="n", created_by="me")
    (shown,) = [
        each for each in admin.good(admin.ask("GET", "/payloads/config/versions"))["versions"]
        if each["version"] == version
    ]  # fmt: skip
    digest = hashlib.sha256(b"x").hexdigest()
    assert shown["hash"] == f"sha256:{digest}" and shown["size_bytes"] == 1
    assert (shown["description"], shown["notes"], shown["created_by"]) == ("d", "n", "me")
    assert shown["content_path"] == f"blob:sha256:{digest}"
    assert admin.good(admin.ask("GET", "/payloads/config/versions"))["latest"]["version"] == version


def test_what_was_deployed_lies_there_and_is_current(admin: Admin) -> None:
    version = admin.deployed()
    file = admin.files / "config.json"
    assert file.read_text() == f"of {version}" and file.stat().st_mode & 0o777 == 0o640
    matrix = admin.good(admin.ask("GET", "/payloads/status"))
    assert matrix["payload_types"] == [*TYPES]
    place = matrix["drones"]["drone-01"]["config"]
    assert (place["version"], place["status"], place["is_current"]) == (version, "deployed", True)
    (last, *_) = admin.good(admin.ask("GET", "/payloads/config/deploy-log"))["history"]
    assert (last["action"], last["status"], last["version"]) == ("deploy", "success", version)
    assert last["deployed_by"] == "admin" and last["drone_name"] == "drone-01"


def test_what_was_changed_on_the_drone_is_seen(admin: Admin) -> None:
    admin.deployed()
    (admin.files / "config.json").write_text("somebody was here")
    said = admin.good(admin.ask("POST", "/payloads/config/verify", {"drone": "drone-01"}))
    assert said["matches"] is False and "no version of it" in said["message"]
    assert said["remote_hash"] == hashlib.sha256(b"somebody was here").hexdigest()
    place = admin.good(admin.ask("GET", "/payloads/status"))["drones"]["drone-01"]["config"]
    assert (place["status"], place["is_current"]) == ("changed", False)
    admin.deployed()
    said = admin.good(admin.ask("POST", "/payloads/config/verify", {"drone": "drone-01"}))
    assert said["matches"] is True and said["message"] == "Hash matches"


def test_a_host_whose_key_is_not_known_gets_nothing(admin: Admin) -> None:
    version = admin.register()
    path = f"/payloads/config/{version}/deploy"
    answer = admin.ask("POST", path, {"drone": admin.elsewhere()})
    assert answer.status in (409, 503), answer.body
    # Nor does one that nobody ever named.
    admin.drone("never-named")
    admin.good(admin.ask("POST", f"/payloads/config/{version}/rolling-deploy", {}))
    drones = admin.good(admin.ask("GET", "/payloads/status"))["drones"]
    assert "config" not in drones["never-named"]


def test_who_says_to_be_where_another_is_gets_nothing(admin: Admin) -> None:
    """The first is where the configuration has it, the others where they say."""
    version = admin.deployed()
    liar = admin.drone("liar")
    for method, path, body in (
        ("POST", f"/payloads/config/{version}/deploy", {"drone": liar}),
        ("GET", f"/drones/{liar}/syslog", None),
        ("POST", "/payloads/config/verify", {"drone": liar}),
    ):
        answer = admin.ask(method, path, body)
        assert answer.status == 409, answer.body
        said = answer.json
        there = f"liar: several builders are to be at {admin.host.host}, this one and drone-01"
        assert there in said["error"]
        assert "ssh.hosts" in said["hint"]
    admin.deployed()


def test_a_service_that_is_unknown_there_rolls_back(admin: Admin) -> None:
    first, second = admin.register("init_script"), admin.register("init_script")
    body = {"drones": one(admin)}
    admin.good(admin.ask("POST", f"/payloads/init_script/{first}/deploy", {"drone": "drone-01"}))
    said = admin.good(admin.ask("POST", f"/payloads/init_script/{second}/rolling-deploy", body))
    assert (said["status"], said["success_count"], said["fail_count"]) == ("partial", 0, 1)
    assert not said["results"]["drone-01"]["success"]
    assert (admin.files / "init").read_text() == f"of {first}"
    place = admin.good(admin.ask("GET", "/payloads/status"))["drones"]["drone-01"]["init_script"]
    assert (place["version"], place["is_current"]) == (first, False)


def test_a_hosts_log_is_read(admin: Admin) -> None:
    said = admin.good(admin.ask("GET", f"/drones/{admin.drone()}/syslog"))
    assert said["lines"] == ["Feb 12 15:30:01 drone-01 swarm-drone[1234]: Heartbeat sent"]


def test_the_nodes_log_is_its_own_and_tells_no_key(admin: Admin) -> None:
    said = admin.good(admin.ask("GET", "/logs/control-plane?lines=2000"))
    assert any("a step of a deployment ended" in line for line in said["lines"])
    assert not any(KEY["X-Admin-Key"] in line for line in said["lines"])
    info = admin.good(admin.ask("GET", "/system/info"))
    assert Path(info["db_path"]).is_file() and info["db_size_mb"] > 0
    assert info["v2_gateway_url"] is None and info["admin_port"] == admin.daemon.ports["buildadmin"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"type": "kernel"}, "type"),
        ({"version": "../x"}, "version"),
        ({"version": ""}, "version"),
        ({"version": "x" * 65}, "version"),
        ({"content": 7}, "content"),
        ({"content": "%%%"}, "base64"),
        ({"content": ""}, "empty"),
        ({"notes": "\x1b[2J"}, "notes"),
        ({"description": "d" * 3000}, "description"),
        ({"created_by": "a\nb"}, "created_by"),
    ],
)
def test_what_is_no_version_is_refused(admin: Admin, body: dict[str, Any], said: str) -> None:
    answer = posted(**body)(admin)
    assert answer.status == 400 and said in answer.json["error"], answer.body


@pytest.mark.parametrize("path", ["/drones/nobody/escalation", "/no/such/path"])
def test_the_hint_of_a_404_names_what_is_there(admin: Admin, path: str) -> None:
    answer = admin.ask("GET", path)
    named = re.findall(r"/[a-z][a-z0-9/-]*", answer.json["hint"])
    assert answer.status == 404 and named, answer.body
    for each in named:
        assert each.startswith(ADMIN)
        assert admin.ask("GET", each.removeprefix(ADMIN)).status == 200, each


def test_a_wrong_key_opens_nothing(admin: Admin) -> None:
    for headers in ({"X-Admin-Key": "wrong"}, {"Authorization": "Bearer wrong"}, {}):
        answer = admin.daemon.request(
            "GET", f"{ADMIN}/system/info", surface="buildadmin", headers=headers
        )
        assert answer.status == 401, answer.body
