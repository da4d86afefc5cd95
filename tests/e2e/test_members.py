"""Members come and go by an operator's hand: real daemons, asked as a person asks them."""

from __future__ import annotations

import re
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli import ROOT, Said, command, environment, swarmd
from tests.daemon import READY_TIMEOUT_S, runner_pids
from tests.e2e.test_swarm import end_lonely, said_by, start_lonely
from tests.swarms import Node, Swarm, joining, running_swarm, until, until_passes

LAN: dict[str, Any] = {"mesh": {"timing": "lan"}}
END_S = 60.0


@pytest.fixture
def three(tmp_path: Path) -> Iterator[Swarm]:
    with running_swarm(tmp_path, 3, **LAN) as swarm:
        yield swarm


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with running_swarm(tmp_path_factory.mktemp("kept"), 3, **LAN) as swarm:
        yield swarm


@pytest.fixture
def lasting(kept: Swarm) -> Swarm:
    """Three whose members nobody changes: who was ended by a test is there again for the next."""
    if down := [node for node in kept.nodes if not node.up]:
        kept.start(*down)
    kept.wait_whole()
    return kept


shares_a_swarm = pytest.mark.xdist_group("members")


def run(node: Node, *args: object) -> Said:
    return swarmd(*args, "--data-dir", node.data_dir)


def names(node: Node) -> dict[str, str]:
    return {n["name"]: n["role"] for n in node.status()["nodes"]}


def ended(node: Node) -> int:
    return node.daemon.process.wait(END_S)


def test_a_node_leaves_and_its_jobs_run_elsewhere(three: Swarm) -> None:
    leaving = three.followers()[0]
    others = [n for n in three.nodes if n is not leaving]
    again = three.folder / "again"
    job = leaving.run(
        f"test -e {again} || sleep 60; echo done", constraints=[f"node.name=={leaving.name}"]
    )
    until(lambda: leaving.console("GET", f"/jobs/{job}")["status"] == "running", "it does not run")
    free = leaving.run("sleep 2; hostname", max_retries=0)
    said = run(leaving, "leave", "--json")
    assert (said.status, said.json) == (0, {"left": leaving.name}), said
    assert ended(leaving) == 0
    assert not runner_pids(leaving.data_dir)
    until(lambda: set(names(others[0])) == {n.name for n in others}, "it is in the list yet")
    assert set(names(others[0]).values()) == {"voter"}
    # What was bound to it waits for it, and is not lost; what was not is done.
    until(lambda: others[0].console("GET", f"/jobs/{job}")["status"] == "pending", "it is lost")
    assert others[0].ended(free)["status"] == "completed"
    aside = leaving.data_dir / "set-aside"
    assert {"raft.db", "state.db", "identity", "node-id"} <= {p.name for p in aside.iterdir()}
    assert not (leaving.data_dir / "raft.db").exists()
    # The next start there is a new node's.
    before = (aside / "node-id").read_text()
    again.touch()
    leaving.settings = joining(leaving.settings, others[0])
    leaving.start()
    three.wait_whole()
    assert (leaving.data_dir / "node-id").read_text() != before
    assert others[0].ended(job)["status"] == "completed"


def test_the_leader_leaves_and_nobody_waits(three: Swarm) -> None:
    leader = three.leader()
    others = three.followers()
    said = run(leader, "leave")
    assert said.status == 0 and "has left its swarm" in said.err, said
    assert ended(leader) == 0
    assert three.leader(others) in others
    assert others[0].ended(others[0].run("true"))["status"] == "completed"


def test_the_last_two_leave_but_not_the_last(tmp_path: Path) -> None:
    with running_swarm(tmp_path, 2, **LAN) as swarm:
        first, second = swarm.nodes
        until(lambda: set(names(first).values()) == {"voter"}, "no two voters")
        assert run(first, "leave").status == 0
        assert ended(first) == 0
        until(lambda: names(second) == {"n2": "voter"}, "it is not alone")
        said = run(second, "leave")
        assert said.status == 1 and "the last node of its swarm" in said.err, said
        assert second.up
        assert second.ended(second.run("true"))["status"] == "completed"


