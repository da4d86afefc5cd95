"""Builders on real hosts: probed and healed over SSH, and a node that heals its own host. What
would restart or reboot is a script that notes it was called."""

from __future__ import annotations

import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from swarmd.agent.healing import answer_care
from swarmd.cluster.asks import ActOnHost, ListProbes, ProbeHost, ProbeNow
from swarmd.cluster.replica import Replica
from swarmd.control import care
from swarmd.control.care import Caretaker
from swarmd.control.reaching import CareSettings, Way, Ways
from swarmd.domain.actors import Actor
from swarmd.domain.builds import FAILURES_IN_A_ROW_MAX, GROUNDED_MS, HostSort, Outcome
from swarmd.domain.care import Care, CareAction
from swarmd.domain.errors import Conflict, Unavailable
from swarmd.domain.jobs import Installed, JobId, JobKind, JobSpec, NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.domain.probes import Probed, ProbeStatus, ServiceState
from swarmd.drivers.ssh import HostKeyChanged, Ssh, SshTarget
from swarmd.drivers.ssh_known import KnownHosts, SshAccount, lines_of
from swarmd.ops.care import find
from swarmd.state import commands as c
from swarmd.state.build_commands import FinishBuild, NoteBuilder, PutBuilder, TakeBuilds
from swarmd.state.build_queries import FindBuilder
from swarmd.state.care_commands import BeginCare, EndCare
from swarmd.state.care_queries import Cared, ListCare
from tests.cluster import open_alone
from tests.sshd import Sshd, make_key

pytestmark = pytest.mark.needs("sshd")
ADMIN = Actor("admin", "buildswarm")
ONE = NodeId("builder/one")
SERVICE = "swarm-drone"


class Host:
    """What runs services there is a script: it notes what it is told, and may fail."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.log, self.down, self.broken = (folder / n for n in ("log", "down", "broken"))
        self.log.touch()
        for name in ("systemctl", "rc-service", "reboot"):
            self._script(
                name,
                f"""
                case "$*" in *status*|*is-active*) [ ! -e {self.down} ]; exit;; esac
                echo "{name} $*" >>{self.log}
                case "$*" in
                  *-e*|*cat*) ;;
                  *restart*) [ ! -e {self.broken} ];;
                  *start*) rm -f {self.down};;
                esac""",
            )
        self._script("sleep", "exit 0")

    def _script(self, name: str, text: str) -> None:
        file = self.bin / name
        file.write_text(f"#!/bin/sh\n{text}\n")
        file.chmod(0o755)

    @property
    def path(self) -> str:
        return f"{self.bin}:/usr/bin:/bin"

    def told(self, *words: str) -> int:
        return sum(all(w in line for w in words) for line in self.log.read_text().splitlines())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "host")


@pytest.fixture
def sshd_env(host: Host) -> dict[str, str]:
    return {"PATH": host.path}


@dataclass
class Clock:
    """The swarm's time, which a test has run on."""

    ms: int = 1_000_000

    def now_ms(self) -> int:
        return self.ms


@dataclass
class Swarm:
    cluster: Replica
    clock: Clock
    term: int

    async def propose(self, command: c.Command[c.T]) -> c.T:
        return await self.cluster.propose(command, ADMIN)

    async def builder(self, name: str, address: str, sort: HostSort) -> NodeId:
        node_id = NodeId(f"builder/{name}")
        node = Node(node_id, name, NodeKind.DRONE, addresses=(address,), reach=("http",))
        await self.propose(PutBuilder(node_id, node=node))
        await self.propose(NoteBuilder(node_id, sort=sort))
        return node_id

    async def cared(self, node_id: NodeId = ONE) -> Cared:
        (found,) = [x for x in await self.cluster.read(ListCare()) if x.node.id == node_id]
        return found


@asynccontextmanager
async def opened(place: Path) -> AsyncIterator[Swarm]:
    clock = Clock()
    node = Node(NodeId("n1"), "n1", addresses=("127.0.0.1",), machine_version=c.VERSION)
    async with open_alone(place, node, now_ms=clock.now_ms) as cluster:
        term = cluster.leadership().term
        await cluster.propose(c.RaiseVersion(c.VERSION, term), ADMIN)
        with trio.fail_after(10):
            while cluster.cluster_version() < c.VERSION:
                await trio.sleep(0.01)
        yield Swarm(cluster, clock, term)


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    (tmp_path / "swarm").mkdir()
    async with opened(tmp_path / "swarm") as swarm:
        yield swarm


