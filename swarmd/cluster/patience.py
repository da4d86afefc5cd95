"""Patience: what a node must know, or must have told, before it goes on: again until it is so."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import trio

from swarmd.cluster.feed import FellBehind
from swarmd.cluster.handle import Cluster, Hosted
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import Busy, Conflict, SwarmError, Unavailable
from swarmd.domain.events import Event
from swarmd.state.command import Command
from swarmd.state.commands import PutNode

log = logging.getLogger(__name__)

T = TypeVar("T")
AGAIN_S = 1.0
LEADERLESS_S = 0.5
REMOVED_S_MAX = 5.0
"""Until one that was removed hears of it."""


async def patiently(work: Callable[[], Awaitable[T]], again_s: float = AGAIN_S) -> T:
    """For as long as it takes: nobody may lead, no replica be in reach, or all be too busy."""
    while True:
        try:
            return await work()
        except (Busy, Unavailable) as refusal:
            log.debug("asked for again soon", extra={"reason": refusal.message})
            await trio.sleep(refusal.retry_after_s if isinstance(refusal, Busy) else again_s)


async def make_known(cluster: Hosted) -> bool:
    """This node, as it is by now, as soon as somebody leads. Conflict: another has its name. False:
    it was removed meanwhile, has heard of it, and ends by that."""
    try:
        await patiently(lambda: cluster.propose(PutNode(cluster.node), SYSTEM), LEADERLESS_S)
    except Conflict:
        with trio.move_on_after(REMOVED_S_MAX):
            await cluster.removed.wait()
            return False
        raise
    return True


async def keep_up(
    cluster: Cluster, wants: Callable[[Event], bool], look: Callable[[], Awaitable[None]],
    again_s: float = AGAIN_S,
) -> None:  # fmt: skip
    """Look, and again after each of these events, until it is cancelled."""
    while True:
        try:
            async with cluster.watch(wants=wants) as events:
                while True:
                    await look()
                    await anext(events)
                    events.take_waiting()
        except FellBehind:
            continue
        except SwarmError as refusal:
            log.debug(
                "looked at later", extra={"reason": refusal.message, "what": look.__qualname__}
            )
            await trio.sleep(again_s)


async def propose_patiently(cluster: Cluster, command: Command[T], actor: Actor) -> T:
    """Propose, and again for as long as the swarm is too busy, or nobody leads it. Only for what
    counts once however often it is told."""
    try:
        return await patiently(lambda: cluster.propose(command, actor), LEADERLESS_S)
    except Conflict as refusal:
        # This node was removed: what it says counts no more, and it is about to end.
        log.warning("nobody is told any more", extra={"reason": refusal.message})
        await trio.sleep_forever()
