"""Who deploys is alone: a node that loses the swarm stops before another may begin."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from swarmd.cluster.handle import Hosted
from swarmd.domain.actors import Actor
from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import Busy, Conflict, SwarmError, Unavailable
from swarmd.domain.payloads import Payload, PayloadSort
from swarmd.drivers.ssh import Ran
from swarmd.drivers.ssh_targets import SshTarget
from swarmd.ops import builds
from swarmd.ops.builds import BuilderSays
from swarmd.ops.deployment import PREVIOUS, Deploying
from swarmd.ops.payload_holds import AGAIN_S, HOLD_S, held
from swarmd.ops.payloads import PayloadFile
from swarmd.ops.rollout import LOOK_EVERY_S, Rollouts, open_rollouts
from swarmd.sim.bottle import Bottle, Gone
from swarmd.state.build_queries import BuilderView, ListBuilders
from swarmd.state.commands import AddBlob, T
from swarmd.state.payload_commands import PutPayload
from swarmd.state.payload_queries import ListDeployments, ListPlaces, ListRolls
from tests.sim.world import bottled, run_bottle

ADMIN = Actor("admin", "buildadmin")
SORT = PayloadSort.BINARY


class Deployer:
    """One that is at it for as long as it may."""

    def __init__(self, bottle: Bottle, name: str, node_id: str = "") -> None:
        self.bottle = bottle
        self.name = name
        self.node_id = node_id
        self.spans: list[tuple[float, float]] = []
        self.refusals: list[SwarmError] = []
        self.at_it = trio.Event()
        self.done = trio.Event()

    async def work(self, cluster: Hosted) -> None:
        async with held(cluster, ADMIN, SORT, self.node_id):
            began = trio.current_time()
            self.at_it.set()
            try:
                await self.done.wait()
            finally:
                self.spans.append((began, trio.current_time()))

    async def run(self) -> None:
        """Again and again, until once it was let."""
        while not self.spans:
            try:
                await self.work(self.bottle.cluster(self.name))
            except SwarmError as refusal:
                self.refusals.append(refusal)
                await trio.sleep(0.5)


@bottled(80)
async def test_one_that_is_cut_off_stops_before_another_begins(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    leader = await bottle.leader()
    first, second = [Deployer(bottle, name) for name in bottle.there() if name != leader]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first.run)
        await first.at_it.wait()
        await trio.sleep(2 * HOLD_S)  # it holds on for as long as it takes
        assert not first.spans
        bottle.network.isolate(first.name)
        cut = trio.current_time()
        nursery.start_soon(second.run)
        with trio.fail_after(3 * HOLD_S):
            await second.at_it.wait()
        second.done.set()
    ((_, ended),) = first.spans
    ((began, _),) = second.spans
    assert cut + HOLD_S - AGAIN_S - 1 <= ended <= began
    assert isinstance(first.refusals[-1], Unavailable)
    assert second.refusals and all(isinstance(each, Conflict) for each in second.refusals)
    bottle.network.heal()


@bottled(81)
async def test_a_leader_that_dies_costs_no_deployment(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    leader = await bottle.leader()
    name = next(name for name in bottle.there() if name != leader)
    deployer = Deployer(bottle, name)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deployer.run)
        await deployer.at_it.wait()
        await bottle.crash(leader, power=True)
        await trio.sleep(2 * HOLD_S)
        assert not deployer.spans and not deployer.refusals
        other = next(each for each in bottle.there() if each != name)
        with pytest.raises(Conflict, match="under way"):
            await Deployer(bottle, other, "builder/one").work(bottle.cluster(other))
        deployer.done.set()
    await bottle.start(leader)


@bottled(82)
async def test_what_goes_wrong_within_comes_out_as_it_is(bottle: Bottle) -> None:
    await bottle.populate("a")
    cluster = bottle.cluster("a")
    for _ in range(2):  # it was let go of
        with pytest.raises(Conflict, match="of the body"):
            async with held(cluster, ADMIN, SORT, ""):
                raise Conflict("of the body")
    with trio.move_on_after(1):
        async with held(cluster, ADMIN, SORT, ""):
            await trio.sleep_forever()
    async with held(cluster, ADMIN, SORT, ""):
        pass


# Rolls that outlive their node. The hosts are simulated too: each step on one takes a while, and a
# node that dies in the middle of it leaves exactly what it had done.

OLD, NEW, BAD = (letter * 64 for letter in "abc")
PATH = "/bin/drone"
NAMES = ("one", "two", "three")
HEARTBEAT_S = 20.0


class HostDouble:
    """A drone's host: its files by their hashes, and a program that says that it is there."""

    def __init__(self, bottle: Bottle, name: str) -> None:
        self.name = name
        self.files: dict[str, str] = {PATH: OLD}
        self.runs = OLD
        self.swaps: list[str] = []
        """What took the place of what was there, in its order."""
        self.poisons = False
        """Whoever sends it anything comes to no end of it."""
        self._bottle = bottle

    async def live(self) -> None:
        says = BuilderSays(
            f"id-{self.name}", self.name, (self.name,), 1, 1 << 30, True, "", "1", None, {}
        )
        turn = 0
        while True:
            turn += 1
            if self.runs != BAD and (there := self._bottle.there()):
                via = there[turn % len(there)]
                with suppress(SwarmError, Gone), trio.move_on_after(5):
                    await self._bottle.request(
                        via, lambda c: builds.register(c, ADMIN, says)
                    )  # fmt: skip
            await trio.sleep(3)


