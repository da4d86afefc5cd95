"""Stops and starts that were meant: jobs go on through them, or are handed back where asked."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import STOP_TIMEOUT_S, Daemon, runner_pids, start_daemon

SHELL = Path("/bin/sh")
# Read at import: no test sees settings of whoever runs it.
STOP_S_MAX = 5.0 if "SWARMD_SOAK_KILLS" in os.environ else STOP_TIMEOUT_S
"""How soon is judged where nothing else runs."""
WAIT_S = 60.0


@contextmanager
def kept(folder: Path) -> Iterator[Node]:
    node = Node(folder)
    try:
        yield node
    except BaseException as failure:
        failure.add_note(f"the daemon's log ends:\n{node.daemon.stderr()[-4000:]}")
        raise
    finally:
        node.daemon.end()


class Node:
    """A daemon that is stopped and started on the same data and ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemon: Daemon = start_daemon(folder, jobs={"slots": 2})
        data = SHELL.read_bytes()
        assert self.console("PUT", "/blobs", data)["size_bytes"] == len(data)
        self.sha256 = hashlib.sha256(data).hexdigest()

    def start(self) -> None:
        ports = self.daemon.ports
        self.daemon = start_daemon(
            self.folder, jobs={"slots": 2},
            surfaces__jobqueue={"port": ports["jobqueue"]},
            surfaces__console={"port": ports["console"]},
        )  # fmt: skip

    def stop(self) -> None:
        """SIGTERM: exit 0 in time, with the runner and its jobs left alone."""
        began = time.monotonic()
        assert self.daemon.stop() == 0
        assert time.monotonic() - began < STOP_S_MAX

    def ask(self, method: str, path: str, body: object = None) -> Any:
        answer = self.daemon.request(method, f"/api/v1{path}", body)
        assert answer.status < 300, (answer.status, answer.body)
        return answer.json

    def console(self, method: str, path: str, body: object = None) -> Any:
        answer = self.daemon.request(method, f"/api/v1{path}", body, surface="console")
        assert answer.status < 300, (answer.status, answer.body)
        return answer.json

    def submit(self, script: str, **more: object) -> str:
        job = {"type": "restart", "binary_url": f"blob:sha256:{self.sha256}",
               "binary_sha256": self.sha256, "priority": "background",
               "arguments": ["-c", script], **more}  # fmt: skip
        return str(self.ask("POST", "/jobs", job)["id"])

    def wait(self, job_id: str, status: str) -> Any:
        deadline = time.monotonic() + WAIT_S
        while (job := self.ask("GET", f"/jobs/{job_id}"))["status"] != status:
            assert time.monotonic() < deadline, f"{status} is not reached: {job}"
            time.sleep(0.02)
        return job

    def end_jobs(self) -> None:
        """Ask on the node's own socket to stop and to end its jobs."""
        status, answer = over_socket(
            self.daemon.data_dir / "swarmd.sock", "POST", "/api/v1/stop", {"jobs": True}
        )
        assert (status, answer) == (202, {"stopping": True, "jobs": True})
        assert self.daemon.process.wait(STOP_S_MAX) == 0


