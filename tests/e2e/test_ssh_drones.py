"""Drones as hosts of their own: each an sshd in a network namespace at one switch, with a service
that says by HTTP that it lives. A daemon at the same switch probes them, brings them back, puts
payloads on them and has terminals there; a cable that is pulled is one that is pulled."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

import tests.terminals
from swarmd.domain.care import FAILURES_MIN
from tests.cli import swarmd
from tests.daemon import SURFACES, Daemon, Response, start_daemon
from tests.faults import Clock, clock_library
from tests.netns import Host, Switched, switched_network
from tests.parts import need
from tests.sshd import SshHost, alive, running_sshd
from tests.swarms import until
from tests.terminals import Host as Terminals
from tests.terminals import Screen, connected, gone

Step = tuple[str, str | None, int]
"""What became of which action at which level."""
WELL = ("healthy", None, 0)
KEY = "a-key-for-tests"
LATE = b'{"jobs": 8}'
NAMES = ("one", "two", "three")
SSH_PORT = 22
FAILING_S, PAUSE_S = 181, 121
"""A little longer than a drone has to fail, and than what comes of any step is waited for."""
STEP_S_MAX = 60.0
KEEPALIVE_S = 4.0
LOST_S_MAX = 90.0
"""Of a connection that nobody answers on: it is given up within the minute."""
SERVICE = """#!/bin/sh
# Of OpenRC what swarmd asks for. Where it `ails` the service does not start, and nothing says so.
cd {root} || exit 1
up() {{ tr '\\0' ' ' <"/proc/$(cat pid)/cmdline" | grep -q swarm-drone; }} 2>/dev/null
start() {{ setsid ./swarm-drone </dev/null >/dev/null 2>&1 & echo $! >pid; }}
restart() {{ ! up || kill -9 "$(cat pid)"; rm -f pid; [ -e ails ] || start; }}
case "$*" in
  '-e swarm-drone') exit;;
  'swarm-drone status') up; exit;;
esac
[ -z "$SSH_CONNECTION" ] || echo "$2" >>told
case "$*" in
  'swarm-drone zap') ;;
  'swarm-drone start') [ -e ails ] || up || start;;
  'swarm-drone restart') restart;;
  *) exit 64;;
esac
"""
REBOOT = """#!/bin/sh
cd {root} || exit 1
echo reboot >>told
rm -f ails
bin/rc-service swarm-drone restart
"""
PROGRAM = """#!{python} -IS
# {version}
import http.client, json, pathlib, time
me = json.loads(pathlib.Path({me!r}).read_text())
while True:
    try:
        link = http.client.HTTPConnection(*me["node"], timeout=2)
        link.request("POST", "/api/v1/register", json.dumps(me["says"]), me["headers"])
        link.getresponse().read()
    except OSError:
        pass
    time.sleep(0.5)
