"""`make mutants`: plants each bug in a copy of the tree, and has tests and chaos look for it.

Never in place: the tree that is worked on stays as it is. Each mutant is caught by the tests that
its list names, within a bound; whatever survives, has gone stale, or only ran out of time is a
failure of the suite. So is one that no seed of chaos finds where the list does not say why. What
was found out is kept, and docs/mutants.md is written from it.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.copies import Copy
from tests.mutants.found import Findings
from tests.mutants.lists import EVERY, LISTS
from tests.mutants.mutant import Mutant
from tests.mutants.page import PAGE, page

BOUND_S = 240.0
SEEDS = 20
"""So many are tried before a mutant counts as not found."""
SECONDS = 15.0
"""Under faults, of each seed."""

Look = Callable[[Copy, Mutant, Path], tuple[bool, str]]
"""Whether it is as it is to be, and what is said of it."""


def run(mutants: Sequence[Mutant], workers: int, look: Look, check: Callable[[Copy], None]) -> int:
    """How many are not as they are to be."""
    if not mutants:
        return 0
    with tempfile.TemporaryDirectory(prefix="swarmd-mutants-") as place:
        original = Path(place) / "original"
        check(Copy(original))
        copies: SimpleQueue[Copy] = SimpleQueue()
        for n in range(workers):
            copies.put(Copy(Path(place) / str(n)))
        lock = threading.Lock()

        def one(mutant: Mutant) -> bool:
            copy, began = copies.get(), time.monotonic()
            try:
                well, said = look(copy, mutant, original)
            finally:
                copies.put(copy)
            with lock:
                took_s = time.monotonic() - began
                word = "caught  " if well else "SURVIVED"
                print(f"{word} {took_s:6.1f} s  {mutant.name}: {said}", flush=True)
            return well

        with ThreadPoolExecutor(workers) as pool:
            return [*pool.map(one, mutants)].count(False)


def by_tests(mutants: Sequence[Mutant], workers: int, bound_s: float, findings: Findings) -> int:
    def check(healthy: Copy) -> None:
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        status, out = healthy.test(tests, 4 * bound_s)
        if status != 0:
            sys.exit(f"without any mutant these tests must pass, and do not:\n{out}")

    def look(copy: Copy, mutant: Mutant, original: Path) -> tuple[bool, str]:
        tested = copy.judge(mutant, original, bound_s)
        findings.note_tested(mutant, tested)
        findings.write(EVERY)
        return tested.caught, tested.by

    return run(mutants, workers, look, check)


def by_seeds(
    mutants: Sequence[Mutant], workers: int, seeds: int, findings: Findings, *, go_on: bool
) -> int:
    """`go_on`: after the seeds that were tried before."""

    def check(healthy: Copy) -> None:
        status, out = healthy.try_seeds(range(1, seeds + 1), SECONDS)
        if status != 0:
            sys.exit(f"without any mutant chaos must find nothing, and does:\n{out[-2000:]}")

    def look(copy: Copy, mutant: Mutant, original: Path) -> tuple[bool, str]:
        before = findings.of(mutant)
        tried = before.seeds if go_on and before.sought is not None else 0
        sought = copy.seek(mutant, original, range(tried + 1, seeds + 1), SECONDS)
        findings.note_sought(mutant, seeds, sought)
        findings.write(EVERY)
        if sought.seed is None:
            return bool(mutant.unseeded), f"{sought.what}; {mutant.unseeded or 'why is not known'}"
        return True, f"seed {sought.seed}: {sought.what}"

    return run(mutants, workers, look, check)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; without any, all")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bound", type=float, default=BOUND_S, help="seconds, for its tests")
    parser.add_argument("--seeds", type=int, default=0, help="of chaos, after the tests")
    parser.add_argument("--no-tests", action="store_true", help="the seeds alone")
    parser.add_argument("--missing", action="store_true", help="what is not known yet alone")
    chosen = parser.parse_args()
    findings = Findings()
    some = [m for m in EVERY if not chosen.names or any(n in m.name for n in chosen.names)]
    survivors = 0
    if not chosen.no_tests:
        tried = [m for m in some if not chosen.missing or findings.of(m).tested is None]
        survivors += by_tests(tried, chosen.workers, chosen.bound, findings)
    if chosen.seeds:
        tried = [m for m in some if not chosen.missing or findings.of(m).lacks(chosen.seeds)]
        survivors += by_seeds(
            tried, chosen.workers, chosen.seeds, findings, go_on=chosen.missing
        )  # fmt: skip
    findings.write(EVERY)
    PAGE.write_text(page(LISTS, findings, SEEDS, SECONDS))
    print("all are caught" if not survivors else f"{survivors} are not caught")
    if survivors:
        sys.exit(1)


if __name__ == "__main__":
    main()
