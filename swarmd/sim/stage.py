"""The stage: a world, and what is wrong with it just now. Faults overlap as they like; each lasts
as long as it is to, and whatever is down at the end of them all is brought up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import trio

from mesh.wal_errors import DiskFull
from swarmd.cluster.trust import REMOVED
from swarmd.domain.errors import SwarmError, leaves
from swarmd.sim.bottle import RESTART_S, Bottle
from swarmd.sim.faults import FOR_S_MAX, LEADER, Fault, Kind
from swarmd.sim.node import Removed
from swarmd.sim.world import World


class Stage:
    """A world, and what is wrong with it just now."""

    def __init__(
        self, world: World, kinds: Mapping[str, Kind],
        newcomers: Mapping[str, Sequence[str]] | None = None,
        switch_off: Callable[[str], None] = lambda name: None,
    ) -> None:  # fmt: skip
        self.world = world
        self.struck: Counter[str] = Counter()
        self.newcomers = {name: tuple(seeds) for name, seeds in (newcomers or {}).items()}
        """Hosts that come only when a fault brings them, and whom they ask."""
        self.unfinished = 0
        """So many nodes were to go for good, and it was not seen to its end: a leader that was one
        of them had given a vote to another, and may have stayed."""
        self._kinds = kinds
        self._switch_off = switch_off
        """Ends what runs on a host beside its daemon."""
        self._starting: set[str] = set()
        self._joining: set[str] = set()
        """Who asked to be taken in and was not up since."""
        self._refusals: dict[str, str] = {}
        """Why a host cannot start just now; it is tried again, as its unit would."""
        self._anew: str | None = None
        self._ways: dict[object, tuple[Callable[[], None], Callable[[], None]]] = {}
        self._layers: dict[tuple[int, str], list[list[object]]] = {}

    async def run(self, schedule: Sequence[Fault]) -> None:
        """All of it, to the end of the last; what is down then is brought up."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for fault in sorted(schedule, key=lambda fault: fault.at_s):
                await trio.sleep_until(began + fault.at_s)
                nursery.start_soon(self._strike, fault)
        for name in list(self.world.hosts):
            while self.world.hosts[name].scope is None:
                if await self.start(name):
                    self.wipe(name)

    async def _strike(self, fault: Fault) -> None:
        self.struck[fault.kind] += await self._kinds[fault.kind].strike(self, fault)
        self.world.witness.check_logs(self.world.disks())

    def __str__(self) -> str:
        down = [name for name, host in self.world.hosts.items() if host.scope is None]
        silent = [name for name in self.world.hosts if name not in {*self.there(), *down}]
        said = [f"leader {self.leader()}", f"down {down}", f"not there yet {silent}"]
        if self._anew is not None:
            said.append(f"{self._anew} begins anew")
        said += [f"{name} says: {why}" for name, why in self._refusals.items()]
        for name in self.world.up():
            view = self.world.replica(name).log_view()
            of = [self.world.name_of(voter) for voter in view.voters]
            joint = ", joint" if view.joint else ""
            said.append(f"{name} in term {view.term} at {view.applied} with voters {of}{joint}")
        return "; ".join(said)

    # Whom

    def there(self) -> list[str]:
        """Hosts that answer."""
        return self.world.there() if isinstance(self.world, Bottle) else self.world.up()

    def victim(self, fault: Fault) -> str | None:
        """Its name, if it runs."""
        return self.running(fault.victim)

    def other(self, fault: Fault) -> str | None:
        name = self.running(fault.other)
        return None if name == self.victim(fault) else name

    def process(self, fault: Fault) -> str | None:
        """The same, though it may be no further than on its way up."""
        name = self.leader() if fault.victim == LEADER else fault.victim
        host = self.world.hosts.get(name or "")
        return None if host is None or host.scope is None else host.name

    def running(self, name: str) -> str | None:
        if name == LEADER:
            return self.leader()
        return name if name in self.there() else None

    def half(self, name: str) -> list[str]:
        """Of those that are there, beginning with this one; nobody where it is not, or is alone."""
        there = self.there()
        if name not in there or len(there) < 2:
            return []
        first = there.index(name)
        return [*there[first:], *there[:first]][: len(there) // 2]

    def leader(self) -> str | None:
        return max(
            self.world.leaders(), key=lambda n: self.world.replica(n).leadership().term,
            default=None,
        )  # fmt: skip

    # What the kinds are made of

    async def start(self, name: str, *, anew: bool = False) -> bool:
        """Comes back when it is up, or was struck down again on its way: then who did that brings
        it up, or the end of it all. One that was removed stays down, as its unit has it: whether
        that is so."""
        host = self.world.hosts.get(name)
        if name in self._starting or (host is not None and host.scope is not None):
            return False
        if name == self._anew and not anew:
            return False
        self._starting.add(name)
        try:
            while True:
                if seeds := self._seeds(name):
                    self._joining.add(name)
                try:
                    await self.world.start(name, join=seeds)
                except (DiskFull, SwarmError, ExceptionGroup) as ended:
                    if not (refused := _refusals_in(ended)):
                        raise
                    if REMOVED in refused or any(
                        isinstance(each, Removed) for each in _found_in(ended)
                    ):
                        return True
                    self._refusals[name] = refused
                    await trio.sleep(RESTART_S)
                else:
                    self._refusals.pop(name, None)
                    self._joining.discard(name)
                    return False
        except RuntimeError as error:
            # Trio's words for: the process ended before it was up, or the one that was asked did.
            if not any(words in str(error) for words in ("task_status.started", "is closed")):
                raise
        except trio.TooSlowError:
            pass  # nobody led for so long that no token was made
        finally:
            self._starting.discard(name)
        return False

    def wipe(self, name: str) -> None:
        """As an operator does with the data of a host that was removed."""
        assert isinstance(self.world, Bottle)
        self._refusals.pop(name, None)
        self.world.wipe(name)

    def _seeds(self, name: str) -> tuple[str, ...]:
        """Whom it asks to be taken in, where it was in no swarm yet; it may have an id by now."""
        if isinstance(self.world, Bottle):
            known = name in self.world.hosts and self.world.machine(name).id
            if known and name not in self._joining:
                return ()
            return tuple(other for other in self.world.hosts if other != name)
        return self.newcomers.get(name, ())

    async def down(self, name: str, for_s: float, *, power: bool = False) -> None:
        if power:
            self._switch_off(name)
        await self.world.crash(name, power=power)
        await trio.sleep(for_s)
        await self.start(name)

    @asynccontextmanager
    async def anew(self, name: str | None) -> AsyncIterator[Bottle | None]:
        """A host is to begin anew as another node: one at a time, and only where enough others have
        all that was agreed on; losing a disk more is more than any swarm survives."""
        if name is None or self._anew is not None or not self.spared(name):
            yield None
            return
        self._anew = name
        try:
            assert isinstance(self.world, Bottle)
            yield self.world
            with trio.move_on_after(FOR_S_MAX):
                while not self.spared(None):
                    await self.start(name, anew=True)
                    await trio.sleep(0.5)
        finally:
            self._anew = None

    def spared(self, name: str | None) -> bool:
        """Whether all voters are there, and without this host they are still most of them."""
        if (leader := self.leader()) is None:
            return False
        view = self.world.replica(leader).log_view()
        voters = {self.world.name_of(voter) for voter in view.voters}
        if view.joint or len(voters) < min(3, len(self.world.hosts)):
            return False
        caught_up = [n for n, p in view.progress.items() if p.match >= view.committed]
        level = {leader, *(self.world.name_of(n) for n in caught_up)}
        return voters - {name} <= {*self.there()} and 2 * len((level & voters) - {name}) > len(
            voters
        )

    @asynccontextmanager
    async def way(self, apply: Callable[[], None], lift: Callable[[], None]) -> AsyncIterator[None]:
        """Something is done to ways of the network: what overlaps lasts as long as it is to, though
        `lift` lifts all that `apply`s of its sort did."""
        me = object()
        self._ways[me] = (apply, lift)
        apply()
        try:
            yield
        finally:
            del self._ways[me]
            lift()
            for again, lifted in self._ways.values():
                if lifted == lift:
                    again()

    def cut(self, apply: Callable[[], None]) -> AbstractAsyncContextManager[None]:
        return self.way(apply, self.world.network.heal)

    @asynccontextmanager
    async def altered(self, thing: object, name: str, value: object) -> AsyncIterator[None]:
        """The same of what is otherwise for a while: of several the latest counts."""
        layers = self._layers.setdefault((id(thing), name), [[getattr(thing, name)]])
        mine = [value]
        layers.append(mine)
        setattr(thing, name, value)
        try:
            yield
        finally:
            layers[:] = [layer for layer in layers if layer is not mine]
            setattr(thing, name, layers[-1][0])


def _refusals_in(ended: Exception) -> str:
    """In words, where a process ended by nothing else."""
    found = _found_in(ended)
    foreseen = all(isinstance(each, DiskFull | SwarmError) for each in found)
    return "; ".join(map(str, found)) if foreseen else ""


def _found_in(ended: Exception) -> list[BaseException]:
    return list(leaves(ended)) if isinstance(ended, ExceptionGroup) else [ended]
