"""What the build swarm answers of its self-healing: one struct for each documented answer, made by
`of(domain)`. Times are as last measured; what was never measured is null."""

from __future__ import annotations

from collections import Counter
from typing import Self

import msgspec

from api.buildswarm.words import seconds
from swarmd.domain.care import ALERT, PROBE_EVERY_S
from swarmd.ops.care import CareView, Watch

NOT_PROBED = "not_probed"
"""There is no way to it, or it was not its turn yet; `message` says so."""


class PingOut(msgspec.Struct, frozen=True):
    last_ping_at: float | None
    last_pong_at: float | None
    ping_latency_ms: float | None
    status: str
    way: str | None
    message: str | None

    @classmethod
    def of(cls, view: CareView) -> Self:
        sign = view.sign
        return cls(
            _time(sign.at), _time(sign.answered_at), sign.latency_ms, _status(view),
            sign.way or None, sign.detail or None,
        )  # fmt: skip


class EscalationOut(msgspec.Struct, frozen=True):
    name: str
    status: str
    drone_type: str
    auto_reboot: bool
    escalation_level: int
    last_escalation_at: float | None
    escalation_attempts: int
    last_action: str | None
    last_action_at: float | None
    last_action_result: str | None
    last_ping_at: float | None
    ping_latency_ms: float | None
    probe_status: str

    @classmethod
    def of(cls, view: CareView) -> Self:
        sign = view.sign
        return cls(
            view.node.name, *_standing(view), *_last_action(view), _time(sign.at), sign.latency_ms,
            _status(view),
        )  # fmt: skip


class ProbeOut(msgspec.Struct, frozen=True):
    status: str
    load: float | None
    disk_percent: int | None
    memory_percent: int | None
    service: str | None
    emerge_running: bool | None
    uptime_s: float | None
    message: str | None

    @classmethod
    def of(cls, view: CareView) -> Self:
        """What a host last said of itself is old where the last probe got no answer."""
        sign = view.sign
        found = sign.found if sign.latency_ms is not None else None
        status, message = _status(view), sign.detail or None
        if found is None:
            return cls(status, None, None, None, None, None, None, message)
        return cls(
            status, found.load, found.fullest_disk_percent, found.memory_percent,
            found.service.value, found.emerge_running, found.uptime_s, message,
        )  # fmt: skip


class PingedOut(msgspec.Struct, frozen=True):
    """One that was pinged now: `status` is what came of it."""

    status: str
    drone: str
    latency_ms: float | None
    load: float | None
    disk_percent: int | None
    probe_result: ProbeOut

    @classmethod
    def of(cls, view: CareView) -> Self:
        probe = ProbeOut.of(view)
        return cls(
            _status(view), view.node.name, view.sign.latency_ms, probe.load, probe.disk_percent,
            probe,
        )  # fmt: skip


class DetailOut(msgspec.Struct, frozen=True):
    drone: str
    status: str
    drone_type: str
    auto_reboot: bool
    escalation_level: int
    last_escalation_at: float | None
    escalation_attempts: int
    failing_since: float | None
    last_action: str | None
    last_action_at: float | None
    last_action_result: str | None
    last_action_message: str | None
    last_probe_result: ProbeOut | None
    last_probe_at: float | None
    failures_in_a_row: int

    @classmethod
    def of(cls, view: CareView) -> Self:
        care, sign = view.care, view.sign
        return cls(
            view.node.name, *_standing(view), _time(care.failing_since), *_last_action(view),
            care.detail or None, ProbeOut.of(view) if sign.at is not None else None,
            _time(sign.at), sign.failures,
        )  # fmt: skip


class MonitorOut(msgspec.Struct, frozen=True):
    monitor_running: bool
    probe_interval_s: int
    last_probe_at: float | None
    escalation_summary: dict[str, int]
    not_probed: list[str]

    @classmethod
    def of(cls, watch: Watch) -> Self:
        levels = Counter(view.care.level for view in watch.builders)
        summary = {f"level_{level}": levels[level] for level in range(ALERT + 1)}
        unreached = [view.node.name for view in watch.builders if not view.sign.way]
        return cls(watch.running, int(PROBE_EVERY_S), _time(watch.round_at), summary, unreached)


def _time(at: int | None) -> float | None:
    return None if at is None else seconds(at)


def _status(view: CareView) -> str:
    return NOT_PROBED if view.sign.status is None else view.sign.status.value


def _standing(view: CareView) -> tuple[str, str, bool, int, float | None, int]:
    """From `status` to `escalation_attempts`."""
    builder, care = view.builder, view.care
    presence = "online" if builder.online else "offline"
    at = _time(care.level_at)
    return presence, builder.sort.value, builder.auto_reboot, care.level, at, care.attempts


def _last_action(view: CareView) -> tuple[str | None, float | None, str | None]:
    """From `last_action` to `last_action_result`."""
    care = view.care
    if care.action is None:
        return None, _time(care.begun_at), None
    ended = "done" if care.ok else "failed"
    return care.action.value, _time(care.begun_at), "under way" if care.under_way else ended