"""


@dataclass
class Drone(SshHost):
    """A host with a cable."""

    host: Host

    def told(self) -> list[str]:
        """What its service was told to do over SSH, and the host."""
        with suppress(FileNotFoundError):
            return (self.inside / "told").read_text().split()
        return []

    def start(self) -> None:
        """Its service, as who is at the host does."""
        assert self.sshd.process is not None
        subprocess.run(
            ["nsenter", "--target", str(self.sshd.process.pid), "--mount", "--net",
             f"{self.root}/bin/rc-service", "swarm-drone", "start"],
            check=True, timeout=30,
        )  # fmt: skip


@dataclass
class Estate:
    network: Switched
    node: Host
    daemon: Daemon
    clock: Clock
    drones: dict[str, Drone]
    ahead_s: int = 0

    def __getitem__(self, name: str) -> Drone:
        return self.drones[name]

    def ask(
        self, method: str, path: str, body: object = None, surface: str = "buildadmin"
    ) -> Response:
        """By an operator, who is at the switch too."""
        with self.network.entered():
            return self.daemon.request(
                method, path, body, surface=surface, headers={"X-Admin-Key": KEY}, timeout_s=60
            )

    def good(self, method: str, path: str, body: object = None, **more: Any) -> Any:
        answer = self.ask(method, path, body, **more)
        assert answer.status in (200, 201), answer.body
        return answer.json

    def online(self) -> set[str]:
        nodes = self.good("GET", "/api/v1/nodes", surface="buildswarm")
        return {node["name"] for node in nodes if node["status"] == "online"}

    # -- how they are

    def pinged(self, name: str) -> Any:
        """What came of it: it is probed now."""
        return self.good("POST", f"/admin/api/drones/{name}/ping")

    def is_at(self, name: str, status: str) -> bool:
        return bool(self.pinged(name)["status"] == status)

    def standing(self, name: str) -> Any:
        return self.good("GET", f"/admin/api/drones/{name}/escalation")

    def steps(self, name: str) -> list[Step]:
        """Of its escalation, the oldest first, as the events have them."""
        path = "/api/v1/events?type=escalation&limit=1000"
        events = self.good("GET", path, surface="buildswarm")["events"]
        own = [e["details"] for e in reversed(events) if e["details"]["drone_id"] == f"id-{name}"]
        return [(each["result"], each["action"], each["level"]) for each in own]

    def is_of(self, name: str, sort: str) -> None:
        path = f"/api/v1/nodes/{name}/set-type"
        self.good("POST", path, {"drone_type": sort}, surface="buildswarm")

    def pass_s(self, seconds: int) -> None:
        """So much of the swarm's time."""
        self.ahead_s += seconds
        self.clock.jump(self.ahead_s)

    # -- what lies there

    def register(self, sort: str, version: str, content: bytes) -> None:
        self.good("PUT", f"/admin/api/payloads/{sort}/{version}", content)

    def deploy(self, sort: str, version: str, name: str) -> Response:
        return self.ask("POST", f"/admin/api/payloads/{sort}/{version}/deploy", {"drone": name})

    def verified(self, sort: str, name: str) -> Any:
        return self.good("POST", f"/admin/api/payloads/{sort}/verify", {"drone": name})

    def log(self, sort: str, name: str) -> list[tuple[str, str]]:
        """Steps and how they ended, the oldest first."""
        path = f"/admin/api/payloads/{sort}/deploy-log?drone={name}"
        rows = self.good("GET", path)["history"]
        return [(row["action"], row["status"]) for row in reversed(rows)]

    def program(self, version: str) -> bytes:
        me = next(iter(self.drones.values())).root / "me.json"
        text = PROGRAM.format(python=sys.executable, version=version, me=str(me))
        return text.encode()

    # -- terminals

    async def terminal(self, stack: AsyncExitStack, name: str) -> Screen:
        """Of somebody at the node, by its loopback."""
        at = Terminals(self.daemon, self.drones[name].sshd)
        with self.node.entered():
            return await stack.enter_async_context(connected(at, name))


class Ailing:
    """A drone whose service ends now, and what is done for it from then on."""

    def __init__(self, estate: Estate, name: str, *, lasting: bool) -> None:
        """`lasting`: it does not start again until somebody sees to it."""
        self._estate, self._drone = estate, estate[name]
        self._steps, self._told = len(estate.steps(name)), len(self._drone.told())
        self._file = self._drone.inside / "ails"
        if lasting:
            self._file.touch()
        self._drone.kill()

    @property
    def steps(self) -> list[Step]:
        return self._estate.steps(self._drone.name)[self._steps :]

    @property
    def told(self) -> list[str]:
        return self._drone.told()[self._told :]

    def fails(self) -> None:
        """For as long as it takes until something is done about it."""
        name = self._drone.name
        until(lambda: self._estate.is_at(name, "service_down"), f"{name} does not fail")
        while self._estate.standing(name)["failures_in_a_row"] < FAILURES_MIN:
            self._estate.pinged(name)
        self._estate.pass_s(FAILING_S)

    def comes_to(self, action: str, level: int) -> None:
        done = ("done", action, level)
        until(lambda: done in self.steps, f"{action}: it does not come to that", STEP_S_MAX)

    def fails_on(self) -> None:
        """Also after the pause that the last step was given."""
        self._estate.pass_s(PAUSE_S)
        assert self._estate.is_at(self._drone.name, "service_down")

    def is_seen_to(self) -> None:
        self._file.unlink()
        self._drone.start()

    def is_well(self) -> None:
        name = self._drone.name
        until(lambda: self._estate.is_at(name, "ok"), f"{name} is not well again", STEP_S_MAX)
        until(lambda: self.steps[-1] == WELL, f"{name} is not seen to be well", STEP_S_MAX)
        assert self._estate.standing(name)["escalation_level"] == 0


