"""A deployment's steps on one builder: what it has is looked at, the file takes its place verified,
the service is started again and heard of, or has its former file back. Each is told as it ended."""

from __future__ import annotations

import logging
import posixpath
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import msgspec
import trio

from swarmd.cluster.asks import ListSigns
from swarmd.cluster.handle import LEADER, Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.payloads import (
    Before,
    Deployment,
    Payload,
    Place,
    PlaceStatus,
    Step,
    restart_command,
)
from swarmd.ops.blobs import open_blob
from swarmd.ops.hostlogs import plain
from swarmd.ops.payloads import Files, remote_sha256, short
from swarmd.ops.reach import Reach, of_host
from swarmd.state.build_queries import BuilderView
from swarmd.state.payload_commands import NoteDeployment
from swarmd.state.payload_queries import FindPlace, ListPayloads

log = logging.getLogger(__name__)

UPLOAD_S_MAX = 1800.0
RESTART_S_MAX = 60.0
LEFTOVERS_S_MAX = 10.0
LOOK_S = 0.5
"""Between two looks for a sign of life."""
NEWER_MS = 100
"""By so much a later sign of life is another one: they are counted back from when one asks."""
PREVIOUS = ".previous"


@dataclass(frozen=True, slots=True)
class Deploying:
    """What deployments stand on."""

    cluster: Cluster
    reach: Reach
    files: Files
    service: str
    heartbeat_s: float = 60.0


class OfHost(SwarmError):
    """A host's refusal, beside those of the swarm."""

    def __init__(self, refusal: SwarmError) -> None:
        super().__init__(refusal.message, **refusal.facts)
        self.refusal = refusal


class Steps:
    """Of one version, by whoever holds its deployment. OfHost: the host refuses; it is noted."""

    def __init__(self, on: Deploying, actor: Actor, by: str, payload: Payload) -> None:
        self._on = on
        self._actor = actor
        self._by = by
        self._payload = payload
        self._path = on.files[payload.sort].path

    async def look(self, view: BuilderView, *, again: bool = False) -> Before:
        """What lies there now; the beginning of each deployment. `again`: one that another node
        began, of which the host may have the former file under a passing name still."""
        place = await self._on.cluster.read(FindPlace(self._payload.sort, view.node.id))
        known = place or Place(view.node.id, self._payload.sort, PlaceStatus.DEPLOYING)
        await self._note(view, Step.BEGIN, known=_with(known, PlaceStatus.DEPLOYING))
        async with self._step(view, Step.DEPLOY, _with(known, PlaceStatus.FAILED)):
            await self._on.reach.ssh.exec(
                await self._on.reach.target(view), _leftovers(self._path, again),
                timeout_s=LEFTOVERS_S_MAX,
            )  # fmt: skip
            found = await remote_sha256(self._on.reach, view, self._path)
        every = await self._on.cluster.read(ListPayloads(self._payload.sort))
        version = next((each.version for each in every if each.sha256 == found), None)
        return Before(found, version)

    async def put(self, view: BuilderView, before: Before) -> None:
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
        after = Before(payload.sha256, payload.version)
        placed = self._place(view, after, PlaceStatus.DEPLOYED)
        await self._note(view, Step.DEPLOY, began=began, known=placed)

    async def restart(self, view: BuilderView) -> None:
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

    async def heard_of(self, view: BuilderView) -> None:
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

    async def give_back(self, view: BuilderView, before: Before) -> None:
        """The file that it had before, as it was."""
        began, ssh = trio.current_time(), self._on.reach.ssh
        payload = self._payload
        there = self._place(view, Before(payload.sha256, payload.version), PlaceStatus.FAILED)
        async with self._step(view, Step.ROLLBACK, there):
            target = await self._on.reach.target(view)
            lies = await remote_sha256(self._on.reach, view, self._path)
            if lies == before.sha256:
                pass  # the node that was at it before had come so far
            elif before.sha256 is None:
                await ssh.remove(target, self._path)
            elif before.sha256 != payload.sha256:
                previous = await ssh.sha256(target, self._path + PREVIOUS)
                if previous.sha256 != before.sha256:
                    raise Conflict(f"{self._path}{PREVIOUS} is not what lay there before")
                await ssh.rename(target, self._path + PREVIOUS, self._path)
                if (await ssh.sha256(target, self._path)).sha256 != before.sha256:
                    raise Conflict(f"{self._path} has another hash than it had before")
        status = PlaceStatus.FAILED if before.version is None else PlaceStatus.DEPLOYED
        await self._note(
            view, Step.ROLLBACK, began=began, known=self._place(view, before, status)
        )  # fmt: skip

    async def give_up(self, view: BuilderView) -> None:
        """Its turn came to no end, on any node that was at it: `verify` says what lies there."""
        why = "no node came to the end of this turn, and the rolling deployment is given up"
        await self._note(view, Step.DEPLOY, error=why)

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
            refused = OfHost(of_host(error, view.node.name))
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

    def _place(self, view: BuilderView, lies: Before, status: PlaceStatus) -> Place:
        return Place(view.node.id, self._payload.sort, status, lies.version, lies.sha256)


def _leftovers(path: str, again: bool) -> str:
    """A line for a shell that removes what was sent by nodes that died meanwhile: whoever deploys
    is alone, so none of it is anybody's. One that died in the very swap of this turn's files left
    the former one beside: it gets the name that it was to have."""
    folder, name = posixpath.split(path)
    stem = shlex.quote(posixpath.join(folder, f".{name[:100]}."))
    new, former = (f"{stem}{'[0-9a-f]' * 12}.{ending}" for ending in ("new", "former"))
    kept = f'mv -f -- "$f" {shlex.quote(path + PREVIOUS)}'
    rescue = f'for f in {former}; do if [ -e "$f" ]; then {kept}; fi; done; ' if again else ""
    return f"{rescue}rm -f -- {new} {former}"


def _with(place: Place, status: PlaceStatus) -> Place:
    return msgspec.structs.replace(place, status=status)
