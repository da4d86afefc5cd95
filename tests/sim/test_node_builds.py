"""Nodes that build, while hosts die and are cut off: no package is built in two places at once, and
each is received once."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from swarmd.agent.builder import Builder
from swarmd.agent.building import Verdict
from swarmd.cluster.handle import Cluster, local_reads
from swarmd.cluster.replica import Replica
from swarmd.control.attendance import GONE_S, OFFLINE_S
from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import Outcome
from swarmd.domain.jobs import AttemptId, AttemptStatus, Installed, JobId, JobKind, JobSpec
from swarmd.domain.packages import parse_all, split
from swarmd.domain.trees import TREE
from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.portage import Description, Portage, PortageSettings
from swarmd.ops import queueing
from swarmd.ops.binhost import Staging
from swarmd.ops.builds import BuildFilter
from swarmd.ops.own_builds import OwnCounter
from swarmd.ops.queueing import DISCONNECT_S
from swarmd.ops.trees import literal
from swarmd.sim.workers import Workers, open_agent
from swarmd.sim.world import Host, World
from swarmd.state.build_commands import StagePackage
from swarmd.state.build_queries import BuildCounts, CountBuilds, ListBuilders, ListBuilds
from swarmd.state.commands import AddBlob, NewJob, SubmitJobs
from swarmd.state.queries import Duty
from swarmd.state.versions import BUILDS_SINCE, ORDER_SINCE
from tests.sim.world import simulated

ADMIN = Actor("admin", "buildswarm")
NAMES = tuple(f"app-misc/p{number}-1" for number in range(4))
BUILD_S = 90.0
CORES = 8
OLD, NEW = (f"{day} Feb 2026 00:30:01 +0000" for day in ("Fri, 13", "Sat, 14"))
SYNC = ("emerge", "--sync")


@dataclass
class SimBench:
    """A build is the time that it takes."""

    cluster: Cluster
    begins: bool = False
    unfinished: int = 0
    doubted: trio.Event = field(default_factory=trio.Event)

    async def order(
        self, duty: Duty, directory: Path, lease: tuple[int | None, int | None]
    ) -> AttemptOrder:
        lease_ms, lease_from_ns = lease
        return AttemptOrder(
            duty.attempt.id, str(directory), ("build", duty.spec.type, str(BUILD_S)),
            lease_ms=lease_ms, lease_from_ns=lease_from_ns,
        )  # fmt: skip

    async def end(self, duty: Duty, directory: Path, ended: Ended) -> Verdict:
        if ended.reason != "exit":
            lost = ended.reason in ("lost", "lease")
            return Verdict(AttemptStatus.LOST if lost else AttemptStatus.REVOKED)
        package = split(duty.spec.type)
        sha = hashlib.sha256(f"{package}{duty.attempt.id}".encode()).hexdigest()
        pkg = BinPkg(
            package.category, package.name, package.version, "gpkg", sha, 4096, "0" * 32, "0" * 40
        )
        await self.cluster.propose(AddBlob(sha, 4096, self.cluster.node.id), ADMIN)
        staged = StagePackage(self.cluster.node.id, f"{package.file_stem}-1.gpkg.tar", pkg)
        await self.cluster.propose(staged, ADMIN)
        return Verdict(AttemptStatus.COMPLETED, None, Outcome.BUILT)

    def not_begun(self) -> None: ...

    async def forget(self, ids: Iterable[AttemptId]) -> None: ...

    async def keep_only(self, ids: Iterable[AttemptId]) -> None: ...


class SimPortage(Portage):
    """Its tree is old until it is brought up to date."""

    def __init__(self) -> None:
        super().__init__(PortageSettings(), (), Description("3", timestamp=OLD))

    async def look(self, settings: PortageSettings) -> Portage:
        return self

    async def sync(self, command: Sequence[str], timeout_s: float) -> Description:
        await trio.sleep(30)
        self.description = Description("3", timestamp=NEW)
        return self.description


class Builders(Workers):
    """Every host of a world builds, besides its other work."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.lives: dict[str, trio.CancelScope] = {}

    async def online(self) -> set[str]:
        found = await self.world.replica(await self.world.leader()).read(ListBuilders())
        return {view.node.name for view in found if view.builder.online}

    @asynccontextmanager
    async def _inhabit(self, host: Host, replica: Replica) -> AsyncIterator[None]:
        bench = SimBench(replica)
        async with (
            open_agent(replica, self.runner(host), host.place, bench) as attempts,
            trio.open_nursery() as nursery,
        ):
            portage = SimPortage()
            counter = OwnCounter(replica, ADMIN, CORES, True, Staging(host.place, 0))
            builder = Builder(portage.settings, SYNC, bench, counter, attempts, portage.look)
            self.lives[host.name] = trio.CancelScope()

            async def live() -> None:
                with self.lives[host.name]:
                    await builder.live()

            nursery.start_soon(live)
            yield
            nursery.cancel_scope.cancel()

    async def queue(self, *names: str) -> None:
        await self.world.until(
            lambda: all(
                self.world.replica(n).cluster_version() >= BUILDS_SINCE for n in self.world.up()
            ),
            30, "the version that has builds",
        )  # fmt: skip
        replica = self.world.replica(self.world.up()[0])
        await queueing.enqueue(replica, ADMIN, literal(parse_all(names)), "s", "session-1")

    async def counts(self) -> BuildCounts:
        with local_reads():
            return await self.world.replica(await self.world.leader()).read(CountBuilds())

    async def received(self, within_s: float) -> None:
        with trio.move_on_after(within_s):
            while (await self.counts()).received < len(NAMES):
                await trio.sleep(0.5)
            return
        raise AssertionError(f"not all are received: {await self.counts()}")

    async def check_once(self) -> None:
        found = await self.world.replica(await self.world.leader()).read(ListBuilds(BuildFilter()))
        assert Counter((b.package, b.ok) for b in found) == {(name, True): 1 for name in NAMES}

    def how(self, package: str) -> list[str]:
        return [ran.how for ran in self.runs.of(package)]


