"""The lists of mutants do not lag behind the code; `make mutants` runs them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.__main__ import LISTS
from tests.mutants.mutant import Mutant

ROOT = Path(__file__).parent.parent.parent
EVERY = tuple(mutant for _, mutants in LISTS for mutant in mutants)


@pytest.mark.parametrize("mutant", EVERY, ids=lambda m: m.name)
def test_its_text_is_there_once_and_so_are_its_tests(mutant: Mutant) -> None:
    text = (ROOT / mutant.file).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.name}: change it with the code it was made for"
    changed = text.replace(mutant.old, mutant.new)
    compile(changed, mutant.file, "exec")
    assert changed != text
    for test in mutant.tests:
        assert (ROOT / test).is_file(), test


def test_each_has_a_name_of_its_own_and_stands_in_the_docs() -> None:
    names = [mutant.name for mutant in EVERY]
    assert len({*names}) == len(names) >= 15
    page = (ROOT / "docs" / "mutants.md").read_text()
    assert [name for name in names if f"| {name} |" not in page] == []
    assert f"Of {len(names)} mutants {len(names)} are caught." in page
