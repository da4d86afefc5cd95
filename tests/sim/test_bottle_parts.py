"""Parts of the simulated world by themselves: clocks that drift, gates that shut, bad disks."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import trio

from mesh.raft import Entry, HardState
from mesh.wal_errors import DiskFull, LogDamaged, LogFailed
from swarmd.domain.errors import Unavailable
from swarmd.sim.clockwork import HostClock, Timers
from swarmd.sim.disk import Disk, SimStore
from swarmd.sim.freezing import DATAGRAMS_MAX, Gate
from swarmd.sim.log import SimLog
from swarmd.sim.witness import Witness
from swarmd.sim.world import World
from tests.sim.world import run_world, simulated


@simulated(1)
async def test_a_clock_that_drifts_shows_when_it_will_show_what(world: World) -> None:
    clock = HostClock()
    await trio.sleep(10)
    clock.drift(100_000)
    await trio.sleep(10)
    assert clock.now() == pytest.approx(21)
    clock.drift(-100_000)
    assert clock.now() == pytest.approx(21), "what it is ahead by stays"
    await trio.sleep_until(clock.when(30))
    assert clock.now() == pytest.approx(30)
    assert trio.current_time() == pytest.approx(30)


def test_a_gate_that_is_shut_keeps_what_a_kernel_keeps() -> None:
    gate, came = Gate(), list[str]()
    gate(lambda: came.append("open"))
    gate.close()
    gate(lambda: came.append("connection"))
    for _ in range(DATAGRAMS_MAX + 5):
        gate.datagram(lambda: came.append("datagram"))
    assert came == ["open"]
    gate.open()
    assert came[1] == "connection"
    assert came.count("datagram") == DATAGRAMS_MAX
    gate.close()
    gate(lambda: came.append("late"))
    gate.forget()
    assert "late" not in came


@simulated(2)
async def test_a_full_disk_fails_what_waits_and_all_that_comes(world: World) -> None:
    disk = Disk("d", random.Random(1), world.timers, Witness())
    log = SimLog(disk)
    await log.append([Entry(1, 1, b"kept")], HardState(term=1)).wait()
    disk.full = True
    ticket = log.append([Entry(1, 2, b"lost")])
    with pytest.raises(DiskFull, match="no room"):
        await ticket.wait()
    assert log.failed.is_set()
    with pytest.raises(LogFailed):
        log.append([Entry(1, 3, b"after")])
    with pytest.raises(DiskFull):
        SimLog(disk)
    disk.full = False
    assert SimLog(disk).last_index() == 1


@simulated(3)
async def test_damage_shows_at_the_next_start(world: World) -> None:
    disk = Disk("d", random.Random(1), world.timers, Witness())
    await SimLog(disk).append([Entry(1, 1, b"a")], HardState(term=1)).wait()
    image = disk.image()
    disk.damage(random.Random(1))
    with pytest.raises(LogDamaged, match="entry 1"):
        SimLog(disk)
    disk.damage(random.Random(1), log=False)
    with pytest.raises(Unavailable, match="malformed"):
        SimStore(disk)
    disk.put_back(image)
    assert SimLog(disk).last_index() == 1
    assert SimStore(disk).place.index == 0


def test_an_error_of_a_callback_ends_the_world(tmp_path: Path) -> None:
    async def body(world: World) -> None:
        timers: Timers = world.timers

        def fail() -> None:
            raise AssertionError("seen by a witness")

        timers.after(1, fail)
        await trio.sleep(5)

    with pytest.raises(AssertionError, match="seen by a witness"):
        run_world(1, tmp_path, body)


@simulated(4)
async def test_a_clogged_way_holds_and_then_bursts(world: World) -> None:
    network, came = world.network, list[tuple[float, int]]()
    network.clog("a", "b")
    for number in range(50):
        network.carry(("a", "b"), lambda n=number: came.append((trio.current_time(), n)))  # type: ignore[misc]
    network.carry(("b", "a"), lambda: came.append((trio.current_time(), -1)))
    await trio.sleep(5)
    assert [n for _, n in came] == [-1]
    network.unclog()
    await trio.sleep(1)
    assert sorted(n for _, n in came) == list(range(-1, 50))
    assert all(5 <= at < 5.01 for at, n in came if n >= 0)
