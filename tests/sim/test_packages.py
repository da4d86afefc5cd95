"""What becomes of a swarm's packages when builders or nodes go: as its own state has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from swarmd.domain.builds import Control, Outcome
from swarmd.domain.jobs import JobId, NodeId
from swarmd.sim.exported import read_exported
from swarmd.sim.report import lines
from swarmd.sim.scenario import Run, Scenario
from swarmd.state import build_commands as b
from tests.unit.test_sim_exported import a_queue_of_packages, swarm_of
from tests.unit.test_state_anew import copied
from tests.unit.test_state_builds import Builds

ONE, TWO = NodeId("builder/drone-1"), NodeId("builder/drone-2")


def lived(state: Builds, place: Path, seconds: float, **more: Any) -> dict[str, Any]:
    exported = read_exported(copied(state, place / "copy.db"))
    scenario = Scenario(exported.topology, "mine", 5, seconds, exported=exported, **more)
    found = Run(scenario).live()
    assert found["broken"] is None
    return found


def told(found: dict[str, Any], kind: str) -> list[str]:
    return [moment["words"] for moment in found["timeline"] if moment["kind"] == kind]


def went_back(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["package"]: each for each in found["summary"]["packages"]["went_back"]}


def a_long_queue(*packages: str, drones: int = 2, took_ms: int = 20_000) -> Builds:
    """Builds of which take so long."""
    state = Builds()
    swarm_of("a", "b", "c", state=state)
    made = [state.builder(f"drone-{n}") for n in range(1, drones + 1)]
    state.queue("x/old-1")
    assert state.take(made[0]) == ["x/old-1"]
    state.say(made[0], Outcome.BUILT, "x/old-1", duration_ms=took_ms)
    state.queue(*packages)
    return state


def test_what_a_builder_had_that_goes_is_built_by_another(tmp_path: Path) -> None:
    state = a_long_queue(*(f"x/p{n}-1" for n in range(4)))
    assert state.take(TWO, 8) == ["x/p0-1", "x/p1-1"]
    state.apply(b.StartBuild(TWO, "x/p0-1"))
    found = lived(state, tmp_path, 110.0, kill=("drone-2",), kill_at_s=2.0)
    assert told(found, "gone") == ["drone-2 loses power (drone-2 builds x/p0-1)"]
    words = told(found, "builds")
    assert "drone-2 is offline" in words
    assert any("(x/p0-1) of drone-2 goes back: its builder is offline" in word for word in words)
    assert any(word.startswith("x/p0-1 is built by drone-1, ") for word in words)
    back = went_back(found)["x/p0-1"]
    (time,) = back["times"]
    assert (time["builder"], time["begun"], back["builder"]) == ("drone-2", True, "drone-1")
    assert 50 < time["at_s"] < back["built_at_s"] < 110
    packages = found["summary"]["packages"]
    assert (packages["queued"], packages["received"]) == (4, 4)
    assert packages["brought_otherwise"] == 0
    assert (packages["builders_there"], packages["builders_gone"]) == (["drone-1"], ["drone-2"])
    assert found["summary"]["jobs"]["submitted"] == found["summary"]["jobs"]["run_again"] == 0
    shown = [*lines(found)]
    assert all(line.startswith("simulated") for line in shown)
    assert any("x/p0-1 went back at " in line and "; built by drone-1 at" in line
               for line in shown)  # fmt: skip


def test_without_builders_nothing_can_be_built_any_more(tmp_path: Path) -> None:
    state = a_long_queue("x/p0-1", "x/p1-1", "x/p2-1")
    state.queue("x/last-1", depends_on=(JobId("job x/p2-1"),))
    found = lived(state, tmp_path, 80.0, kill=("drone-1", "drone-2"), kill_at_s=5.0)
    packages = found["summary"]["packages"]
    assert (packages["received"], packages["needed"], packages["delegated"]) == (0, 4, 0)
    waiting = found["summary"]["waiting"]
    assert {(each["type"], each["placeable"]) for each in waiting} == {("package", False)}
    assert [each["count"] for each in waiting] == [3, 1]
    assert waiting[0]["gone"] == ("drone-1", "drone-2")
    shown = "\n".join(lines(found))
    assert "3 packages CANNOT be built any more, such as x/p0-1" in shown
    assert "could be built by drone-1, drone-2, not there" in shown


def test_a_builder_that_comes_back_goes_on_with_what_it_had(tmp_path: Path) -> None:
    state = a_long_queue("x/p0-1", drones=1)
    found = lived(
        state, tmp_path, 60.0, kill=("drone-1",), kill_at_s=5.0, back_after_s=10.0
    )  # fmt: skip
    assert told(found, "back") == ["drone-1 has power again"]
    assert went_back(found) == {}
    assert found["summary"]["packages"]["received"] == 1
    assert 30 < found["summary"]["packages"]["last_built_at_s"] < 45


def test_who_failed_a_package_does_not_get_it_here_either(tmp_path: Path) -> None:
    state = a_long_queue("x/odd-1", "x/even-1", "x/next-1")
    for node_id, package in ((ONE, "x/odd-1"), (TWO, "x/even-1")):
        held = state.take(node_id, 8)
        for each in held:
            state.say(node_id, Outcome.FAILED if each == package else Outcome.RETURNED, each)
    found = lived(state, tmp_path, 90.0, kill=("drone-2",), kill_at_s=2.0)
    packages = found["summary"]["packages"]
    assert (packages["received"], packages["blocked"], packages["failed_builds"]) == (2, 1, 0)
    (waiting,) = found["summary"]["waiting"]
    assert waiting["example"] == "x/odd-1"
    assert "after drone-1 failed it" in waiting["summary"]
    assert any("x/odd-1) blocked: " in words for words in told(found, "builds"))
    assert waiting["placeable"], "drone-1 may try it again when the block is over"


def test_blocks_end_when_they_would_have(tmp_path: Path) -> None:
    state = a_queue_of_packages()
    state.control(Control.PAUSE)
    bad = state.package("x/bad-1")
    assert bad.not_before is not None
    state.now = bad.not_before - 20_000
    state.apply(b.NoteBuilder(TWO, paused=True))
    found = lived(state, tmp_path, 40.0)
    (again,) = [words for words in told(found, "builds") if "not blocked" in words]
    assert again == "1 package (x/bad-1) not blocked any more"
    packages = found["summary"]["packages"]
    assert (packages["queued"], packages["blocked"], packages["built"]) == (5, 0, 0)
    assert (packages["needed"], packages["delegated"]) == (4, 1), "the queue is paused"
    assert "the queue of packages to be resumed" in found["summary"]["waiting"][0]["summary"]
    (session,) = packages["sessions"]
    assert (session["name"], session["queued"], session["completed"]) == ("night", 4, False)


def test_the_leader_and_a_builder_go_and_all_is_built_the_same_each_time(tmp_path: Path) -> None:
    state = a_long_queue(*(f"x/p{n}-1" for n in range(5)), took_ms=8_000)
    more = {"kill": ("a", "drone-1"), "kill_at_s": 3.0}
    found = lived(state, tmp_path, 100.0, **more)
    assert told(found, "gone")[0].startswith("a, drone-1 lose power (a leads; a votes; drone-1")
    assert found["summary"]["packages"]["received"] == 5
    assert found["summary"]["quorum"]["kept"]
    assert found == lived(state, tmp_path, 100.0, **more)


def test_what_a_sweeper_had_or_failed_is_as_it_was(tmp_path: Path) -> None:
    state = a_long_queue("x/p0-1", "x/p1-1")
    sweeper = state.builder("sweeper-1")
    for package in ("x/p0-1", "x/p1-1"):
        for drone in (ONE, TWO):
            assert state.take(drone) == [package]
            state.say(drone, Outcome.FAILED, package)
    assert state.take(sweeper) == ["x/p0-1"]
    state.say(sweeper, Outcome.FAILED, "x/p0-1")
    assert state.take(sweeper) == ["x/p1-1"]
    found = lived(state, tmp_path, 40.0)
    packages = found["summary"]["packages"]
    assert (packages["received"], packages["blocked"], packages["failed_builds"]) == (1, 1, 0)
    assert packages["brought_otherwise"] == 0
    (waiting,) = found["summary"]["waiting"]
    assert waiting["example"] == "x/p0-1"
    assert "drone-1, drone-2, sweeper-1 failed it" in waiting["summary"]


def test_a_member_that_builds_goes_with_its_node_and_another_builds_what_it_had(
    tmp_path: Path,
) -> None:
    state = Builds()
    swarm_of("a", "b", "c", state=state)
    own, other = NodeId("id-b"), NodeId("id-c")
    for node_id in (own, other):
        state.apply(b.PutBuilder(node_id))
        state.apply(b.NotePresence((node_id,), (), 1))
    state.queue("x/old-1", "x/p0-1", "x/p1-1", "x/p2-1")
    assert state.take(own) == ["x/old-1"]
    state.say(own, Outcome.BUILT, "x/old-1", duration_ms=30_000)
    assert state.take(other) == ["x/p0-1"]
    state.say(other, Outcome.FAILED, "x/p0-1")
    assert state.take(own, 8) == ["x/p0-1", "x/p1-1"]
    found = lived(state, tmp_path, 100.0, kill=("b",), kill_at_s=10.0)
    assert found["scenario"]["builders"] == []
    (gone,) = told(found, "gone")
    assert gone == "b loses power (b votes; b builds x/p0-1)"
    packages = found["summary"]["packages"]
    assert (packages["builders_there"], packages["builders_gone"]) == (["c"], ["b"])
    back = went_back(found)
    assert back["x/p1-1"]["builder"] == "c"
    assert back["x/p1-1"]["built_at_s"] is not None
    assert packages["failed_builds"] == 0, "what was before is not counted"
    assert found["summary"]["jobs"]["run_twice_at_once"] == 0
    (waiting,) = found["summary"]["waiting"]
    assert waiting["example"] == "x/p0-1", "c has failed it"