class SshDouble:
    """The ways to all of them, from one node."""

    def __init__(self, hosts: Mapping[str, HostDouble], rng: random.Random) -> None:
        self._hosts = hosts
        self._rng = rng

    async def _step(self) -> None:
        await trio.sleep(self._rng.uniform(0.05, 1.5))

    async def exec(self, target: SshTarget, command: str, **_: object) -> Ran:
        host = self._hosts[target.host]
        await self._step()
        if "restart" in command:
            host.runs = host.files[PATH]
        else:
            assert command.endswith(".former"), command
            former = host.files.pop("former", None)
            if former is not None and command.startswith("for "):
                host.files[PATH + PREVIOUS] = former
        return Ran(0, b"", b"", False)

    async def put(self, target: SshTarget, chunks: object, path: str, **how: Any) -> None:
        host = self._hosts[target.host]
        if host.poisons:
            raise RuntimeError("nobody thought of that")
        for _ in range(4):  # the upload
            await self._step()
        host.files["former"] = host.files[path]
        await self._step()
        host.files[path] = how["sha256"]
        host.swaps.append(how["sha256"])
        await self._step()
        host.files[path + PREVIOUS] = host.files.pop("former")

    async def sha256(self, target: SshTarget, path: str) -> BlobInfo:
        await self._step()
        return BlobInfo(self._hosts[target.host].files[path], 10)

    async def rename(self, target: SshTarget, path: str, to: str) -> None:
        files = self._hosts[target.host].files
        await self._step()
        files[to] = files.pop(path)
        self._hosts[target.host].swaps.append(files[to])
        await self._step()


class ReachDouble:
    able = True

    def __init__(self, ssh: SshDouble) -> None:
        self.ssh = ssh

    async def target(self, view: BuilderView) -> SshTarget:
        return SshTarget(view.node.addresses[0], key_file="key")


class Blobs:
    @asynccontextmanager
    async def open(self, sha256: str) -> AsyncIterator[AsyncIterator[bytes]]:
        async def nothing() -> AsyncIterator[bytes]:
            yield b""

        yield nothing()


