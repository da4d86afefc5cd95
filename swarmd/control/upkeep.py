"""Upkeep of the queue: what is due by time, or follows from what ended.

Every command here is bounded, and proposed again while there is more to do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from swarmd.cluster.feed import FellBehind
from swarmd.cluster.handle import Cluster
from swarmd.control.presence import Presence
from swarmd.domain.actors import SYSTEM
from swarmd.domain.builds import STAGED_MS_MAX
from swarmd.domain.errors import Busy, Conflict
from swarmd.domain.events import JobBlocked, JobEnded, JobRetrying
from swarmd.domain.terminals import KEPT_MS
from swarmd.state.build_commands import DropStaged
from swarmd.state.commands import (
    DropBlobs,
    ExpireAttempts,
    ForgetGone,
    PruneEvents,
    PruneJobs,
    SettleDependents,
    WakeJobs,
)
from swarmd.state.queries import GetStanding, ListClaims
from swarmd.state.terminal_commands import ForgetTerminals
from swarmd.state.terminal_queries import OldestTerminal
from swarmd.state.versions import BUILDS_SINCE, TERMINALS_SINCE

log = logging.getLogger(__name__)

EXPIRE_EVERY_S = 5.0
PRUNE_EVERY_S = 60.0
BLOB_IDLE_MS = 3600_000
GONE_KEPT_MS = 150 * 24 * 3600_000
"""Longer than a certificate of theirs can be used for anything."""
_PER_ENTRY = 100


@dataclass(frozen=True)
class UpkeepSettings:
    keep_s: float = 48 * 3600.0
    """How long jobs that ended are remembered."""
    events_keep: int = 200_000


async def settle_and_wake(cluster: Cluster, term: int) -> None:
    """Carry ends to dependents, and make jobs ready whose backoff is over."""
    while True:
        try:
            async with cluster.watch(wants=_matters) as events:
                while True:
                    standing = await cluster.read(GetStanding())
                    if standing.unsettled:
                        await cluster.propose(SettleDependents(_PER_ENTRY, term), SYSTEM)
                        continue
                    wait_s = float("inf")
                    if standing.delayed_until is not None:
                        wait_s = (standing.delayed_until - cluster.now_ms()) / 1000
                        if wait_s <= 0:
                            await cluster.propose(WakeJobs(_PER_ENTRY, term), SYSTEM)
                            continue
                    with trio.move_on_after(wait_s):
                        await anext(events)
                    events.take_waiting()
        except FellBehind:
            continue
        except Busy as busy:
            await trio.sleep(busy.retry_after_s)


def _matters(event: object) -> bool:
    body = getattr(event, "body", None)
    return isinstance(body, JobRetrying | JobBlocked) or (
        isinstance(body, JobEnded) and body.dependents
    )


async def expire(cluster: Cluster, term: int, presence: Presence) -> None:
    """Take work back from executors that fell silent, and end what took too long."""
    while True:
        claims = await cluster.read(ListClaims())
        silent = presence.silent(claims)
        now = cluster.now_ms()
        overdue = tuple(c.attempt_id for c in claims if c.deadline_at and c.deadline_at <= now)
        if silent or overdue:
            command = ExpireAttempts(silent[:_PER_ENTRY], overdue[:_PER_ENTRY], term)
            expired = await cluster.propose(command, SYSTEM)
            log.info("attempts expired", extra={"expired": expired})
            if len(silent) > _PER_ENTRY or len(overdue) > _PER_ENTRY:
                continue
        await trio.sleep(EXPIRE_EVERY_S)


async def listen(cluster: Cluster, presence: Presence) -> None:
    """Feed claims to the presence; what was missed is granted its silence anew."""
    while True:
        try:
            async with cluster.watch(wants=presence.concerns) as events:
                async for event in events:
                    presence.note(event)
        except FellBehind:
            continue


async def prune(cluster: Cluster, term: int, settings: UpkeepSettings) -> None:
    while True:
        now = cluster.now_ms()
        jobs = PruneJobs(now - int(settings.keep_s * 1000), _PER_ENTRY, term)
        events = PruneEvents(settings.events_keep, 10 * _PER_ENTRY, term)
        blobs = DropBlobs(now - BLOB_IDLE_MS, _PER_ENTRY, term)
        await _until_few(partial(cluster.propose, jobs, SYSTEM))
        await _until_few(partial(cluster.propose, events, SYSTEM))
        await _until_few(partial(_dropped, cluster, blobs))
        if cluster.cluster_version() >= BUILDS_SINCE:
            staged = DropStaged(now - STAGED_MS_MAX, _PER_ENTRY, term)
            await _until_few(partial(cluster.propose, staged, SYSTEM))
        if cluster.cluster_version() >= TERMINALS_SINCE:
            old = ForgetTerminals(now - KEPT_MS, _PER_ENTRY, term)
            await _until_few(partial(_forgotten, cluster, old))
        gone = ForgetGone(now - GONE_KEPT_MS, _PER_ENTRY, term)
        await _until_few(partial(cluster.propose, gone, SYSTEM))
        await trio.sleep(PRUNE_EVERY_S)


async def _dropped(cluster: Cluster, command: DropBlobs) -> int:
    dropped = await cluster.propose(command, SYSTEM)
    return len(dropped)


async def _forgotten(cluster: Cluster, command: ForgetTerminals) -> int:
    oldest = await cluster.read(OldestTerminal())
    if oldest is None or oldest >= command.before:
        return 0
    return await cluster.propose(command, SYSTEM)


async def _until_few(step: Callable[[], Awaitable[int]]) -> None:
    try:
        began = trio.current_time()
        while await step() >= _PER_ENTRY:
            # Others write too: tidying takes a tenth of the time at most.
            await trio.sleep(9 * (trio.current_time() - began))
            began = trio.current_time()
    except (Busy, Conflict) as refusal:
        log.debug("pruning puts off", extra={"reason": refusal.message})
