"""All lists of mutants, in the order of the page."""

from __future__ import annotations

from tests.mutants import core, leases, membership, replica, resuming
from tests.mutants.mutant import Mutant

LISTS: tuple[tuple[str, tuple[Mutant, ...]], ...] = (
    ("The core", core.MUTANTS), ("The replica", replica.MUTANTS), ("Leases", leases.MUTANTS),
    ("Membership and autopilot", membership.MUTANTS), ("What goes on elsewhere", resuming.MUTANTS),
)  # fmt: skip
EVERY = tuple(mutant for _, mutants in LISTS for mutant in mutants)