@contextmanager
def running_estate(folder: Path) -> Iterator[Estate]:
    root = folder / "root"
    root.mkdir()
    with ExitStack() as stack:
        network = stack.enter_context(switched_network(1 + len(NAMES)))
        node, *hosts = network.hosts
        drones = {
            name: stack.enter_context(running_drone(folder, root, name, host))
            for name, host in zip(NAMES, hosts, strict=True)
        }
        key = client_key(folder).with_suffix(".pub").read_bytes()
        for drone in drones.values():
            (drone.sshd.folder / "client.pub").write_bytes(key)
        clock = Clock(folder / "clock", clock_library(folder))
        with node.entered():
            daemon = start_daemon(
                folder / "node", environment={"ADMIN_KEY": KEY, **clock.environment},
                **settings(folder, root, node, drones),
            )  # fmt: skip
        stack.callback(daemon.end)
        estate = Estate(network, node, daemon, clock, drones)
        try:
            settle(estate)
            yield estate
        except BaseException as failure:
            failure.add_note(f"the daemon's log ends:\n{daemon.stderr()[-4000:]}")
            raise


@contextmanager
def running_drone(folder: Path, root: Path, name: str, host: Host) -> Iterator[Drone]:
    # What this machine is started and ended with has no part in its drones.
    own = (
        f"mount -t tmpfs -o size=256m none {root};"
        " [ ! -d /run/systemd ] || mount -t tmpfs none /run/systemd;"
        " for f in /usr/sbin/reboot /sbin/reboot; do"
        " [ ! -e $f ] || mount --bind /dev/null $f; done"
    )
    within = (
        "unshare", "--mount", "--propagation", "private", "sh", "-c", f'{own}; exec "$@"', "sh",
    )  # fmt: skip
    path = f"{root}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    with ExitStack() as stack:
        with host.entered():
            sshd = stack.enter_context(running_sshd(
                folder / f"ssh-{name}", host.address, port=SSH_PORT, within=within,
                env={"PATH": path, "SHELL": "/bin/sh", "PS1": "$ "},
            ))  # fmt: skip
        drone = Drone(name, sshd, root, host)
        try:
            yield drone
        finally:
            drone.kill()


def client_key(folder: Path) -> Path:
    """Which each of the hosts takes: that of the first."""
    return folder / f"ssh-{NAMES[0]}" / "client"


def settings(
    folder: Path, root: Path, node: Host, drones: Mapping[str, Drone]
) -> dict[str, Mapping[str, object]]:
    """Drones are reached at the addresses that they say, and by these keys alone."""
    known = folder / "known_hosts"
    known.write_text("".join(
        f"{drone.host.address} {drone.sshd.host_key()}\n" for drone in drones.values()
    ))  # fmt: skip
    return {
        "node": {"name": "n1", "bind": [node.address, "127.0.0.1"]},
        **{f"surfaces__{name}": {"port": port} for name, port in SURFACES.items()},
        "jobs": {"executor": False},
        "ssh": {
            "key_file": str(client_key(folder)), "known_hosts": str(known),
            "user": getpass.getuser(), "keepalive_s": KEEPALIVE_S,
        },
        "care": {"paths": [str(root)]},
        "payloads": {
            "binary": str(root / "swarm-drone"), "config": str(root / "config.json"),
            "heartbeat_s": 10.0,
        },
    }  # fmt: skip


def settle(estate: Estate) -> None:
    """Each host has a service that is known by what it says itself, with a token of its own."""
    until(lambda: estate.ask("GET", "/admin/api/payloads").status == 200, "payloads are not there")
    place = [estate.node.address, estate.daemon.ports["buildswarm"]]
    for drone in estate.drones.values():
        made = swarmd(
            "drone-token", drone.name, env={"SWARMD_DATA_DIR": str(estate.daemon.data_dir)}
        )
        assert made.status == 0, made.err
        says = {"id": f"id-{drone.name}", "name": drone.name, "ip": drone.host.address}
        headers = {"X-Drone-Token": made.out.strip(), "Content-Type": "application/json"}
        drone.write("me.json", json.dumps({"node": place, "says": says, "headers": headers}))
        drone.write("bin/rc-service", SERVICE.format(root=drone.root), 0o755)
        drone.write("bin/reboot", REBOOT.format(root=drone.root), 0o755)
        drone.write("swarm-drone", estate.program("0"), 0o755)
        drone.start()
    until(lambda: estate.online() == {*NAMES}, "not every drone registers")


