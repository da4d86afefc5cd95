"""The systemd units, with the binary that `make install` installs, under a systemd of its own.

Jobs belong to the runner's unit, so nothing that befalls the node's ends them; and whatever ends
one of the processes of a unit leaves none of its others behind.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest

from swarmd.cli.client import Daemon, Refused, job_path
from tests.binary import built_binary
from tests.booted import Booted, booted
from tests.cli import ROOT
from tests.parts import need

NODE, RUNNER = "swarmd.service", "swarmd-runner.service"
DRONE = "swarm-drone.service"
WAIT_S = 90.0
STOP_S_MAX = 10.0
ADMIN_KEY = "a-key-for-the-tests-of-the-unit"

# With those of the binary on one worker: it is built once, and is two processes for one.
pytestmark = pytest.mark.xdist_group("binary")


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    need("systemd", "pyinstaller")
    binary = built_binary(tmp_path_factory)
    shared = {"/srv/source": ROOT, "/srv/binary": binary.parent}
    with booted(tmp_path_factory.mktemp("machine"), shared) as machine:
        machine.run("make", "-C", "/srv/source", "install", f"BINARY=/srv/binary/{binary.name}")
        machine.write("/etc/swarmd/swarmd.toml", '[node]\nname = "from-etc"\n[jobs]\nslots = 4\n')
        machine.write("/etc/swarmd/swarmd.env", f"ADMIN_KEY={ADMIN_KEY}\n", 0o600)
        machine.keep_words_of(["swarmd", "swarmd-runner"])
        machine.run("systemctl", "daemon-reload")
        yield Host(machine)


@pytest.fixture
def node(host: Host) -> Iterator[Host]:
    """The host with a node that serves."""
    host.machine.run("systemctl", "start", NODE)
    try:
        yield host
    finally:
        print(host.machine.journal())  # shown where the test fails


@pytest.fixture
def drone(host: Host) -> Iterator[Host]:
    """The host with the drone's program, laid as the page on the build swarm says."""
    program = "/usr/local/bin/swarm-drone"
    host.machine.run("install", "-m", "755", "/usr/local/bin/swarmd", program)
    host.machine.keep_words_of(["swarm-drone"])
    host.machine.run("systemctl", "daemon-reload")
    try:
        yield host
    finally:
        print(host.machine.journal())  # shown where the test fails
        host.machine.run("systemctl", "stop", DRONE, check=False)
        host.machine.run("rm", "-f", program, "/etc/swarmd/drone.env")
        host.machine.run("systemctl", "daemon-reload")


@dataclass(frozen=True)
class Job:
    id: str
    name: str
    pid: int


class Host:
    def __init__(self, machine: Booted) -> None:
        self.machine = machine
        # Its socket can be reached from out here, and that is quicker than the command line.
        self.daemon = Daemon(machine.path("/var/lib/swarmd"))

    def swarmd(self, *args: object) -> str:
        return self.machine.out("/usr/local/bin/swarmd", *args)

    def start_job(self) -> Job:
        """One that goes on until it is let go."""
        name = f"go-{time.monotonic_ns()}"
        script = "echo $$; while [ ! -e /tmp/$0 ]; do sleep 0.05; done"
        order = {"type": name, "program": "sh", "arguments": ["-c", script, name]}
        job_id = self.daemon.post("/api/v1/jobs", order)["id"]
        return Job(job_id, name, self.pid_of(job_id))

    def pid_of(self, job_id: str) -> int:
        """Of its latest attempt, as soon as that runs."""
        eventually(lambda: self.job(job_id)["status"] == "running" and self._printed(job_id))
        return int(self._printed(job_id))

    def _printed(self, job_id: str) -> bytes:
        return b"".join(self.daemon.stream(job_path(job_id, "logs"), {"stream": "stdout"}))

    def let_go(self, job: Job) -> None:
        self.machine.run("touch", f"/tmp/{job.name}")
        eventually(lambda: self.job(job.id)["status"] == "completed")

    def job(self, job_id: str) -> Any:
        return self.daemon.get(job_path(job_id))

    def lives(self, pid: int) -> bool:
        return self.machine.path(f"/proc/{pid}").exists()

    def is_at_rest(self, unit: str) -> bool:
        return self.machine.show(unit, "ActiveState") == "inactive"

    def serves(self) -> bool:
        return self.machine.show(NODE, "ActiveState") == "active"

    def restarts(self) -> int:
        return int(self.machine.show(NODE, "NRestarts"))

    def main_pid(self, unit: str) -> int:
        return int(self.machine.show(unit, "MainPID"))

    def pids(self) -> list[int]:
        """Of the node's unit, the first started first."""
        group = self.machine.show(NODE, "ControlGroup")
        return sorted(
            map(int, self.machine.out("cat", f"/sys/fs/cgroup{group}/cgroup.procs").split())
        )