def test_a_node_that_is_gone_is_removed_and_its_jobs_run_elsewhere(three: Swarm) -> None:
    gone = three.followers()[0]
    left = [n for n in three.nodes if n is not gone]
    said = run(left[0], "remove", gone.name)
    assert said.status == 1 and "is alive: `swarmd leave` on it" in said.err, said
    assert len(names(left[0])) == 3
    gone.end()  # its runner too: the host is off
    until(lambda: {n["name"]: n["status"] for n in left[0].status()["nodes"]}[gone.name] != "alive",
          "it is not seen to be gone")  # fmt: skip
    said = run(left[0], "remove", gone.name, "--json")
    assert said.status == 0 and said.json == {"removed": gone.name, "voters": 2}, said
    until(lambda: gone.name not in names(left[1]), "the other does not see it")
    again = run(left[0], "remove", gone.name)
    assert again.status == 1 and "no node of this swarm is called" in again.err, again
    # It comes back, is told, and ends.
    with pytest.raises(AssertionError, match="was removed from its swarm"):
        gone.start()
    assert gone.name not in names(left[0])


def test_a_live_node_is_removed_by_force_and_notices(three: Swarm) -> None:
    out = three.followers()[0]
    left = [n for n in three.nodes if n is not out]
    folder = three.folder / "marks"
    folder.mkdir()
    folder.chmod(0o777)
    three.folder.chmod(0o755)
    script = f"echo $$ >> {folder}/runs; while :; do touch {folder}/$$; sleep 0.1; done"
    job = out.run(script, constraints=[f"node.name!={n.name}" for n in left])
    until(lambda: out.console("GET", f"/jobs/{job}")["status"] == "running", "it does not run")
    said = run(left[0], "remove", out.name, "--force")
    assert said.status == 0, said
    assert ended(out) == 1
    assert "was removed from its swarm" in out.log() and "Move the data directory" in out.log()
    assert not runner_pids(out.data_dir)
    until(lambda: left[0].console("GET", f"/jobs/{job}")["status"] == "pending", "it is lost")
    # When it was given away, nothing of it ran any more.
    given_away = time.time()
    (pid,) = (folder / "runs").read_text().split()
    assert (folder / pid).stat().st_mtime < given_away - 0.3
    assert set(names(left[0]).values()) == {"voter"}


def test_the_leader_is_removed_by_another(three: Swarm) -> None:
    leader = three.leader()
    left = three.followers()
    said = run(left[0], "remove", leader.name, "--force")
    assert said.status == 0, said
    assert ended(leader) == 1
    assert three.leader(left) in left
    assert leader.name not in names(left[0])


@shares_a_swarm
def test_what_would_leave_no_quorum_is_refused(lasting: Swarm) -> None:
    leader = lasting.leader()
    dead, alive = lasting.followers()
    dead.kill()
    until(lambda: "losing one more stops writes" in leader.status()["standing"], "it is not seen")
    said = run(leader, "remove", alive.name, "--force")
    assert said.status == 1, said
    assert "1 of 2 voters would be there, and 2 are needed" in said.err
    assert f"Not there: {dead.name}" in said.err
    said = run(alive, "leave")
    assert said.status == 1 and "writes would stop for good" in said.err, said
    assert len(names(leader)) == 3 and alive.up
    assert leader.ended(leader.run("true"))["status"] == "completed"


