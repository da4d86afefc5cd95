"""A drone's builds: one after the other, each run by a runner of the drone's own.

The runner ends a build with its whole tree, and does so by itself when the drone says nothing for
`LEASE_S`: a drone that was killed leaves no build behind. What lies in the working directory is
the drone's alone, and a lock on it keeps a second drone out.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from swarmd.domain.errors import Conflict, Invalid, Unavailable
from swarmd.domain.packages import split
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.portage import PortageSettings
from swarmd.drivers.portage_builds import (
    WORDS_BYTES_MAX,
    Built,
    Failed,
    FailureKind,
    build_command,
    packages_dir,
    prepare_staging,
    read_outcome,
)
from swarmd.drivers.process import RunnerClient, RunnerSettings, open_runner

log = logging.getLogger(__name__)

LEASE_S = 60.0
"""As long as the swarm bears silence; a busy host may hold a drone up for some of it."""
RENEW_EVERY_S = 5.0
GRACE_S = 10.0
"""Portage cleans up after a build that is ended."""
OUTPUT_BYTES_MAX = 16 * 1024 * 1024
"""Of what emerge prints, its beginning and its end."""
LOGS_MAX = 50
"""Of builds that failed, the newest."""
LEFT_OVER_TIMEOUT_S = 30.0


class Unfinished(Unavailable):
    """The build came to no end of its own, through no fault of the package's."""


@dataclass(frozen=True, slots=True)
class Package:
    """What is to be uploaded, and where to: category/file, or category/name/file."""

    path: str
    file: Path


@dataclass(frozen=True, slots=True)
class Outcome:
    packages: tuple[Package, ...]
    failed: Failed | None
    took_s: float


class Workshop:
    """Made by open_workshop. One build at a time."""

    def __init__(self, folder: Path, settings: PortageSettings, runner: RunnerClient) -> None:
        self._folder = folder
        self._settings = settings
        self._runner = runner
        # A runner knows ids for as long as it lives, which may be longer than a drone.
        self._last_id = time.time_ns() // 1_000_000

    @contextlib.asynccontextmanager
    async def build(self, cpv: str) -> AsyncIterator[Outcome]:
        """What it built is there for the block. Cancelled means: the build is ended, with its
        whole tree. SwarmError or OSError: it came to no end, through no fault of the package's."""
        try:
            split(cpv)
        except Invalid as refusal:
            yield Outcome((), Failed(FailureKind.UNKNOWN, refusal.message), 0.0)
            return
        self._last_id += 1
        place = self._folder / "builds" / str(self._last_id)
        staging = place.with_suffix(".staging")
        try:
            await trio.to_thread.run_sync(prepare_staging, staging)
            ended = await self._run(cpv, place, staging)
            yield await trio.to_thread.run_sync(self._outcome, cpv, place, staging, ended)
        finally:
            with trio.CancelScope(shield=True):
                for folder in (place, staging):
                    await trio.to_thread.run_sync(_remove, folder)

    async def _run(self, cpv: str, place: Path, staging: Path) -> Ended:
        argv, env = build_command(self._settings, cpv, staging)
        order = AttemptOrder(
            self._last_id, str(place), argv, env=env, grace_ms=int(GRACE_S * 1000),
            timeout_ms=int(self._settings.build_timeout_s * 1000),
            lease_ms=int(LEASE_S * 1000), log_bytes_max=OUTPUT_BYTES_MAX,
        )  # fmt: skip
        try:
            for refusal in await self._runner.start([order]):
                raise Unfinished(f"the build cannot be started: {refusal.error}")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._renew, order.id)
                ended = await self._end_of(order.id)
                nursery.cancel_scope.cancel()
        except BaseException:
            with trio.move_on_after(2 * GRACE_S, shield=True):
                await self._end(order.id)
            raise
        return ended

    async def _renew(self, attempt_id: int) -> None:
        while True:
            with contextlib.suppress(Unavailable):
                await self._runner.renew([attempt_id], LEASE_S)
            await trio.sleep(RENEW_EVERY_S)

    async def _end(self, attempt_id: int) -> None:
        with contextlib.suppress(Unavailable):
            if not await self._runner.stop([attempt_id]):
                await self._end_of(attempt_id)

    async def _end_of(self, attempt_id: int) -> Ended:
        async with contextlib.aclosing(self._runner.events()) as batches:
            async for events in batches:
                for event in events:
                    if isinstance(event, Ended):
                        with contextlib.suppress(Unavailable):
                            await self._runner.ack([event.id])
                        if event.id == attempt_id:
                            return event
        raise AssertionError("events end never")

    def _outcome(self, cpv: str, place: Path, staging: Path, ended: Ended) -> Outcome:
        took_s = _took_s(ended)
        if ended.reason not in ("exit", "timeout", "oom"):
            words = {"stopped": "it was stopped", "lease": "the drone was held up for too long"}
            raise Unfinished(ended.error or words.get(ended.reason, f"its end: {ended.reason}"))
        output = _end_of_file(place / "stdout", max(WORDS_BYTES_MAX, self._settings.log_bytes_max))
        found = read_outcome(self._settings, cpv, staging, ended.exit_code, output)
        if isinstance(found, Built):
            root = packages_dir(staging)
            packages = (Package(str(path.relative_to(root)), path) for path in found.packages)
            return Outcome(tuple(packages), None, took_s)
        if ended.reason == "timeout":
            limit_s = self._settings.build_timeout_s
            found = replace(found, reason=f"the build did not end within {limit_s:g} s")
        elif ended.reason == "oom":
            found = replace(found, reason="the build took more memory than there is")
        elif ended.signal is not None:
            found = replace(found, reason=f"the build was ended by signal {ended.signal}")
        return Outcome((), found, took_s)

    def keep_log(self, cpv: str, failed: Failed) -> Path | None:
        """The failing build's own log, beside the last ones that failed."""
        if not failed.log:
            return None
        folder = self._folder / "failed"
        file = folder / f"{cpv.replace('/', ':')}.log"
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            file.write_bytes(failed.log)
            logs = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)
            for old in logs[:-LOGS_MAX]:
                old.unlink()
        except OSError as error:
            log.warning("a build's log is not kept", extra={"error": error.strerror})
            return None
        return file


