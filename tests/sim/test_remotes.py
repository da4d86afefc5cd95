"""Nodes without a replica in the small world: whatever befalls the replica that serves them, their
clients are told the truth, once, and in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from swarmd.cluster.feed import Wanted
from swarmd.cluster.handle import local_reads
from swarmd.cluster.remote import Remote
from swarmd.domain.errors import Busy, Unavailable
from swarmd.domain.events import SettingChanged
from swarmd.domain.jobs import NodeId
from swarmd.sim.remotes import Remotes
from swarmd.sim.world import CLIENT, World
from swarmd.state.commands import PutSetting
from swarmd.state.queries import GetSetting, ListEvents
from tests.sim.registers import History, Read, Write
from tests.sim.world import simulated


@asynccontextmanager
async def remotes_of(world: World, *names: str) -> AsyncIterator[Remotes]:
    """A swarm of three, and beside it nodes that know of all three."""
    await world.swarm_of("a", "b", "c")
    async with trio.open_nursery() as nursery:
        remotes = Remotes(world, nursery)
        for name in names:
            await remotes.start(name, "a", "b", "c")
        for name in names:
            remote = remotes.remote(name)
            await world.until(remote.introduced.is_set, 10, f"{name} introduced")
        yield remotes
        for name in names:
            if remotes.hosts[name].remote is not None:
                await remotes.crash(name)


@simulated(300)
async def test_a_remote_node_has_the_four_verbs(world: World) -> None:
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        await remotes.put("r", "k", "v")
        assert await remotes.get("r", "k") == "v"
        with local_reads():
            assert await remotes.get("r", "k") == "v"
        async with remote.watch(wants=Wanted.of(SettingChanged)) as events:
            await world.put("a", "k2", "w")
            event = await anext(events)
        assert isinstance(event.body, SettingChanged) and event.body.key == "k2"
        leader = await world.leader()
        assert remote.leadership().leader == leader
        await world.until(lambda: set(remote.members) == {*"abcr"}, 1, "all members known")
        assert set(remote.log_view().voters) == {"a", "b", "c"}
        staleness = remote.staleness_ms()
        assert staleness is not None and staleness < 1000
        await trio.sleep(60)
        assert remote._attaching.sessions_begun == 1
        assert world.network.kinds["remote.knock", "a"] == 1  # while it is well, nobody asks


@simulated(301)
async def test_a_killed_replica_is_not_noticed_by_readers(world: World) -> None:
    async with remotes_of(world, "r", "s") as remotes:
        await remotes.put("r", "k", "v")
        slowest = 0.0
        over = False

        async def read(name: str) -> None:
            nonlocal slowest
            while not over:
                began = trio.current_time()
                assert await remotes.get(name, "k") == "v"
                slowest = max(slowest, trio.current_time() - began)
                await trio.sleep(0.01)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, "r")
            nursery.start_soon(read, "s")
            await trio.sleep(1)
            victim = await remotes.served("r")
            if victim == await world.leader():
                await world.replica(victim).hand_over()
            await trio.sleep(1)
            slowest = 0.0
            await world.crash(victim)
            await trio.sleep(5)
            over = True
        assert slowest < 1.0
        assert remotes.remote("r").served_by != victim


async def _move_to(world: World, remote: Remote, wanted: str) -> None:
    """Have it served by one replica: others are left until it comes there."""
    with trio.fail_after(60):
        while remote.served_by != wanted:
            session = remote._attaching.session
            if session is not None and session.peer != wanted:
                session.end("the test wants another")
            await trio.sleep(0.05)


@simulated(302)
async def test_proposals_are_applied_once_whoever_dies(world: World) -> None:
    """Every replica in turn is killed under load, the leader among them."""
    async with remotes_of(world, "r", "s") as remotes:
        acknowledged: dict[str, bytes] = {}
        unknown: list[str] = []
        over = False

        async def write(name: str, client: int) -> None:
            n = 0
            while not over:
                n += 1
                key = f"{name}-{client}-{n}"
                value = key.encode()
                try:
                    await remotes.remote(name).propose(PutSetting(key, value), CLIENT)
                    acknowledged[key] = value
                except Busy:
                    pass
                except Unavailable:
                    unknown.append(key)
                await trio.sleep(0.02)

        async with trio.open_nursery() as nursery:
            for name in "rs":
                for client in range(8):
                    nursery.start_soon(write, name, client)
            for victim in ("a", "b", "c", await world.leader()):
                await trio.sleep(1.5)
                await world.crash(victim)
                await trio.sleep(1.5)
                await world.start(victim)
            await trio.sleep(3)
            over = True
        await world.settle()
        for key, value in acknowledged.items():
            assert await world.replica("a").read(GetSetting(key)) == value
        changed: dict[str, int] = {}
        after = 0
        while page := await world.replica("a").read(ListEvents(after)):
            after = page[-1].seq
            for event in page:
                if isinstance(event.body, SettingChanged):
                    changed[event.body.key] = changed.get(event.body.key, 0) + 1
        assert all(times == 1 for key, times in changed.items() if key[:2] in ("r-", "s-"))
        assert all(changed[key] == 1 for key in acknowledged)
        assert len(acknowledged) > 500, (len(acknowledged), len(unknown))
        assert not unknown, f"{len(unknown)} of {len(acknowledged)} were not answered in 10 s"


@simulated(303)
async def test_a_watch_goes_on_elsewhere_without_gap_or_repeat(world: World) -> None:
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        seen: list[str] = []
        over = trio.Event()
        total = 0

        async def watch() -> None:
            async with remote.watch(wants=Wanted.of(SettingChanged)) as events:
                started.set()
                async for event in events:
                    assert isinstance(event.body, SettingChanged)
                    if event.body.key == "last":
                        over.set()
                        return
                    seen.append(event.body.key)

        started = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await started.wait()
            for _ in range(4):
                for _ in range(10):
                    await world.put(world.up()[0], f"k{total}", "v")
                    total += 1
                victim = await remotes.served("r")
                await world.crash(victim)
                for _ in range(10):
                    await world.put(world.up()[0], f"k{total}", "v")
                    total += 1
                await remotes.served("r", not_by=victim)
                await world.start(victim)
                await world.until(lambda: len(world.leaders()) == 1, 10, "a leader")
            await world.put("a", "last", "v")
            with trio.fail_after(10):
                await over.wait()
        assert seen == [f"k{n}" for n in range(total)]


@simulated(304)
async def test_a_watch_from_an_event_on_sees_all_after_it(world: World) -> None:
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        for n in range(700):
            await world.put("a", f"k{n}", "v")
        first = (await world.replica("a").read(ListEvents(0, 1)))[0].seq
        keys: list[str] = []
        async with remote.watch(first, Wanted.of(SettingChanged)) as events:
            await world.put("a", "last", "v")
            async for event in events:
                assert isinstance(event.body, SettingChanged)
                keys.append(event.body.key)
                if event.body.key == "last":
                    break
        assert [k for k in keys if k[0] == "k"] == [f"k{n}" for n in range(700)]


@simulated(305)
async def test_a_remote_that_is_cut_off_says_so_and_comes_back(world: World) -> None:
    async with remotes_of(world, "r") as remotes:
        await remotes.put("r", "k", "old")
        remote = remotes.remote("r")
        world.network.isolate("r")
        with pytest.raises(Unavailable, match="replica"):
            await remotes.get("r", "k")
        with pytest.raises(Unavailable, match="nothing was changed"):
            await remote.propose(PutSetting("k", b"lost?"), CLIENT)
        staleness = remote.staleness_ms()
        assert staleness is not None and staleness > 9000
        assert remote.leadership().leader is None
        await world.put("a", "k", "new")
        world.network.heal()
        await remotes.served("r")
        assert await remotes.get("r", "k") == "new"


@simulated(306)
async def test_a_replica_that_is_cut_off_from_the_others_is_left(world: World) -> None:
    """It still answers its remote nodes, and knows nothing new."""
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        leader = await world.leader()
        cut = next(n for n in "abc" if n != leader)
        await _move_to(world, remote, cut)
        for other in "abc":
            if other != cut:
                world.network.cut_one_way(cut, other)
                world.network.cut_one_way(other, cut)
        began = trio.current_time()
        await remotes.put("r", "k", "v")
        assert await remotes.get("r", "k") == "v"
        assert trio.current_time() - began < 6
        assert remote.served_by != cut


@simulated(307)
async def test_a_replica_that_falls_silent_is_left_within_a_second(world: World) -> None:
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        await remotes.put("r", "k", "v")
        silent = await remotes.served("r")
        world.network.cut_one_way(silent, "r")
        world.network.cut_one_way("r", silent)
        began = trio.current_time()
        assert await remotes.get("r", "k") == "v"
        assert trio.current_time() - began < 1.0
        assert remote.served_by != silent


@simulated(308)
async def test_local_reads_never_go_back(world: World) -> None:
    """A remote node that moves to a replica that is behind waits until it is not."""
    async with remotes_of(world, "r") as remotes:
        remote = remotes.remote("r")
        leader = await world.leader()
        behind = next(n for n in "abc" if n != leader)
        await _move_to(world, remote, leader)
        world.hosts[behind].disk.apply_s = (0.5, 0.6)
        for n in range(8):
            await remotes.put("r", "k", str(n))
            await _move_to(world, remote, behind)
            with local_reads():
                assert await remotes.get("r", "k") == str(n)
            await _move_to(world, remote, leader)


@simulated(309)
async def test_a_restarted_remote_finds_its_swarm_by_itself(world: World) -> None:
    async with remotes_of(world, "r") as remotes:
        await remotes.put("r", "k", "1")
        await remotes.crash("r")
        remote = await remotes.start("r")
        await world.until(remote.introduced.is_set, 10, "r introduced")
        await remotes.put("r", "k", "2")
        assert await remotes.get("r", "k") == "2"


@simulated(310)
async def test_one_whose_log_was_lost_is_not_taken_for_what_it_was(world: World) -> None:
    """Its boots count from one again, and its requests with them."""
    async with remotes_of(world, "r") as remotes:
        for _ in range(3):
            await remotes.crash("r")
            await remotes.start("r", "a", "b", "c")
            await remotes.put("r", "k", "before")
        await remotes.crash("r")
        del remotes.hosts["r"]
        remote = await remotes.start("r", "b", "c")
        for n in range(5):
            await remote.propose(PutSetting("k", str(n).encode()), CLIENT)
            assert await remotes.get("r", "k") == str(n)


@simulated(311)
async def test_a_seed_leads_to_replicas_that_moved(world: World) -> None:
    """All it is told of is another node without a replica."""
    async with remotes_of(world, "r") as remotes:
        remote = await remotes.start("s", seeds=("r",))
        await world.until(remote.introduced.is_set, 10, "s introduced")
        await remotes.put("s", "k", "v")
        assert await remotes.get("r", "k") == "v"
        await remotes.crash("s")


@simulated(312)
async def test_many_remotes_spread_and_find_others_when_a_replica_dies(world: World) -> None:
    names = [f"r{n}" for n in range(30)]
    async with remotes_of(world, *names) as remotes:

        def serving() -> dict[str, int]:
            counts: dict[str, int] = {}
            for name in names:
                by = remotes.remote(name).served_by
                if by is not None:
                    counts[by] = counts.get(by, 0) + 1
            return counts

        assert sum(serving().values()) == 30 and min(serving().values()) >= 4, serving()
        victim = max(serving(), key=lambda n: serving()[n])
        await world.crash(victim)
        died = trio.current_time()
        await world.until(
            lambda: sum(serving().values()) == 30 and victim not in serving(), 5, "all served"
        )
        assert trio.current_time() - died < 1.0
        assert min(serving().values()) >= 7, serving()


@simulated(313)
async def test_registers_are_linearizable_through_remotes(world: World) -> None:
    await _registers(world)


@simulated(314)
async def test_registers_are_linearizable_through_remotes_again(world: World) -> None:
    await _registers(world)


async def _registers(world: World) -> None:
    history = History()
    over = False
    async with remotes_of(world, "r", "s", "t") as remotes:

        async def use(name: str, client: int) -> None:
            n = 0
            while not over:
                n += 1
                key = world.rng.choice(("left", "right"))
                began = trio.current_time()
                handle = remotes.remote(name) if name in remotes.hosts else None
                if name in "abc":
                    if world.hosts[name].replica is None:
                        await trio.sleep(0.1)
                        continue
                    handle = world.replica(name)  # type: ignore[assignment]
                assert handle is not None
                try:
                    if world.rng.random() < 0.4:
                        value = f"{name}{client}-{n}".encode()
                        write = Write(key, value, began)
                        history.writes.append(write)
                        with trio.move_on_after(5):
                            await handle.propose(PutSetting(key, value), CLIENT)
                            write.ended = trio.current_time()
                    else:
                        with trio.move_on_after(5):
                            found = await handle.read(GetSetting(key))
                            history.reads.append(Read(key, began, trio.current_time(), found))
                except Busy:
                    history.writes.remove(write)
                except Unavailable as refusal:
                    if "nothing was changed" in refusal.message:
                        history.writes.remove(write)
                await trio.sleep(world.rng.uniform(0, 0.1))

        async with trio.open_nursery() as nursery:
            for client, name in enumerate("rstrstabc"):
                nursery.start_soon(use, name, client)
            for _ in range(8):
                await trio.sleep(world.rng.uniform(0.5, 2))
                victim = world.rng.choice(world.up())
                match world.rng.randrange(4):
                    case 0:
                        await world.crash(victim)
                        await trio.sleep(world.rng.uniform(0, 2))
                        await world.start(victim)
                    case 1:
                        world.network.isolate(victim)
                        await trio.sleep(world.rng.uniform(0, 3))
                        world.network.heal()
                    case 2:
                        world.network.isolate(world.rng.choice("rst"))
                        await trio.sleep(world.rng.uniform(0, 3))
                        world.network.heal()
                    case _:
                        for name in world.leaders():
                            try:
                                await world.replica(name).hand_over(NodeId(victim))
                            except Exception:
                                pass
            await trio.sleep(6)
            over = True
        await world.settle()
        history.check(world.witness.order)
        assert len(history.reads) > 300 and len(history.writes) > 200
