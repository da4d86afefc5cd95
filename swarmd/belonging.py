"""How a node belongs to its swarm: identity, log, state, wires and replica, opened in that order.

Nothing listens before this node can prove who it is.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from uuid import UUID, uuid4

import trio

from mesh.identity.contexts import tls_of
from mesh.identity.files import Identity, load_identity, save_identity
from mesh.identity.tokens import parse_token
from mesh.raft import HardState
from mesh.swim import PROFILES
from mesh.timing import LAN, Timing
from mesh.transport import UNPROVEN, Me, Transport, TransportSettings, open_transport
from mesh.wal import RaftLog, write_patiently
from mesh.wal_sqlite import open_log
from mesh.wires import WireError, Wires
from swarmd.agent import rejoining
from swarmd.agent.rejoining import Rejoin
from swarmd.cluster import identity as identities
from swarmd.cluster.discovering import find_members, stay_found
from swarmd.cluster.handle import Hosted
from swarmd.cluster.lineage import (
    CLUSTER_FACT,
    LOOK_EVERY_S,
    UNLED_S,
    Claims,
    Recovered,
    forked_at,
    newest,
)
from swarmd.cluster.members import join_again
from swarmd.cluster.neighbours import GossipSettings, Neighbours
from swarmd.cluster.noticing import notice_refusals
from swarmd.cluster.opening import HOLDERS, SEEDS, OpeningSettings, ServedByOthers, open_replica
from swarmd.cluster.remote import Remote, RemoteSettings, open_remote
from swarmd.cluster.replica import NotNewest, Replica, ReplicaSettings
from swarmd.cluster.snapshots import decode_conf
from swarmd.cluster.trust import Trust
from swarmd.cluster.whereabouts import forget_remote, remembered
from swarmd.config import Config
from swarmd.domain.errors import Unavailable, instead
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.queries import GetTrust
from swarmd.state.store import StateStore, StoreSettings, open_store

log = logging.getLogger(__name__)

ASK_FOR_REPLICA_S = 20.0
Describe = Callable[[NodeId, tuple[str, ...], Identity], Awaitable[Node]]
"""(its id, its mesh addresses, who it is) -> this node"""


class StartAgain(Unavailable):
    """This node has to be opened once more."""


class BeginAnew(StartAgain):
    """This node's files are not to be gone on with; started again it joins as another."""


def resume(data_dir: Path) -> Rejoin | None:
    """What a start has to know of an earlier life of this host."""
    return rejoining.resume(data_dir, _known_id(data_dir))


@asynccontextmanager
async def open_cluster(
    config: Config,
    data_dir: Path,
    earlier: Rejoin | None,
    describe: Describe,
    wall: Callable[[], float] = time.time,
) -> AsyncIterator[Replica | Remote]:
    """This node's replica, its log and its wires. BeginAnew: start again, as another node."""
    with instead((ServedByOthers, NotNewest, Recovered), partial(life_after, data_dir)):
        async with _open_cluster(config, data_dir, earlier, describe, wall) as cluster:
            yield cluster


def life_after(data_dir: Path, error: BaseException) -> BaseException:
    """What becomes of a node that cannot go on as it is."""
    if isinstance(error, ServedByOthers):
        return StartAgain("this node is to hold no replica any more")
    assert isinstance(error, NotNewest | Recovered)
    node_id = _known_id(data_dir)
    anew = bool(error.seeds) if isinstance(error, NotNewest) else error.ahead
    if anew and node_id is not None:
        rejoining.begin(data_dir, node_id, error.seeds)
        return BeginAnew(error.message)
    return error if isinstance(error, NotNewest) else StartAgain(error.message)


