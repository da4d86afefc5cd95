"""Faults that wait for their moment: each brings about what passes within a round trip, and strikes
there. Drawn at random alone they would need hundreds of runs to come upon it.
"""

from __future__ import annotations

import random
from dataclasses import replace
from functools import partial

import msgspec
import trio

from swarmd.cluster import snapshots
from swarmd.cluster.replica import INSTALLING
from swarmd.sim.faults import Fault, Kind
from swarmd.sim.harm import KINDS
from swarmd.sim.network import Weather
from swarmd.sim.stage import Stage
from swarmd.state.machine import Place
from tests.sim.users import Users

SUCCEEDED_S = 6.0
"""By then another leads, where anybody can."""
COPIED_S = 10.0
"""By then who came back late was given a copy, where it needs one."""
COPIES = 3
SPOILT_S = 2.0
STOPPED_S = 2.0
MOMENT_S = 0.0005
SPARED_S = 20.0
LOOK_S = 0.01


def moments(users: Users) -> dict[str, Kind]:
    return {
        "contest": Kind(_contest, (1, 4), {"delay_s": (0.02, 0.3)}),
        "usurper": Kind(partial(_usurper, users), (1, 4)),
        "outvoted": Kind(partial(_outvoted, users), (3, 6)),
        "cut-short": Kind(_cut_short, (1, 4), {"after_s": (0.0, 0.003)}),
        "spoilt-copy": Kind(_spoilt_copy, (1, 4), {"share": (0.05, 0.5)}),
    }


def patient(kind: Kind) -> Kind:
    """Among so many faults there are seldom enough others who are well: it is waited for, and drawn
    more often."""

    async def strike(stage: Stage, fault: Fault) -> bool:
        with trio.move_on_after(SPARED_S):
            while not _may_begin_anew(stage, fault):
                await trio.sleep(10 * LOOK_S)
        return await kind.strike(stage, fault)

    return replace(kind, strike=strike, often=2 * kind.often)


def _may_begin_anew(stage: Stage, fault: Fault) -> bool:
    victim = stage.victim(fault)
    return victim is not None and stage.spared(victim)


async def _contest(stage: Stage, fault: Fault) -> bool:
    """Who leads dies, and those who are left stand at once: what they say comes late."""
    leader = stage.leader()
    if leader is None:
        return False
    weather = Weather((0.0, fault.how["delay_s"]))
    async with stage.altered(stage.world.network, "weather", weather):
        await stage.down(leader, fault.for_s)
    return True


async def _usurper(users: Users, stage: Stage, fault: Fault) -> bool:
    """Who led is cut off, and goes on to fill its log, which nobody agrees to. Another leads, whose
    power fails, and the first comes back: of the logs that are left its own is longest, and old."""
    world, old = stage.world, stage.leader()
    if old is None:
        return False
    async with trio.open_nursery() as nursery:
        async with stage.cut(lambda: world.network.isolate(old)):
            nursery.start_soon(users.fill, stage, old)
            with trio.move_on_after(SUCCEEDED_S):
                while (new := stage.leader()) in (None, old):
                    await trio.sleep(LOOK_S)
            if new is not None and new != old:
                nursery.start_soon(partial(stage.down, new, fault.for_s, power=True))
                await trio.lowlevel.checkpoint()
    return new not in (None, old)


async def _outvoted(users: Users, stage: Stage, fault: Fault) -> bool:
    """Who leads is cut off, with one other where there are enough without, and stopped until the
    rest has another; then it goes on as if it led, and is read from while they are written to."""
    world, leader = stage.world, stage.leader()
    if leader is None:
        return False
    voters = {world.name_of(voter) for voter in world.replica(leader).log_view().voters}
    rest = [name for name in stage.there() if name != leader]
    for name in sorted(rest, key=lambda name: name in voters):
        if 2 * len(voters.intersection(rest) - {name}) > len(voters):
            rest.remove(name)
            break
    aside = [name for name in stage.there() if name not in rest]
    if 2 * len(voters.intersection(rest)) <= len(voters):
        return False
    async with trio.open_nursery() as nursery:
        async with stage.cut(lambda: world.network.isolate(*aside)):
            nursery.start_soon(users.on_both_sides, stage, rest, aside, fault.for_s)
            nursery.start_soon(world.freeze, leader, STOPPED_S)
            await trio.sleep(fault.for_s)
    return True


async def _spoilt_copy(stage: Stage, fault: Fault) -> bool:
    """It comes back so late that it is given a copy of the state, which is damaged on its way."""
    victim = stage.process(fault)
    if victim is None:
        return False
    longer = msgspec.structs.replace(fault, victim=victim, for_s=fault.for_s + SPOILT_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(KINDS["spoilt"].strike, stage, longer)
        await trio.lowlevel.checkpoint()
        await stage.down(victim, fault.for_s)
    return True


async def _cut_short(stage: Stage, fault: Fault) -> bool:
    """It comes back so late that it is given a copy of the state, and dies while that is put in the
    state's place; and again."""
    network, witness = stage.world.network, stage.world.witness
    victim, rng = stage.process(fault), random.Random(fault.at_s)
    if victim is None:
        return False
    came = placed = trio.Event()
    installed = witness.installed

    def seen(method: str, source: str, target: str, data: bytes) -> bytes:
        if method == snapshots.METHOD and network.host(target) == victim:
            came.set()
        return data

    def put(name: str, place: Place) -> None:
        installed(name, place)
        if stage.world.hosts[victim].disk.name == name:
            placed.set()

    struck = False
    async with (
        stage.altered(network, "in_transit", seen), stage.altered(witness, "installed", put),
    ):  # fmt: skip
        await stage.down(victim, fault.for_s)
        with trio.move_on_after(COPIED_S):
            for _ in range(COPIES):
                came, placed = trio.Event(), trio.Event()
                if rng.random() < 0.5:
                    await placed.wait()
                else:
                    await came.wait()
                    disk = stage.world.hosts[victim].disk
                    while not int(disk.facts.get(INSTALLING, b"0")):
                        await trio.sleep(MOMENT_S)
                await trio.sleep(rng.uniform(0.0, fault.how["after_s"]))
                if stage.world.hosts[victim].scope is None:
                    break
                struck = True
                await stage.down(victim, 0.0)
    await stage.start(victim)
    return struck