@pytest.fixture(scope="module")
def estate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Estate]:
    need("root", "netns", "sshd", "cc")
    with running_estate(tmp_path_factory.mktemp("drones")) as made:
        yield made


def test_each_is_probed_where_it_says_it_is(estate: Estate) -> None:
    for name in NAMES:
        said = estate.pinged(name)
        assert (said["status"], said["probe_result"]["service"]) == ("ok", "up"), said
        assert said["latency_ms"] > 0
    seen = estate.good("GET", "/api/v1/ping", surface="buildswarm")["drones"]
    for name in NAMES:
        assert (seen[name]["status"], seen[name]["way"]) == ("ok", "ssh")
        assert seen[name]["last_pong_at"] is not None
    monitor = estate.good("GET", "/admin/api/self-healing/status")
    assert monitor["monitor_running"] and not {*NAMES} & {*monitor["not_probed"]}


def test_a_payload_comes_to_the_host_that_was_named_and_a_roll_to_all(estate: Estate) -> None:
    content = b'{"jobs": 4}'
    estate.register("config", "alone", content)
    assert estate.deploy("config", "alone", "two").status == 200
    said = estate.verified("config", "two")
    assert said["matches"] and said["remote_hash"] == hashlib.sha256(content).hexdigest()
    assert [name for name in NAMES if "config.json" in estate[name].names()] == ["two"]
    # Each is given its program by itself, starts it, and is heard of from where it is.
    before = {name: estate[name].pid() for name in NAMES}
    estate.register("drone_binary", "1", estate.program("1"))
    path = "/admin/api/payloads/drone_binary/1/rolling-deploy"
    said = estate.good("POST", path, {"drones": [*NAMES]})
    assert (said["status"], said["success_count"]) == ("ok", 3), said
    for name in NAMES:
        assert estate.verified("drone_binary", name)["matches"]
        assert estate[name].pid() not in (None, before[name])
        steps = estate.log("drone_binary", name)
        assert steps[:3] == [(step, "success") for step in ("deploy", "restart", "health")]


async def test_a_terminal_is_on_the_host_and_ends_with_who_had_it(estate: Estate) -> None:
    shells = []
    for name in NAMES:
        async with AsyncExitStack() as stack:
            screen = await estate.terminal(stack, name)
            shells.append(await has_shell(screen))
            root = estate[name].root
            await screen.type(f"ip -4 -o addr; cat {root}/me.json; echo th''is is all\n")
            await screen.until("this is all")
            shows = {n for n in NAMES if f" {estate[n].host.address}/24" in screen.shown}
            assert shows == {name} and f'"id-{name}"' in screen.shown, screen.shown
            assert alive(shells[-1])
    await gone(shells)


async def has_shell(screen: Screen) -> int:
    """Its process."""
    await screen.type("stty -echo; echo shell $$ it is\n")
    while not (found := re.search(r"shell (\d+) it is", screen.shown)):
        await screen.next()
    return int(found[1])


def test_a_service_that_has_ended_is_started_again_on_its_own_host(estate: Estate) -> None:
    before, told = estate["one"].pid(), [estate[name].told() for name in NAMES[1:]]
    one = Ailing(estate, "one", lasting=False)
    one.fails()
    one.comes_to("restart", 1)
    one.is_well()
    assert one.told == ["restart"] and estate["one"].pid() not in (None, before)
    assert one.steps == [("begun", "restart", 1), ("done", "restart", 1), WELL]
    assert [estate[name].told() for name in NAMES[1:]] == told


