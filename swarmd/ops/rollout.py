"""Deployment: a version goes to builders, one at a time, and lies there once it was seen there.

What fails leaves the former file, or gives it back. Each step is in the log as it ended."""

from __future__ import annotations

import logging
import posixpath
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import msgspec
import trio

from swarmd.cluster.asks import ListSigns
from swarmd.cluster.handle import LEADER, Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, Invalid, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.payloads import (
    Deployment,
    Payload,
    PayloadSort,
    Place,
    PlaceStatus,
    Step,
    restart_command,
)
from swarmd.ops import payloads
from swarmd.ops.blobs import open_blob
from swarmd.ops.builds import find_builder
from swarmd.ops.hostlogs import plain
from swarmd.ops.payload_holds import held
from swarmd.ops.payloads import Files, remote_sha256, short
from swarmd.ops.reach import Reach, of_host
from swarmd.state.build_queries import BuilderView, ListBuilders
from swarmd.state.payload_commands import NoteDeployment
from swarmd.state.payload_queries import FindPlace, ListPayloads, ListPlaces

log = logging.getLogger(__name__)

UPLOAD_S_MAX = 1800.0
RESTART_S_MAX = 60.0
LEFTOVERS_S_MAX = 10.0
LOOK_S = 0.5
"""Between two looks for a sign of life."""
NEWER_MS = 100
"""By so much a later sign of life is another one: they are counted back from when one asks."""
AT_ONCE_MAX = 16
"""Deployments of this node."""
BUILDERS_MAX = 1000
PREVIOUS = ".previous"
T = TypeVar("T")


class Outcome(msgspec.Struct, frozen=True):
    ok: bool
    message: str = ""


class Rolled(msgspec.Struct, frozen=True):
    results: dict[str, Outcome]
    """By name, in the order in which they had their turn."""
    left: tuple[str, ...]
    """They had none: it was stopped before."""

    @property
    def failed(self) -> int:
        return sum(not outcome.ok for outcome in self.results.values())


@dataclass(frozen=True, slots=True)
class Deploying:
    """What deployments stand on."""

    cluster: Cluster
    reach: Reach
    files: Files
    service: str
    heartbeat_s: float = 60.0


class Rollouts:
    """What runs of them on this node goes on when whoever asked for it has gone."""

    def __init__(self, on: Deploying, nursery: trio.Nursery) -> None:
        self.on = on
        self._nursery = nursery
        self._running = 0

    async def deploy(
        self, actor: Actor, sort: PayloadSort, version: str, name: str, by: str = ""
    ) -> None:
        """NotFound: no such version, or builder. Conflict: another deployment is under way, or the
        host refuses. Unavailable: it cannot be reached."""
        payload = await payloads.find(self.on.cluster, sort, version)
        view = await find_builder(self.on.cluster, name)
        run = _Run(self.on, actor, by or actor.name, payload)

        async def work() -> None:
            async with held(self.on.cluster, actor, sort, view.node.id):
                try:
                    await run.put(view, await run.look(view))
                except _OfHost as refused:
                    raise refused.refusal from None

        await self._finish(work)

    async def roll(
        self, actor: Actor, sort: PayloadSort, version: str, names: Sequence[str] | None,
        by: str = "", *, health_check: bool = True, rollback_on_fail: bool = True,
    ) -> Rolled:  # fmt: skip
        """To these, or to all that have another version of it and are there. Refused as `deploy`
        is; what a host refuses is in the results."""
        payload = await payloads.find(self.on.cluster, sort, version)
        views = await _views(self.on.cluster, payload, names)
        run = _Run(self.on, actor, by or actor.name, payload)

        async def work() -> Rolled:
            async with held(self.on.cluster, actor, sort, ""):
                return await run.roll(views, health_check, rollback_on_fail)

        return await self._finish(work)

    async def _finish(self, work: Callable[[], Awaitable[T]]) -> T:
        """In a task of this node's own."""
        if self._running >= AT_ONCE_MAX:
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
                self._running -= 1
                done.set()

        self._running += 1
        self._nursery.start_soon(run)
        await done.wait()
        for refusal in refusals:
            raise refusal
        if not values:
            raise Unavailable("this node stops; ask another one how the deployment stands")
        return values[0]


@asynccontextmanager
async def open_rollouts(on: Deploying) -> AsyncIterator[Rollouts]:
    async with trio.open_nursery() as nursery:
        yield Rollouts(on, nursery)
        nursery.cancel_scope.cancel()


