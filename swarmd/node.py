"""A node, composed: every part of it, nested. Nesting is the order in which they stop."""

from __future__ import annotations

import logging
import os
import platform
import random
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from ipaddress import ip_address
from pathlib import Path
from secrets import token_urlsafe
from typing import Any
from uuid import UUID, uuid4

import trio

from api.common.limits import HttpLimits
from api.common.serve import open_surfaces
from api.common.surface import Access, Surface
from api.console import app as console
from api.console.routes import Console
from api.jobqueue import app as jobqueue
from mesh.timing import LAN, Timing
from mesh.transport import Me, TransportSettings, open_transport
from mesh.wal import RaftLog
from mesh.wal_sqlite import open_log
from swarmd import __version__
from swarmd.agent import rejoining
from swarmd.agent.attempts import Attempts, AttemptsSettings, open_attempts
from swarmd.agent.binaries import Binaries
from swarmd.agent.blobs import BlobStore
from swarmd.agent.keeping import drop_unneeded
from swarmd.agent.launch import find_account, reachable
from swarmd.agent.leftovers import clear_leftovers
from swarmd.agent.logs import AttemptLogs
from swarmd.agent.rejoining import Rejoin
from swarmd.agent.sharing import NodeBlobs
from swarmd.cluster.asks import ReadLog
from swarmd.cluster.handle import local_reads
from swarmd.cluster.opening import OpeningSettings, open_replica
from swarmd.cluster.replica import NotNewest, Replica
from swarmd.config import Config, SurfaceSection
from swarmd.config_sources import report
from swarmd.control.leadership import lead_when_elected
from swarmd.control.members import VoterSettings
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.errors import SwarmError, Unavailable, leaves
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Capacity, Node
from swarmd.drivers.gpu import list_gpus
from swarmd.drivers.http import HttpSettings
from swarmd.drivers.process import RunnerClient, RunnerSettings, open_runner
from swarmd.ops import swarm
from swarmd.ops.raft import Copies
from swarmd.paths import claimed
from swarmd.state.commands import VERSION
from swarmd.state.queries import ListDuties
from swarmd.state.store import StoreSettings, open_store

log = logging.getLogger(__name__)

END_JOBS_S_MAX = 60.0
CLUSTER_FACT = "cluster"
AGAIN_S = 0.5


class BeginAnew(Unavailable):
    """This node's files are not to be gone on with; started again it joins as another."""


class RunningNode:
    """What the outside may ask of a node that runs."""

    def __init__(self) -> None:
        self.urls: dict[str, tuple[str, ...]] = {}
        self.ready = trio.Event()
        """The swarm knows this node, and it knows who leads."""
        self.stopping = trio.Event()
        self.end_jobs = False
        self.admin_key: str | None = None

    def stop(self, end_jobs: bool) -> None:
        self.end_jobs |= end_jobs
        self.stopping.set()


@asynccontextmanager
async def open_node(config: Config) -> AsyncIterator[RunningNode]:
    """A node that serves, from the first line of the body to its end."""
    data_dir = config.node.data_dir
    with claimed(data_dir):
        running = RunningNode()
        earlier = rejoining.resume(data_dir, _known_id(data_dir))
        if not any((data_dir / name).exists() for name in ("state.db", "raft.db")):
            await clear_leftovers(data_dir)
        async with (
            _beginning_anew(data_dir),
            _open_cluster(config, data_dir, earlier) as cluster,
        ):
            store = BlobStore(data_dir / "blobs", bytes_max=config.jobs.blobs_total_bytes_max)
            cluster.blobs = NodeBlobs(cluster, store, config.jobs.blob_bytes_max)
            async with _open_agent(config, cluster, store, data_dir, running):
                surfaces = _surfaces(config, cluster, running, data_dir)
                async with open_surfaces(
                    surfaces, _limits(config), admin_key=lambda: running.admin_key, wall=time.time
                ) as bound:
                    running.urls = dict(bound.urls)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_become_ready, config, cluster, running)
                        yield running
                        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _beginning_anew(data_dir: Path) -> AsyncIterator[None]:
    """Where this node must not go on as who it is, and others are there, note who it was: its next
    start is that of another node."""
    try:
        yield
    except* NotNewest as found:
        lost = next(leaves(found))
        assert isinstance(lost, NotNewest)
        node_id = _known_id(data_dir)
        if lost.seeds and node_id is not None:
            rejoining.begin(data_dir, node_id, lost.seeds)
            raise BeginAnew(lost.message) from None
        raise


