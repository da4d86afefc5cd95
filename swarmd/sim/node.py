"""A whole node of the bottle, composed as swarmd.belonging and swarmd.node compose one.

Real are the replica or the remote, trust with its certificates and seals, gossip, the control
loops, the agent, and the ops that clients call; so is the way a node begins anew under another id.
Not here are sockets, TLS handshakes, HTTP, threads, blobs, and recovery from a single copy.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

import trio

from mesh.identity.files import Identity, load_identity, save_identity
from mesh.identity.tokens import parse_token
from mesh.raft import HardState
from swarmd import belonging
from swarmd.agent import rejoining
from swarmd.agent.attempts import Attempts
from swarmd.agent.building import Builds
from swarmd.agent.rejoining import Rejoin
from swarmd.cluster import identity as identities
from swarmd.cluster.asks import EndWork
from swarmd.cluster.handle import Hosted, local_reads
from swarmd.cluster.neighbours import GossipSettings, Neighbours
from swarmd.cluster.noticing import notice_refusals
from swarmd.cluster.opening import SEEDS, ServedByOthers, open_replica
from swarmd.cluster.patience import patiently
from swarmd.cluster.remote import Remote, open_remote
from swarmd.cluster.replica import Replica
from swarmd.cluster.snapshots import decode_conf
from swarmd.cluster.trust import Trust
from swarmd.cluster.whereabouts import remembered
from swarmd.control.leadership import lead_when_elected
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.ops import swarm
from swarmd.ops.ping import answer_pings
from swarmd.sim.disk import SimStore
from swarmd.sim.log import SimLog
from swarmd.sim.ports import SimPorts
from swarmd.sim.wires import SimWires
from swarmd.sim.workers import SimRunner, open_agent
from swarmd.sim.world import Host, inline
from swarmd.state.queries import GetTrust

if TYPE_CHECKING:
    from swarmd.sim.bottle import Bottle

MESH_PORT = 8473
END_JOBS_S_MAX = 60.0
NOBODY = NodeId("")


class Bench(Builds, Protocol):
    """Of a node that builds packages."""

    async def inhabit(self, cluster: Hosted, attempts: Attempts) -> None:
        """For as long as a daemon lives."""


class Removed(Unavailable):
    """The swarm takes no word of this node any more."""


@dataclass
class Machine(Host):
    """A host of the bottle. Its runner outlives its daemon, and both its node's id."""

    number: int = 0
    id: NodeId = NOBODY
    life: int = 0
    """How many daemons were here before, and now."""
    cluster: Hosted | None = None
    """While its node is there for others."""
    nursery: trio.Nursery | None = None
    runner: SimRunner | None = None
    token: str | None = None
    leaves: bool = False
    """It stops for good, by its own will."""
    ends: list[tuple[float, BaseException]] = field(default_factory=list)
    """What its daemons ended by, if not by being told to."""

    @property
    def address(self) -> str:
        """Where its mesh is: one of 10.0.0.0/8."""
        high, low = divmod(self.number, 250)
        return f"10.{high // 250}.{high % 250}.{low + 1}:{MESH_PORT}"


@asynccontextmanager
async def open_cluster(
    world: Bottle, host: Machine, seeds: tuple[str, ...], called: str, earlier: Rejoin | None,
    raft_log: SimLog, store: SimStore, around: trio.Nursery,
) -> AsyncIterator[Replica | Remote]:  # fmt: skip
    """As `swarmd.belonging.open_cluster`, in the same order."""
    chance = random.Random(f"{world.seed}{host.name}{host.life}")
    entropy = random.Random(f"{world.seed}{host.name}{host.life}keys").randbytes
    folder = host.place / identities.FOLDER
    start = _prepare(host, seeds, earlier, raft_log, store, entropy)

    async def install(identity: Identity) -> None:
        save_identity(folder, identity)
        await trio.lowlevel.checkpoint()
        wires.listen()

    def shut_out(peer: str, words: str) -> None:
        if host.wires is not None:
            host.wires.shut_out(peer, words)

    async def founded() -> None:
        identities.founded(folder)
        await trio.lowlevel.checkpoint()

    def new_id() -> str:
        return str(UUID(bytes=entropy(16), version=4))

    trust = Trust(
        start.identity, install, shut_out, start.founding, founded, entropy=entropy,
        wall=host.wall_s,
    )  # fmt: skip
    wires = SimWires(
        world.network, host.id, around, gate=host.gate, address=host.address,
        admit=trust.admit, pin=lambda: _pin(trust.identity),
    )  # fmt: skip
    trust.learn(await store.read(GetTrust()))
    host.wires = wires
    await trust.renew_by_itself()
    if trust.identity.certificate is not None and not trust.expired:
        wires.listen()
    node = _describe(world, host, called, trust.identity)
    neighbours = Neighbours()
    remotely = partial(
        open_remote, node, raft_log, wires, world.remote_settings, trust=trust,
        neighbours=neighbours, now_ms=host.now_ms, new_id=new_id, rng=chance,
    )  # fmt: skip
    replicate = partial(
        open_replica, node, raft_log, store, wires, host.place, world.settings,
        join=(*(earlier.seeds if earlier else ()), *seeds),
        replaces=earlier.replaces if earlier else None, trust=trust, grounds=start.grounds,
        neighbours=neighbours, now_ms=host.now_ms, new_id=new_id, rng=chance,
        in_thread=inline,
    )  # fmt: skip
    async with _replica_or_remote(raft_log, replicate, remotely) as cluster:
        gossip = GossipSettings(
            world.gossip, (host.address,), raft_log.boot,
            lambda binds: SimPorts(wires, binds[0]),
        )  # fmt: skip
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(
                neighbours.run, node, lambda: cluster.members, trust, wires, gossip,
                entropy=entropy, rng=chance,
            ))  # fmt: skip
            nursery.start_soon(_note_swarm, cluster, host.place)
            nursery.start_soon(notice_refusals, cluster, wires, host.place)
            if isinstance(cluster, Remote):
                nursery.start_soon(
                    belonging.hold_a_replica, cluster, raft_log, wires, chance,
                    world.settings.replica.replicas_max,
                )  # fmt: skip
            yield cluster
            await neighbours.leave()
            nursery.cancel_scope.cancel()


