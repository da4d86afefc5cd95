"""Harm: every kind of fault that there is, each a function that does it, waits, and undoes it.

A new one is a function and a line in KINDS. One that finds nothing to harm says False.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial

import trio

from mesh.wal_errors import LogError
from swarmd.cluster import snapshots
from swarmd.cluster.replica import NotNewest
from swarmd.domain.errors import Busy, Conflict, NotFound, Unavailable
from swarmd.sim.bottle import Bottle, Gone
from swarmd.sim.faults import Fault, Kind
from swarmd.sim.network import Weather
from swarmd.sim.stage import Stage

HOUR_MS = 3_600_000
LANDED_S = 1.0
"""By then whatever was on its way has come."""


async def _crash(stage: Stage, fault: Fault) -> bool:
    """kill -9 of the daemon; what runs by it runs on."""
    victim = stage.process(fault)
    if victim is not None:
        await stage.down(victim, fault.for_s)
    return victim is not None


async def _power(stage: Stage, fault: Fault) -> bool:
    """The machine is off: what was not synced is gone, and what ran."""
    victim = stage.process(fault)
    if victim is not None:
        await stage.down(victim, fault.for_s, power=True)
    return victim is not None


async def _power_everywhere(stage: Stage, fault: Fault) -> bool:
    async with trio.open_nursery() as nursery:
        for name, host in stage.world.hosts.items():
            if host.scope is not None:
                nursery.start_soon(partial(stage.down, name, fault.for_s, power=True))
    return True


async def _restart(stage: Stage, fault: Fault) -> bool:
    """In good order, as for an upgrade."""
    victim = stage.victim(fault)
    if victim is None or stage.world.hosts[victim].stop.is_set():
        return False
    await stage.world.stop(victim)
    await trio.sleep(fault.for_s)
    await stage.start(victim)
    return True


async def _cut_off(stage: Stage, fault: Fault) -> bool:
    victim = stage.victim(fault)
    if victim is None:
        return False
    async with stage.cut(lambda: stage.world.network.isolate(victim)):
        await trio.sleep(fault.for_s)
    return True


async def _halves(stage: Stage, fault: Fault) -> bool:
    """One half of those that are there, and the other."""
    side = stage.half(stage.victim(fault) or "")
    if not side:
        return False
    async with stage.cut(lambda: stage.world.network.isolate(*side)):
        await trio.sleep(fault.for_s)
    return True


async def _one_way(stage: Stage, fault: Fault) -> bool:
    """The victim is not heard by the other, and hears it."""
    victim, other = stage.victim(fault), stage.other(fault)
    if victim is None or other is None:
        return False
    async with stage.cut(lambda: stage.world.network.cut_one_way(victim, other)):
        await trio.sleep(fault.for_s)
    return True


async def _deaf(stage: Stage, fault: Fault) -> bool:
    """The victim hears nobody, and is heard by all."""
    victim = stage.victim(fault)
    if victim is None:
        return False
    others = [name for name in stage.there() if name != victim]

    def apply() -> None:
        for other in others:
            stage.world.network.cut_one_way(other, victim)

    async with stage.cut(apply):
        await trio.sleep(fault.for_s)
    return True


async def _pair(stage: Stage, fault: Fault) -> bool:
    """Two do not reach each other; the rest reaches both."""
    victim, other = stage.victim(fault), stage.other(fault)
    if victim is None or other is None:
        return False

    def apply() -> None:
        stage.world.network.cut_one_way(victim, other)
        stage.world.network.cut_one_way(other, victim)

    async with stage.cut(apply):
        await trio.sleep(fault.for_s)
    return True


async def _flapping(stage: Stage, fault: Fault) -> bool:
    """Cut off and back, again and again."""
    victim = stage.victim(fault)
    if victim is None:
        return False
    ends = trio.current_time() + fault.for_s
    while trio.current_time() < ends:
        async with stage.cut(lambda: stage.world.network.isolate(victim)):
            await trio.sleep(fault.how["out_s"])
        await trio.sleep(fault.how["in_s"])
    return True


async def _weather(stage: Stage, fault: Fault) -> bool:
    how = fault.how
    weather = Weather((0.0, how["delay_s"]), how["loss"], how["doubled"])
    async with stage.altered(stage.world.network, "weather", weather):
        await trio.sleep(fault.for_s)
    return True


async def _bad_link(stage: Stage, fault: Fault) -> bool:
    """Weather between two, both ways."""
    victim, other, how = stage.victim(fault), stage.other(fault), fault.how
    if victim is None or other is None:
        return False
    links = stage.world.network.links
    weather = Weather((0.0, how["delay_s"]), how["loss"], how["doubled"])
    ways = ((victim, other), (other, victim))
    links.update(dict.fromkeys(ways, weather))
    await trio.sleep(fault.for_s)
    for way in ways:
        if links.get(way) is weather:
            del links[way]
    return True


async def _clog(stage: Stage, fault: Fault) -> bool:
    """What the victim says to the other waits, and comes in a burst; nobody is told."""
    victim, other, network = stage.victim(fault), stage.other(fault), stage.world.network
    if victim is None or other is None:
        return False
    async with stage.way(lambda: network.clog(victim, other), network.unclog):
        await trio.sleep(fault.for_s)
    return True


async def _spoilt(stage: Stage, fault: Fault) -> bool:
    """Copies of the state come to the victim otherwise than they were sent, in part."""
    victim = stage.process(fault)
    if victim is None:
        return False
    network, rng = stage.world.network, random.Random(fault.at_s)

    def spoil(method: str, source: str, target: str, data: bytes) -> bytes:
        if method != snapshots.METHOD or network.host(target) != victim:
            return data
        if not data or rng.random() > fault.how["share"]:
            return data
        at = rng.randrange(len(data))
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]

    async with stage.altered(network, "in_transit", spoil):
        await trio.sleep(fault.for_s)
    return True


async def _freeze(stage: Stage, fault: Fault) -> bool:
    """SIGSTOP of the daemon, and SIGCONT."""
    victim = stage.process(fault)
    if victim is not None:
        await stage.world.freeze(victim, fault.for_s)
    return victim is not None


async def _transfer(stage: Stage, fault: Fault) -> bool:
    """Who leads hands over to the victim."""
    victim, leader = stage.victim(fault), stage.leader()
    if victim is None or leader is None or victim == leader:
        return False
    return await _unless_refused(
        lambda: stage.world.replica(leader).hand_over(stage.world.node_id(victim))
    )


async def _clock(stage: Stage, fault: Fault) -> bool:
    """Its wall clock is an hour off, or less, for a while."""
    victim = stage.victim(fault)
    if victim is None:
        return False
    off_ms = int(fault.how["off"] * HOUR_MS)
    async with stage.altered(stage.world.hosts[victim], "clock_off_ms", off_ms):
        await trio.sleep(fault.for_s)
    return True


async def _drift(stage: Stage, fault: Fault) -> bool:
    """Its clocks run fast or slow: by more than crystals do, and less than leases allow for."""
    victim = stage.victim(fault)
    if victim is None or not isinstance(stage.world, Bottle):
        return False
    stage.world.drift(victim, 1e6 * fault.how["by"])
    await trio.sleep(fault.for_s)
    stage.world.drift(victim, 0.0)
    return True


async def _slow_disk(stage: Stage, fault: Fault) -> bool:
    return await _with_disk(stage, fault, sync_s=(0.0, fault.how["sync_s"]))


async def _full_log(stage: Stage, fault: Fault) -> bool:
    """One write waits for the disk, and the next is refused."""
    return await _with_disk(stage, fault, sync_s=(0.05, 0.1), writes_max=1)


async def _slow_state(stage: Stage, fault: Fault) -> bool:
    """What is agreed on comes late to the state."""
    return await _with_disk(stage, fault, apply_s=(0.0, fault.how["apply_s"]))


async def _full_disk(stage: Stage, fault: Fault) -> bool:
    """No room for the log: the process ends, and is started again, until there is."""
    return await _with_disk(stage, fault, full=True)


async def _with_disk(stage: Stage, fault: Fault, **altered: object) -> bool:
    """The victim's disk is so for a while."""
    victim = stage.victim(fault)
    if victim is None:
        return False
    disk = stage.world.hosts[victim].disk
    async with AsyncExitStack() as all_of_them:
        for name, value in altered.items():
            await all_of_them.enter_async_context(stage.altered(disk, name, value))
        await trio.sleep(fault.for_s)
    return True