@asynccontextmanager
async def _open_cluster(
    config: Config, data_dir: Path, earlier: Rejoin | None
) -> AsyncIterator[Replica]:
    """This node's replica, its log and its wires; and what it does while it leads."""
    mesh = config.mesh
    copies = data_dir / "copies"
    copies.mkdir(mode=0o700, exist_ok=True)
    node_id = _node_id(data_dir)
    rng = random.Random(os.urandom(16))
    settings = OpeningSettings(
        timing=LAN if mesh.timing == "lan" else Timing(),
        snapshot_bytes_per_s_max=mesh.snapshot_bytes_per_s_max,
        log_entries_kept=mesh.log_entries_keep,
    )
    upkeep = UpkeepSettings(config.jobs.keep_s, config.store.events_keep)
    voters = VoterSettings(mesh.voters, max(mesh.voters, VoterSettings.voters_many))
    async with (
        open_log(data_dir / "raft.db", create=True) as raft_log,
        open_store(data_dir / "state.db", StoreSettings()) as store,
        open_transport(
            TransportSettings(binds=_mesh_binds(config)),
            Me(node_id, raft_log.boot, (raft_log.fact(CLUSTER_FACT) or b"").decode()),
            rng=rng,
        ) as wires,
    ):
        node = await _describe(config, node_id, tuple(wires.addresses))
        async with (
            open_replica(
                node, raft_log, store, wires, copies, settings,
                join=(*(earlier.seeds if earlier is not None else ()), *mesh.join),
                replaces=earlier.replaces if earlier is not None else None,
                now_ms=_now_ms, new_id=_Ids(), rng=rng,
            ) as cluster,
            trio.open_nursery() as nursery,
        ):  # fmt: skip
            nursery.start_soon(lead_when_elected, cluster, upkeep, voters)
            nursery.start_soon(_note_swarm, cluster, raft_log, data_dir)
            yield cluster
            nursery.cancel_scope.cancel()


async def _note_swarm(cluster: Replica, raft_log: RaftLog, data_dir: Path) -> None:
    """Of which swarm this node is: from its next start on it talks to no other's nodes."""
    await cluster.introduced.wait()
    rejoining.done(data_dir)
    if raft_log.fact(CLUSTER_FACT) is None:
        await raft_log.set_fact(CLUSTER_FACT, cluster.cluster_id.encode()).wait()


def _mesh_binds(config: Config) -> tuple[str, ...]:
    """Only loopback: nobody proves yet who it is."""
    mesh = config.mesh
    found = [a for a in mesh.bind or config.node.bind if ip_address(a).is_loopback]
    if not found:
        log.warning("the mesh listens on loopback alone until nodes prove who they are")
        found = ["127.0.0.1"]
    return tuple(f"[{a}]:{mesh.port}" if ":" in a else f"{a}:{mesh.port}" for a in found)


async def _become_ready(config: Config, cluster: Replica, running: RunningNode) -> None:
    """The admin key is the configuration's, or the swarm's own, which the first node makes."""
    running.admin_key = config.security.admin_key
    with local_reads():
        running.admin_key = running.admin_key or await swarm.known_admin_key(cluster)
    await cluster.introduced.wait()
    while running.admin_key is None:
        try:
            running.admin_key = await swarm.admin_key(cluster, token_urlsafe(32))
        except SwarmError as refusal:
            log.debug("no admin key yet", extra={"reason": refusal.message})
            await trio.sleep(AGAIN_S)
    running.ready.set()


class _Ids:
    """Random ids, a hundred a call of the kernel: a call for each costs as much as an insert."""

    def __init__(self) -> None:
        self._pool = b""

    def __call__(self) -> str:
        if not self._pool:
            self._pool = os.urandom(16 * 100)
        taken, self._pool = self._pool[:16], self._pool[16:]
        return str(UUID(bytes=taken, version=4))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


async def _describe(config: Config, node_id: NodeId, mesh: tuple[str, ...]) -> Node:
    """This node: who it is, and what it offers."""
    jobs = config.jobs
    gpus = jobs.gpus
    if gpus is None:
        gpus = len(await trio.to_thread.run_sync(list_gpus)) if jobs.executor else 0
    cpus = jobs.cpus or float(len(os.sched_getaffinity(0)))
    memory_bytes = jobs.memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    slots = jobs.slots or max(1, int(cpus))
    capacity = Capacity(slots, cpus, memory_bytes, tuple(f"gpu{i}" for i in range(gpus)))
    return Node(
        id=node_id,
        name=config.node.name,
        addresses=(config.node.advertise or config.node.bind[0],),
        mesh=mesh,
        capabilities=("binary",) if jobs.executor else (),
        capacity=capacity if jobs.executor else Capacity(),
        labels=dict(config.node.labels),
        arch=platform.machine(),
        os=sys.platform,
        version=__version__,
        machine_version=VERSION,
    )


