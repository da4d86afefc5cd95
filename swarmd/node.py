"""A node, composed: every part of it, nested. Nesting is the order in which they stop."""

from __future__ import annotations

import logging
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from secrets import token_urlsafe
from typing import Any

import trio

from api.buildswarm import admin as buildadmin
from api.buildswarm import app as buildswarm
from api.buildswarm.payload_routes import Admin
from api.buildswarm.routes import Swarm
from api.common.limits import HttpLimits
from api.common.serve import open_surfaces
from api.common.surface import Access, Surface
from api.console import app as console
from api.console.routes import Console
from api.jobqueue import app as jobqueue
from mesh.identity.files import Identity
from swarmd import __version__, logs
from swarmd.agent.attempts import Attempts, AttemptsSettings, open_attempts
from swarmd.agent.binaries import Binaries
from swarmd.agent.blobs import BlobStore
from swarmd.agent.healing import answer_care
from swarmd.agent.keeping import drop_unneeded
from swarmd.agent.launch import find_account, reachable
from swarmd.agent.leftovers import clear_leftovers
from swarmd.agent.logs import AttemptLogs
from swarmd.agent.rejoining import put_away
from swarmd.agent.sharing import NodeBlobs
from swarmd.belonging import open_cluster, resume
from swarmd.building import Building, building, tree_settings
from swarmd.cluster.asks import EndWork, ReadLog
from swarmd.cluster.handle import Hosted, local_reads
from swarmd.cluster.patience import patiently
from swarmd.cluster.replica import Replica
from swarmd.config import Config, SurfaceSection
from swarmd.config_sources import report
from swarmd.control.leadership import lead_when_elected
from swarmd.control.members import VoterSettings
from swarmd.control.reaching import CareSettings, Ways
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.errors import SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Capacity, Node
from swarmd.domain.payloads import PayloadSort
from swarmd.drivers.gpu import list_gpus
from swarmd.drivers.http import HttpSettings
from swarmd.drivers.process import RunnerClient, RunnerSettings, open_runner
from swarmd.drivers.ssh_targets import SshTarget
from swarmd.ops import swarm
from swarmd.ops.drone_tokens import DroneTokens
from swarmd.ops.payloads import PayloadFile
from swarmd.ops.ping import answer_pings
from swarmd.ops.raft import Copies
from swarmd.ops.reach import Hosts, Reach, open_reach
from swarmd.ops.rollout import Deploying, Rollouts, open_rollouts
from swarmd.ops.signing import answer_signing
from swarmd.ops.terminals import Terminals, TerminalSettings, open_terminals
from swarmd.ops.trees import Trees, open_trees
from swarmd.paths import claimed
from swarmd.state.build_queries import BuilderView
from swarmd.state.care_queries import Cared
from swarmd.state.commands import VERSION
from swarmd.state.queries import ListDuties

log = logging.getLogger(__name__)

END_JOBS_S_MAX = 60.0
AGAIN_S = 0.5


class RunningNode:
    """What the outside may ask of a node that runs."""

    def __init__(self) -> None:
        self.urls: dict[str, tuple[str, ...]] = {}
        self.ready = trio.Event()
        """The swarm knows this node, and it knows who leads."""
        self.stopping = trio.Event()
        self.end_jobs = False
        self.left = False
        """By its own will; its files are put away."""
        self.removed = trio.Event()
        """The swarm takes no word of this node any more."""
        self.admin_key: str | None = None

    def port(self, surface: str, configured: int) -> int:
        """Where a surface is served: the one that was found for it, where 0 is configured."""
        bound = (url for url in self.urls.get(surface, ()) if url.startswith("http:"))
        return next((int(url.rpartition(":")[2]) for url in bound), configured)

    def stop(self, end_jobs: bool) -> None:
        self.end_jobs |= end_jobs
        self.stopping.set()

    def leave(self) -> None:
        self.left = True
        self.stop(True)


