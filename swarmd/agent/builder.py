"""This node as a builder: for as long as its host has a Portage it says so, and comes for packages.

It comes only while it holds none, has leave to work, and could build what it got last; what it is
given is run by `Attempts`, like every other attempt of this node.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

import trio

from swarmd.agent.attempts import Attempts
from swarmd.agent.building import Desk
from swarmd.cluster.handle import local_reads
from swarmd.domain.builds import ERROR_CHARS_MAX
from swarmd.domain.errors import SwarmError
from swarmd.drivers.load import HostLoad
from swarmd.drivers.portage import Missing, Portage, PortageSettings, find
from swarmd.drivers.portage_results import pause_after
from swarmd.drivers.portage_sync import TreeSync

log = logging.getLogger(__name__)

BEAT_EVERY_S = 10.0
ASK_EVERY_S = 2.0
"""For work, and for anything that was refused."""
FIND_EVERY_S = 60.0
"""Where there is no Portage: it may be installed."""
DESCRIBE_EVERY_S = 900.0
"""Its tree may be synchronized, and all of it may be gone."""


class Offer(Protocol):
    @property
    def package(self) -> str | None:
        """What it holds and may begin, the oldest."""

    @property
    def sync_to(self) -> str:
        """It is to bring its tree up to date first, which is older than this one."""


class Counter(Desk, Protocol):
    """The queue, as it is to this node."""

    async def register(self, tree_at: str, task: str | None, metrics: dict[str, float]) -> None:
        """A sign of life; the first makes it a builder. Any SwarmError: it was not heard."""

    async def work(self, tried: str) -> Offer:
        """Where it holds nothing it may be given some. `tried` is up to which tree it has tried to
        bring its own. Any SwarmError: it was not heard."""


class Bench(Protocol):
    """Where its builds are made."""

    unfinished: int
    """In a row, that came to no end."""
    doubted: trio.Event
    """Whatever builds may not be there any more."""


class Builder:
    def __init__(
        self, settings: PortageSettings, sync: tuple[str, ...] | None, bench: Bench,
        counter: Counter, attempts: Attempts,
        look: Callable[[PortageSettings], Awaitable[Portage | Missing]] = find,
    ) -> None:  # fmt: skip
        """`sync` brings its tree up to date; with None that is left to others. `look` tells whether
        this host has a Portage."""
        self._settings = settings
        self._sync = sync
        self._look = look
        self._bench = bench
        self._counter = counter
        self._attempts = attempts
        self._load = HostLoad()
        self._told_task: str | None = None
        self._beat_now = trio.Event()
        self._unfinished = 0
        self._comes_at = 0.0
        """Not before then, where builds came to no end here."""
        self.trouble: str | None = None
        """Why this node, which is to build, does not."""

    async def live(self) -> None:
        """Until it is cancelled."""
        while True:
            portage = await self._found()
            tree = TreeSync(portage, self._sync)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._beat, tree)
                nursery.start_soon(self._work, tree)
                await self._there(portage)
                nursery.cancel_scope.cancel()

    async def _found(self) -> Portage:
        while True:
            found = await self._look(self._settings)
            if isinstance(found, Portage):
                if self.trouble is not None:
                    log.info("there is a Portage now")
                self.trouble = None
                self._bench.doubted = trio.Event()
                return found
            self._complain(found)
            await trio.sleep(FIND_EVERY_S)

    def _complain(self, missing: Missing) -> None:
        if self.trouble != missing.why:
            log.error("this node is to build packages and cannot", extra={"why": missing.why})
        self.trouble = missing.why
        self._attempts.begin_packages(False)
        self._attempts.give_back_packages(missing.why[:ERROR_CHARS_MAX])

    async def _there(self, portage: Portage) -> None:
        """Until it is not any more."""
        while True:
            with trio.move_on_after(DESCRIBE_EVERY_S):
                await self._bench.doubted.wait()
            self._bench.doubted = trio.Event()
            found = await self._look(self._settings)
            if isinstance(found, Missing):
                self._complain(found)
                return
            portage.description = found.description

    # Signs of life

    async def _beat(self, tree: TreeSync) -> None:
        told = False
        while True:
            self._beat_now, task = trio.Event(), self._attempts.package
            tree_at, metrics = tree.tree_at, self._load.measure()
            try:
                await self._counter.register(tree_at, task, metrics)
                self._told_task, pause_s = task, BEAT_EVERY_S
                if not told:
                    log.info("this node builds packages", extra={"tree_at": tree_at})
                told = True
            except SwarmError as refusal:
                log.debug("no sign of life was taken", extra={"reason": refusal.message})
                pause_s = ASK_EVERY_S
            with trio.move_on_after(pause_s):
                await self._beat_now.wait()

    # Work

    async def _work(self, tree: TreeSync) -> None:
        with local_reads():
            while True:
                await self._come(tree)
                if self._attempts.package != self._told_task:
                    self._beat_now.set()
                await trio.sleep(ASK_EVERY_S)

    async def _come(self, tree: TreeSync) -> None:
        if not self._attempts.takes_packages:
            return
        if self._bench.unfinished != self._unfinished:
            self._unfinished = self._bench.unfinished
            self._comes_at = trio.current_time() + pause_after(self._unfinished)
        if self._unfinished and trio.current_time() < self._comes_at:
            self._attempts.begin_packages(False)
            return
        try:
            offer = await self._counter.work(tree.tried)
        except SwarmError as refusal:
            log.debug("no work is to be had", extra={"reason": refusal.message})
            return
        self._attempts.begin_packages(offer.package is not None)
        if offer.sync_to and offer.package is None:
            await tree.bring_up_to(offer.sync_to)
            self._beat_now.set()
