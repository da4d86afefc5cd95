"""Opening a replica: found a swarm, join one, or go on in the one that this node is of.

What lies on the disk decides; where the log and the state do not fit together nothing is guessed.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from mesh.consensus import Consensus, core_config
from mesh.raft import ConfState, HardState, RawNode, Snapshot, SnapshotMeta
from mesh.timing import Rng, Timing, beat
from mesh.wal import RaftLog, find_put_back
from mesh.wal_errors import LogBusy
from mesh.wires import WireError, Wires
from swarmd.cluster.lineage import CLUSTER_ID
from swarmd.cluster.members import Grounds, JoinAsk, Joined, ask_to_join, join_again
from swarmd.cluster.neighbours import Neighbours
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.patience import LEADERLESS_S, make_known, patiently
from swarmd.cluster.replica import INSTALLING, PING, NotNewest, Replica, ReplicaSettings, not_newest
from swarmd.cluster.sessions import Whereabouts
from swarmd.cluster.snapshots import InThread, Snapshots, decode_conf, encode_conf
from swarmd.cluster.trust import Trust
from swarmd.cluster.whereabouts import remember
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.commands import PutSetting
from swarmd.state.machine import Applied, Place
from swarmd.state.queries import GetSetting, LastBoot, ListNodes
from swarmd.state.store import StateStore

log = logging.getLogger(__name__)

SEEDS = "seeds"
"""The log's fact: whom a node asked to take it in."""
HOLDERS = "holders"
"""The log's fact: where replicas were when this node was told to have one too."""
NOT_JOINED = "not-joined"
"""The log's fact: why this node was not taken in yet."""
BOOT = "boot"
UNLED_S = 4.0
"""Longer than an election takes."""
SEED_TIMEOUT_S = 5.0
FOUNDED_INDEX = 1
"""Where the log of a swarm begins that was founded with nothing."""


class ServedByOthers(Exception):
    """The swarm has as many replicas as it may have: this node is to be one without."""

    def __init__(self, joined: Joined) -> None:
        super().__init__("served by others")
        self.joined = joined


@dataclass(frozen=True)
class OpeningSettings:
    replica: ReplicaSettings = field(default_factory=ReplicaSettings)
    timing: Timing = field(default_factory=Timing)
    snapshot_bytes_per_s_max: int = 128 * 1024 * 1024
    log_entries_kept: int = 10_000
    """Behind what is applied, for nodes that were away for a moment."""
    compact_every: int = 2000
    """Entries that are let go at once, about."""
    compact_look_s: float = 1.0


class _CoreStorage:
    """The log as the core reads it; a snapshot that is wanted is made."""

    def __init__(self, raft_log: RaftLog, snapshots: Snapshots, conf: ConfState) -> None:
        self._log = raft_log
        self._snapshots = snapshots
        self._conf = conf
        self.entries = raft_log.entries
        self.term = raft_log.term
        self.first_index = raft_log.first_index
        self.last_index = raft_log.last_index

    def initial_state(self) -> tuple[HardState, ConfState]:
        return self._log.hard_state, self._conf

    def snapshot(self) -> Snapshot:
        return self._snapshots.latest(self._log.first_index())


@asynccontextmanager
async def open_replica(
    node: Node,
    raft_log: RaftLog,
    store: StateStore,
    wires: Wires,
    copies: Path,
    settings: OpeningSettings,
    *,
    in_thread: InThread = trio.to_thread.run_sync,
    join: Sequence[str] = (),
    replaces: NodeId | None = None,
    trust: Trust | None = None,
    grounds: Grounds | None = None,
    neighbours: Neighbours | None = None,
    now_ms: Callable[[], int],
    new_id: Callable[[], str],
    rng: Rng,
) -> AsyncIterator[Replica]:
    """Take part while the body runs; on the way out, have another lead if this node does.
    `replaces` is the id that this host had before it had to begin anew. NotNewest is raised at the
    start, or when another proves that this node forgot what it promised; ServedByOthers where it is
    to have no replica."""
    me = raft_id_of(node.id)
    await _end_installing(raft_log, store)
    seeds = tuple(join) or _seeds(raft_log)
    seeds = tuple(dict.fromkeys((*seeds, *_addresses(raft_log, HOLDERS))))
    if trust is not None and trust.expired:
        known: list[Node] = await store.read(ListNodes((NodeKind.MEMBER,)))
        others = tuple(address for other in known if other.id != node.id for address in other.mesh)
        log.warning("this node's certificate has ended; the others are asked for a new one")
        await _Applying(wires, others or seeds, JoinAsk(node), grounds, trust).join(raft_log)
    applying = _Applying(wires, seeds, JoinAsk(node, replaces), grounds, trust)
    cluster_id, told = await _standing(node, raft_log, store, applying)
    conf = ConfState() if store.place.conf is None else decode_conf(store.place.conf)
    snapshots = Snapshots(copies, store, wires, settings.snapshot_bytes_per_s_max, in_thread)
    raw = RawNode(
        core_config(me, settings.timing, store.place.index),
        _CoreStorage(raft_log, snapshots, conf),
        randrange=rng.randrange,
    )
    consensus = Consensus(me, raw, raft_log, wires, settings.timing, rng, raft_log.boot, conf)
    consensus.know({raft_id_of(name): name for name in (node.id, *told)})
    boot = await _new_boot(me, raft_log, store)
    replica = Replica(
        node, boot, raft_log, consensus, store, wires, snapshots, settings.replica,
        now_ms=now_ms, new_id=new_id,
    )  # fmt: skip
    replica.cluster_id, replica.told = cluster_id, told
    replica.trust, replica.neighbours = trust, neighbours or Neighbours()
    async with trio.open_nursery() as nursery:
        await nursery.start(replica.run)
        if conf.voters == (me,) and not conf.learners:
            consensus.campaign()  # nobody else can: there is nothing to wait for
        nursery.start_soon(_introduce, replica)
        if join and not told:
            nursery.start_soon(_compare, replica, wires, tuple(join))
        nursery.start_soon(_stay_in, replica, wires, raft_log)
        nursery.start_soon(_compact, raft_log, store, settings)
        try:
            yield replica
            await replica.hand_over_and_leave()
        finally:
            nursery.cancel_scope.cancel()


