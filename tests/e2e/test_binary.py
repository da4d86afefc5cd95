"""The one-file binary does all that the program does, and nobody notices its two processes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from swarmd import __version__
from swarmd.cli.client import Daemon, Refused, job_path
from tests.binary import built_binary
from tests.cli import environment
from tests.daemon import SURFACES, end_runner, runner_pids
from tests.parts import need

WAIT_S = 120.0
CALL_S_MAX = 240.0
ANY_PORTS = "[mesh]\nport = 0\n" + "".join(f"[surfaces.{name}]\nport = 0\n" for name in SURFACES)

# Built once, so on one worker; with those of the units, which install it.
pytestmark = pytest.mark.xdist_group("binary")


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    need("pyinstaller")
    return built_binary(tmp_path_factory)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Jobs of another account can pass through it; it has a place to unpack in."""
    for folder in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        if os.geteuid() == 0 and folder.stat().st_uid == 0:
            folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)
    (tmp_path / "unpacked").mkdir()
    yield tmp_path
    end_runner(tmp_path / "data")


class Node:
    """A node that the binary is; its parent is the loader, which is what was started."""

    def __init__(self, binary: Path, place: Path, **extra: str) -> None:
        self.place, self.binary = place, binary
        self.env = environment({"TMPDIR": str(place / "unpacked"), **extra})
        del self.env["PYTHONPATH"]
        self.daemon = Daemon(place / "data")
        self.words = place / "up.stderr"
        self.config = place / "swarmd.toml"
        if not self.config.exists():
            self.config.write_text(ANY_PORTS)
        with self.words.open("w") as stderr:
            self.loader = subprocess.Popen(
                [binary, "up", "--data-dir", place / "data", "--config", self.config],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=stderr, env=self.env,
                start_new_session=True,
            )  # fmt: skip

    def wait_ready(self) -> None:
        eventually(lambda: "\nready: " in "\n" + self.words.read_text(), self.loader)
        assert self.daemon.pid() not in (None, self.loader.pid)

    def end(self) -> None:
        if (pid := self.daemon.pid()) is not None:
            os.kill(pid, signal.SIGKILL)
        self.loader.kill()
        self.loader.wait(WAIT_S)

    def swarmd(self, *args: object) -> str:
        env = self.env | {"SWARMD_DATA_DIR": str(self.place / "data")}
        return call(self.binary, *args, env=env)

    def job(self, job_id: str) -> Any:
        return self.daemon.get(job_path(job_id))

    def start_job(self) -> str:
        script = f"echo begun; until [ -e {self.place}/go ]; do sleep 0.05; done; echo ended"
        order = {"type": "wait", "program": "sh", "arguments": ["-c", script]}
        job_id = str(self.daemon.post("/api/v1/jobs", order)["id"])
        eventually(lambda: self.job(job_id)["status"] == "running")
        return job_id

    def unpacked(self) -> list[Path]:
        return [*(self.place / "unpacked").iterdir()]

    def stop(self) -> int:
        self.loader.terminate()
        return self.loader.wait(WAIT_S)


@contextlib.contextmanager
def running(binary: Path, place: Path, **extra: str) -> Iterator[Node]:
    node = Node(binary, place, **extra)
    try:
        if stat.S_ISREG(node.config.stat().st_mode):
            node.wait_ready()
        yield node
    except BaseException as failure:
        failure.add_note(node.words.read_text()[-4000:])
        raise
    finally:
        node.end()


