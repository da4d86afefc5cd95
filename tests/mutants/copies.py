"""Copies of the tree: bugs are planted there alone, and there tests and chaos look for them.

Every run is a process group of its own within a bound; what is still there after it is killed.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutant import Mutant, Stale
from tests.mutants.trial import FOUND

ROOT = Path(__file__).parent.parent.parent
COPIED = ("mesh", "swarmd", "api", "tests", "pyproject.toml")
CHAOS_SEEDS = "100-119"
"""Of the chaos that stands in a mutant's list of tests."""
SEEDS_WALL_S = 3600.0


@dataclass(frozen=True)
class Judged:
    caught: bool
    by: str
    """The first test that saw it, or why it does not count as caught."""


@dataclass(frozen=True)
class Sought:
    seed: int | None
    """The first that saw it."""
    what: str
    """That it saw, or why it does not count."""


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
        pytest = ("-m", "pytest", "-x", "-q", "--tb=no", "-p", "no:cacheprovider")
        return self._run([*pytest, *tests], bound_s)

    def try_seeds(self, seeds: range, seconds: float) -> tuple[int | None, str]:
        chaos = ("-m", "tests.mutants.trial")
        return self._run([*chaos, str(seeds[0]), str(seeds[-1]), str(seconds)], SEEDS_WALL_S)

    def judge(self, mutant: Mutant, original: Path, bound_s: float) -> Judged:
        """By its tests."""
        try:
            mutant.plant(self.place)
        except Stale as stale:
            return Judged(False, f"stale: {stale}")
        try:
            status, out = self.test(mutant.tests, bound_s)
        finally:
            mutant.pull(self.place, original)
        if status is None:
            return Judged(mutant.hangs, "a test that does not end")
        failed = re.search(r"^FAILED (.+?)(?: - .*)?$", out, re.MULTILINE)
        if status == 1 and failed is not None:
            return Judged(True, failed[1])
        if status == 0:
            return Judged(False, "survived")
        return Judged(False, f"pytest ended with {status}: {_one_line(out)}")

    def seek(self, mutant: Mutant, original: Path, seeds: range, seconds: float) -> Sought:
        """By chaos."""
        try:
            mutant.plant(self.place)
        except Stale as stale:
            return Sought(None, f"stale: {stale}")
        try:
            status, out = self.try_seeds(seeds, seconds)
        finally:
            mutant.pull(self.place, original)
        begun = re.findall(r"^seed (\d+)$", out, re.MULTILINE)
        if status == 0:
            return Sought(None, "not seen")
        if not begun:
            return Sought(None, f"chaos did not begin: {_one_line(out)}")
        seed = int(begun[-1])
        if status is None or status == -signal.SIGPROF:
            return Sought(seed if mutant.hangs else None, f"seed {seed} does not end")
        if status < 0:
            return Sought(None, f"seed {seed} was ended from outside, by signal {-status}")
        if status == FOUND:
            return Sought(seed, _one_line(out.rpartition(f"seed {seed}\n")[2]))
        return Sought(seed, f"the process ended with {status}: {_one_line(out[-200:])}")

    def _run(self, arguments: Sequence[str], bound_s: float) -> tuple[int | None, str]:
        env = {
            **os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(self.place),
            "SWARMD_SIM_SEEDS": CHAOS_SEEDS, "SWARMD_SIM_SHRINK_S": "0",
        }  # fmt: skip
        with subprocess.Popen(
            [sys.executable, *arguments], cwd=self.place, env=env, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, start_new_session=True,
        ) as running:  # fmt: skip
            try:
                out, _ = running.communicate(timeout=bound_s)
            except subprocess.TimeoutExpired:
                os.killpg(running.pid, signal.SIGKILL)
                return None, running.communicate()[0]
        return running.returncode, out


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
