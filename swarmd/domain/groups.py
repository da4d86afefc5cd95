"""Groups: jobs that were asked for together, and are watched and ended together."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from swarmd.domain.jobs import GroupId


class GroupKind(StrEnum):
    BULK = "bulk"
    SESSION = "session"
    ARRAY = "array"
    PIPELINE = "pipeline"
    INSTALL = "install"
    ROLLOUT = "rollout"


class Group(msgspec.Struct, frozen=True):
    id: GroupId
    kind: GroupKind
    tenant: str = "default"
    namespace: str = "default"
    labels: dict[str, str] = {}
    created_at: int = 0
    revision: int = 0
