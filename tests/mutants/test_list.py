"""The lists of mutants do not lag behind the code; `make mutants` runs them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.mutants.__main__ import SECONDS, SEEDS
from tests.mutants.copies import Judged, Sought
from tests.mutants.found import Findings
from tests.mutants.lists import EVERY, LISTS
from tests.mutants.mutant import Mutant
from tests.mutants.page import PAGE, page
from tests.mutants.unseeded import WHY

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize("mutant", EVERY, ids=lambda m: m.name)
def test_its_text_is_there_once_and_so_are_its_tests(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: change it with the code it was made for"
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, mutant.file, "exec")
    assert changed != text
    assert mutant.tests
    for test in mutant.tests:
        file, _, name = test.partition("::")
        assert f"def {name}" in (ROOT / file).read_text(), test


def test_each_has_a_name_of_its_own_and_a_test_that_caught_it() -> None:
    shared = [name for name, count in Counter(m.name for m in EVERY).items() if count > 1]
    assert not shared and len(EVERY) >= 15
    findings = Findings()
    caught = {m.name for m in EVERY if (t := findings.of(m).tested) is not None and t.caught}
    assert [m.name for m in EVERY if m.name not in caught] == []


def test_each_was_found_by_a_seed_or_says_why_not() -> None:
    findings = Findings()
    found = {m.name for m in EVERY if (s := findings.of(m).sought) is not None and s.seed}
    assert [m.name for m in EVERY if m.name not in found and not m.unseeded] == []


def test_reasons_are_for_mutants_that_there_are() -> None:
    assert [*WHY.keys() - {mutant.name for mutant in EVERY}] == []


def test_the_docs_have_what_was_found() -> None:
    assert PAGE.read_text() == page(LISTS, Findings(), SEEDS, SECONDS)


def test_what_was_found_is_read_as_it_was_written(tmp_path: Path) -> None:
    one, other, third = EVERY[:3]
    findings = Findings(tmp_path / "found.tsv")
    findings.note_tested(one, Judged(True, "tests/t.py::test_it[a b]"))
    findings.note_sought(one, 20, Sought(7, "Broken: a\tb\nc"))
    findings.note_sought(other, 20, Sought(None, "not seen"))
    findings.write(EVERY)
    # Another run that knows nothing of this one leaves what it says.
    later = Findings(tmp_path / "found.tsv")
    beside = Findings(tmp_path / "found.tsv")
    beside.note_tested(other, Judged(False, "survived"))
    beside.write(EVERY)
    later.note_tested(third, Judged(True, "t"))
    later.write(EVERY)
    found = Findings(tmp_path / "found.tsv")
    assert found.of(one).tested == Judged(True, "tests/t.py::test_it[a b]")
    assert found.of(one).sought == Sought(7, "Broken: a b c") and not found.of(one).lacks(99)
    assert found.of(other).tested == Judged(False, "survived")
    assert found.of(other).lacks(21) and not found.of(other).lacks(20)
    assert found.of(third).tested == Judged(True, "t") and found.of(third).sought is None
