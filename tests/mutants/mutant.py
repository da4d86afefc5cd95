"""A mutant: one planted bug, and the tests that must see it. Text not found once is stale."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.unseeded import WHY


class Stale(Exception):
    """The text that a mutant changes is not there, or not once: the list lags behind the code."""


@dataclass(frozen=True)
class Mutant:
    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    hangs: bool = False
    """It is seen by what never ends; else running out of time is no proof."""

    @property
    def unseeded(self) -> str:
        """Why chaos does not come upon it, where it does not; nothing: nobody knows yet."""
        return WHY.get(self.name, "")

    @property
    def fingerprint(self) -> str:
        """What was found out about it holds for this text alone."""
        text = "\0".join((self.file, self.old, self.new))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def plant(self, root: Path) -> None:
        path = root / self.file
        text = path.read_text()
        if text.count(self.old) != 1:
            raise Stale(f"{self.name}: its text is {text.count(self.old)} times in {self.file}")
        path.write_text(text.replace(self.old, self.new))

    def pull(self, root: Path, original: Path) -> None:
        (root / self.file).write_bytes((original / self.file).read_bytes())