@asynccontextmanager
async def _open_cluster(
    config: Config,
    data_dir: Path,
    earlier: Rejoin | None,
    describe: Describe,
    wall: Callable[[], float],
) -> AsyncIterator[Replica | Remote]:
    mesh = config.mesh
    copies = data_dir / "copies"
    copies.mkdir(mode=0o700, exist_ok=True)
    node_id = _node_id(data_dir)
    rng = random.Random(os.urandom(16))
    settings = OpeningSettings(
        replica=ReplicaSettings(replicas_max=mesh.replicas),
        timing=LAN if mesh.timing == "lan" else Timing(),
        snapshot_bytes_per_s_max=mesh.snapshot_bytes_per_s_max,
        log_entries_kept=mesh.log_entries_keep,
    )
    async with AsyncExitStack() as stack:
        raft_log = await stack.enter_async_context(open_log(data_dir / "raft.db", create=True))
        store = await stack.enter_async_context(open_store(data_dir / "state.db", StoreSettings()))
        join = _joins(config, earlier)
        start = await _prepare(config, data_dir, node_id, raft_log, store, earlier, wall())
        if mesh.discover and not join and _is_to_join(start, raft_log):
            assert start.grounds is not None
            join = await find_members(start.grounds.pin, loopback_only=_on_loopback(config))
        wires: Transport | None = None

        async def install(identity: Identity) -> None:
            await trio.to_thread.run_sync(save_identity, data_dir / identities.FOLDER, identity)
            if wires is not None:
                wires.use(tls_of(identity))

        def shut_out(peer: str, words: str) -> None:
            if wires is not None:
                wires.shut_out(peer, words)

        trust = Trust(
            start.identity, install, shut_out, start.founding,
            partial(trio.to_thread.run_sync, identities.founded, data_dir / identities.FOLDER),
            entropy=os.urandom, wall=wall,
        )  # fmt: skip
        of = (raft_log.fact(CLUSTER_FACT) or b"").decode()
        claims = Claims(of)
        trust.learn(await store.read(GetTrust()))
        await trust.renew_by_itself()
        proven = trust.identity.certificate is not None and not trust.expired
        wires = await stack.enter_async_context(
            open_transport(
                TransportSettings(binds=mesh_binds(config)),
                Me(node_id, raft_log.boot, of, process=int.from_bytes(os.urandom(8), "big")),
                rng=rng, tls=tls_of(trust.identity) if proven else UNPROVEN, wall=wall,
                admit=trust.admit, foreign=claims.note,
            )
        )  # fmt: skip
        node = await describe(node_id, _advertised(config, wires.addresses), trust.identity)
        neighbours = Neighbours()

        def now_ms() -> int:
            return int(wall() * 1000)

        remotely = partial(
            open_remote, node, raft_log, wires, RemoteSettings(), trust=trust,
            neighbours=neighbours, now_ms=now_ms, new_id=Ids(), rng=rng,
        )  # fmt: skip
        cluster: Replica | Remote
        if remembered(raft_log) is not None:
            cluster = await stack.enter_async_context(remotely())
        else:
            opened = open_replica(
                node, raft_log, store, wires, copies, settings, join=join,
                replaces=earlier.replaces if earlier is not None else None, trust=trust,
                grounds=start.grounds, neighbours=neighbours, now_ms=now_ms, new_id=Ids(), rng=rng,
            )  # fmt: skip
            try:
                cluster = await stack.enter_async_context(opened)
            except ServedByOthers as served:
                joined = served.joined
                cluster = await stack.enter_async_context(
                    remotely(cluster_id=joined.cluster_id, replicas=dict(joined.members))
                )
        gossip = GossipSettings(PROFILES[mesh.profile], wires.addresses, raft_log.boot)
        nursery = await stack.enter_async_context(trio.open_nursery())
        nursery.start_soon(
            partial(
                neighbours.run, node, lambda: cluster.members, trust, wires, gossip,
                entropy=os.urandom, rng=rng,
            )
        )  # fmt: skip
        if mesh.discover:
            nursery.start_soon(
                partial(
                    stay_found, node, trust.identity.pin, lambda: cluster.members, neighbours,
                    loopback_only=_on_loopback(config), rng=rng,
                )
            )  # fmt: skip
        nursery.start_soon(_note_swarm, cluster, raft_log, wires, claims, data_dir)
        nursery.start_soon(_go_along, cluster, raft_log, claims)
        nursery.start_soon(notice_refusals, cluster, wires, data_dir)
        if isinstance(cluster, Remote):
            nursery.start_soon(hold_a_replica, cluster, raft_log, wires, rng, mesh.replicas)
        yield cluster
        await neighbours.leave()
        nursery.cancel_scope.cancel()


async def _prepare(
    config: Config, data_dir: Path, node_id: NodeId, raft_log: RaftLog, store: StateStore,
    earlier: Rejoin | None, now: float,
) -> identities.Start:  # fmt: skip
    """Who this node is, from what lies here and what it was told."""
    conf = store.place.conf
    voters = () if conf is None else decode_conf(conf).voters
    token = None if config.mesh.token is None else parse_token(config.mesh.token)
    ways = _joins(config, earlier) or raft_log.fact(SEEDS) or (token and config.mesh.discover)
    was: Identity | None = None
    if earlier is not None:
        aside = data_dir / rejoining.ASIDE / identities.FOLDER
        was = await trio.to_thread.run_sync(load_identity, aside)
    return await trio.to_thread.run_sync(
        partial(
            identities.prepare,
            data_dir / identities.FOLDER,
            node_id,
            joins=_is_new(raft_log) and bool(ways),
            token=token,
            earlier=was,
            alone=len(voters) <= 1,
            entropy=os.urandom,
            now=now,
        )
    )


def _is_new(raft_log: RaftLog) -> bool:
    return raft_log.last_index() == 0 and raft_log.hard_state == HardState()


def _is_to_join(start: identities.Start, raft_log: RaftLog) -> bool:
    """A swarm is there already, and no start of this node was told yet where."""
    founds = start.grounds is None or start.founding is not None
    return _is_new(raft_log) and not founds and not raft_log.fact(SEEDS)


