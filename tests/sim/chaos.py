"""Chaos: whatever can befall hosts, disks, clocks and links, at random, and clients all the while.

Every write has a value of its own. At the end what was acknowledged is there, what was read fits
one order, and every replica is the same.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.proposals import ProposalSettings
from swarmd.cluster.replica import ReplicaSettings
from swarmd.domain.errors import Busy, Conflict, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.sim.network import Weather
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import PutSetting
from swarmd.state.queries import GetSetting
from tests.sim.registers import History, Read, Write

REGISTERS = ("left", "middle", "right")
HOUR_MS = 3_600_000
PATIENCE_S = 5.0


def quick(
    replica: ReplicaSettings | None = None, snapshot_bytes_per_s_max: int = 1 << 30
) -> OpeningSettings:
    """Small bounds, so that a test reaches them."""
    return OpeningSettings(
        replica=replica or ReplicaSettings(), log_entries_kept=20, compact_every=10,
        snapshot_bytes_per_s_max=snapshot_bytes_per_s_max,
    )  # fmt: skip


def cramped() -> OpeningSettings:
    """Bounds that a few clients reach."""
    return quick(ReplicaSettings(proposals=ProposalSettings(in_flight_max=6)))


class Chaos:
    def __init__(self, seed: int, rounds: int = 8, *, members_change: bool = False) -> None:
        self._rng = random.Random(seed)
        self._founders = "abc"
        self._rounds = rounds
        self._members_change = members_change
        self._newcomers = list("de")
        self._over = False
        self._acknowledged: dict[str, bytes] = {}
        self.history = History()
        self.befell: list[str] = []
        self.refused = 0
        faults: list[Callable[[World, str], Awaitable[None]]] = [
            self._crash, self._crash_leader, self._power_everywhere, self._power, self._cut,
            self._one_way, self._weather, self._transfer, self._clock, self._slow_disk,
            self._full_log, self._burst,
        ]  # fmt: skip
        if members_change:
            faults += [self._join, self._demote, self._remove_and_return]
        self._faults = faults

    async def run(self, world: World) -> None:
        await world.swarm_of(*self._founders)
        await world.judge_disks()
        if self._members_change:
            world.members_change()
        async with trio.open_nursery() as nursery:
            for name in self._founders:
                nursery.start_soon(self._write_keys, world, name)
                nursery.start_soon(self._use_registers, world, name)
            for _ in range(self._rounds):
                await trio.sleep(self._rng.uniform(0.2, 2))
                fault = self._rng.choice(self._faults)
                victim = self._rng.choice(world.up())
                self.befell.append(f"{trio.current_time():.3f} {fault.__name__[1:]} {victim}")
                await fault(world, victim)
                world.witness.check_logs(world.disks())
            self._over = True
        await world.settle()
        await self._check(world)

    async def _check(self, world: World) -> None:
        assert world.network.refused == []
        for key, value in self._acknowledged.items():
            assert await world.replica("b").read(GetSetting(key)) == value, key
        for key in REGISTERS:
            await self._read(world, "c", key)
        self.history.check(world.witness.order)
        assert len(self._acknowledged) > 20, self.befell

    # Clients

    async def _write_keys(self, world: World, name: str) -> None:
        """Each key once; some keep what another was first to write."""
        n = 0
        while not self._over:
            n += 1
            once = self._rng.random() < 0.2
            key = f"once-{n}" if once else f"{name}-{n}"
            await self._put_key(world, name, key, f"{key} by {name}".encode(), once)
            await trio.sleep(self._rng.uniform(0, 0.25))

    async def _put_key(
        self, world: World, name: str, key: str, value: bytes, once: bool = False
    ) -> None:
        replica = world.hosts[name].replica
        if replica is None:
            await trio.sleep(0.2)
            return
        try:
            with trio.move_on_after(PATIENCE_S):
                kept = await replica.propose(PutSetting(key, value, only_new=once), CLIENT)
                assert self._acknowledged.setdefault(key, kept) == kept, key
        except (Busy, Unavailable):
            self.refused += 1

    async def _use_registers(self, world: World, name: str) -> None:
        n = 0
        while not self._over:
            n += 1
            key = self._rng.choice(REGISTERS)
            if self._rng.random() < 0.4:
                await self._write(world, name, key, f"{name}{n}".encode())
            else:
                await self._read(world, name, key)
            await trio.sleep(self._rng.uniform(0, 0.2))

    async def _write(self, world: World, name: str, key: str, value: bytes) -> None:
        replica = world.hosts[name].replica
        if replica is None:
            await trio.sleep(0.2)
            return
        write = Write(key, value, trio.current_time())
        self.history.writes.append(write)
        try:
            with trio.move_on_after(PATIENCE_S):
                await replica.propose(PutSetting(key, value), CLIENT)
                write.ended = trio.current_time()
        except Busy:
            self.history.writes.remove(
                write
            )  # it promises that nothing was done, and is held to it
        except Unavailable as refusal:
            if "nothing was changed" in refusal.message:
                self.history.writes.remove(write)

    async def _read(self, world: World, name: str, key: str) -> None:
        replica = world.hosts[name].replica
        if replica is None:
            await trio.sleep(0.2)
            return
        began = trio.current_time()
        try:
            with trio.move_on_after(PATIENCE_S):
                value = await replica.read(GetSetting(key))
                self.history.reads.append(Read(key, began, trio.current_time(), value))
        except Unavailable:
            pass

    # Faults

    async def _crash(self, world: World, victim: str) -> None:
        await world.crash(victim)
        await trio.sleep(self._rng.uniform(0, 4))
        await world.start(victim)

    async def _crash_leader(self, world: World, victim: str) -> None:
        await self._crash(world, next(iter(world.leaders()), victim))

    async def _power_everywhere(self, world: World, victim: str) -> None:
        hosts = world.up()
        for name in hosts:
            await world.crash(name, power=True)
        for name in hosts:
            await world.start(name)

    async def _power(self, world: World, victim: str) -> None:
        await world.crash(victim, power=True)
        await trio.sleep(self._rng.uniform(0, 2))
        await world.start(victim)

    async def _cut(self, world: World, victim: str) -> None:
        world.network.isolate(victim)
        await trio.sleep(self._rng.uniform(0, 4))
        world.network.heal()

    async def _one_way(self, world: World, victim: str) -> None:
        other = self._rng.choice([n for n in world.up() if n != victim])
        world.network.cut_one_way(victim, other)
        await trio.sleep(self._rng.uniform(0, 4))
        world.network.heal()

    async def _weather(self, world: World, victim: str) -> None:
        world.network.weather = Weather(
            delay_s=(0.0, self._rng.uniform(0.001, 0.3)), loss=self._rng.uniform(0, 0.3),
            doubled=self._rng.uniform(0, 0.3),
        )  # fmt: skip
        await trio.sleep(self._rng.uniform(0, 4))
        world.network.weather = Weather()

    async def _transfer(self, world: World, victim: str) -> None:
        for name in world.leaders():
            try:
                await world.replica(name).hand_over(NodeId(victim))
            except (Conflict, Unavailable):
                pass

    async def _clock(self, world: World, victim: str) -> None:
        host = world.hosts[victim]
        host.clock_off_ms = self._rng.choice([-HOUR_MS, HOUR_MS, 0])
        await trio.sleep(self._rng.uniform(0, 2))

    async def _slow_disk(self, world: World, victim: str) -> None:
        disk = world.hosts[victim].disk
        usual, disk.sync_s = disk.sync_s, (0.0, self._rng.uniform(0.05, 0.8))
        await trio.sleep(self._rng.uniform(0, 4))
        disk.sync_s = usual

    async def _full_log(self, world: World, victim: str) -> None:
        disk = world.hosts[victim].disk
        usual, disk.writes_max, disk.sync_s = (disk.writes_max, disk.sync_s), 1, (0.05, 0.1)
        await trio.sleep(self._rng.uniform(0, 2))
        disk.writes_max, disk.sync_s = usual

    async def _burst(self, world: World, victim: str) -> None:
        """More at once than may be under way."""
        async with trio.open_nursery() as nursery:
            for n in range(30):
                key = f"burst-{victim}-{trio.current_time()}-{n}"
                nursery.start_soon(self._put_key, world, victim, key, key.encode())

    async def _join(self, world: World, victim: str) -> None:
        if self._newcomers:
            await world.start(self._newcomers.pop(0), join=tuple(self._founders))

    async def _demote(self, world: World, victim: str) -> None:
        for name in world.leaders():
            if victim != name:
                try:
                    await world.replica(name).change_members(learners=(NodeId(victim),))
                except (Conflict, Unavailable):
                    pass

    async def _remove_and_return(self, world: World, victim: str) -> None:
        """Out of the members, and back as a learner, before the others' clients notice much."""
        for name in world.leaders():
            if victim != name:
                try:
                    await world.replica(name).change_members(removed=(NodeId(victim),))
                    await trio.sleep(self._rng.uniform(0, 1))
                    await world.replica(name).change_members(learners=(NodeId(victim),))
                except (Conflict, Unavailable):
                    pass
