"""A real daemon as a child process on free ports, for tests: started, asked over HTTP, ended.

What a daemon started is ended with it: its runner is found by its data directory, never by name.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from swarmd.cli.client import Daemon as Client

ROOT = Path(__file__).parents[1]
LOOPBACK = "127.0.0.1"
READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 30.0
SURFACES = {"jobqueue": 8080, "console": 8470, "buildswarm": 8100, "buildadmin": 8093}
"""Each surface with its documented port."""
_STARTS_MAX = 3
_PORT_TRIES_MAX = 1000


@dataclass(frozen=True)
class Response:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body) if self.body else None


@dataclass
class Daemon:
    data_dir: Path
    ports: dict[str, int]
    process: subprocess.Popen[bytes]
    stderr_path: Path
    _drain: threading.Thread
    _ready: threading.Event = field(default_factory=threading.Event)
    address: str = LOOPBACK

    def url(self, surface: str = "jobqueue") -> str:
        return f"http://{self.address}:{self.ports[surface]}"

    def request(
        self, method: str, path: str, body: object = None, *, surface: str = "jobqueue",
        headers: Mapping[str, str] | None = None, timeout_s: float = 90.0,
    ) -> Response:  # fmt: skip
        """One request on a connection of its own; a body that is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection(
            self.address, self.ports[surface], timeout=timeout_s
        )
        raw = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json"} if raw is not None else {}
        with contextlib.closing(connection):
            connection.request(method, path, raw, {**sent, **(headers or {})})
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, names, answer.read())

    def token(self) -> str:
        """With which others join its swarm."""
        return str(Client(self.data_dir).post("/api/v1/tokens", {})["token"])

    def stderr(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self.stderr_path.read_text(errors="replace")
        return ""

    def kill(self) -> None:
        """Like a power cut for the daemon alone: its runner and jobs go on."""
        self.process.kill()
        self.process.wait(STOP_TIMEOUT_S)

    def stop(self) -> int:
        """The daemon's exit status to SIGTERM; jobs are left to the runner."""
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def end(self) -> None:
        """The daemon, its runner, and what that runs: nothing is left."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        if self.process.poll() is None:
            self.kill()
        self._drain.join(STOP_TIMEOUT_S)
        end_runner(self.data_dir)


@contextlib.contextmanager
def running_daemon(directory: Path, **settings: Any) -> Iterator[Daemon]:
    """A daemon for the block. Where the block fails, the end of its log goes with the failure."""
    daemon = start_daemon(directory, **settings)
    try:
        yield daemon
    except BaseException as failure:
        failure.add_note(f"the daemon's log ends:\n{daemon.stderr()[-4000:]}")
        raise
    finally:
        daemon.end()


def start_daemon(
    directory: Path, *, data_dir: Path | None = None, environment: Mapping[str, str] | None = None,
    program: Path = ROOT, **settings: Mapping[str, object],
) -> Daemon:  # fmt: skip
    """Start a daemon and wait until it says that it is ready. `settings` are sections of its
    configuration; the ports are free ones unless a section `surfaces` says otherwise. `program` is
    the folder of the packages."""
    data_dir = data_dir or directory / "data"
    directory.mkdir(parents=True, exist_ok=True)
    _let_jobs_pass(directory)
    for attempt in range(_STARTS_MAX):
        ports = free_ports(SURFACES)
        surfaces = {f"surfaces.{name}": {"port": port} for name, port in ports.items()}
        # A machine's own Portage has no part in tests.
        merged: dict[str, Mapping[str, object]] = {
            "mesh": {"port": 0}, "portage": {"lookup": False}, **surfaces,
        }  # fmt: skip
        for name, section in settings.items():
            key = name.replace("__", ".")
            merged[key] = {**merged.get(key, {}), **section}
        ports = {name: int(str(merged[f"surfaces.{name}"]["port"])) for name in ports}
        config = directory / "swarmd.toml"
        config.write_text(_toml(merged))
        daemon = _launch(data_dir, config, ports, environment or {}, program)
        daemon.address = _bound(merged)
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            if daemon._ready.wait(0.05):
                return daemon
            if daemon.process.poll() is not None:
                break
        said = daemon.stderr()
        daemon.end()
        # Between the choice and the bind another test may have taken a port.
        if attempt + 1 == _STARTS_MAX or "the port is taken" not in said:
            raise AssertionError(f"the daemon did not become ready:\n{said[-4000:]}")
    raise AssertionError("unreachable")


def await_builds(daemon: Daemon) -> None:
    """Until the state is of the version that has builds, which a new swarm comes to by steps."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while daemon.request("GET", "/api/v1/status", surface="buildswarm").status != 200:
        assert time.monotonic() < deadline, "the state does not come to the version with builds"
        time.sleep(0.02)


def _bound(settings: Mapping[str, Mapping[str, object]]) -> str:
    """The first address that the daemon is told to bind."""
    binds = settings.get("node", {}).get("bind", [LOOPBACK])
    assert isinstance(binds, list)
    return str(binds[0])


def free_ports(names: Mapping[str, int], addresses: Sequence[str] = (LOOPBACK,)) -> dict[str, int]:
    """Ports that nobody holds now, at any of the addresses. Below those that the kernel gives to
    whoever asks for any, so that hardly anybody comes to hold one before it is used."""
    with contextlib.ExitStack() as held:
        ports: dict[str, int] = {}
        for _ in range(_PORT_TRIES_MAX):
            if len(ports) == len(names):
                return ports
            port = random.randrange(20_000, 32_000)
            with contextlib.suppress(OSError):
                for address in addresses:
                    held.enter_context(socket.socket()).bind((address, port))
                ports[list(names)[len(ports)]] = port
    raise AssertionError("no free ports found")


def end_runner(data_dir: Path) -> None:
    """End the runner of this data directory, which ends its jobs; SIGKILL where it does not."""
    pids = runner_pids(data_dir)
    for sig in (signal.SIGTERM, signal.SIGKILL):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        while pids and time.monotonic() < deadline:
            time.sleep(0.02)
            pids = runner_pids(data_dir)
        if not pids:
            return


def _let_jobs_pass(directory: Path) -> None:
    """Temporary directories are closed to all but us, and as root jobs run as somebody else."""
    if os.geteuid() != 0:
        return
    temporary = Path(tempfile.gettempdir()).resolve()
    for folder in (directory.resolve(), *directory.resolve().parents):
        if temporary not in folder.parents:
            return
        folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)