async def _damage(stage: Stage, fault: Fault) -> bool:
    """A sector of the log reads otherwise than it was written: the node refuses to start, and its
    host is wiped and joins as a new one."""
    victim = stage.victim(fault)
    async with stage.anew(victim) as bottle:
        if bottle is None or victim is None:
            return False
        await bottle.crash(victim, power=True)
        bottle.machine(victim).disk.damage(bottle.rng)
        await trio.sleep(fault.for_s)
        try:
            await bottle.start(victim)
        except LogError:
            bottle.wipe(victim)
            await stage.start(victim, anew=True)
    return True


async def _put_back(stage: Stage, fault: Fault) -> bool:
    """A copy of the log is put back that is older than what the node has acknowledged."""
    victim = stage.victim(fault)
    async with stage.anew(victim) as bottle:
        if bottle is None or victim is None:
            return False
        host, disk = bottle.machine(victim), bottle.machine(victim).disk
        image, state = disk.image(), fault.how["state"] > 0.5
        knew = host.replica is not None and bool(host.replica.members)
        await trio.sleep(fault.for_s)
        if host.scope is None or host.disk is not disk:
            return False
        await bottle.crash(victim)
        # What it acknowledged last may count yet: only what the others have may be taken from it.
        await trio.sleep(LANDED_S)
        while not stage.spared(victim):
            await trio.sleep(LANDED_S)
        disk.put_back(image, state=state)
        ends = len(host.ends)
        await stage.start(victim, anew=True)
        if state and not knew:
            await _begun_anew_by_hand(stage, bottle, victim, ends)
    return True


