"""A small swarm in one process: real replicas and control loops on a simulated network and disks.

The same seed makes the same run, to the byte: time jumps, chance is seeded, no thread runs in here,
and what was delivered is hashed.
"""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import trio
import trio._core._run as trio_run

from mesh.raft import MemoryStorage
from swarmd.cluster.opening import OpeningSettings, open_replica
from swarmd.cluster.replica import Replica
from swarmd.control.leadership import lead_when_elected
from swarmd.control.members import VoterSettings
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, SwarmError, Unavailable, leaves
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Capacity, Node
from swarmd.sim.clockwork import HostClock, JumpingClock, Timers
from swarmd.sim.disk import Disk, SimStore
from swarmd.sim.freezing import Freezer, Gate
from swarmd.sim.log import SimLog
from swarmd.sim.network import Network
from swarmd.sim.wires import SimWires
from swarmd.sim.witness import Witness
from swarmd.state.commands import VERSION, Command, PutSetting
from swarmd.state.machine import dump_hash
from swarmd.state.queries import GetSetting, T
from swarmd.state.versions import Outdated

CLIENT = Actor("client", "sim")
EPOCH_MS = 1_700_000_000_000
W = TypeVar("W", bound="World")
COLLECT_AFTER = (200_000, 20, 50)
"""Garbage is looked for less often than elsewhere: a world makes much, and hardly any in rings."""
BODY_S_MAX = 1200.0
"""Of simulated time. A world that takes longer hangs."""


@dataclass
class Host:
    """A machine: its disk outlives its process."""

    name: str
    disk: Disk
    place: Path
    clock_off_ms: int = 0
    clock: HostClock = field(default_factory=HostClock)
    gate: Gate = field(default_factory=Gate)
    version: int = VERSION
    """The newest of the machine that its program knows."""
    refused: SwarmError | None = None
    """Why its last life ended, where its program was too old."""
    scope: trio.CancelScope | None = None
    replica: Replica | None = None
    wires: SimWires | None = None
    stop: trio.Event = field(default_factory=trio.Event)
    ended: trio.Event = field(default_factory=trio.Event)

    def wall_s(self) -> float:
        """The time of day, as this host has it."""
        return (EPOCH_MS + self.clock_off_ms) / 1000 + self.clock.now()

    def now_ms(self) -> int:
        return EPOCH_MS + int(self.clock.now() * 1000) + self.clock_off_ms


