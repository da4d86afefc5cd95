"""Clocks: a leader whose clock is far from its peers' hands over, for its time is the swarm's."""

from __future__ import annotations

import logging
from statistics import median_high, median_low

import trio

from swarmd.cluster.asks import ReadClock
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import SwarmError
from swarmd.domain.jobs import NodeId

log = logging.getLogger(__name__)

LOOK_EVERY_S = 10.0
OFF_MS_MAX = 5000


def wrong_by_ms(offsets_ms: list[int]) -> int:
    """How far this clock is from the median of all, 0 where they are too few to tell: with one
    peer, nobody knows whose is wrong. This clock is one of them: of three, one alone that is wrong
    says nothing. Where there are two in the middle, the nearer counts."""
    if len(offsets_ms) < 2:
        return 0
    clocks = [0, *offsets_ms]
    return min(median_low(clocks), median_high(clocks), key=abs)


async def hand_over_when_wrong(cluster: Cluster) -> None:
    while True:
        await trio.sleep(LOOK_EVERY_S)
        offsets: list[int] = []
        async with trio.open_nursery() as nursery:
            for peer in cluster.log_view().voters:
                if peer != cluster.node.id:
                    nursery.start_soon(_ask, cluster, peer, offsets)
        off = wrong_by_ms(offsets)
        if abs(off) > OFF_MS_MAX:
            log.warning("this node's clock is off: another leads", extra={"off_ms": off})
            await cluster.hand_over()


async def _ask(cluster: Cluster, peer: NodeId, offsets: list[int]) -> None:
    asked = cluster.clock_ms()
    try:
        with trio.move_on_after(LOOK_EVERY_S / 2):
            theirs = await cluster.ask(peer, ReadClock())
            # Half of the way there and back is between their looking and our hearing of it.
            offsets.append(theirs - (asked + cluster.clock_ms()) // 2)
    except SwarmError:
        return
