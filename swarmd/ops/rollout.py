"""Deployments on this node: they go on when whoever asked for them has gone, and rolls that another
node left are taken up here. One node at a time is at a roll: the one that holds its sort."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

import trio

from swarmd.cluster.handle import Cluster, local_reads
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import Busy, Conflict, Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.payloads import (
    ROLL_MS_MAX,
    ROLLED_MAX,
    TAKES_MAX,
    Payload,
    PayloadSort,
    PlaceStatus,
    Progress,
    Roll,
    Rolling,
)
from swarmd.ops import payloads
from swarmd.ops.builds import find_builder
from swarmd.ops.deployment import Deploying as Deploying
from swarmd.ops.deployment import OfHost, Steps
from swarmd.ops.payload_holds import held
from swarmd.ops.rolls import Ledger, RollRun
from swarmd.ops.rolls import Rolled as Rolled
from swarmd.state.build_queries import BuilderView, FindBuilder, ListBuilders
from swarmd.state.payload_queries import ListPlaces, ListRolls

log = logging.getLogger(__name__)

AT_ONCE_MAX = 16
"""Deployments of this node."""
LOOK_EVERY_S = 2.0
"""For rolls that were left."""
FOLLOWERS_WAIT_S = 6.0
"""So long others let the node that leads take one up: it is well connected, as a rule."""
AGAIN_S_MAX = 60.0
"""Between two nodes that take the same one up the pause grows to this: what ails may pass."""
T = TypeVar("T")


class Rollouts:
    def __init__(self, on: Deploying, nursery: trio.Nursery) -> None:
        self.on = on
        self._nursery = nursery
        self.running = 0
        """So many deployments."""
        self._stopping = False

    async def deploy(
        self, actor: Actor, sort: PayloadSort, version: str, name: str, by: str = ""
    ) -> None:
        """NotFound: no such version, or builder. Conflict: another deployment is under way, or the
        host refuses. Unavailable: it cannot be reached."""
        payload = await payloads.find(self.on.cluster, sort, version)
        view = await find_builder(self.on.cluster, name)
        steps = Steps(self.on, actor, by or actor.name, payload)

        async def work() -> None:
            async with held(self.on.cluster, actor, sort, view.node.id):
                try:
                    await steps.put(view, await steps.look(view))
                except OfHost as refused:
                    raise refused.refusal from None

        await self._finish(work)

    async def roll(
        self, actor: Actor, sort: PayloadSort, version: str, names: Sequence[str] | None,
        by: str = "", *, health_check: bool = True, rollback_on_fail: bool = True,
    ) -> Rolled:  # fmt: skip
        """To these, or to all that have another version of it and are there. Refused as `deploy`
        is; what a host refuses is in the results. Where this node does not come to the end of it,
        another one does."""
        cluster = self.on.cluster
        payload = await payloads.find(cluster, sort, version)
        views = await _views(cluster, payload, names)
        roll = Roll(
            cluster.new_id(), sort, version, tuple(view.node.id for view in views), health_check,
            rollback_on_fail, by or actor.name,
        )  # fmt: skip

        async def work() -> Rolled:
            async with held(cluster, actor, sort, "") as holder:
                if not views:
                    return Rolled({}, ())
                ledger = Ledger(cluster, actor, sort, holder)
                await ledger.begin(roll)
                return await RollRun(self.on, actor, payload, roll, ledger).run(Progress())

        return await self._finish(work)

    def stop(self) -> None:
        """What runs ends here and now; a roll is gone on with by another node at once."""
        self._stopping = True
        self._nursery.cancel_scope.cancel()

    async def _finish(self, work: Callable[[], Awaitable[T]]) -> T:
        """In a task of this node's own."""
        if self._stopping:
            raise Unavailable("this node stops; ask another one")
        if self.running >= AT_ONCE_MAX:
            raise Busy(f"{AT_ONCE_MAX} deployments run on this node; try again when some ended")
        done, values, refusals = trio.Event(), list[T](), list[SwarmError]()

        async def run() -> None:
            try:
                values.append(await work())
            except SwarmError as refusal:
                refusals.append(refusal)
            except Exception:
                log.exception("a deployment broke off")
                refusals.append(Unavailable("the deployment broke off; the node's log says why"))
            finally:
                self.running -= 1
                done.set()

        self.running += 1
        self._nursery.start_soon(run)
        await done.wait()
        for refusal in refusals:
            raise refusal
        if not values:
            raise Unavailable("this node stops; ask another one how the deployment stands")
        return values[0]

    # What other nodes left

    async def take_up(self) -> None:
        """Go on with rolls that nobody is at any more, for as long as this runs."""
        seen: dict[str, float] = {}
        taking: set[PayloadSort] = set()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            try:
                with local_reads():
                    left = await self._left()
            except SwarmError as refusal:
                log.debug("rolls are looked at later", extra={"reason": refusal.message})
                continue
            now = trio.current_time()
            seen = {each.roll.id: seen.get(each.roll.id, now) for each in left}
            for each in left:
                sort, waited_s = each.roll.sort, now - seen[each.roll.id]
                if sort not in taking and self._is_due(each, waited_s):
                    taking.add(sort)
                    self._nursery.start_soon(self._take, each, taking)

    async def _left(self) -> list[Rolling]:
        now = self.on.cluster.now_ms()
        rolls = await self.on.cluster.read(ListRolls())
        return [each for each in rolls if each.held_until <= now]

    def _is_due(self, left: Rolling, waited_s: float) -> bool:
        cluster = self.on.cluster
        leads = cluster.leadership().leader == cluster.node.id
        over = left.takes >= TAKES_MAX or left.roll.begun_at + ROLL_MS_MAX <= cluster.now_ms()
        pause_s = min(AGAIN_S_MAX, 2.0**left.takes) if left.takes else 0.0
        pause_s += 0 if leads else FOLLOWERS_WAIT_S
        # To give it up, a node has to reach nobody.
        return (self.on.reach.able or over) and waited_s >= pause_s

    async def _take(self, left: Rolling, taking: set[PayloadSort]) -> None:
        roll, sort = left.roll, left.roll.sort
        facts = {"sort": sort.value, "version": roll.version}

        async def work() -> None:
            actor = roll.actor or SYSTEM
            async with held(self.on.cluster, actor, sort, "") as holder:
                ledger = Ledger(self.on.cluster, actor, sort, holder)
                taken = await ledger.take()
                if taken is None:
                    log.warning("a rolling deployment is given up", extra=facts)
                    await self._tell_whose_turn(actor, left)
                    return
                log.warning("a rolling deployment is taken over", extra=facts)
                await self._go_on(actor, taken, ledger)

        try:
            await self._finish(work)
        except Conflict as refusal:
            log.debug("another node is at it", extra=facts | {"reason": refusal.message})
        except SwarmError as refusal:
            log.warning("a rolling deployment stopped", extra=facts | {"reason": refusal.message})
        finally:
            taking.discard(sort)

    async def _tell_whose_turn(self, actor: Actor, given_up: Rolling) -> None:
        """In the log: what lies there is not known."""
        roll, progress = given_up.roll, given_up.progress
        if progress.before is None:
            return
        view = await self.on.cluster.read(FindBuilder(roll.node_ids[progress.turn]))
        if view is not None:
            payload = await payloads.find(self.on.cluster, roll.sort, roll.version)
            await Steps(self.on, actor, roll.by, payload).give_up(view)

    async def _go_on(self, actor: Actor, taken: Rolling, ledger: Ledger) -> None:
        roll = taken.roll
        try:
            payload = await payloads.find(self.on.cluster, roll.sort, roll.version)
        except NotFound:
            await ledger.end(whole=False)
            return
        rolled = await RollRun(self.on, actor, payload, roll, ledger).run(taken.progress)
        log.info(
            "a rolling deployment that was taken over ended",
            extra={"sort": roll.sort.value, "version": roll.version, "failed": rolled.failed,
                   "left": len(rolled.left)},
        )  # fmt: skip


