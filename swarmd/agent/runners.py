"""What the agent asks of a runner, whatever it is: a process beside the daemon, or one that is
simulated."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Protocol

from swarmd.drivers.frames import AttemptOrder, AttemptStanding, Events, Refusal

Ids = list[int]
Standings = list[AttemptStanding]


class Leasing(Protocol):
    """Of a runner, what leases need."""

    def boottime_ns(self) -> int:
        """The clock by which leases run out."""

    async def renew(self, ids: Sequence[int], lease_s: float, from_ns: int | None = None) -> Ids:
        """Leases run out this long after a time since boot, or after now. Answers the ids that
        are not there."""


class Runner(Leasing, Protocol):
    async def start(self, orders: Sequence[AttemptOrder]) -> list[Refusal]:
        """Hand over attempts; an id that is known is not started again."""

    async def stop(self, ids: Sequence[int] | None, grace_s: float | None = None) -> Ids:
        """None: all. Answers the ids that are not known."""

    async def ack(self, ids: Sequence[int]) -> None:
        """Their ends are safe elsewhere."""

    async def list(self) -> Standings: ...

    async def replaced(self, pid: int) -> int:
        """Wait until a runner other than that one is connected; answers its pid."""

    def events(self) -> AsyncGenerator[Events, None]:
        """Batches, for as long as they are taken; an end comes again until it is acknowledged."""


class Shelves(Protocol):
    """Where the directories of attempts that ended are put in order."""

    def spare(self) -> Path | None:
        """One as good as new, to be renamed."""

    def ended(self, directory: Path) -> None: ...

    async def keep_tidy(self) -> None: ...
