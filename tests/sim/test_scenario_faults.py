"""What befalls a scenario's swarm is told of whom it befell, and also where it is not over."""

from __future__ import annotations

import pytest

from swarmd.sim.faults import Fault
from swarmd.sim.network import Network
from swarmd.sim.scenario import Run
from tests.sim.test_scenario import moments, of_five


def test_a_fault_that_is_not_over_at_the_end_is_told_too() -> None:
    schedule = (
        Fault(3.0, "crash", "n2", "n3", for_s=1.0),
        Fault(5.0, "power", "n5", for_s=60.0),
        Fault(6.0, "cut-off", "n4", for_s=60.0),
        Fault(7.0, "freeze", "n3", for_s=60.0),
    )
    found = Run(of_five(schedule=schedule, seconds=15.0)).live()
    assert moments(found, "fault") == [
        "crash n2 for 1.0 s",
        "power n5 for 60.0 s, under way at the end",
        "cut-off n4 for 60.0 s, under way at the end",
        "freeze n3 for 60.0 s, under way at the end",
    ]
    assert found["summary"]["faults_struck"] == 4
    assert found["summary"]["nodes"] == {"there": 4, "gone": ["n5"]}
    assert found["ended"] == "as planned"


def test_what_befalls_all_is_told_of_all_also_where_several_end_at_once() -> None:
    storm = {"delay_s": 0.01, "loss": 0.0, "doubled": 0.0}
    schedule = (
        Fault(3.0, "weather", "n3", for_s=1.0, how=storm),
        Fault(8.0, "power-everywhere", "n1", for_s=60.0),
        Fault(9.0, "crash", "leader", for_s=2.0),
    )
    found = Run(of_five(schedule=schedule, seconds=12.0)).live()
    assert moments(found, "fault") == [
        "weather all nodes for 1.0 s (delay_s 0.01, doubled 0, loss 0)",
        "power-everywhere all nodes for 60.0 s, under way at the end",
        "crash leader (nobody) for 2.0 s: nothing came of it",
    ]
    assert [each["names"] for each in found["timeline"] if each["kind"] == "fault"] == [()] * 3
    assert found["summary"]["faults_struck"] == 2
    assert found["summary"]["nodes"]["there"] == 0


def test_halves_are_told_as_they_are_parted(monkeypatch: pytest.MonkeyPatch) -> None:
    parted: list[set[str]] = []
    isolate = Network.isolate

    def seen(self: Network, *names: str) -> None:
        parted.append({*names})
        isolate(self, *names)

    monkeypatch.setattr(Network, "isolate", seen)
    schedule = (
        Fault(3.0, "halves", "n5", for_s=0.5),
        Fault(5.0, "crash", "n3", for_s=5.0),
        Fault(6.0, "halves", "leader", for_s=0.5),
        Fault(7.0, "halves", "n3", for_s=0.5),
    )
    found = Run(of_five(schedule=schedule, seconds=12.0)).live()
    told = [each for each in found["timeline"] if each["words"].startswith("halves")]
    assert [each["words"] for each in told] == [
        "halves n5, n1 apart from n2, n3, n4 for 0.5 s",
        "halves leader (n1), n2 apart from n3, n4, n5 for 0.5 s",
        "halves n3 for 0.5 s: nothing came of it",
    ]
    assert [{*each["names"]} for each in told[:2]] == parted


@pytest.mark.parametrize(
    ("faults", "words"),
    [
        ("heavy", "one-way leader (n1) and n2 for 1.0 s"),
        ("a-file", "one-way leader (n1) and n1 for 1.0 s: nothing came of it"),
    ],
)
def test_a_pair_that_chance_chose_is_two_also_where_one_leads(faults: str, words: str) -> None:
    schedule = (Fault(3.0, "one-way", "leader", "n1", for_s=1.0),)
    found = Run(of_five(faults=faults, schedule=schedule, seconds=6.0)).live()
    assert moments(found, "fault") == [words]
