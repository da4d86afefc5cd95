"""Hosts without a replica in the small world: a disk for where replicas are, and the four verbs.

They live beside the world's own hosts, which know nothing of them but their messages.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import trio

from swarmd.cluster.remote import Remote, RemoteSettings, open_remote
from swarmd.domain.errors import Busy, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.sim.disk import Disk
from swarmd.sim.log import SimLog
from swarmd.sim.wires import SimWires
from swarmd.sim.world import CLIENT, EPOCH_MS, World
from swarmd.state.commands import VERSION, Command, PutSetting
from swarmd.state.queries import GetSetting, T


@dataclass
class RemoteHost:
    name: str
    disk: Disk
    scope: trio.CancelScope | None = None
    remote: Remote | None = None
    ended: trio.Event = field(default_factory=trio.Event)


class Remotes:
    def __init__(
        self, world: World, nursery: trio.Nursery, settings: RemoteSettings | None = None
    ) -> None:
        self.world = world
        self.hosts: dict[str, RemoteHost] = {}
        self.settings = settings or RemoteSettings()
        self._nursery = nursery

    async def start(self, name: str, *replicas: str, seeds: tuple[str, ...] = ()) -> Remote:
        world = self.world
        host = self.hosts.get(name)
        if host is None:
            rng = random.Random(f"{world.seed}{name}")
            host = self.hosts[name] = RemoteHost(name, Disk(name, rng, world.timers, world.witness))
            world.network.addresses[name] = name
        await self._nursery.start(self._live, host, replicas, seeds)
        assert host.remote is not None
        return host.remote

    async def _live(
        self, host: RemoteHost, replicas: tuple[str, ...], seeds: tuple[str, ...], *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        host.ended = trio.Event()
        log = SimLog(host.disk)
        rng = random.Random(f"{self.world.seed}{host.name}{log.boot}")
        ids = (f"{host.name}-{log.boot}-{n}" for n in range(10**9))
        try:
            with trio.CancelScope() as host.scope:
                async with trio.open_nursery() as nursery:
                    wires = SimWires(self.world.network, host.name, nursery)
                    wires.plug_in()
                    node = Node(
                        NodeId(host.name), host.name, mesh=(host.name,), machine_version=VERSION
                    )
                    async with open_remote(
                        node, log, wires, self.settings, seeds=seeds,
                        replicas={NodeId(name): (name,) for name in replicas},
                        now_ms=lambda: EPOCH_MS + int(trio.current_time() * 1000),
                        new_id=ids.__next__, rng=rng,
                    ) as host.remote:  # fmt: skip
                        task_status.started()
                        await trio.sleep_forever()
        finally:
            log.crash()
            wires.pull()
            host.remote = None
            host.ended.set()

    async def crash(self, name: str) -> None:
        host = self.hosts[name]
        assert host.scope is not None
        host.scope.cancel()
        await host.ended.wait()

    def remote(self, name: str) -> Remote:
        remote = self.hosts[name].remote
        assert remote is not None, f"{name} is down"
        return remote

    async def served(self, name: str, within_s: float = 10.0, *, not_by: str = "") -> str:
        """By whom, once it is."""

        def found() -> bool:
            return self.remote(name).served_by not in (None, not_by)

        await self.world.until(found, within_s, f"a replica that serves {name}")
        by = self.remote(name).served_by
        assert by is not None
        return by

    async def propose(self, name: str, command: Command[T]) -> T:
        """As a client would: tried again while it is refused for the moment."""
        while True:
            try:
                return await self.remote(name).propose(command, CLIENT)
            except (Busy, Unavailable):
                await trio.sleep(0.1)

    async def put(self, name: str, key: str, value: str) -> None:
        await self.propose(name, PutSetting(key, value.encode()))

    async def get(self, name: str, key: str) -> str | None:
        found = await self.remote(name).read(GetSetting(key))
        return None if found is None else found.decode()
