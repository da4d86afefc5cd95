"""`demo`: a swarm of its own with a sample job, as a stranger's first minute; nothing stays behind.

Each node is a real `swarmd up` in a child process, kept apart from the settings of this machine.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import click

from swarmd.cli import options, show
from swarmd.cli.client import Daemon, Refused, job_path
from swarmd.cli.main import EXIT_REFUSED, tell
from swarmd.config import Config

DOCUMENTED_PORTS = {name: each.port for name, each in Config().surfaces.by_name().items()}
ANY_PORT = 0
READY_TIMEOUT_S = 30.0
TOKEN_S = 600
VOTERS = 3
END_TIMEOUT_S = 20.0
LOG_LINES_SHOWN = 20
SAMPLE = {
    "type": "hello",
    "program": "sh",
    "arguments": ["-c", 'echo "hello from $(uname -n), job process $$"'],
    "timeout_seconds": 20,
}


@click.command("demo")
@click.option("--nodes", type=click.IntRange(1, 99), default=3, show_default=True,
              help="How many nodes, on 127.0.0.1 and the addresses after it.")  # fmt: skip
@click.option("--once", is_flag=True, help="End after the sample job.")
@options.as_json
@options.data_dir
def demo(nodes: int, once: bool, as_json: bool, data_dir: Path | None) -> int:
    """Try it: a swarm of its own, a sample job and its output.

    Ctrl-C ends it with everything that it started. Without --data-dir nothing is kept.
    """
    for number in _ENDS:
        signal.signal(number, _interrupt)
    try:
        with _place(data_dir) as place, _swarm(place, nodes) as members:
            # Any of them takes any request: the last to come is as good as the first.
            daemon = members[-1].daemon
            _settle(daemon, nodes)
            job = _run_sample(daemon)
            if as_json:
                told = [{"name": member.name, "urls": member.urls} for member in members]
                show.emit_json({"nodes": told, "urls": members[0].urls, "job": job})
            else:
                _tell_all(members, job, temporary=data_dir is None)
            if job.get("status") != "completed":
                tell(f"error: the sample job {job.get('status')}: {job.get('error')}")
                return EXIT_REFUSED
            if not once:
                tell("Ctrl-C ends it.")
                _wait_for_end(daemon)
    except KeyboardInterrupt:
        tell("")
        return 0
    return 0


_ENDS = (signal.SIGINT, signal.SIGTERM)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The first ends the demo; a second one, however soon, must not leave the node behind."""
    for each in _ENDS:
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


