"""Packages that wait for each other, while builders fail and leaders die: in order, none lost."""

from __future__ import annotations

import trio

from swarmd.domain.builds import Outcome
from swarmd.domain.jobs import Installed, Job, JobId, JobKind, JobSpec
from swarmd.sim.bottle import Bottle
from swarmd.sim.builders import Builder
from swarmd.state.commands import NewJob, SubmitJobs
from tests.sim.test_builds import ADMIN, ask, until
from tests.sim.world import bottled

NAMES = [f"app-misc/p{n}-1" for n in range(12)]
NEEDS = {NAMES[n]: (NAMES[n // 2], NAMES[n - 1]) for n in range(1, len(NAMES))}
"""A row, with short cuts."""
BROKEN = NAMES[4]


@bottled(76)
async def test_the_order_holds_and_what_is_given_up_holds_up_nobody(bottle: Bottle) -> None:
    await bottle.populate("a", "b", "c")
    ended: list[str] = []

    def fails(package: str) -> Outcome | None:
        ended.append(package)
        return Outcome.FAILED if package == BROKEN else None

    new = tuple(
        NewJob(JobId(name), JobSpec(
            name, Installed("emerge"), kind=JobKind.PACKAGE, labels={"package": name[:-2]},
            depends_on=tuple(map(JobId, NEEDS.get(name, ()))),
        ))
        for name in NAMES
    )  # fmt: skip
    drones = [Builder(bottle, f"drone-{n}", 76, fails=fails) for n in (1, 2, 3)]
    jobs = await ask(bottle, lambda c: c.propose(SubmitJobs(new), ADMIN))
    assert all(isinstance(job, Job) for job in jobs)
    async with trio.open_nursery() as nursery:
        for each in drones:
            nursery.start_soon(each.live)
        await bottle.until(lambda: NAMES[2] in ended, 120, "the row is begun")
        leader = await bottle.leader()
        await bottle.crash(leader, power=True)
        await bottle.until(lambda: NAMES[7] in ended, 300, "the row goes on")
        await bottle.start(leader)
        await until(bottle, lambda n: (n.received, n.blocked) == (len(NAMES) - 1, 1), 300)
        nursery.cancel_scope.cancel()
    await bottle.settle()
    for name, needs in NEEDS.items():
        first = ended.index(name)
        for need in needs:
            times = 2 if need == BROKEN else 1
            assert ended[:first].count(need) >= times, f"{name} came before {need}"