async def test_while_one_is_cut_off_the_others_are_brought_back(
    estate: Estate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its cable is pulled in the middle of a deployment, with a terminal open: that ends, and it
    gets no payload. The others go up the whole ladder: two is of bare metal, and is left to people;
    three may be rebooted."""
    monkeypatch.setattr(tests.terminals, "TIMEOUT_S", 3 * LOST_S_MAX)
    run, one = trio.to_thread.run_sync, estate["one"]
    await run(estate.register, "config", "late", LATE)
    await run(estate.register, "config", "big", os.urandom(1_000_000) * 100)
    await run(estate.register, "drone_binary", "2", estate.program("2"))
    before, program = one.names(), one.file("swarm-drone")
    async with AsyncExitStack() as stack:
        screen = await estate.terminal(stack, "one")
        await has_shell(screen)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        sent = pool.submit(estate.deploy, "config", "big", "one")
        with trio.fail_after(STEP_S_MAX):
            while not one.names() - before:
                await trio.sleep(0.005)
        with pulled(estate, one):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ends_lost, screen)
                late = pool.submit(estate.deploy, "drone_binary", "2", "one")
                await run(cut_off, estate, {"config": sent, "drone_binary": late})
                # Of what was begun only a file by a passing name is there.
                (part,) = one.names() - before
                assert part.startswith(".config.json.") and before <= one.names()
                assert one.file("swarm-drone") == program
                await run(up_the_ladder, estate)
    await run(well_again, estate)
    assert one.names() == before | {"config.json"} and one.file("config.json") == LATE


@contextmanager
def pulled(estate: Estate, drone: Drone) -> Iterator[None]:
    """Its cable."""
    estate.network.link(drone.host, up=False)
    try:
        yield
    finally:
        estate.network.link(drone.host, up=True)


async def ends_lost(screen: Screen) -> None:
    with trio.fail_after(LOST_S_MAX):
        said = await screen.until_type("error")
        assert "lost" in said["error"] and await screen.closed() == 1011, said


def cut_off(estate: Estate, deployed: Mapping[str, Future[Response]]) -> None:
    """It is told of as it is; as long as it was heard of lately nothing is done about that."""
    until(lambda: estate.is_at("one", "unreachable"), "one is reached", STEP_S_MAX)
    message = estate.good("GET", "/api/v1/ping", surface="buildswarm")["drones"]["one"]["message"]
    assert message.startswith("a warning only, since it is heard of: ")
    assert estate.standing("one")["failures_in_a_row"] == 0
    for sort, asked in deployed.items():
        answer = asked.result(STEP_S_MAX)
        assert answer.status == 503 and answer.json["error"].startswith("one: "), answer.body
        assert estate.log(sort, "one")[-1] == ("deploy", "failed")


def up_the_ladder(estate: Estate) -> None:
    estate.is_of("two", "bare-metal")
    estate.is_of("three", "qemu")
    two = left_to_people(estate)
    three = rebooted(estate)
    for drone in (two, three):
        drone.is_well()
    service = ["restart", "zap", "start"]
    assert (two.told, three.told) == (service, [*service, "reboot", "restart"])
    below = [
        ("begun", "restart", 1), ("done", "restart", 1), ("begun", "kill and start", 2),
        ("done", "kill and start", 2),
    ]  # fmt: skip
    assert two.steps == [*below, ("begun", "alert", 4), ("done", "alert", 4), WELL]
    assert three.steps == [*below, ("begun", "reboot", 3), ("done", "reboot", 3), WELL]


def left_to_people(estate: Estate) -> Ailing:
    two = in_vain(estate, "two")
    two.comes_to("alert", 4)
    assert "a builder needs somebody to look after it" in estate.daemon.stderr()
    monitor = estate.good("GET", "/admin/api/self-healing/status")
    assert monitor["escalation_summary"]["level_4"] == 1
    two.is_seen_to()
    return two


def rebooted(estate: Estate) -> Ailing:
    three = in_vain(estate, "three")
    three.comes_to("reboot", 3)
    return three


def in_vain(estate: Estate, name: str) -> Ailing:
    """Its service is restarted, and killed and started, and fails on."""
    ailing = Ailing(estate, name, lasting=True)
    ailing.fails()
    for level, action in enumerate(("restart", "kill and start"), 1):
        ailing.comes_to(action, level)
        ailing.fails_on()
    return ailing


def well_again(estate: Estate) -> None:
    until(lambda: estate.is_at("one", "ok"), "one is not well again", LOST_S_MAX)
    until(lambda: "one" in estate.online(), "one is not heard of again")
    assert estate.deploy("config", "late", "one").status == 200
    assert estate.verified("config", "one")["matches"]
