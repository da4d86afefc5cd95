"""An estate: a bottle with the nodes that somebody described, as they stand once all have met; and
what befalls it, where machines may also be gone for good.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import msgspec
import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.domain.errors import Invalid
from swarmd.sim.bottle import Bottle
from swarmd.sim.faults import FAULTS_MAX, LEADER, Fault, Kind, draw
from swarmd.sim.harm import KINDS
from swarmd.sim.network import Weather
from swarmd.sim.stage import Stage
from swarmd.sim.topology import Topology, listed

ARRIVE_AT_ONCE = 50
"""So many nodes join at a time."""
ARRIVE_S_MAX = 120.0
"""Until those of one time are all there."""
NEXT_VOTER_S = 1.5
"""Who joins so much earlier votes before who joins later."""
LIGHT_KINDS = (
    "crash", "restart", "freeze", "cut-off", "bad-link", "weather", "slow-disk", "clock",
)  # fmt: skip
DRAWN = ("light", "heavy")
"""Chance chooses what befalls whom."""
LIGHT_EVERY_S = 30.0
HEAVY_EVERY_S = 3.0
_DRAWN_EVERY_S = 1.5
"""As faults.draw has it, on the average."""
WITHOUT_VICTIM = ("power-everywhere", "weather")
"""These befall all."""
STRIKING = {name: kind for name, kind in KINDS.items() if name != "join"}
"""Of an estate everybody is there from the beginning."""


class Estate(Bottle):
    def __init__(
        self, seed: int, place: Path, nursery: trio.Nursery, settings: OpeningSettings
    ) -> None:
        super().__init__(seed, place, nursery, settings)
        self._token_made: str | None = None
        self._places: dict[str, int] = {}

    async def arrive(
        self, topology: Topology, first: Sequence[str] = (), came: Callable[[int], None] = print
    ) -> None:
        """All nodes as one swarm; those who come first vote, and have replicas, in this order.
        `came` is told how many are there."""
        for node in topology.nodes:
            self.capacities[node.name] = node.capacity
            self.labels[node.name] = dict(node.labels)
        names = [node.name for node in topology.nodes]
        self._places = {name: place for place, name in enumerate(names)}
        ahead = list(first) or names[: min(len(names), self.voters.voters_many)]
        await self.start(ahead[0])
        await self.leader()
        came(1)
        for name in ahead[1:]:
            await self._join([name], ahead[0])
            await trio.sleep(NEXT_VOTER_S)
        rest = [name for name in names if name not in ahead]
        replicas = max(0, self.settings.replica.replicas_max - len(ahead))
        await self._join(rest[:replicas], ahead[0])
        for at in range(replicas, len(rest), ARRIVE_AT_ONCE):
            came(len(self.hosts))
            await self._join(rest[at : at + ARRIVE_AT_ONCE], ahead[0])
        await self.until(lambda: self.complete(*names), ARRIVE_S_MAX, "a swarm of all")
        for link in topology.links:
            self.network.links |= dict.fromkeys(link.ways(), Weather(link.delay_s, link.loss))
        came(len(self.hosts))

    def in_order(self, names: Iterable[str]) -> list[str]:
        """As they were described."""
        return sorted(names, key=lambda name: (self._places.get(name, len(self._places)), name))

    def in_charge(self, name: str) -> bool:
        """Whether this leader goes on, and reaches most who vote."""
        if self.hosts[name].gate.shut:
            return False
        me, voters = self.node_id(name), self.replica(name).log_view().voters
        wires = self.network.up.get(me)
        met = (peer == me or (wires is not None and wires.meets(peer)) for peer in voters)
        return 2 * sum(met) > len(voters)

    async def _join(self, names: Sequence[str], by: str) -> None:
        with trio.fail_after(ARRIVE_S_MAX):
            async with trio.open_nursery() as nursery:
                for name in names:
                    nursery.start_soon(partial(self.start, name, join=(by,)))

    async def _token(self, among: Sequence[str]) -> str:
        """One for all: a swarm holds few at a time."""
        if self._token_made is None:
            self._token_made = await super()._token(among)
        return self._token_made


@dataclass(frozen=True)
class Blow:
    """A fault, as it befell."""

    at: float
    fault: Fault
    """As it was planned: it may be about whoever leads."""
    victim: str
    """By name; empty where nobody led."""
    other: str
    sides: tuple[tuple[str, ...], tuple[str, ...]] | None = None
    """Whom it parted: the victim's side first, which begins with the victim."""
    struck: bool | None = None
    """None: it was under way at the end."""


