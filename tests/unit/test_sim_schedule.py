"""Schedules that a person writes: a fault that could not strike is refused before the run."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from swarmd.cli import sim
from swarmd.domain.errors import Invalid
from swarmd.sim.estate import STRIKING, WITHOUT_VICTIM, check_victims
from swarmd.sim.faults import LEADER, Fault
from swarmd.sim.stage import Stage
from swarmd.sim.topology import equal_nodes

PAIRS = sorted(name for name, kind in STRIKING.items() if kind.pair)
ALONE = sorted(STRIKING.keys() - {*PAIRS, *WITHOUT_VICTIM})


def worst(kind: str) -> dict[str, float]:
    return {word: most for word, (_, most) in STRIKING[kind].how.items()}


class Asked(Exception):
    """A kind wants to know whom."""


class Askable(Stage):
    def victim(self, fault: Fault) -> str | None:
        raise Asked

    process = victim


@pytest.mark.parametrize("kind", STRIKING)
def test_who_asks_for_a_victim_needs_one_and_nobody_else(kind: str) -> None:
    world: Any = SimpleNamespace(hosts={}, network=SimpleNamespace(weather=None))
    fault = Fault(1.0, kind, how=worst(kind))
    asked = False
    try:
        trio.run(STRIKING[kind].strike, Askable(world, STRIKING), fault)
    except Asked:
        asked = True
    assert asked == (kind not in WITHOUT_VICTIM)


@pytest.mark.parametrize("kind", WITHOUT_VICTIM)
def test_what_befalls_all_needs_no_victim(kind: str) -> None:
    check_victims([Fault(1.0, kind, how=worst(kind))], equal_nodes(3))


@pytest.mark.parametrize("kind", ALONE)
def test_what_befalls_one_says_whom(kind: str) -> None:
    check_victims([Fault(1.0, kind, LEADER, how=worst(kind))], equal_nodes(3))
    words = f"fault 1: a fault of the kind {kind} befalls a node: say which, as `victim`; there are"
    with pytest.raises(Invalid, match=f"^{words} n1, n2, n3, and 'leader'"):
        check_victims([Fault(1.0, kind, how=worst(kind))], equal_nodes(3))


@pytest.mark.parametrize("kind", PAIRS)
def test_what_is_between_two_says_both(kind: str) -> None:
    how = worst(kind)
    check_victims([Fault(1.0, kind, "n2", LEADER, how=how)], equal_nodes(3))
    with pytest.raises(Invalid, match="say which, as `victim`"):
        check_victims([Fault(1.0, kind, "", "n1", how=how)], equal_nodes(3))
    for other in ("", "n2"):
        with pytest.raises(Invalid, match="say one as `victim` and another as `other`"):
            check_victims([Fault(1.0, kind, "n2", other, how=how)], equal_nodes(3))
    with pytest.raises(Invalid, match="say one as `victim` and another as `other`"):
        check_victims([Fault(1.0, kind, "n1", LEADER, how=how)], equal_nodes(1))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("crash", "fault 1: a fault of the kind crash says nothing in `how`, and not 'hard'"),
        ("flapping", "flapping says only 'out_s', 'in_s' in `how`, and not 'hard'"),
    ],
)
def test_words_that_a_kind_does_not_know_are_refused(kind: str, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        check_victims([Fault(1.0, kind, "n1", how={**worst(kind), "hard": 9.0})], equal_nodes(3))


def said(monkeypatch: pytest.MonkeyPatch, *args: str) -> tuple[int, str]:
    """How `swarmd sim` ends, and its stderr; -1 where it would have begun to simulate."""
    monkeypatch.setattr(sim, "_run", lambda scenario, as_json: -1)
    done = CliRunner().invoke(sim.sim, args, standalone_mode=False)
    assert done.exception is None
    return done.return_value, done.stderr


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "schedule has no fault in it: write one a line, as JSON, such as {"),
        (" \n\n", "schedule has no fault in it"),
        ('{"at_s":2,"kind":"crash"}', "say which, as `victim`"),
        ('{"at_s":2,"kind":"pair","victim":"n1"}', "another as `other`"),
        ('{"at_s":2,"kind":"crash","victim":"n1","how":{"x":1}}', "says nothing in `how`"),
        (
            '{"at_s":23,"kind":"crash","victim":"n1"}\n{"at_s":500,"kind":"crash","victim":"n1"}',
            "fault 2 comes at 500 s, and the scenario lasts 24 s; choose a moment within, or more",
        ),
        ('{"at_s":24,"kind":"crash","victim":"n1"}', "fault 1 comes at 24 s"),
    ],
)
def test_a_schedule_that_cannot_strike_is_wrong_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, words: str
) -> None:
    (tmp_path / "schedule").write_text(lines)
    args = ("--minutes", "0.4", "--faults", str(tmp_path / "schedule"))
    status, err = said(monkeypatch, *args)
    assert (status, len(err.splitlines())) == (2, 1)
    assert words in err


def test_the_fault_that_is_shown_as_an_example_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "schedule").write_text(sim.FAULT)
    assert json.loads(sim.FAULT)["kind"] in STRIKING
    assert said(monkeypatch, "--faults", str(tmp_path / "schedule")) == (-1, "")


@pytest.mark.parametrize("more", [(), ("--at", "5"), ("--back", "5")])
def test_to_kill_nobody_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    status, err = said(monkeypatch, "--kill", "", *more)
    assert (status, len(err.splitlines())) == (2, 1)
    assert "--kill: '' is no node, group or label=value of this swarm; there are n1, n2" in err
    assert said(monkeypatch) == (-1, "")
