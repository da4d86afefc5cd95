"""`python -m tests.mutants.trial FIRST LAST SECONDS`: chaos in a tree with a mutant, seed by seed.

It runs in the copy, in a process of its own: a mutant may bring that down, or turn in circles. A
line before each seed says which it was; a bound on CPU, not on time, ends one that never would.
"""

from __future__ import annotations

import logging
import signal
import sys

from tests.sim.seeds import run_seed

SEED_CPU_S = 90.0
"""Some thirty times what a seed takes."""
FOUND = 3
"""The exit status where a seed failed: none of Python's own."""


def main() -> int:
    logging.disable()  # a swarm under so many faults has much to say
    first, last, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for seed in range(first, last + 1):
        print(f"seed {seed}", flush=True)
        signal.setitimer(signal.ITIMER_PROF, SEED_CPU_S)
        outcome = run_seed(seed, seconds)
        if outcome.failure:
            print(outcome.kind, flush=True)
            return FOUND
    return 0


if __name__ == "__main__":
    sys.exit(main())