async def _views(
    cluster: Cluster, payload: Payload, names: Sequence[str] | None
) -> list[BuilderView]:
    """Of those that are named; else of whoever was given some of it before: one that nobody ever
    named is given nothing, whoever it is."""
    if names is not None:
        unique = tuple(dict.fromkeys(names))
        if not 1 <= len(unique) <= BUILDERS_MAX:
            raise Invalid(f"name 1 to {BUILDERS_MAX} drones, or none for all", field="drones")
        return [await find_builder(cluster, name) for name in unique]
    has = {
        place.node_id for place in await cluster.read(ListPlaces(payload.sort))
        if place.version != payload.version or place.status is not PlaceStatus.DEPLOYED
    }  # fmt: skip
    views = await cluster.read(ListBuilders())
    return [view for view in views if view.node.id in has and view.builder.online]


class _Before(msgspec.Struct, frozen=True):
    """What lay on a builder before."""

    sha256: str | None
    version: str | None


class _Run:
    """One deployment, by one who holds it."""

    def __init__(self, on: Deploying, actor: Actor, by: str, payload: Payload) -> None:
        self._on = on
        self._actor = actor
        self._by = by
        self._payload = payload
        self._path = on.files[payload.sort].path

    # A whole roll

    async def roll(
        self, views: Sequence[BuilderView], health_check: bool, rollback_on_fail: bool
    ) -> Rolled:
        results: dict[str, Outcome] = {}
        for at, view in enumerate(views):
            outcome = await self._turn(view, health_check, rollback_on_fail)
            results[view.node.name] = outcome
            if not outcome.ok and rollback_on_fail:
                return Rolled(results, tuple(each.node.name for each in views[at + 1 :]))
        return Rolled(results, ())

    async def _turn(
        self, view: BuilderView, health_check: bool, rollback_on_fail: bool
    ) -> Outcome:  # fmt: skip
        try:
            before = await self.look(view)
            await self.put(view, before)
        except _OfHost as refused:
            return Outcome(False, short(refused))
        if not self._payload.sort.restarts:
            return Outcome(True)
        try:
            await self._restart(view)
            if health_check:
                await self._heard_of(view)
        except _OfHost as refused:
            if not rollback_on_fail:
                return Outcome(False, short(refused))
            return Outcome(False, f"{short(refused)}; {await self._roll_back(view, before)}")
        return Outcome(True)

    async def _roll_back(self, view: BuilderView, before: _Before) -> str:
        """What became of it, in words."""
        try:
            await self._give_back(view, before)
        except _OfHost as refused:
            return f"and what it had before is not back: {short(refused)}"
        try:
            await self._restart(view)
            await self._heard_of(view)
        except _OfHost as refused:
            return f"it has what it had before, and is not well: {short(refused)}"
        return "it has what it had before"

    # Its steps

    async def look(self, view: BuilderView) -> _Before:
        """What lies there now; the beginning of each deployment."""
        place = await self._on.cluster.read(FindPlace(self._payload.sort, view.node.id))
        known = place or Place(view.node.id, self._payload.sort, PlaceStatus.DEPLOYING)
        await self._note(view, Step.BEGIN, known=_with(known, PlaceStatus.DEPLOYING))
        async with self._step(view, Step.DEPLOY, _with(known, PlaceStatus.FAILED)):
            await self._on.reach.ssh.exec(
                await self._on.reach.target(view), _leftovers(self._path), timeout_s=LEFTOVERS_S_MAX
            )
            found = await remote_sha256(self._on.reach, view, self._path)
        every = await self._on.cluster.read(ListPayloads(self._payload.sort))
        version = next((each.version for each in every if each.sha256 == found), None)
        return _Before(found, version)

    async def put(self, view: BuilderView, before: _Before) -> None:
        """Whole and verified where it lies, or all is as before."""
        payload, reach = self._payload, self._on.reach
        began = trio.current_time()
        async with self._step(view, Step.DEPLOY, self._place(view, before, PlaceStatus.FAILED)):
            # Sent again, it would be the former of itself.
            if before.sha256 != payload.sha256:
                target = await reach.target(view)
                async with open_blob(self._on.cluster, payload.sha256) as chunks:
                    await reach.ssh.put(
                        target, chunks, self._path, sha256=payload.sha256,
                        size_bytes=payload.size_bytes, mode=self._on.files[payload.sort].mode,
                        keep_previous=True, timeout_s=UPLOAD_S_MAX,
                    )  # fmt: skip
        after = _Before(payload.sha256, payload.version)
        placed = self._place(view, after, PlaceStatus.DEPLOYED)
        await self._note(view, Step.DEPLOY, began=began, known=placed)

    async def _restart(self, view: BuilderView) -> None:
        began = trio.current_time()
        async with self._step(view, Step.RESTART):
            target = await self._on.reach.target(view)
            command = restart_command(self._on.service)
            ran = await self._on.reach.ssh.exec(
                target, command, timeout_s=RESTART_S_MAX, output_bytes_max=16 * 1024
            )
            if ran.exit_code:
                said = plain((ran.stderr or ran.stdout)[-500:].decode("utf-8", "replace"))
                raise Conflict(f"{self._on.service} does not start again: {said or ran.exit_code}")
        await self._note(view, Step.RESTART, began=began)

    async def _heard_of(self, view: BuilderView) -> None:
        """A sign of life that came after the service was started again."""
        began, limit_s = trio.current_time(), self._on.heartbeat_s
        async with self._step(view, Step.HEALTH):
            with trio.move_on_after(limit_s) as waiting:
                last = await self._last_sign(view.node.id)
                while True:
                    await trio.sleep(LOOK_S)
                    sign = await self._last_sign(view.node.id)
                    if last is None:
                        last = sign
                    elif sign is not None and sign > last + NEWER_MS:
                        break
            if waiting.cancelled_caught:
                raise Unavailable(
                    f"{self._on.service} gave no sign of life within {limit_s:g} s of its restart"
                )
        await self._note(view, Step.HEALTH, began=began)

    async def _last_sign(self, node_id: NodeId) -> int | None:
        """0: none ever; None: there is nobody just now who would know."""
        try:
            signs = await self._on.cluster.ask(LEADER, ListSigns())
        except SwarmError:
            return None
        return next((sign.at for sign in signs if sign.node_id == node_id), 0)

    async def _give_back(self, view: BuilderView, before: _Before) -> None:
        """The file that it had before, as it was."""
        began, ssh = trio.current_time(), self._on.reach.ssh
        payload = self._payload
        there = self._place(view, _Before(payload.sha256, payload.version), PlaceStatus.FAILED)
        async with self._step(view, Step.ROLLBACK, there):
            target = await self._on.reach.target(view)
            if before.sha256 is None:
                await ssh.remove(target, self._path)
            elif before.sha256 != payload.sha256:
                previous = await ssh.sha256(target, self._path + PREVIOUS)
                if previous.sha256 != before.sha256:
                    raise Conflict(f"{self._path}{PREVIOUS} is not what lay there before")
                await ssh.rename(target, self._path + PREVIOUS, self._path)
                lies = await ssh.sha256(target, self._path)
                if lies.sha256 != before.sha256:
                    raise Conflict(f"{self._path} has another hash than it had before")
        status = PlaceStatus.FAILED if before.version is None else PlaceStatus.DEPLOYED
        await self._note(
            view, Step.ROLLBACK, began=began, known=self._place(view, before, status)
        )  # fmt: skip

    # What is told of them

    @asynccontextmanager
    async def _step(
        self, view: BuilderView, step: Step, failed: Place | None = None
    ) -> AsyncIterator[None]:
        """What a host refuses is noted, with what lies there then."""
        began = trio.current_time()
        try:
            yield
        except SwarmError as error:
            refused = _OfHost(of_host(error, view.node.name))
            await self._note(view, step, began=began, error=short(refused), known=failed)
            raise refused from error

    async def _note(
        self, view: BuilderView, step: Step, *, began: float | None = None,
        error: str | None = None, known: Place | None = None,
    ) -> None:  # fmt: skip
        took_ms = 0 if began is None else int((trio.current_time() - began) * 1000)
        payload, cluster = self._payload, self._on.cluster
        deployment = Deployment(
            view.node.id, view.node.name, payload.sort, payload.version, step, error is None,
            took_ms, error, self._by, cluster.node.name,
        )  # fmt: skip
        await cluster.propose(NoteDeployment(deployment, known), self._actor)
        log.info(
            "a step of a deployment ended",
            extra={"builder": view.node.name, "sort": payload.sort.value, "step": step.value,
                   "version": payload.version, "error": error},
        )  # fmt: skip

    def _place(self, view: BuilderView, lies: _Before, status: PlaceStatus) -> Place:
        return Place(view.node.id, self._payload.sort, status, lies.version, lies.sha256)


def _leftovers(path: str) -> str:
    """A line for a shell that removes what was sent by nodes that died meanwhile: whoever deploys
    is alone, so none of it is anybody's."""
    folder, name = posixpath.split(path)
    stem = shlex.quote(posixpath.join(folder, f".{name[:100]}."))
    token = "[0-9a-f]" * 12
    return f"rm -f -- {stem}{token}.new {stem}{token}.former"


def _with(place: Place, status: PlaceStatus) -> Place:
    return msgspec.structs.replace(place, status=status)


class _OfHost(SwarmError):
    """A host's refusal, beside those of the swarm."""

    def __init__(self, refusal: SwarmError) -> None:
        super().__init__(refusal.message, **refusal.facts)
        self.refusal = refusal
