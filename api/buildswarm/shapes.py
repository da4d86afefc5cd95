"""What the build swarm answers: one struct for each documented answer, made by `of(domain)`.

Field names are the documented ones; fields beyond the page may be added, none may be taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import msgspec

from api.buildswarm.words import drone_id, said, seconds, standing
from swarmd.domain.builds import Build
from swarmd.domain.events import Event
from swarmd.domain.jobs import Job
from swarmd.ops.builds import BuildTotals, Overview, SessionView, Standing, Told, Work
from swarmd.ops.queueing import Queued

GIB = 1024**3
DONE = 99
"""In percent: no estimate says more before the end."""


class HealthOut(msgspec.Struct, frozen=True):
    status: str
    version: str
    uptime_s: float


class ProgressOut(msgspec.Struct, frozen=True):
    package: str
    building_since: float
    elapsed_s: float
    estimated_s: float | None
    progress_pct: int | None

    @classmethod
    def all_of(cls, found: Standing) -> list[Self]:
        views = []
        for held in found.view.held:
            if held.started_at is None:
                continue
            elapsed_ms = max(0, found.at - held.started_at)
            estimate_ms = found.estimates.get(held.package)
            done = min(DONE, elapsed_ms * 100 // estimate_ms) if estimate_ms else None
            views.append(cls(
                held.package, seconds(held.started_at), seconds(elapsed_ms),
                seconds(estimate_ms) if estimate_ms else None, done,
            ))  # fmt: skip
        return views


class DroneOut(msgspec.Struct, frozen=True):
    id: str
    name: str
    ip: str
    tailscale_ip: str | None
    type: str
    drone_type: str
    cores: int
    ram_gb: float
    status: str
    paused: bool
    last_seen: float | None
    version: str
    cpu_percent: float | None
    ram_percent: float | None
    load_1m: float | None
    current_task: str | None
    assigned_packages: list[str]
    build_progress: list[ProgressOut]
    builds_completed: int
    builds_failed: int
    grounded_until: float | None
    auto_reboot: bool
    portage_timestamp: str | None

    @classmethod
    def of(cls, found: Standing) -> Self:
        node, builder, sign = found.view.node, found.view.builder, found.sign
        metrics = {} if sign is None else sign.metrics
        grounded = builder.grounded_until
        return cls(
            id=found.id, name=node.name, ip=node.addresses[0] if node.addresses else "",
            tailscale_ip=node.addresses[1] if len(node.addresses) > 1 else None,
            type="sweeper" if found.view.sweeps else "drone", drone_type=builder.sort.value,
            cores=int(node.capacity.cpus), ram_gb=round(node.capacity.memory_bytes / GIB, 2),
            status="online" if builder.online else "offline", paused=builder.paused,
            last_seen=None if sign is None else seconds(sign.at), version=node.version,
            cpu_percent=metrics.get("cpu_percent"), ram_percent=metrics.get("ram_percent"),
            load_1m=metrics.get("load_1m"), current_task=None if sign is None else sign.task,
            assigned_packages=[held.package for held in found.view.held],
            build_progress=ProgressOut.all_of(found), builds_completed=builder.completed,
            builds_failed=builder.failed, auto_reboot=builder.auto_reboot,
            grounded_until=None if grounded is None or grounded <= found.at else seconds(grounded),
            portage_timestamp=builder.tree_at or None,
        )  # fmt: skip


class LegacyOut(msgspec.Struct, frozen=True):
    drones: list[DroneOut]
    orchestrators: list[str]


class SessionOut(msgspec.Struct, frozen=True):
    id: str
    name: str
    status: str
    total_packages: int
    completed_packages: int
    failed_packages: int
    started_at: float
    completed_at: float | None

    @classmethod
    def of(cls, view: SessionView) -> Self:
        group = view.group
        left = view.needed + view.delegated
        total = left + view.received + view.blocked + view.aside + view.dropped
        over = not left and (view.received or view.blocked)
        ended = not left and not over and total > 0 and view.dropped == total
        return cls(
            group.id, group.labels.get("name", group.id),
            "completed" if over else "aborted" if ended else "active", total, view.received,
            view.blocked + view.aside + view.dropped, seconds(group.created_at),
            seconds(view.ended_at) if over and view.ended_at is not None else None,
        )  # fmt: skip


class TimingOut(msgspec.Struct, frozen=True):
    total_builds: int
    successful: int
    success_rate: float
    avg_duration_s: float
    total_duration_s: float
    failed: int

    @classmethod
    def of(cls, totals: BuildTotals) -> Self:
        tried = totals.built + totals.failed
        total_s = seconds(totals.total_ms)
        return cls(
            tried, totals.built, round(100 * totals.built / tried, 1) if tried else 0.0,
            round(total_s / tried, 1) if tried else 0.0, total_s, totals.failed,
        )  # fmt: skip


class BriefOut(msgspec.Struct, frozen=True):
    """A drone in the overview."""

    name: str
    ip: str
    status: str
    cores: int
    current_task: str | None
    assigned_packages: list[str]
    paused: bool


class StatusOut(msgspec.Struct, frozen=True):
    version: str
    nodes: int
    nodes_online: int
    total_cores: int
    queue_depth: int
    queue_received: int
    queue_blocked: int
    needed: int
    delegated: int
    received: int
    blocked: int
    failed: int
    paused: bool
    session: SessionOut | None
    timing: TimingOut
    drones: dict[str, BriefOut]

    @classmethod
    def of(cls, found: Overview, drones: Sequence[DroneOut], version: str) -> Self:
        counts = found.counts
        online = [drone for drone in drones if drone.status == "online"]
        briefs = {
            drone.name: BriefOut(
                drone.name, drone.ip, drone.status, drone.cores, drone.current_task,
                drone.assigned_packages, drone.paused,
            )
            for drone in drones
        }  # fmt: skip
        return cls(
            version, len(drones), len(online), sum(drone.cores for drone in online),
            counts.needed + counts.delegated + counts.blocked, counts.received, counts.blocked,
            counts.needed, counts.delegated, counts.received, counts.blocked, counts.aside,
            counts.paused, None if found.session is None else SessionOut.of(found.session),
            TimingOut.of(found.totals), briefs,
        )  # fmt: skip


class EventOut(msgspec.Struct, frozen=True):
    id: int
    timestamp: float
    type: str
    message: str
    details: dict[str, Any]

    @classmethod
    def of(cls, event: Event, names: Mapping[str, str]) -> Self:
        kind, message, details = said(event, names)
        return cls(event.seq, seconds(event.at), kind, message, details)


class BuildOut(msgspec.Struct, frozen=True):
    id: int
    package: str
    drone_id: str
    drone_name: str
    status: str
    duration_seconds: float
    error_message: str | None
    session_id: str | None
    built_at: float

    @classmethod
    def of(cls, build: Build) -> Self:
        return cls(
            build.id, build.package, drone_id(build.node_id), build.node_name,
            "success" if build.ok else "failed", seconds(build.duration_ms), build.error,
            build.session_id, seconds(build.at),
        )  # fmt: skip


class EntryOut(msgspec.Struct, frozen=True):
    """A package in the queue."""

    id: int
    package: str
    status: str
    session_id: str | None
    drone_id: str | None
    failures: int
    queued_at: float
    assigned_at: float | None
    completed_at: float | None
    error: str | None

    @classmethod
    def of(cls, job: Job) -> Self:
        held = standing(job) == "delegated" and job.node_id is not None
        given = job.attempts[-1].assigned_at if job.attempts else job.started_at
        return cls(
            job.seq, job.spec.type, standing(job), job.group_id,
            drone_id(str(job.node_id)) if held else None, job.failures, seconds(job.created_at),
            None if given is None else seconds(given),
            None if job.ended_at is None else seconds(job.ended_at), job.error,
        )  # fmt: skip


class QueuedOut(msgspec.Struct, frozen=True):
    status: str
    queued: int
    packages: list[str]
    session_id: str
    already_queued: list[str]
    notes: list[str]

    @classmethod
    def of(cls, queued: Queued) -> Self:
        return cls(
            "ok", len(queued.packages), [*queued.packages], queued.session.id, [*queued.known],
            [*queued.notes],
        )  # fmt: skip


class RegisteredOut(msgspec.Struct, frozen=True):
    status: str
    orchestrator: str
    orchestrator_port: int
    orchestrator_name: str
    paused: bool
    token: str | None
    """With it the drone may put what it built into staging."""
    revoke: list[str]
    stop_work: str | None
    assigned_packages: list[str]

    @classmethod
    def of(cls, told: Told, address: str, port: int, name: str, token: str | None) -> Self:
        return cls(
            "registered", address, port, name, told.paused, token, [*told.revoked], told.stop,
            [*told.held],
        )  # fmt: skip


def work_out(work: Work) -> dict[str, object]:
    answer: dict[str, object] = {"package": work.package}
    if work.package is not None:
        answer["session_id"] = work.session_id
    if work.sync_to:
        answer |= {"action": "sync_portage", "expected_timestamp": work.sync_to}
    if work.revoked:
        answer["revoke"] = work.revoked
    return answer
