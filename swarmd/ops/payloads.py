"""Payloads: versions of files for builders are made known; what lies where is told and verified."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping

import msgspec
import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.blobs import BlobInfo, OtherContent
from swarmd.domain.errors import Invalid, NotFound, SwarmError
from swarmd.domain.payloads import (
    ERROR_CHARS_MAX,
    Deployment,
    Payload,
    PayloadSort,
    Place,
    PlaceStatus,
    Step,
    check_room,
    check_version,
)
from swarmd.ops import blobs
from swarmd.ops.builds import find_builder, require_builds
from swarmd.ops.reach import Reach, of_host
from swarmd.state.build_queries import BuilderView, ListBuilders
from swarmd.state.payload_commands import DropPayload, NoteDeployment, PutPayload
from swarmd.state.payload_queries import (
    FindPayload,
    FindPlace,
    ListDeployments,
    ListPayloads,
    ListPlaces,
)


class PayloadFile(msgspec.Struct, frozen=True):
    """Where a sort lies on every builder."""

    path: str
    mode: int


Files = Mapping[PayloadSort, PayloadFile]


class NewPayload(msgspec.Struct, frozen=True):
    sort: PayloadSort
    version: str
    description: str = ""
    notes: str = ""
    created_by: str = ""


class Verified(msgspec.Struct, frozen=True):
    matches: bool
    remote_sha256: str | None
    """None: nothing lies there."""
    version: str | None
    """That which lies there, where it is one of ours."""
    message: str


class Matrix(msgspec.Struct, frozen=True):
    """What lies where."""

    latest: Mapping[PayloadSort, Payload]
    places: Mapping[str, Mapping[PayloadSort, Place]]
    """By the builders' names."""

    def is_current(self, place: Place) -> bool:
        latest = self.latest.get(place.sort)
        return (
            latest is not None
            and place.status is PlaceStatus.DEPLOYED
            and place.version == latest.version
        )

    @property
    def outdated(self) -> int:
        """Builders of which something is not the latest."""
        return sum(
            any(not self.is_current(place) for place in places.values())
            for places in self.places.values()
        )


async def register(
    cluster: Cluster, actor: Actor, new: NewPayload, chunks: AsyncIterator[bytes]
) -> tuple[Payload, bool]:
    """Make a version known, and whether that was new. Conflict: it is another file already, or
    there are too many; nothing is stored then."""
    require_builds(cluster)
    check_version(new.version)
    known = await cluster.read(FindPayload(new.sort, new.version))
    if known is None:
        all_versions = await cluster.read(ListPayloads(new.sort))
        check_room(len(all_versions))
    expected = None if known is None else known.sha256
    try:
        info = await blobs.put(cluster, actor, chunks, expected_sha256=expected)
    except OtherContent as other:
        info = BlobInfo(other.got, 0)  # the rule that refuses another file has the words for it
    else:
        if info.size_bytes == 0:
            raise Invalid("the file is empty; send its bytes", field="content")
    payload = Payload(
        new.sort, new.version, info.sha256, info.size_bytes, new.description, new.notes,
        new.created_by or actor.name,
    )  # fmt: skip
    put = await cluster.propose(PutPayload(payload), actor)
    return put, known is None


async def forget(cluster: Cluster, actor: Actor, sort: PayloadSort, version: str) -> None:
    """NotFound: there is none. Conflict: it lies on a builder."""
    require_builds(cluster)
    await cluster.propose(DropPayload(sort, version), actor)


async def list_payloads(cluster: Cluster, sort: PayloadSort | None = None) -> list[Payload]:
    require_builds(cluster)
    return await cluster.read(ListPayloads(sort))


async def find(cluster: Cluster, sort: PayloadSort, version: str) -> Payload:
    require_builds(cluster)
    payload = await cluster.read(FindPayload(sort, version))
    if payload is None:
        raise NotFound("no such version; register it first", version=version[:64])
    return payload


async def list_deployments(
    cluster: Cluster, sort: PayloadSort, limit: int, name: str = ""
) -> list[Deployment]:
    require_builds(cluster)
    node_id = (await find_builder(cluster, name)).node.id if name else ""
    return await cluster.read(ListDeployments(sort, limit, node_id))


async def matrix(cluster: Cluster) -> Matrix:
    require_builds(cluster)
    latest: dict[PayloadSort, Payload] = {}
    for payload in await cluster.read(ListPayloads()):
        latest.setdefault(payload.sort, payload)
    names = {view.node.id: view.node.name for view in await cluster.read(ListBuilders())}
    places: dict[str, dict[PayloadSort, Place]] = {name: {} for name in names.values()}
    for place in await cluster.read(ListPlaces()):
        if place.node_id in names:
            places[names[place.node_id]][place.sort] = place
    return Matrix(latest, places)


async def verify(
    cluster: Cluster, actor: Actor, reach: Reach, files: Files, sort: PayloadSort, name: str
) -> Verified:
    """Compare what lies on a builder with what was put there, or else with the latest. Refusals of
    the host come as Unavailable and Conflict."""
    require_builds(cluster)
    view = await find_builder(cluster, name)
    place = await cluster.read(FindPlace(sort, view.node.id))
    known = await cluster.read(ListPayloads(sort))
    wanted = _wanted(known, place)
    if wanted is None:
        raise NotFound("no version of it is known, so there is nothing to compare; register one")
    began = trio.current_time()
    found = await remote_sha256(reach, view, files[sort].path)
    took_ms = int((trio.current_time() - began) * 1000)
    verified = _compared(known, wanted, found)
    status = PlaceStatus.DEPLOYED if verified.matches else PlaceStatus.CHANGED
    seen = Place(view.node.id, sort, status, verified.version, found)
    step = Deployment(
        view.node.id, name, sort, wanted.version, Step.VERIFY, verified.matches, took_ms,
        None if verified.matches else verified.message, actor.name, cluster.node.name,
    )  # fmt: skip
    if place is not None or verified.version is not None:
        # What a deployment has put there meanwhile is newer than what was read.
        same = await cluster.read(FindPlace(sort, view.node.id)) == place
        await cluster.propose(NoteDeployment(step, seen if same else None), actor)
    return verified


def _wanted(known: list[Payload], place: Place | None) -> Payload | None:
    """Which version should lie there."""
    put = None if place is None else place.version
    return next((p for p in known if p.version == put), known[0] if known else None)


def _compared(known: list[Payload], wanted: Payload, found: str | None) -> Verified:
    if found is None:
        return Verified(False, None, None, "there is no such file on the drone")
    lies = wanted if found == wanted.sha256 else next((p for p in known if p.sha256 == found), None)
    if lies is wanted:
        return Verified(True, found, wanted.version, "Hash matches")
    what = "a file that is no version of it" if lies is None else f"version {lies.version}"
    return Verified(
        False, found, None if lies is None else lies.version,
        f"Hash differs: {what} lies there, not version {wanted.version}",
    )  # fmt: skip


async def remote_sha256(reach: Reach, view: BuilderView, path: str) -> str | None:
    """None: nothing lies there."""
    try:
        return (await reach.ssh.sha256(await reach.target(view), path)).sha256
    except NotFound:
        return None
    except SwarmError as refusal:
        raise of_host(refusal, view.node.name) from refusal


def short(error: SwarmError) -> str:
    return error.message[:ERROR_CHARS_MAX]