def ways(swarm: Swarm, ssh: Ssh, *targets: SshTarget) -> Ways:
    """Each target is the way to the builders that say they are at its host."""

    async def target(cared: Cared) -> SshTarget:
        for each in targets:
            if each.host in cared.node.addresses:
                return each
        raise Unavailable("nobody knows where it is")

    return Ways(swarm.cluster, CareSettings(service=SERVICE), ssh, target)


def caretaker(swarm: Swarm, found: Ways) -> Caretaker:
    """Of builders that are heard of no more."""
    return Caretaker(swarm.cluster, swarm.term, found, lambda node_id: 1e9)


async def test_a_service_that_is_down_is_started_and_its_package_given_back(
    swarm: Swarm, ssh: Ssh, sshd: Sshd, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(care, "LOOK_S", 0.05)
    await swarm.builder("one", sshd.host, HostSort.LXC)
    spec = JobSpec("a/p-1", Installed("emerge"), kind=JobKind.PACKAGE)
    await swarm.propose(c.SubmitJobs((c.NewJob(JobId("j"), spec),)))
    taken = await swarm.propose(TakeBuilds(ONE, 1))
    assert len(taken) == 1
    host.down.touch()
    keeper = caretaker(swarm, ways(swarm, ssh, sshd.target()))
    stop = swarm.cluster.answers(ListProbes, keeper.list_probes)
    levels: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.heal)
        with trio.fail_after(60):
            while True:
                if not (await swarm.cared()).care.under_way:
                    swarm.clock.ms += 61_000
                await keeper.probe_now(ProbeNow((ONE,), waits=True))
                await trio.sleep(0.2)
                level = (await swarm.cared()).care.level
                if not levels or levels[-1] != level:
                    levels.append(level)
                if level == 0 and len(levels) > 1:
                    break
        view = await find(swarm.cluster, "one")
        nursery.cancel_scope.cancel()
    stop()
    assert levels == [0, 1, 2, 0]
    assert host.told("restart", SERVICE) == 1 and not host.down.exists()
    assert host.told("reboot") == 0
    builder = await swarm.cluster.read(FindBuilder(ONE))
    assert builder is not None and not builder.held and builder.revoked == ("a/p-1",)
    assert view.sign.status is ProbeStatus.OK and view.sign.way == "ssh"
    assert view.sign.latency_ms is not None and view.sign.found is not None


async def test_a_grounded_builder_is_restarted_and_the_next_time_rebooted(
    swarm: Swarm, ssh: Ssh, sshd: Sshd, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(care, "LOOK_S", 0.05)
    await swarm.builder("one", sshd.host, HostSort.QEMU)
    new = tuple(
        c.NewJob(JobId(f"j{n}"), JobSpec(f"a/p-{n}", Installed("emerge"), kind=JobKind.PACKAGE))
        for n in range(2 * FAILURES_IN_A_ROW_MAX)
    )
    await swarm.propose(c.SubmitJobs(new))
    keeper = caretaker(swarm, ways(swarm, ssh, sshd.target()))

    async def fail(times: int) -> None:
        for _ in range(times):
            (job,) = await swarm.propose(TakeBuilds(ONE, 1))
            await swarm.propose(FinishBuild(ONE, job.spec.type, Outcome.FAILED))

    async def done(action: CareAction) -> Care:
        while (seen := (await swarm.cared()).care).under_way or seen.action is not action:
            await trio.sleep(0.05)
        return seen

    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.heal)
        with trio.fail_after(60):
            await fail(FAILURES_IN_A_ROW_MAX)
            await done(CareAction.RESTART)
            swarm.clock.ms += GROUNDED_MS
            await fail(FAILURES_IN_A_ROW_MAX)
            seen = await done(CareAction.REBOOT)
            while not host.told("reboot"):
                await trio.sleep(0.05)
        nursery.cancel_scope.cancel()
    assert (host.told("restart", SERVICE), host.told("reboot")) == (1, 1)
    assert (seen.level, seen.ok, seen.action) == (0, True, CareAction.REBOOT)