def _node_id(data_dir: Path) -> NodeId:
    """Made once; a data directory that was wiped is another node."""
    path = data_dir / "node-id"
    if not path.exists():
        fresh = path.with_suffix(".new")
        fresh.write_text(str(uuid4()))
        fresh.replace(path)
    return NodeId(path.read_text().strip())


def _known_id(data_dir: Path) -> NodeId | None:
    return _node_id(data_dir) if (data_dir / "node-id").exists() else None


@asynccontextmanager
async def _open_agent(
    config: Config, cluster: Replica, store: BlobStore, data_dir: Path, running: RunningNode
) -> AsyncIterator[None]:
    """Jobs and blobs of this node. Where it runs no jobs and holds none, no runner is started."""
    attempts_dir = data_dir / "attempts"
    attempts_dir.mkdir(exist_ok=True)
    attempts_dir.chmod(0o711)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop_unneeded, cluster, store)
        # What this node does follows from its own replica, leader or not.
        with local_reads():
            duties = await cluster.read(ListDuties(cluster.node.id))
        if config.jobs.executor or duties:
            # A node that gives up running jobs still lets those it holds come to their end.
            slots = cluster.node.capacity.slots or len(duties)
            async with (
                open_runner(data_dir, RunnerSettings(slots=slots)) as runner,
                _open_attempts(config, cluster, runner, store, data_dir) as attempts,
            ):
                try:
                    yield
                finally:
                    if running.end_jobs:
                        with trio.move_on_after(END_JOBS_S_MAX, shield=True):
                            await attempts.drain()
                            await runner.quit(jobs=True)
        else:
            logs = AttemptLogs(attempts_dir, lambda attempt_id: False)
            cluster.answers(ReadLog, logs.read)
            yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_attempts(
    config: Config, cluster: Replica, runner: RunnerClient, store: BlobStore, data_dir: Path
) -> AsyncIterator[Attempts]:
    jobs = config.jobs
    account = find_account(jobs.user)
    downloads = HttpSettings(
        **{f.name: getattr(config.downloads, f.name) for f in fields(config.downloads)}
    )
    binaries = Binaries(
        data_dir / "binaries", cluster.blobs, bytes_max=jobs.cache_bytes_max, http=downloads
    )
    direct = reachable(data_dir / "binaries", account)
    if not direct:
        log.warning(
            "the jobs' account cannot pass through the data directory; HOME will not be usable",
            extra={"account": account.name, "data_dir": str(data_dir)},
        )
    settings = AttemptsSettings(
        slots=cluster.node.capacity.slots,
        account=account,
        grace_s=jobs.grace_s,
        log_bytes_max=jobs.log_bytes_max,
        logs_total_bytes_max=jobs.logs_total_bytes_max,
    )
    attempts = Attempts(cluster, runner, binaries, data_dir / "attempts", settings, not direct)
    cluster.answers(ReadLog, attempts.logs.read)
    async with open_attempts(attempts):
        yield attempts


def _surfaces(
    config: Config, cluster: Replica, running: RunningNode, data_dir: Path
) -> tuple[Surface, ...]:
    advertised = config.node.advertise
    names = (advertised.rpartition(":")[0] or advertised,) if advertised else ()

    def placed(name: str, section: SurfaceSection) -> dict[str, Any]:
        if section.open:
            log.warning("a surface is open to whoever reaches it", extra={"surface": name})
        return {
            "binds": section.bind or config.node.bind,
            "port": section.port,
            "access": Access.OPEN if section.open else Access.LOOPBACK,
            "hosts": section.hosts + names,
            "origins": section.origins,
        }

    surfaces = []
    section = config.surfaces.jobqueue
    if section.enabled:
        surfaces.append(jobqueue.surface(cluster, **placed("jobqueue", section)))
    section = config.surfaces.console
    behind = Console(
        cluster,
        lambda: [{"setting": n, "value": v, "source": o} for n, v, o in report(config)],
        running.stop,
        lambda: running.admin_key,
        config.jobs.blob_bytes_max,
        Copies(cluster, data_dir / "copies"),
    )
    # Its port may be switched off; the socket stays, or the command line could not reach the node.
    where = placed("console", section)
    if not section.enabled:
        where["binds"] = ()
    socket = data_dir / "swarmd.sock"
    surfaces.append(console.surface(behind, unix_path=socket, **where))
    return tuple(surfaces)


def _limits(config: Config) -> HttpLimits:
    """The section has the names of the bounds; those it leaves out are not for operators."""
    return HttpLimits(**{f.name: getattr(config.http, f.name) for f in fields(config.http)})
