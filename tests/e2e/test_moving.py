"""Work moves when a host dies, stays when a daemon comes back, and is never run in two places.

Real daemons, runners and jobs; whether two attempts ran at once is read in what the jobs wrote.
"""

from __future__ import annotations

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from swarmd.agent.leases import RENEW_EVERY_S
from swarmd.control.leases import GIVE_AWAY_S, LEASE_S
from tests.daemon import running_daemon
from tests.moving import Moving, job_on, kill_host, wait_for_leases
from tests.netns import own_network
from tests.swarms import Node, Swarm, running_swarm, until

# One at a time: they would only measure each other.
pytestmark = pytest.mark.xdist_group("swarm")
FOLLOWER_S = 6.0
LEADER_S = 8.0
# Read at import: no test sees settings of whoever runs it.
LATE_S = 1.0 if "SWARMD_SOAK_KILLS" in os.environ else 30.0
"""For a machine that does other things as well."""
MOVES_S_MAX = 60.0
AWAY_S = 20.0
"""How long jobs bear that their daemon is away: a slow machine takes longer than a lease to have it
back."""


@contextmanager
def swarm_of_three(folder: Path, first: int = 1) -> Iterator[Swarm]:
    with running_swarm(folder, first=first, jobs={"slots": 4, "grace_s": 10.0}) as swarm:
        wait_for_leases(swarm)
        yield swarm


def follower(swarm: Swarm) -> Node:
    return swarm.followers()[0]


def check_goes_on(job: Moving) -> None:
    """In the one attempt that there ever was."""
    now = time.time()
    until(lambda: job.spans()[-1].last > now, "it does not go on")
    assert len(job.spans()) == 1


def holds(data_dir: Path) -> list[int | None]:
    """For how long others leave nodes what they have, in ms; None is for ever."""
    with closing(sqlite3.connect(f"file:{data_dir / 'state.db'}?mode=ro", uri=True)) as conn:
        return [row[0] for row in conn.execute("SELECT for_ms FROM holds")]


def test_work_of_a_host_that_dies_runs_again_elsewhere(tmp_path: Path) -> None:
    with swarm_of_three(tmp_path) as swarm:
        took = []
        host = follower(swarm)
        for other in (host, None):
            struck_node = other or swarm.leader()
            job = job_on(swarm, tmp_path, struck_node)
            struck = kill_host(struck_node)
            took.append(job.moved_after(struck, MOVES_S_MAX))
            assert job.host() is not struck_node
            job.cancel()
            struck_node.start()
            # It says nothing of what is no longer its own.
            seen = job.seen(struck_node)
            assert seen["recoveries"] == 1 and len(job.spans()) == 2
            swarm.wait_whole()
        print(f"again after {took[0]:.2f} s, from the leader's host after {took[1]:.2f} s")
        assert took[0] <= FOLLOWER_S + LATE_S and took[1] <= LEADER_S + LATE_S, took


def test_a_runner_without_its_daemon_ends_what_runs_in_time(tmp_path: Path) -> None:
    with swarm_of_three(tmp_path) as swarm:
        host = follower(swarm)
        job = job_on(swarm, tmp_path, host)
        killed = time.time()
        host.kill()
        assert job.moved_after(killed, MOVES_S_MAX) <= FOLLOWER_S + LATE_S
        assert 0 < job.spans()[0].last - killed < GIVE_AWAY_S


def test_a_daemon_that_is_back_in_time_finds_its_jobs_going_on(tmp_path: Path) -> None:
    with swarm_of_three(tmp_path) as swarm:
        hosts = (follower(swarm), swarm.leader())
        jobs = [job_on(swarm, tmp_path, host, disconnect_seconds=AWAY_S) for host in hosts]
        for host in hosts:
            host.kill()
            killed = time.monotonic()
            host.start()
        # Without what came since they are back, they would have ended by then.
        time.sleep(max(0.0, killed + GIVE_AWAY_S + AWAY_S + 1 - time.monotonic()))
        for job in jobs:
            check_goes_on(job)
            assert job.seen()["status"] == "running"


