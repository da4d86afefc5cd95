"""Builders in a simulated swarm: they say what drones say, through any node, by the same ops.

A build is the time that it takes, and comes to what whoever made the builder says; what it makes is
no file, only what the swarm is told of one.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import trio

from swarmd.cluster.handle import Hosted
from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import VIRTUAL, Outcome
from swarmd.domain.errors import Busy, Conflict, NotFound, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.ops import builds
from swarmd.ops.builds import BuilderSays
from swarmd.sim.bottle import Bottle, Gone
from swarmd.state.build_commands import StagePackage
from swarmd.state.commands import AddBlob, T

DRONE = Actor("anonymous", "buildswarm", "10.9.0.1")
ASK_S_MAX = 8.0
BEAT_S = 10.0
POLL_S = 2.0
AGAIN_S = 1.0
PKG_BYTES = 4096


@dataclass(frozen=True)
class About:
    """What a builder says of itself, beside its name."""

    id: str
    cores: int = 16
    auto_reboot: bool = True
    tree_at: str = ""


@dataclass(eq=False)
class _Task:
    package: str
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)


class Builder:
    """One that builds what it is given, as long as it is let; `fails` says what it cannot, and
    `lasts` how long a build takes."""

    def __init__(
        self, bottle: Bottle, name: str, seed: int, *, about: About | None = None,
        fails: Callable[[str], Outcome | None] = lambda package: None,
        lasts: Callable[[str], float] | None = None,
    ) -> None:  # fmt: skip
        self.bottle = bottle
        self.name = name
        self.about = about or About(f"id-{name}")
        self.fails = fails
        self.built: Counter[str] = Counter()
        """What the swarm told it that it had accepted."""
        self.stale = 0
        """Reports that did not count."""
        self.tries: list[str] = []
        self._rng = random.Random(f"{seed}{name}")
        self._lasts = lasts or (lambda package: self._rng.uniform(2.0, 20.0))
        self._task: _Task | None = None
        self._beat_now = trio.Event()

    @property
    def task(self) -> str | None:
        """What it is at."""
        return None if self._task is None else self._task.package

    @property
    def node_id(self) -> NodeId:
        return builds.node_id_of(self.about.id)

    async def live(self) -> None:
        """Until it is cancelled, which is its end without a word."""
        self._task = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            while True:
                work = await self.ask(
                    lambda c: builds.work(c, DRONE, self.about.id, self.about.cores)
                )
                if work is not None and work.package is not None:
                    await self._build(work.package)
                else:
                    await trio.sleep(self._rng.uniform(0.5, 1) * POLL_S)

    # What it says

    async def introduce(self) -> None:
        """Its first word; it waits until that is taken."""
        await self.patiently(self._register)

    async def _beat(self) -> None:
        while True:
            self._beat_now, task = trio.Event(), self._task
            told = await self.ask(self._register)
            if told is not None and task is not None:
                self._heed(task, told.stop, told.revoked)
            with trio.move_on_after(BEAT_S if told is not None else POLL_S):
                await self._beat_now.wait()

    def _heed(self, task: _Task, stop: str | None, revoked: Sequence[str]) -> None:
        """What was taken back from it is ended."""
        if task.package in (stop, *revoked):
            task.scope.cancel()

    async def _register(self, cluster: Hosted) -> builds.Told:
        about = self.about
        says = BuilderSays(
            about.id, self.name, ("10.9.0.1",), about.cores, 1 << 30, about.auto_reboot,
            about.tree_at, "1", self.task, {},
        )  # fmt: skip
        return await builds.register(cluster, DRONE, says)

    # What it does

    async def _build(self, package: str) -> None:
        task = self._task = _Task(package)
        self._beat_now.set()  # by this the build begins
        self.tries.append(package)
        outcome = Outcome.RETURNED
        try:
            with task.scope:
                await trio.sleep(self._lasts(package))
                outcome = self.fails(package) or Outcome.BUILT
                if outcome is Outcome.BUILT and not package.startswith(VIRTUAL):
                    await self.patiently(partial(self._stage, package))
            if task.scope.cancelled_caught:
                outcome = Outcome.RETURNED
            accepted = await self.report(package, outcome)
        finally:
            self._task = None
        if not accepted:
            self.stale += 1
        elif outcome is Outcome.BUILT:
            self.built[package] += 1

    async def report(self, package: str, outcome: Outcome) -> bool:
        """Whether it counted; it is said again until it is answered."""
        finish = partial(builds.finish, duration_ms=None, error=None)
        return await self.patiently(lambda c: finish(c, DRONE, self.about.id, package, outcome))

    async def settle(self, packages: Iterable[str], outcome: Outcome) -> None:
        """So ends what it was just given."""
        for package in packages:
            await self.report(package, outcome)

    async def _stage(self, package: str, cluster: Hosted) -> bool:
        """As after an upload; that it was taken back meanwhile is told by the report."""
        category, _, file = package.partition("/")
        name, _, version = file.rpartition("-")
        sha = hashlib.sha256(f"{self.name}{package}{len(self.tries)}".encode()).hexdigest()
        pkg = BinPkg(category, name, version, "gpkg", sha, PKG_BYTES, "0" * 32, "0" * 40)
        await cluster.propose(AddBlob(sha, PKG_BYTES, cluster.node.id), DRONE)
        try:
            await cluster.propose(StagePackage(self.node_id, file, pkg), DRONE)
        except Conflict:
            return False
        return True

    # How it asks

    async def patiently(self, work: Callable[[Hosted], Awaitable[T]]) -> T:
        while True:
            answer = await self.ask(work)
            if answer is not None:
                return answer
            await trio.sleep(AGAIN_S)

    async def ask(self, work: Callable[[Hosted], Awaitable[T]]) -> T | None:
        """Through any node that is there; None: try again."""
        there = self.bottle.there()
        if not there:
            return None
        try:
            with trio.move_on_after(ASK_S_MAX):
                return await self.bottle.request(self._rng.choice(there), work)
        except (Busy, Conflict, Gone, NotFound, Unavailable):
            pass
        return None
