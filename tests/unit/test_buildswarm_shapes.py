"""The build swarm's shapes: how far a build has come, by what such builds took before."""

from __future__ import annotations

from pathlib import Path

import trio

from api.buildswarm.shapes import ProgressOut
from swarmd.domain.actors import Actor
from swarmd.domain.builds import Outcome
from swarmd.domain.jobs import Installed, JobId, JobKind, JobSpec, NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.ops import builds
from swarmd.state.build_commands import (
    FinishBuild,
    NotePresence,
    PutBuilder,
    StartBuild,
    TakeBuilds,
)
from swarmd.state.commands import VERSION, NewJob, RaiseVersion, SubmitJobs
from tests.cluster import open_alone

ME = Actor("t", "test")
DRONE = NodeId("builder/drone-1")
FIRST, SECOND = "virtual/lib-1", "virtual/lib-2"
TOOK_MS = 300_000


async def test_progress_is_by_what_such_builds_took_and_stops_at_99(tmp_path: Path) -> None:
    clock = [1_000_000_000]
    me = Node(NodeId("n1"), "one", machine_version=VERSION)
    async with open_alone(tmp_path, me, now_ms=lambda: clock[0]) as cluster:

        async def begin(package: str) -> None:
            labels = {"package": package.rpartition("-")[0]}
            spec = JobSpec(package, Installed("emerge"), kind=JobKind.PACKAGE, labels=labels)
            await cluster.propose(SubmitJobs((NewJob(JobId(package), spec),)), ME)
            (taken,) = await cluster.propose(TakeBuilds(DRONE, 1), ME)
            assert taken.spec.type == package
            assert await shown() == [], "it is held, and not begun"
            await cluster.propose(StartBuild(DRONE, package), ME)

        async def shown() -> list[ProgressOut]:
            (standing,) = await builds.list_builders(cluster)
            return ProgressOut.all_of(standing)

        async def after(ms: int) -> tuple[float, float | None, int | None]:
            clock[0] = began + ms
            (one,) = await shown()
            assert one.building_since == began / 1000
            return one.elapsed_s, one.estimated_s, one.progress_pct

        term = cluster.leadership().term
        await cluster.propose(RaiseVersion(VERSION, term), ME)
        with trio.fail_after(10):
            while cluster.cluster_version() < VERSION:
                await trio.sleep(0.005)
        drone = Node(DRONE, "drone-1", NodeKind.DRONE, ("10.0.0.1",), reach=("http",))
        await cluster.propose(PutBuilder(DRONE, node=drone), ME)
        await cluster.propose(NotePresence((DRONE,), (), term), ME)

        began = clock[0]
        await begin(FIRST)
        assert await after(150_000) == (150.0, None, None), "nobody knows how long it takes"
        built = FinishBuild(DRONE, FIRST, Outcome.BUILT, duration_ms=TOOK_MS)
        await cluster.propose(built, ME)
        assert await shown() == []

        began = clock[0]
        await begin(SECOND)
        assert await after(0) == (0.0, 300.0, 0)
        assert await after(150_000) == (150.0, 300.0, 50)
        assert await after(TOOK_MS - 1) == (299.999, 300.0, 99)
        assert await after(TOOK_MS) == (300.0, 300.0, 99)
        assert await after(10 * TOOK_MS) == (3000.0, 300.0, 99)
        assert await after(-1) == (0.0, 300.0, 0), "a clock that was set back"
