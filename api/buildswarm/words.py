"""The build swarm's own words for what the domain knows: times, standings, events in sentences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from swarmd.domain.builds import ASIDE, BLOCKED, OUTSIDE
from swarmd.domain.events import (
    BuilderChanged,
    BuildsControlled,
    CareTaken,
    Event,
    PackageBuilt,
    PayloadChanged,
    PayloadMoved,
)
from swarmd.domain.jobs import Job, JobStatus
from swarmd.domain.payloads import PayloadSort
from swarmd.ops.events import Only

Said = tuple[str, str, dict[str, Any]]
"""An event's type, its sentence, and its details."""


PAYLOADS: dict[PayloadSort, str] = {
    PayloadSort.BINARY: "drone_binary",
    PayloadSort.INIT_SCRIPT: "init_script",
    PayloadSort.CONFIG: "config",
    PayloadSort.PORTAGE_CONFIG: "portage_config",
}


def seconds(ms: int) -> float:
    return ms / 1000


def drone_id(node_id: str) -> str:
    return node_id.removeprefix(OUTSIDE)


def standing(job: Job) -> str:
    if job.waits == BLOCKED:
        return "blocked"
    if job.waits == ASIDE:
        return "failed"
    return {
        JobStatus.PENDING: "needed", JobStatus.ASSIGNED: "delegated",
        JobStatus.RUNNING: "delegated", JobStatus.COMPLETED: "received",
        JobStatus.FAILED: "failed", JobStatus.CANCELLED: "failed",
    }[job.status]  # fmt: skip


def lasting(ms: int) -> str:
    """As `5m 23s`, `2h 4m`, `12s`."""
    minutes, rest = divmod(ms // 1000, 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h {minutes}m"
    return f"{minutes}m {rest}s" if minutes else f"{rest}s"


def _built(body: PackageBuilt, name: str) -> Said:
    details = {
        "drone_id": drone_id(body.node_id), "package": body.package,
        "duration_s": seconds(body.duration_ms),
    }  # fmt: skip
    if body.ok:
        return (
            "complete",
            f"{name} completed {body.package} in {lasting(body.duration_ms)}",
            details,
        )
    error = body.error.partition("\n")[0][:300]
    return "fail", f"{name} failed {body.package}: {error}", {**details, "error": body.error}


_CHANGES: dict[str, tuple[str, str]] = {
    "joined": ("register", "{name} registered"),
    "online": ("register", "{name} came online"),
    "offline": ("stale", "{name} went offline"),
    "grounded": ("grounded", "{name} is grounded: {detail}"),
    "not grounded": ("control", "{name} is grounded no longer"),
    "paused": ("control", "{name} is paused"),
    "resumed": ("control", "{name} is resumed"),
    "typed": ("control", "{name} is of type {detail}"),
}


def _changed(body: BuilderChanged, name: str) -> Said:
    kind, words = _CHANGES.get(body.what, ("control", "{name}: {what}"))
    sentence = words.format(name=name, detail=body.detail, what=body.what)
    return kind, sentence, {"drone_id": drone_id(body.node_id)}


def _controlled(body: BuildsControlled, name: str) -> Said:
    at = f" {body.target}" if body.target else ""
    details = {"action": body.action, "target": body.target or None, "count": body.count}
    return "control", f"{body.action}{at}: {body.count} affected", details


_CARE: dict[str, str] = {
    "begun": "{name}: {action} begins: {detail}",
    "done": "{name}: {action} is done, level {level}",
    "failed": "{name}: {action} failed: {detail}",
    "healthy": "{name} is well again, {detail}",
    "reset": "{name}: its escalation is reset, {detail}",
}


def _cared(body: CareTaken, name: str) -> Said:
    words = _CARE.get(body.what, "{name}: {action}")
    line = body.detail.partition("\n")[0][:300]
    sentence = words.format(name=name, action=body.action, level=body.level, detail=line)
    details = {
        "drone_id": drone_id(body.node_id), "action": body.action or None, "level": body.level,
        "result": body.what, "detail": body.detail,
    }  # fmt: skip
    return "escalation", sentence, details


def _payload(body: PayloadChanged, name: str) -> Said:
    word = PAYLOADS[PayloadSort(body.sort)]
    of = f" {body.version}" if body.version else ""
    details = {"payload_type": word, "version": body.version or None, "action": body.what}
    return "control", f"{word}{of}: {body.what}", details


def _moved(body: PayloadMoved, name: str) -> Said:
    word = PAYLOADS[PayloadSort(body.sort)]
    end = "" if body.step == "begin" else ": done" if body.ok else f": failed, {body.error[:300]}"
    details = {
        "drone_id": drone_id(body.node_id), "payload_type": word, "version": body.version,
        "action": body.step, "status": "success" if body.ok else "failed",
        "error": body.error or None,
    }  # fmt: skip
    return "control", f"{name}: {body.step} of {word} {body.version}{end}", details


_SAYINGS: dict[type[Any], Callable[[Any, str], Said]] = {
    PackageBuilt: _built, BuilderChanged: _changed, BuildsControlled: _controlled,
    CareTaken: _cared, PayloadChanged: _payload, PayloadMoved: _moved,
}  # fmt: skip
KINDS = tuple(kind.__name__ for kind in _SAYINGS)


def _only(type_: str) -> Only:
    return Only("BuilderChanged", "what", _whats(lambda own: own == type_))


def _whats(fits: Callable[[str], bool]) -> tuple[str, ...]:
    return tuple(what for what, (own, _) in _CHANGES.items() if fits(own))


TYPES: dict[str, tuple[tuple[str, ...], Only | None]] = {
    "register": (("BuilderChanged",), _only("register")),
    "complete": (("PackageBuilt",), Only("PackageBuilt", "ok", (True,))),
    "fail": (("PackageBuilt",), Only("PackageBuilt", "ok", (False,))),
    "grounded": (("BuilderChanged",), _only("grounded")),
    "stale": (("BuilderChanged",), _only("stale")),
    # What a newer node says of builders is of this type.
    "control": (
        ("BuilderChanged", "BuildsControlled", "PayloadChanged", "PayloadMoved"),
        Only("BuilderChanged", "what", _whats(lambda own: own != "control"), but=True),
    ),
    "escalation": (("CareTaken",), None),
}
"""Each type's kinds of events, and which of those alone."""


def said(event: Event, names: Mapping[str, str]) -> Said:
    body = event.body
    node_id = getattr(body, "node_id", "")
    return _SAYINGS[type(body)](body, names.get(node_id, drone_id(node_id)))
