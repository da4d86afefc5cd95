"""`swarmd sim` as a person calls it: what it prints, how it ends, and what it leaves alone."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from swarmd.domain.builds import Outcome
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    AttemptStatus,
    Constraint,
    GroupId,
    JobId,
    NodeId,
    Resources,
    Result,
)
from swarmd.state import build_commands as b
from swarmd.state import commands as c
from tests.cli import ROOT, Said, command, environment, swarmd
from tests.unit.test_sim_exported import SECRET, ran, swarm_of
from tests.unit.test_state_anew import copied
from tests.unit.test_state_builds import Builds
from tests.unit.test_state_jobs import State

PAGE = (ROOT / "docs" / "simulation.md").read_text()
LIVED_S_MAX = 170.0
SHORT = ("--minutes", "0.5", "--jobs", "60", "--job-seconds", "4")


def simulated(words: list[str], env: dict[str, str], place: Path) -> Said:
    """`swarmd sim`, with more time than other commands have: minutes are lived in it."""
    done = subprocess.run(
        command(*words), env=environment(env), cwd=place, timeout=LIVED_S_MAX, check=False,
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def elsewhere(tmp_path: Path) -> dict[str, str]:
    """Where temporary files go, and a data directory that nothing may touch."""
    for name in ("temporary", "data"):
        (tmp_path / name).mkdir()
    return {"TMPDIR": str(tmp_path / "temporary"), "SWARMD_DATA_DIR": str(tmp_path / "data")}


def untouched(place: Path) -> bool:
    return not [*(place / "temporary").iterdir(), *(place / "data").iterdir()]


def test_what_becomes_of_the_queue_when_a_machine_goes(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    said = simulated(["sim", *SHORT, "--kill", "n1", "--at", "10"], elsewhere, tmp_path)
    assert said.status == 0, said.err
    told = said.out.splitlines()
    assert all(line.startswith("simulated") for line in told)
    assert "5 equal nodes for 0.5 min, seed 1" in told[0]
    assert any("n1 loses power (n1 leads; n1 votes)" in line for line in told)
    assert any("quorum   kept" in line for line in told)
    assert said.err.startswith("simulated: 5 nodes for 0.5 min; it takes about ")
    assert untouched(tmp_path)


def test_the_same_seed_prints_the_same_to_the_byte(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    def run(hash_seed: str) -> Said:
        befalls = ["--faults", "heavy", "--kill", "n2,n3", "--back", "5", "--seed", "4"]
        env = {**elsewhere, "PYTHONHASHSEED": hash_seed}
        return simulated(["sim", "--json", *SHORT, *befalls], env, tmp_path)

    one, other = run("1"), run("2")
    assert (one.status, other.status) == (0, 0), one.err + other.err
    assert one.out == other.out
    assert one.json["simulated"] is True
    assert one.json["scenario"]["seed"] == 4


def test_the_state_that_a_swarm_exported_is_lived_on(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    state = swarm_of("alfa", "bravo", "charlie")
    state.submit("secret-job", type="render", env={"TOKEN": SECRET})
    copy = copied(state, tmp_path / "copy.db")
    before = copy.read_bytes()
    words = ["sim", "--from", str(copy), "--minutes", "0.3", "--job-seconds", "2"]
    said = simulated(words, elsewhere, tmp_path)
    assert said.status == 0, said.err
    assert "simulated  jobs     1 submitted, 1 completed" in said.out
    assert SECRET not in said.out + said.err
    assert copy.read_bytes() == before
    assert untouched(tmp_path)


def test_builders_go_and_the_document_tells_what_becomes_of_their_packages(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    copy = copied(tuesday(), tmp_path / "copy.db")
    words = ["sim", "--from", str(copy), "--minutes", "1.5", "--json", "--kill"]
    said = simulated([*words, "drone-01,sweeper-01", "--at", "5"], elsewhere, tmp_path)
    assert said.status == 0, said.err
    found = said.json
    assert found["simulated"] is True
    assert found["scenario"]["builders"] == ["drone-01", "drone-02", "sweeper-01"]
    packages = found["summary"]["packages"]
    assert packages["builders_gone"] == ["drone-01", "sweeper-01"]
    assert "dev-libs/openssl-3.2.0" in {each["package"] for each in packages["went_back"]}
    (session,) = packages["sessions"]
    assert (session["name"], session["queued"]) == ("world", 5)
    refused = simulated([*words, "drone-09"], elsewhere, tmp_path)
    assert (refused.status, refused.out) == (2, "")
    assert "ceres, drone-01, drone-02, sweeper-01" in refused.err
    assert untouched(tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--kill", "n9"), "there are n1, n2, n3, n4, n5"),
        (("--kill", "n1,drone-01"), "'drone-01' is no node, group or label=value"),
        (("--nodes", "4618"), "1 to 4617 nodes, not 4618"),
        (("--nodes", "-1"), "1 to 4617 nodes, not -1"),
        (("--nodes", "0"), "1 to 4617 nodes, not 0"),
        (("--minutes", "-2"), "0.05 to 1440 minutes, not -2"),
        (("--minutes", "nan"), "0.05 to 1440 minutes, not nan"),
        (("--jobs", "-4"), "jobs come a minute, not -4"),
        (("--job-seconds", "0"), "--job-seconds is between"),
        (("--at", "5"), "name them"),
        (("--kill", "n1", "--at", "500"), "choose a moment within"),
        (("--kill", "n1", "--back", "500"), "would be back"),
        (("--nodes", "3", "--from", "x"), "choose one"),
        (("--from", "no-such-file"), "no-such-file cannot be read: No such file"),
        (("--from", __file__), "is no copy that `swarmd raft snapshot save` made"),
        (("--topology", "no-such-file"), "no-such-file cannot be read: No such file"),
        (("--faults", "no-such-file"), "no-such-file cannot be read: No such file"),
        (("--faults", "Heavy"), "; --faults is none, light, heavy or a file with a schedule"),
        (("--faults", __file__), "fault 1 cannot be read"),
    ],
    ids=lambda each: " ".join(each)[-30:] if isinstance(each, tuple) else "",
)
def test_words_that_make_no_scenario_are_refused_in_one_line(
    tmp_path: Path, elsewhere: dict[str, str], args: tuple[str, ...], words: str
) -> None:
    said = swarmd("sim", *args, env=elsewhere, cwd=tmp_path)
    assert (said.status, said.out) == (2, "")
    assert len(said.err.splitlines()) == 1
    assert words in said.err
    assert untouched(tmp_path)


def test_ctrl_c_ends_it_at_once_with_what_was_seen(
    tmp_path: Path, elsewhere: dict[str, str]
) -> None:
    process = subprocess.Popen(
        command("sim", "--minutes", "1440", "--json"), env=environment(elsewhere),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if "lived in" in line:
                break
        process.send_signal(signal.SIGINT)
        sent = time.monotonic()
        out, _ = process.communicate(timeout=30)
        assert time.monotonic() - sent < 15
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    found = json.loads(out)
    assert found["ended"] == "interrupted"
    assert 0 < found["lasted_s"] < 86_400
    assert found["summary"]["quorum"]["kept"]
    assert untouched(tmp_path)


def monday() -> State:
    """The swarm of the page: five nodes, three of which vote, with a queue."""
    state = swarm_of("atlas", "boreas", "ceres", "dione", "eos")
    done = {"status": AttemptStatus.COMPLETED, "result": Result(exit_code=0)}
    for n in range(12):
        state.submit(f"nightly-{n}", type="nightly")
        ran(state, f"nightly-{n}", "atlas", 15 + 3 * n, **done)
    for n in range(30):
        state.submit(f"night-{n}", type="nightly")
    pinned = Constraint("node.name", "==", "ceres")
    for n in range(6):
        state.submit(f"train-{n}", type="train", resources=Resources(gpus=1),
                     constraints=(pinned,))  # fmt: skip
    for n, node in enumerate(("atlas", "boreas", "ceres", "dione", "eos") * 2):
        state.assign(f"night-{n}", f"id-{node}")
        attempt_id = state.job(f"night-{n}").attempt_id
        assert attempt_id is not None
        report = c.AttemptReport(attempt_id, 4000)
        state.apply(c.ReportAttempts(NodeId(f"id-{node}"), (report,)))
    return state


def tuesday() -> Builds:
    """The other swarm of the page: three nodes, two drones and a sweeper, and a session."""
    state = Builds()
    swarm_of("atlas", "boreas", "ceres", state=state)
    one, two = state.builder("drone-01"), state.builder("drone-02")
    state.builder("sweeper-01")
    world = GroupId("session-1")
    state.apply(c.CreateGroup(Group(world, GroupKind.SESSION, labels={"name": "world"})))
    for package, took_s in (("dev-libs/openssl-3.1.9", 50), ("app-editors/vim-9.0", 20)):
        state.queue(package, session=world)
        assert state.take(one) == [package]
        state.say(one, Outcome.BUILT, package, duration_ms=1000 * took_s)
    libs = ("dev-libs/openssl-3.2.0", "net-libs/nghttp2-1.57")
    state.queue("app-misc/broken-1", *libs, "app-editors/vim-9.1", session=world)
    state.queue("net-misc/curl-8.5", session=world,
                depends_on=tuple(JobId(f"job {lib}") for lib in libs))  # fmt: skip
    assert state.take(one) == ["app-misc/broken-1"]
    state.say(one, Outcome.FAILED, "app-misc/broken-1")
    assert state.take(one, 8) == [*libs]
    state.apply(b.StartBuild(one, libs[0]))
    state.now += 15_000
    state.apply(c.PutSetting("a", b"b"))
    assert state.take(two) == ["app-misc/broken-1"]
    return state


@pytest.mark.parametrize("words", re.findall(r"^\$ swarmd (sim .*)$", PAGE, re.MULTILINE))
def test_the_commands_of_the_page_print_what_it_shows(
    tmp_path: Path, elsewhere: dict[str, str], words: str
) -> None:
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (tmp_path / "two-sites.toml").write_text(toml)
    copied(monday(), tmp_path / "monday.db")
    copied(tuesday(), tmp_path / "tuesday.db")
    said = simulated(shlex.split(words), elsewhere, tmp_path)
    assert said.status == 0, said.err
    shown = PAGE.split(f"$ swarmd {words}\n")[1].split("```")[0].splitlines()
    assert as_shown(said.out.splitlines(), shown) == shown
    assert untouched(tmp_path)


def as_shown(told: list[str], shown: list[str]) -> list[str]:
    """What was told, with `…` for what the page leaves out by a line that is nothing else."""
    seen, left = [], [*told]
    for line, following in zip(shown, [*shown[1:], None], strict=True):
        if line == "…":
            seen.append(line)
            while left and left[0] != following:
                left.pop(0)
        elif left:
            seen.append(left.pop(0))
    return seen + left
