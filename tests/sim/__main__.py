"""`python -m tests.sim`: chaos of as many seeds as are wanted, until one finds something.

A seed that fails is run again with fewer faults, and what is printed then is how to see it. Without
`--seed` and `--seeds` the seeds are fresh ones.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import msgspec

from swarmd.domain.errors import Invalid
from swarmd.sim.faults import Fault, decode_schedule
from tests.sim.seeds import Outcome, chaos_of, ended_if_it_hangs, run_quietly, run_seed
from tests.sim.shrink import Budget, explain

logging.disable()  # a swarm under so many faults has much to say
SAY_EVERY_S = 10.0
SEEDS_A_PROCESS = 50
FRESH_MAX = 10**9


@dataclass
class Summary:
    seconds: float
    seeds: int = 0
    anomalies: int = 0
    first: int = FRESH_MAX
    last: int = 0
    simulated_s: float = 0.0
    cpu_s: float = 0.0
    operations: int = 0
    refused: int = 0
    moves: int = 0
    struck: Counter[str] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        self.seeds += 1
        self.anomalies += bool(outcome.failure)
        self.first, self.last = min(self.first, outcome.seed), max(self.last, outcome.seed)
        self.simulated_s += outcome.simulated_s
        self.cpu_s += outcome.cpu_s
        self.operations += outcome.operations
        self.refused += outcome.refused
        self.moves += outcome.moves
        self.struck.update(outcome.struck)
        self.events.update(outcome.events)

    @property
    def wall_s(self) -> float:
        return time.monotonic() - self.began

    def __str__(self) -> str:
        return (
            f"{self.seeds} seeds, {self.anomalies} anomalies; {self.simulated_s:,.0f} s simulated"
            f" in {self.wall_s:,.0f} s ({self.simulated_s / max(self.cpu_s, 1e-9):.0f} times real"
            f" time by CPU); {self.operations:,} operations, {self.struck.total():,} faults"
        )

    def table(self) -> str:
        lines = [
            "| | |", "|---|---|",
            f"| seeds | {self.seeds:,}, {self.first} to {self.last} |",
            f"| under faults, of each | {self.seconds:g} s |",
            f"| simulated | {self.simulated_s / 3600:,.1f} h |",
            f"| took, of one core | {self.cpu_s / 60:,.1f} min |",
            f"| operations of clients in histories | {self.operations:,} |",
            f"| refusals they met | {self.refused:,} |",
            f"| times a watcher went on at another node | {self.moves:,} |",
            f"| jobs submitted, completed by an attempt or otherwise ended |"
            f" {self.events['JobSubmitted']:,}, {self.events['JobEnded']:,} |",
            f"| jobs taken back and queued again | {self.events['JobRequeued']:,} |",
            f"| **anomalies** | **{self.anomalies}** |",
            "", "| fault | struck |", "|---|---|",
            *(f"| {kind} | {count:,} |" for kind, count in sorted(self.struck.items())),
        ]  # fmt: skip
        return "\n".join(lines) + "\n"


def _outcomes(seeds: Iterator[int], seconds: float, processes: int) -> Iterator[Outcome | None]:
    """As they come; None now and then, while none comes."""
    if processes == 1:
        for seed in seeds:
            yield run_quietly(seed, seconds)
        return
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context("spawn"), max_tasks_per_child=SEEDS_A_PROCESS
    )
    under_way: dict[Future[Outcome], int] = {}
    try:
        while True:
            while len(under_way) < 2 * processes and (new := next(seeds, None)) is not None:
                under_way[pool.submit(run_quietly, new, seconds)] = new
            if not under_way:
                return
            done, _ = wait(under_way, timeout=SAY_EVERY_S, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda future: under_way[future]):
                seed = under_way.pop(future)
                try:
                    yield future.result()
                except BrokenProcessPool:
                    yield Outcome(
                        seed, failure=_hung(sorted([seed, *under_way.values()]), seconds),
                        kind="hang",
                    )  # fmt: skip
                    return
            if not done:
                yield None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _hung(about: Sequence[int], seconds: float) -> str:
    """What to do about it: which of them it was is not known."""
    lines = [f"    python -m tests.sim --seed {seed} --seconds {seconds:g}" for seed in about]
    return "\n".join(["a process died or hung with one of these; each again, to its end or to"
                      " where it stands:", *lines])  # fmt: skip


def soak(seeds: Iterable[int], chosen: argparse.Namespace) -> int:
    summary, said = Summary(chosen.seconds), time.monotonic()
    run = Run(chosen.seconds, _tree())
    known = {} if chosen.keep is None else _kept(chosen.keep, run)
    for outcome in known.values():
        summary.add(outcome)
    failed: Outcome | None = None
    rest = (seed for seed in seeds if seed not in known)
    for outcome in _outcomes(rest, chosen.seconds, chosen.jobs):
        if outcome is not None:
            summary.add(outcome)
            if outcome.failure:
                failed = outcome
                break
            if chosen.keep is not None:
                _keep(chosen.keep, run, outcome)
        if time.monotonic() - said >= SAY_EVERY_S:
            print(summary, flush=True)
            said = time.monotonic()
    print(summary, flush=True)
    if chosen.report is not None:
        chosen.report.write_text(summary.table())
    if failed is None:
        return 0
    if failed.kind == "hang":
        print(failed.failure)
    else:
        tell(failed, chosen)
    return 1


@dataclass(frozen=True)
class Run:
    """What outcomes must have in common, to count together."""

    seconds: float
    tree: str


def _kept(path: Path, run: Run) -> dict[int, Outcome]:
    """What runs of this sort have found out before."""
    lines = path.read_bytes().splitlines() if path.exists() else []
    kept = [msgspec.json.decode(line, type=tuple[Run, Outcome]) for line in lines]
    return {outcome.seed: outcome for of, outcome in kept if of == run}


def _tree() -> str:
    """The code that it is about: another has nothing proved by what this one did."""
    files = sorted(
        each for part in ("mesh", "swarmd", "tests") for each in Path(part).rglob("*.py")
    )
    return sha256(b"".join(sha256(each.read_bytes()).digest() for each in files)).hexdigest()[:16]


def _keep(path: Path, run: Run, outcome: Outcome) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(msgspec.json.encode((run, outcome)) + b"\n")


def tell(failed: Outcome, chosen: argparse.Namespace) -> None:
    for line in explain(failed, chosen.seconds, Budget(chosen.tries, chosen.shrink_s)):
        print(line, flush=True)


def one(chosen: argparse.Namespace) -> int:
    """One seed, with all of its faults or some; told in full."""
    chaos = chaos_of(chosen.seed, chosen.seconds)
    schedule: Sequence[Fault] | None = None
    if chosen.schedule is not None:
        text = sys.stdin.read() if chosen.schedule == "-" else Path(chosen.schedule).read_text()
        schedule = decode_schedule(text, chaos.kinds)
    elif chosen.only is not None:
        numbers = [int(n) for n in chosen.only.split(",") if n]
        if not all(0 <= n < len(chaos.schedule) for n in numbers):
            raise Invalid(f"seed {chosen.seed} has faults 0 to {len(chaos.schedule) - 1}")
        schedule = [chaos.schedule[n] for n in numbers]
    for n, fault in enumerate(chaos.schedule if schedule is None else schedule):
        how = " ".join(f"{word}={value:g}" for word, value in fault.how.items())
        other = f" {fault.other}" if fault.other else ""
        print(f"{n:4} {fault.at_s:8.3f} s {fault.kind} {fault.victim}{other}"
              f" for {fault.for_s:g} s {how}".rstrip())  # fmt: skip
    with ended_if_it_hangs(chosen.seconds):
        outcome = run_seed(chosen.seed, chosen.seconds, schedule)
    print(
        f"{outcome.simulated_s:.1f} s simulated in {outcome.cpu_s:.1f} s of CPU,"
        f" {outcome.operations} operations, fingerprint {outcome.fingerprint or 'none'}"
    )
    if not outcome.failure:
        return 0
    if schedule is None and chosen.shrink:
        tell(outcome, chosen)
    else:
        print(outcome.failure)
    return 1


def _range(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--seed", type=int, help="this one, told in full")
    which.add_argument("--seeds", type=_range, metavar="A-B")
    which.add_argument("--fresh", type=int, metavar="N", default=100)
    parser.add_argument("--seconds", type=float, default=60.0, help="under faults, of each seed")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="PROCESSES")
    parser.add_argument("--report", type=Path, metavar="FILE", help="a table of what was done")
    keep = "what came of each seed; those that are there are not run again"
    parser.add_argument("--keep", type=Path, metavar="FILE", help=keep)
    parser.add_argument("--tries", type=int, default=200, help="at a shorter schedule")
    parser.add_argument("--shrink-s", type=float, default=300.0, help="for so long at the most")
    parser.add_argument("--only", metavar="3,7", help="of the seed's faults, by number")
    parser.add_argument("--schedule", metavar="FILE", help="other faults; - reads them from here")
    parser.add_argument("--shrink", action="store_true", help="look for a shorter schedule")
    chosen = parser.parse_args()
    if chosen.seed is not None:
        try:
            return one(chosen)
        except (Invalid, OSError, ValueError) as error:
            print(f"tests.sim: {error}", file=sys.stderr)
            return 2
    if chosen.seeds is not None:
        return soak(chosen.seeds, chosen)
    fresh = random.SystemRandom()
    return soak((fresh.randrange(FRESH_MAX) for _ in range(chosen.fresh)), chosen)


if __name__ == "__main__":
    sys.exit(main())
