"""docs/mutants.md: what is wrong, which test sees it, and which seed of chaos does, or why none."""

from __future__ import annotations

from collections.abc import Sequence

from tests.mutants.copies import ROOT
from tests.mutants.found import Finding, Findings
from tests.mutants.mutant import Mutant

PAGE = ROOT / "docs" / "mutants.md"
SEEN_CHARS_MAX = 80

Lists = Sequence[tuple[str, Sequence[Mutant]]]

_HEAD = """\
# Mutants

A suite is worth what it notices. `make mutants` plants bugs that such a system is known for, one at
a time, in a copy of the tree, and runs the tests that must see it; the lists are in
`tests/mutants/`. One that no test sees, or whose text is no longer in the code, fails the run.

`make mutants SEEDS={seeds}` lets chaos (`python -m tests.sim`) look for each as well, knowing
nothing of it: seeds from 1 on, {seconds:g} simulated seconds under faults each, until one fails.
The last column has that seed and what was said; where none came upon it, of how many, and why.
Which seed it is moves with the code and says little; that there is one says that the simulation
reaches the place.

{counts}
"""


def page(lists: Lists, findings: Findings, seeds: int, seconds: float) -> str:
    every = [mutant for _, mutants in lists for mutant in mutants]
    found = [findings.of(mutant) for mutant in every]
    caught = sum(each.tested is not None and each.tested.caught for each in found)
    numbers = [each.sought.seed for each in found if each.sought and each.sought.seed is not None]
    counts = f"Of {len(every)} mutants {caught} are caught by their tests."
    if numbers:
        early = sum(number <= seeds for number in numbers)
        counts += (
            f" {early} are found by a seed of the first {seeds} too, {numbers.count(1)} of them by"
            f" the first, and {len(numbers) - early} by a later one. The other"
            f" {len(every) - len(numbers)} are seen by directed tests alone; what a seed would need"
            " to come upon them is in their rows."
        )
    lines = [_HEAD.format(seeds=seeds, seconds=seconds, counts=_wrapped(counts))]
    for title, mutants in lists:
        lines += [f"## {title}", ""]
        lines += ["| what is wrong | where | first seen by | by seed |", "|---|---|---|---|"]
        lines += [_row(mutant, findings.of(mutant)) for mutant in mutants]
        lines.append("")
    return "\n".join(lines)


def _row(mutant: Mutant, finding: Finding) -> str:
    tested, sought = finding.tested, finding.sought
    by = "**not tried yet**"
    if tested is not None:
        by = f"`{tested.by}`" if tested.caught else f"**{tested.by}**"
    seed = f"not tried: {mutant.unseeded}" if mutant.unseeded else "not tried"
    if sought is not None:
        seed = f"none of {finding.seeds}: {mutant.unseeded or '**not explained yet**'}"
    if sought is not None and sought.seed is not None:
        seen = sought.what.replace("`", "'").replace("|", "/")[:SEEN_CHARS_MAX].rstrip()
        seed = f"{sought.seed}: `{seen}`"
    return f"| {mutant.name} | `{mutant.file}` | {by} | {seed} |"


def _wrapped(text: str) -> str:
    lines, line = [], ""
    for word in text.split():
        if len(line) + len(word) > 98:
            lines.append(line)
            line = ""
        line = f"{line} {word}".strip()
    return "\n".join([*lines, line])
