"""One suspicion: the more accuse the member independently, the sooner it ends.

Silence may be the fault of the accuser, the network or the host: it lasts its least time at least.
A refused connection is nobody's fault: no process listens there. A connection that is taken and not
answered says that there is one, which is held up: it has the longest time to come back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from mesh.swim.messages import ACCUSERS_MAX
from mesh.swim.settings import Settings

_REFUSALS_NEEDED = 2


class Suspicion:
    __slots__ = (
        "_least_s",
        "_longest_s",
        "_needed",
        "_refusals_needed",
        "_refused_s",
        "accusers",
        "held",
        "looked",
        "refused",
        "started",
    )

    def __init__(self, settings: Settings, now: float, others: int) -> None:
        """`others`: the living but for the suspect, this node among them."""
        self.started = now
        self.accusers: dict[str, None] = {}
        """All of them, with whatever evidence; the next two are among them."""
        self.refused: dict[str, None] = {}
        self.held: dict[str, None] = {}
        self.looked = False
        """This node had its last look."""
        least_s = settings.suspicion_mult * math.log10(max(10, others + 1))
        self._least_s = max(settings.suspicion_min_s, least_s * settings.probe_interval_s)
        # Where nobody else could confirm it, nobody is waited for.
        self._needed = min(settings.confirmations, max(0, others - 1))
        self._longest_s = self._least_s * settings.suspicion_max_mult
        self._refusals_needed = min(_REFUSALS_NEEDED, others)
        self._refused_s = settings.refused_s

    @property
    def least_s(self) -> float:
        return self._least_s

    @property
    def longest_s(self) -> float:
        return self._longest_s

    def accuse(
        self, by: Sequence[str], refused_by: Sequence[str] = (), held_by: Sequence[str] = ()
    ) -> bool:
        """True where this is new."""
        before = len(self.accusers), len(self.refused), len(self.held)
        for accuser in by:
            if len(self.accusers) < ACCUSERS_MAX:
                self.accusers[accuser] = None
        for accuser in refused_by:
            if accuser in self.accusers:
                self.refused[accuser] = None
                self.held.pop(accuser, None)
        for accuser in held_by:
            if accuser in self.accusers and accuser not in self.refused:
                self.held[accuser] = None
        return before != (len(self.accusers), len(self.refused), len(self.held))

    @property
    def deadline(self) -> float:
        if len(self.refused) >= self._refusals_needed:
            return self.started + self._refused_s
        # Who was taken in by the host outweighs one who heard nothing.
        confirmed = len(self.accusers) - 2 * len(self.held) - 1
        if confirmed < 0:
            return self.started + self._longest_s
        if confirmed >= self._needed:
            return self.started + self._least_s
        share = math.log(confirmed + 1) / math.log(self._needed + 1)
        return self.started + self._longest_s - share * (self._longest_s - self._least_s)

    def begin_again(self, now: float) -> None:
        """This node was away, and cannot know what it missed."""
        self.started = now
        for accusers in (self.accusers, self.refused, self.held):
            accusers.clear()
