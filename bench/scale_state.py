"""What the leader does at a size: placement, what it looks at for it, a long queue, many guests."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
import time
from pathlib import Path
from statistics import median

import trio

from bench import million
from bench.remote import Meter, live, renew, replica
from bench.scale_gossip import Row, timed
from swarmd.cluster.remote import Remote
from swarmd.control.placement import plan
from swarmd.domain.actors import Actor
from swarmd.domain.jobs import Constraint, Fetch, JobId, JobKind, JobSpec, NodeId, Resources
from swarmd.domain.nodes import AdminState, Capacity, Node, Usage
from swarmd.state.commands import AssignJobs, Assignment, Entry, NewJob, PutNode, SubmitJobs
from swarmd.state.machine import Machine
from swarmd.state.queries import QUERIES, PlacementView, ReadyJob, ViewPlacement
from swarmd.state.rows import Shape
from swarmd.state.schema import migrate
from tests.unit.test_control_placement import plan_slowly

SHAPES = 20
SLOTS = 4
JOBS = 10_000
ROUND = 200
RACKS = 40
GIB = 2**30


def node(number: int, rng: random.Random) -> Node:
    """No two hosts have quite the same memory; a tenth have GPUs, a few are paused."""
    gpus = ("gpu0", "gpu1") if number % 10 == 0 else ()
    memory_bytes = rng.choice([32, 64, 128]) * GIB - rng.randrange(GIB)
    return Node(
        NodeId(f"00000000-0000-4000-8000-{number:012}"),
        f"host{number:05}",
        mesh=(f"10.0.{number >> 8}.{number & 255}:8473",),
        capacity=Capacity(SLOTS, float(rng.choice([8, 16, 32])), memory_bytes, gpus),
        labels={"rack": f"r{number % RACKS}", "disk": rng.choice(["ssd", "hdd"]), "zone": "a"},
        admin=AdminState.PAUSED if number % 50 == 49 else AdminState.ACTIVE,
        arch="aarch64" if number % 4 == 3 else "x86_64",
        os="linux",
        machine_version=9,
    )


def shapes() -> dict[int, Shape]:
    """As many as there may be: plain ones, with needs, with one or two constraints, with GPUs."""
    wanted = [
        *((Resources(), ()) for _ in range(1)),
        *((Resources(cpus=c), ()) for c in (0.5, 1.0, 2.0)),
        *((Resources(cpus=1.0, memory_bytes=m * GIB), ()) for m in (1, 4, 16)),
        *((Resources(), (f"node.labels.disk=={d}",)) for d in ("ssd", "hdd")),
        *((Resources(cpus=1.0), (f"node.labels.rack!=r{n}",)) for n in range(3)),
        *((Resources(memory_bytes=GIB), (f"node.labels.rack==r{n}",)) for n in range(3)),
        (Resources(), ("node.arch==x86_64", "node.labels.disk==ssd")),
        (Resources(cpus=2.0), ("node.arch==aarch64",)),
        (Resources(), ("node.name==host00007",)),
        (Resources(gpus=1), ()),
        (Resources(gpus=1, memory_bytes=4 * GIB), ("node.labels.zone==a",)),
    ]
    assert len(wanted) == SHAPES
    return {
        number: Shape(JobKind.BINARY, need, tuple(map(Constraint.parse, texts)))
        for number, (need, texts) in enumerate(wanted)
    }


def view(nodes: int, jobs: int, *, idle: bool = True) -> PlacementView:
    """Jobs of all shapes in turns. Where nobody is idle, but for one node in a hundred."""
    rng = random.Random(7)
    known = tuple(node(n, rng) for n in range(nodes))
    used = {
        n.id: Usage() if idle or number % 100 == 0 else Usage(SLOTS, 2.0, GIB)
        for number, n in enumerate(known)
    }
    heads = tuple(ReadyJob(JobId(f"job-{j:020}"), j, 50, j % SHAPES) for j in range(jobs))
    return PlacementView(known, used, shapes(), heads, {}, 0)  # type: ignore[arg-type]


def placing(nodes: int) -> Row:
    """A second, of the pure plan: one of 10,000 jobs, plans of 200 as the scheduler makes them
    where all are idle and where few are, and the plan that looks at each node for each job."""
    many, few = view(nodes, JOBS), view(nodes, ROUND)
    busy = view(nodes, ROUND, idle=False)
    row: Row = {"nodes": nodes}
    for name, found, rounds in (("at_once", many, 3), ("round", few, 20), ("busy", busy, 20)):
        took = []
        for _ in range(rounds):
            began = time.process_time()
            placed = len(plan(found, {}))
            took.append(time.process_time() - began)
        row |= {f"{name}_placed": placed, f"{name}_ms": median(took) * 1000,
                f"{name}_a_second": placed / median(took)}  # fmt: skip
    if nodes <= 1000:
        with timed() as took_s:
            placed = len(plan_slowly(few, {}))
        row["slow_a_second"] = placed / took_s()
    return row


def looking(nodes: int) -> Row:
    """The state's answer to ViewPlacement, which each round of placement begins with."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        conn = sqlite3.connect(Path(folder) / "state.db", isolation_level=None)
        conn.execute("PRAGMA journal_mode = WAL")
        conn.execute("PRAGMA synchronous = OFF")
        migrate(conn)
        _fill(Machine(conn), nodes)
        took = []
        for _ in range(5):
            began = time.process_time()
            found = QUERIES[ViewPlacement](conn, ViewPlacement(0, ROUND))
            took.append(time.process_time() - began)
        conn.close()
    return {"nodes": nodes, "held": len(found.holders), "heads": len(found.heads),
            "view_ms": median(took) * 1000}  # fmt: skip


