"""What tests of the runner share: a real one in a directory of its own, ended afterwards."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import trio

from swarmd.drivers.frames import AttemptOrder, Ended, Started
from swarmd.drivers.process import RunnerClient, RunnerSettings, open_runner

PATH = "/usr/local/bin:/usr/bin:/bin"
NOBODY = {"uid": 65534, "gid": 65534}
numbers = itertools.count(1)


@contextlib.contextmanager
def data_directory() -> Iterator[Path]:
    """Passable for every account, unlike pytest's own; its runner is ended with it."""
    folder = Path(tempfile.mkdtemp(prefix="runner-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        end_runner(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def client(folder: Path, idle_s: float = 5, **more: float) -> AsyncIterator[RunnerClient]:
    settings = RunnerSettings(idle_s=idle_s, **more)  # type: ignore[arg-type]
    async with open_runner(folder, settings) as runner:
        yield runner


def order(folder: Path, *argv: str, **more: object) -> AttemptOrder:
    number = next(numbers)
    fields = {"env": {"PATH": PATH}, **more}
    return AttemptOrder(number, str(folder / f"a{number}"), argv, **fields)  # type: ignore[arg-type]


def shell(folder: Path, script: str, **more: object) -> AttemptOrder:
    return order(folder, "/bin/sh", "-c", script, **more)


async def ends(runner: RunnerClient, count: int = 1, *, ack: bool = True) -> dict[int, Ended]:
    """The next ends, by attempt."""
    found: dict[int, Ended] = {}
    with trio.fail_after(60):
        while len(found) < count:
            batch = [event for event in await runner.take() if isinstance(event, Ended)]
            found.update((event.id, event) for event in batch)
            if ack:
                await runner.ack([event.id for event in batch])
    return found


async def run(runner: RunnerClient, wanted: AttemptOrder) -> Ended:
    assert await runner.start([wanted]) == []
    return (await ends(runner))[wanted.id]


async def started(runner: RunnerClient) -> Started:
    with trio.fail_after(60):
        while True:
            for event in await runner.take():
                if isinstance(event, Started):
                    return event


def output(wanted: AttemptOrder, stream: str = "stdout") -> str:
    return Path(wanted.dir, stream).read_text()


async def until(true: Callable[[], object], timeout_s: float = 60) -> None:
    with trio.fail_after(timeout_s):
        while not true():
            await trio.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return b") Z " not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def runner_pid(folder: Path) -> int:
    """Of the runner that holds the lock; 0 without one."""
    try:
        pid = int(Path(folder, "runner.lock").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if os.fsencode(folder) in words and alive(pid) else 0


def end_runner(folder: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        pid = runner_pid(folder)
        if not pid:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        deadline = time.monotonic() + 8
        while runner_pid(folder) == pid and time.monotonic() < deadline:
            time.sleep(0.01)
