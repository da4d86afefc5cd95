"""The time of the core: ticks are counted when something comes, and a sleeper wakes only for the
one with which something is due. A follower hears of its leader long before.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from mesh.raft import RawNode
from mesh.timing import Timing

_ROUNDING = 1e-6
"""Of a tick: sums of floats that come to a little less are whole."""


class Ticking:
    def __init__(self, node: RawNode, timing: Timing, leads: Callable[[], bool]) -> None:
        self._node = node
        self._tick_s = timing.tick_s
        self._leads = leads
        self._counted_to = trio.current_time()
        self._sleep = trio.CancelScope()

    async def run(self, ticks: Callable[[], None], ticked: Callable[[], None]) -> None:
        """Until it is cancelled; these are called before and after whatever was due."""
        self._counted_to = trio.current_time()
        while True:
            with trio.CancelScope(deadline=self._due_at()) as self._sleep:
                await trio.sleep_forever()
            ticks()
            self._count(awaited=True)
            ticked()

    def catch_up(self) -> None:
        """Before the core is told of anything. What is due is left to whoever sleeps for it."""
        self._count(awaited=False)

    def look(self) -> None:
        """After the core has worked: what is due may be due earlier, as for whoever leads now."""
        due_at = self._due_at()
        if due_at < self._sleep.deadline:
            self._sleep.deadline = due_at

    def _due_at(self) -> float:
        return self._counted_to + self._node.ticks_to_act() * self._tick_s

    def _count(self, *, awaited: bool) -> None:
        """Ticks that were missed, as this process was held up, are dropped: a burst of them would
        depose a leader for nothing. Who does not lead is given one tick more then, for what may lie
        in its sockets."""
        now = trio.current_time()
        passed = int((now - self._counted_to) / self._tick_s + _ROUNDING)
        if passed <= 0:
            return
        left = self._node.ticks_to_act()
        acts = awaited and (passed == left or (passed > left and self._leads()))
        for _ in range(left if acts else min(passed, left - 1)):
            self._node.tick()
        self._counted_to = now if passed > left else self._counted_to + passed * self._tick_s
