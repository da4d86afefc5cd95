"""Faults that wait for their moment come to it, and a swarm outlives each; so does the rule of what
one node shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from swarmd.sim.faults import LEADER, Fault
from tests.sim.chaos import SMALL, Chaos, quick
from tests.sim.moments import moments
from tests.sim.registers import Glance, Stale, check_glances
from tests.sim.users import Users
from tests.sim.world import run_world

FAULTS = {name: dict.fromkeys(kind.how, 0.02) for name, kind in moments(Users(0)).items()}
ORDER = {b"first": 0, b"second": 1}


@pytest.mark.parametrize("name", FAULTS)
def test_it_comes_to_its_moment(name: str, tmp_path: Path) -> None:
    victim = "b" if name in ("cut-short", "spoilt-copy") else LEADER
    chaos = Chaos(3, 1, SMALL, [Fault(1.0, name, victim, for_s=4.0, how=FAULTS[name])])
    run_world(3, tmp_path, chaos.run, quick())
    assert chaos.struck == {name: 1}


def glance(
    began: float, value: bytes | None, *, life: int = 1, local: bool = True, key: str = "left-0"
) -> Glance:  # fmt: skip
    return Glance(life, key, began, began + 1, value, local)


def test_what_a_node_shows_is_never_older_than_what_it_showed() -> None:
    check_glances([glance(0, None), glance(2, b"first"), glance(4, b"second")], ORDER)
    for earlier in (glance(0, b"second"), glance(0, b"second", local=False)):
        with pytest.raises(Stale):
            check_glances([earlier, glance(2, b"first")], ORDER)
        with pytest.raises(Stale):
            check_glances([earlier, glance(2, None)], ORDER)


def test_it_may_be_older_than_what_others_show_or_than_what_was_asked_for_meanwhile() -> None:
    newer = glance(0, b"second")
    check_glances([newer, glance(2, b"first", life=2)], ORDER)
    check_glances([newer, glance(2, b"first", key="right-0")], ORDER)
    check_glances([newer, glance(0.5, b"first")], ORDER)