class Rolling:
    """A swarm that rolls versions out to hosts, from whichever of its nodes are there."""

    def __init__(self, bottle: Bottle, seed: int) -> None:
        self.bottle = bottle
        self.hosts = {name: HostDouble(bottle, name) for name in NAMES}
        self.rollouts: dict[str, Rollouts] = {}
        self._rng = random.Random(seed)

    def serve(self, name: str) -> None:
        self.bottle.background(partial(self._serve, name))

    async def _serve(self, name: str) -> None:
        """For as long as the node lives."""
        with suppress(Gone):
            await self.bottle.request(name, partial(self._roll_here, name))

    async def _roll_here(self, name: str, cluster: Hosted) -> None:
        cluster.blobs = Blobs()  # type: ignore[assignment]
        reach = ReachDouble(SshDouble(self.hosts, self._rng))
        files = {SORT: PayloadFile(PATH, 0o755)}
        on = Deploying(cluster, reach, files, "drone", HEARTBEAT_S)  # type: ignore[arg-type]
        async with open_rollouts(on) as rollouts:
            self.rollouts[name] = rollouts
            await trio.sleep_forever()

    async def begin(self) -> None:
        await self.bottle.populate("a", "b", "c")
        for name in self.bottle.there():
            self.serve(name)
        for host in self.hosts.values():
            self.bottle.background(host.live)
        for version, sha in (("1", OLD), ("2", NEW), ("bad", BAD)):
            await self.ask(partial(self._register, Payload(SORT, version, sha, 10)))
        with trio.fail_after(60):
            while len(await self.ask(lambda c: c.read(ListBuilders()))) < len(NAMES):
                await trio.sleep(1)

    async def _register(self, payload: Payload, cluster: Hosted) -> None:
        blob = AddBlob(payload.sha256, payload.size_bytes, cluster.node.id)
        await cluster.propose(blob, ADMIN)
        await cluster.propose(PutPayload(payload), ADMIN)

    async def ask(self, work: Callable[[Hosted], Awaitable[T]]) -> T:
        while True:
            try:
                return await self.bottle.request(self._rng.choice(self.bottle.there()), work)
            except (Gone, Unavailable, Busy):
                await trio.sleep(1)

    async def roll(self, name: str, version: str) -> None:
        """Ask one node for it, which may die."""
        with suppress(Gone, SwarmError):
            await self.bottle.request(
                name, lambda c: self.rollouts[name].roll(ADMIN, SORT, version, NAMES)
            )

    def at_it(self) -> str | None:
        """Which node is."""
        return next((name for name in self.bottle.there() if self.rollouts[name].running), None)

    async def until_begun(self) -> None:
        with trio.fail_after(60):
            while not await self.ask(lambda c: c.read(ListRolls())):
                await trio.sleep(0.1)

    async def until_ended(self) -> None:
        with trio.fail_after(600):
            while await self.ask(lambda c: c.read(ListRolls())):
                await trio.sleep(1)

    async def places(self) -> dict[str, tuple[str | None, str]]:
        places = await self.ask(lambda c: c.read(ListPlaces(SORT)))
        return {
            place.node_id.removeprefix("builder/id-"): (place.version, place.status.value)
            for place in places
        }  # fmt: skip


def is_there(bottle: Bottle, name: str) -> bool:
    return name in bottle.there()


async def torment(rolling: Rolling, rng: random.Random, deaths: int, within_s: float) -> None:
    """Whoever is at it dies in the middle, again and again."""
    bottle = rolling.bottle
    for _ in range(deaths):
        while (via := rolling.at_it()) is None:
            if not await rolling.ask(lambda c: c.read(ListRolls())):
                return
            await trio.sleep(1)
        await trio.sleep(rng.uniform(0, within_s))
        await bottle.crash(via)
        await trio.sleep(rng.uniform(0, HOLD_S + 10))
        await bottle.start(via)
        await bottle.until(partial(is_there, bottle, via), 60, "it is back")
        rolling.serve(via)


@pytest.mark.parametrize("seed", range(100, 104))
def test_a_roll_ends_whoever_dies_and_each_has_it_once(seed: int, tmp_path: Path) -> None:
    async def body(bottle: Bottle) -> None:
        rolling, rng = Rolling(bottle, seed), random.Random(seed)
        await rolling.begin()
        first = rng.choice(bottle.there())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rolling.roll, first, "2")
            await rolling.until_begun()
            await torment(rolling, rng, 4, 15.0)
            await rolling.until_ended()
            nursery.cancel_scope.cancel()
        for host in rolling.hosts.values():
            assert (host.swaps, host.runs, host.files[PATH + PREVIOUS]) == ([NEW], NEW, OLD)
        assert await rolling.places() == dict.fromkeys(NAMES, ("2", "deployed"))

    run_bottle(seed, tmp_path, body)


