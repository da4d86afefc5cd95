"""What the build swarm's admin port is asked and answers: a struct each, with the documented names.

A sort of payload has a word of its own here; what lies where is told as last seen."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Self

import msgspec

from api.buildswarm.requests import text_of
from api.buildswarm.words import PAYLOADS, drone_id, lasting, seconds
from api.common.texts import Text
from swarmd.domain.blobs import SCHEME
from swarmd.domain.errors import Invalid, NotFound
from swarmd.domain.payloads import (
    NOTE_CHARS_MAX,
    PERSON_CHARS_MAX,
    Deployment,
    Payload,
    PayloadSort,
    Place,
)
from swarmd.ops.payloads import Matrix, NewPayload, Verified
from swarmd.ops.rollout import Rolled

_SORTS = {word: sort for sort, word in PAYLOADS.items()}
DRONES_MAX = 1000


def sort_of(word: str) -> PayloadSort | None:
    return _SORTS.get(word)


def sort_in_path(word: str) -> PayloadSort:
    sort = sort_of(word)
    if sort is None:
        raise NotFound(f"no such payload type; there are {', '.join(_SORTS)}", type=word[:64])
    return sort


# What it is asked


class PayloadIn(msgspec.Struct, frozen=True):
    type: str
    version: str
    content: Text
    description: str | None = None
    notes: str | None = None
    created_by: str | None = None

    def new(self) -> NewPayload:
        sort = sort_of(self.type)
        if sort is None:
            raise Invalid(f"type is none that there is; send one of {', '.join(_SORTS)}",
                          field="type")  # fmt: skip
        return new_payload(sort, self.version, self.description, self.notes, self.created_by)

    def data(self) -> bytes:
        """The bytes; for a thread."""
        text = "".join("".join(piece.split()) for piece in self.content.pieces)
        try:
            return base64.b64decode(text.encode("ascii"), validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise Invalid("content must be the file's bytes in base64", field="content") from None


def new_payload(
    sort: PayloadSort, version: str, description: str | None, notes: str | None, by: str | None
) -> NewPayload:
    return NewPayload(
        sort, version, note_of(description, "description"), note_of(notes, "notes"),
        person_of(by, "created_by"),
    )  # fmt: skip


def note_of(value: str | None, field: str) -> str:
    """A few lines that may be printed."""
    text = value or ""
    if len(text) > NOTE_CHARS_MAX or not text.replace("\n", "").replace("\t", "").isprintable():
        raise Invalid(f"{field} must be up to {NOTE_CHARS_MAX} printable characters", field=field)
    return text


def person_of(value: str | None, field: str) -> str:
    return text_of(value, field, PERSON_CHARS_MAX)


class DeployIn(msgspec.Struct, frozen=True):
    drone: str
    verify: bool = True
    """It is always verified where it lies."""
    deployed_by: str | None = None


class RollIn(msgspec.Struct, frozen=True):
    drones: list[str] | None = None
    health_check: bool = True
    rollback_on_fail: bool = True
    deployed_by: str | None = None


class VerifyIn(msgspec.Struct, frozen=True):
    drone: str


# What it answers


class VersionOut(msgspec.Struct, frozen=True):
    id: int
    payload_type: str
    version: str
    hash: str
    content_path: str
    size_bytes: int
    description: str
    notes: str
    created_at: float
    created_by: str

    @classmethod
    def of(cls, payload: Payload) -> Self:
        return cls(
            payload.id, PAYLOADS[payload.sort], payload.version, f"sha256:{payload.sha256}",
            SCHEME + payload.sha256, payload.size_bytes, payload.description, payload.notes,
            seconds(payload.created_at), payload.created_by,
        )  # fmt: skip


class LatestOut(msgspec.Struct, frozen=True):
    version: str
    hash: str
    created_at: float

    @classmethod
    def of(cls, payload: Payload) -> Self:
        return cls(payload.version, payload.sha256, seconds(payload.created_at))


class PlaceOut(msgspec.Struct, frozen=True):
    version: str | None
    status: str
    is_current: bool
    hash: str | None
    seen_at: float

    @classmethod
    def of(cls, place: Place, matrix: Matrix) -> Self:
        return cls(
            place.version, place.status.value, matrix.is_current(place), place.sha256,
            seconds(place.at),
        )  # fmt: skip


Row = tuple[str, dict[str, PlaceOut]]


def row_of(row: tuple[str, Mapping[PayloadSort, Place]], matrix: Matrix) -> Row:
    """A builder with what lies on it."""
    name, places = row
    return name, {PAYLOADS[sort]: PlaceOut.of(place, matrix) for sort, place in places.items()}


class MatrixOut(msgspec.Struct, frozen=True):
    payload_types: list[str]
    latest_versions: dict[str, LatestOut]
    drones: dict[str, dict[str, PlaceOut]]
    outdated_count: int

    @classmethod
    def of(cls, matrix: Matrix, drones: dict[str, dict[str, PlaceOut]]) -> Self:
        latest = {PAYLOADS[sort]: LatestOut.of(each) for sort, each in matrix.latest.items()}
        return cls([*_SORTS], latest, drones, matrix.outdated)


class DeploymentOut(msgspec.Struct, frozen=True):
    id: int
    drone_id: str
    drone_name: str
    payload_type: str
    version: str
    action: str
    status: str
    duration_ms: float
    error_message: str | None
    deployed_at: float
    deployed_by: str
    deployed_via: str

    @classmethod
    def of(cls, step: Deployment) -> Self:
        return cls(
            step.id, drone_id(step.node_id), step.node_name, PAYLOADS[step.sort], step.version,
            step.step.value, "success" if step.ok else "failed", float(step.duration_ms),
            step.error, seconds(step.at), step.by, step.via,
        )  # fmt: skip


class OutcomeOut(msgspec.Struct, frozen=True):
    success: bool
    message: str


class RolledOut(msgspec.Struct, frozen=True):
    status: str
    payload_type: str
    version: str
    success_count: int
    fail_count: int
    results: dict[str, OutcomeOut]
    skipped: list[str]
    """They had no turn, since it stopped before."""

    @classmethod
    def of(cls, sort: PayloadSort, version: str, rolled: Rolled) -> Self:
        results = {
            name: OutcomeOut(each.ok, each.message or deployed(sort, version, name))
            for name, each in rolled.results.items()
        }
        failed = rolled.failed
        return cls(
            "partial" if failed else "ok", PAYLOADS[sort], version, len(results) - failed, failed,
            results, [*rolled.left],
        )  # fmt: skip


def deployed(sort: PayloadSort, version: str, name: str) -> str:
    return f"Deployed {PAYLOADS[sort]} v{version} to {name}"


class VerifiedOut(msgspec.Struct, frozen=True):
    drone: str
    payload_type: str
    matches: bool
    remote_hash: str | None
    remote_version: str | None
    message: str

    @classmethod
    def of(cls, sort: PayloadSort, name: str, found: Verified) -> Self:
        return cls(
            name, PAYLOADS[sort], found.matches, found.remote_sha256, found.version, found.message
        )


class InfoOut(msgspec.Struct, frozen=True):
    version: str
    uptime_s: float
    uptime_human: str
    db_path: str
    db_size_mb: float
    control_plane_port: int
    admin_port: int
    v2_gateway_url: str | None
    binhost_primary_ip: str | None
    binhost_secondary_ip: str | None


def human(uptime_s: float) -> str:
    return lasting(int(uptime_s * 1000))
