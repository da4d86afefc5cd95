"""Nodes beyond the replicas, as real daemons: they run jobs, answer anything, and take over."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from tests.cli import Said, swarmd
from tests.daemon import runner_pids
from tests.swarms import Node, Swarm, joining, running_swarm, until

SETTINGS = {"mesh": {"replicas": 3}}
END_S = 60.0


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with running_swarm(
        tmp_path_factory.mktemp("remote"), first=101, count=5, **SETTINGS
    ) as running:
        yield running


def roles(node: Node) -> dict[str, str]:
    return {n["name"]: n["role"] for n in node.status()["nodes"]}


def remotes(swarm: Swarm) -> list[Node]:
    found = roles(swarm["n1"])
    return [swarm[name] for name, role in found.items() if role == "agent"]


def test_two_of_five_hold_no_replica_and_answer_all_the_same(swarm: Swarm) -> None:
    served = remotes(swarm)
    assert len(served) == 2
    for node in swarm.nodes:
        until(lambda node=node: sorted(roles(node).values()).count("voter") == 3, "three vote")
        job_id = node.run(f"echo from {node.name}")
        assert all(n.ended(job_id)["status"] == "completed" for n in swarm.nodes)
    for node in served:
        status = node.status()
        assert status["leader"] in ("n1", "n2", "n3", "n4", "n5")
        assert len(status["nodes"]) == 5


def test_they_run_jobs(swarm: Swarm) -> None:
    for node in remotes(swarm):
        job_id = swarm["n1"].run("echo here", constraints=[f"node.name=={node.name}"])
        job = node.ended(job_id)
        assert (job["status"], job["node"]) == ("completed", node.name), job


def test_a_replica_that_dies_takes_nobody_with_it(swarm: Swarm) -> None:
    served = remotes(swarm)[0]
    leader = swarm.leader()
    leader.kill()
    job_id = served.run("echo on")
    assert served.ended(job_id)["status"] == "completed"
    leader.start()
    until(lambda: served.status()["leader"], "no leader")


def test_it_needs_no_token_when_it_starts_again(swarm: Swarm) -> None:
    served = remotes(swarm)[0]
    served.stop()
    served.start()
    assert served.ended(served.run("true"))["status"] == "completed"


def run(node: Node, *args: object) -> Said:
    return swarmd(*args, "--data-dir", node.data_dir)


def running_on(swarm: Swarm, node: Node, script: str, **more: object) -> str:
    """A job that runs there, and may run elsewhere: of as many as there is room for, one of its."""
    jobs = [swarm["n1"].run(script, **more) for _ in range(2 * len(swarm.nodes))]
    chosen = until(
        lambda: next((j for j in jobs if where(swarm, j) == node.name), None), "none runs there"
    )
    for job_id in jobs:
        if job_id != chosen:
            cancel(swarm, job_id)
    return chosen


def where(swarm: Swarm, job_id: str) -> str | None:
    """On which member it runs."""
    job = swarm["n1"].console("GET", f"/jobs/{job_id}")
    there = job["status"] == "running" and job["node"] in roles(swarm["n1"])
    return str(job["node"]) if there else None


def cancel(swarm: Swarm, job_id: str) -> None:
    swarm["n1"].console("POST", f"/jobs/{job_id}/cancel", {})


def begin_anew(swarm: Swarm, node: Node) -> None:
    """Under its name, as another."""
    node.settings = joining(node.settings, swarm["n1"])
    node.start()
    until(lambda: node.name in roles(swarm["n1"]), "its name is not taken in again")
    swarm.wait_whole()
    assert node.ended(node.run("echo", constraints=[f"node.name=={node.name}"]))["status"] == (
        "completed"
    )


def test_one_leaves_and_what_it_ran_runs_elsewhere(swarm: Swarm) -> None:
    leaving = remotes(swarm)[0]
    marks = swarm.folder / "left"
    job = running_on(swarm, leaving, f"test -e {marks} || sleep 60; echo done")
    said = run(leaving, "leave", "--json")
    assert (said.status, said.json) == (0, {"left": leaving.name}), said
    assert leaving.daemon.process.wait(END_S) == 0
    assert not runner_pids(leaving.data_dir)
    assert leaving.name not in roles(swarm["n1"])
    until(lambda: where(swarm, job) not in (None, leaving.name), "it runs nowhere else")
    cancel(swarm, job)
    aside = leaving.data_dir / "set-aside"
    assert {"raft.db", "identity", "node-id"} <= {p.name for p in aside.iterdir()}
    begin_anew(swarm, leaving)
    assert (leaving.data_dir / "node-id").read_text() != (aside / "node-id").read_text()


def test_one_that_is_gone_is_removed_and_comes_back_in_vain(swarm: Swarm) -> None:
    gone = remotes(swarm)[0]
    job = running_on(swarm, gone, "sleep 60", max_retries=0)
    gone.kill()
    gone.end()  # its runner too: the host is off
    until(lambda: {n["name"]: n["status"] for n in swarm["n1"].status()["nodes"]}[gone.name]
          == "dead", "it is not seen to be gone")  # fmt: skip
    said = run(swarm["n1"], "remove", gone.name, "--json")
    assert said.status == 0 and said.json["removed"] == gone.name, said
    assert gone.name not in roles(swarm["n1"])
    until(lambda: where(swarm, job) not in (None, gone.name), "it runs nowhere else")
    cancel(swarm, job)
    # It comes back, with what it had: it is told, and ends.
    with pytest.raises(AssertionError, match="was removed from its swarm"):
        gone.start()
    assert not runner_pids(gone.data_dir)
    assert gone.name not in roles(swarm["n1"])
    shutil.rmtree(gone.data_dir)
    begin_anew(swarm, gone)


def test_one_that_lives_is_removed_by_force_and_ends_with_the_reason(swarm: Swarm) -> None:
    out = remotes(swarm)[0]
    said = run(swarm["n1"], "remove", out.name)
    assert said.status == 1 and "is alive: `swarmd leave` on it" in said.err, said
    job = running_on(swarm, out, "sleep 60")
    said = run(swarm["n1"], "remove", out.name, "--force")
    assert said.status == 0, said
    assert out.daemon.process.wait(END_S) == 1
    assert "was removed from its swarm" in out.log() and "Move the data directory" in out.log()
    assert not runner_pids(out.data_dir)
    until(lambda: where(swarm, job) not in (None, out.name), "it runs nowhere else")
    cancel(swarm, job)
    shutil.rmtree(out.data_dir)
    begin_anew(swarm, out)


def test_one_whose_host_was_set_up_anew_takes_its_name_by_itself(swarm: Swarm) -> None:
    lost = remotes(swarm)[0]
    before = (lost.data_dir / "node-id").read_text()
    lost.kill()
    lost.end()
    shutil.rmtree(lost.data_dir)
    begin_anew(swarm, lost)
    ids = {n["id"] for n in swarm["n1"].status()["nodes"]}
    assert before not in ids and len(ids) == 5