@pytest.mark.parametrize("seed", range(143, 147))
def test_what_ails_is_rolled_back_whoever_dies(seed: int, tmp_path: Path) -> None:
    """One takes the new program and is not well: it has its former one back, and nobody else gets
    the new one, however often the node that is at it changes."""

    async def body(bottle: Bottle) -> None:
        rolling, rng = Rolling(bottle, seed), random.Random(seed)
        await rolling.begin()
        first = rng.choice(bottle.there())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rolling.roll, first, "bad")
            await rolling.until_begun()
            await torment(rolling, rng, 4, 40.0)
            await rolling.until_ended()
            nursery.cancel_scope.cancel()
        one, two, three = rolling.hosts.values()
        assert (one.swaps, one.files[PATH], one.runs) == ([BAD, OLD], OLD, OLD)
        assert two.swaps == three.swaps == []
        assert await rolling.places() == {"one": ("1", "deployed")}

    run_bottle(seed, tmp_path, body)


@bottled(83)
async def test_a_node_that_stops_in_good_order_hands_its_roll_over_at_once(bottle: Bottle) -> None:
    rolling = Rolling(bottle, 83)
    await rolling.begin()
    leader = await bottle.leader()
    first = next(name for name in bottle.there() if name != leader)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rolling.roll, first, "2")
        await rolling.until_begun()
        await trio.sleep(3)
        with trio.fail_after(LOOK_EVERY_S + 1):
            rolling.rollouts[first].stop()  # as a daemon does first of all
            while rolling.at_it() in (None, first):
                await trio.sleep(0.1)
        assert rolling.at_it() == leader
        await bottle.stop(first)
        await rolling.until_ended()
        nursery.cancel_scope.cancel()
    assert all(host.swaps == [NEW] for host in rolling.hosts.values())


@bottled(84)
async def test_a_new_roll_takes_the_place_of_one_that_was_left(bottle: Bottle) -> None:
    rolling = Rolling(bottle, 84)
    await rolling.begin()
    leader = await bottle.leader()
    first, other = [name for name in bottle.there() if name != leader]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(rolling.roll, first, "bad")
        await rolling.until_begun()
        await trio.sleep(3)
        await bottle.crash(first)
        for name in (leader, other):
            rolling.rollouts[name].on.reach.able = False  # type: ignore[misc]
        with trio.fail_after(120):
            while await rolling.places() != dict.fromkeys(NAMES, ("2", "deployed")):
                await rolling.roll(other, "2")
                await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert {host.runs for host in rolling.hosts.values()} == {NEW}
    assert not await rolling.ask(lambda c: c.read(ListRolls()))


@bottled(85)
async def test_one_that_no_node_comes_to_the_end_of_is_given_up(bottle: Bottle) -> None:
    rolling = Rolling(bottle, 85)
    await rolling.begin()
    rolling.hosts["two"].poisons = True
    first = bottle.there()[0]
    with pytest.raises(Unavailable, match="broke off"):
        await bottle.request(
            first, lambda c: rolling.rollouts[first].roll(ADMIN, SORT, "2", NAMES)
        )  # fmt: skip
    await rolling.until_ended()
    assert [host.swaps for host in rolling.hosts.values()] == [[NEW], [], []]
    with trio.fail_after(10):
        while (last := (await rolling.ask(lambda c: c.read(ListDeployments(SORT, 1))))[0]).ok:
            await trio.sleep(1)
    assert last.node_name == "two" and "is given up" in (last.error or "")
    assert await rolling.places() == {"one": ("2", "deployed"), "two": (None, "deploying")}
    # It is in nobody's way.
    rolling.hosts["two"].poisons = False
    await rolling.roll(first, "2")
    assert rolling.hosts["three"].swaps == [NEW]
