"""A job posted to the job queue runs as a real process on the node, and its result is read back."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.contract.jobqueue import DETAILS
from tests.contract.kinds import faults
from tests.contract.sockets import read_all
from tests.daemon import Daemon, running_daemon

JOBS = "/api/v1/jobs"
SCRIPT = b'#!/bin/sh\neval "$1"\n'
"""Every job of this module is this one, with its work as the argument."""
SHA256 = hashlib.sha256(SCRIPT).hexdigest()


@pytest.fixture(scope="module")
def queue(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    directory = tmp_path_factory.mktemp("life")
    settings = {"jobs": {"slots": 4, "grace_s": 0.5}, "http": {"write_stall_timeout_s": 1.0}}
    with running_daemon(directory, **settings) as daemon:
        answer = daemon.request("PUT", "/api/v1/blobs", SCRIPT, surface="console",
                                headers={"Content-Type": "application/octet-stream"})  # fmt: skip
        assert answer.json["sha256"] == SHA256, answer.body
        yield daemon


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the account of jobs sees what a test makes there, unlike pytest's own."""
    place = Path(tempfile.mkdtemp(prefix="life-"))
    place.chmod(0o711)
    yield place
    shutil.rmtree(place)


def until_there(file: Path) -> str:
    """Work of a job."""
    return f"until [ -e {file} ]; do sleep 0.05; done"


def submit(queue: Daemon, work: str, **members: object) -> str:
    body = {
        "type": "life",
        "binary_url": f"blob:sha256:{SHA256}",
        "binary_sha256": SHA256,
        "priority": "background",
        "arguments": [work],
        **members,
    }
    answer = queue.request("POST", JOBS, body)
    assert answer.status == 201, answer.body
    return str(answer.json["id"])


def details(queue: Daemon, job_id: str) -> Any:
    return queue.request("GET", f"{JOBS}/{job_id}").json


def ended(queue: Daemon, job_id: str) -> Any:
    """The job once it has ended: following its log lasts until then."""
    queue.request("GET", f"{JOBS}/{job_id}/logs?follow=true", timeout_s=30)
    job = details(queue, job_id)
    deadline = time.monotonic() + 10
    while job["status"] in ("pending", "running") and time.monotonic() < deadline:
        time.sleep(0.02)
        job = details(queue, job_id)
    assert faults(job, DETAILS) == []
    return job


def running(queue: Daemon, job_id: str) -> None:
    """Wait for the job's own word that it runs."""
    with closing(http.client.HTTPConnection("127.0.0.1", queue.ports["jobqueue"], timeout=20)) as c:
        c.request("GET", f"{JOBS}/{job_id}/logs?follow=true&stream=stdout")
        assert c.getresponse().read(1) != b""


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return ") Z " not in stat.read()
    except OSError:
        return False