@asynccontextmanager
async def open_node(config: Config) -> AsyncIterator[RunningNode]:
    """A node that serves, from the first line of the body to its end."""
    data_dir = config.node.data_dir
    with claimed(data_dir):
        running = RunningNode()
        earlier = resume(data_dir)
        if not any((data_dir / name).exists() for name in ("state.db", "raft.db")):
            await clear_leftovers(data_dir)
        async with (
            open_cluster(config, data_dir, earlier, partial(_describe, config)) as cluster,
            _reaching(config, cluster) as (reach, ways),
            _leading(config, cluster, ways),
        ):
            store = BlobStore(data_dir / "blobs", bytes_max=config.jobs.blobs_total_bytes_max)
            answer_pings(cluster)
            answer_care(cluster, config.care.own_service, config.care.paths)
            answer_signing(cluster)
            cluster.blobs = NodeBlobs(cluster, store, config.jobs.blob_bytes_max)
            builds = building(config.builder, config.jobs, cluster, data_dir)
            async with (
                _open_agent(config, cluster, store, data_dir, running, builds),
                open_trees(cluster, tree_settings(config.portage, config.builder)) as trees,
                _deploying(config, cluster, reach, running.stopping) as rollouts,
                _terminals(config, cluster, reach, data_dir, running) as terminals,
            ):
                drone_tokens = DroneTokens(cluster)
                surfaces = _surfaces(
                    config, cluster, running, data_dir, rollouts, terminals, trees, builds,
                    drone_tokens,
                )  # fmt: skip
                async with open_surfaces(
                    surfaces, _limits(config), admin_key=lambda: running.admin_key, wall=time.time
                ) as bound:
                    running.urls = dict(bound.urls)
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_become_ready, config, cluster, running)
                        nursery.start_soon(_notice_removal, cluster, running)
                        nursery.start_soon(drone_tokens.follow)
                        yield running
                        nursery.cancel_scope.cancel()
        if running.left:
            put_away(data_dir)
        elif running.removed.is_set():
            raise _was_removed(data_dir)


@asynccontextmanager
async def _reaching(config: Config, cluster: Hosted) -> AsyncIterator[tuple[Reach, Ways]]:
    """How this node reaches builders, and heals them while it leads."""
    ssh = config.ssh
    hosts = Hosts(
        ssh.key_file, ssh.user, ssh.port, ssh.known_hosts, ssh.pin_first, ssh.keepalive_s, ssh.hosts
    )
    care = CareSettings(**{f.name: getattr(config.care, f.name) for f in fields(config.care)})
    async with open_reach(cluster, hosts) as reach:

        async def target(cared: Cared) -> SshTarget:
            return await reach.target(BuilderView(cared.builder, cared.node, (), (), False))

        yield reach, Ways(cluster, care, reach.ssh, target)


@asynccontextmanager
async def _leading(config: Config, cluster: Hosted, ways: Ways) -> AsyncIterator[None]:
    """What this node does while it leads."""
    voters = config.mesh.voters
    upkeep = UpkeepSettings(config.jobs.keep_s, config.store.events_keep)
    settings = VoterSettings(voters, max(voters, VoterSettings.voters_many))
    async with trio.open_nursery() as nursery:
        if isinstance(cluster, Replica):
            nursery.start_soon(lead_when_elected, cluster, upkeep, settings, ways)
        yield
        nursery.cancel_scope.cancel()


def _was_removed(data_dir: Path) -> Unavailable:
    return Unavailable(
        f"this node was removed from its swarm, and what ran here runs elsewhere. Move the data"
        f" directory {data_dir} away; then it can join again as a new node, with a token"
        " (`swarmd token` on a member)"
    )


async def _notice_removal(cluster: Hosted, running: RunningNode) -> None:
    await cluster.removed.wait()
    running.removed.set()
    if not running.left:
        log.error("this node was removed from its swarm")
        running.stop(True)