async def _new_boot(me: int, raft_log: RaftLog, store: StateStore) -> int:
    """The number of this boot, for its requests: no earlier one had it, though a log that was lost
    counts anew."""
    before = int(raft_log.fact(BOOT) or 0)
    boot = max(raft_log.boot, before + 1, 1 + await store.read(LastBoot(me)))
    await raft_log.set_fact(BOOT, str(boot).encode()).wait()
    return boot


async def _end_installing(raft_log: RaftLog, store: StateStore) -> None:
    """A copy was put in the state's place, and the end of this process came between that and the
    log's new beginning."""
    began = raft_log.fact(INSTALLING)
    if began is None or not int(began):
        return
    place = store.place
    if place.index == int(began) and place.index > raft_log.last_index():
        assert place.conf is not None
        meta = SnapshotMeta(place.index, place.term, decode_conf(place.conf))
        await raft_log.restore(meta).wait()
    await raft_log.set_fact(INSTALLING, b"0").wait()


@dataclass(frozen=True)
class _Applying:
    """How this node gets into a swarm that is there."""

    wires: Wires
    seeds: tuple[str, ...]
    ask: JoinAsk
    grounds: Grounds | None
    trust: Trust | None

    async def join(self, raft_log: RaftLog) -> Joined:
        if self.seeds:
            # From here on no start of this node founds a swarm of its own.
            await raft_log.set_fact(SEEDS, " ".join(self.seeds).encode()).wait()

        def told(why: str) -> None:
            with suppress(LogBusy):
                raft_log.set_fact(NOT_JOINED, why.encode()[:1000])

        try:
            joined = await ask_to_join(self.wires, self.seeds, self.ask, self.grounds, told)
        except SwarmError as refusal:
            told(refusal.message)
            raise
        told("")
        if self.trust is not None and joined.certificate:
            await self.trust.adopt(joined.certificate, joined.authority)
            if joined.ring:
                self.trust.take_ring(joined.ring)
        return joined


def _seeds(raft_log: RaftLog) -> tuple[str, ...]:
    """Those that an earlier start was told."""
    return _addresses(raft_log, SEEDS)


def _addresses(raft_log: RaftLog, fact: str) -> tuple[str, ...]:
    return tuple((raft_log.fact(fact) or b"").decode().split())


