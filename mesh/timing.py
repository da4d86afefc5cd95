"""How soon things happen in consensus, and where chance comes from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import trio


class Rng(Protocol):
    """Where chance comes from: a random.Random, seeded where a run is to be repeated."""

    def randrange(self, stop: int, /) -> int: ...

    def uniform(self, a: float, b: float, /) -> float: ...


@dataclass(frozen=True)
class Timing:
    tick_s: float = 1 / 9
    election_ticks: int = 9
    """A multiple of `heartbeat_ticks`: then a leader that looks who was there of late asks everyone
    anew in the same moment, and nobody is taken for gone until the next heartbeat."""
    heartbeat_ticks: int = 3
    probe_timeout_s: float = 0.3
    """For a fresh connection to a leader whose stream broke."""
    jitter_s: float = 0.1
    """Before a follower campaigns whose leader is gone for certain; see mesh.succession."""
    read_again_s: float = 0.5
    """A read whose confirmation was lost is asked for again."""


LAN = Timing(tick_s=1 / 18)


async def beat(every_s: float) -> None:
    """Sleep for half a period to one and a half, so that all who look after something from time to
    time wake together: wakings are what a process spends its time on that has nothing to do."""
    ahead = math.floor(trio.current_time() / every_s + 0.5) + 1
    await trio.sleep_until(ahead * every_s)