@contextlib.asynccontextmanager
async def open_workshop(folder: Path, settings: PortageSettings) -> AsyncIterator[Workshop]:
    """Nothing of an earlier drone's runs or lies there any more. At the end no build and no runner
    is left. Conflict: another drone has the directory. Unavailable: it cannot be used."""
    with _locked(folder):
        async with open_runner(folder, RunnerSettings(slots=1, idle_s=5.0)) as runner:
            with trio.move_on_after(LEFT_OVER_TIMEOUT_S) as waiting:
                await _end_left_over(runner)
            if waiting.cancelled_caught:
                raise Unavailable("a build of an earlier drone cannot be ended; see ps")
            await trio.to_thread.run_sync(_lay, folder)
            try:
                yield Workshop(folder, settings, runner)
            finally:
                with trio.move_on_after(GRACE_S, shield=True):
                    await runner.quit(jobs=True, grace_s=0.0)
                    await runner.gone()


async def _end_left_over(runner: RunnerClient) -> None:
    await runner.stop(None, grace_s=0.0)
    while standings := await runner.list():
        ended = [each.id for each in standings if each.status == "ended"]
        await runner.ack(ended)
        if len(ended) < len(standings):
            await runner.take()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        folder.chmod(0o711)  # Portage builds as an account that has to come through
        fd = os.open(folder / "drone.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Unavailable(
            f"{folder} cannot be used: {error.strerror}; name another with --workdir"
        ) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            words = f"another drone works in {folder}; name another with --workdir"
            raise Conflict(words) from None
        yield
    finally:
        os.close(fd)


def _lay(folder: Path) -> None:
    builds = folder / "builds"
    _remove(builds)
    builds.mkdir(mode=0o711)
    builds.chmod(0o711)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _took_s(ended: Ended) -> float:
    if ended.started_boottime_ns is None or ended.ended_boottime_ns is None:
        return 0.0
    return max(0.0, (ended.ended_boottime_ns - ended.started_boottime_ns) / 1e9)


def _end_of_file(path: Path, bytes_max: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - bytes_max))
            return file.read(bytes_max)
    except FileNotFoundError:
        return b""