def processes(command: str) -> list[int]:
    """Processes with this very command line."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "cmdline").read_bytes().replace(
                    b"\0", b" "
                ).strip() == command.encode():
                    found.append(int(entry.name))
    return found


def test_a_job_runs_and_its_result_is_read_back(queue: Daemon) -> None:
    job = ended(queue, submit(queue, "echo out; echo err >&2"))
    assert (job["status"], job["exit_code"], job["error_message"]) == ("completed", 0, None)
    assert (job["stdout"], job["stderr"]) == ("out\n", "err\n")
    assert [a["status"] for a in job["attempts"]] == ["completed"]
    assert job["executor_id"] == job["attempts"][0]["executor_id"]


def test_a_job_that_exits_otherwise_failed(queue: Daemon) -> None:
    job = ended(queue, submit(queue, "echo no; exit 7"))
    assert (job["status"], job["exit_code"], job["stdout"]) == ("failed", 7, "no\n")


def test_a_binary_with_another_hash_is_not_run(queue: Daemon) -> None:
    url = f"{queue.url('console')}/api/v1/health"
    job = ended(queue, submit(queue, "true", binary_url=url, binary_sha256="cd" * 32))
    assert (job["status"], job["exit_code"]) == ("failed", None)
    assert "cd" * 32 in job["error_message"]


def test_a_binary_that_cannot_be_fetched_is_failed(queue: Daemon) -> None:
    job = ended(
        queue, submit(queue, "true", binary_url="http://127.0.0.1:1/x", binary_sha256="cd" * 32)
    )
    assert job["status"] == "failed"
    assert job["error_message"]


def test_the_environment_is_the_jobs_own(queue: Daemon) -> None:
    job = ended(queue, submit(queue, "env", env_variables={"ONE": "1", "TWO": "a=b"}))
    names = {line.partition("=")[0] for line in job["stdout"].splitlines()}
    assert {"ONE=1", "TWO=a=b"} <= set(job["stdout"].splitlines())
    ours = set(os.environ) - {"PATH", "HOME", "PWD", "OLDPWD", "SHLVL", "_"}
    assert not names & ours, names & ours


def test_a_job_that_takes_too_long_is_ended_with_its_tree(queue: Daemon) -> None:
    work = "trap '' TERM; sleep 600 & echo $!; wait; sleep 600"
    job = ended(queue, submit(queue, work, timeout_seconds=3))
    assert job["status"] == "failed"
    assert "time" in job["error_message"]
    assert not alive(int(job["stdout"]))


def test_a_running_job_is_cancelled_with_its_tree(queue: Daemon) -> None:
    job_id = submit(queue, "sleep 600 & echo $!; wait")
    running(queue, job_id)
    assert queue.request("DELETE", f"{JOBS}/{job_id}").status == 400
    assert queue.request("POST", f"{JOBS}/{job_id}/cancel").json["status"] == "cancelled"
    assert details(queue, job_id)["status"] == "cancelled"
    pid = int(queue.request("GET", f"{JOBS}/{job_id}/logs?stream=stdout").body)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)


def test_jobs_that_are_cancelled_as_they_start_leave_nothing(queue: Daemon) -> None:
    seconds = f"6{os.getpid() % 100000:05}"
    ids = []
    for n in range(24):
        ids.append(submit(queue, f"exec sleep {seconds}"))
        time.sleep(n % 6 / 1000)
        assert queue.request("POST", f"{JOBS}/{ids[-1]}/cancel").status == 200
    deadline = time.monotonic() + 20
    while (left := processes(f"sleep {seconds}")) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not left
    assert {details(queue, job_id)["status"] for job_id in ids} == {"cancelled"}
    job = ended(queue, submit(queue, "true"))
    assert (job["status"], job["error_message"]) == ("completed", None)


def test_dependants_run_after_and_fail_with_what_they_wait_for(queue: Daemon, folder: Path) -> None:
    one, two = folder / "one", folder / "two"
    first = submit(queue, f"{until_there(one)}; echo first")
    second = submit(queue, "echo second", depends_on=[first])
    one.touch()
    job = ended(queue, second)
    assert (job["status"], job["stdout"]) == ("completed", "second\n")
    assert details(queue, first)["status"] == "completed"
    failing = submit(queue, f"{until_there(two)}; exit 1")
    lost = submit(queue, "true", depends_on=[failing])
    two.touch()
    assert ended(queue, failing)["status"] == "failed"
    job = ended(queue, lost)
    assert job["status"] == "failed"
    assert failing in job["error_message"]


def test_what_no_node_can_run_says_why(queue: Daemon) -> None:
    job_id = submit(queue, "true", constraints=["node.labels.disk==ssd"])
    explained = queue.request("GET", f"{JOBS}/{job_id}/explain").json
    (verdict,) = explained["nodes"]
    assert not verdict["can_run"]
    assert any("node.labels.disk" in reason for reason in verdict["reasons"])
    assert queue.request("DELETE", f"{JOBS}/{job_id}").status == 200


def test_logs_come_while_the_job_writes_them(queue: Daemon, folder: Path) -> None:
    gate = folder / "gate"
    job_id = submit(queue, f"echo one; {until_there(gate)}; echo two")
    with closing(http.client.HTTPConnection("127.0.0.1", queue.ports["jobqueue"], timeout=20)) as c:
        c.request("GET", f"{JOBS}/{job_id}/logs?follow=true")
        answer = c.getresponse()
        assert answer.getheader("Transfer-Encoding") == "chunked"
        assert answer.read(4) == b"one\n"
        assert details(queue, job_id)["status"] == "running"
        gate.touch()
        assert answer.read() == b"two\n"
    assert queue.request("GET", f"{JOBS}/{job_id}/logs?from_byte=4").body == b"two\n"


async def test_logs_over_a_websocket_come_while_the_job_writes_them(queue: Daemon) -> None:
    # The two bytes of one character come apart, and make one character all the same.
    work = "printf '\\303'; sleep 0.3; echo '\\274'"
    job_id = await trio.to_thread.run_sync(submit, queue, work)
    got = await read_all(queue, f"{JOBS}/{job_id}/logs", say="anything")
    assert got == ("ü\n", 1000)


def test_readers_that_stall_or_vanish_do_no_harm(queue: Daemon) -> None:
    job_id = submit(queue, "while :; do echo 0123456789012345678901234567890123456789; done",
                    timeout_seconds=30)  # fmt: skip
    running(queue, job_id)
    before = len(queue.stderr())
    asked = f"GET {JOBS}/{job_id}/logs?follow=true HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    for stalls_s, resets in ((2.0, False), (0.0, True), (0.0, False)):
        with socket.create_connection(("127.0.0.1", queue.ports["jobqueue"]), 10) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.sendall(asked)
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
            time.sleep(stalls_s)
            if resets:
                linger = struct.pack("ii", 1, 0)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    assert queue.request("POST", f"{JOBS}/{job_id}/cancel").status == 200
    assert queue.request("GET", "/api/v1/health").status == 200
    assert "Traceback" not in queue.stderr()[before:]


def test_long_output_is_cut_in_the_result_and_whole_in_the_log(queue: Daemon) -> None:
    job_id = submit(queue, "i=0; while [ $i -lt 20000 ]; do "
                    "echo line $i of a hundred and more characters that make the output long "
                    "enough to be over its bound; i=$((i+1)); done")  # fmt: skip
    job = ended(queue, job_id)
    assert (job["status"], job["error_message"]) == ("completed", None)
    assert len(job["stdout"].encode()) <= 2**20
    assert job["stdout"].startswith("line 0 of")
    whole = queue.request("GET", f"{JOBS}/{job_id}/logs?stream=stdout").body
    assert len(whole.splitlines()) == 20000


def test_a_thousand_in_bulk_all_run(queue: Daemon) -> None:
    body = {"type": "many", "binary_url": f"blob:sha256:{SHA256}", "binary_sha256": SHA256,
            "priority": "background", "arguments": [":"]}  # fmt: skip
    answer = queue.request("POST", f"{JOBS}/bulk", [body] * 1000)
    assert answer.status == 201
    deadline = time.monotonic() + 60
    rest: list[Any] = answer.json
    while rest and time.monotonic() < deadline:
        time.sleep(0.1)
        rows = queue.request("GET", f"{JOBS}?type=many&limit=1000").json
        rest = [row for row in rows if row["status"] != "completed"]
    said = {(row.get("status"), row.get("error_message")) for row in rest}
    assert not rest, f"{len(rest)} of 1000 jobs: {sorted(map(str, said))[:5]}"
