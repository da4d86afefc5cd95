"""The agent's attempts on a real runner: what must hold in whatever order words arrive."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import msgspec
import pytest
import trio

from swarmd.agent.attempts import Attempts, AttemptsSettings, open_attempts
from swarmd.agent.binaries import Binaries
from swarmd.agent.blobs import BlobStore
from swarmd.agent.launch import Account
from swarmd.cluster.asks import Lease, RenewLease
from swarmd.control.leases import Leases
from swarmd.control.scheduler import schedule
from swarmd.domain.actors import SYSTEM
from swarmd.domain.jobs import Installed, JobSpec, NodeId
from swarmd.domain.nodes import Capacity, Node
from swarmd.drivers.frames import AttemptOrder, Refusal
from swarmd.drivers.process import RunnerSettings, open_runner
from swarmd.ops import jobs
from swarmd.state.commands import PutNode
from tests.cluster import open_alone
from tests.drivers.runners import data_directory

SETTINGS = AttemptsSettings(
    slots=2, account=Account("own"), grace_s=0.1, log_bytes_max=1 << 20,
    logs_total_bytes_max=1 << 30,
)  # fmt: skip


async def test_a_stop_that_comes_before_its_order_is_not_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids, clock = itertools.count(1), itertools.count(1_000_000)
    node = Node(NodeId("n1"), "one", capabilities=("binary",), capacity=Capacity(2, 2.0, 1000))
    with trio.fail_after(30), data_directory() as folder:
        (folder / "attempts").mkdir()
        async with (
            open_alone(folder, node, now_ms=lambda: next(clock),
                       new_id=lambda: f"id-{next(ids)}") as cluster,
            open_runner(folder, RunnerSettings(slots=2, idle_s=1)) as runner,
        ):  # fmt: skip
            ordering, stopped = trio.Event(), trio.Event()
            start, stop = runner.start, runner.stop

            async def start_late(orders: Sequence[AttemptOrder]) -> list[Refusal]:
                ordering.set()
                await stopped.wait()
                return await start(orders)

            async def stop_first(ids: Sequence[int] | None, grace_s: float | None) -> list[int]:
                unknown = await stop(ids, grace_s)
                stopped.set()
                return unknown

            monkeypatch.setattr(runner, "start", start_late)
            monkeypatch.setattr(runner, "stop", stop_first)
            store = BlobStore(folder / "blobs", bytes_max=1 << 20)
            binaries = Binaries(folder / "binaries", store, bytes_max=1 << 20)
            await cluster.propose(PutNode(node), SYSTEM)
            leases = Leases(cluster, cluster.leadership().term)
            cluster.answers(RenewLease, leases.renew)
            attempts = Attempts(cluster, runner, binaries, folder / "attempts", SETTINGS, False)
            async with open_attempts(attempts), trio.open_nursery() as nursery:
                nursery.start_soon(schedule, cluster, cluster.leadership().term, leases)
                spec = JobSpec("t", Installed("sleep"), arguments=("60",))
                job = await jobs.submit(cluster, SYSTEM, spec)
                await ordering.wait()
                await jobs.cancel(cluster, SYSTEM, job.id)
                await stopped.wait()
                while attempts.busy or await runner.list():
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()


async def test_an_order_carries_the_lease_that_the_node_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not one of its own: on its way to the runner time passes, and more so in front of it."""
    node = Node(NodeId("n1"), "one", capabilities=("binary",), capacity=Capacity(2, 2.0, 1000))
    ids, clock = itertools.count(1), itertools.count(1_000_000)
    with trio.fail_after(30), data_directory() as folder:
        (folder / "attempts").mkdir()
        async with (
            open_alone(folder, node, now_ms=lambda: next(clock),
                       new_id=lambda: f"id-{next(ids)}") as cluster,
            open_runner(folder, RunnerSettings(slots=2, idle_s=1)) as runner,
        ):  # fmt: skip
            seen: list[AttemptOrder] = []
            start = runner.start

            async def note(orders: Sequence[AttemptOrder]) -> list[Refusal]:
                seen.extend(orders)
                return await start(orders)

            monkeypatch.setattr(runner, "start", note)
            binaries = Binaries(
                folder / "binaries", BlobStore(folder / "blobs", bytes_max=1 << 20), bytes_max=1
            )
            await cluster.propose(PutNode(node), SYSTEM)
            leases = Leases(cluster, cluster.leadership().term)
            asked: list[int] = []

            async def renew(ask: RenewLease) -> Lease:
                asked.append(runner.boottime_ns())
                return msgspec.structs.replace(await leases.renew(ask), alone=False)

            cluster.answers(RenewLease, renew)
            attempts = Attempts(cluster, runner, binaries, folder / "attempts", SETTINGS, False)
            async with open_attempts(attempts), trio.open_nursery() as nursery:
                nursery.start_soon(schedule, cluster, cluster.leadership().term, leases)
                for more in (None, 20.0):
                    spec = JobSpec("t", Installed("true"), disconnect_s=more)
                    await jobs.submit(cluster, SYSTEM, spec)
                while len(seen) < 2 or attempts.busy:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
        by_length = {order.lease_ms: order for order in seen}
        assert by_length.keys() == {3000, 23_000}
        for order in seen:
            # Counted from when it was asked for, which was before the leader heard of it.
            assert order.lease_from_ns is not None
            assert any(0 <= at - order.lease_from_ns < 1e9 for at in asked)
