"""What an attempt of a package is, beside a runner's order: a place of its own to build into, and
an end that is read, kept and handed in.

Which packages this node gets, and what its word on them does, is the queue's to say. Nothing here
knows of it but what is handed in through `Desk`; a build that came to no end of its own goes back.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import trio

from swarmd.agent.launch import error_of
from swarmd.domain.builds import ERROR_CHARS_MAX, Outcome
from swarmd.domain.errors import Busy, Conflict, Invalid, SwarmError, TooLarge, Unavailable
from swarmd.domain.jobs import AttemptId, AttemptStatus
from swarmd.domain.pauses import doubling
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.portage import PortageSettings
from swarmd.drivers.portage_results import (
    Gone,
    Made,
    Unfinished,
    error_text,
    keep_log,
    order_of_build,
    read_made,
    refused,
    remove,
)
from swarmd.state.queries import Duty

log = logging.getLogger(__name__)

HAND_IN_S_MAX = 120.0
"""For so long a package is offered where the store is full, or nobody is there to sign it."""
AGAIN_S = 2.0
AGAIN_S_MAX = 30.0
STAGING = ".staging"
FAILED = "failed"


class Desk(Protocol):
    """Where packages are handed in."""

    async def hand_in(self, path: str, file: Path) -> None:
        """Conflict: this node does not hold the package. Invalid or TooLarge: it is never taken as
        it is. Any other SwarmError: it was not taken."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of an attempt's end. Without an outcome its status says it all."""

    status: AttemptStatus
    error: str | None = None
    outcome: Outcome | None = None


class Builds(Protocol):
    """What `Attempts` asks for packages."""

    begins: bool
    """What is held and has not begun may do so."""

    async def order(
        self, duty: Duty, directory: Path, lease: tuple[int | None, int | None]
    ) -> AttemptOrder:
        """Invalid: nobody can build it. Any other SwarmError, or OSError: not here and now."""

    async def end(self, duty: Duty, directory: Path, ended: Ended) -> Verdict: ...

    def not_begun(self) -> None:
        """A build could not be started: this host may not be able to start any."""

    async def forget(self, ids: Iterable[AttemptId]) -> None:
        """Nothing is needed of their builds any more."""

    async def keep_only(self, ids: Iterable[AttemptId]) -> None:
        """The same of all but these; before any is started."""


class Bench:
    """Of one node: a build at a time, each in a directory of its own."""

    def __init__(
        self, folder: Path, settings: PortageSettings, desk: Desk, *, grace_s: float,
        log_bytes_max: int,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._settings = settings
        self._desk = desk
        self._grace_s = grace_s
        self._log_bytes_max = log_bytes_max
        self.begins = False
        self.unfinished = 0
        """Builds in a row that came to no end here."""
        self.doubted = trio.Event()
        """Whatever builds may not be there any more."""

    async def order(
        self, duty: Duty, directory: Path, lease: tuple[int | None, int | None]
    ) -> AttemptOrder:
        package = duty.spec.type
        if (nothing := refused(package)) is not None:
            assert nothing.failed is not None
            raise Invalid(nothing.failed.reason)
        return await trio.to_thread.run_sync(partial(
            order_of_build, self._settings, package, duty.attempt.id, directory,
            self._staging(duty.attempt.id), grace_s=self._grace_s,
            log_bytes_max=self._log_bytes_max, lease=lease,
        ))  # fmt: skip

    async def end(self, duty: Duty, directory: Path, ended: Ended) -> Verdict:
        if ended.reason in ("lost", "lease"):
            return Verdict(AttemptStatus.LOST, error_of(ended, duty.spec))
        package = duty.spec.type
        try:
            made = await trio.to_thread.run_sync(
                read_made, self._settings, package, directory, self._staging(duty.attempt.id),
                ended,
            )  # fmt: skip
        except (Unfinished, OSError) as problem:
            log.error("the build came to no end", extra={"package": package, "error": str(problem)})
            if isinstance(problem, Gone):
                self.doubted.set()
            self.not_begun()
            return Verdict(AttemptStatus.REVOKED, str(problem)[:ERROR_CHARS_MAX])
        self.unfinished = 0
        return await self._verdict(package, made)

    async def _verdict(self, package: str, made: Made) -> Verdict:
        failed = made.failed
        if failed is not None:
            kept = await trio.to_thread.run_sync(keep_log, self._folder / FAILED, package, failed)
            facts = {"package": package, "why": failed.reason, "log": str(kept or "none")}
            log.warning("the build failed", extra=facts)
            return Verdict(AttemptStatus.FAILED, error_text(failed), made.outcome)
        try:
            for each in made.packages:
                await self._hand_in(each.path, each.file)
        except Conflict as refusal:
            return Verdict(AttemptStatus.REVOKED, refusal.message)
        except (Invalid, TooLarge) as refusal:
            # Built again it would be refused again: it counts as any build that fails.
            log.error("refused", extra={"package": package, "error": refusal.message})
            return Verdict(AttemptStatus.FAILED, refusal.message[:ERROR_CHARS_MAX], Outcome.FAILED)
        except (SwarmError, OSError) as refusal:
            log.error("not handed in", extra={"package": package, "error": str(refusal)})
            error = str(refusal)[:ERROR_CHARS_MAX]
            return Verdict(AttemptStatus.FAILED, error, Outcome.NOT_UPLOADED)
        return Verdict(AttemptStatus.COMPLETED, None, Outcome.BUILT)

    async def _hand_in(self, path: str, file: Path) -> None:
        began, pauses = trio.current_time(), doubling(AGAIN_S, AGAIN_S_MAX)
        while True:
            try:
                return await self._desk.hand_in(path, file)
            except (Busy, Unavailable) as refusal:
                if trio.current_time() - began >= HAND_IN_S_MAX:
                    raise
                log.warning("the package is not taken yet", extra={"error": refusal.message})
            await trio.sleep(next(pauses))

    def not_begun(self) -> None:
        self.unfinished += 1

    async def forget(self, ids: Iterable[AttemptId]) -> None:
        for attempt_id in ids:
            await trio.to_thread.run_sync(remove, self._staging(attempt_id))

    async def keep_only(self, ids: Iterable[AttemptId]) -> None:
        try:
            names = {self._staging(attempt_id).name for attempt_id in ids}
            await trio.to_thread.run_sync(self._keep_only, names)
        except OSError as error:
            # Builds will say so, each for itself.
            log.error("there is no room to build in", extra={"error": str(error)})

    def _keep_only(self, names: set[str]) -> None:
        # Portage builds as an account that has to come through.
        self._folder.mkdir(mode=0o711, exist_ok=True)
        self._folder.chmod(0o711)
        for left in self._folder.iterdir():
            if left.suffix == STAGING and left.name not in names:
                remove(left)

    def _staging(self, attempt_id: AttemptId) -> Path:
        return self._folder / f"{int(attempt_id)}{STAGING}"
