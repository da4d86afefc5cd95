"""How soon things happen in consensus, and where chance comes from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Rng(Protocol):
    """Where chance comes from: a random.Random, seeded where a run is to be repeated."""

    def randrange(self, stop: int, /) -> int: ...

    def uniform(self, a: float, b: float, /) -> float: ...


@dataclass(frozen=True)
class Timing:
    tick_s: float = 0.1
    election_ticks: int = 10
    heartbeat_ticks: int = 1
    probe_timeout_s: float = 0.3
    """For a fresh connection to a leader whose stream broke."""
    jitter_s: float = 0.1
    """Before a follower campaigns whose leader is gone for certain; see mesh.succession."""
    read_again_s: float = 0.5
    """A read whose confirmation was lost is asked for again."""


LAN = Timing(tick_s=0.05)