@contextlib.contextmanager
def _place(data_dir: Path | None) -> Iterator[Path]:
    """The data directory; a temporary one goes with the demo."""
    if data_dir is not None:
        yield data_dir.absolute()
        return
    place = Path(tempfile.mkdtemp(prefix="swarmd-demo-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if place.exists():
            tell(f"{place} could not be deleted whole")


@dataclass(frozen=True)
class Member:
    name: str
    daemon: Daemon
    urls: dict[str, str]
    child: subprocess.Popen[str]


@contextlib.contextmanager
def _swarm(place: Path, count: int) -> Iterator[list[Member]]:
    """Running nodes that know each other; at the end they, their runners and jobs are gone."""
    members: list[Member] = []
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        for number in range(1, count + 1):
            data_dir = place if count == 1 else place / f"demo-{number}"
            way_in = _way_in(members[0].daemon) if members else None
            members.append(_node(data_dir, number, way_in))
        yield members
    finally:
        _end([(member.daemon, member.child) for member in members])


def _way_in(daemon: Daemon) -> tuple[str, str]:
    """Where the others join, and with which token."""
    (node,) = [n for n in daemon.get("/api/v1/nodes")["nodes"] if n["name"] == "demo-1"]
    made = daemon.post("/api/v1/tokens", {"ttl_s": TOKEN_S})
    return str(node["mesh"][0]), str(made["token"])


def _settle(daemon: Daemon, count: int) -> None:
    """Until all are there, and as many vote as will."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        nodes = daemon.get("/api/v1/status")["nodes"]
        voters = sum(node["role"] == "voter" for node in nodes)
        if len(nodes) == count and voters >= min(count, VOTERS):
            return
        time.sleep(0.1)


def _node(place: Path, number: int, way_in: tuple[str, str] | None) -> Member:
    """A node that runs. Whoever asked for it ends it."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    name, address = f"demo-{number}", f"127.0.0.{number}"
    ports = {surface: _documented_or_any(surface, address) for surface in DOCUMENTED_PORTS}
    while True:
        child = _start(place, _settings(name, address, ports, way_in))
        daemon = Daemon(place)
        try:
            return Member(name, daemon, _Listener(child).wait_ready(), child)
        except PortLost as lost:
            _wait_or_kill(child)
            if not ports.get(lost.surface):
                raise
            # Free when it was looked at, and taken since. Any port cannot be, so this comes to an
            # end with the last surface.
            _tell_moved(lost.surface, address)
            ports[lost.surface] = ANY_PORT
        except BaseException:
            _end([(daemon, child)])
            raise


def _start(place: Path, text: str) -> subprocess.Popen[str]:
    settings = place / "demo.toml"
    settings.touch(mode=0o600)
    settings.write_text(text)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SWARMD_") and k != "ADMIN_KEY"}
    return subprocess.Popen(
        [*_ourselves(), "up", "--data-dir", str(place), "--config", str(settings)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        errors="replace", env=kept,
        # Ctrl-C is for us: the child is then told to stop, and to end its jobs.
        start_new_session=True,
    )  # fmt: skip


def _ourselves() -> list[str]:
    bundled = getattr(sys, "frozen", False)
    return [sys.executable] if bundled else [sys.executable, "-m", "swarmd"]


def _documented_or_any(surface: str, address: str) -> int:
    """The documented port, or any that is free where that is taken."""
    port = DOCUMENTED_PORTS[surface]
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            _tell_moved(surface, address)
            return ANY_PORT
    return port


def _tell_moved(surface: str, address: str) -> None:
    port = DOCUMENTED_PORTS[surface]
    tell(f"port {port} of {address} is taken: {surface} moves to a free one")


def _settings(
    name: str, address: str, ports: dict[str, int], way_in: tuple[str, str] | None
) -> str:
    lines = ["[node]", f'name = "{name}"', f'bind = ["{address}"]', "[log]", 'level = "warning"',
             "[mesh]", f"port = {ANY_PORT}"]  # fmt: skip
    if way_in is not None:
        lines += [f'join = ["{way_in[0]}"]', f'token = "{way_in[1]}"']
    for surface, port in ports.items():
        lines += [f"[surfaces.{surface}]", f"port = {port}"]
    return "\n".join(lines) + "\n"


_PORT_LOST = re.compile(r"surface (\w+) cannot listen on [^ ]+: the port is taken")


class PortLost(Refused):
    """The node could not start, since somebody took the port of one of its surfaces."""

    def __init__(self, message: str, surface: str) -> None:
        super().__init__(message)
        self.surface = surface


class _Listener:
    """Reads what the child says, so that it never waits for a reader, and finds its URLs."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._child = child
        self._urls: dict[str, str] = {}
        self._last: deque[str] = deque(maxlen=LOG_LINES_SHOWN)
        self._heard = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def wait_ready(self) -> dict[str, str]:
        self._heard.wait(READY_TIMEOUT_S)
        if not self._urls:
            said = "".join(self._last).strip()
            words = f"the node did not start; it said:\n{said or '(nothing)'}"
            lost = _PORT_LOST.search(said)
            raise PortLost(words, lost[1]) if lost else Refused(words)
        return self._urls

    def _listen(self) -> None:
        assert self._child.stderr is not None
        with self._child.stderr as lines:
            for line in lines:
                urls = dict(re.findall(r"(\w+) (https?://[^\s,]+)", line))
                if not self._heard.is_set() and urls.keys() >= DOCUMENTED_PORTS.keys():
                    self._urls = urls
                    self._heard.set()
                elif self._heard.is_set():
                    sys.stderr.write(line)
                else:
                    self._last.append(line)
        self._heard.set()


def _run_sample(daemon: Daemon) -> dict[str, Any]:
    job: dict[str, Any] = daemon.post("/api/v1/jobs", SAMPLE)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while job.get("ended_at") is None and time.monotonic() < deadline:
        job = daemon.get(job_path(job["id"], "wait"), {"timeout_s": 10})
    return job


def _tell_all(members: list[Member], job: dict[str, Any], *, temporary: bool) -> None:
    show.emit_table(
        ["NODE", "SURFACE", "URL"],
        [[m.name, surface, url] for m in members for surface, url in m.urls.items()],
    )
    click.echo(f"\njob {job['id']} {job.get('status')} on {job.get('node')}, its output:")
    click.echo(f"  {show.printable((job.get('stdout') or '').strip())}\n")
    if not temporary or sys.stdout.isatty():
        place = members[0].daemon.data_dir
        click.echo(f"try:  swarmd --help;  export SWARMD_DATA_DIR={place};  swarmd status\n")


def _wait_for_end(daemon: Daemon) -> None:
    """Until Ctrl-C, or until somebody else ends the node (`swarmd down`)."""
    while daemon.pid() is not None:
        time.sleep(1.0)
    tell("the node has ended")


def _end(nodes: list[tuple[Daemon, subprocess.Popen[str]]]) -> None:
    """All at once, in their own time, which is bounded."""
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)
    for daemon, child in nodes:
        if not _told_to_stop(daemon, child):
            child.terminate()
    for _, child in nodes:
        _wait_or_kill(child)


def _told_to_stop(daemon: Daemon, child: subprocess.Popen[str]) -> bool:
    """With its jobs. In a directory that somebody else's node holds, that one is left alone."""
    try:
        pid = daemon.pid()
        if pid is None or os.getsid(pid) != child.pid:
            return False
        daemon.post("/api/v1/stop", {"jobs": True}, timeout_s=5.0)
    except (Refused, ProcessLookupError):
        return False
    return True


def _wait_or_kill(child: subprocess.Popen[str]) -> None:
    for last_word in (child.terminate, child.kill):
        try:
            child.wait(END_TIMEOUT_S)
            return
        except subprocess.TimeoutExpired:
            tell("the node does not end by itself")
            last_word()
    child.wait()