def eventually(probe: Callable[[], object]) -> None:
    """A node that is not there is one that may come."""
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(Refused):
            if probe():
                return
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.05)


def test_the_units_are_what_systemd_understands(host: Host) -> None:
    said = host.machine.run("systemd-analyze", "verify", "--man=no", NODE, RUNNER)
    assert said.stdout + said.stderr == ""


def test_the_drones_unit_is_what_systemd_understands_and_is_not_enabled(drone: Host) -> None:
    said = drone.machine.run("systemd-analyze", "verify", "--man=no", DRONE)
    assert said.stdout + said.stderr == ""
    assert drone.machine.run("systemctl", "is-enabled", DRONE, check=False).stdout == "disabled\n"


@pytest.mark.parametrize(
    ("said", "status", "again", "words"),
    [
        ("--url http://127.0.0.1:9 --emerge 'none-here -v'", "1", True, "no program 'none-here'"),
        ("--no-such-option", "2", False, "--no-such-option"),
    ],
    ids=["no Portage here", "words that it does not know"],
)
def test_a_drone_is_told_by_its_file_and_comes_again_where_that_may_help(
    drone: Host, said: str, status: str, again: bool, words: str
) -> None:
    drone.machine.write("/etc/swarmd/drone.env", f"DRONE_OPTIONS={said}\n", 0o600)
    drone.machine.run("systemctl", "start", DRONE)
    state = ("activating", "auto-restart") if again else ("failed", "failed")
    eventually(
        lambda: tuple(drone.machine.show(DRONE, of) for of in ("ActiveState", "SubState")) == state
    )
    assert drone.machine.show(DRONE, "ExecMainStatus") == status
    assert words in drone.machine.path("/var/log/units/swarm-drone").read_text()


def test_a_started_unit_serves_with_the_settings_of_etc(node: Host) -> None:
    """`systemctl start` came back, so the word of the child of the one-file binary was taken."""
    assert node.machine.show(NODE, "SubState") == "running"
    assert [n["name"] for n in node.daemon.get("/api/v1/nodes")["nodes"]] == ["from-etc"]
    assert node.swarmd("admin-key") == ADMIN_KEY
    modes = node.machine.out("stat", "--format=%a %U", "/var/lib/swarmd", "/etc/swarmd/swarmd.env")
    assert modes.splitlines() == ["711 root", "600 root"]


def test_a_job_lies_in_the_runners_unit_and_has_nothing_of_the_bundle(node: Host) -> None:
    script = "env; grep ^0: /proc/self/cgroup; id -un; cat /proc/self/oom_score_adj; ulimit -n"
    said = node.swarmd("submit", "--wait", "--", "sh", "-c", script).splitlines()
    names = {line.partition("=")[0] for line in said if "=" in line}
    assert names <= {"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_", "SWARMD_ATTEMPT"}
    (cgroup,) = (line for line in said if line.startswith("0::"))
    assert cgroup.startswith(f"0::/system.slice/{RUNNER}/swarmd-")
    assert said[said.index(cgroup) + 1 :] == ["nobody", "0", "1024"]


def test_a_restart_of_the_node_leaves_its_job_alone(node: Host) -> None:
    job, runner, main = node.start_job(), node.main_pid(RUNNER), node.main_pid(NODE)
    node.machine.run("systemctl", "restart", NODE)
    assert node.main_pid(NODE) != main and node.main_pid(RUNNER) == runner
    assert node.job(job.id)["status"] == "running" and node.lives(job.pid)
    node.let_go(job)


def test_a_stopped_node_leaves_its_job_to_the_runner(node: Host) -> None:
    job, pids = node.start_job(), node.pids()
    began = time.monotonic()
    node.machine.run("systemctl", "stop", NODE)
    assert time.monotonic() - began < STOP_S_MAX
    assert node.machine.show(NODE, "Result") == "success" and not any(map(node.lives, pids))
    assert node.lives(job.pid)
    node.machine.run("systemctl", "start", NODE)
    node.let_go(job)


