"""Chaos: a schedule of faults strikes a swarm, and clients all the while; then all must be right.

What clients were told fits one order, and the log's; watchers were told of each event once; jobs
keep to their rules; and once nothing befalls any more, all is done, and every replica is the same.
"""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.proposals import ProposalSettings
from swarmd.cluster.replica import ReplicaSettings
from swarmd.cluster.snapshots import decode_conf
from swarmd.domain.jobs import RECOVERIES_MAX
from swarmd.domain.nodes import Capacity
from swarmd.sim.bottle import Bottle
from swarmd.sim.faults import EVERY_S, Fault, Kind, draw
from swarmd.sim.harm import KINDS
from swarmd.sim.invariants import Observer, WatchedRuns, check_voters
from swarmd.sim.stage import Stage
from swarmd.sim.witness import Broken
from swarmd.sim.workers import SLOTS, Workers
from swarmd.sim.world import World
from swarmd.state.machine import Place
from swarmd.state.store import Slot
from tests import linearize
from tests.linearize import Operation
from tests.sim.moments import moments, patient
from tests.sim.registers import History, Read, Write, check_glances
from tests.sim.users import Users
from tests.sim.watchers import WANTS, Watcher

HOUR_MS = 3_600_000
PATIENCE_S = 5.0
CLIENTS = 5
EXECUTORS = ("x", "y")
TAIL_S = 3.0
"""So long clients go on when the last fault is over."""
CALM_S = 180.0
"""After that all hosts are up again, whatever was done to them."""
DRAIN_S = 120.0
"""A silent executor is waited for, and what it held runs elsewhere."""
WATCHED_S = 30.0
"""By then who watches has seen all there was."""


def quick(
    replica: ReplicaSettings | None = None, snapshot_bytes_per_s_max: int = 1 << 30
) -> OpeningSettings:
    """Small bounds, so that a test reaches them."""
    return OpeningSettings(
        replica=replica or ReplicaSettings(), log_entries_kept=20, compact_every=10,
        snapshot_bytes_per_s_max=snapshot_bytes_per_s_max,
    )  # fmt: skip


def cramped(replicas_max: int = 9) -> OpeningSettings:
    """Bounds that a few clients reach; and who waits is told before it loses patience."""
    bounds = ProposalSettings(in_flight_max=6, wait_s_max=3.0)
    return quick(ReplicaSettings(proposals=bounds, replicas_max=replicas_max))


@dataclass(frozen=True)
class Shape:
    """What sort of a swarm it is that is struck."""

    founders: tuple[str, ...] = ("a", "b", "c")
    newcomers: tuple[str, ...] = ()
    """Hosts that come later, if a fault brings them."""
    voters: int = 3
    whole: bool = False
    """In a bottle, with whole nodes."""
    members_change: bool = False
    executors: tuple[str, ...] = ()
    pace: float = 1.0
    """How much longer it takes to the next fault, and clients to think, than where all is dense."""

    @property
    def hosts(self) -> tuple[str, ...]:
        return (*self.founders, *self.newcomers)


SMALL = Shape()


