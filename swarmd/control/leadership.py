"""Leadership is a nursery: winning a term opens it, losing the term cancels it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from swarmd.cluster.asks import (
    Beat,
    BuilderBeat,
    ListBeats,
    ListProbes,
    ListSigns,
    ProbeNow,
    PromoteMember,
    RemoveMember,
    RenewLease,
    TakePlace,
    WantWork,
)
from swarmd.cluster.handle import Cluster, Leadership, read_locally
from swarmd.control import clocks, members, upkeep
from swarmd.control.attendance import Attendance
from swarmd.control.care import Caretaker
from swarmd.control.leases import Leases, give_away
from swarmd.control.presence import Presence
from swarmd.control.reaching import CareSettings, Ways
from swarmd.control.removal import Removal
from swarmd.control.scheduler import schedule
from swarmd.control.upkeep import UpkeepSettings
from swarmd.domain.errors import Busy, SwarmError

log = logging.getLogger(__name__)

PAUSE_S = 0.2


async def lead_when_elected(
    cluster: Cluster, upkeep_settings: UpkeepSettings, voter_settings: members.VoterSettings,
    ways: Ways | None = None,
) -> None:  # fmt: skip
    """Runs until it is cancelled; leads while this node does. Without `ways` builders are reached
    over the mesh alone."""
    ways = ways or Ways(cluster, CareSettings())
    # The loops look at their own replica: what they propose is fenced, and checked when applied.
    read_locally()
    while True:
        standing = cluster.leadership()
        if standing.leader != cluster.node.id or not standing.ready:
            await cluster.leadership_changed(standing)
            continue
        log.info("this node leads", extra={"term": standing.term})
        await _lead(cluster, standing, upkeep_settings, voter_settings, ways)
        log.info("this node leads no longer", extra={"term": standing.term})


async def _lead(
    cluster: Cluster, standing: Leadership, upkeep_settings: UpkeepSettings,
    voter_settings: members.VoterSettings, ways: Ways,
) -> None:  # fmt: skip
    presence, leases = Presence(cluster), Leases(cluster, standing.term)
    attendance = Attendance(cluster, standing.term)
    caretaker = Caretaker(cluster, standing.term, ways, attendance.heard_s)
    removal = Removal(cluster, voter_settings, leases.silent)
    stops = [
        cluster.answers(RenewLease, leases.renew),
        cluster.answers(Beat, presence.beat),
        cluster.answers(ListBeats, presence.list_beats),
        cluster.answers(BuilderBeat, attendance.beat),
        cluster.answers(WantWork, attendance.want_work),
        cluster.answers(ListSigns, attendance.list_signs),
        cluster.answers(ListProbes, caretaker.list_probes),
        cluster.answers(ProbeNow, caretaker.probe_now),
        cluster.answers(RemoveMember, removal.remove),
        cluster.answers(TakePlace, removal.take_place),
        cluster.answers(PromoteMember, removal.promote),
    ]
    term = standing.term
    try:
        async with trio.open_nursery() as nursery:
            for loop in (
                lambda: upkeep.listen(cluster, presence),
                lambda: give_away(cluster, leases),
                lambda: schedule(cluster, term, leases),
                lambda: upkeep.settle_and_wake(cluster, term),
                lambda: upkeep.expire(cluster, term, presence),
                lambda: upkeep.prune(cluster, term, upkeep_settings),
                attendance.watch,
                caretaker.probe,
                caretaker.heal,
                lambda: members.keep_members(cluster, voter_settings),
                lambda: members.raise_version(cluster, term),
                lambda: clocks.hand_over_when_wrong(cluster),
            ):
                nursery.start_soon(_persist, loop)
            while cluster.leadership() == standing:
                await cluster.leadership_changed(standing)
            nursery.cancel_scope.cancel()
    finally:
        for stop in stops:
            stop()


async def _persist(loop: Callable[[], Awaitable[None]]) -> None:
    """A refusal ends one round of a loop, not the term: the log may be full, or between leaders."""
    while True:
        try:
            await loop()
        except SwarmError as refusal:
            log.debug("a loop of the leader pauses", extra={"reason": refusal.message})
            await trio.sleep(refusal.retry_after_s if isinstance(refusal, Busy) else PAUSE_S)