class Blows(Stage):
    """What befalls an estate. A machine that is gone for good is brought up by nobody."""

    def __init__(
        self, estate: Estate, told: Callable[[Blow], None],
        kinds: Mapping[str, Kind] = STRIKING, *, drawn: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(estate, kinds)
        self._estate = estate
        self._told = told
        self._drawn = drawn
        """Chance chose whom: where it chose a node and whoever leads, and that is one, another
        does as well."""
        self._gone: set[str] = set()

    async def befall(self, schedule: Sequence[Fault]) -> None:
        """All of it, each at its time from now on."""
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for fault in sorted(schedule, key=lambda fault: fault.at_s):
                await trio.sleep_until(began + fault.at_s)
                nursery.start_soon(self._strike, fault)

    async def _strike(self, fault: Fault) -> None:
        blow = self._aimed(fault)
        aimed = msgspec.structs.replace(
            fault, victim=blow.victim or fault.victim, other=blow.other or fault.other
        )
        try:
            struck = await self._kinds[fault.kind].strike(self, aimed)
            self.struck[fault.kind] += struck
            blow = replace(blow, struck=struck)
        finally:
            self._told(blow)

    def _aimed(self, fault: Fault) -> Blow:
        """Whom it befalls, as of now."""
        leader = (self.leader() or "") if LEADER in (fault.victim, fault.other) else ""
        victim = leader if fault.victim == LEADER else fault.victim
        other = leader if fault.other == LEADER else fault.other
        if self._drawn and other and other == victim:
            names = self._estate.in_order(self._estate.hosts)
            other = names[(names.index(victim) + 1) % len(names)]
        sides = self._halves(victim) if fault.kind == "halves" else None
        return Blow(trio.current_time(), fault, victim, other, sides)

    def _halves(self, victim: str) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
        """Who is down finds itself with the others."""
        if not (side := self.half(victim)):
            return None
        return tuple(side), tuple(self._estate.in_order(self._estate.hosts.keys() - {*side}))

    async def take(self, names: Sequence[str]) -> None:
        """Their power, at once, whatever state they are in."""
        self._gone |= {*names}
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._take_one, name)

    async def _take_one(self, name: str) -> None:
        host = self._estate.machine(name)
        if host.scope is not None:
            await self._estate.crash(name, power=True)
        elif host.runner is not None:
            host.runner.die()
            host.runner = None

    async def give_back(self, names: Sequence[str]) -> None:
        """Their power: each starts by itself, as a machine does."""
        self._gone -= {*names}
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self.start, name)

    async def start(self, name: str, *, anew: bool = False) -> bool:
        return name not in self._gone and await super().start(name, anew=anew)


def draw_faults(how: str, seed: int, names: Sequence[str], seconds: float) -> list[Fault]:
    """`light` or `heavy`, over so many seconds."""
    kinds = {name: KINDS[name] for name in LIGHT_KINDS} if how == "light" else STRIKING
    if len(names) == 1:
        kinds = {name: kind for name, kind in kinds.items() if not kind.pair}
    every_s = LIGHT_EVERY_S if how == "light" else HEAVY_EVERY_S
    count = min(FAULTS_MAX, int(seconds / every_s))
    heavy = how == "heavy" and len(names) > 1
    drawn = draw(
        random.Random(f"{seed}faults"), count, names, kinds, members_change=heavy, whole=heavy
    )
    stretch = every_s / _DRAWN_EVERY_S
    stretched = [
        Fault(round(f.at_s * stretch, 3), f.kind, f.victim, f.other, f.for_s, f.how) for f in drawn
    ]
    return [fault for fault in stretched if fault.at_s < seconds]


def check_victims(schedule: Sequence[Fault], topology: Topology) -> None:
    """Invalid: a fault is to befall nobody, or somebody whom this swarm does not have, or in words
    that its kind does not know."""
    names = [node.name for node in topology.nodes]
    known = {LEADER, "", *names}
    there = f"there are {listed(names)}, and {LEADER!r} for whoever leads"
    for number, fault in enumerate(schedule, 1):
        for who in (fault.victim, fault.other):
            if who not in known:
                raise Invalid(
                    f"fault {number} is about {who[:80]!r}, which is no node of this swarm; {there}"
                )
        if fault.kind not in STRIKING:
            raise Invalid(
                f"fault {number}: nodes of this swarm are there from the beginning, so a fault of"
                f" the kind {fault.kind} befalls none; there are {listed([*STRIKING])}"
            )
        if not fault.victim and fault.kind not in WITHOUT_VICTIM:
            raise Invalid(
                f"fault {number}: a fault of the kind {fault.kind} befalls a node: say which, as"
                f" `victim`; {there}"
            )
        alone = fault.other in ("", fault.victim) or len(names) == 1
        if KINDS[fault.kind].pair and alone:
            raise Invalid(
                f"fault {number}: a fault of the kind {fault.kind} is between two nodes: say one as"
                f" `victim` and another as `other`; {there}"
            )
        _check_how(number, fault)


def _check_how(number: int, fault: Fault) -> None:
    bounds = KINDS[fault.kind].how
    for word in fault.how:
        if word not in bounds:
            words = f"only {', '.join(map(repr, bounds))}" if bounds else "nothing"
            raise Invalid(
                f"fault {number}: a fault of the kind {fault.kind} says {words} in `how`, and not"
                f" {word[:80]!r}"
            )
    for word, (least, most) in bounds.items():
        if not least <= fault.how.get(word, math.nan) <= most:
            raise Invalid(
                f"fault {number}: a fault of the kind {fault.kind} says in `how` how bad it is,"
                f" with {word!r} between {least:g} and {most:g}"
            )