def over_socket(path: Path, method: str, target: str, body: object) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("localhost", timeout=WAIT_S)
    with closing(connection), socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(WAIT_S)
        sock.connect(str(path))
        connection.sock = sock
        raw = json.dumps(body).encode()
        connection.request(method, target, raw, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def until(folder: Path, name: str) -> str:
    """A line of shell that goes on as soon as the test makes the file, and not for ever."""
    return f"n=0; until [ -e {folder / name} ] || [ $n = 600 ]; do sleep 0.05; n=$((n+1)); done"


def test_a_running_job_goes_on_while_the_daemon_is_restarted(tmp_path: Path) -> None:
    with kept(tmp_path) as node:
        script = f"echo one; {until(tmp_path, 'go')}; echo two; echo three >&2; exit 3"
        job_id = node.submit(script)
        node.wait(job_id, "running")
        (runner,) = runner_pids(node.daemon.data_dir)
        node.stop()
        assert runner_pids(node.daemon.data_dir) == [runner]
        node.start()
        job = node.ask("GET", f"/jobs/{job_id}")
        assert job["status"] == "running" and len(job["attempts"]) == 1
        (tmp_path / "go").touch()
        job = node.wait(job_id, "failed")
        assert (job["stdout"], job["stderr"], job["exit_code"]) == ("one\ntwo\n", "three\n", 3)
        assert len(job["attempts"]) == 1


def test_an_end_that_nobody_heard_of_is_heard_of_after_the_start(tmp_path: Path) -> None:
    with kept(tmp_path) as node:
        job_id = node.submit(f"{until(tmp_path, 'go')}; echo done; touch {tmp_path / 'went'}")
        node.wait(job_id, "running")
        waiting = node.submit("echo next")  # no more than two at once: this one has its turn
        node.wait(waiting, "completed")
        tmp_path.chmod(0o777)  # the job, which may be of another account, says that it went
        node.stop()
        (tmp_path / "go").touch()
        deadline = time.monotonic() + WAIT_S
        while not (tmp_path / "went").exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        node.start()
        job = node.wait(job_id, "completed")
        assert job["stdout"] == "done\n" and len(job["attempts"]) == 1


def test_a_followed_log_goes_on_after_a_restart_without_a_gap(tmp_path: Path) -> None:
    with kept(tmp_path) as node:
        job_id = node.submit(f"echo one; {until(tmp_path, 'go')}; echo two")
        node.wait(job_id, "running")
        first = follow(node, job_id)
        assert first.wait_for(b"one\n")
        node.stop()
        assert first.ended.wait(WAIT_S), "a followed log must not outlive its daemon"
        node.start()
        again = follow(node, job_id)
        assert again.wait_for(b"one\n")
        (tmp_path / "go").touch()
        assert again.ended.wait(WAIT_S)
        assert again.data == b"one\ntwo\n"
        node.wait(job_id, "completed")


class follow:
    """A log that is followed on a thread of its own."""

    def __init__(self, node: Node, job_id: str) -> None:
        self.data = b""
        self.ended = threading.Event()
        self._came = threading.Condition()
        args = (node.daemon.ports["jobqueue"], f"/api/v1/jobs/{job_id}/logs?follow=true")
        threading.Thread(target=self._run, args=args, daemon=True).start()

    def _run(self, port: int, path: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=WAIT_S)
        with closing(connection):
            try:
                connection.request("GET", path)
                with connection.getresponse() as answer:
                    while piece := answer.read1(65536):
                        with self._came:
                            self.data += piece
                            self._came.notify_all()
            except (OSError, http.client.HTTPException):
                pass  # the daemon stopped in the middle of it
        self.ended.set()

    def wait_for(self, data: bytes) -> bool:
        with self._came:
            return self._came.wait_for(lambda: self.data == data, WAIT_S)


def test_stopping_with_its_jobs_ends_them_and_queues_them_again(tmp_path: Path) -> None:
    with kept(tmp_path) as node:
        marks = tmp_path / "marks"
        marks.touch()
        marks.chmod(0o666)
        script = f"echo x >> {marks}; [ -e {tmp_path / 'again'} ] || sleep 300"
        jobs = [node.submit(script) for _ in range(3)]  # two run, one waits
        for job_id in jobs[:2]:
            node.wait(job_id, "running")
        deadline = time.monotonic() + WAIT_S
        while len(marks.read_text()) < 4:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        node.end_jobs()
        deadline = time.monotonic() + WAIT_S
        while runner_pids(node.daemon.data_dir):
            assert time.monotonic() < deadline, "the runner stays although it was told to go"
            time.sleep(0.02)
        (tmp_path / "again").touch()
        node.start()
        for job_id in jobs:
            node.wait(job_id, "completed")
        assert marks.read_text() == "x\n" * 5, "two were ended and run again, one ran once"
        ended = node.console("GET", f"/jobs/{jobs[0]}")["attempts"]
        assert [attempt["status"] for attempt in ended] == ["revoked", "completed"]
        assert node.ask("GET", f"/jobs/{jobs[0]}")["recoveries"] == 0, "the job is not to blame"


def test_a_second_daemon_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with kept(tmp_path) as node:
        second = subprocess.run(
            [sys.executable, "-m", "swarmd", "up", "--data-dir", str(node.daemon.data_dir),
             "--config", str(tmp_path / "swarmd.toml")],
            capture_output=True, text=True, timeout=WAIT_S, check=False,
            cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert second.returncode == 1
        assert "another swarmd runs on" in second.stderr
        assert str(node.daemon.data_dir) in second.stderr and "--data-dir" in second.stderr
        assert "Traceback" not in second.stderr
        assert node.ask("GET", "/health")["status"] == "healthy"


def test_a_state_that_is_gone_is_made_anew_from_the_log(tmp_path: Path) -> None:
    with kept(tmp_path) as node:
        old = node.console("GET", "/status")
        ended = node.submit("echo kept")
        node.wait(ended, "completed")
        node.daemon.kill()
        (node.daemon.data_dir / "state.db").unlink()  # as a person would, and forget the rest
        node.start()
        assert node.console("GET", "/status")["cluster_id"] == old["cluster_id"]
        assert node.wait(ended, "completed")["stdout"] == "kept\n"
        assert node.wait(node.submit("echo on"), "completed")["stdout"] == "on\n"


def test_without_its_log_a_node_that_has_a_state_goes_on_where_that_ends(tmp_path: Path) -> None:
    """It is alone: there is nobody to whom it could have promised anything."""
    with kept(tmp_path) as node:
        ended = node.submit("echo kept")
        node.wait(ended, "completed")
        node.stop()
        (node.daemon.data_dir / "raft.db").unlink()
        node.start()
        assert node.wait(ended, "completed")["stdout"] == "kept\n"
        assert node.wait(node.submit("echo on"), "completed")["stdout"] == "on\n"


def test_without_its_state_and_log_a_node_begins_anew(tmp_path: Path) -> None:
    """Jobs of the state that is gone are nobody's: what still runs of them is ended, and neither
    their records nor their logs stand in the way of the new ones."""
    with kept(tmp_path) as node:
        old = node.console("GET", "/status")
        ended = node.submit("echo old")
        node.wait(ended, "completed")
        marks = tmp_path / "marks"
        marks.touch()
        marks.chmod(0o666)
        running = node.submit(f"while sleep 0.1; do echo x >> {marks}; done")
        node.wait(running, "running")
        node.daemon.kill()  # so that there is a rest
        assert (node.daemon.data_dir / "state.db-wal").exists()
        for name in ("state.db", "raft.db", "raft.db-wal"):  # as a person would: not all is gone
            (node.daemon.data_dir / name).unlink()
        node.start()
        new = node.console("GET", "/status")
        assert new["cluster_id"] != old["cluster_id"]
        assert new["nodes"][0]["id"] != old["nodes"][0]["id"], "ids of nodes are never reused"
        assert node.ask("GET", "/jobs") == []
        node.console("PUT", "/blobs", SHELL.read_bytes())
        for number in range(3):
            job = node.wait(node.submit(f"echo fresh {number}"), "completed")
            assert job["stdout"] == f"fresh {number}\n"
        written = marks.read_text()
        time.sleep(0.5)
        assert marks.read_text() == written, "a job of the old state still runs"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_stops_in_time(tmp_path: Path, number: signal.Signals) -> None:
    """With a kept connection and a followed log open, which must not hold it up."""
    with kept(tmp_path) as node:
        job_id = node.submit("sleep 300")
        node.wait(job_id, "running")
        log = follow(node, job_id)
        idle = http.client.HTTPConnection("127.0.0.1", node.daemon.ports["jobqueue"], timeout=10)
        with closing(idle):
            idle.request("GET", "/api/v1/health")
            idle.getresponse().read()
            began = time.monotonic()
            node.daemon.process.send_signal(number)
            assert node.daemon.process.wait(STOP_S_MAX) == 0
            assert time.monotonic() - began < STOP_S_MAX
        assert log.ended.wait(WAIT_S)
        assert not (node.daemon.data_dir / "swarmd.sock").exists()