def call(binary: Path, *args: object, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [binary, *map(str, args)], env=dict(env), stdin=subprocess.DEVNULL, capture_output=True,
        text=True, timeout=CALL_S_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (args, done.stdout, done.stderr)
    return done.stdout


def eventually(probe: Callable[[], object], process: subprocess.Popen[bytes] | None = None) -> None:
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(Refused):
            if probe():
                return
        assert process is None or process.poll() is None, "it has ended"
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


def test_it_tells_its_version_and_knows_its_commands(binary: Path, tmp_path: Path) -> None:
    env = environment({"TMPDIR": str(tmp_path), "SWARMD_DATA_DIR": str(tmp_path / "none")})
    assert call(binary, "--version", env=env).strip() == __version__
    assert "submit" in call(binary, "--help", env=env)
    assert "swarmd" in call(binary, "completion", "bash", env=env)
    assert "surfaces.console.port" in call(binary, "config", env=env)
    wrong = subprocess.run([binary, "sumbit"], env=env, capture_output=True, timeout=WAIT_S)
    assert wrong.returncode == 2 and b"did you mean 'submit'" in wrong.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_node_runs_jobs_that_have_nothing_of_the_bundle(binary: Path, place: Path) -> None:
    with running(binary, place, LD_LIBRARY_PATH="/the/users/own", _PYI_NOT="for jobs") as node:
        said = node.swarmd("submit", "--wait", "--", "env")
        names = {line.partition("=")[0] for line in said.splitlines()}
        assert {"PATH", "HOME"} <= names <= {"PATH", "HOME", "SWARMD_ATTEMPT"}
        assert str(node.place / "unpacked") not in said
        job_id = node.swarmd("submit", "--", "sh", "-c", "echo out; echo err >&2; exit 3").strip()
        eventually(lambda: node.job(job_id)["status"] == "failed")
        assert node.swarmd("logs", job_id) == "out\n"
        assert "leader" in node.swarmd("raft", "status")
        node.swarmd("raft", "snapshot", "save", place / "copy")
        assert (place / "copy").stat().st_size > 0
        assert "failed" in _on_a_terminal(node, "jobs")
        # What was unpacked is held by the node alone; the runner, which outlives it, needs none.
        assert len(node.unpacked()) == 1
        assert node.stop() == 0
        assert node.unpacked() == []


def test_sigkill_of_the_loader_ends_the_node_and_leaves_the_job(binary: Path, place: Path) -> None:
    """Who started it knows the loader's pid alone."""
    with running(binary, place) as node:
        (runner,) = runner_pids(place / "data")
        job_id = node.start_job()
        node.loader.kill()
        node.loader.wait(WAIT_S)
        eventually(lambda: node.daemon.pid() is None)
        (left,) = node.unpacked()  # nobody was there to delete it
        assert runner_pids(place / "data") == [runner]
    for entry in (left, *(place / "unpacked").iterdir()):
        os.utime(entry, (0, 0))
    with running(binary, place) as node:
        assert left not in node.unpacked(), "the next node tidies up"
        assert runner_pids(place / "data") == [runner]
        assert node.job(job_id)["status"] == "running"
        (place / "go").touch()
        eventually(lambda: node.job(job_id)["status"] == "completed")
        assert node.swarmd("logs", job_id) == "begun\nended\n"
        assert node.job(job_id)["recoveries"] == 0


def test_a_process_goes_on_when_its_file_is_replaced(binary: Path, place: Path) -> None:
    """An upgrade puts the new file in its place while the old one runs, and may yet import."""
    own, newer = place / "swarmd", place / "newer"
    own.write_bytes(binary.read_bytes())
    own.chmod(0o755)
    newer.write_bytes(b"another program" * 3_000_000)
    os.mkfifo(place / "swarmd.toml")
    with running(own, place) as node:
        with node.config.open("w") as config:  # it reads its settings before most of its modules
            newer.replace(own)
            config.write(ANY_PORTS + "[jobs]\nexecutor = false\n")
        node.wait_ready()
        assert node.daemon.get("/api/v1/status")["leader"]
        assert node.stop() == 0


def test_the_demo_starts_its_nodes_from_the_binary(binary: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    env = environment({"TMPDIR": str(place)})
    said = json.loads(call(binary, "demo", "--once", "--json", env=env))
    assert said["job"]["status"] == "completed"
    assert [node["name"] for node in said["nodes"]] == ["demo-1", "demo-2", "demo-3"]
    assert [*place.iterdir()] == []


def _on_a_terminal(node: Node, *args: str) -> str:
    """Tables are drawn by what is loaded for terminals alone."""
    ours, theirs = pty.openpty()
    env = node.env | {"SWARMD_DATA_DIR": str(node.place / "data"), "TERM": "xterm"}
    with subprocess.Popen([node.binary, *args], env=env, stdin=theirs, stdout=theirs) as process:
        os.close(theirs)
        said = b""
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as terminal:
            while piece := terminal.read(65536):  # EIO once nobody has the other end
                said += piece
        assert process.wait(WAIT_S) == 0
    return said.decode()