class Chaos:
    """One run; `rounds` is how many faults are drawn where no schedule is given."""

    def __init__(
        self, seed: int, rounds: int = 8, shape: Shape = SMALL,
        schedule: Sequence[Fault] | None = None,
    ) -> None:  # fmt: skip
        self.seed = seed
        self.rounds = rounds
        self.shape = shape
        self.users = Users(seed, shape.pace, executors=bool(shape.executors))
        self.kinds = {
            **{n: patient(kind) if kind.of_members and kind.whole else kind
               for n, kind in KINDS.items()},
            **moments(self.users),
            "burst": Kind(self.users.burst), "reads": Kind(self.users.reads),
        }  # fmt: skip
        self.schedule = list(schedule) if schedule is not None else self.drawn()
        self.operations = 0
        self.moves = 0
        """Of watchers, from a node to another."""
        self.struck: Counter[str] = Counter()
        self.events: Counter[str] = Counter()

    def drawn(self) -> list[Fault]:
        shape = self.shape
        return draw(
            random.Random(f"{self.seed}faults"), self.rounds, shape.hosts, self.kinds,
            members_change=shape.members_change, whole=shape.whole, every_s=EVERY_S * shape.pace,
        )  # fmt: skip

    async def run(self, world: World) -> None:
        observer = Onlooker(world)
        observer.watch(world)
        observer.token_of = _token_of
        stage = await self._begin(world, observer)
        watchers = [Watcher(f"watcher{n}", wants) for n, wants in enumerate(WANTS)]
        users = self.users
        async with trio.open_nursery() as beside:
            for name in self.shape.executors:
                beside.start_soon(users.execute, stage, name)
            for watcher in watchers:
                beside.start_soon(users.watch, stage, watcher)
            async with trio.open_nursery() as clients:
                for n in range(CLIENTS):
                    clients.start_soon(users.use, stage, f"client{n}")
                await self._strike(stage)
                await trio.sleep(TAIL_S)
                users.over = True
            await self._drained(observer)
            await self._settled(stage)
            await self._watched(watchers, observer)
            beside.cancel_scope.cancel()
        self.struck, self.events = self.struck + stage.struck, observer.ledger.counts
        await world.settle()
        self._check(world, observer)

    async def _strike(self, stage: Stage) -> None:
        ends_s = max((fault.at_s + fault.for_s for fault in self.schedule), default=0.0)
        with trio.move_on_after(ends_s + CALM_S) as waiting:
            await stage.run(self.schedule)
        if waiting.cancelled_caught:
            raise Broken(f"{CALM_S:g} s after all faults the swarm is not up: {stage}")

    async def _begin(self, world: World, observer: Observer) -> Stage:
        """A swarm that is complete, with devices on every host."""
        shape = self.shape
        newcomers = dict.fromkeys(shape.newcomers, shape.founders)
        capacity = Capacity(SLOTS, 4.0, 1 << 30, ("gpu0", "gpu1"))
        world.voters = replace(world.voters, voters=shape.voters)
        if isinstance(world, Bottle):
            world.capacity, world.runs = capacity, WatchedRuns(observer)
            bounds = world.settings.replica.proposals
            world.remote_settings = replace(world.remote_settings, proposals=bounds)
            await world.populate(*shape.founders)
            return Stage(world, self.kinds, newcomers)
        workers = Workers(world)
        world.capacity, workers.runs = capacity, WatchedRuns(observer)

        def switch_off(name: str) -> None:
            if (runner := workers.runners.pop(name, None)) is not None:
                runner.die()

        await world.swarm_of(*shape.founders)
        if not shape.members_change:
            await world.judge_disks()
        await workers.ready()
        return Stage(world, self.kinds, newcomers, switch_off)

    # What must be so in the end

    async def _drained(self, observer: Observer) -> None:
        """Nothing befalls any more: all work ends."""
        ledger = observer.ledger
        with trio.move_on_after(DRAIN_S) as waiting:
            while ledger.open:
                await trio.sleep(0.2)
        if waiting.cancelled_caught:
            raise Broken(f"{ledger.open[:5]} have not ended in {DRAIN_S:g} s of calm")

    async def _settled(self, stage: Stage) -> None:
        """All vote who are to, also when one of them is gone for good."""
        more = int(stage.unfinished > 0)
        await _voters_are_well(stage.world, more)
        if await self._lose_a_voter(stage.world):
            await _voters_are_well(stage.world, more)

    async def _lose_a_voter(self, world: World) -> bool:
        """One is gone for good, where another can have its vote and the rest can go on: whether
        that is so."""
        view = world.replica(world.leaders()[0]).log_view()
        there = {world.node_id(name) for name in world.up()}
        if not there.intersection(view.learners) or len(view.voters) < 3:
            return False
        voters = sorted(world.name_of(voter) for voter in view.voters)
        await world.crash(random.Random(f"{self.seed}lost").choice(voters), power=True)
        self.struck["lost"] += 1
        return True

    async def _watched(self, watchers: Sequence[Watcher], observer: Observer) -> None:
        """To the last event that was before now; then each was told of all it wanted."""
        events = list(observer.events)
        with trio.move_on_after(WATCHED_S):
            while any(watcher.after < watcher.last(events) for watcher in watchers):
                await trio.sleep(0.2)
        for watcher in watchers:
            watcher.judge(observer.events[: max(len(events), watcher.after)])
            self.moves += watcher.moves

    def _check(self, world: World, observer: Observer) -> None:
        assert world.network.refused == []
        state = world.hosts[world.up()[0]].disk.state
        observer.ledger.compare(state)
        _check_ends(state)
        settings, jobs = self.users.settings, self.users.jobs
        now = trio.current_time()
        values = _values_in(state)
        for key in dict.fromkeys(op.key for op in settings):
            settings.append(Operation("end", "read", None, values.get(key), now, now, key))
        standings = _standings_in(state)
        for key in dict.fromkeys(op.key for op in jobs):
            jobs.append(Operation("end", "see", None, standings.get(key), now, now, key))
        _check_order(settings, observer.order)
        check_glances(self.users.glances, observer.order)
        # Of writes that nobody was told of, those that were never applied have no place in any
        # order: so the search is left with what may have been seen.
        settings = [
            op for op in settings
            if op.kind != "write" or op.known or op.argument.encode() in observer.order
        ]  # fmt: skip
        for model, history in (("setting", settings), ("job", jobs)):
            verdict = linearize.check(history, linearize.MODELS[model])
            if not verdict:
                raise Broken(f"a history of a {model} is {verdict}")
        self.operations = len(settings) + len(jobs)
        if self.rounds >= 8 and len(self.schedule) == self.rounds:
            assert sum(op.known for op in settings) > 20, "hardly anything was done"