def test_a_planned_restart_moves_nothing_however_long_it_takes(tmp_path: Path) -> None:
    """One after the other, the leader among them: as an upgrade goes."""
    with swarm_of_three(tmp_path) as swarm:
        jobs = [job_on(swarm, tmp_path, node) for node in swarm.nodes]
        for node in swarm.nodes:
            node.stop()
            time.sleep(GIVE_AWAY_S + 2)
            node.start()
            swarm.wait_whole()
        time.sleep(GIVE_AWAY_S)
        for job, node in zip(jobs, swarm.nodes, strict=True):
            check_goes_on(job)
            assert job.seen()["recoveries"] == 0, node.name
        until(lambda: not holds(swarm.nodes[0].data_dir), "a hold is left")


def test_a_job_may_be_cut_off_for_longer(tmp_path: Path) -> None:
    with swarm_of_three(tmp_path) as swarm:
        host = follower(swarm)
        job = job_on(swarm, tmp_path, host, disconnect_seconds=30)
        host.kill()
        time.sleep(GIVE_AWAY_S + 3)
        host.start()
        check_goes_on(job)
        job.cancel()
        job = job_on(swarm, tmp_path, host, disconnect_seconds=8)
        struck = kill_host(host)
        # It counts from the last renewal, which was no longer ago than a lease.
        assert job.moved_after(struck, MOVES_S_MAX) > GIVE_AWAY_S + 8 - LEASE_S


@pytest.mark.needs("netns")
def test_work_of_hosts_that_are_cut_off_ends_before_it_begins_elsewhere(tmp_path: Path) -> None:
    """Nobody tells anybody; the host, the leader's then, goes on by itself, and its jobs do not."""
    with own_network() as network, swarm_of_three(tmp_path, first=21) as swarm:
        for host in (follower(swarm), swarm.leader()):
            job = job_on(swarm, tmp_path, host)
            others = [node for node in swarm.nodes if node is not host]
            # Longer than a slow machine takes to have another leader.
            kept = [job_on(swarm, tmp_path, node, disconnect_seconds=10) for node in others]
            time.sleep(random.uniform(0.0, 1.0))
            cut = time.time()
            network.cut(host.address, *(node.address for node in others))
            until(lambda: len(job.spans()) > 1, "the job did not move", MOVES_S_MAX)  # noqa: B023
            first, second = job.spans()
            print(f"ended after {first.last - cut:.2f} s, again after {second.first - cut:.2f} s")
            job.check()
            assert second.first - cut <= LEADER_S + LATE_S
            network.heal()
            swarm.wait_whole()
            time.sleep(GIVE_AWAY_S)
            assert len(job.spans()) == 2
            # Those who went on lost nothing by it.
            assert [len(each.spans()) for each in kept] == [1, 1]
            for each in (job, *kept):
                each.cancel()


def test_alone_a_job_goes_on_however_long_the_daemon_is_away(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trace.mkdir()
    with running_daemon(tmp_path / "alone") as daemon:
        script = f"while :; do date +%s.%N > {trace}/now; sleep 0.05; done"
        trace.chmod(0o777)
        job = {"type": "t", "program": "sh", "arguments": ["-c", script]}
        made = daemon.request("POST", "/api/v1/jobs", job, surface="console").json["id"]
        until(lambda: (trace / "now").exists(), "it does not begin")

        def seen() -> Any:
            return daemon.request("GET", f"/api/v1/jobs/{made}", surface="console").json

        until(lambda: seen()["status"] == "running", "it does not run")
        until(lambda: holds(daemon.data_dir) == [None], "nobody says that it is alone")
        time.sleep(3 * RENEW_EVERY_S)  # after that the runner is told, again where it was slow
        daemon.kill()
        time.sleep(LEASE_S + GIVE_AWAY_S)
        now = time.time()
        until(lambda: float((trace / "now").read_text() or 0) > now, "it does not go on")
