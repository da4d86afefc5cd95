"""Benches: members of a simulated swarm that build packages themselves. The node's own builder
comes for work, its agent runs what it gets under a lease, and a build is the time that it takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from swarmd.agent.attempts import Attempts
from swarmd.agent.builder import Builder as Agent
from swarmd.agent.builder import Offer
from swarmd.agent.building import Verdict
from swarmd.cluster.handle import Hosted
from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import VIRTUAL, Outcome
from swarmd.domain.errors import Busy, Conflict, Invalid, Unavailable
from swarmd.domain.jobs import AttemptId, AttemptStatus, NodeId
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.portage import Description, Portage, PortageSettings
from swarmd.ops import builds
from swarmd.sim.bottle import Bottle, Gone
from swarmd.sim.builders import AGAIN_S, PKG_BYTES, About
from swarmd.state.build_commands import StagePackage
from swarmd.state.build_queries import FindBuilder
from swarmd.state.commands import AddBlob, T
from swarmd.state.queries import Duty

PUT_BACK_S_MAX = 30.0


@dataclass
class Bench:
    """What a node's agent asks for packages; it outlives the node's daemon, as a disk does."""

    about: About
    actor: Actor
    lasts: Callable[[str], float]
    opened: trio.Event = field(default_factory=trio.Event)
    """From then on the node comes for work."""
    said: Mapping[str, Outcome] = field(default_factory=dict)
    """What becomes of packages without being built."""
    begins: bool = False
    unfinished: int = 0
    doubted: trio.Event = field(default_factory=trio.Event)
    attempts: Attempts | None = None
    """Of the daemon that lives now."""
    _cluster: Hosted | None = None

    async def inhabit(self, cluster: Hosted, attempts: Attempts) -> None:
        """For as long as a daemon lives."""
        self.begins, self.attempts, self._cluster = False, attempts, cluster
        await self.opened.wait()
        counter = _Counter(cluster, self.actor, self.about)
        await Agent(PortageSettings(), None, self, counter, attempts, self._look).live()

    async def _look(self, settings: PortageSettings) -> Portage:
        return Portage(settings, (), Description(self.about.tree_at))

    # What the agent asks

    async def order(
        self, duty: Duty, directory: Path, lease: tuple[int | None, int | None]
    ) -> AttemptOrder:
        package = duty.spec.type
        match self.said.get(package):
            case Outcome.FAILED:
                raise Invalid("it fails here")
            case Outcome.RETURNED:
                raise Unavailable("it is left to others")
        lease_ms, lease_from_ns = lease
        argv = ("emerge", duty.attempt.job_id, f"{self.lasts(package):.3f}")
        return AttemptOrder(
            duty.attempt.id, str(directory), argv, lease_ms=lease_ms, lease_from_ns=lease_from_ns
        )

    async def end(self, duty: Duty, directory: Path, ended: Ended) -> Verdict:
        if ended.reason != "exit":
            lost = ended.reason in ("lost", "lease")
            return Verdict(AttemptStatus.LOST if lost else AttemptStatus.REVOKED, ended.reason)
        if not duty.spec.type.startswith(VIRTUAL):
            try:
                await self._stage(duty)
            except Conflict as refusal:
                return Verdict(AttemptStatus.REVOKED, refusal.message)
        return Verdict(AttemptStatus.COMPLETED, None, Outcome.BUILT)

    async def _stage(self, duty: Duty) -> None:
        assert self._cluster is not None
        cluster = self._cluster
        category, _, file = duty.spec.type.partition("/")
        name, _, version = file.rpartition("-")
        sha = hashlib.sha256(f"{duty.spec.type}{duty.attempt.id}".encode()).hexdigest()
        pkg = BinPkg(category, name, version, "gpkg", sha, PKG_BYTES, "0" * 32, "0" * 40)
        while True:
            try:
                await cluster.propose(AddBlob(sha, PKG_BYTES, cluster.node.id), self.actor)
                await cluster.propose(StagePackage(cluster.node.id, file, pkg), self.actor)
            except (Busy, Unavailable):
                await trio.sleep(AGAIN_S)
            else:
                return

    def not_begun(self) -> None: ...

    async def forget(self, ids: Iterable[AttemptId]) -> None: ...

    async def keep_only(self, ids: Iterable[AttemptId]) -> None: ...


@dataclass(frozen=True)
class _Counter:
    """As ops.own_builds, where there is nothing to sign."""

    cluster: Hosted
    actor: Actor
    about: About

    async def register(self, tree_at: str, task: str | None, metrics: dict[str, float]) -> None:
        about = self.about
        await builds.register_own(
            self.cluster, self.actor, about.auto_reboot, tree_at, task, metrics
        )

    async def work(self, tried: str) -> Offer:
        return await builds.work_of(
            self.cluster, self.actor, self.cluster.node.id, self.about.cores, tried=tried
        )

    async def hand_in(self, path: str, file: Path) -> None:
        raise Invalid("there are no files here")


class Member:
    """One of a bottle's nodes as its builder; `swarmd.sim.builders` has those outside."""

    def __init__(self, bottle: Bottle, name: str, bench: Bench) -> None:
        self.name = name
        self.about = bench.about
        self.bench = bench
        self._bottle = bottle
        bottle.benches[name] = bench

    @property
    def node_id(self) -> NodeId:
        return self._bottle.node_id(self.name)

    @property
    def task(self) -> str | None:
        return None if self.bench.attempts is None else self.bench.attempts.package

    async def introduce(self) -> None:
        counter = partial(_Counter, actor=self.bench.actor, about=self.about)
        await self._patiently(lambda c: counter(c).register(self.about.tree_at, None, {}))

    async def settle(self, packages: Iterable[str], outcome: Outcome) -> None:
        """So ends what it was just given: its agent says so."""
        attempts, bench = self.bench.attempts, self.bench
        assert attempts is not None
        bench.said = dict.fromkeys(packages, outcome)
        attempts.begin_packages(True)
        with trio.fail_after(PUT_BACK_S_MAX):
            while any(each in bench.said for each in await self._patiently(self._held)):
                await trio.sleep(0.01)
        attempts.begin_packages(False)
        bench.said = {}

    async def _held(self, cluster: Hosted) -> tuple[str, ...]:
        view = await cluster.read(FindBuilder(cluster.node.id))
        return () if view is None else tuple(held.package for held in view.held)

    async def _patiently(self, work: Callable[[Hosted], Awaitable[T]]) -> T:
        while True:
            try:
                return await self._bottle.request(self.name, work)
            except (Busy, Gone, Unavailable):
                await trio.sleep(AGAIN_S)
