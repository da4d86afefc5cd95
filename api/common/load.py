"""What all surfaces hold open at present, against the limits they share."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from api.common.limits import HttpLimits


@dataclass(slots=True)
class Load:
    limits: HttpLimits
    connections: int = 0
    requests: int = 0
    streams: int = 0
    stopping: bool = False
    _emptied: trio.Event = field(default_factory=trio.Event)

    def give_connection(self) -> None:
        self.connections -= 1
        if self.stopping and not self.connections:
            self._emptied.set()

    async def drained(self) -> None:
        """Wait until no connection is left; the stop has begun."""
        assert self.stopping
        if self.connections:
            await self._emptied.wait()