@pytest.mark.parametrize("which", [0, 1], ids=["the loader", "python"])
def test_a_killed_process_takes_the_other_along_and_the_node_comes_back(
    node: Host, which: int
) -> None:
    """The loader of the one-file binary is what systemd started, Python is its child."""
    job, pids, restarts = node.start_job(), node.pids(), node.restarts()
    assert len(pids) == 2 and pids[0] == node.main_pid(NODE)
    node.machine.run("kill", "-9", pids[which])
    eventually(lambda: not any(map(node.lives, pids)))
    eventually(lambda: node.restarts() == restarts + 1 and node.serves())
    assert node.job(job.id)["status"] == "running" and node.lives(job.pid)
    node.let_go(job)


def test_a_node_that_stands_still_is_started_again(node: Host) -> None:
    soon = "/run/systemd/system/swarmd.service.d/soon.conf"
    node.machine.write(soon, "[Service]\nWatchdogSec=5\nTimeoutAbortSec=1\n")
    node.machine.run("systemctl", "daemon-reload")
    try:
        node.machine.run("systemctl", "restart", NODE)
        pids, restarts = node.pids(), node.restarts()
        time.sleep(10.0)  # twice what systemd bears from one that says nothing
        assert node.pids() == pids, "it says that it lives, under the pid that is asked for"
        node.machine.run("kill", "-STOP", pids[1])
        eventually(lambda: node.restarts() > restarts and node.serves() and node.pids() != pids)
        assert not any(map(node.lives, pids))
    finally:
        node.machine.path(soon).unlink()
        node.machine.run("systemctl", "daemon-reload")
        node.machine.run("systemctl", "restart", NODE)


def test_a_killed_runner_takes_its_jobs_along_and_they_run_again(node: Host) -> None:
    job, runner = node.start_job(), node.main_pid(RUNNER)
    node.machine.run("kill", "-9", runner)
    eventually(lambda: not node.lives(job.pid))
    eventually(lambda: node.job(job.id)["recoveries"] == 1)
    again = node.pid_of(job.id)
    assert node.main_pid(RUNNER) not in (0, runner)
    assert f"/{RUNNER}/" in node.machine.out("cat", f"/proc/{again}/cgroup")
    node.let_go(job)


def test_stopping_the_runners_unit_ends_the_jobs_and_queues_them_again(node: Host) -> None:
    """Also where its stop goes on after its process has ended: the node does not come between."""
    late = "/run/systemd/system/swarmd-runner.service.d/late.conf"
    node.machine.write(late, "[Service]\nExecStopPost=sleep 1\n")
    node.machine.run("systemctl", "daemon-reload")
    job = node.start_job()
    try:
        node.machine.run("systemctl", "stop", RUNNER)
    finally:
        node.machine.path(late).unlink()
        node.machine.run("systemctl", "daemon-reload")
    assert not node.lives(job.pid)
    assert node.pid_of(job.id) != job.pid
    assert node.job(job.id)["recoveries"] == 0, "the job is not to blame"
    node.let_go(job)


def test_a_node_that_was_told_to_go_stays_away(node: Host) -> None:
    job = node.start_job()
    node.swarmd("down", "--jobs")
    for unit in (NODE, RUNNER):
        eventually(partial(node.is_at_rest, unit))
        assert node.machine.show(unit, "Result") == "success"
    assert not node.lives(job.pid)
    assert node.machine.out("find", "/tmp", "-maxdepth", "1", "-name", "_MEI*") == ""
    node.machine.run("systemctl", "start", NODE)
    node.let_go(job)


def test_uninstalling_ends_all_and_keeps_what_is_yours(host: Host) -> None:
    """The last of this file: the machine has no swarmd from here on."""
    host.machine.run("systemctl", "start", NODE)
    host.machine.run("make", "-C", "/srv/source", "uninstall")
    for unit in (NODE, RUNNER, DRONE):
        assert host.machine.show(unit, "LoadState") == "not-found"
    assert host.machine.run("pgrep", "-x", "swarmd", check=False).stdout == ""
    left = host.machine.out("find", "/usr/local", "-name", "*swarm*")
    assert left == ""
    assert host.machine.path("/etc/swarmd/swarmd.env").exists()
    assert host.machine.path("/var/lib/swarmd/raft.db").exists()