def _fill(machine: Machine, nodes: int) -> None:
    """Each node holds two jobs, and one job waits."""
    rng, actor, index, at = random.Random(7), Actor("bench", "bench"), 0, 1_700_000_000_000
    spec = JobSpec("bench", Fetch("https://example.org/binary", "0" * 64))

    def apply(*commands: object) -> None:
        nonlocal index
        entries = []
        for command in commands:
            index += 1
            entries.append(Entry(index, 1, at + index, actor, command))  # type: ignore[arg-type]
        machine.apply(entries)

    known = [node(n, rng) for n in range(nodes)]
    for start in range(0, nodes, 100):
        some = known[start : start + 100]
        jobs = [JobId(f"job-{start * 2 + n:020}") for n in range(2 * len(some))]
        apply(*(PutNode(each) for each in some))
        apply(SubmitJobs(tuple(NewJob(job, spec) for job in jobs[:100])))
        if jobs[100:]:
            apply(SubmitJobs(tuple(NewJob(job, spec) for job in jobs[100:])))
        apply(AssignJobs(tuple(
            Assignment(job, some[n // 2].id) for n, job in enumerate(jobs)
        ), 1))  # fmt: skip
    apply(SubmitJobs((NewJob(JobId("job-waiting"), spec),)))


def queued(jobs: int) -> Row:
    """A queue so long: what it takes of memory and disk, and how soon a daemon is up with it."""
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        data_dir = folder / "data"
        data_dir.mkdir(mode=0o700)
        with timed(time.perf_counter) as filling:
            million.fill(data_dir / "state.db", jobs)
        daemon, _ = million.started(folder, data_dir)
        try:
            client = million.Client(daemon)
            for query in ("", "?status=pending&limit=1000", f"?offset={jobs // 2}"):
                client("GET", f"/jobs{query}")
            status = Path(f"/proc/{daemon.process.pid}/status").read_text()
            rss_kib = int(status.split("VmRSS:")[1].split()[0])
            assert daemon.stop() == 0
            daemon, stopped_s = million.started(folder, data_dir)
            daemon.kill()
            daemon, killed_s = million.started(folder, data_dir)
        finally:
            daemon.end()
        size_bytes = (data_dir / "state.db").stat().st_size
    return {"jobs": jobs, "rss_bytes": rss_kib * 1024, "state_bytes": size_bytes,
            "restart_s": stopped_s, "restart_killed_s": killed_s, "fill_s": filling()}  # fmt: skip


def guests(count: int, idle_s: float = 15.0) -> Row:
    """What so many nodes without a replica cost the one replica there is, which also leads: while
    they only keep their sessions, and when each renews its lease every second too."""
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
        return trio.run(_guests, count, idle_s, Path(name))


async def _guests(count: int, idle_s: float, folder: Path) -> Row:
    with replica(folder / "replica") as told:
        meter = Meter(told["pid"])

        async def share() -> float:
            before, at = meter.cpu_s(), time.perf_counter()
            await trio.sleep(idle_s)
            return (meter.cpu_s() - before) / (time.perf_counter() - at)

        await trio.sleep(3)
        row: Row = {"remotes": count, "alone_cpu": await share()}
        rss_mib = meter.rss_mib()
        async with trio.open_nursery() as nursery:
            with timed(time.perf_counter) as attaching:
                remotes: list[Remote] = []
                for n in range(count):
                    where = {"replica": told["mesh"]}
                    remotes.append(await nursery.start(live, f"r{n}", folder, where))
                with trio.fail_after(300):
                    for remote in remotes:
                        await remote.introduced.wait()
            row["attaching_s"] = attaching()
            await trio.sleep(3)
            row["sessions_cpu"] = await share()
            for remote in remotes:
                nursery.start_soon(renew, remote)
            await trio.sleep(3)
            row["leases_cpu"] = await share()
            row["memory_bytes_each"] = (meter.rss_mib() - rss_mib) * 2**20 / count
            nursery.cancel_scope.cancel()
    row["session_ms_s"] = (row["sessions_cpu"] - row["alone_cpu"]) / count * 1000
    row["lease_ms_s"] = (row["leases_cpu"] - row["sessions_cpu"]) / count * 1000
    row["load_1m"] = os.getloadavg()[0]
    return row