async def _standing(
    node: Node, raft_log: RaftLog, store: StateStore, applying: _Applying
) -> tuple[str, Mapping[str, Sequence[str]]]:
    """The swarm's id, and members known beside those in the state."""
    me, place = raft_id_of(node.id), store.place
    voters = () if place.conf is None else decode_conf(place.conf).voters
    fresh_log = raft_log.last_index() == 0 and raft_log.hard_state == HardState()
    empty = raft_log.last_index() == 0 and place.conf is None
    if empty and applying.seeds:
        # Also where an earlier start ended between being taken in and the copy.
        joined = await applying.join(raft_log)
        if not joined.replica:
            raise ServedByOthers(joined)
        log.info("joined", extra={"cluster_id": joined.cluster_id})
        return joined.cluster_id, {str(n): a for n, a in joined.members}
    if fresh_log and (place.conf is None or voters == (me,)):
        await _found(me, raft_log, store)
    elif empty:
        raise Unavailable(
            "this node was taken into a swarm and has nothing of it yet: start it with --join and"
            " --token, or move the data directory away for a swarm of its own"
        )
    elif fresh_log:
        raise await _not_newest(
            node.id, store, "the log raft.db is gone, and with it what this node promised to others"
        )
    elif raft_log.last_index() > 0 or place.index > 0:
        beginning = raft_log.compacted
        if place.index == 0 and beginning.index == FOUNDED_INDEX:
            # The state is gone, and the log goes back to the first day: it makes it anew.
            log.warning(
                "the state is made anew from the log", extra={"upto": raft_log.last_index()}
            )
            place = await _begin(store, beginning)
        found = find_put_back(raft_log, applied_index=place.index, applied_term=place.term or None)
        if found is not None:
            raise await _not_newest(
                node.id, store, f"the {found.which} on disk is not the newest of this node:"
                f" {found.why}",
            )  # fmt: skip
    known = await store.read(GetSetting(CLUSTER_ID))
    return ("" if known is None else known.decode()), {}


async def _not_newest(me: NodeId, store: StateStore, why: str) -> NotNewest:
    members: list[Node] = await store.read(ListNodes((NodeKind.MEMBER,)))
    return not_newest(why, me, members)


async def _found(me: int, raft_log: RaftLog, store: StateStore) -> None:
    """Be a swarm of one, with whatever is in the state already: others come in by a copy of it."""
    index, term = max(FOUNDED_INDEX, store.place.index), max(1, store.place.term)
    meta = SnapshotMeta(index, term, ConfState(voters=(me,)))
    await _begin(store, meta)
    await raft_log.append(hard_state=HardState(term=term, commit=index), snapshot=meta).wait()


async def _begin(store: StateStore, meta: SnapshotMeta) -> Place:
    """Have the state stand at the place where its log begins."""
    place = Place(meta.index, meta.term, encode_conf(meta.conf_state))
    done = trio.Event()

    def applied(outcomes: Sequence[Applied], upto: Place) -> None:
        done.set()

    store.submit((), place, applied)
    await done.wait()
    while await store.make_durable() < place.index:
        await trio.lowlevel.checkpoint()
    return place


async def _introduce(replica: Replica) -> None:
    """Make this node known, and the swarm's id where it is new."""
    if not await make_known(replica):
        return
    if not replica.cluster_id:
        command = PutSetting(CLUSTER_ID, replica.new_id().encode(), only_new=True)
        propose = partial(replica.propose, command, SYSTEM)
        replica.cluster_id = (await patiently(propose, LEADERLESS_S)).decode()
    replica.introduced.set()


async def _stay_in(replica: Replica, wires: Wires, raft_log: RaftLog) -> None:
    """A node that was away for long is taken out of the log. Where others are there and none of
    them leads it, it asks to be taken in again: of one that still is in, nothing changes."""
    while True:
        seen = replica.leadership()
        with trio.move_on_after(UNLED_S):
            while replica.leadership().leader is None:
                seen = await replica.leadership_changed(seen)
        if replica.leadership().leader is not None:
            await replica.leadership_changed(replica.leadership())
            continue
        for peer in [p for p in replica.members if wires.linked(p)]:
            with suppress(WireError):
                joined = await join_again(wires, peer, replica.node)
                if not joined.replica:
                    await remember(raft_log, Whereabouts(joined.cluster_id, joined.members))
                    raise ServedByOthers(joined)
                log.info("taken into the log again", extra={"by": peer})
                break


async def _compare(replica: Replica, wires: Wires, seeds: tuple[str, ...]) -> None:
    """Say so where this node, being of a swarm, is told to join nodes that are not: it stays."""
    await replica.introduced.wait()
    for seed in seeds:
        try:
            await wires.call_address(seed, PING, b"", SEED_TIMEOUT_S)
        except WireError as error:
            log.warning(
                "a node that this one was told to join does not answer, or not as one of its swarm",
                extra={"seed": seed, "reason": str(error)},
            )


async def _compact(raft_log: RaftLog, store: StateStore, settings: OpeningSettings) -> None:
    """Let go of entries that the state holds durably and that no member is likely to ask for."""
    while True:
        await beat(settings.compact_look_s)
        place = store.place
        upto = place.index - settings.log_entries_kept
        if upto - raft_log.first_index() < settings.compact_every or place.conf is None:
            continue
        durable = await store.make_durable()
        if durable >= upto:
            if not raft_log.first_index() <= upto <= raft_log.last_index():
                continue  # a copy is in the state's place, and the log does not begin there yet
            # Who votes is in the state, which goes before what the log says of it.
            conf = decode_conf(place.conf)
            with suppress(LogBusy):  # it looks again soon
                await raft_log.compact(upto, conf, checkpointed=durable).wait()
