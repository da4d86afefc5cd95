"""Scenarios: what is told of a swarm that lost machines is what became of it."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import AttemptStatus, Resources, Result
from swarmd.sim.estate import check_victims, draw_faults
from swarmd.sim.exported import read_exported
from swarmd.sim.faults import Fault, decode_schedule, encode_schedule
from swarmd.sim.harm import KINDS
from swarmd.sim.report import lines
from swarmd.sim.scenario import Progress, Run, Scenario, Stop
from swarmd.sim.topology import Load, Topology, equal_nodes, load_of, read_topology
from tests.unit.test_sim_exported import ran, swarm_of
from tests.unit.test_state_anew import copied


def of_five(**more: Any) -> Scenario:
    defaults: dict[str, Any] = {"seed": 7, "seconds": 40.0, "load": load_of(60.0, 6.0)}
    return Scenario(equal_nodes(5), "five nodes", **(defaults | more))


def moments(found: dict[str, Any], kind: str) -> list[str]:
    return [moment["words"] for moment in found["timeline"] if moment["kind"] == kind]


def test_a_calm_swarm_does_its_work() -> None:
    heard: list[tuple[int, float]] = []
    run = Run(of_five(), tell=lambda p: heard.append((p.met, p.lived_s)))
    found = run.live()
    assert (found["simulated"], found["ended"], found["broken"]) == (True, "as planned", None)
    summary = found["summary"]
    jobs = summary["jobs"]
    assert jobs["submitted"] > 20
    assert jobs["completed"] > 15
    assert jobs["submitted"] == sum(
        jobs[k] for k in ("completed", "failed", "cancelled", "running", "waiting")
    )
    assert (jobs["run_again"], jobs["failed"], jobs["completed_twice"]) == (0, 0, 0)
    assert summary["leader"]["changes"] == 0
    assert summary["writes"]["longest_without_s"] == 0
    assert summary["quorum"]["kept"]
    assert len(summary["quorum"]["voters"]) == 3
    assert found["lasted_s"] == pytest.approx(40.0, abs=0.5)
    assert found["timeline"] == []
    assert len(found["samples"]) == pytest.approx(40, abs=2)
    assert heard[0] == (1, 0.0)
    assert heard[-1][0] == 5
    assert heard[-1][1] == pytest.approx(40.0, abs=1.0)


def test_who_leads_loses_power_and_another_leads_and_its_jobs_run_again() -> None:
    found = Run(of_five(kill=("n1",), kill_at_s=10.0, seconds=60.0)).live()
    summary = found["summary"]
    assert moments(found, "gone") == ["n1 loses power (n1 leads; n1 votes)"]
    (led,) = moments(found, "leader")
    assert "leads (term " in led
    assert not led.startswith("n1 ")
    assert any("takes n1 for dead" in words for words in moments(found, "dead"))
    assert any("vote" in words and "n1 went" in words for words in moments(found, "voters"))
    assert summary["leader"]["changes"] == 1
    assert 0 < summary["leader"]["longest_without_s"] < 10
    assert 0 < summary["writes"]["longest_without_s"] < 10
    assert summary["jobs"]["run_again"] > 0
    assert summary["runs"]["redone_s"] > 0
    assert summary["jobs"]["run_twice_at_once"] == summary["jobs"]["completed_twice"] == 0
    assert summary["quorum"]["kept"]
    assert "n1" not in summary["quorum"]["voters"]
    assert summary["nodes"] == {"there": 4, "gone": ["n1"]}
    for line in lines(found):
        assert line.startswith("simulated")


@pytest.mark.parametrize("kind", ["freeze", "cut-off"])
def test_a_leader_that_nobody_hears_of_leads_nobody(kind: str) -> None:
    schedule = (Fault(10.0, kind, "n1", for_s=15.0),)
    found = Run(of_five(schedule=schedule, seconds=45.0)).live()
    summary = found["summary"]
    assert summary["leader"]["changes"] == 1
    assert 0.5 < summary["leader"]["longest_without_s"] < 10
    (led,) = moments(found, "leader")
    assert " s with none" in led and not led.startswith("n1 ")


def test_a_leader_that_is_stopped_for_a_moment_leads_on() -> None:
    found = Run(of_five(schedule=(Fault(10.0, "freeze", "n1", for_s=0.4),), seconds=30.0)).live()
    leader = found["summary"]["leader"]
    assert leader["changes"] == 0 and moments(found, "leader") == []
    assert 0.2 < leader["longest_without_s"] < 1


def test_a_fault_that_finds_nothing_to_harm_is_told_as_one() -> None:
    schedule = (Fault(5.0, "transfer", "leader"), Fault(8.0, "crash", "n2", for_s=1.0))
    found = Run(of_five(schedule=schedule, seconds=20.0)).live()
    assert found["summary"]["faults_struck"] == 1
    assert moments(found, "fault") == [
        "transfer leader (n1): nothing came of it", "crash n2 for 1.0 s",
    ]  # fmt: skip


def test_without_most_voters_nothing_is_written_until_they_are_back() -> None:
    lost = of_five(kill=("n1", "n2"), kill_at_s=10.0, seconds=50.0)
    summary = Run(lost).live()["summary"]
    assert not summary["quorum"]["kept"]
    assert summary["quorum"]["voters"] == ["n1", "n2", "n3"]
    assert summary["quorum"]["voters_there"] == ["n3"]
    assert summary["leader"]["at_the_end"] is None
    assert not summary["writes"]["taken_at_the_end"]
    assert summary["writes"]["longest_without_s"] > 35
    assert sum(summary["writes"]["not_taken"].values()) > 0
    found = Run(replace(lost, back_after_s=15.0, seconds=80.0)).live()
    summary = found["summary"]
    assert moments(found, "back") == ["n1, n2 have power again"]
    assert any("taken again" in words for words in moments(found, "writes"))
    assert summary["quorum"]["kept"]
    assert summary["writes"]["taken_at_the_end"]
    assert 14 < summary["writes"]["longest_without_s"] < 30
    assert summary["nodes"]["gone"] == []


SITES = """
[[nodes]]
name = "b"
count = 2
gpus = 1
labels = { site = "berlin" }
[[nodes]]
name = "p"
count = 3
labels = { site = "paris" }
[[links]]
between = ["b", "p"]
delay_ms = [10, 20]
[[load]]
name = "train"
jobs_a_minute = 20
seconds = 8
gpus = 1
[[load]]
name = "render"
jobs_a_minute = 30
seconds = 4
"""


def test_jobs_that_fit_nowhere_any_more_are_told_with_why(tmp_path: Path) -> None:
    (tmp_path / "sites.toml").write_text(SITES)
    topology = read_topology(tmp_path / "sites.toml")
    found = Run(Scenario(
        topology, "two sites", 3, 50.0, topology.load, kill=topology.choose(["site=berlin"]),
        kill_at_s=20.0,
    )).live()  # fmt: skip
    (waiting,) = [each for each in found["summary"]["waiting"] if each["type"] == "train"]
    assert not waiting["placeable"]
    assert waiting["count"] > 0
    assert waiting["gone"] == ("b1", "b2")
    assert waiting["reasons"] == ("needs 1 gpus, the node has 0 (3 nodes)",)
    told = "\n".join(lines(found))
    assert "train CANNOT be placed any more" in told
    assert "could run on b1, b2, not there" in told


def test_jobs_of_a_type_called_package_are_no_packages() -> None:
    load = Load("package", 60.0, (1.0, 1.0), Resources(gpus=1))
    found = Run(of_five(load=(load,), seconds=10.0)).live()
    (waiting,) = found["summary"]["waiting"]
    assert (waiting["kind"], waiting["type"]) == ("binary", "package")
    told = "\n".join(lines(found))
    assert f"{waiting['count']} jobs of type package CANNOT be placed any more" in told


def test_the_state_of_a_swarm_is_lived_on_with_its_own_voters_and_jobs(tmp_path: Path) -> None:
    state = swarm_of("a", "b", "c", "d", "e")
    state.submit("old", type="render")
    ran(state, "old", "a", 5, status=AttemptStatus.COMPLETED, result=Result(exit_code=0))
    state.submit("runs", type="render")
    state.assign("runs", "id-d")
    attempt_id = state.job("runs").attempt_id
    assert attempt_id is not None
    for n in range(8):
        state.submit(f"j{n}", type="render")
    state.submit("last", depends_on=("j7",))
    exported = read_exported(copied(state, tmp_path / "copy.db"))
    sqlite3.connect(tmp_path / "copy.db").close()
    found = Run(
        Scenario(exported.topology, "mine", 5, 40.0, exported=exported, usual_s=2.0,
                 kill=("b",), kill_at_s=4.0)
    ).live()  # fmt: skip
    summary = found["summary"]
    assert summary["jobs"]["submitted"] == summary["jobs"]["completed"] == 10
    assert moments(found, "gone") == ["b loses power (b votes)"]
    assert summary["quorum"]["kept"]
    notes = "\n".join(found["scenario"]["notes"])
    assert "voters a, b, c" in notes
    assert "open jobs that ran 1, that waited 9" in notes
    assert "from their history for 1 of 2 types of job, else about 2 s" in notes


def test_faults_are_drawn_from_the_seed_and_told() -> None:
    schedule = draw_faults("heavy", 11, ["n1", "n2", "n3", "n4", "n5"], 40.0)
    assert schedule == draw_faults("heavy", 11, ["n1", "n2", "n3", "n4", "n5"], 40.0)
    assert decode_schedule(encode_schedule(schedule), KINDS) == schedule
    check_victims(schedule, equal_nodes(5))
    found = Run(of_five(faults="heavy", schedule=tuple(schedule))).live()
    assert found["broken"] is None
    assert len(moments(found, "fault")) == len(schedule)
    assert 5 < found["summary"]["faults_struck"] <= len(schedule)
    assert found["summary"]["jobs"]["completed"] > 5


def test_the_same_seed_is_the_same_story_and_another_is_another() -> None:
    one = Run(of_five(kill=("n2",), kill_at_s=5.0, seconds=20.0))
    again = Run(of_five(kill=("n2",), kill_at_s=5.0, seconds=20.0))
    other = Run(of_five(kill=("n2",), kill_at_s=5.0, seconds=20.0, seed=8))
    found = one.live()
    assert found == again.live()
    assert found["timeline"] != other.live()["timeline"]


def test_a_run_that_is_stopped_tells_what_it_saw() -> None:
    stop = Stop()

    def tell(progress: Progress) -> None:
        if progress.lived_s > 10:
            stop()

    found = Run(of_five(), stop, tell).live()
    assert found["ended"] == "interrupted"
    assert 10 < found["lasted_s"] < 12
    assert found["summary"]["jobs"]["completed"] > 0
    early = Run(of_five(), Stop(asked=True)).live()
    assert (early["ended"], early["summary"]) == ("interrupted", None)
    assert (early["met_s"], early["timeline_left_out"]) == (None, 0)
    assert early.keys() == found.keys()
    assert any("nothing to tell" in line for line in lines(early))


@pytest.mark.parametrize("stopped_at_s", [None, 10.0])
def test_a_run_ends_while_a_node_stands_still(stopped_at_s: float | None) -> None:
    stop = Stop()

    def tell(progress: Progress) -> None:
        if stopped_at_s is not None and progress.lived_s > stopped_at_s:
            stop()

    faults = (Fault(5.0, "freeze", "n2", for_s=60.0),)
    found = Run(of_five(faults=faults, seconds=15.0), stop, tell).live()
    assert found["broken"] is None
    assert found["ended"] == ("as planned" if stopped_at_s is None else "interrupted")
    assert found["summary"]["quorum"]["kept"]


def test_a_broken_rule_is_told_and_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: object, event: object) -> None:
        raise AssertionError("two hold one device")

    monkeypatch.setattr("swarmd.sim.story.Tally.heed", wrong)
    found = Run(of_five(seconds=5.0)).live()
    assert found["ended"] == "broken"
    assert "two hold one device" in found["broken"]


@pytest.mark.parametrize(
    ("where", "began"),
    [
        ("story.Tally.heed", False),
        ("story.Story._sample", True),
        ("estate.Estate.arrive", False),
        ("estate.Blows.take", True),
        ("scenario.look", True),
        ("scenario.summarize", True),
    ],
)
def test_any_failure_is_told_and_not_thrown(
    monkeypatch: pytest.MonkeyPatch, where: str, began: bool
) -> None:
    def wrong(*_: object) -> None:
        raise KeyError("n9")

    monkeypatch.setattr(f"swarmd.sim.{where}", wrong)
    found = Run(of_five(seconds=5.0, kill=("n5",), kill_at_s=2.0)).live()
    assert (found["ended"], found["broken"]) == ("broken", "KeyError: 'n9'")
    assert (found["met_s"] is not None) == began
    assert all(line.startswith("simulated") for line in lines(found))


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Run(of_five(seconds=5.0)).live()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"seconds": 0.0}, "a scenario lasts"),
        ({"seconds": float("nan")}, "a scenario lasts"),
        ({"seconds": 86_401.0}, "1440 minutes"),
        ({"kill": ("n1",), "kill_at_s": 40.0}, "choose a moment within"),
        ({"kill": ("n1",), "kill_at_s": -1.0}, "choose a moment within"),
        ({"back_after_s": 3.0}, "has to go first"),
        ({"kill": ("n1",), "kill_at_s": 20.0, "back_after_s": 20.0}, "would be back"),
        ({"schedule": (Fault(500.0, "crash", "n1"),)}, "fault 1 comes at 500 s"),
        ({"schedule": (Fault(40.0, "crash", "n1"),)}, "fault 1 comes at 40 s"),
        ({"load": (Load("job", 60_000.0, (1.0, 1.0)),), "seconds": 3600.0}, "at most 200000"),
    ],
)
def test_what_contradicts_itself_is_refused(more: dict[str, Any], words: str) -> None:
    with pytest.raises(Invalid, match=words):
        Run(of_five(**more))


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault(1.0, "crash", "n9"), "'n9', which is no node"),
        (Fault(1.0, "join", "n1"), "there from the beginning"),
        (Fault(1.0, "pair", "n1", "x"), "'x', which is no node"),
        (Fault(1.0, "flapping", "n1", for_s=5.0), "'out_s' between 0.1 and 1.5"),
        (Fault(1.0, "flapping", "n1", for_s=5.0, how={"out_s": 0, "in_s": 0}), "'out_s' between"),
        (Fault(1.0, "weather", how={"delay_s": 9e9, "loss": 0, "doubled": 0}), "'delay_s'"),
    ],
)
def test_faults_that_make_no_sense_are_refused(fault: Fault, words: str) -> None:
    with pytest.raises(Invalid, match=words):
        check_victims([fault], equal_nodes(5))


def test_one_node_alone_is_a_swarm_too() -> None:
    faults = draw_faults("heavy", 2, ["n1"], 20.0)
    alone = Scenario(Topology(equal_nodes(1).nodes), "one", 2, 20.0, load_of(30.0, 2.0),
                     faults="heavy", schedule=tuple(faults))  # fmt: skip
    found = Run(alone).live()
    assert found["broken"] is None
    assert found["summary"]["quorum"]["voters"] == ["n1"]
    told = "\n".join(lines(found))
    assert "1 of 1 voter is there (n1), 1 is needed; 1 of 1 replica" in told
