"""`swarmd raft` on a real swarm of three: its standing, who leads, backup, and the day after."""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.cli import ROOT, Said, command, environment, swarmd
from tests.daemon import STOP_TIMEOUT_S, Daemon, Response, end_runner, start_daemon
from tests.swarms import Node, Swarm, joining, running_swarm, until, until_passes

pytestmark = pytest.mark.xdist_group("swarm")
PAGE = (ROOT / "docs" / "consensus.md").read_text()
BLOCKS = re.findall(r"^```(console|sh)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
DATA_DIR = "/var/lib/swarmd"
"""As the page has it."""
LOCAL = {"X-Swarm-Consistency": "local"}
STALENESS = "x-swarm-staleness-ms"
LEADER_WAIT_S = 10.0
"""So long a request waits for a leader that needs one; the others do not."""


def say(node: Node, *args: object, cwd: Path | None = None) -> Said:
    return swarmd(*args, env={"SWARMD_DATA_DIR": str(node.data_dir)}, cwd=cwd)


BODIES: dict[str, Any] = {
    "/jobs/claim": {"executor_id": "e1"},
    "/jobs/bulk": [
        {"type": "t", "priority": "background", "binary_url": "http://localhost/",
         "binary_sha256": "a" * 64}
    ] * 250,
    "/jobs": {"type": "t", "program": "true"},
}  # fmt: skip


def refusal(node: Node, method: str, path: str, surface: str) -> Response:
    body = BODIES[path] if method == "POST" else None
    return node.request(method, path, body, surface=surface)


def leaderless(node: Node) -> None:
    until(lambda: node.status()["leader"] is None, f"{node.name} still knows a leader")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Nobody's node comes or goes in the tests that share it."""
    with running_swarm(tmp_path_factory.mktemp("raft-cli"), first=11) as swarm:
        yield swarm


def test_every_node_shows_the_whole_log(swarm: Swarm) -> None:
    swarm.wait_level()
    for node in swarm.nodes:
        until_passes(partial(check_shown, swarm, node))


def check_shown(swarm: Swarm, node: Node) -> None:
    leader = swarm.leader()
    seen = say(node, "raft", "status", "--json").json
    assert (seen["node"], seen["leader"], seen["note"]) == (node.name, leader.name, "")
    assert seen["role"] == ("leader" if node is leader else "follower")
    assert (seen["voters"], seen["learners"]) == (["n1", "n2", "n3"], [])
    assert {(m["name"], m["match"], m["behind"]) for m in seen["members"]} == {
        (n.name, seen["last"], 0) for n in swarm.nodes
    }
    assert isinstance(seen["staleness_ms"], int)
    told = say(node, "raft", "status").out
    assert re.search(rf"^leader +{leader.name}, term {seen['term']}$", told, re.MULTILINE)
    assert "3 of 3 voters are there, 2 are needed" in told
    assert "standing 3 of 3 voters" in say(node, "status").out


def test_leadership_goes_where_it_is_told_from_any_node(swarm: Swarm) -> None:
    for asked, to in (("n1", "n3"), ("n1", "n2"), ("n3", "n1")):
        said = say(swarm[asked], "raft", "transfer", to)
        assert (said.status, said.err) == (0, "")
        assert re.fullmatch(rf"{to} leads, term \d+\n", said.out)
        assert swarm.leader().name == to
    assert "n1 leads already" in say(swarm["n2"], "raft", "transfer", "n1").out
    done = say(swarm["n2"], "raft", "transfer", "--json").json
    assert (done["before"], done["leader"] != "n1") == ("n1", True)
    refused = say(swarm["n2"], "raft", "transfer", "n9")
    assert (refused.status, refused.out) == (1, "")
    assert "'n9'; there are n1, n2, n3" in refused.err
    # The console's port is open on loopback to whoever is on the host: that is not enough.
    over_tcp = swarm["n1"].request("POST", "/raft/transfer", {}, surface="console")
    assert over_tcp.status == 403


def test_a_copy_is_whole_from_any_node_and_given_to_its_owner_alone(
    swarm: Swarm, tmp_path: Path
) -> None:
    ids = {swarm.nodes[n % 3].run("true") for n in range(6)}
    for job_id in ids:
        swarm["n1"].ended(job_id)
    swarm.wait_level()
    for node in swarm.nodes:
        file = tmp_path / f"{node.name}.db"
        before = node.applied()
        told = say(node, "raft", "snapshot", "save", file, "--json").json
        data = file.read_bytes()
        assert told["sha256"] == hashlib.sha256(data).hexdigest()
        assert told["size_bytes"] == len(data) and before <= told["index"] <= node.applied()
        assert file.stat().st_mode & 0o777 == 0o600
        with closing(sqlite3.connect(file)) as copy:
            assert copy.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            assert ids <= {row[0] for row in copy.execute("SELECT id FROM jobs")}
        again = say(node, "raft", "snapshot", "save", file)
        assert (again.status, "is there already" in again.err) == (1, True)
        assert [p.name for p in (node.data_dir / "copies").glob("backup*")] == []
        refused = node.request("GET", "/raft/snapshot", surface="console")
        assert refused.status == 403
    with closing(sqlite3.connect(tmp_path / "n1.db")) as copy:
        assert copy.execute("SELECT 1 FROM settings WHERE key = 'admin_key'").fetchone()


def test_local_reads_say_how_stale_they_are_on_every_surface(swarm: Swarm) -> None:
    job_id = swarm["n1"].run("echo seen")
    swarm["n2"].ended(job_id)
    swarm.wait_level()
    for node in swarm.nodes:
        for surface in ("jobqueue", "console"):
            for path in ("/health", "/jobs", f"/jobs/{job_id}", f"/jobs/{job_id}/logs"):
                fresh = node.request("GET", path, surface=surface)
                assert (fresh.status, STALENESS in fresh.headers) == (200, False)
                local = node.request("GET", path, surface=surface, headers=LOCAL)
                assert local.status == 200
                assert 0 <= int(local.headers[STALENESS]) < 5000
                wrong = node.request(
                    "GET", path, surface=surface, headers={"X-Swarm-Consistency": "some"}
                )
                error = wrong.json["error"]
                said = error if surface == "jobqueue" else error["message"]
                assert (wrong.status, "linearizable" in said) == (400, True)


def test_a_log_is_followed_on_another_node_through_the_restart_of_its_own(
    swarm: Swarm, tmp_path: Path
) -> None:
    reader = swarm.leader()
    runs_on = swarm.followers()[0]
    job_id = reader.run(
        "for n in 1 2 3 4 5 6 7 8; do echo $n; sleep 0.5; done",
        constraints=[f"node.name=={runs_on.name}"], disconnect_seconds=60,
    )  # fmt: skip
    out, err = tmp_path / "out", tmp_path / "err"
    with out.open("w") as stdout, err.open("w") as stderr:
        following = subprocess.Popen(
            command("logs", "-f", job_id), stdout=stdout, stderr=stderr,
            env=environment({"SWARMD_DATA_DIR": str(reader.data_dir)}),
        )  # fmt: skip
    with following:
        try:
            until(lambda: out.read_text().count("\n") >= 2, "the log is not followed")
            runs_on.kill()
            runs_on.start()
            assert following.wait(120) == 0, err.read_text()
        finally:
            following.kill()
    assert (out.read_text(), err.read_text()) == ("1\n2\n3\n4\n5\n6\n7\n8\n", "")
    swarm.wait_whole()


def test_without_a_majority_what_needs_none_answers_and_the_rest_is_refused(
    tmp_path: Path,
) -> None:
    with running_swarm(tmp_path, first=21) as swarm:
        last = swarm["n3"]
        jobs = {node.name: node.run(f"echo by {node.name}") for node in swarm.nodes}
        ran_on = {swarm["n1"].ended(job_id)["node"]: job_id for job_id in jobs.values()}
        swarm.wait_level()
        swarm["n1"].kill()
        swarm["n2"].kill()
        leaderless(last)
        # That nobody leads it knows at once, and in a second or two that nobody is there.
        words = "reaches 1 of 3 voters, 2 are needed"
        until(lambda: words in say(last, "raft", "status").out, "it does not say what is missing")
        seen = say(last, "raft", "status")
        assert (seen.status, "leader   none is known" in seen.out) == (0, True)
        assert "nobody can tell" in seen.err
        for surface, paths in {
            "jobqueue": ("/health",),
            "console": ("/health", "/status", "/nodes", "/raft", "/config"),
        }.items():
            for path in paths:
                expected = 503 if path == "/health" else 200
                began = time.monotonic()
                assert last.request("GET", path, surface=surface).status == expected
                assert time.monotonic() - began < LEADER_WAIT_S
        for surface in ("jobqueue", "console"):
            for node_name, job_id in ran_on.items():
                log = last.request("GET", f"/jobs/{job_id}/logs", surface=surface)
                # Where the node is gone, the result has it.
                assert (log.status, log.body.startswith(b"by n")) == (200, True), node_name
            unknown = last.request("GET", "/jobs/none/logs", surface=surface)
            assert (unknown.status, unknown.headers["retry-after"]) == (503, "1")
        for path in ("/jobs", "/admin/stats", "/admin/executors", "/metrics"):
            began = time.monotonic()
            local = last.request("GET", path, headers=LOCAL)
            assert (local.status, int(local.headers[STALENESS]) > 0) == (200, True)
            assert time.monotonic() - began < LEADER_WAIT_S
        asked = [("GET", "/jobs", "jobqueue"), ("GET", "/jobs", "console"),
                 ("POST", "/jobs/claim", "jobqueue"), ("POST", "/jobs/bulk", "jobqueue"),
                 ("POST", "/jobs", "console")]  # fmt: skip
        with ThreadPoolExecutor(len(asked)) as pool:
            for refused in pool.map(lambda one: refusal(last, *one), asked):
                assert (refused.status, refused.headers["retry-after"]) == (503, "1"), refused.body
        began = time.monotonic()
        said = say(last, "raft", "transfer")
        assert (said.status, "nothing to hand over" in said.err) == (1, True)
        assert say(last, "raft", "snapshot", "save", tmp_path / "copy.db").status == 0
        assert say(last, "down", "--jobs").status == 0
        assert time.monotonic() - began < 60


@contextmanager
def restored_daemon(folder: Path, data_dir: Path, **settings: Any) -> Iterator[Daemon]:
    daemon = start_daemon(folder, data_dir=data_dir, **settings)
    try:
        yield daemon
    finally:
        daemon.end()


def test_a_restored_swarm_goes_on_and_never_meets_the_old_one(tmp_path: Path) -> None:
    with running_swarm(tmp_path / "old", first=31) as swarm:
        n1 = swarm["n1"]
        done = n1.run("echo result")
        n1.ended(done)
        held = [node.run("sleep 300") for node in swarm.nodes]
        until(
            lambda: (
                [j["status"] for j in n1.console("GET", "/jobs?status=running")["jobs"]]
                == ["running"] * 3
            ),
            "the jobs do not run",
        )
        key = say(n1, "admin-key").out
        file = tmp_path / "copy.db"
        assert say(n1, "raft", "snapshot", "save", file).status == 0
        refused = say(n1, "raft", "restore", file)
        assert (refused.status, "another swarmd runs" in refused.err) == (1, True)
        for node in swarm.nodes:
            node.kill()
        for node in swarm.nodes:
            end_runner(node.data_dir)
        refused = say(n1, "raft", "restore", file)
        assert (refused.status, "is not empty" in refused.err) == (1, True)
        new_dir = tmp_path / "new" / "data"
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        told = swarmd("raft", "restore", file, "--sha256", sha256, "--data-dir", new_dir, "--json")
        assert told.status == 0, told.err
        assert told.json["nodes_removed"] == ["n1", "n2", "n3"]
        assert told.json["jobs_given_back"] == 3
        old_id = swarm_id(n1)
        assert told.json["cluster_id"] != old_id
        # At the address, under the name, with the settings of the node that it takes the place of.
        with restored_daemon(tmp_path / "new", new_dir, **n1.settings) as daemon:
            new = Node("n1", n1.address, tmp_path / "new", n1.settings, daemon)
            assert say(new, "admin-key").out == key
            assert [n["name"] for n in new.status()["nodes"]] == ["n1"]
            assert new.ask("GET", f"/jobs/{done}")["stdout"] == "result\n"
            for job_id in held:
                job = new.ask("GET", f"/jobs/{job_id}")
                assert "restored from a copy" in str(job["attempts"]), job
            # Two of three are a majority: the old swarm lives on, without its first node.
            swarm.start(swarm["n2"], swarm["n3"])
            old = swarm["n2"]
            until(lambda: old.status()["leader"] in ("n2", "n3"), "the old ones have no leader")
            new.run("echo new")
            old.run("echo old")
            assert [n["name"] for n in new.status()["nodes"]] == ["n1"]
            dead = {n["name"] for n in old.status()["nodes"] if n["status"] == "dead"}
            assert dead == {"n1"}
            assert (swarm_id(old), swarm_id(new)) == (old_id, told.json["cluster_id"])
            theirs = {j["id"] for j in old.console("GET", "/jobs")["jobs"]}
            ours = {j["id"] for j in new.console("GET", "/jobs")["jobs"]}
            assert len(theirs - ours) == len(ours - theirs) == 1
            # An empty node finds its way into the new one.
            with restored_daemon(
                tmp_path / "more", tmp_path / "more" / "data",
                node={"name": "n4", "bind": ["127.0.0.34"]},
                mesh={"port": 0, "join": [n1.mesh_address], "token": new.token()},
            ):  # fmt: skip
                until(
                    lambda: (
                        {(n["name"], n["status"]) for n in new.status()["nodes"]}
                        == {("n1", "alive"), ("n4", "alive")}
                    ),
                    "n4 does not come in",
                )


def swarm_id(node: Node) -> str:
    return str(node.status()["cluster_id"]) if node.up else _stored_id(node)


def _stored_id(node: Node) -> str:
    with closing(node.state()) as conn:
        return bytes(
            conn.execute("SELECT value FROM settings WHERE key = 'cluster_id'").fetchone()[0]
        ).decode()


def test_files_that_cannot_be_trusted_end_the_node_with_the_words_of_the_page(
    tmp_path: Path,
) -> None:
    with running_swarm(tmp_path, first=51) as swarm:
        n1, n3 = swarm["n1"], swarm["n3"]
        until(lambda: n3.status()["leader"], "no leader")
        n3.stop()
        raft_db, state_db = n3.data_dir / "raft.db", n3.data_dir / "state.db"
        n3.start()
        swarm.wait_level()
        n3.stop()
        newest = {path: path.read_bytes() for path in (raft_db, state_db)}
        damage = bytes(200)
        for path, content, words in (
            (raft_db, damage + newest[raft_db][200:], "cannot be trusted"),
            (state_db, damage + newest[state_db][200:], "cannot be opened"),
        ):
            path.write_bytes(content)
            with pytest.raises(AssertionError, match=words):
                n3.start()
            assert words in PAGE.replace("\n", " ")
            assert path.read_bytes() == content
            path.write_bytes(newest[path])
        # As the page says: what there was is kept, and a new node takes its place.
        shutil.move(n3.data_dir, tmp_path / "damaged")
        settings = joining({**n3.settings, "node": {**n3.settings["node"], "name": "n4"}}, n1)
        fresh = Node("n4", n3.address, n3.folder, settings)
        swarm.nodes = [n1, swarm["n2"], fresh]
        fresh.start()
        swarm.wait_level()

        def told() -> bool:  # once gossip has told the new node that n3 said farewell
            rows = {n["name"]: (n["status"], n["role"]) for n in fresh.status()["nodes"]}
            return (rows["n3"], rows["n4"][0]) == (("left", "voter"), "alive")

        until(told, "n3, which was stopped, is not seen as one that left")


@pytest.mark.parametrize("which", ["log", "both"])
def test_a_node_that_an_older_copy_was_put_back_on_takes_its_place_as_another(
    tmp_path: Path, which: str
) -> None:
    """The log alone shows at the start; where all files are as old, the others prove it."""
    with running_swarm(tmp_path, first=55 if which == "log" else 58) as swarm:
        n1, n3 = swarm["n1"], swarm["n3"]
        until(lambda: n3.status()["leader"], "no leader")
        swarm.wait_level()
        n3.stop()
        files = [n3.data_dir / "raft.db"]
        if which == "both":
            files.append(n3.data_dir / "state.db")
        old = {path: path.read_bytes() for path in files}
        was = (n3.data_dir / "node-id").read_text()
        n3.start()
        acknowledged = [n1.run("true") for _ in range(3)]
        for job_id in acknowledged:
            n1.ended(job_id)
        swarm.wait_level()
        n3.stop()
        for path, content in old.items():
            path.write_bytes(content)
        n3.start()
        swarm.wait_level()

        def places() -> dict[str, tuple[str, str]]:
            return {n["name"]: (n["status"], n["role"]) for n in n1.status()["nodes"]}

        voter = ("alive", "voter")
        until(lambda: places() == {"n1": voter, "n2": voter, "n3": voter}, "n3 does not vote")
        assert (n3.data_dir / "node-id").read_text() != was
        assert (n3.data_dir / "set-aside" / "node-id").read_text() == was
        assert not (n3.data_dir / "rejoin.json").exists()
        for job_id in acknowledged:
            assert n3.ended(job_id)["status"] == "completed"
        # Nothing of the earlier life is needed for the next start.
        n3.stop()
        n3.start()
        swarm.wait_level()


# The page


def lines_of(number: int) -> list[str]:
    kind, text = BLOCKS[number]
    lines = text.splitlines()
    return [line.removeprefix("$ ") for line in lines] if kind == "console" else lines


def shell(lines: list[str], node: Node, cwd: Path) -> str:
    """Run lines of the page as they stand, on the node that they are meant for."""
    own = shlex.join(command())
    # What the page starts in the background goes on behind it, and is ended by whoever asked.
    text = "\n".join(lines).replace(DATA_DIR, str(node.data_dir))
    text = text.replace("/root/", f"{cwd}/").replace("http://127.0.0.1:8080", node.daemon.url())
    text = text.replace("swarmd up &", f'{own} up > up.log 2>&1 &\necho "$!" > up.pid')
    script = f'set -eux\nswarmd() {{ {own} "$@"; }}\n{text}\n'
    env = {"SWARMD_DATA_DIR": str(node.data_dir), "SWARMD_CONFIG": str(node.folder / "swarmd.toml")}
    done = subprocess.run(
        ["bash", "-c", script], env=environment(env), cwd=cwd, text=True, timeout=120,
        stdin=subprocess.DEVNULL, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_page_has_the_blocks_that_are_run_here() -> None:
    starts = [lines_of(n)[0].split(" -")[0] for n in range(len(BLOCKS))]
    assert starts == [
        "curl", "swarmd raft status", "swarmd raft snapshot save monday.db", "swarmd raft status",
        "swarmd raft status", "swarmd raft restore monday.db",
    ]  # fmt: skip


@pytest.mark.needs("bash", "curl")
def test_the_commands_of_the_page_run_as_they_stand(swarm: Swarm, tmp_path: Path) -> None:
    node = swarm["n2"]
    said = shell(lines_of(0), node, tmp_path)
    assert re.search(r"^X-Swarm-Staleness-Ms: \d+\r?$", said, re.MULTILINE | re.IGNORECASE)
    said = shell(lines_of(1), node, tmp_path)
    assert "n1 leads" in said
    said = shell(lines_of(2), node, tmp_path)
    assert sorted(p.name for p in tmp_path.glob("*.db")) == ["monday.db", "tuesday.db"]
    assert "standing 3 of 3" in shell(lines_of(3), node, tmp_path)


@pytest.mark.needs("bash")
def test_the_steps_of_the_page_after_the_loss_of_a_majority(tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    with running_swarm(tmp_path / "swarm", first=41) as swarm:
        survivor = swarm["n1"]
        job_id = survivor.run("echo before")
        survivor.ended(job_id)
        shell(lines_of(2), survivor, place)
        swarm.wait_level()
        swarm["n2"].kill()
        swarm["n3"].kill()
        leaderless(survivor)
        said = shell(lines_of(4), survivor, place)
        with ended_after(survivor, place):
            assert "leader   none is known" in said
            assert job_id in said.rpartition("leader   n1")[2]
            assert [n["name"] for n in survivor.status()["nodes"]] == ["n1"]
        shutil.move(survivor.data_dir, tmp_path / "kept")
        said = shell(lines_of(5), survivor, place)
        with ended_after(survivor, place):
            assert "leader   n1" in said
            assert survivor.console("GET", f"/jobs/{job_id}")["status"] == "completed"


@contextmanager
def ended_after(node: Node, place: Path) -> Iterator[None]:
    """End what the page started in the background, however the block ends."""
    pid = int((place / "up.pid").read_text())
    try:
        yield
    except BaseException as failure:
        failure.add_note((place / "up.log").read_text()[-3000:])
        raise
    finally:
        _end(pid)
        end_runner(node.data_dir)


def _end(pid: int) -> None:
    os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