@asynccontextmanager
async def open_rollouts(on: Deploying, *, takes_up: bool = True) -> AsyncIterator[Rollouts]:
    """`takes_up`: what other nodes leave undone, too."""
    async with trio.open_nursery() as nursery:
        rollouts = await nursery.start(_serve, on, takes_up)
        yield rollouts
        rollouts.stop()


async def _serve(on: Deploying, takes_up: bool, *, task_status: trio.TaskStatus[Rollouts]) -> None:
    """Until it is stopped; whoever opened it is not."""
    async with trio.open_nursery() as nursery:
        rollouts = Rollouts(on, nursery)
        if takes_up:
            nursery.start_soon(rollouts.take_up)
        task_status.started(rollouts)
        await trio.sleep_forever()


async def _views(
    cluster: Cluster, payload: Payload, names: Sequence[str] | None
) -> list[BuilderView]:
    """Of those that are named; else of whoever was given some of it before: one that nobody ever
    named is given nothing, whoever it is."""
    if names is not None:
        unique = tuple(dict.fromkeys(names))
        if not 1 <= len(unique) <= ROLLED_MAX:
            raise Invalid(f"name 1 to {ROLLED_MAX} drones, or none for all", field="drones")
        return [await find_builder(cluster, name) for name in unique]
    has = {
        place.node_id for place in await cluster.read(ListPlaces(payload.sort))
        if place.version != payload.version or place.status is not PlaceStatus.DEPLOYED
    }  # fmt: skip
    views = await cluster.read(ListBuilders())
    return [view for view in views if view.node.id in has and view.builder.online][:ROLLED_MAX]
