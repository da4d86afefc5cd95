"""The yard: the builders of an estate, the packages that wait for them, and how both are brought to
where a copy of a state has them.

What was is told to the simulated swarm in its own commands: sessions, builders, who failed what,
who has what, what is blocked. Only then do the builders begin to come for work.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any

import trio

from swarmd.domain.actors import Actor
from swarmd.domain.builds import SWEEPER, Control, HostSort, Outcome, prefetch
from swarmd.domain.errors import Busy, Conflict, NotFound, Unavailable
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import GroupId, Installed, JobId, JobKind, JobSpec
from swarmd.sim.benches import Bench, Member
from swarmd.sim.bottle import Gone
from swarmd.sim.builders import AGAIN_S, BEAT_S, About, Builder
from swarmd.sim.estate import Estate
from swarmd.sim.exported_builds import ExportedBuilds, KnownBuilder, OpenPackage
from swarmd.sim.packages import PackageBook
from swarmd.sim.work import BULK_JOBS, USER
from swarmd.state.build_commands import ControlBuilds, NoteBuilder, StartBuild, TakeBuilds
from swarmd.state.commands import Command, CreateGroup, NewJob, Refusal, SubmitJobs, T
from swarmd.state.rules.builds import NAME

OWN = Actor("agent", "sim")
AHEAD = 1000
"""Priorities from here on are of what is brought with its past: it was in the queue first."""
PASTS_MAX = 300
"""Packages whose failures are brought; each takes several entries."""
TURNS_MAX = 20
"""So often a sweeper leaves what it is not to have."""
CORES_MAX = 64
"""Who has so many gets as much at once as anybody."""
VARIES = 0.25
"""So much less or more than expected a build takes."""


class Yard:
    """`live` runs the builders; whoever takes a machine away takes its builder with `take`."""

    def __init__(
        self, estate: Estate, known: ExportedBuilds, seed: int, usual_s: float, book: PackageBook
    ) -> None:
        self.estate = estate
        self.known = known
        self.not_brought = 0
        """Packages that do not stand as they did: without failures, or not with their builder."""
        self._usual_s = usual_s
        self._book = book
        self._keys = {each.name: each.key for each in known.packages}
        self._left_s: dict[tuple[str, str], float] = {}
        """Of builds that had begun: for how long those builders had been at them."""
        self._submitted: set[JobId] = set()
        self._nursery: trio.Nursery | None = None
        self._scopes: dict[str, trio.CancelScope] = {}
        self.builders = {each.name: self._builder(each, seed) for each in known.builders}

    def _builder(self, known: KnownBuilder, seed: int) -> Builder | Member:
        rng = random.Random(f"{seed}builds{known.name}")
        about = About(known.id, known.cores, known.about.auto_reboot, known.about.tree_at)
        lasts = partial(self._lasts, known.name, rng)
        if known.member:
            return Member(self.estate, known.name, Bench(about, OWN, lasts))
        return Builder(self.estate, known.name, seed, about=about, lasts=lasts)

    def _lasts(self, builder: str, rng: random.Random, package: str) -> float:
        expected_s = self.known.lengths_s.get(self._keys.get(package, package))
        if expected_s is None:
            length_s = rng.uniform(self._usual_s / 2, 1.5 * self._usual_s)
        else:
            length_s = expected_s * rng.uniform(1 - VARIES, 1 + VARIES)
        ran_s = self._left_s.pop((builder, package), 0.0)
        return max(min(1.0, length_s), length_s - ran_s)

    # As it was

    async def bring(self) -> None:
        async with trio.open_nursery() as nursery:
            for builder in self.builders.values():
                self._book.builders[builder.node_id] = builder.name
                await builder.introduce()
            nursery.start_soon(self._keep_there)
            await self._bring()
            nursery.cancel_scope.cancel()

    async def _keep_there(self) -> None:
        """However long it takes until they live."""
        while True:
            await trio.sleep(BEAT_S)
            for builder in self.builders.values():
                await builder.introduce()

    async def _bring(self) -> None:
        known = self.known
        for session in known.sessions:
            labels = {"name": session.labels.get("name", session.id)}
            await self._do(CreateGroup(Group(session.id, GroupKind.SESSION, labels=labels)))
        for each in known.builders:
            if each.about.sort is not HostSort.UNKNOWN:
                node_id = self.builders[each.name].node_id
                await self._do(NoteBuilder(node_id, sort=each.about.sort))
        held, failed, rest = self._by_their_past()
        await self._bring_pasts([*failed, *(each for some in held.values() for each in some)])
        for name, some in reversed(held.items()):
            await self._give_back_to(self.builders[name], some)
        await self._submit(rest)
        blocked = {each.name for each in known.packages if each.blocked_s is not None}
        for name in [p.name for p in self._book.packages.values() if p.name in blocked]:
            await self._block(name)
        if self.builders:
            await self._do(ControlBuilds(Control.UNGROUND, 1))
        for each in known.builders:
            if each.about.paused or each.rests_s:
                await self._do(NoteBuilder(self.builders[each.name].node_id, paused=True))
        if known.paused:
            await self._do(ControlBuilds(Control.PAUSE, 1))

    def _by_their_past(
        self,
    ) -> tuple[dict[str, list[OpenPackage]], list[OpenPackage], list[OpenPackage]]:
        """What is held, by builder; what failed, those first that come last; and the rest."""
        held: dict[str, list[OpenPackage]] = {}
        failed: list[OpenPackage] = []
        rest: list[OpenPackage] = []
        for each in self.known.packages:
            if each.holder is not None:
                held.setdefault(each.holder, []).append(each)
            elif each.failed_by and len(failed) < PASTS_MAX:
                failed.append(each)
            else:
                self.not_brought += bool(each.failed_by)
                rest.append(each)
        # Who was last to come is submitted first, and goes after all that come then; and a sweeper
        # finds what it has failed while nothing else is blocked.
        failed.reverse()
        failed.sort(key=lambda each: not any(map(_sweeps, each.failed_by)))
        for some in held.values():
            some.reverse()
            some.sort(key=lambda each: each.ran_s is not None)
        return held, failed, rest

    async def _bring_pasts(self, packages: Sequence[OpenPackage]) -> None:
        for rank, package in enumerate(packages):
            await self._submit([package], AHEAD + rank)
            for name in sorted(package.failed_by, key=lambda name: (_sweeps(name), name)):
                builder = self.builders[name]
                if await self._give(builder, {package.name}):
                    await builder.settle([package.name], Outcome.FAILED)
                else:
                    self.not_brought += 1

    async def _give_back_to(
        self, builder: Builder | Member, packages: Sequence[OpenPackage]
    ) -> None:
        if _sweeps(builder.name):
            for each in packages:
                await self._block(each.name)
        if not await self._give(builder, {each.name for each in packages}):
            self.not_brought += len(packages)
            return
        for each in packages:
            if each.ran_s is not None:
                if isinstance(builder, Builder):  # a member's agent says so itself
                    await self._do(StartBuild(builder.node_id, each.name))
                self._left_s[builder.name, each.name] = each.ran_s

    async def _give(self, builder: Builder | Member, names: set[str]) -> bool:
        """These and no others. What is not blocked comes in its order; of what is, a sweeper leaves
        what it is not to have, which goes to the end."""
        cores = next((n for n in range(1, CORES_MAX) if prefetch(n) >= len(names)), CORES_MAX)
        for _ in range(TURNS_MAX if _sweeps(builder.name) else 1):
            got = {job.spec.type for job in await self._do(TakeBuilds(builder.node_id, cores))}
            if got == names:
                return True
            await builder.settle(sorted(got), Outcome.RETURNED)
        return False

    async def _submit(self, packages: Sequence[OpenPackage], priority: int | None = None) -> None:
        for session, some in groupby(packages, key=lambda each: each.session):
            batch = [*some]
            group = None if session is None else GroupId(session)
            for at in range(0, len(batch), BULK_JOBS):
                new = tuple(self._new(each, priority) for each in batch[at : at + BULK_JOBS])
                answers = await self._do(SubmitJobs(new, group))
                refused = [answer for answer in answers if isinstance(answer, Refusal)]
                self.not_brought += len(refused)

    def _new(self, package: OpenPackage, priority: int | None) -> NewJob:
        depends_on = tuple(dep for dep in package.depends_on if dep in self._submitted)
        self._submitted.add(package.id)
        self._book.called[package.id] = package.name
        if package.session is not None:
            self._book.sessions[package.id] = package.session
        return NewJob(package.id, JobSpec(
            package.name, Installed("emerge"), package.priority if priority is None else priority,
            arguments=(package.name,), labels={NAME: package.key}, depends_on=depends_on,
            disconnect_s=package.disconnect_s, kind=JobKind.PACKAGE,
        ))  # fmt: skip

    async def _block(self, package: str) -> None:
        """Where it is not so already."""
        try:
            await self._do(ControlBuilds(Control.BLOCK, 1, package))
        except (Conflict, NotFound):
            pass

    async def _do(self, command: Command[T]) -> T:
        """As an operator, who asks until it is answered."""
        while True:
            for name in self.estate.there()[:1]:
                try:
                    return await self.estate.request(name, lambda c: c.propose(command, USER))
                except (Busy, Gone, Unavailable):
                    continue
            await trio.sleep(AGAIN_S)

    # As it goes on

    async def live(self) -> None:
        """Until it is cancelled."""
        async with trio.open_nursery() as self._nursery:
            for name, builder in self.builders.items():
                if isinstance(builder, Member):
                    builder.bench.opened.set()
                else:
                    self._start(name)
            began = trio.current_time()
            for due_s, undo in sorted(self._due(), key=lambda each: each[0]):
                await trio.sleep_until(began + due_s)
                self._nursery.start_soon(self._undo, undo)
            await trio.sleep_forever()

    def _due(self) -> Iterator[tuple[float, Command[Any]]]:
        """What ends by itself, and when."""
        for package in self.known.packages:
            if package.blocked_s is not None:
                yield package.blocked_s, ControlBuilds(Control.UNBLOCK, 1, package.name)
        for each in self.known.builders:
            if each.rests_s and not each.about.paused:
                node_id = self.builders[each.name].node_id
                yield each.rests_s, NoteBuilder(node_id, paused=False)

    async def _undo(self, command: Command[Any]) -> None:
        try:
            await self._do(command)
        except (Conflict, NotFound):
            pass  # a sweeper has it, or has built it

    def _start(self, name: str) -> None:
        assert self._nursery is not None
        scope, builder = trio.CancelScope(), self.builders[name]
        assert isinstance(builder, Builder)
        self._scopes[name] = scope

        async def live() -> None:
            with scope:
                await builder.live()

        self._nursery.start_soon(live)

    def take(self, names: Sequence[str]) -> None:
        """Their power, at once."""
        for name in names:
            if (scope := self._scopes.pop(name, None)) is not None:
                scope.cancel()

    def give_back(self, names: Sequence[str]) -> None:
        """Each goes on with what it holds, from its beginning."""
        for name in names:
            if name not in self._scopes:
                self._start(name)

    def named(self, names: Sequence[str]) -> tuple[str, ...]:
        """Those that are builders and no members, which go with their nodes."""
        return tuple(name for name in names if isinstance(self.builders.get(name), Builder))

    def tasks(self, names: Sequence[str]) -> list[tuple[str, str]]:
        """What builders among these are at."""
        found = [(name, self.builders[name].task) for name in names if name in self.builders]
        return [(name, task) for name, task in found if task is not None]

    def there(self) -> list[str]:
        nodes = self.estate.there()
        return [
            name for name, builder in self.builders.items()
            if name in (nodes if isinstance(builder, Member) else self._scopes)
        ]  # fmt: skip


def _sweeps(name: str) -> bool:
    return name.startswith(SWEEPER)
