"""The swarm in a bottle: hosts with whole nodes and runners, and what befalls them by intention.

A host has a name; the id of its node is another matter, and may change. What a node is made of is
in swarmd.sim.node.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Generic
from uuid import UUID

import trio

from mesh.swim import LAN
from mesh.wal_errors import DiskFull, LogDamaged, LogError, LogFailed
from swarmd import belonging
from swarmd.agent import rejoining
from swarmd.cluster.handle import Hosted
from swarmd.cluster.opening import OpeningSettings, ServedByOthers
from swarmd.cluster.remote import RemoteSettings
from swarmd.cluster.replica import NotNewest
from swarmd.cluster.trust import REMOVED
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, SwarmError, Unavailable, instead, leaves
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Capacity
from swarmd.ops import members
from swarmd.ops import trust as trust_ops
from swarmd.sim.disk import SimStore
from swarmd.sim.log import SimLog
from swarmd.sim.network import NOTICED_S
from swarmd.sim.node import NOBODY, Bench, Machine, Removed, open_cluster, serve
from swarmd.sim.workers import SLOTS, Runs
from swarmd.sim.world import Host, World, end_with
from swarmd.state.commands import VERSION, T

log = logging.getLogger(__name__)

OPERATOR = Actor("operator", "sim")
LIVES_MAX = 3
"""As the daemon: so often a process begins anew as another node."""
RESTART_S = 1.0
"""As the unit's RestartSec: after so long a process that ended by itself is started again."""
TOKEN_S_MAX = 30.0


class Gone(Exception):
    """The node that was asked ended, or is not there: what became of the request is not known."""


FORESEEN: tuple[type[BaseException], ...] = (
    Removed, NotNewest, LogDamaged, LogFailed, DiskFull, belonging.StartAgain,
)  # fmt: skip
"""A process may end by itself with these. Any other end is a fault of the product's."""