async def _become_ready(config: Config, cluster: Hosted, running: RunningNode) -> None:
    """The admin key is the configuration's, or the swarm's own, which the first node makes."""
    running.admin_key = config.security.admin_key
    with local_reads():
        if running.admin_key is None:
            running.admin_key = await patiently(lambda: swarm.known_admin_key(cluster))
    await cluster.introduced.wait()
    while running.admin_key is None:
        try:
            running.admin_key = await swarm.admin_key(cluster, token_urlsafe(32))
        except SwarmError as refusal:
            log.debug("no admin key yet", extra={"reason": refusal.message})
            await trio.sleep(AGAIN_S)
    running.ready.set()


async def _describe(
    config: Config, node_id: NodeId, mesh: tuple[str, ...], identity: Identity
) -> Node:
    """This node: who it is, and what it offers."""
    jobs = config.jobs
    gpus = jobs.gpus
    if gpus is None:
        gpus = len(await trio.to_thread.run_sync(list_gpus)) if jobs.executor else 0
    cpus = jobs.cpus or float(len(os.sched_getaffinity(0)))
    memory_bytes = jobs.memory_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    slots = jobs.slots or max(1, int(cpus))
    capacity = Capacity(slots, cpus, memory_bytes, tuple(f"gpu{i}" for i in range(gpus)))
    if not jobs.executor:
        # One that only builds runs no jobs, and is as large as it is.
        capacity = Capacity(0, cpus, memory_bytes) if config.builder.command else Capacity()
    return Node(
        id=node_id,
        name=config.node.name,
        addresses=(config.node.advertise or config.node.bind[0],),
        mesh=mesh,
        capabilities=("binary",) if jobs.executor else (),
        capacity=capacity,
        labels=dict(config.node.labels),
        arch=platform.machine(),
        os=sys.platform,
        version=__version__,
        machine_version=VERSION,
        public_key=identity.public_key,
        box_key=identity.box_key,
    )


@asynccontextmanager
async def _open_agent(
    config: Config, cluster: Hosted, store: BlobStore, data_dir: Path, running: RunningNode,
    builds: Building | None,
) -> AsyncIterator[None]:  # fmt: skip
    """Jobs, builds and blobs of this node. Without any to run or held, no runner is started."""
    attempts_dir = data_dir / "attempts"
    attempts_dir.mkdir(exist_ok=True)
    attempts_dir.chmod(0o711)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drop_unneeded, cluster, store)
        # What this node does follows from its own replica, leader or not.
        with local_reads():
            asked = ListDuties(cluster.node.id)
            with trio.CancelScope() as asking:
                # One without a replica that was removed meanwhile is answered by nobody, ever.
                nursery.start_soon(_when, cluster.removed, asking.cancel)
                duties = await patiently(lambda: cluster.read(asked))
            if asking.cancelled_caught:
                raise _was_removed(data_dir)
        if config.jobs.executor or builds or duties:
            # A node that gives up running jobs still lets those it holds come to their end.
            slots = cluster.node.capacity.slots or len(duties) or 1
            settings = RunnerSettings(slots=slots, unit=config.jobs.runner_unit)
            async with (
                open_runner(data_dir, settings) as runner,
                _open_attempts(config, cluster, runner, store, data_dir, builds) as attempts,
            ):
                if builds is not None:
                    nursery.start_soon(builds.live, attempts)
                try:
                    yield
                finally:
                    if running.end_jobs:
                        with trio.move_on_after(END_JOBS_S_MAX, shield=True):
                            # Of a node that is out nobody hears: what ran here is others' already.
                            if not running.removed.is_set():
                                await attempts.drain()
                            await runner.quit(jobs=True)
        else:
            logs = AttemptLogs(attempts_dir, lambda attempt_id: False)
            cluster.answers(ReadLog, logs.read)
            cluster.answers(EndWork, _nothing_to_end)
            yield
        nursery.cancel_scope.cancel()


async def _nothing_to_end(ask: EndWork) -> None:
    pass


async def _when(event: trio.Event, act: Callable[[], None]) -> None:
    await event.wait()
    act()