def _launch(
    data_dir: Path, config: Path, ports: dict[str, int], environment: Mapping[str, str],
    program: Path,
) -> Daemon:  # fmt: skip
    stderr_path = config.with_suffix(".stderr")
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SWARMD_") and k != "ADMIN_KEY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "swarmd", "up",
         "--data-dir", str(data_dir), "--config", str(config)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        env={**kept, **environment}, start_new_session=True, cwd=program,
    )  # fmt: skip
    ready = threading.Event()

    def drain() -> None:
        assert process.stderr is not None
        with stderr_path.open("ab", buffering=0) as kept_log, process.stderr as lines:
            for line in lines:
                kept_log.write(line)
                if all(f":{port}".encode() in line for port in ports.values()):
                    ready.set()

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    return Daemon(data_dir, ports, process, stderr_path, thread, ready)


def runner_pids(data_dir: Path) -> list[int]:
    """Processes started as `… runner … --data-dir DIR`, found by that very directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
            zombie = b") Z " in (entry / "stat").read_bytes()
        except OSError:
            continue
        if b"runner" in argv and os.fsencode(data_dir) in argv and not zombie:
            found.append(int(entry.name))
    return found


def _toml(sections: Mapping[str, Mapping[str, object]]) -> str:
    """JSON's texts, numbers, booleans and flat arrays are TOML's as well."""
    lines = []
    for name, section in sections.items():
        lines.append(f"[{name}]")
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    return "\n".join(lines) + "\n"