async def test_what_is_done_to_a_host_is_known_by_its_exit_code(
    swarm: Swarm, ssh: Ssh, sshd: Sshd, host: Host
) -> None:
    await swarm.builder("one", sshd.host, HostSort.LXC)
    found = ways(swarm, ssh, sshd.target())
    cared = await swarm.cared()
    way = (await found.find([cared]))[ONE]
    await found.act(cared, way, CareAction.RESTART)
    host.broken.touch()
    with pytest.raises(Unavailable, match="exit code 1"):
        await found.act(cared, way, CareAction.RESTART)
    assert host.told("restart") == 2
    ran = await ssh.exec(sshd.target(), "command -v reboot", timeout_s=60)
    assert ran.stdout.decode().startswith(str(host.bin)), "or it would be in earnest"
    await found.act(cared, way, CareAction.REBOOT)
    with trio.fail_after(60):
        while host.told("reboot") == 0:
            await trio.sleep(0.02)


async def test_a_host_with_another_key_is_told_as_an_error_and_nothing_is_said_to_it(
    swarm: Swarm, ssh: Ssh, sshd: Sshd, host: Host
) -> None:
    await swarm.builder("one", sshd.host, HostSort.LXC)
    found = ways(swarm, ssh, sshd.target())
    await trio.to_thread.run_sync(sshd.rebuild)
    keeper = caretaker(swarm, found)
    (sign,) = (await keeper.probe_now(ProbeNow((ONE,), waits=True))).signs
    assert sign.status is ProbeStatus.ERROR and "has changed" in sign.detail
    cared = await swarm.cared()
    with pytest.raises(HostKeyChanged):
        await found.act(cared, (await found.find([cared]))[ONE], CareAction.RESTART)
    assert host.log.read_text() == ""


async def test_where_nobody_listens_a_builder_is_unreachable_and_where_nobody_answers_it_is_late(
    swarm: Swarm, ssh: Ssh, sshd: Sshd, monkeypatch: pytest.MonkeyPatch
) -> None:
    two, three = NodeId("builder/two"), NodeId("builder/three")
    await swarm.builder("one", sshd.host, HostSort.LXC)
    await swarm.builder("two", "127.0.0.2", HostSort.LXC)
    await swarm.builder("three", "127.0.0.3", HostSort.LXC)
    silent = await trio.open_tcp_listeners(0, host="127.0.0.3")
    port = silent[0].socket.getsockname()[1]
    keys = {"host_keys": (sshd.host_key(),)}
    found = ways(
        swarm, ssh, sshd.target(), sshd.target(host="127.0.0.2", **keys),
        sshd.target(host="127.0.0.3", port=port, **keys),
    )  # fmt: skip
    keeper = caretaker(swarm, found)
    with trio.fail_after(60):
        # The way to the good one stands already; only the answer has to come in time.
        await ssh.exec(sshd.target(), "true", timeout_s=60)
        monkeypatch.setattr(care, "PROBE_S_MAX", 3.0)
        probes = await keeper.probe_now(ProbeNow((ONE, two, three), waits=True))
    await silent[0].aclose()
    by_id = {sign.node_id: sign for sign in probes.signs}
    assert by_id[ONE].status in (ProbeStatus.OK, ProbeStatus.DISK_WARNING, ProbeStatus.ERROR)
    assert by_id[two].status is ProbeStatus.UNREACHABLE
    assert by_id[three].status is ProbeStatus.TIMEOUT
    assert by_id[two].failures == by_id[three].failures == 1


async def test_two_builders_at_one_place_are_neither_probed_nor_healed(
    swarm: Swarm, ssh: Ssh, sshd: Sshd
) -> None:
    await swarm.builder("one", sshd.host, HostSort.LXC)
    found = ways(swarm, ssh, sshd.target())
    assert (await found.find([await swarm.cared()]))[ONE].name == "ssh"
    liar = await swarm.builder("liar", sshd.host, HostSort.LXC)
    all_cared = await swarm.cluster.read(ListCare())
    for way in (await found.find(all_cared)).values():
        assert way.name == "" and "several builders are to be at" in way.why
    probes = await caretaker(swarm, found).probe_now(ProbeNow((ONE, liar), waits=True))
    assert probes.signs == ()