@asynccontextmanager
async def _open_attempts(
    config: Config, cluster: Hosted, runner: RunnerClient, store: BlobStore, data_dir: Path,
    builds: Building | None,
) -> AsyncIterator[Attempts]:  # fmt: skip
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
    attempts = Attempts(
        cluster, runner, binaries, data_dir / "attempts", settings, not direct,
        builds=None if builds is None else builds.bench,
    )  # fmt: skip
    cluster.answers(ReadLog, attempts.logs.read)
    cluster.answers(EndWork, attempts.end_work)
    async with open_attempts(attempts):
        yield attempts


@asynccontextmanager
async def _deploying(
    config: Config, cluster: Hosted, reach: Reach, stopping: trio.Event
) -> AsyncIterator[Rollouts]:
    """What builders are given from here. With the first word of a stop it is left to others: who
    asked for it need not be waited for."""
    section = config.payloads
    files = {
        sort: PayloadFile(
            getattr(section, sort.value), int(getattr(section, f"{sort.value}_mode"), 8)
        )
        for sort in PayloadSort
    }
    on = Deploying(cluster, reach, files, section.service, section.heartbeat_s)
    async with (
        open_rollouts(on, takes_up=isinstance(cluster, Replica)) as rollouts,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_when, stopping, rollouts.stop)
        yield rollouts
        nursery.cancel_scope.cancel()


def _terminals(
    config: Config, cluster: Hosted, reach: Reach, data_dir: Path, running: RunningNode
) -> AbstractAsyncContextManager[Terminals]:
    """Terminals on builders through this node."""
    section = config.terminals
    told = {f.name: getattr(section, f.name) for f in fields(section)}
    # A recording becomes a blob: one that is too large for that would be lost whole.
    told["recording_bytes_max"] = min(section.recording_bytes_max, config.jobs.blob_bytes_max)
    settings = TerminalSettings(**told)
    return open_terminals(cluster, reach, data_dir / "terminals", settings, running.stopping.is_set)


def _surfaces(
    config: Config, cluster: Hosted, running: RunningNode, data_dir: Path, rollouts: Rollouts,
    terminals: Terminals, trees: Trees, builds: Building | None, drone_tokens: DroneTokens,
) -> tuple[Surface, ...]:  # fmt: skip
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
    began = time.monotonic()
    address = cluster.node.addresses[0] if cluster.node.addresses else "127.0.0.1"
    section = config.surfaces.buildswarm
    if section.enabled:
        surfaces.append(buildswarm.surface(
            cluster, admin_key=lambda: running.admin_key, version=__version__,
            uptime_s=lambda: time.monotonic() - began, address=address,
            staging=data_dir / "staging", package_bytes_max=config.jobs.blob_bytes_max,
            trees=trees, drone_tokens=drone_tokens,
            bound_port=partial(running.port, "buildswarm", section.port),
            **placed("buildswarm", section),
        ))  # fmt: skip
    section = config.surfaces.buildadmin
    if section.enabled:
        where = placed("buildadmin", section)
        del where["access"]  # it takes the key always
        operators = Swarm(
            cluster, lambda: running.admin_key, __version__, lambda: time.monotonic() - began,
            address, partial(running.port, "buildswarm", config.surfaces.buildswarm.port),
        )  # fmt: skip
        admin = Admin(
            operators, rollouts, logs.tail, data_dir / "state.db", config.jobs.blob_bytes_max,
            partial(running.port, "buildadmin", section.port),
        )  # fmt: skip
        surfaces.append(buildadmin.surface(admin, terminals, **where))
    section = config.surfaces.console
    behind = Console(
        cluster,
        lambda: [{"setting": n, "value": v, "source": o} for n, v, o in report(config)],
        running.stop,
        lambda: running.admin_key,
        config.jobs.blob_bytes_max,
        Copies(cluster, data_dir / "copies"),
        data_dir,
        running.leave,
        running.removed,
        lambda: None if builds is None else builds.trouble,
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