def _describe(world: Bottle, host: Machine, called: str, identity: Identity) -> Node:
    return Node(
        host.id, called, addresses=(host.address.partition(":")[0],), mesh=(host.address,),
        capabilities=("binary",), capacity=world.capacities.get(host.name, world.capacity),
        labels=world.labels.get(host.name, {}), version="sim", machine_version=host.version,
        public_key=identity.public_key, box_key=identity.box_key,
    )  # fmt: skip


async def serve(
    world: Bottle, host: Machine, cluster: Replica | Remote, around: trio.Nursery,
    begun: Callable[[], None],
) -> None:  # fmt: skip
    """As `swarmd.node.open_node`, from the open cluster on."""
    if isinstance(cluster, Replica):
        around.start_soon(lead_when_elected, cluster, world.upkeep, world.voters)
    around.start_soon(_notice_removal, host, cluster)
    around.start_soon(_agree_on_admin_key, cluster)
    answer_pings(cluster)
    bench = world.benches.get(host.name)
    if host.runner is None:
        slots = max(cluster.node.capacity.slots, bench is not None)
        host.runner = SimRunner(host.name, world.runs, slots, host.clock)
        world.background(host.runner.live)
    async with open_agent(cluster, host.runner, host.place, bench) as attempts:
        cluster.answers(EndWork, attempts.end_work)
        if bench is not None:
            around.start_soon(bench.inhabit, cluster, attempts)
        host.cluster = cluster
        host.replica = cluster if isinstance(cluster, Replica) else None
        begun()
        await host.stop.wait()
        host.cluster = None
        if host.leaves and not cluster.removed.is_set():
            with trio.move_on_after(END_JOBS_S_MAX, shield=True):
                await attempts.drain()


async def _notice_removal(host: Machine, cluster: Hosted) -> None:
    await cluster.removed.wait()
    if not host.leaves:
        if host.runner is not None:
            await host.runner.stop(None, 0.0)
        raise Removed("this node was removed from its swarm; what ran here runs elsewhere")


@asynccontextmanager
async def _replica_or_remote(
    raft_log: SimLog,
    replicate: Callable[[], AbstractAsyncContextManager[Replica]],
    remotely: Callable[..., AbstractAsyncContextManager[Remote]],
) -> AsyncIterator[Replica | Remote]:
    """What this node is to be: what it remembers, else what it is told when it joins."""
    async with AsyncExitStack() as stack:
        cluster: Replica | Remote
        if remembered(raft_log) is not None:
            cluster = await stack.enter_async_context(remotely())
        else:
            try:
                cluster = await stack.enter_async_context(replicate())
            except ServedByOthers as served:
                joined = served.joined
                cluster = await stack.enter_async_context(
                    remotely(cluster_id=joined.cluster_id, replicas=dict(joined.members))
                )
        yield cluster


def _prepare(
    host: Machine, seeds: tuple[str, ...], earlier: Rejoin | None, raft_log: SimLog,
    store: SimStore, entropy: Callable[[int], bytes],
) -> identities.Start:  # fmt: skip
    conf = store.place.conf
    voters = () if conf is None else decode_conf(conf).voters
    new = raft_log.last_index() == 0 and raft_log.hard_state == HardState()
    was: Identity | None = None
    if earlier is not None:
        was = load_identity(host.place / rejoining.ASIDE / identities.FOLDER)
    ways = (earlier and earlier.seeds) or seeds or raft_log.fact(SEEDS)
    return identities.prepare(
        host.place / identities.FOLDER, host.id, joins=new and bool(ways),
        token=None if host.token is None or not new else parse_token(host.token), earlier=was,
        alone=len(voters) <= 1, entropy=entropy, now=host.wall_s(),
    )  # fmt: skip


def _pin(identity: Identity) -> bytes | None:
    return identity.pin if identity.authority else None


async def _note_swarm(cluster: Hosted, place: Path) -> None:
    await cluster.introduced.wait()
    rejoining.done(place)


async def _agree_on_admin_key(cluster: Hosted) -> None:
    """As every daemon does before it says that it is ready."""
    with local_reads():
        if await patiently(lambda: swarm.known_admin_key(cluster)) is not None:
            return
    await cluster.introduced.wait()
    await patiently(lambda: swarm.admin_key(cluster, cluster.new_id()))