async def _begun_anew_by_hand(stage: Stage, bottle: Bottle, name: str, ends: int) -> None:
    """A copy of a time when it knew nobody yet: another proves what it is, and it says so, and that
    it cannot go on. Its operator does what it says."""
    host = bottle.machine(name)
    while not any(isinstance(end, NotNewest) for _, end in host.ends[ends:]):
        if host.scope is None or (host.cluster is not None and host.cluster.introduced.is_set()):
            return
        await trio.sleep(LANDED_S)
    if host.scope is not None:
        await bottle.crash(name)
    bottle.wipe(name)
    await stage.start(name, anew=True)


async def _leave(stage: Stage, fault: Fault) -> bool:
    """For good; its host joins again as another node."""
    victim = stage.victim(fault)
    async with stage.anew(victim) as bottle:
        if bottle is None or victim is None:
            return False
        if await _goes(stage, lambda: bottle.leave(victim)):
            await trio.sleep(fault.for_s)
        await stage.start(victim, anew=True)
    return True


async def _remove(stage: Stage, fault: Fault) -> bool:
    """It is removed by another, and its host wiped; then it joins again."""
    victim = stage.victim(fault)
    async with stage.anew(victim) as bottle:
        by = stage.leader()
        if bottle is None or victim is None or by in (None, victim):
            return False
        host, ended = bottle.machine(victim), bottle.machine(victim).ended
        await _goes(stage, lambda: bottle.remove(victim, by=str(by), force=True))
        with trio.move_on_after(fault.for_s):
            await ended.wait()
        if host.scope is not None:
            await bottle.crash(victim)
        bottle.wipe(victim)
        await stage.start(victim, anew=True)
    return True


async def _remove_while_away(stage: Stage, fault: Fault) -> bool:
    """It is down, and removed by another; what comes back with its old data has to end. Then its
    host is wiped, and joins again."""
    victim = stage.victim(fault)
    async with stage.anew(victim) as bottle:
        by = stage.leader()
        if bottle is None or victim is None or by in (None, victim):
            return False
        host = bottle.machine(victim)
        await bottle.crash(victim, power=fault.how["power"] > 0.5)
        if not await _goes(stage, lambda: bottle.remove(victim, by=str(by), force=True)):
            if await stage.start(victim, anew=True):
                stage.wipe(victim)  # what was refused may be done all the same
                await stage.start(victim, anew=True)
            return False
        await trio.sleep(fault.for_s)
        await stage.start(victim, anew=True)
        await host.ended.wait()
        bottle.wipe(victim)
        await stage.start(victim, anew=True)
    return True