class World:
    def __init__(self, seed: int, place: Path, nursery: trio.Nursery, settings: OpeningSettings):
        self.seed = seed
        self.rng = random.Random(seed)
        self.timers = Timers(random.Random(seed + 2))
        self.network = Network(random.Random(seed + 1), self.timers)
        self.witness = Witness()
        self.network.on_send = self.witness.sent
        self.freezer = Freezer()
        self.hosts: dict[str, Host] = {}
        self.settings = settings
        self.voters = VoterSettings()
        self.capacity = Capacity()
        self.inhabit: Callable[[Host, Replica], AbstractAsyncContextManager[None]] = _nobody
        """What else lives on a host, beside its replica."""
        self._place = place
        self._nursery = nursery

    # Hosts

    async def start(
        self, name: str, *, join: tuple[str, ...] = (), replaces: str | None = None,
        called: str | None = None, at: str | None = None, version: int | None = None,
    ) -> Host:  # fmt: skip
        """Bring a host up, and wait until its replica takes part; with a program that knows the
        machine up to this version, from now on. `at` is where it says that it is reached."""
        host = self.hosts.get(name) or self._set_up(name)
        if version is not None:
            host.version = version
        host.refused = None
        self.network.off.discard(name)
        await self._nursery.start(self._live, host, join, replaces, called or name, at or name)
        return host

    def _set_up(self, name: str) -> Host:
        place = self._place / name
        place.mkdir()
        host = self.hosts[name] = Host(name, self._new_disk(name), place)
        host.disk.gate = host.gate
        self.network.addresses[name] = name
        return host

    def _new_disk(self, name: str) -> Disk:
        return Disk(name, random.Random(f"{self.seed}{name}"), self.timers, self.witness)

    async def _live(
        self, host: Host, join: tuple[str, ...], replaces: str | None, called: str, at: str, *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        host.stop, host.ended = trio.Event(), trio.Event()
        log, store = SimLog(host.disk), SimStore(host.disk, host.version)
        rng = random.Random(f"{self.seed}{host.name}{log.boot}")
        ids = (f"{host.name}-{log.boot}-{n}" for n in range(10**9))
        self.freezer.enrol(host.gate)
        started = False
        try:
            with trio.CancelScope() as host.scope:
                async with trio.open_nursery() as nursery:
                    wires = host.wires = SimWires(self.network, host.name, nursery, gate=host.gate)
                    wires.plug_in()
                    nursery.start_soon(end_with, log)
                    nursery.start_soon(end_with, store)
                    node = Node(
                        NodeId(host.name), called, mesh=(at,), capacity=self.capacity,
                        machine_version=host.version,
                    )  # fmt: skip
                    async with open_replica(
                        node, log, store, wires, host.place, self.settings, join=join, rng=rng,
                        replaces=None if replaces is None else NodeId(replaces),
                        now_ms=host.now_ms, new_id=ids.__next__, in_thread=inline,
                    ) as replica:  # fmt: skip
                        host.replica = replica
                        nursery.start_soon(
                            lead_when_elected, replica, UpkeepSettings(), self.voters
                        )
                        async with self.inhabit(host, replica):
                            task_status.started()
                            started = True
                            await host.stop.wait()
                    nursery.cancel_scope.cancel()
        except* (Outdated, Conflict) as group:
            refused = next(leaves(group))
            if not started or host.version == VERSION or not isinstance(refused, SwarmError):
                raise
            host.refused = refused
        finally:
            log.crash()
            store.crash()
            wires.pull(silently=host.name in self.network.off)
            self.freezer.dismiss()
            host.replica = host.wires = host.scope = None
            host.ended.set()

    def background(self, work: Callable[[], Awaitable[None]]) -> None:
        """For as long as the world lasts."""
        self._nursery.start_soon(work)

    async def stop(self, name: str) -> None:
        """In good order."""
        host = self.hosts[name]
        host.stop.set()
        await host.ended.wait()

    async def crash(self, name: str, *, power: bool = False) -> None:
        """kill -9; with `power` what was not synced goes too, and nothing says goodbye."""
        host = self.hosts[name]
        assert host.scope is not None
        if power:
            self.network.off.add(name)
        if host.wires is not None:
            host.wires.dead = True
        host.scope.cancel()
        self.freezer.let_go(host.gate)
        host.gate.forget()
        await host.ended.wait()
        self.network.stopped.discard(name)
        if power:
            host.disk.lose_power()

    async def freeze(self, name: str, for_s: float) -> None:
        """SIGSTOP, and SIGCONT after a while; what it runs, it runs on. Nothing where it is down,
        or ends meanwhile."""
        host = self.hosts[name]
        ended = host.ended
        if host.scope is None or host.gate.shut:
            return
        self.freezer.freeze(host.gate)
        try:
            with trio.move_on_after(for_s):
                with trio.move_on_after(self.network.noticed_s):
                    await ended.wait()
                if host.ended is ended and not ended.is_set():
                    self.network.note_stopped(name, True)
                    await ended.wait()
        finally:
            if host.ended is ended and not ended.is_set():
                self.freezer.thaw(host.gate)
                if name in self.network.stopped:
                    self.network.note_stopped(name, False)

    # What is seen of them

    def node_id(self, name: str) -> NodeId:
        """Under which id a host is known to the others now."""
        return NodeId(name)

    def name_of(self, node_id: str) -> str:
        return self.network.host(node_id)

    def replica(self, name: str) -> Replica:
        replica = self.hosts[name].replica
        assert replica is not None, f"{name} is down"
        return replica

    def up(self) -> list[str]:
        return [name for name, host in self.hosts.items() if host.replica is not None]

    def leaders(self) -> list[str]:
        return [n for n in self.up() if self.replica(n).leadership().ready]

    async def leader(self, within_s: float = 30.0, among: tuple[str, ...] = ()) -> str:
        """The one that leads in the highest term, once there is one."""

        def found() -> str | None:
            leaders = [n for n in self.leaders() if not among or n in among]
            return max(leaders, key=lambda n: self.replica(n).leadership().term, default=None)

        await self.until(lambda: found() is not None, within_s, "a leader")
        name = found()
        assert name is not None
        return name

    async def until(self, holds: Callable[[], bool], within_s: float, what: str) -> None:
        with trio.move_on_after(within_s):
            while not holds():
                await trio.sleep(0.02)
            return
        raise AssertionError(f"{what} did not come about in {within_s} s")

    async def swarm_of(self, *names: str) -> None:
        """These hosts as one swarm, all of them members, as many voting as are wanted."""
        await self.start(names[0])
        await self.leader()
        for name in names[1:]:
            await self.start(name, join=(names[0],))
        voters = min(len(names), self.voters.voters)

        def complete() -> bool:
            views = [self.replica(n).log_view() for n in names]
            return all(len(v.voters) >= voters and not v.joint for v in views)

        await self.until(complete, 30, f"{voters} voters that all know of")

    async def judge_disks(self) -> None:
        """From here on, until members change: what is applied anywhere is on most voters' disks."""
        await self.settle()
        voters = self.replica(self.up()[0]).log_view().voters
        disks = [self.hosts[self.name_of(voter)].disk for voter in voters]
        self.witness.voters = lambda: {disk.name: disk.stored for disk in disks}

    def members_change(self) -> None:
        """From here on the voters are others every moment."""
        self.witness.voters = lambda: None

    # Clients

    async def put(self, name: str, key: str, value: str) -> None:
        await self.propose(name, PutSetting(key, value.encode()))

    async def propose(self, name: str, command: Command[T]) -> T:
        """As a client would: tried again while it is refused for the moment."""
        while True:
            try:
                return await self.replica(name).propose(command, CLIENT)
            except (Busy, Unavailable):
                await trio.sleep(0.1)

    async def get(self, name: str, key: str) -> str | None:
        found = await self.replica(name).read(GetSetting(key))
        return None if found is None else found.decode()

    # What must hold

    async def settle(self, within_s: float = 60.0) -> None:
        """Everything that is up has applied the same, and the dumps are equal."""

        def level() -> bool:
            if not self.leaders():
                return False
            views = [self.replica(n).log_view() for n in self.up()]
            ends = {view.last for view in views}
            return len(ends) == 1 and ends == {view.applied for view in views}

        for host in self.hosts.values():
            if host.replica is not None:
                await self.until(host.replica.introduced.is_set, within_s, "all introduced")
        await self.until(level, within_s, "all at one place of the log")
        self.check_equal()

    def check_equal(self) -> None:
        dumps = {n: dump_hash(self.hosts[n].disk.state) for n in self.up()}
        assert len(set(dumps.values())) == 1, f"replicas differ: {dumps}"
        self.witness.check_logs(self.disks())

    def disks(self) -> dict[str, MemoryStorage]:
        return {name: host.disk.stored for name, host in self.hosts.items()}

    def fingerprint(self) -> str:
        """Of everything that was delivered, and of every replica at the end."""
        digest = self.network.trace.copy()
        for name in sorted(self.hosts):
            digest.update(dump_hash(self.hosts[name].disk.state).encode())
        return digest.hexdigest()


@asynccontextmanager
async def _nobody(host: Host, replica: Replica) -> AsyncIterator[None]:
    yield


async def end_with(files: SimStore | SimLog) -> None:
    await files.failed.wait()
    assert files.failure is not None
    raise files.failure


async def inline(work, /, *args):  # type: ignore[no-untyped-def]
    """What goes to a thread elsewhere."""
    return work(*args)


def run_world(
    seed: int, place: Path, body: Callable[[World], Awaitable[None]],
    settings: OpeningSettings | None = None,
) -> None:  # fmt: skip
    """Run a body in a world of its own, to its end; what it raises comes out as it is."""
    run_in(World, seed, place, body, settings)


def run_in(
    kind: type[W], seed: int, place: Path, body: Callable[[W], Awaitable[None]],
    settings: OpeningSettings | None = None,
) -> None:  # fmt: skip
    """The same in a world of this kind."""

    clock = JumpingClock()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            world = kind(seed, place, nursery, settings or OpeningSettings())
            clock.timers = world.timers
            nursery.start_soon(world.timers.run)
            try:
                with trio.fail_after(BODY_S_MAX):
                    await body(world)
            finally:
                # Who has no turns cannot end either.
                world.freezer.end()
            nursery.cancel_scope.cancel()

    deterministic = trio_run._ALLOW_DETERMINISTIC_SCHEDULING
    thresholds = gc.get_threshold()
    gc.set_threshold(*COLLECT_AFTER)
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    trio_run._r.seed(seed)
    try:
        trio.run(main, clock=clock)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from None
    finally:
        gc.set_threshold(*thresholds)
        trio_run._ALLOW_DETERMINISTIC_SCHEDULING = deterministic  # type: ignore[misc]