def _on_loopback(config: Config) -> bool:
    """Nothing is to leave this host."""
    hosts = config.mesh.bind or config.node.bind
    return all(ip_address(host.partition("%")[0]).is_loopback for host in hosts)


def _joins(config: Config, earlier: Rejoin | None) -> tuple[str, ...]:
    return (*(earlier.seeds if earlier is not None else ()), *config.mesh.join)


async def hold_a_replica(
    cluster: Remote, raft_log: RaftLog, wires: Wires, rng: random.Random, replicas_max: int
) -> None:
    """Where there are fewer replicas than there may be, this node asks to have one."""
    while True:
        await trio.sleep(rng.uniform(0.5, 1.5) * ASK_FOR_REPLICA_S)
        leader = cluster.leadership().leader
        if leader is None or len(cluster.replicas) >= replicas_max:
            continue
        try:
            joined = await join_again(wires, leader, cluster.node)
        except WireError as error:
            log.debug("no replica for this node yet", extra={"reason": error.message})
            continue
        if joined.replica:
            # It has to be taken in once more, and who it joined by may be gone since.
            there = dict(joined.members)
            holders = [address for n in cluster.replicas for address in there.get(n, ())]
            fact = " ".join(holders).encode()
            await write_patiently(partial(raft_log.set_fact, HOLDERS, fact))
            await forget_remote(raft_log)
            raise StartAgain("this node is to hold a replica")


async def _go_along(cluster: Hosted, raft_log: RaftLog, claims: Claims) -> None:
    """Where nobody leads this node, and another says that the swarm was recovered without it: be
    of that one from then on. Raises Recovered."""
    told, began = False, trio.current_time()
    while True:
        await claims.arrived.wait()
        await trio.sleep(LOOK_EVERY_S)
        by = claims.by(lambda node_id: node_id in cluster.members)
        stale_ms = cluster.staleness_ms()
        unled_s = trio.current_time() - began if stale_ms is None else stale_ms / 1000
        if not by or unled_s < UNLED_S:
            continue
        theirs = newest(by)
        if theirs is None:
            if not told:
                log.error(
                    "the swarm was recovered more than once, apart; this node follows none of them",
                    extra={"lineages": ", ".join(sorted(set(by.values())))},
                )
            told = True
            continue
        mine = (raft_log.fact(CLUSTER_FACT) or b"").decode()
        ahead = cluster.log_view().committed > forked_at(theirs, mine)
        if not ahead:
            fact = theirs.encode()
            await write_patiently(partial(raft_log.set_fact, CLUSTER_FACT, fact))
        seeds = tuple(a for node_id in sorted(by) for a in cluster.members[node_id].mesh)
        raise Recovered(theirs, ahead, seeds)


async def _note_swarm(
    cluster: Hosted, raft_log: RaftLog, wires: Transport, claims: Claims, data_dir: Path
) -> None:
    """Of which swarm this node is: from its next start on it talks to no other's nodes."""
    await cluster.introduced.wait()
    rejoining.done(data_dir)
    if raft_log.fact(CLUSTER_FACT) is None:
        await raft_log.set_fact(CLUSTER_FACT, cluster.cluster_id.encode()).wait()
        wires.be_of(cluster.cluster_id)
        claims.be_of(cluster.cluster_id)


def mesh_binds(config: Config) -> tuple[str, ...]:
    mesh = config.mesh
    return tuple(_joined(a, mesh.port) for a in mesh.bind or config.node.bind)


def _joined(host: str, port: int | str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _advertised(config: Config, bound: tuple[str, ...]) -> tuple[str, ...]:
    """Where others reach this node: as it was told, else where it listens. An address that stands
    for all of them is none that can be dialed: then the one that leads out of this host."""
    if config.node.advertise:
        return (config.node.advertise,)
    found: dict[str, None] = {}
    for address in bound:
        host, _, port = address.rpartition(":")
        host = host.strip("[]")
        if ip_address(host.partition("%")[0]).is_unspecified:
            host = _way_out(host) or host
        found[_joined(host, port)] = None
    return tuple(found)


def _way_out(wildcard: str) -> str | None:
    """The address that this host would send from, to whoever is far; nothing is sent."""
    family, far = socket.AF_INET, "192.0.2.1"
    if ":" in wildcard:
        family, far = socket.AF_INET6, "2001:db8::1"
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((far, 9))
            return str(probe.getsockname()[0])
    except OSError:
        return None


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


class Ids:
    """Random ids, a hundred a call of the kernel: a call for each costs as much as an insert."""

    def __init__(self) -> None:
        self._pool = b""

    def __call__(self) -> str:
        if not self._pool:
            self._pool = os.urandom(16 * 100)
        taken, self._pool = self._pool[:16], self._pool[16:]
        return str(UUID(bytes=taken, version=4))