async def _join(stage: Stage, fault: Fault) -> bool:
    """One more comes."""
    for name in stage.newcomers:
        if name not in stage.world.hosts:
            await stage.start(name)
            return True
    return False


async def _demote(stage: Stage, fault: Fault) -> bool:
    """The victim is to vote no longer. Nobody asks whether enough others do: not where one of them
    may be gone for good."""
    victim, leader = stage.victim(fault), stage.leader()
    if victim is None or leader is None or victim == leader:
        return False
    return await _unless_refused(
        lambda: stage.world.replica(leader).change_members(learners=(stage.world.node_id(victim),))
    )


async def _remove_and_return(stage: Stage, fault: Fault) -> bool:
    """Out of the members, and back as a learner before anybody notices much."""
    victim, leader = stage.victim(fault), stage.leader()
    if victim is None or leader is None or victim == leader:
        return False
    replica, gone = stage.world.replica(leader), stage.world.node_id(victim)
    if not await _unless_refused(lambda: replica.change_members(removed=(gone,))):
        return False
    await trio.sleep(fault.for_s)
    await _unless_refused(lambda: replica.change_members(learners=(gone,)))
    return True


async def _goes(stage: Stage, step: Callable[[], Awaitable[object]]) -> bool:
    """A node is to leave, or to be removed: whether it was seen to its end."""
    done = await _unless_refused(step)
    stage.unfinished += not done
    return done


async def _unless_refused(step: Callable[[], Awaitable[object]]) -> bool:
    try:
        await step()
    except (Busy, Conflict, Gone, NotFound, Unavailable):
        return False
    return True


KINDS: dict[str, Kind] = {
    "crash": Kind(_crash, (0, 5), often=6),
    "power": Kind(_power, (0, 6), often=3),
    "power-everywhere": Kind(_power_everywhere, (0, 2), often=1),
    "restart": Kind(_restart, (0, 8)),
    "cut-off": Kind(_cut_off, (0, 6), often=5),
    "halves": Kind(_halves, (0, 4)),
    "one-way": Kind(_one_way, (0, 4), pair=True, often=3),
    "deaf": Kind(_deaf, (0, 4)),
    "pair": Kind(_pair, (0, 4), pair=True),
    "flapping": Kind(_flapping, (0.5, 5), {"out_s": (0.1, 1.5), "in_s": (0.1, 1.5)}),
    "weather": Kind(
        _weather, (0, 5), {"delay_s": (0.001, 0.3), "loss": (0, 0.3), "doubled": (0, 0.3)}, often=3
    ),
    "bad-link": Kind(
        _bad_link,
        (0, 8),
        {"delay_s": (0.001, 0.3), "loss": (0, 0.5), "doubled": (0, 0.3)},
        pair=True,
    ),
    "clog": Kind(_clog, (0, 4), pair=True),
    "spoilt": Kind(_spoilt, (0, 8), {"share": (0.05, 0.5)}),
    "freeze": Kind(_freeze, (0, 8), often=4),
    "transfer": Kind(_transfer, often=3),
    "clock": Kind(_clock, (0, 4), {"off": (-1, 1)}),
    "slow-disk": Kind(_slow_disk, (0, 4), {"sync_s": (0.05, 0.8)}),
    "full-log": Kind(_full_log, (0, 2)),
    "slow-state": Kind(_slow_state, (0, 3), {"apply_s": (0.05, 1)}),
    "drift": Kind(_drift, (1, 10), {"by": (-0.02, 0.02)}, whole=True),
    "full-disk": Kind(_full_disk, (0, 8), whole=True),
    "damage": Kind(_damage, (0, 5), whole=True, of_members=True, often=2),
    "put-back": Kind(_put_back, (0, 5), {"state": (0, 1)}, whole=True, of_members=True, often=2),
    "leave": Kind(_leave, (0, 3), whole=True, of_members=True, often=2),
    "remove": Kind(_remove, (0, 10), whole=True, of_members=True, often=2),
    "remove-while-away": Kind(
        _remove_while_away, (0, 6), {"power": (0, 1)}, whole=True, of_members=True, often=2
    ),
    "join": Kind(_join, of_members=True),
    "demote": Kind(_demote, of_members=True, whole=False, often=3),
    "remove-and-return": Kind(_remove_and_return, (0, 1), of_members=True, whole=False),
}
