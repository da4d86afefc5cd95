"""Packages and their builders while time passes and things break: each package is received once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio

from swarmd.cluster.handle import Hosted
from swarmd.control.attendance import LEASE_S, OFFLINE_S, SILENT_S
from swarmd.domain.actors import Actor
from swarmd.domain.builds import Control, Outcome
from swarmd.domain.errors import Conflict, NotFound
from swarmd.domain.packages import parse_all
from swarmd.ops import builds, members, queueing
from swarmd.ops.builds import BuilderSays, BuildFilter
from swarmd.ops.events import list_events
from swarmd.ops.trees import Meant, literal
from swarmd.sim.bottle import Bottle
from swarmd.sim.builders import DRONE, Builder
from swarmd.state.build_queries import BuildCounts, CountBuilds, ListBuilders, ViewBinHost
from swarmd.state.commands import T
from tests.sim.world import bottled

ADMIN = Actor("admin", "buildswarm")
NAMES = [f"app-misc/p{n}-1.{n}" for n in range(10)]


async def ask(bottle: Bottle, work: Callable[[Hosted], Awaitable[T]]) -> T:
    return await bottle.request(bottle.there()[0], work)


async def counts(bottle: Bottle) -> BuildCounts:
    return await ask(bottle, lambda c: c.read(CountBuilds()))


async def until(bottle: Bottle, holds: Callable[[BuildCounts], bool], within_s: float) -> None:
    with trio.move_on_after(within_s):
        while not holds(await counts(bottle)):
            await trio.sleep(0.5)
        return
    raise AssertionError(f"it did not come about: {await counts(bottle)}")


async def queue(bottle: Bottle, *names: str) -> None:
    await ask(bottle, lambda c: queueing.enqueue(c, ADMIN, meant(names), "s", "session-1"))


def meant(names: Sequence[str]) -> Meant:
    return literal(parse_all(names))


def says(name: str, task: str | None = None) -> BuilderSays:
    return BuilderSays(f"id-{name}", name, ("10.9.0.1",), 16, 1 << 30, True, "", "1", task, {})


async def register(bottle: Bottle, name: str, task: str | None = None) -> builds.Told:
    return await ask(bottle, lambda c: builds.register(c, DRONE, says(name, task)))


async def work(bottle: Bottle, name: str) -> str | None:
    found = await ask(bottle, lambda c: builds.work(c, DRONE, f"id-{name}", 16))
    return found.package


@bottled(70)
async def test_a_drone_and_the_leader_die_and_each_package_is_received_once(
    bottle: Bottle,
) -> None:
    await bottle.populate("a", "b", "c")

    def broken(package: str) -> Outcome | None:
        return Outcome.FAILED if package == NAMES[3] else None

    drones = [Builder(bottle, f"drone-{n}", 70, fails=broken) for n in (1, 2)]
    sweeper = Builder(bottle, "sweeper-1", 70)
    await queue(bottle, *NAMES)
    async with trio.open_nursery() as nursery:
        doomed = trio.CancelScope()

        async def live_and_die() -> None:
            with doomed:
                await drones[0].live()

        nursery.start_soon(live_and_die)
        for each in (drones[1], sweeper):
            nursery.start_soon(each.live)
        await bottle.until(lambda: drones[0].task is not None, 30, "it is at work")
        leader = await bottle.leader()
        await bottle.crash(leader, power=True)
        doomed.cancel()
        await until(bottle, lambda n: n.received == len(NAMES), 600)
        await bottle.start(leader)
        nursery.cancel_scope.cancel()
    await bottle.settle()
    built = sum((each.built for each in (*drones, sweeper)), start=type(sweeper.built)())
    assert set(built.values()) <= {1} and set(built) <= set(NAMES)
    there = (await ask(bottle, lambda c: c.read(ViewBinHost()))).pkgs
    assert sorted(pkg.cpv for pkg in there) == sorted(NAMES)
    assert sweeper.built == {NAMES[3]: 1}, "what was blocked, and nothing else"
    (session,) = await ask(bottle, builds.list_sessions)
    assert session.received == len(NAMES) and session.ended_at is not None


@bottled(71)
async def test_what_a_silent_drone_holds_goes_back(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    await queue(bottle, NAMES[0])
    await register(bottle, "one")
    (view,) = await ask(bottle, lambda c: c.read(ListBuilders()))
    assert view.builder.online
    assert await work(bottle, "one") == NAMES[0]
    began = trio.current_time()
    await until(bottle, lambda n: n.needed == 1, OFFLINE_S + 20)
    assert trio.current_time() - began >= OFFLINE_S
    (view,) = await ask(bottle, lambda c: c.read(ListBuilders()))
    assert not view.builder.online
    told = await register(bottle, "one", NAMES[0])
    assert told.stop == NAMES[0] and told.revoked == (NAMES[0],)
    events, _ = await ask(
        bottle,
        lambda c: list_events(c, ("BuilderChanged",), limit=10, since=0),
    )
    assert [event.body.what for event in events] == ["online", "offline", "online", "joined"]  # type: ignore[union-attr]


@bottled(77)
async def test_a_drone_that_does_not_come_back_is_forgotten_as_a_node_is(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    await queue(bottle, NAMES[0])
    await register(bottle, "one")
    assert await work(bottle, "one") == NAMES[0]

    async def forget(name: str) -> str:
        done = await ask(bottle, lambda c: members.remove(c, ADMIN, name, force=False))
        return done.name

    with pytest.raises(Conflict, match="stop it first"):
        await forget("one")
    with pytest.raises(NotFound, match="no node of this swarm"):
        await forget("two")
    await until(bottle, lambda n: n.needed == 1, OFFLINE_S + 20)
    assert await forget("one") == "one"
    assert not await ask(bottle, lambda c: c.read(ListBuilders()))
    with pytest.raises(NotFound, match="no node of this swarm"):
        await forget("one")
    await register(bottle, "one")
    assert await work(bottle, "one") == NAMES[0]


@bottled(72)
async def test_what_is_not_begun_or_not_spoken_of_goes_back(bottle: Bottle) -> None:
    await bottle.populate("a")
    await queue(bottle, *NAMES[:2])
    await register(bottle, "one")
    assert await work(bottle, "one") == NAMES[0]

    async def keep_alive() -> None:
        while True:
            await register(bottle, "one", None)
            await trio.sleep(10)

    await register(bottle, "one", NAMES[0])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep_alive)
        began = trio.current_time()
        await until(bottle, lambda n: (n.needed, n.delegated) == (1, 1), LEASE_S + 20)
        assert trio.current_time() - began >= LEASE_S - 1
        await until(bottle, lambda n: n.needed == 2, SILENT_S - LEASE_S + 20)
        assert trio.current_time() - began >= SILENT_S - 1
        nursery.cancel_scope.cancel()


@bottled(73)
async def test_an_idle_drone_gets_what_another_has_not_begun(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    await queue(bottle, *NAMES[:2])
    await register(bottle, "one")
    assert await work(bottle, "one") == NAMES[0]
    await register(bottle, "one", NAMES[0])
    await register(bottle, "two")
    with trio.fail_after(30):
        while (got := await work(bottle, "two")) is None:
            await trio.sleep(1)
    assert got == NAMES[1]
    assert (await register(bottle, "one", NAMES[0])).revoked == (NAMES[1],)
    assert await work(bottle, "one") == NAMES[0]


@bottled(74)
async def test_a_new_leader_takes_nothing_from_those_it_has_not_heard_of_yet(
    bottle: Bottle,
) -> None:
    await bottle.populate("a", "b", "c")
    await queue(bottle, NAMES[0])
    await register(bottle, "one")
    assert await work(bottle, "one") == NAMES[0]
    await trio.sleep(OFFLINE_S - 10)
    await bottle.crash(await bottle.leader())
    await trio.sleep(OFFLINE_S - 10)
    assert (await counts(bottle)).delegated == 1
    await until(bottle, lambda n: n.needed == 1, 40)


@bottled(103)
async def test_two_who_want_the_same_at_once_get_it_once(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    found: dict[str, tuple[int, int]] = {}

    async def ask_for(name: str, names: list[str]) -> None:
        def wanted(cluster: Hosted) -> Awaitable[queueing.Queued]:
            return queueing.enqueue(cluster, ADMIN, meant(names), name, f"session-{name}")

        queued = await bottle.request(name, wanted)
        found[name] = len(queued.packages), len(queued.known)

    many = [f"app-misc/m{n}-1" for n in range(150)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_for, "a", many)
        nursery.start_soon(ask_for, "b", [*many, "app-misc/more-1"])
    assert (await counts(bottle)).needed == 151
    assert sum(new for new, _ in found.values()) == 151
    assert all(new + known == 150 + (name == "b") for name, (new, known) in found.items())


@bottled(104)
async def test_a_drone_that_is_offline_gets_nothing_until_it_is_back(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    await register(bottle, "one")
    await trio.sleep(OFFLINE_S + 20)
    await queue(bottle, NAMES[0])
    assert await work(bottle, "one") is None
    await register(bottle, "one")
    with trio.fail_after(15):
        while (got := await work(bottle, "one")) is None:
            await trio.sleep(1)
    assert got == NAMES[0]


@bottled(75)
async def test_operators_are_heard_on_any_node(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    await queue(bottle, *NAMES)
    await register(bottle, "one")
    for name, action in (("a", Control.PAUSE), ("b", Control.RESUME)):
        await bottle.request(name, lambda c, a=action: builds.control(c, ADMIN, a))  # type: ignore[misc]
        assert (await work(bottle, "one") is None) == (action is Control.PAUSE)
    done = await bottle.request("c", lambda c: builds.control(c, ADMIN, Control.REBALANCE))
    assert done.count == 2
    assert await ask(bottle, lambda c: builds.list_builds(c, BuildFilter())) == []
