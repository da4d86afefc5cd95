"""A roll: a version goes to builders one after the other, and none is left with what ails it.

How far it has come is in the state before the next step is taken, so that another node can go on
where this one ends: what is done is not done again, and what a builder had before is known."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.payloads import Before, Payload, PayloadSort, Progress, Roll, Rolling
from swarmd.ops.deployment import Deploying, OfHost, Steps
from swarmd.ops.payloads import short
from swarmd.state.build_queries import BuilderView, FindBuilder
from swarmd.state.payload_commands import BeginRoll, EndRoll, NoteRoll, TakeRoll
from swarmd.state.versions import ROLLS_SINCE


class Outcome(msgspec.Struct, frozen=True):
    ok: bool
    message: str = ""


class Rolled(msgspec.Struct, frozen=True):
    results: dict[str, Outcome]
    """By name, in the order in which they had their turn on this node."""
    left: tuple[str, ...]
    """They had none: it was stopped before."""

    @property
    def failed(self) -> int:
        return sum(not outcome.ok for outcome in self.results.values())


class Ledger:
    """What the swarm keeps of a roll, by the one who holds its sort. While an older version of the
    state is in force it keeps nothing, and the roll ends with its node."""

    def __init__(self, cluster: Cluster, actor: Actor, sort: PayloadSort, holder: str) -> None:
        self._cluster = cluster
        self._actor = actor
        self._sort = sort
        self._holder = holder
        self._kept = cluster.cluster_version() >= ROLLS_SINCE

    async def begin(self, roll: Roll) -> None:
        if self._kept:
            await self._cluster.propose(BeginRoll(roll, self._holder), self._actor)

    async def take(self) -> Rolling | None:
        """What another node left; None: nothing, or it is given up."""
        return await self._cluster.propose(TakeRoll(self._sort, self._holder), self._actor)

    async def note(self, progress: Progress) -> None:
        if self._kept:
            await self._cluster.propose(
                NoteRoll(self._sort, self._holder, progress), self._actor
            )  # fmt: skip

    async def end(self, *, whole: bool) -> None:
        if self._kept:
            await self._cluster.propose(EndRoll(self._sort, self._holder, whole), self._actor)


class RollRun:
    """A roll on the node that is at it, from wherever it has come to."""

    def __init__(
        self, on: Deploying, actor: Actor, payload: Payload, roll: Roll, ledger: Ledger
    ) -> None:
        self._cluster = on.cluster
        self._steps = Steps(on, actor, roll.by, payload)
        self._payload = payload
        self._roll = roll
        self._ledger = ledger

    async def run(self, progress: Progress) -> Rolled:
        roll, results = self._roll, dict[str, Outcome]()
        count = len(roll.node_ids)
        while progress.turn < count:
            view = await self._cluster.read(FindBuilder(roll.node_ids[progress.turn]))
            outcome = Outcome(True)
            if view is not None:  # one that was removed meanwhile is passed over
                outcome = results[view.node.name] = await self._turn(view, progress)
            if not outcome.ok and roll.rollback_on_fail:
                await self._ledger.end(whole=progress.turn + 1 == count)
                return Rolled(results, await self._names(progress.turn + 1))
            progress = Progress(progress.turn + 1, failed=progress.failed + (not outcome.ok))
            await self._ledger.note(progress)
        await self._ledger.end(whole=True)
        return Rolled(results, ())

    async def _names(self, after: int) -> tuple[str, ...]:
        views = [await self._cluster.read(FindBuilder(n)) for n in self._roll.node_ids[after:]]
        return tuple(view.node.name for view in views if view is not None)

    async def _turn(self, view: BuilderView, progress: Progress) -> Outcome:
        steps, begun = self._steps, progress.before
        if begun is not None and progress.undoing:
            return await self._roll_back(view, begun, progress.undoing)
        try:
            found = before = await steps.look(view, again=begun is not None)
            if begun is not None and found.sha256 == self._payload.sha256:
                before = begun  # the node that was at it had put it there
            if before != begun:
                progress = replace(progress, before=before)
                await self._ledger.note(progress)
            await steps.put(view, found)
        except OfHost as refused:
            return Outcome(False, short(refused))
        if not self._payload.sort.restarts:
            return Outcome(True)
        try:
            await steps.restart(view)
            if self._roll.health_check:
                await steps.heard_of(view)
        except OfHost as refused:
            why = short(refused) or "it failed"
            if not self._roll.rollback_on_fail:
                return Outcome(False, why)
            await self._ledger.note(replace(progress, undoing=why))
            return await self._roll_back(view, before, why)
        return Outcome(True)

    async def _roll_back(self, view: BuilderView, before: Before, why: str) -> Outcome:
        try:
            await self._steps.give_back(view, before)
        except OfHost as refused:
            said = f"and what it had before is not back: {short(refused)}"
            return Outcome(False, f"{why}; {said}")
        try:
            await self._steps.restart(view)
            await self._steps.heard_of(view)
        except OfHost as refused:
            said = f"it has what it had before, and is not well: {short(refused)}"
            return Outcome(False, f"{why}; {said}")
        return Outcome(False, f"{why}; it has what it had before")