async def test_one_that_is_removed_while_others_are_eased_is_passed_over(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(care, "LOOK_S", 0.05)
    stays, goes = NodeId("n2"), NodeId("n3")
    for node_id in (stays, goes):
        await swarm.propose(c.PutNode(Node(node_id, node_id, machine_version=c.VERSION)))
        await swarm.propose(PutBuilder(node_id))
        await swarm.propose(NoteBuilder(node_id, sort=HostSort.LXC))
        begin = BeginCare(node_id, CareAction.REBOOT, True, None, "it ails", swarm.term)
        await swarm.propose(begin)
        await swarm.propose(EndCare(node_id, True, "", swarm.term))

    class Removing(Ways):
        """While they are asked to take up work, one goes."""

        gone = False

        async def probe(self, cared: Cared, way: Way) -> Probed:
            return Probed(0.1, 4, (10,), 20, ServiceState.UNKNOWN, False, 1.0)

        async def resume(self, *who: object) -> bool:
            if not self.gone:
                self.gone = True
                await swarm.propose(c.RemoveNode(goes, 7, 10))
            await keeper.list_probes(ListProbes())
            return True

    keeper = caretaker(swarm, Removing(swarm.cluster, CareSettings()))
    swarm.clock.ms += 1000
    await keeper.probe_now(ProbeNow((stays, goes), waits=True))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keeper.heal)
        with trio.fail_after(20):
            while (await swarm.cared(stays)).care.level:
                await trio.sleep(0.02)
        nursery.cancel_scope.cancel()


async def test_a_node_heals_its_own_host_where_the_swarm_has_agreed_to_it(
    swarm: Swarm, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", host.path)
    cluster, me = swarm.cluster, NodeId("n1")
    answer_care(cluster, "swarmd", ("/",))
    probed = await cluster.ask(me, ProbeHost())
    assert probed.cores > 0 and probed.fullest_disk_percent <= 100
    await swarm.propose(PutBuilder(me))
    for action in (CareAction.RESTART, CareAction.REBOOT):
        with pytest.raises(Conflict, match="nobody has agreed"):
            await cluster.ask(me, ActOnHost(action))
    await swarm.propose(BeginCare(me, CareAction.RESTART, True, None, "it ails", swarm.term))
    with pytest.raises(Conflict, match="nobody has agreed"):
        await cluster.ask(me, ActOnHost(CareAction.REBOOT))
    await cluster.ask(me, ActOnHost(CareAction.RESTART))
    with trio.fail_after(20):
        while not host.told("restart", "swarmd"):
            await trio.sleep(0.02)
    assert not host.told("reboot")


# Known hosts


def test_a_host_is_found_in_known_hosts_as_ssh_finds_it(tmp_path: Path) -> None:
    make_key(tmp_path / "key", "ed25519")
    key = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    file = tmp_path / "known"
    names = ["alpha", "10.0.0.1,beta", "[gamma]:2222", "*.example,!bad.example", "d?lta", "EPSILON"]
    file.write_text("".join(f"{name} {key}\n" for name in names) + f"@revoked zeta {key}\n# x\n")
    asked = [
        ("alpha", 22), ("beta", 22), ("gamma", 22), ("gamma", 2222), ("a.example", 22), ("x", 22),
        ("bad.example", 22), ("delta", 22), ("epsilon", 22), ("10.0.0.1", 22), ("10.0.0.12", 22),
        ("zeta", 22), ("alpha", 2222), ("[gamma]", 22),
    ]  # fmt: skip
    by_ssh = openssh_finds(file)
    hashed = tmp_path / "hashed"
    hashed.write_text(f"plain {key}\nother {key}\n[third]:2222 {key}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", hashed], check=True, capture_output=True)
    hashed_by_ssh = openssh_finds(hashed)
    for lines, finds in ((file, by_ssh), (hashed, hashed_by_ssh)):
        read = [line for line in lines.read_text().splitlines() if not line.startswith("#")]
        for host, port in (*asked, ("plain", 22), ("third", 2222), ("third", 22), ("other", 22)):
            assert bool(lines_of(read, host, port)) == finds(host, port), (host, port)


def openssh_finds(file: Path) -> Callable[[str, int], bool]:
    def finds(host: str, port: int) -> bool:
        name = host if port == 22 else f"[{host}]:{port}"
        command = ["ssh-keygen", "-F", name, "-f", str(file)]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    return finds


async def test_a_file_of_known_hosts_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    make_key(tmp_path / "key", "ed25519")
    key = " ".join((tmp_path / "key.pub").read_text().split()[:2])
    file = tmp_path / "known"
    known = KnownHosts(SshAccount(str(tmp_path / "key"), str(file), "root", 2200))
    with pytest.raises(Unavailable, match="cannot be read"):
        await known.target("10.0.0.1")
    file.write_text("# nobody yet\n")
    assert await known.target("10.0.0.1") is None
    file.write_text(f"[10.0.0.1]:2200 {key}\n")
    target = await known.target("10.0.0.1")
    assert target is not None and (target.port, target.host_keys) == (
        2200, (f"[10.0.0.1]:2200 {key}",)
    )  # fmt: skip
    assert await known.target("not a host") is None and await known.target("") is None