def test_a_host_that_was_set_up_anew_takes_its_name_by_itself(three: Swarm) -> None:
    lost = three.followers()[0]
    left = [n for n in three.nodes if n is not lost]
    before = (lost.data_dir / "node-id").read_text()
    again = three.folder / "again"
    job = left[0].run(
        f"test -e {again} || sleep 60", constraints=[f"node.name=={lost.name}"], max_retries=0
    )
    until(lambda: left[0].console("GET", f"/jobs/{job}")["status"] == "running", "it does not run")
    lost.kill()
    lost.end()  # its runner too: the disk is gone
    again.touch()
    shutil.rmtree(lost.data_dir)
    lost.settings = joining(lost.settings, left[0])
    lost.start()
    three.wait_whole()
    assert set(names(left[0]).values()) == {"voter"} and lost.name in names(left[0])
    after = (lost.data_dir / "node-id").read_text()
    assert {n["id"] for n in left[1].status()["nodes"]} >= {after}
    assert before != after and before not in {n["id"] for n in left[1].status()["nodes"]}
    # What its former self ran is not lost.
    assert left[0].ended(job)["status"] == "completed"


def test_a_copy_of_a_host_gets_its_name_only_by_an_operators_word(
    three: Swarm, tmp_path: Path
) -> None:
    """Whoever has a name keeps it through a restart, a stop and a crash, however often another
    asks for it meanwhile."""
    held = three.followers()[0]
    asked = next(n for n in three.nodes if n is not held)
    copies = iter(range(100))

    def refused() -> str:
        folder = tmp_path / f"copy{next(copies)}"
        lonely = start_lonely(folder, held.name, asked.mesh_address, asked.token())
        try:
            assert lonely.wait(READY_TIMEOUT_S) == 1
        finally:
            end_lonely(lonely, folder)
        return said_by(folder)

    place = held.mesh_address
    assert f"another node is called {held.name}; give this one a name of its own" in refused()
    assert f"alive, at {place}; `swarmd leave` there frees the name" in refused()
    held.stop()
    assert f"`swarmd remove {held.name}` on a member frees the name" in refused()
    held.start()
    until(lambda: first_sees(asked, held.name), "it is not seen to be back")
    assert f"alive, at {place}" in refused()
    held.kill()
    until(lambda: not first_sees(asked, held.name), "it is not seen to be gone")
    assert f"was at {place} and is not there at present" in refused()
    held.start()
    three.wait_whole()
    held.end()
    until(lambda: not first_sees(asked, held.name), "it is not seen to be gone")
    assert run(asked, "remove", held.name).status == 0
    folder = tmp_path / "heir"
    lonely = start_lonely(folder, held.name, asked.mesh_address, asked.token())
    try:
        until(lambda: first_sees(asked, held.name), "the name is not free")
        # The other is the one that is refused from then on.
        with pytest.raises(AssertionError, match="was removed from its swarm"):
            held.start()
        assert first_sees(asked, held.name)
    finally:
        end_lonely(lonely, folder)


def test_a_copied_data_directory_is_refused_while_the_first_lives(three: Swarm) -> None:
    first = three.followers()[0]
    others = [n for n in three.nodes if n is not first]
    settings = {**first.settings, "node": {**first.settings["node"], "bind": ["127.0.0.4"]}}
    copy = Node(first.name, "127.0.0.4", three.folder / "copy", settings)
    first.daemon.process.send_signal(signal.SIGSTOP)
    shutil.copytree(first.data_dir, copy.data_dir, ignore=lambda folder, names: [
        name for name in names if not (Path(folder) / name).is_file()
        and not (Path(folder) / name).is_dir()
    ])  # fmt: skip
    first.daemon.process.send_signal(signal.SIGCONT)
    with closing(others[0].state()) as state:
        (before,) = state.execute("SELECT body FROM nodes WHERE name=?", (first.name,)).fetchall()
    with pytest.raises(AssertionError, match="another process runs under this node's id") as ended:
        try:
            copy.start()
        finally:
            copy.end()
    assert "Move" in str(ended.value) and str(copy.data_dir) in str(ended.value)
    assert all("another process runs under the id" in n.log() for n in others)
    # The first never noticed, and is where it was.
    three.wait_whole()
    assert first.ended(others[0].run("true", constraints=[f"node.name=={first.name}"]))
    for node in others:
        with closing(node.state()) as state:
            found = state.execute("SELECT body FROM nodes WHERE name=?", (first.name,)).fetchall()
        assert found == [before], node.name
    # Without the first it is the node, at another place.
    first.end()
    copy.start()
    try:
        here = [copy, *others]
        until(lambda: all(set(names(n).values()) == {"voter"} for n in here), "no three voters")
        until(lambda: first_sees(others[0], copy.name), "it is not seen")
        job = others[0].run("true", constraints=[f"node.name=={copy.name}"])
        assert copy.ended(job)["status"] == "completed"
    finally:
        copy.end()


