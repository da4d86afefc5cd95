"""Real drones as child processes of a test, each with a Portage of its own (tests/portage.py).

A drone that a test killed leaves a runner behind, which is ended with it: by its working directory.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cli import command, environment
from tests.daemon import end_runner, runner_pids
from tests.portage import Host
from tests.swarms import until

STOP_TIMEOUT_S = 40.0


@dataclass
class Drone:
    name: str
    host: Host
    workdir: Path
    process: subprocess.Popen[bytes]
    log_path: Path

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait(self, timeout_s: float = 400) -> int:
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(STOP_TIMEOUT_S)

    def kill(self) -> None:
        """Like a power cut for the drone alone: its runner, and what that runs, go on for now."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)

    def runners(self) -> list[int]:
        return runner_pids(self.workdir)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(STOP_TIMEOUT_S)
        if self.process.poll() is None:
            self.kill()
        end_runner(self.workdir)


def start_drone(
    host: Host, name: str, urls: Sequence[str], *args: object, env: Mapping[str, str] | None = None
) -> Drone:
    """On a host of tests/portage.py; its working directory lies beside the host's things."""
    workdir, log_path = host.path / "drone", host.path / f"{name}.log"
    given = [f"--env={key}={value}" for key, value in host.env.items()]
    given += [f"--url={url}" for url in urls]
    argv = command("drone", "--name", name, "--workdir", workdir, *given, *args)
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment(env),
            start_new_session=True, cwd="/",
        )  # fmt: skip
    return Drone(name, host, workdir, process, log_path)


@contextlib.contextmanager
def running_drone(
    host: Host, name: str, urls: Sequence[str], *args: object, env: Mapping[str, str] | None = None
) -> Iterator[Drone]:
    """For the block. Where that fails, the end of the drone's log goes with the failure."""
    drone = start_drone(host, name, urls, *args, env=env)
    try:
        yield drone
    except BaseException as failure:
        failure.add_note(f"the log of {name} ends:\n{drone.log()[-3000:]}")
        raise
    finally:
        drone.end()


@dataclass(frozen=True)
class Gate:
    """A build waits at it once it was shut."""

    folder: Path

    @property
    def words(self) -> str:
        """A part of an ebuild's phase. Who waits there is known by its process id."""
        return (
            f'if [[ -e "{self.folder}/shut" ]]; then echo $BASHPID > "{self.folder}/pid.new";'
            f' mv "{self.folder}/pid.new" "{self.folder}/pid"; cat "{self.folder}/shut"; fi'
        )

    def shut(self) -> None:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "pid").unlink(missing_ok=True)
        os.mkfifo(self.folder / "shut")

    def open(self) -> None:
        """Nobody who waits is let through: only who comes from now on."""
        (self.folder / "shut").unlink()

    def let_through(self) -> None:
        """Who waits, and whoever comes after."""
        with open(self.folder / "shut", "w"):
            self.open()

    def waiting(self, timeout_s: float = 150) -> int:
        """The process that has come to it."""
        file = self.folder / "pid"
        until(file.exists, "no build has come to the gate", timeout_s)
        return int(file.read_text())


def gone(pid: int) -> bool:
    try:
        return b") Z " in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return True