class Bottle(World):
    """A World whose hosts are whole nodes, with their runners."""

    def __init__(
        self, seed: int, place: Path, nursery: trio.Nursery, settings: OpeningSettings
    ) -> None:
        super().__init__(seed, place, nursery, settings)
        self.network.noticed_s = NOTICED_S
        self.capacity = Capacity(SLOTS, 4.0, 1 << 30)
        self.runs = Runs()
        """What runs where; whoever watches puts another in its place before a host is there."""
        self.remote_settings = RemoteSettings()
        self.upkeep = UpkeepSettings()
        self.gossip = LAN
        self.capacities: dict[str, Capacity] = {}
        self.labels: dict[str, dict[str, str]] = {}
        """Of hosts that differ from the others."""
        self.benches: dict[str, Bench] = {}
        """Of hosts that build packages."""

    # Hosts

    async def start(
        self, name: str, *, join: tuple[str, ...] = (), replaces: str | None = None,
        called: str | None = None, at: str | None = None, version: int | None = None,
    ) -> Machine:  # fmt: skip
        """As in any World; `join` names hosts, of which one makes the token. What a daemon cannot
        even begin with is raised here."""
        assert replaces is None and at is None, "a whole node finds that out by itself"
        host = self.hosts.get(name) or self._set_up(name)
        assert isinstance(host, Machine)
        if join:
            host.token = await self._token(join)
        await super().start(name, join=join, called=called, version=version)
        return host

    def machine(self, name: str) -> Machine:
        host = self.hosts[name]
        assert isinstance(host, Machine)
        return host

    def _set_up(self, name: str) -> Machine:
        place = self._place / name
        place.mkdir()
        host = Machine(name, self._new_disk(name), place, number=len(self.hosts))
        host.disk.gate = host.gate
        self.hosts[name] = host
        return host

    async def populate(self, *names: str, within_s: float = 60.0) -> None:
        """These hosts as one swarm, everything on: the first founds it, the others join at once.
        As many have replicas, and vote, as the settings say."""
        await self.start(names[0])
        await self.leader()
        async with trio.open_nursery() as nursery:
            for name in names[1:]:
                nursery.start_soon(partial(self.start, name, join=(names[0],)))
        await self.until(lambda: self.complete(*names), within_s, "a swarm of all")

    def complete(self, *names: str) -> bool:
        """All are known and up to date, and as many vote as are wanted."""
        leaders = self.leaders()
        if not leaders or not all(self.machine(name).cluster for name in names):
            return False
        view = self.replica(leaders[0]).log_view()
        replicas = len(view.voters) + len(view.learners)
        many = replicas >= self.voters.many_nodes
        wanted = self.voters.voters_many if many else self.voters.voters
        return (
            len(view.voters) >= min(wanted, len(names))
            and not view.joint
            and replicas >= min(self.settings.replica.replicas_max, len(names))
            and all(
                c.introduced.is_set() and c.cluster_version() == VERSION
                for c in map(self.cluster, names)
            )
        )

    async def leave(self, name: str) -> None:
        """For good, as `swarmd leave` does it; the host may join again as a new node."""
        host = self.machine(name)
        host.leaves = True
        try:
            await self.request(name, lambda c: members.leave(c, OPERATOR, c.removed))
        except BaseException:
            host.leaves = False
            raise
        await self.stop(name)

    async def remove(self, name: str, *, by: str, force: bool = False) -> None:
        """As `swarmd remove` on another host."""
        node_id = self.machine(name).id
        await self.request(by, lambda c: members.remove(c, OPERATOR, node_id, force))

    def wipe(self, name: str) -> None:
        """Move its data away, while no daemon runs there: it begins as a new host does."""
        host = self.machine(name)
        assert host.scope is None, f"{name} runs"
        rejoining.put_away(host.place)
        host.id = NOBODY

    async def crash(self, name: str, *, power: bool = False) -> None:
        """kill -9 of the daemon; with `power` of the whole machine, and what runs there ends."""
        host = self.machine(name)
        if power and host.runner is not None:
            host.runner.die()
            host.runner = None
        await super().crash(name, power=power)

    def drift(self, name: str, ppm: float) -> None:
        """From now on its clocks run so much faster than time does."""
        host = self.machine(name)
        host.clock.drift(ppm)
        if host.runner is not None:
            host.runner.wake.set()

    # What is seen of them

    def node_id(self, name: str) -> NodeId:
        return self.machine(name).id

    def there(self) -> list[str]:
        """Hosts whose nodes are there for others, with a replica or without."""
        return [name for name in self.hosts if self.machine(name).cluster is not None]

    def cluster(self, name: str) -> Hosted:
        """Gone where it is down."""
        cluster = self.machine(name).cluster
        if cluster is None:
            raise Gone(f"{name} is down")
        return cluster

    # Clients

    async def request(self, name: str, work: Callable[[Hosted], Awaitable[T]]) -> T:
        """What an API does for a client: an op in a task of the node, which ends with it. A client
        that gives up cancels it. Gone, and whatever the op refuses with."""
        host = self.machine(name)
        cluster, nursery = host.cluster, host.nursery
        if cluster is None or nursery is None:
            raise Gone(f"{name} is down")
        answer = _Answer[T]()
        nursery.start_soon(answer.find, work, cluster)
        try:
            await answer.come.wait()
        finally:
            answer.scope.cancel()
        return answer.value()

    async def _token(self, among: Sequence[str]) -> str:
        """From the first that makes one."""
        with trio.fail_after(TOKEN_S_MAX):
            while True:
                for name in among:
                    try:
                        made = await self.request(name, lambda c: trust_ops.make_token(c, OPERATOR))
                    except (Gone, Busy, Unavailable):
                        continue
                    return made.token
                await trio.sleep(0.2)

    # A daemon's life

    async def _live(
        self, host: Host, join: tuple[str, ...], replaces: str | None, called: str, at: str, *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:  # fmt: skip
        assert isinstance(host, Machine)
        host.stop, host.ended, host.leaves = trio.Event(), trio.Event(), False
        seeds = tuple(self.machine(name).address for name in join)
        began = False

        def begun() -> None:
            nonlocal began
            if not began:
                began = True
                task_status.started()

        self.freezer.enrol(host.gate)
        try:
            with trio.CancelScope() as host.scope:
                while (end := await self._process(host, seeds, called, begun)) is not None:
                    if not began:
                        raise end
                    log.info("a daemon ended", extra={"host": host.name, "reason": str(end)})
                    host.ends.append((trio.current_time(), end))
                    if isinstance(end, SwarmError):
                        host.refused = end
                    if _says_removed(end):
                        break
                    await trio.sleep(RESTART_S)
        finally:
            self.freezer.dismiss()
            host.scope = None
            host.ended.set()

    async def _process(
        self, host: Machine, seeds: tuple[str, ...], called: str, begun: Callable[[], None]
    ) -> BaseException | None:
        """One daemon's, from its start to its end; what it ended by, unless it was told to."""
        end: BaseException | None = None
        for _ in range(LIVES_MAX):
            try:
                with instead(
                    (ServedByOthers, NotNewest), partial(belonging.life_after, host.place)
                ):
                    await self._node(host, seeds, called, begun)
                return None
            except (SwarmError, LogError, BaseExceptionGroup) as error:
                end = _reason(error)
                if end is None:
                    raise
            if not isinstance(end, belonging.StartAgain):
                break
        return end

    async def _node(
        self, host: Machine, seeds: tuple[str, ...], called: str, begun: Callable[[], None]
    ) -> None:
        earlier = belonging.resume(host.place)
        self._take_id(host)
        host.life += 1
        # The log itself is in memory; rejoining goes by its name to tell whose files these are.
        (host.place / "raft.db").touch()
        raft_log = SimLog(host.disk)
        store: SimStore | None = None
        try:
            store = SimStore(host.disk, host.version)
            async with trio.open_nursery() as nursery:
                host.nursery = nursery
                nursery.start_soon(end_with, raft_log)
                nursery.start_soon(end_with, store)
                opened = open_cluster(self, host, seeds, called, earlier, raft_log, store, nursery)
                async with opened as cluster:
                    await serve(self, host, cluster, nursery, begun)
                nursery.cancel_scope.cancel()
            raft_log.close()
        finally:
            raft_log.crash()
            if store is not None:
                store.crash()
            if host.wires is not None:
                host.wires.pull(silently=host.name in self.network.off)
            host.cluster = host.replica = host.wires = host.nursery = None
        if host.leaves:
            rejoining.put_away(host.place)
            host.id = NOBODY

    def _take_id(self, host: Machine) -> None:
        """The one in the data directory; where there is none it is another node, on new files."""
        path = host.place / "node-id"
        if not path.exists():
            chance = random.Random(f"{self.seed}{host.name}{host.life}id")
            path.write_text(str(UUID(bytes=chance.randbytes(16), version=4)))
        found = NodeId(path.read_text())
        if found == host.id:
            return
        if host.life:
            host.disk.state.close()
            host.disk = self._new_disk(f"{host.name}+{host.life}")
            host.disk.gate = host.gate
        host.id = found
        self.network.hosts[found] = host.name
        self.network.addresses[host.address] = found


class _Answer(Generic[T]):
    """Of one request."""

    def __init__(self) -> None:
        self.come = trio.Event()
        self.scope = trio.CancelScope()
        self._found: list[T] = []
        self._refusal: SwarmError | None = None

    async def find(self, work: Callable[[Hosted], Awaitable[T]], cluster: Hosted) -> None:
        try:
            with self.scope:
                self._found.append(await work(cluster))
        except SwarmError as refusal:
            self._refusal = refusal
        finally:
            self.come.set()

    def value(self) -> T:
        if self._refusal is not None:
            raise self._refusal
        if not self._found:
            raise Gone("the node ended before it answered")
        return self._found[0]


def _reason(error: BaseException) -> BaseException | None:
    """Why a process ended, where all that came out of it was foreseen."""
    found = list(leaves(error)) if isinstance(error, BaseExceptionGroup) else [error]
    foreseen = all(isinstance(each, FORESEEN) or _says_removed(each) for each in found)
    return found[0] if foreseen else None


def _says_removed(end: BaseException) -> bool:
    """It asked to be taken in again, with its id and nothing else, and has been removed since."""
    return isinstance(end, Removed) or (isinstance(end, Conflict) and REMOVED in end.message)
