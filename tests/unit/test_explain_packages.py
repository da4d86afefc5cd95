"""Why a package waits, each reason that there is: told by a real node of a real state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio

from swarmd.cluster.replica import Replica
from swarmd.domain.actors import Actor
from swarmd.domain.builds import (
    BLOCKED_MS,
    FAILURES_IN_A_ROW_MAX,
    UPLOADS_FAILED_MAX,
    Control,
    Outcome,
)
from swarmd.domain.errors import NotFound
from swarmd.domain.jobs import (
    Installed,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Result,
)
from swarmd.domain.nodes import Node, NodeKind
from swarmd.domain.trees import TREE
from swarmd.ops import explain, jobs
from swarmd.ops.explain import Explanation
from swarmd.state.build_commands import (
    ControlBuilds,
    FinishBuild,
    NoteBuilder,
    NotePresence,
    PutBuilder,
    StartBuild,
    TakeBuilds,
)
from swarmd.state.commands import (
    VERSION,
    Command,
    NewJob,
    RaiseVersion,
    SettleDependents,
    SubmitJobs,
    T,
)
from tests.cluster import open_alone

ME = Actor("t", "test")
HELLO, LIB = "app-misc/hello-1.0", "dev-libs/lib-2"


@dataclass
class Queue:
    cluster: Replica
    clock: list[int] = field(default_factory=lambda: [1_000_000_000])

    async def do(self, command: Command[T]) -> T:
        return await self.cluster.propose(command, ME)

    async def add(self, package: str, **fields: Any) -> str:
        fields["labels"] = {"package": package.rpartition("-")[0], **fields.get("labels", {})}
        spec = JobSpec(package, Installed("emerge"), kind=JobKind.PACKAGE, **fields)
        job_id = JobId(f"job-{package.rpartition('/')[2]}")
        await self.do(SubmitJobs((NewJob(job_id, spec),)))
        return job_id

    async def builder(self, name: str, tree_at: str = "") -> NodeId:
        node_id = NodeId(f"builder/{name}")
        node = Node(node_id, name, NodeKind.DRONE, ("10.0.0.1",), reach=("http",))
        await self.do(PutBuilder(node_id, tree_at=tree_at, node=node))
        await self.do(NotePresence((node_id,), (), self.term))
        return node_id

    async def take(self, node_id: NodeId, cores: int = 1) -> list[str]:
        return [job.spec.type for job in await self.do(TakeBuilds(node_id, cores))]

    async def say(self, node_id: NodeId, outcome: Outcome, package: str, error: str = "") -> None:
        await self.do(FinishBuild(node_id, package, outcome, result=Result(error=error or None)))

    async def fail(self, node_id: NodeId, package: str, error: str) -> None:
        assert package in await self.take(node_id)
        await self.say(node_id, Outcome.FAILED, package, error)

    async def told(self, name: str = HELLO) -> Explanation:
        return await explain.explain(self.cluster, name)

    async def reasons(self, name: str = HELLO) -> dict[str, tuple[str, ...]]:
        nodes = (await self.told(name)).nodes
        assert all(verdict.can_run is not bool(verdict.reasons) for verdict in nodes)
        return {verdict.node: verdict.reasons for verdict in nodes}

    @property
    def term(self) -> int:
        return self.cluster.leadership().term


Opened = Callable[[], AbstractAsyncContextManager[Queue]]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    @asynccontextmanager
    async def opening() -> AsyncIterator[Queue]:
        clock = [1_000_000_000]
        node = Node(NodeId("n1"), "one", machine_version=VERSION)
        async with open_alone(tmp_path, node, now_ms=lambda: clock[0]) as cluster:
            queue = Queue(cluster, clock)
            await queue.do(RaiseVersion(VERSION, queue.term))
            with trio.fail_after(10):
                while cluster.cluster_version() < VERSION:
                    await trio.sleep(0.005)
            yield queue

    return opening


async def test_nobody_is_there_to_build_it(opened: Opened) -> None:
    async with opened() as queue:
        job_id = await queue.add(HELLO)
        said = await queue.told()
        assert (said.job_id, said.status, said.nodes) == (job_id, JobStatus.PENDING, ())
        assert said.summary.startswith("no builder is registered: `swarmd drone`")
        assert await queue.told(job_id) == said, "by its id as by its name"
        with pytest.raises(NotFound):
            await queue.told("app-misc/other-1")
        binary = await jobs.submit(queue.cluster, ME, JobSpec("t", Installed("true")))
        assert (await queue.told(binary.id)).summary.startswith("no node runs jobs")


async def test_who_comes_first_gets_it_after_those_before_it(opened: Opened) -> None:
    async with opened() as queue:
        await queue.add(LIB)
        await queue.add(HELLO)
        await queue.builder("drone-1")
        await queue.builder("sweeper-1")
        said = await queue.told()
        assert said.summary == (
            "goes to whoever comes for work first: drone-1; 1 package goes before it"
        )
        assert (await queue.told(LIB)).summary.endswith("drone-1; it is next")
        assert await queue.reasons() == {
            "drone-1": (), "sweeper-1": ("it is a sweeper, and gets only what is blocked",),
        }  # fmt: skip


async def test_who_has_it_and_since_when(opened: Opened) -> None:
    async with opened() as queue:
        for name in (LIB, HELLO, "a/third-1"):
            await queue.add(name)
        drone = await queue.builder("drone-1")
        assert await queue.take(drone, 8) == [LIB, HELLO]
        queue.clock[0] += 40_000
        assert (await queue.told()).summary == "held by drone-1 for 40 s, not begun"
        await queue.do(StartBuild(drone, LIB))
        assert (await queue.told()).summary.endswith(f"not begun: it is at {LIB}")
        queue.clock[0] += 240_000
        assert (await queue.told(LIB)).summary == "built by drone-1 for 4 min"
        said = await queue.told("a/third-1")
        assert said.summary == "no builder can take it at present; it is next"
        assert said.nodes[0].reasons == (
            f"it holds {LIB}, {HELLO}, and gets more when that is done",
        )
        await queue.do(NotePresence((), (drone,), queue.term))
        assert "drone-1 for 4 min; that builder is offline" in (await queue.told(LIB)).summary
        assert (await queue.reasons("a/third-1"))["drone-1"][0] == "it is offline"


async def test_how_long_such_builds_take_and_how_it_ended(opened: Opened) -> None:
    async with opened() as queue:
        drone = await queue.builder("drone-1")
        first, second = "virtual/x-1", "virtual/x-2"
        for name in (first, second):
            await queue.add(name)
            assert await queue.take(drone) == [name]
            await queue.do(StartBuild(drone, name))
            queue.clock[0] += 90_000
            if name == first:
                await queue.say(drone, Outcome.BUILT, name)
        assert (await queue.told(first)).summary == "built by drone-1"
        assert (await queue.told(second)).summary == (
            "built by drone-1 for 90 s; such builds take about 90 s"
        )
        job_id = await queue.add(HELLO)
        await jobs.cancel(queue.cluster, ME, job_id)
        assert (await queue.told()).summary == "cancelled"


async def test_the_queue_or_a_builder_is_paused_or_kept_from_work(opened: Opened) -> None:
    async with opened() as queue:
        paused, grounded, full = [await queue.builder(f"d{n}") for n in range(3)]
        await queue.do(NoteBuilder(paused, paused=True))
        for n in range(FAILURES_IN_A_ROW_MAX):
            await queue.add(f"a/p{n}-1")
            await queue.fail(grounded, f"a/p{n}-1", "broke")
            await queue.do(ControlBuilds(Control.BLOCK, 1, f"a/p{n}-1"))
        await queue.add(HELLO)
        for _ in range(UPLOADS_FAILED_MAX):
            assert await queue.take(full) == [HELLO]
            await queue.say(full, Outcome.NOT_UPLOADED, HELLO)
        queue.clock[0] += 60_000
        said = await queue.reasons()
        assert said == {
            "d0": ("it is paused",),
            "d1": (
                "it is grounded for another 4 min: builds failed there one after the other",
            ),
            "d2": ("it gets no work for another 29 min: its uploads failed",),
        }  # fmt: skip
        assert (await queue.told()).summary.startswith("no builder can take it at present")
        await queue.do(ControlBuilds(Control.PAUSE, 1))
        told = await queue.told()
        assert told.waits_for == ("the queue of packages to be resumed: it is paused",)
        assert told.summary == f"waits for {told.waits_for[0]}"


async def test_who_failed_it_gets_it_no_more_and_two_of_them_block_it(opened: Opened) -> None:
    async with opened() as queue:
        first, second, _ = [await queue.builder(f"drone-{n}") for n in (1, 2, 3)]
        await queue.add(HELLO)
        await queue.fail(first, HELLO, "no room\n  left")
        said = await queue.told()
        assert said.summary.startswith("goes to whoever comes for work first: drone-2, drone-3;")
        assert said.nodes[0].reasons == ("it failed it: no room left",)
        await queue.fail(second, HELLO, "x" * 500)
        queue.clock[0] += 10 * 60_000
        (waits,) = (await queue.told()).waits_for
        assert waits.startswith("the end of its block in 20 min, after drone-1, drone-2 failed it")
        assert "(the last error: xxx" in waits
        assert waits.endswith("no sweeper is there to try it before")
        assert len(waits) < 400
        reasons = await queue.reasons()
        assert reasons["drone-1"] == (
            "only sweepers get what is blocked", "it failed it: no room left",
        )  # fmt: skip
        assert reasons["drone-3"] == ("only sweepers get what is blocked",)
        await queue.builder("sweeper-1")
        said = await queue.told()
        assert said.waits_for[0].endswith("or for a sweeper's turn: sweeper-1")
        assert (await queue.reasons())["sweeper-1"] == ()
        queue.clock[0] += BLOCKED_MS
        assert "in 0 s" in (await queue.told()).waits_for[0]


async def test_what_an_operator_blocked_or_nobody_may_build_says_so(opened: Opened) -> None:
    async with opened() as queue:
        drone = await queue.builder("drone-1")
        await queue.add(HELLO)
        await queue.do(ControlBuilds(Control.BLOCK, 1, HELLO))
        assert (await queue.told()).waits_for == (
            "the end of its block in 30 min; no sweeper is there to try it before",
        )
        await queue.add(LIB)
        assert await queue.take(drone) == [LIB]
        await queue.say(drone, Outcome.MASKED, LIB, "masked by keyword")
        said = await queue.told(LIB)
        assert said.waits_for == (
            "somebody to say that it is to be tried again (retry_failures): masked by keyword",
        )
        assert said.nodes[0].reasons == ("nobody gets what is put aside",)


async def test_what_waits_for_others_names_them_and_how_they_stand(opened: Opened) -> None:
    async with opened() as queue:
        drone = await queue.builder("drone-1")
        lib = await queue.add(LIB)
        await queue.add(HELLO, depends_on=(lib,))
        await queue.add("a/last-1", depends_on=(JobId("job-hello-1.0"),))
        said = await queue.told()
        assert said.waits_for == (f"{LIB} (job {lib}), which is needed",)
        assert "hello-1.0), which is waiting for others" in (await queue.told("a/last-1")).summary
        await queue.take(drone)
        assert (await queue.told()).waits_for[0].endswith("which is with a builder")
        await queue.say(drone, Outcome.FAILED, LIB, "e")
        assert (await queue.told(LIB)).summary.startswith("waits for the end of its block")
        assert "nothing has to be built before it" in (await queue.told()).waits_for[0]
        await queue.do(SettleDependents(10, queue.term))
        assert (await queue.told()).summary == (
            "goes to whoever comes for work first: drone-1; it is next"
        )


async def test_whose_tree_is_older_is_to_bring_it_up_to_date(opened: Opened) -> None:
    async with opened() as queue:
        drone = await queue.builder("drone-1", "2026-02-11T00:00:00+00:00")
        await queue.add(HELLO, labels={TREE: "2026-02-12T00:00:00+00:00"})
        (reason,) = (await queue.reasons())["drone-1"]
        assert reason.startswith("its Portage tree is older than the package's, of 2026-02-12")
        await queue.do(PutBuilder(drone, tree_at="2026-02-12T00:00:00+00:00"))
        assert (await queue.reasons())["drone-1"] == ()
