"""Builders that fail while leaders die: the ladder is climbed once, and by one at a time."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import trio

from swarmd.cluster.asks import ActOnHost, ProbeHost
from swarmd.domain.actors import Actor
from swarmd.domain.builds import HostSort
from swarmd.domain.care import FAILING_MS_MIN, HEARD_MS, PAUSES_MS, CareAction
from swarmd.domain.errors import Unavailable
from swarmd.domain.events import CareTaken
from swarmd.domain.jobs import Constraint, Installed, JobId, JobSpec, NodeId
from swarmd.domain.probes import Probed, ProbeStatus, ServiceState
from swarmd.ops import care
from swarmd.ops.events import list_events
from swarmd.sim.bottle import Bottle
from swarmd.state.build_commands import NoteBuilder, PutBuilder
from swarmd.state.commands import NewJob, SubmitJobs
from swarmd.state.queries import FindJob
from tests.sim.world import bottled

ADMIN = Actor("admin", "buildswarm")
ACTION_S = 5.0


@dataclass
class Host:
    """What a node says of its host, and what was done to it."""

    bottle: Bottle
    name: str
    load: float = 0.1
    hangs: bool = False
    refuses: tuple[CareAction, ...] = ()
    done: list[tuple[float, CareAction]] = field(default_factory=list)
    busy: set[str] = field(default_factory=set)
    """Hosts that something is being done to; of all of them together."""

    async def begin(self, sort: HostSort = HostSort.LXC) -> None:
        """Its node is a builder."""
        node_id = self.node_id
        await self.bottle.request(self.name, lambda c: c.propose(PutBuilder(node_id), ADMIN))
        note = NoteBuilder(node_id, sort=sort)
        await self.bottle.request(self.name, lambda c: c.propose(note, ADMIN))
        self.answer()

    def answer(self) -> None:
        cluster = self.bottle.cluster(self.name)
        cluster.answers(ProbeHost, self._probe)
        cluster.answers(ActOnHost, self._act)

    @property
    def node_id(self) -> NodeId:
        return self.bottle.node_id(self.name)

    @property
    def actions(self) -> list[CareAction]:
        return [action for _, action in self.done]

    async def view(self) -> care.CareView:
        there = next(name for name in self.bottle.there() if name != self.name)
        return await self.bottle.request(there, lambda c: care.find(c, self.name))

    async def until_level(self, level: int, within_s: float) -> None:
        with trio.move_on_after(within_s):
            while True:
                try:
                    if (await self.view()).care.level == level:
                        return
                except Unavailable:
                    pass
                await trio.sleep(1)
        raise AssertionError(f"level {level} was not reached: {await self.view()}")

    async def _probe(self, ask: ProbeHost) -> Probed:
        if self.hangs:
            await trio.sleep_forever()
        return Probed(self.load, 4, (10,), 20, ServiceState.UNKNOWN, False, 1000.0)

    async def _act(self, ask: ActOnHost) -> None:
        assert not self.busy, "two at once"
        self.busy.add(self.name)
        try:
            await trio.sleep(ACTION_S)
            if ask.action in self.refuses:
                raise Unavailable("it cannot be done here")
            self.done.append((trio.current_time(), ask.action))
        finally:
            self.busy.discard(self.name)


async def followers(bottle: Bottle) -> list[str]:
    leader = await bottle.leader()
    return [name for name in bottle.there() if name != leader]


async def work_goes_on(bottle: Bottle, host: Host) -> bool:
    """Whether a job that only this node may run is begun there."""
    job_id = JobId(f"job {trio.current_time()}")
    only = (Constraint("node.labels.host", "==", host.name),)
    spec = JobSpec("t", Installed("sleep"), arguments=(job_id, "1"), constraints=only)
    there = next(name for name in bottle.there() if name != host.name)
    await bottle.request(there, lambda c: c.propose(SubmitJobs((NewJob(job_id, spec),)), ADMIN))
    with trio.move_on_after(20):
        while True:
            job = await bottle.request(there, lambda c: c.read(FindJob(job_id)))
            if job is not None and job.started_at is not None:
                return True
            await trio.sleep(0.5)
    return False


@bottled(90)
async def test_the_ladder_goes_on_where_a_dead_leader_left_it(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c", "d")
    host = Host(bottle, (await followers(bottle))[-1], load=99.0)
    await host.begin()
    began = trio.current_time()
    await host.until_level(1, 400)
    assert trio.current_time() - began >= FAILING_MS_MIN / 1000
    leader = await bottle.leader()
    await bottle.crash(leader)
    await host.until_level(2, 400)
    await bottle.start(leader)
    await host.until_level(3, 400)
    assert host.actions == [CareAction.RESTART, CareAction.KILL_START, CareAction.REBOOT]
    # As after a reboot.
    await bottle.crash(host.name, power=True)
    await bottle.start(host.name)
    host.load = 0.5
    await bottle.until(lambda: host.name in bottle.there(), 60, "it is back")
    host.answer()
    await host.until_level(0, 200)
    assert len(host.done) == 3
    view = await host.view()
    assert view.sign.status is ProbeStatus.OK and view.care.attempts == 0


@bottled(91)
async def test_a_leader_that_dies_in_the_middle_of_a_step_leaves_it_to_the_next(
    bottle: Bottle,
) -> None:
    await bottle.populate("a", "b", "c", "d")
    host = Host(bottle, (await followers(bottle))[-1], load=99.0)
    await host.begin()
    await bottle.until(lambda: bool(host.busy), 400, "a step is taken")
    await bottle.crash(await bottle.leader())
    await host.until_level(1, 600)
    assert CareAction.KILL_START not in host.actions
    events = await bottle.request(host.name, lambda c: list_events(
        c, ("CareTaken",), limit=20, since=0
    ))  # fmt: skip
    told = [e.body.what for e in reversed(events[0]) if isinstance(e.body, CareTaken)]
    assert told == ["begun", "failed", "begun", "done"]


@bottled(92)
async def test_two_that_fail_are_cared_for_one_after_the_other(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c", "d", "e")
    busy: set[str] = set()
    names = (await followers(bottle))[-2:]
    hosts = [Host(bottle, name, load=99.0, busy=busy) for name in names]
    for host, sort in zip(hosts, (HostSort.BARE_METAL, HostSort.QEMU), strict=True):
        await host.begin(sort)
    async with trio.open_nursery() as nursery:
        for host in hosts:
            nursery.start_soon(host.until_level, 4, 2000.0)
    metal, virtual = hosts
    assert metal.actions == [CareAction.RESTART, CareAction.KILL_START]
    assert virtual.actions == [CareAction.RESTART, CareAction.KILL_START, CareAction.REBOOT]
    times = sorted(at for host in hosts for at, _ in host.done)
    assert all(late - early >= 30 for early, late in itertools.pairwise(times))


@bottled(93)
async def test_a_probe_that_hangs_ends_in_its_bound_and_keeps_nobody_waiting(
    bottle: Bottle,
) -> None:
    await bottle.populate("a", "b", "c")
    sick, sound = (Host(bottle, name) for name in ("b", "c"))
    sick.hangs = True
    for host in (sick, sound):
        await host.begin()
    with trio.fail_after(60):
        while (await sick.view()).sign.status is None:
            await trio.sleep(1)
    assert (await sick.view()).sign.status is ProbeStatus.TIMEOUT
    assert (await sound.view()).sign.status is ProbeStatus.OK
    began = trio.current_time()
    view = await bottle.request("a", lambda c: care.probe(c, "c"))
    assert view.sign.status is ProbeStatus.OK and trio.current_time() - began < 1


@bottled(94)
async def test_one_that_cannot_be_reached_is_a_matter_for_people(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c", "d")
    host = Host(bottle, (await followers(bottle))[-1])
    await host.begin()
    with trio.fail_after(60):
        while (await host.view()).sign.status is not ProbeStatus.OK:
            await trio.sleep(1)
    await bottle.crash(host.name)
    await trio.sleep(HEARD_MS / 1000 - 20)
    view = await host.view()
    assert view.sign.status is ProbeStatus.UNREACHABLE and view.sign.failures == 0
    await host.until_level(4, 900)
    assert (await host.view()).care.action is CareAction.ALERT
    assert not host.done
    await bottle.start(host.name)
    await bottle.until(lambda: host.name in bottle.there(), 60, "it is back")
    host.answer()
    await host.until_level(0, 120)


@bottled(95)
async def test_an_operator_resets_what_was_reached_on_any_node(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    host = Host(bottle, (await followers(bottle))[-1], load=99.0)
    await host.begin(HostSort.BARE_METAL)
    await host.until_level(1, 400)
    host.load = 0.1
    assert await bottle.request("b", lambda c: care.reset(c, ADMIN, host.name)) == 1
    assert (await host.view()).care.level == 0


@bottled(96)
async def test_what_a_node_did_goes_back_before_its_reboot_and_it_takes_up_work_when_it_is_well(
    bottle: Bottle,
) -> None:
    names = ("a", "b", "c", "d")
    bottle.labels = {name: {"host": name} for name in names}
    await bottle.populate(*names)
    host = Host(bottle, (await followers(bottle))[-1], load=99.0)
    await host.begin()
    assert await work_goes_on(bottle, host)
    await host.until_level(3, 900)
    assert not await work_goes_on(bottle, host), "it is about to be rebooted"
    host.load = 0.5
    await host.until_level(0, 200)
    assert await work_goes_on(bottle, host)


async def worker(bottle: Bottle) -> Host:
    """A builder that fails, in a swarm where jobs can be given to one node."""
    names = ("a", "b", "c", "d")
    bottle.labels = {name: {"host": name} for name in names}
    await bottle.populate(*names)
    host = Host(bottle, (await followers(bottle))[-1], load=99.0)
    await host.begin()
    return host


async def until_rebooted(bottle: Bottle, host: Host) -> None:
    """As far as it says: the host stays up."""
    await host.until_level(3, 900)
    assert not await work_goes_on(bottle, host), "it is about to be rebooted"


@bottled(97)
async def test_who_could_not_be_rebooted_takes_up_work_again(bottle: Bottle) -> None:
    host = await worker(bottle)
    host.refuses = (CareAction.REBOOT,)
    await host.until_level(2, 600)
    with trio.fail_after(300):
        while (await host.view()).care.failed_tries == 0:
            await trio.sleep(1)
    assert await work_goes_on(bottle, host), "at once"
    await host.until_level(4, 900)
    assert await work_goes_on(bottle, host), "people were called"
    host.load = 0.5
    await host.until_level(0, 200)
    assert await work_goes_on(bottle, host)


@bottled(98)
async def test_who_was_put_at_the_foot_before_its_reboot_came_takes_up_work_again(
    bottle: Bottle,
) -> None:
    host = await worker(bottle)
    await until_rebooted(bottle, host)
    assert await bottle.request("b", lambda c: care.reset(c, ADMIN, host.name)) == 3
    await trio.sleep(PAUSES_MS[CareAction.REBOOT] / 1000)
    assert await work_goes_on(bottle, host)


@bottled(99)
async def test_who_is_out_of_reach_until_people_are_called_takes_up_work_again(
    bottle: Bottle,
) -> None:
    host = await worker(bottle)
    await until_rebooted(bottle, host)
    bottle.network.isolate(host.name)
    await host.until_level(4, 900)
    await bottle.crash(await bottle.leader(among=tuple(n for n in "abcd" if n != host.name)))
    await trio.sleep(60)
    bottle.network.heal()
    host.load = 0.5
    await host.until_level(0, 200)
    assert await work_goes_on(bottle, host)


@bottled(100)
async def test_who_is_left_in_the_middle_of_its_reboot_takes_up_work_again(bottle: Bottle) -> None:
    host = await worker(bottle)
    await host.until_level(2, 600)
    await bottle.until(lambda: bool(host.busy), 300, "a reboot is about to be asked for")
    leader = await bottle.leader()
    await bottle.request(leader, lambda c: c.hand_over())
    assert await bottle.leader() != leader
    assert await work_goes_on(bottle, host)
    assert CareAction.REBOOT not in host.actions
