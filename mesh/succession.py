"""Succession: a leader that is gone is replaced as soon as it can be known, not when a timer ends.

Who stands for election, and when, is never a matter of safety: the core sees to that. It is a
matter of how long nobody leads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from mesh.raft import NOBODY, RawNode, Role
from mesh.timing import Rng, Timing
from mesh.wires import Wires

log = logging.getLogger(__name__)

SUSPECT_WAITS = ((0, 1), (1, 3), (2, 6))
"""Before each campaign against a leader that is gone for certain, in jitters: those who stand at
once share the votes, and need not wait for the timer to stand again."""
TIMED_OUT_WAITS = ((1, 3), (1, 4))
"""The same, in ticks, after the timer had this node stand and nobody won: the others' timers end
within the same second, and they listen to nobody before."""

FORSAKEN_ELECTIONS = 2
"""For so many elections' time a node that does not vote waits for word of its leader."""


class Succession:
    def __init__(
        self, raft_id: int, node: RawNode, wires: Wires, timing: Timing, rng: Rng,
        kick: Callable[[], None],
    ) -> None:  # fmt: skip
        self._raft_id = raft_id
        self._node = node
        self._core = node.core
        self._wires = wires
        self._timing = timing
        self._rng = rng
        self._kick = kick
        self._nursery: trio.Nursery | None = None
        self._at_work = False
        self._led = trio.Event()

    def begin(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def end(self) -> None:
        self._nursery = None

    def look(self) -> None:
        """After each round of the core's work."""
        if self._core.lead != NOBODY:
            self._led.set()
            if self._in_vain():
                self._node.forget_leader()
                self._kick()
        elif (
            self._core.role in (Role.PRE_CANDIDATE, Role.CANDIDATE)
            and not self._at_work
            and self._nursery is not None
        ):
            self._at_work = True
            self._nursery.start_soon(self._stand_again)

    def _in_vain(self) -> bool:
        """Whoever votes stands for election when the leader is silent. Whoever does not has to give
        it up as well, or would tell for ever of one that may lead no more."""
        core = self._core
        silent = core.election_elapsed >= FORSAKEN_ELECTIONS * self._timing.election_ticks
        return silent and core.role is Role.FOLLOWER and not core.promotable

    def suspect(self, peer: str) -> None:
        """The stream to the leader broke."""
        if not self._at_work and self._nursery is not None:
            self._at_work = True
            self._nursery.start_soon(self._suspect, peer, self._core.lead)

    async def _suspect(self, peer: str, leader: int) -> None:
        """A broken stream alone says little; with a fresh connection refused too, the leader is
        gone, and nobody need wait for the timer."""
        try:
            if await self._wires.probe(peer, self._timing.probe_timeout_s):
                return
            if self._core.lead != leader:
                return
            self._node.forget_leader()
            self._kick()
            log.info("the leader is gone: this node campaigns", extra={"leader": peer})
            await self._stand(SUSPECT_WAITS, self._timing.jitter_s)
        finally:
            self._at_work = False

    async def _stand_again(self) -> None:
        try:
            await self._stand(TIMED_OUT_WAITS, self._timing.tick_s)
            # Nobody won these either: there is no quorum to be had, and the timer goes on.
            with trio.move_on_after(self._timing.election_ticks * self._timing.tick_s):
                await self._led.wait()
        finally:
            self._at_work = False

    async def _stand(self, waits: tuple[tuple[int, int], ...], unit_s: float) -> None:
        """Campaign after each of the waits, until somebody leads."""
        self._led = trio.Event()
        for shortest, longest in waits:
            term = self._core.term
            with trio.move_on_after(self._rng.uniform(shortest * unit_s, longest * unit_s)):
                await self._led.wait()
                return
            if self._core.term != term and self._core.vote not in (NOBODY, self._raft_id):
                continue  # it has this node's vote: let it win
            self._node.campaign()
            self._kick()
