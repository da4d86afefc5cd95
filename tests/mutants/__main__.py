"""`make mutants`: plants each bug in a copy of the tree, and has the tests look for it.

Never in place: the tree that is worked on stays as it is. Each mutant is caught by the tests that
its list names, within a bound; whatever survives, has gone stale, or only ran out of time is a
failure of the suite. The result is docs/mutants.md.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from tests.mutants import core, leases, replica
from tests.mutants.mutant import Mutant, Stale

ROOT = Path(__file__).parent.parent.parent
COPIED = ("mesh", "swarmd", "api", "tests", "pyproject.toml")
PAGE = ROOT / "docs" / "mutants.md"
LISTS = (
    ("The core", core.MUTANTS), ("The replica", replica.MUTANTS), ("Leases", leases.MUTANTS),
)  # fmt: skip
BOUND_S = 240.0


@dataclass(frozen=True)
class Verdict:
    mutant: Mutant
    caught: bool
    by: str
    """The first test that saw it, or why it does not count as caught."""
    took_s: float


class Copy:
    """A tree of one worker's own."""

    def __init__(self, place: Path) -> None:
        self.place = place
        hidden = shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis")
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, place / name, ignore=hidden)
            else:
                shutil.copy2(ROOT / name, place / name)

    def test(self, tests: Sequence[str], bound_s: float) -> tuple[int | None, str]:
        """The exit status, None where the time was up, and what was printed."""
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider",
            *tests,
        ]  # fmt: skip
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self.place)}
        with subprocess.Popen(
            command, cwd=self.place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        ) as running:  # fmt: skip
            try:
                out, _ = running.communicate(timeout=bound_s)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                return None, running.communicate()[0]
        return running.returncode, out

    def judge(self, mutant: Mutant, original: Path, bound_s: float) -> Verdict:
        began = time.monotonic()

        def verdict(caught: bool, by: str) -> Verdict:
            return Verdict(mutant, caught, by, time.monotonic() - began)

        try:
            mutant.plant(self.place)
        except Stale as stale:
            return verdict(False, f"stale: {stale}")
        try:
            status, out = self.test(mutant.tests, bound_s)
        finally:
            mutant.pull(self.place, original)
        if status is None:
            return verdict(mutant.hangs, "a test that does not end")
        failed = re.search(r"^FAILED (\S+)", out, re.MULTILINE)
        if status == 1 and failed is not None:
            return verdict(True, failed[1])
        if status == 0:
            return verdict(False, "survived")
        return verdict(False, f"pytest ended with {status}: {out[-300:]}")


def run(mutants: Sequence[Mutant], workers: int, bound_s: float) -> list[Verdict]:
    with tempfile.TemporaryDirectory(prefix="swarmd-mutants-") as place:
        original = Path(place) / "original"
        healthy = Copy(original)
        tests = sorted({test for mutant in mutants for test in mutant.tests})
        status, out = healthy.test(tests, 2 * bound_s)
        if status != 0:
            sys.exit(f"without any mutant these tests must pass, and do not:\n{out}")
        copies: SimpleQueue[Copy] = SimpleQueue()
        for n in range(workers):
            copies.put(Copy(Path(place) / str(n)))
        lock = threading.Lock()

        def judge(mutant: Mutant) -> Verdict:
            copy = copies.get()
            try:
                verdict = copy.judge(mutant, original, bound_s)
            finally:
                copies.put(copy)
            with lock:
                word = "caught  " if verdict.caught else "SURVIVED"
                print(f"{word} {verdict.took_s:6.1f} s  {mutant.name}: {verdict.by}", flush=True)
            return verdict

        with ThreadPoolExecutor(workers) as pool:
            return list(pool.map(judge, mutants))


def page(verdicts: Sequence[Verdict]) -> str:
    """The result as the documentation shows it."""
    by_mutant = {verdict.mutant: verdict for verdict in verdicts}
    caught = sum(verdict.caught for verdict in verdicts)
    lines = [
        "# Mutants",
        "",
        "A suite is worth what it notices. `make mutants` plants bugs that such a system is known",
        "for, one at a time, in a copy of the tree, and runs the tests that must see it; the lists",
        "are in `tests/mutants/`. One that no test sees, or whose text is no longer in the code,",
        "fails the run. This page is written by it.",
        "",
        f"Of {len(verdicts)} mutants {caught} are caught.",
    ]
    for title, mutants in LISTS:
        lines += ["", f"## {title}", ""]
        lines += ["| what is wrong | where | first seen by |", "|---|---|---|"]
        for mutant in mutants:
            verdict = by_mutant[mutant]
            by = f"`{verdict.by}`" if verdict.caught else f"**{verdict.by}**"
            lines.append(f"| {mutant.name} | `{mutant.file}` | {by} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; without any, all, and the page")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--bound", type=float, default=BOUND_S, help="seconds for each")
    chosen = parser.parse_args()
    every = [mutant for _, mutants in LISTS for mutant in mutants]
    some = [m for m in every if not chosen.names or any(n in m.name for n in chosen.names)]
    verdicts = run(some, chosen.workers, chosen.bound)
    survivors = [verdict for verdict in verdicts if not verdict.caught]
    print(f"{len(verdicts) - len(survivors)} of {len(verdicts)} are caught")
    if not chosen.names:
        PAGE.write_text(page(verdicts))
    if survivors:
        sys.exit(1)


if __name__ == "__main__":
    main()
