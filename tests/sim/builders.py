"""Builders in a simulated swarm: they say what drones say, through any node, by the same ops."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from swarmd.cluster.handle import Hosted
from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import Outcome
from swarmd.domain.errors import Busy, Conflict, NotFound, Unavailable
from swarmd.ops import builds
from swarmd.ops.builds import BuilderSays
from swarmd.sim.bottle import Bottle, Gone
from swarmd.state.build_commands import StagePackage
from swarmd.state.commands import AddBlob, T

DRONE = Actor("anonymous", "buildswarm", "10.9.0.1")
ASK_S_MAX = 8.0
BEAT_S = 5.0
POLL_S = 2.0


class Builder:
    """One that builds what it is given, as long as it is let; `fails` says what it cannot."""

    def __init__(
        self, bottle: Bottle, name: str, seed: int, *, cores: int = 16,
        fails: Callable[[str], Outcome | None] = lambda package: None,
        build_s: tuple[float, float] = (2.0, 20.0),
    ) -> None:  # fmt: skip
        self.bottle = bottle
        self.name = name
        self.cores = cores
        self.fails = fails
        self.task: str | None = None
        self.built: Counter[str] = Counter()
        """What the swarm told it that it had accepted."""
        self.stale = 0
        self.tries: list[str] = []
        self._build_s = build_s
        self._rng = random.Random(f"{seed}{name}")

    async def live(self) -> None:
        """Until it is cancelled, which is its end without a word."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._beat)
            while True:
                work = await self._ask(lambda c: builds.work(c, DRONE, self._id, self.cores))
                if work is not None and work.package is not None:
                    await self._build(work.package)
                else:
                    await trio.sleep(self._rng.uniform(0.5, 1) * POLL_S)

    @property
    def _id(self) -> str:
        return f"id-{self.name}"

    async def _beat(self) -> None:
        while True:
            await self._ask(lambda c: builds.register(c, DRONE, self._says()))
            await trio.sleep(BEAT_S)

    def _says(self) -> BuilderSays:
        where, name = ("10.9.0.1",), self.name
        return BuilderSays(self._id, name, where, self.cores, 1 << 30, True, "", "1", self.task, {})

    async def _build(self, package: str) -> None:
        self.task = package
        self.tries.append(package)
        await trio.sleep(self._rng.uniform(*self._build_s))
        outcome = self.fails(package) or Outcome.BUILT
        if outcome is Outcome.BUILT:
            await self._patiently(partial(self._stage, package))
        finish = partial(builds.finish, duration_ms=None, error=None)
        accepted = await self._patiently(lambda c: finish(c, DRONE, self._id, package, outcome))
        if not accepted:
            self.stale += 1
        elif outcome is Outcome.BUILT:
            self.built[package] += 1
        self.task = None

    async def _stage(self, package: str, cluster: Hosted) -> bool:
        """As after an upload; that it was taken back meanwhile is told by the report."""
        category, _, file = package.partition("/")
        name, _, version = file.rpartition("-")
        sha = hashlib.sha256(f"{self.name}{package}{len(self.tries)}".encode()).hexdigest()
        pkg = BinPkg(category, name, version, "gpkg", sha, 4096, "0" * 32, "0" * 40)
        await cluster.propose(AddBlob(sha, 4096, cluster.node.id), DRONE)
        try:
            await cluster.propose(StagePackage(builds.node_id_of(self._id), file, pkg), DRONE)
        except Conflict:
            return False
        return True

    async def _patiently(self, work: Callable[[Hosted], Awaitable[T]]) -> T:
        while True:
            answer = await self._ask(work)
            if answer is not None:
                return answer
            await trio.sleep(1)

    async def _ask(self, work: Callable[[Hosted], Awaitable[T]]) -> T | None:
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
