"""What was found out about each mutant, kept beside the lists: looking for all anew takes long.

A line holds for the mutant's text as it was then, and is void once that is another.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.mutants.copies import Judged, Sought
from tests.mutants.mutant import Mutant

FILE = Path(__file__).parent / "found.tsv"
_Key = tuple[str, str]
_HEAD = "mutant\tfingerprint\tcaught\tby\tseeds\tseed\tseen"


@dataclass(frozen=True)
class Finding:
    tested: Judged | None = None
    seeds: int = 0
    """So many were to be tried."""
    sought: Sought | None = None

    def lacks(self, seeds: int) -> bool:
        """Whether more seeds than were tried may find it."""
        return self.sought is None or (self.sought.seed is None and self.seeds < seeds)


class Findings:
    def __init__(self, file: Path = FILE) -> None:
        self._file = file
        self._lines = _read(file)
        self._tested: dict[_Key, Judged] = {}
        self._sought: dict[_Key, tuple[int, Sought]] = {}
        self._lock = threading.Lock()

    def of(self, mutant: Mutant) -> Finding:
        return self._lines.get((mutant.name, mutant.fingerprint), Finding())

    def note_tested(self, mutant: Mutant, tested: Judged) -> None:
        with self._lock:
            self._tested[mutant.name, mutant.fingerprint] = tested

    def note_sought(self, mutant: Mutant, seeds: int, sought: Sought) -> None:
        with self._lock:
            self._sought[mutant.name, mutant.fingerprint] = seeds, sought

    def write(self, mutants: Iterable[Mutant]) -> None:
        """Of those alone, in their order; with what another run wrote meanwhile."""
        with self._lock:
            lines = _read(self._file)
            for key, tested in self._tested.items():
                lines[key] = replace(lines.get(key, Finding()), tested=tested)
            for key, (seeds, sought) in self._sought.items():
                lines[key] = replace(lines.get(key, Finding()), seeds=seeds, sought=sought)
            self._lines = lines
            written = [_HEAD, *(_line(mutant, self.of(mutant)) for mutant in mutants)]
            fresh = self._file.with_suffix(".new")
            fresh.write_text("\n".join(written) + "\n")
            fresh.replace(self._file)


def _line(mutant: Mutant, finding: Finding) -> str:
    caught, by, seed, seen = "", "", "", ""
    if finding.tested is not None:
        caught, by = "yes" if finding.tested.caught else "no", finding.tested.by
    if finding.sought is not None:
        seed, seen = str(finding.sought.seed or ""), finding.sought.what
    known = (caught, by, str(finding.seeds), seed, seen)
    return "\t".join((mutant.name, mutant.fingerprint, *map(_plain, known)))


def _read(file: Path) -> dict[_Key, Finding]:
    found: dict[_Key, Finding] = {}
    if file.exists():
        for line in file.read_text().splitlines()[1:]:
            name, fingerprint, caught, by, seeds, seed, seen = line.split("\t")
            found[name, fingerprint] = Finding(
                Judged(caught == "yes", by) if caught else None, int(seeds),
                Sought(int(seed) if seed else None, seen) if int(seeds) else None,
            )  # fmt: skip
    return found


def _plain(text: str) -> str:
    return " ".join(text.split())