@shares_a_swarm
def test_bad_words_change_nothing(lasting: Swarm) -> None:
    first = lasting.nodes[0]
    for args, words in (
        (("remove", "nobody"), "there are n1, n2, n3"),
        (("remove", "n1", "--force"), "that is this node itself"),
        (("promote", "n2"), "n2 votes already"),
        (("promote", "x" * 500), "no node of this swarm is called"),
        (("ping", "n2", "--count", "0"), "from 1 to 20"),
        (("ping", "n9"), "no node of this swarm"),
    ):
        said = run(first, *args)
        assert said.status == 1 and words in said.err, (args, said)
    assert run(first, "remove").status == 2
    url = "/members/remove"
    answer = first.request("POST", url, {"node": "n2", "force": True}, surface="console")
    assert answer.status == 403
    answer = first.request("POST", "/keyring/rotate", surface="console")
    assert answer.status == 403
    lasting.wait_whole()


def test_a_learner_is_promoted_at_once(tmp_path: Path) -> None:
    with running_swarm(tmp_path, 4, mesh={"timing": "lan", "voters": 3}) as swarm:
        first = swarm.nodes[0]
        until(lambda: sorted(names(first).values()) == ["learner", "voter", "voter", "voter"],
              "they are not three voters and a learner")  # fmt: skip
        learner = next(name for name, role in names(first).items() if role == "learner")
        said = run(first, "promote", learner)
        assert said.status == 0 and "4 vote, 1 of them may be down at once" in said.err, said
        assert "an even number of voters" in said.err
        until(lambda: set(names(first).values()) == {"voter"}, "it does not vote")


def test_a_voter_that_leaves_leaves_its_vote_to_a_learner(tmp_path: Path) -> None:
    with running_swarm(tmp_path, 4, mesh={"timing": "lan", "voters": 3}) as swarm:
        first = swarm.nodes[0]
        until(lambda: sorted(names(first).values()) == ["learner", "voter", "voter", "voter"],
              "they are not three voters and a learner")  # fmt: skip
        voter = next(n for n in swarm.followers() if names(first)[n.name] == "voter")
        asked = next(n for n in swarm.nodes if n is not voter)
        assert run(voter, "leave").status == 0
        assert list(names(asked).values()) == ["voter"] * 3


@shares_a_swarm
def test_the_key_of_the_gossip_is_changed(lasting: Swarm) -> None:
    first = lasting.nodes[0]
    before = run(first, "keyring", "--json").json
    assert len(before["ring"]["keys"]) == 1 and len(before["nodes"]) == 3
    for node in lasting.nodes:
        said = run(node, "keyring", "rotate", "--json")
        assert said.status == 0, said
        assert said.json["nodes"] == 3 and not said.json["finished"]
    after = run(lasting.nodes[2], "keyring", "--json").json
    assert after["ring"]["generation"] == before["ring"]["generation"] + 9
    assert set(after["ring"]["keys"]).isdisjoint(before["ring"]["keys"])
    assert {n["generation"] for n in after["nodes"]} == {after["ring"]["generation"]}
    assert "used for sealing" in run(first, "keyring").out
    # Who was away has the new one when it is back.
    away = lasting.followers()[0]
    away.stop()
    asked = lasting.leader([n for n in lasting.nodes if n is not away])
    assert run(asked, "keyring", "rotate").status == 0
    away.start()
    newest = run(asked, "keyring", "--json").json["ring"]
    until(lambda: run(away, "keyring", "--json").json["ring"] == newest, "it has the old ones")


