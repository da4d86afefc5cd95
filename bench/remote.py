"""What nodes without a replica cost the replica that serves them: idle, and for each job.

    python -m bench.remote [--remotes 200] [--idle-s 20] [--jobs 2000] [--kills 5]

One process holds the replica, and leads; another holds all the nodes, each with wires and a log of
its own. Idle, a node does what an agent without work does: it keeps its session, follows what it is
given, and renews its lease each second. A job is submitted through one of the nodes, placed by the
leader, taken up by the node it is given to, and reported as started and as ended in two writes.

Then, each time in a fresh swarm of three, the replica that serves a node is killed (kill -9) or
stopped (SIGSTOP) while the node reads and writes without pause: the longest that one of these took.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import trio

from bench import consensus_member
from bench.facts import machine, percentile, table
from mesh.transport import Me, TransportSettings, open_transport
from mesh.wal_sqlite import open_log
from swarmd.cluster.asks import RenewLease
from swarmd.cluster.feed import FellBehind, Wanted
from swarmd.cluster.handle import LEADER, local_reads
from swarmd.cluster.remote import Remote, RemoteSettings, open_remote
from swarmd.domain.actors import Actor
from swarmd.domain.errors import SwarmError
from swarmd.domain.events import AttemptStopped, JobAssigned
from swarmd.domain.jobs import AttemptId, AttemptStatus, Fetch, JobId, JobSpec, NodeId, Result
from swarmd.domain.nodes import Capacity, Node
from swarmd.state.commands import (
    AttemptReport,
    NewJob,
    PutSetting,
    ReportAttempts,
    SubmitJobs,
)
from swarmd.state.queries import CountJobs, GetSetting, ListDuties

CLIENT = Actor("client", "bench")
SPEC = JobSpec("bench", Fetch("blob:sha256:" + "0" * 64, "0" * 64))
FILES_MAX = 16 * 1024
TICKS = os.sysconf("SC_CLK_TCK")


class Meter:
    """CPU and memory of one process, from the outside."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")

    def cpu_s(self) -> float:
        fields = (self._proc / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        pages = int((self._proc / "statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@asynccontextmanager
async def remote_node(
    name: str, folder: Path, where: dict[str, str], slots: int
) -> AsyncIterator[Remote]:  # fmt: skip
    (folder / name).mkdir()
    rng = random.Random(name)
    async with (
        open_log(folder / name / "raft.db", create=True) as raft_log,
        open_transport(TransportSettings(), Me(name, raft_log.boot), rng=rng) as wires,
        open_remote(
            Node(
                NodeId(name), name, mesh=tuple(wires.addresses),
                capacity=Capacity(slots, 1.0, 2**30), machine_version=9,
            ),
            raft_log, wires, RemoteSettings(), rng=rng,
            replicas={NodeId(n): (address,) for n, address in where.items()},
            now_ms=lambda: time.time_ns() // 1_000_000,
            new_id=partial(next, (f"{name}-{n}" for n in count())),
        ) as remote,
    ):  # fmt: skip
        yield remote


async def live(
    name: str, folder: Path, where: dict[str, str], *, task_status: trio.TaskStatus[Remote]
) -> None:  # fmt: skip
    async with remote_node(name, folder, where, slots=2) as remote:
        task_status.started(remote)
        await trio.sleep_forever()


async def renew(remote: Remote) -> None:
    await trio.sleep(random.uniform(0, 1))
    while True:
        try:
            await remote.ask(LEADER, RenewLease(remote.node.id))
        except SwarmError:
            pass
        await trio.sleep(1)


async def work(remote: Remote, following: trio.Event) -> None:
    """As the agent does, with jobs that take no time."""
    me = remote.node.id
    actor = Actor(me, "agent")
    done: set[AttemptId] = set()

    async def take_up(only: tuple[AttemptId, ...] | None) -> None:
        with local_reads():
            duties = await remote.read(ListDuties(me, only))
        ids = [d.attempt.id for d in duties if d.attempt.id not in done]
        if ids:
            done.update(ids)
            started = tuple(AttemptReport(i, started_age_ms=0) for i in ids)
            await remote.propose(ReportAttempts(me, started), actor)
            ended = tuple(
                AttemptReport(
                    i, ended_age_ms=0, status=AttemptStatus.COMPLETED, result=Result(exit_code=0)
                )
                for i in ids
            )
            await remote.propose(ReportAttempts(me, ended), actor)

    while True:
        try:
            wants = Wanted.of(JobAssigned, AttemptStopped, about=me)
            async with remote.watch(wants=wants) as events:
                following.set()
                await take_up(None)
                async for event in events:
                    found = [event, *events.take_waiting()]
                    given = [e.body.attempt_id for e in found if isinstance(e.body, JobAssigned)]
                    await take_up(tuple(given))
        except FellBehind:
            continue


async def run_jobs(remotes: list[Remote], jobs: int, clients: int) -> dict[str, float]:
    """Submitted one by one by so many clients, each through another node; until all are done."""
    began = time.perf_counter()
    numbers = iter(range(jobs))
    took: list[float] = []

    async def submit(client: int) -> None:
        remote = remotes[client % len(remotes)]
        for number in numbers:
            at = time.perf_counter()
            job = NewJob(JobId(f"job-{number:020}"), SPEC)
            await remote.propose(SubmitJobs((job,)), CLIENT)
            took.append(time.perf_counter() - at)

    async with trio.open_nursery() as nursery:
        for client in range(clients):
            nursery.start_soon(submit, client)
    with trio.fail_after(120):
        while True:
            counts = await remotes[0].read(CountJobs(SPEC.kind))
            if sum(n for (status, _), n in counts.items() if status == "completed") >= jobs:
                break
            await trio.sleep(0.1)
    return {
        "wall_s": time.perf_counter() - began,
        "p50_ms": percentile(took, 0.5) * 1000,
        "p99_ms": percentile(took, 0.99) * 1000,
    }


@contextmanager
def replica(folder: Path, join: str = "") -> Iterator[dict[str, Any]]:
    """A process of its own, named as its folder is; what it tells of itself."""
    folder.mkdir()
    command = [sys.executable, "-m", "bench.remote", "--replica", str(folder), "--join", join]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdin is not None
        told = json.loads(process.stdout.readline())
        yield {**told, "ask": partial(_ask, process)}
    finally:
        process.kill()
        process.wait()


def _ask(process: subprocess.Popen[bytes], **order: Any) -> dict[str, Any]:
    assert process.stdout is not None and process.stdin is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


async def lose_replica(blow: signal.Signals, leads: bool, folder: Path) -> tuple[float, float]:
    """The longest read and the longest write, in seconds, of a node whose replica is lost."""
    with replica(folder / "a") as first, replica(folder / "b", first["mesh"]) as second:
        with replica(folder / "c", first["mesh"]) as third:
            told = {"a": first, "b": second, "c": third}
            with trio.fail_after(30):
                while first["ask"](do="standing")["voters"] < 3:
                    await trio.sleep(0.05)
            async with trio.open_nursery() as nursery:
                places = {n: t["mesh"] for n, t in told.items()}
                for number in count():
                    remote = await nursery.start(live, f"r{number}", folder, places)
                    await remote.introduced.wait()
                    if (remote.served_by == remote.leadership().leader) == leads:
                        break
                took = await _blow(remote, told[remote.served_by]["pid"], blow)
                nursery.cancel_scope.cancel()
    return took


async def _blow(remote: Remote, pid: int, blow: signal.Signals) -> tuple[float, float]:
    longest = {"read": 0.0, "write": 0.0}
    over = False

    async def read() -> None:
        while not over:
            began = time.perf_counter()
            await remote.read(GetSetting("k"))
            longest["read"] = max(longest["read"], time.perf_counter() - began)

    async def write() -> None:
        for number in count():
            if over:
                return
            began = time.perf_counter()
            await remote.propose(PutSetting("k", str(number).encode()), CLIENT)
            longest["write"] = max(longest["write"], time.perf_counter() - began)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        nursery.start_soon(write)
        await trio.sleep(1)
        os.kill(pid, blow)
        await trio.sleep(5)
        over = True
    return longest["read"], longest["write"]


async def measure(number: int, idle_s: float, jobs: int, folder: Path) -> None:
    with replica(folder / "replica") as told:
        meter = Meter(told["pid"])
        await trio.sleep(3)
        rows = []
        before, at = meter.cpu_s(), time.perf_counter()
        await trio.sleep(idle_s)
        alone = (meter.cpu_s() - before) / (time.perf_counter() - at) * 100
        rss = meter.rss_mib()
        rows.append(["alone, idle", f"{alone:.2f} %", f"{rss:.1f} MiB", "", ""])
        async with trio.open_nursery() as nursery:
            began = time.perf_counter()
            remotes: list[Remote] = []
            for n in range(number):
                where = {"replica": told["mesh"]}
                remotes.append(await nursery.start(live, f"r{n}", folder, where))
            with trio.fail_after(120):
                for remote in remotes:
                    await remote.introduced.wait()
            attached_s = time.perf_counter() - began
            for remote in remotes:
                following = trio.Event()
                nursery.start_soon(renew, remote)
                nursery.start_soon(work, remote, following)
                await following.wait()
            await trio.sleep(5)
            mine = Meter(os.getpid())
            before, here, at = meter.cpu_s(), mine.cpu_s(), time.perf_counter()
            await trio.sleep(idle_s)
            wall = time.perf_counter() - at
            idle = (meter.cpu_s() - before) / wall * 100
            each = (mine.cpu_s() - here) / wall * 100 / number
            grown = meter.rss_mib() - rss
            rows.append([
                f"{number} nodes, idle", f"{idle:.2f} %", f"+{grown:.1f} MiB",
                f"{(idle - alone) / number:.4f} %", f"{grown * 1024 / number:.0f} KiB",
            ])  # fmt: skip
            before = meter.cpu_s()
            ran = await run_jobs(remotes, jobs, 32)
            spent = meter.cpu_s() - before - idle / 100 * ran["wall_s"]
            rate = jobs / ran["wall_s"]
            rows.append([
                f"{jobs} jobs, {rate:.0f}/s", f"{spent / jobs * 1000:.2f} ms a job",
                f"{meter.rss_mib():.1f} MiB", "", "",
            ])  # fmt: skip
            nursery.cancel_scope.cancel()
        print(table(["replica", "CPU", "memory", "CPU a node", "memory a node"], rows))
        print(f"{number} nodes attached and made known in {attached_s:.1f} s;"
              f" a node itself, idle: {each:.3f} % of a core;"
              f" submit p50 {ran['p50_ms']:.1f} ms, p99 {ran['p99_ms']:.1f} ms")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--remotes", type=int, default=200)
    parser.add_argument("--idle-s", type=float, default=20)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--replica", default="", help=argparse.SUPPRESS)
    parser.add_argument("--join", default="", help=argparse.SUPPRESS)
    given = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, FILES_MAX), hard))
    if given.replica:
        folder = Path(given.replica)
        consensus_member.main(folder.name, folder, tuple(filter(None, [given.join])), None)
        return
    print(machine())
    if given.remotes:
        with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
            trio.run(measure, given.remotes, given.idle_s, given.jobs, Path(name))
    rows = []
    for blow in (signal.SIGKILL, signal.SIGSTOP):
        for leads in (False, True):
            took = []
            for _ in range(given.kills):
                with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
                    took.append(trio.run(lose_replica, blow, leads, Path(name)))
            for what, times in zip(("read", "write"), zip(*took, strict=True), strict=False):
                ms = sorted(each * 1000 for each in times)
                rows.append([
                    blow.name, "the leader" if leads else "a follower", what,
                    f"{percentile(ms, 0.5):.0f} ms", f"{ms[-1]:.0f} ms",
                ])  # fmt: skip
    print(table(["blow", "the replica was", "longest", "median", "worst"], rows))


if __name__ == "__main__":
    main()