class Onlooker(Observer):
    """It looks at what the world alone has, besides: the disks, and what it is set to."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self._world = world

    def applies(self, name: str, place: Place, slots: Sequence[Slot], upto: Place) -> None:
        super().applies(name, place, slots, upto)
        disk = next((h.disk for h in self._world.hosts.values() if h.disk.name == name), None)
        for slot in slots if disk is not None else ():
            assert disk is not None
            log, at = disk.stored, slot.index
            if at >= log.first_index() and (at > log.last_index() or log.term(at) != slot.term):
                raise Broken(f"{name} applies {at}, which its own disk does not have")

    def _look_at_voters(self, packed: bytes) -> None:
        super()._look_at_voters(packed)
        conf = decode_conf(packed)
        everyone = {*conf.voters, *conf.learners, *conf.learners_next}
        if len(everyone) > self._world.settings.replica.replicas_max:
            raise Broken(f"these have replicas, and are more than may: {sorted(everyone)}")


async def _voters_are_well(world: World, more: int) -> None:
    with trio.move_on_after(DRAIN_S):
        while True:
            try:
                check_voters(world, more)
                return
            except Broken:
                await trio.sleep(0.5)
    check_voters(world, more)


def _token_of(job_id: str) -> str:
    return job_id.partition(".")[0]


def _values_in(state: sqlite3.Connection) -> dict[str, str]:
    """Of settings, and which job each idempotency key stands for."""
    values = {k: v.decode(errors="replace") for k, v in state.execute(
        "SELECT key, value FROM settings")}  # fmt: skip
    keys = "SELECT i.key, j.id FROM idempotency i JOIN jobs j ON j.seq = i.seq"
    return values | {f"key of {key}": job_id for key, job_id in state.execute(keys)}


def _standings_in(state: sqlite3.Connection) -> dict[str, tuple[int, str]]:
    return {
        job_id: (attempts, status)
        for job_id, attempts, status in state.execute(
            "SELECT id, (SELECT count(*) FROM attempts WHERE job_seq = seq), status FROM jobs"
        )
    }


def _check_ends(state: sqlite3.Connection) -> None:
    """All jobs here end well, but for those that are cancelled or lost too often."""
    failed = "SELECT id, error FROM jobs WHERE status = 'failed' AND recoveries < ?"
    for job_id, error in state.execute(failed, (RECOVERIES_MAX,)):
        raise Broken(f"{job_id} failed, and would not have by itself: {error}")


def _check_order(operations: Sequence[Operation], order: Mapping[bytes, int]) -> None:
    """Against the log's own order as well: of two writes that nobody was told of any order would do
    otherwise."""
    kept = {op.key for op in operations if op.kind == "keep"}
    history = History()
    for op in operations:
        if op.key in kept:
            continue
        if op.kind == "write":
            history.writes.append(Write(op.key, op.argument.encode(), op.began, op.ended))
        else:
            value = None if op.result is None else op.result.encode()
            history.reads.append(Read(op.key, op.began, op.ended, value))
    history.check(order)
