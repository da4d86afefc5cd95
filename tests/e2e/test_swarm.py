"""Three real nodes as one swarm: any of them takes any request, and answers for all of them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.cli import command, environment
from tests.daemon import (
    READY_TIMEOUT_S,
    STOP_TIMEOUT_S,
    SURFACES,
    end_runner,
    free_ports,
    running_daemon,
)
from tests.load import OUTSIDE, Client
from tests.swarms import Node, Swarm, running_swarm, until

pytestmark = pytest.mark.xdist_group("swarm")
LOG_KEPT = 10
AWAY_ENTRIES = 2600
"""More than are let go of at once, and what is kept."""
REFUSED_S_MAX = 60.0
LOCAL_S_MAX = 9.0
"""For what a node answers by itself: what needs a leader waits ten for one. Of a log it asks the
leader first, for a second."""
# Read at import: no test sees settings of whoever runs it.
SOAK = "SWARMD_SOAK_KILLS" in os.environ
"""How soon is judged where nothing else runs."""
STOP_S_MAX = 5.0 if SOAK else STOP_TIMEOUT_S
ALL_STOP_S_MAX = 2.5 if SOAK else STOP_TIMEOUT_S


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """Its nodes come and go, and are all there again when a test begins."""
    with running_swarm(tmp_path_factory.mktemp("swarm")) as swarm:
        yield swarm


@pytest.fixture
def whole(swarm: Swarm) -> Swarm:
    down = [node for node in swarm.nodes if not node.up]
    if down:
        swarm.start(*down)
    swarm.wait_whole()
    return swarm


def waiting_job(token: str) -> dict[str, object]:
    """One that nobody runs."""
    return {
        "type": "waiting", "binary_url": "http://localhost/none", "binary_sha256": "0" * 64,
        "priority": "background", "constraints": [OUTSIDE], "labels": {"token": token},
    }  # fmt: skip


def submit(node: Node, token: str) -> str:
    return str(node.ask("POST", "/jobs", waiting_job(token))["id"])


def test_a_job_is_seen_from_every_node_wherever_it_runs(whole: Swarm) -> None:
    for number, node in enumerate(whole.nodes):
        for runs_on in whole.nodes:
            text = f"from {node.name} on {runs_on.name} {number}"
            job_id = node.run(f"echo {text}", constraints=[f"node.name=={runs_on.name}"])
            for other in whole.nodes:
                seen = other.ended(job_id)
                assert (seen["status"], seen["node"]) == ("completed", runs_on.name)
                assert seen["stdout"].strip() == text
                assert other.ask("GET", f"/jobs/{job_id}")["stdout"].strip() == text
                for surface in ("jobqueue", "console"):
                    log = other.request("GET", f"/jobs/{job_id}/logs", surface=surface)
                    assert (log.status, text in log.body.decode()) == (200, True), log


def test_every_node_reads_what_any_has_just_written(whole: Swarm) -> None:
    for number in range(40):
        writer, reader = whole.nodes[number % 3], whole.nodes[(number + 1 + number // 3) % 3]
        job_id = submit(writer, f"own-{number}")
        seen = reader.request("GET", f"/jobs/{job_id}")
        assert seen.status == 200, (number, writer.name, reader.name, seen.body)
        reader.ask("POST", f"/jobs/{job_id}/cancel")
        assert writer.ask("GET", f"/jobs/{job_id}")["status"] == "cancelled"


def test_bulk_goes_through_all_nodes_at_once(whole: Swarm) -> None:
    def submit_many(node: Node) -> list[str]:
        jobs = [waiting_job(f"bulk-{node.name}-{i}") for i in range(1000)]
        return [job["id"] for job in node.ask("POST", "/jobs/bulk", jobs)]

    with ThreadPoolExecutor(3) as pool:
        ids = [job_id for found in pool.map(submit_many, whole.nodes) for job_id in found]
    assert len(set(ids)) == 3000
    counts = [n.ask("GET", "/admin/stats")["jobs_by_status"]["pending"] for n in whole.nodes]
    assert len(set(counts)) == 1 and counts[0] >= 3000
    for node, job_id in zip(whole.nodes * 5, ids[::200], strict=True):
        assert node.ask("GET", f"/jobs/{job_id}")["status"] == "pending"


def test_a_node_that_is_started_again_takes_its_attempts_back(whole: Swarm, tmp_path: Path) -> None:
    """And catches up with what was written meanwhile."""
    node = whole.followers()[0]
    other = next(n for n in whole.nodes if n is not node)
    gate = tmp_path / "gate"
    tmp_path.chmod(0o755)
    job_id = other.run(
        f"while [ ! -e {gate} ]; do sleep 0.05; done; echo through",
        constraints=[f"node.name=={node.name}"], disconnect_seconds=60,
    )  # fmt: skip
    until(lambda: other.console("GET", f"/jobs/{job_id}")["status"] == "running", "not running")
    node.kill()
    meanwhile = [submit(other, f"meanwhile-{i}") for i in range(20)]
    gate.touch()
    assert other.console("GET", f"/jobs/{job_id}")["status"] == "running"
    node.start()
    seen = other.ended(job_id)
    assert (seen["status"], seen["stdout"], seen["node"]) == ("completed", "through\n", node.name)
    assert len(seen["attempts"]) == 1
    for job_id in meanwhile:
        assert node.ask("GET", f"/jobs/{job_id}")["status"] == "pending"
    whole.wait_level()


def test_no_request_fails_on_the_others_while_a_follower_stops(whole: Swarm) -> None:
    node = whole.followers()[0]
    others = [n for n in whole.nodes if n is not node]
    with ThreadPoolExecutor(3) as pool:
        stopping = pool.submit(node.stop)
        answered = list(pool.map(lambda n: _write_until(n, stopping), others))
    assert min(answered) > 0


def _write_until(node: Node, stopping: Any) -> int:
    with closing(Client([node.place])) as client:
        for number in range(10_000):
            status, said = client.ask("POST", "/api/v1/jobs", waiting_job(f"stop-{number}"))
            assert status == 201, (node.name, status, said)
            if stopping.done():
                return number
    raise AssertionError("it does not stop")


def test_all_of_them_stop_at_once_and_come_back(whole: Swarm) -> None:
    """Nobody waits for one that goes as well."""
    job_id = submit(whole.nodes[0], "kept")
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(Node.stop, whole.nodes))
    assert time.monotonic() - began < ALL_STOP_S_MAX
    whole.start(*whole.nodes)
    for node in whole.nodes:
        assert node.ask("GET", f"/jobs/{job_id}")["status"] == "pending"


def test_without_a_majority_nothing_is_written_and_all_the_rest_answers(whole: Swarm) -> None:
    left, *others = whole.nodes
    job_id = left.run("echo before", constraints=[f"node.name=={left.name}"])
    left.ended(job_id)
    for node in others:
        node.kill()
    began = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        write = pool.submit(left.request, "POST", "/jobs", waiting_job("never"))
        read = pool.submit(left.request, "GET", "/jobs?limit=1")
        local = {"X-Swarm-Consistency": "local"}
        for surface, path in (
            ("console", "/status"), ("console", "/nodes"), ("console", "/health"),
            ("jobqueue", "/health"), ("jobqueue", f"/jobs/{job_id}/logs"),
            ("console", f"/jobs/{job_id}/logs"),
        ):  # fmt: skip
            asked = time.monotonic()
            answer = left.request("GET", path, surface=surface)
            wanted = (200, 503) if path == "/health" else (200,)
            assert answer.status in wanted, (surface, path, answer)
            assert time.monotonic() - asked < LOCAL_S_MAX, (surface, path)
        for refused in (write.result(), read.result()):
            assert refused.status == 503, refused
            assert int(refused.headers["retry-after"]) >= 1
            assert "nobody" in refused.json["error"], refused.json
    assert time.monotonic() - began < REFUSED_S_MAX
    assert left.request("GET", "/jobs?limit=1", headers=local).status == 200
    assert left.status()["leader"] is None
    until(lambda: left.request("GET", "/health").status == 503, "it calls itself healthy")
    # Another comes back: that is enough.
    others[0].start()
    submit(left, "again")
    assert left.request("GET", "/health").status == 200


def test_a_node_that_was_away_for_long_catches_up_by_a_copy(tmp_path: Path) -> None:
    with running_swarm(tmp_path, mesh={"log_entries_keep": LOG_KEPT}) as swarm:
        away = swarm.followers()[0]
        away.stop()
        others = swarm.up()
        began = others[0].applied()
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda n: _write_entries(n, began + AWAY_ENTRIES), others))
        away.start()
        assert "the state was taken over from a copy" in away.log().partition("ready: ")[2]
        index = swarm.wait_level()
        assert index >= began + AWAY_ENTRIES
        # It is a member as before: with it, a third may be missed.
        others[0].kill()
        submit(away, "after")
        others[0].start()
        swarm.stop()
        swarm.check_replicas()


def _write_entries(node: Node, upto: int) -> None:
    with closing(Client([node.place])) as client:
        for number in range(2 * AWAY_ENTRIES):
            status, said = client.ask("POST", "/api/v1/jobs", waiting_job(f"{node.name}-{number}"))
            assert status == 201, said
            if number % 50 == 0 and node.applied() >= upto:
                return
    raise AssertionError("the log does not grow")


def test_a_node_that_reaches_nobody_says_so_and_goes_on_trying(tmp_path: Path) -> None:
    """And joins when they are there; told to stop before, it stops."""
    ports = free_ports({"mesh": 8473, "one": 1, "two": 2})
    seed = f"127.0.0.1:{ports['mesh']}"
    with running_daemon(tmp_path / "first", mesh={"port": ports["mesh"]}) as first:
        token = first.token()
        first.stop()
    lonely = start_lonely(tmp_path / "late", "late", seed, token)
    try:
        wait_said(tmp_path / "late", "Connection refused")
        assert lonely.poll() is None
        assert f"seed={seed}" in said_by(tmp_path / "late")
        with running_daemon(tmp_path / "first", mesh={"port": ports["mesh"]}) as first:
            wait_said(tmp_path / "late", "ready: node late")
            nodes = first.request("GET", "/api/v1/status", surface="console").json["nodes"]
            assert {node["name"] for node in nodes} >= {"late"} and len(nodes) == 2
    finally:
        end_lonely(lonely, tmp_path / "late")
    assert said_by(tmp_path / "late").count("not joined yet") < 5  # each reason once
    never = start_lonely(tmp_path / "never", "never", seed, token)
    wait_said(tmp_path / "never", "not joined yet")
    began = time.monotonic()
    never.terminate()
    assert never.wait(STOP_S_MAX) == 0
    assert time.monotonic() - began < STOP_S_MAX
    end_lonely(never, tmp_path / "never")


def test_a_node_that_dies_while_it_joins_joins_when_it_is_started_again(tmp_path: Path) -> None:
    """Wherever between the first word and the last that was, and told neither where nor why."""
    port = free_ports({"mesh": 8473})["mesh"]
    with running_daemon(tmp_path / "first", mesh={"port": port}) as first:
        token = first.token()
        for number in range(4):
            folder = tmp_path / f"joins-{number}"
            dying = start_lonely(folder, folder.name, f"127.0.0.1:{port}", token)
            wait_said(folder, "joined")
            time.sleep(number * 0.03)
            dying.kill()
            dying.wait(STOP_TIMEOUT_S)
            again = start_lonely(folder, folder.name)
            try:
                wait_said(folder, "ready: node")
            finally:
                end_lonely(again, folder)


def test_a_second_node_of_the_same_name_is_not_taken_in(whole: Swarm, tmp_path: Path) -> None:
    seed = f"127.0.0.1:{whole.nodes[0].settings['mesh']['port']}"
    double = start_lonely(tmp_path, "n2", seed, whole.nodes[0].token())
    try:
        assert double.wait(READY_TIMEOUT_S) == 1
    finally:
        end_lonely(double, tmp_path)
    assert "another node is called n2; give this one a name of its own" in said_by(tmp_path)
    assert len(whole.nodes[0].status()["nodes"]) == 3


def test_a_node_of_another_swarm_stays_there_and_says_so(whole: Swarm, tmp_path: Path) -> None:
    seed = f"127.0.0.1:{whole.nodes[0].settings['mesh']['port']}"
    with running_daemon(tmp_path, node={"name": "other"}) as other:
        other.stop()
    with running_daemon(tmp_path, node={"name": "other"}, mesh={"join": [seed]}) as other:
        until(lambda: "certificate is another swarm's" in other.stderr(), "it does not say so")
        assert seed in other.stderr()
        status = other.request("GET", "/api/v1/status", surface="console").json
        assert [node["name"] for node in status["nodes"]] == ["other"]
    assert len(whole.nodes[0].status()["nodes"]) == 3


def start_lonely(
    folder: Path, name: str, seed: str = "", token: str = ""
) -> subprocess.Popen[bytes]:
    """A node of which nobody expects that it becomes ready."""
    folder.mkdir(exist_ok=True)
    ports = [f"[surfaces.{surface}]\nport = 0\n" for surface in SURFACES]
    (folder / "swarmd.toml").write_text("[mesh]\nport = 0\n" + "".join(ports))
    with (folder / "swarmd.stderr").open("wb") as said:
        return subprocess.Popen(
            command("up", "--name", name, *(("--join", seed) if seed else ()),
                    *(("--token", token) if token else ()), "--data-dir", folder / "data",
                    "--config", folder / "swarmd.toml"),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, env=environment(),
            start_new_session=True,
        )  # fmt: skip


def end_lonely(process: subprocess.Popen[bytes], folder: Path) -> None:
    process.kill()
    process.wait(STOP_TIMEOUT_S)
    end_runner(folder / "data")


def wait_said(folder: Path, words: str) -> None:
    until(lambda: words in said_by(folder), f"it does not say {words!r}")


def said_by(folder: Path) -> str:
    return (folder / "swarmd.stderr").read_text(errors="replace")
