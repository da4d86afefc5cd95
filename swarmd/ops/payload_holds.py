"""Holds: who deploys a sort is the only one, on whatever node. One of whom the swarm does not hear
stops before another may begin."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import msgspec
import trio

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, SwarmError, Unavailable, instead
from swarmd.domain.payloads import PayloadSort
from swarmd.state.payload_commands import HoldPayload, ReleasePayload

HOLD_S = 15.0
AGAIN_S = 4.0
PAUSE_S = 0.5
RELEASE_S_MAX = 5.0


@asynccontextmanager
async def held(
    cluster: Cluster, actor: Actor, sort: PayloadSort, node_id: str
) -> AsyncIterator[str]:
    """Nobody else deploys this sort to this builder while the body runs; with "", to none. It is
    cancelled where that cannot be kept up, which comes out as Conflict or Unavailable. Gives the
    one by whom it is held. Conflict: somebody else does."""
    hold = HoldPayload(sort, node_id, cluster.new_id(), int(HOLD_S * 1000))
    lost: list[SwarmError] = []
    asked = trio.current_time()
    await cluster.propose(hold, actor)
    try:
        with instead(SwarmError, lambda error: error):
            async with trio.open_nursery() as nursery:
                body = nursery.cancel_scope

                async def keep() -> None:
                    lost.append(await _keep(cluster, actor, hold, asked + HOLD_S))
                    body.cancel()

                nursery.start_soon(keep)
                yield hold.holder
                body.cancel()
    finally:
        with trio.move_on_after(RELEASE_S_MAX, shield=True), suppress(SwarmError):
            await cluster.propose(ReleasePayload(sort, node_id, hold.holder), actor)
    if lost:
        raise lost[0]


async def _keep(cluster: Cluster, actor: Actor, hold: HoldPayload, held_until: float) -> SwarmError:
    """Until it is lost: why."""
    again = msgspec.structs.replace(hold, again=True)
    while True:
        await trio.sleep(AGAIN_S)
        with trio.move_on_at(held_until) as late:
            while True:
                asked = trio.current_time()
                try:
                    await cluster.propose(again, actor)
                    break
                except Conflict as refusal:
                    return refusal
                except SwarmError:
                    await trio.sleep(PAUSE_S)
        if late.cancelled_caught:
            return Unavailable(
                "the swarm was not heard of in time, and another node may be at it by now"
            )
        held_until = asked + HOLD_S
