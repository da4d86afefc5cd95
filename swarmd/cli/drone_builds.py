"""A drone's builds: one after the other, each run by a runner of the drone's own.

The runner ends a build with its whole tree, and does so by itself when the drone says nothing for
`LEASE_S`: a drone that was killed leaves no build behind. What lies in the working directory is
the drone's alone, and a lock on it keeps a second drone out.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import trio

from swarmd.domain.errors import Conflict, Unavailable
from swarmd.drivers.frames import Ended
from swarmd.drivers.portage import PortageSettings
from swarmd.drivers.portage_builds import Failed
from swarmd.drivers.portage_results import (
    Made,
    Unfinished,
    keep_log,
    order_of_build,
    read_made,
    refused,
    remove,
)
from swarmd.drivers.process import RunnerClient, RunnerSettings, open_runner

LEASE_S = 60.0
"""As long as the swarm bears silence; a busy host may hold a drone up for some of it."""
RENEW_EVERY_S = 5.0
GRACE_S = 10.0
"""Portage cleans up after a build that is ended."""
OUTPUT_BYTES_MAX = 16 * 1024 * 1024
"""Of what emerge prints, its beginning and its end."""
LEFT_OVER_TIMEOUT_S = 30.0


class Workshop:
    """Made by open_workshop. One build at a time."""

    def __init__(self, folder: Path, settings: PortageSettings, runner: RunnerClient) -> None:
        self._folder = folder
        self._settings = settings
        self._runner = runner
        # A runner knows ids for as long as it lives, which may be longer than a drone.
        self._last_id = time.time_ns() // 1_000_000

    @contextlib.asynccontextmanager
    async def build(self, cpv: str) -> AsyncIterator[Made]:
        """What it built is there for the block. Cancelled means: the build is ended, with its
        whole tree. SwarmError or OSError: it came to no end, through no fault of the package's."""
        if (nothing := refused(cpv)) is not None:
            yield nothing
            return
        self._last_id += 1
        place = self._folder / "builds" / str(self._last_id)
        staging = place.with_suffix(".staging")
        try:
            ended = await self._run(cpv, place, staging)
            yield await trio.to_thread.run_sync(
                read_made, self._settings, cpv, place, staging, ended
            )
        finally:
            with trio.CancelScope(shield=True):
                for folder in (place, staging):
                    await trio.to_thread.run_sync(remove, folder)

    async def _run(self, cpv: str, place: Path, staging: Path) -> Ended:
        order = await trio.to_thread.run_sync(partial(
            order_of_build, self._settings, cpv, self._last_id, place, staging, grace_s=GRACE_S,
            log_bytes_max=OUTPUT_BYTES_MAX, lease=(int(LEASE_S * 1000), None),
        ))  # fmt: skip
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

    def keep_log(self, cpv: str, failed: Failed) -> Path | None:
        """The failing build's own log, beside the last ones that failed."""
        return keep_log(self._folder / "failed", cpv, failed)


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
    remove(builds)
    builds.mkdir(mode=0o711)
    builds.chmod(0o711)