def steps(node: Node) -> int:
    """Of changes of the gossip's keys, as far as its whole log tells."""
    log = (node.folder / "swarmd.stderr").read_text(errors="replace")
    return log.count("the keys of the gossip changed")


@shares_a_swarm
def test_a_change_that_the_leader_did_not_survive_is_finished_by_the_next(lasting: Swarm) -> None:
    leader = lasting.leader()
    left = lasting.followers()
    before = steps(leader)
    asked = subprocess.Popen(
        command("keyring", "rotate", "--data-dir", left[0].data_dir), env=environment(),
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    # A step takes as long as an answer of the console: the leader's log tells soon enough.
    began = time.monotonic()
    while steps(leader) == before:
        assert time.monotonic() - began < 20, "no first step"
    leader.kill()
    asked.wait(60)
    lasting.leader(left)
    cut = left[0].console("GET", "/keyring")["ring"]
    said = run(left[0], "keyring", "rotate", "--json")
    assert said.status == 0, said
    assert said.json["finished"] == (len(cut["keys"]) == 2) and len(said.json["ring"]["keys"]) == 1
    leader.start()
    until(lambda: run(leader, "keyring", "--json").json["ring"] == said.json["ring"], "it is old")


@shares_a_swarm
def test_ways_and_clocks_are_measured(lasting: Swarm) -> None:
    first = lasting.nodes[0]

    def measured() -> None:
        said = run(first, "ping", "--json", "--count", "2")
        assert said.status == 0, said
        assert [p["node"] for p in said.json["peers"]] == ["n2", "n3"]
        for peer in said.json["peers"]:
            assert peer["answered"] == 2 and 0 < peer["min_ms"] <= peer["avg_ms"] <= peer["max_ms"]
            assert abs(peer["clock_ahead_ms"]) < 500 and peer["note"] == ""

    until_passes(measured)
    said = run(first, "ping", "n3", "--from", "n2")
    assert said.status == 0 and said.out.startswith("from n2\n") and "n3" in said.out, said
    lasting["n3"].kill()
    said = run(first, "ping")
    assert said.status == 1 and "0/3" in said.out, said


def test_the_page_for_operators_is_as_it_says(three: Swarm) -> None:
    """Each block of commands on the page, in a swarm that is as the page assumes."""
    page = (ROOT / "docs" / "operations.md").read_text()
    looking, leaving, removing, rotating, lost = (
        [shlex.split(line.removeprefix("$ swarmd")) for line in block.splitlines()]
        for block in re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    )
    first, second, third = three.nodes
    for words in (*looking, *rotating):
        said = run(first, *words)
        assert said.status == 0 and said.out, (words, said)
    third.end()
    until(lambda: not first_sees(first, "n3"), "n3 is not seen to be gone")
    for words in removing:
        assert run(first, *words).status == 0
    second.kill()
    until(lambda: first.status()["leader"] is None, "there is a leader yet")
    assert [words[0] for words in lost] == ["doctor", "down", "recover", "up"]
    assert run(first, *lost[0]).status == 1
    assert run(first, *lost[1]).status == 0
    assert run(first, *lost[2], "--yes-majority-is-lost").status == 0
    first.start()
    second.start()
    until(lambda: set(names(first).values()) == {"voter"} and len(names(first)) == 2,
          "they are not two voters again", 60.0)  # fmt: skip
    for words in leaving:
        assert run(second, *words).status == 0
    assert set(names(first)) == {"n1"}


def first_sees(node: Node, name: str) -> bool:
    return any(n["name"] == name and n["status"] == "alive" for n in node.status()["nodes"])