async def building(world: World) -> tuple[Builders, str, str]:
    """Three hosts that build, and one of them, which does not lead, with what it is at."""
    builders = Builders(world)
    await world.swarm_of("a", "b", "c")
    await builders.queue(*NAMES)
    leader = await world.leader()
    await world.until(
        lambda: any(host != leader for host in builders.runs.now.values()), 30, "a build"
    )
    package, host = next((p, h) for p, h in builders.runs.now.items() if h != leader)
    return builders, package, host


@simulated(81)
async def test_what_a_dead_node_was_at_is_built_by_another(world: World) -> None:
    builders, package, host = await building(world)
    struck = trio.current_time()
    await builders.kill(host)
    assert await builders.running(package, DISCONNECT_S + 2 * BUILD_S + 30) != host
    assert trio.current_time() - struck > DISCONNECT_S
    await builders.received(10 * BUILD_S)
    await builders.check_once()
    assert builders.how(package) == ["began", "died", "began", "exit"]


@simulated(82)
async def test_a_build_outlives_that_its_node_is_cut_off_for_a_while(world: World) -> None:
    builders, package, host = await building(world)
    world.network.isolate(host)
    await trio.sleep(DISCONNECT_S / 2)
    world.network.heal()
    await builders.received(10 * BUILD_S)
    await builders.check_once()
    assert builders.how(package) == ["began", "exit"]


@simulated(83)
async def test_of_a_node_that_is_cut_off_for_long_the_build_ends_before_another_begins(
    world: World,
) -> None:
    builders, package, host = await building(world)
    world.network.isolate(host)
    await trio.sleep(DISCONNECT_S + 15)
    assert builders.how(package)[:2] == ["began", "lease"]
    world.network.heal()
    await builders.received(10 * BUILD_S)
    await builders.check_once()


@simulated(84)
async def test_a_daemon_that_is_killed_finds_its_build_again(world: World) -> None:
    builders, package, host = await building(world)
    await world.crash(host)
    await trio.sleep(5)
    await world.start(host)
    await builders.received(10 * BUILD_S)
    await builders.check_once()
    assert builders.how(package) == ["began", "exit"]


@simulated(85)
async def test_a_node_brings_its_tree_up_to_date_for_what_needs_it(world: World) -> None:
    builders = Builders(world)
    await world.swarm_of("a")
    await world.until(
        lambda: world.replica("a").cluster_version() >= ORDER_SINCE, 30, "the version for it"
    )
    spec = JobSpec(
        NAMES[0], Installed("emerge"), kind=JobKind.PACKAGE,
        labels={"package": "app-misc/p0", TREE: NEW},
    )  # fmt: skip
    began = trio.current_time()
    await world.propose("a", SubmitJobs((NewJob(JobId("j"), spec),)))
    await builders.running(NAMES[0], 60)
    assert trio.current_time() - began >= 30
    (view,) = await world.replica("a").read(ListBuilders())
    assert view.builder.tree_at == NEW


@simulated(86)
async def test_who_is_gone_or_builds_no_more_is_offline(world: World) -> None:
    builders, _, host = await building(world)
    assert await builders.online() == {"a", "b", "c"}
    await builders.kill(host)
    await trio.sleep(GONE_S + 15)
    assert await builders.online() == {"a", "b", "c"} - {host}
    leader = await world.leader()
    other = next(name for name in world.up() if name != leader)
    builders.lives[other].cancel()
    await trio.sleep(OFFLINE_S + 10)
    assert await builders.online() == {leader}
