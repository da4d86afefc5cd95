"""The command line against a real daemon: every command, as a person calls it."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.cli import ROOT, Said, command, environment, swarmd
from tests.daemon import Daemon, free_ports, running_daemon
from tests.parts import need

DOCUMENTED_STATUS = {"cluster_id", "leader", "term", "nodes"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    place = tmp_path_factory.mktemp("cli")
    with running_daemon(place, jobs={"slots": 4, "grace_s": 1}, node={"name": "one"}) as running:
        yield running


def say(daemon: Daemon, *args: object, cwd: Path | None = None) -> Said:
    """`swarmd` with the daemon that is meant named by the environment."""
    return swarmd(*args, env={"SWARMD_DATA_DIR": str(daemon.data_dir)}, cwd=cwd)


def submit(daemon: Daemon, *args: object) -> str:
    said = say(daemon, "submit", *args)
    assert (said.status, said.err) == (0, "")
    return said.out.strip()


def job(daemon: Daemon, job_id: str) -> dict[str, Any]:
    found = [j for j in say(daemon, "jobs", "--json").json["jobs"] if j["id"] == job_id]
    return dict(found[0])


def script(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "script.sh"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def test_status_has_the_documented_form(daemon: Daemon) -> None:
    seen = say(daemon, "status", "--json").json
    assert seen.keys() >= DOCUMENTED_STATUS
    assert (seen["leader"], isinstance(seen["term"], int)) == ("one", True)
    (node,) = seen["nodes"]
    assert node.keys() >= {"name", "address", "status", "role"}
    assert (node["name"], node["status"], node["role"]) == ("one", "alive", "voter")
    assert "leader   one" in say(daemon, "status").out
    assert say(daemon, "status", "--wait", "5").status == 0


def test_status_waits_for_a_daemon_that_is_not_there_yet(tmp_path: Path) -> None:
    started = time.monotonic()
    said = swarmd("status", "--wait", "0.5", "--data-dir", tmp_path)
    assert said.status == 1
    assert 0.4 < time.monotonic() - started < 10


def test_nodes_and_key_and_settings(daemon: Daemon) -> None:
    (node,) = say(daemon, "nodes", "--json").json["nodes"]
    assert (node["name"], node["slots"]) == ("one", 4)
    assert say(daemon, "nodes").out.splitlines()[1].startswith("one ")
    key = say(daemon, "admin-key").out.strip()
    assert len(key) >= 16
    assert say(daemon, "admin-key", "--json").json == {"admin_key": key}
    told = say(daemon, "config", "--running", "--json")
    rows = {row["setting"]: row for row in told.json["settings"]}
    assert rows["jobs.slots"]["value"] == 4
    assert key not in told.out


def test_submit_prints_the_id_and_jobs_lists_it(daemon: Daemon) -> None:
    job_id = submit(daemon, "--name", "listed", "--", "true")
    assert say(daemon, "submit", "--wait", "--", "true").status == 0
    assert job(daemon, job_id)["type"] == "listed"
    lines = say(daemon, "jobs", "--type", "listed").out.splitlines()
    assert lines[0].split()[:3] == ["JOB", "TYPE", "STATUS"]
    assert lines[1].startswith(job_id)
    assert say(daemon, "jobs", "--type", "no-such-type", "--json").json == {"jobs": []}


@pytest.mark.parametrize(("code", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137)])
def test_submit_that_waits_exits_as_the_job_does(daemon: Daemon, code: str, status: int) -> None:
    said = say(daemon, "submit", "--wait", "--", "sh", "-c", f"echo out; echo err >&2; {code}")
    assert (said.status, said.out) == (status, "out\n")
    assert said.err.startswith("err\n")


def test_submit_that_follows_keeps_the_streams_apart(daemon: Daemon) -> None:
    code = "for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.1; done; exit 3"
    said = say(daemon, "submit", "--follow", "--", "sh", "-c", code)
    assert (said.status, said.out) == (3, "out 1\nout 2\nout 3\n")
    assert said.err.startswith("err 1\nerr 2\nerr 3\n")


def test_local_file_goes_along(daemon: Daemon, tmp_path: Path) -> None:
    file = script(tmp_path, 'echo "ran with $1 and $COLOUR"')
    said = say(daemon, "submit", "--wait", "--env", "COLOUR=red", "--", file, "--flag")
    assert (said.status, said.out) == (0, "ran with --flag and red\n")
    by_name = say(daemon, "submit", "--wait", "--json", "--", "script.sh", cwd=tmp_path)
    assert (by_name.status, by_name.json["stdout"]) == (0, "ran with  and \n")
    assert by_name.json["binary"]["url"].startswith("blob:sha256:")


def test_file_that_cannot_go_along_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    for args, words in (
        ((tmp_path / "missing",), "there is no file"),
        ((plain,), "no file that can be run"),
        ((tmp_path,), "no file that can be run"),
        (("no-such-program-xyzzy",), "neither on PATH nor a file"),
    ):
        said = say(daemon, "submit", "--", *args)
        assert (said.status, said.out) == (1, ""), args
        assert words in said.err


def test_job_that_never_starts_exits_125(daemon: Daemon) -> None:
    said = say(daemon, "submit", "--wait", "--installed", "--", "no-such-program-xyzzy")
    assert said.status in (125, 126, 127)
    assert "failed" in said.err


def test_logs_are_shown_and_followed(daemon: Daemon) -> None:
    job_id = submit(daemon, "--", "sh", "-c", "echo first; echo problem >&2; sleep 0.5; echo last")
    followed = say(daemon, "logs", "-f", job_id)
    assert (followed.status, followed.out, followed.err) == (0, "first\nlast\n", "problem\n")
    assert say(daemon, "logs", "--stream", "stderr", job_id).err == "problem\n"
    told = say(daemon, "logs", "--json", job_id).json
    assert told == {"id": job_id, "stdout": "first\nlast\n", "stderr": "problem\n"}


def test_cancel_ends_a_running_job(daemon: Daemon) -> None:
    job_id = submit(daemon, "--", "sleep", "60")
    said = say(daemon, "cancel", job_id)
    assert said.status == 0
    assert said.out.startswith(f"{job_id} ")
    again = say(daemon, "cancel", job_id)
    assert (again.status, again.out) == (1, "")
    assert "cancelled" in again.err


def test_explain_tells_why_a_job_waits(daemon: Daemon) -> None:
    job_id = submit(daemon, "--constraint", "node.labels.disk==ssd", "--", "true")
    told = say(daemon, "explain", job_id)
    assert "node.labels.disk==ssd" in told.out
    (verdict,) = say(daemon, "explain", "--json", job_id).json["nodes"]
    assert (verdict["node"], verdict["can_run"]) == ("one", False)
    assert say(daemon, "cancel", job_id).status == 0


def test_the_key_of_packages_tells_when_it_was_made(daemon: Daemon) -> None:
    """Not the day before, from which on hosts take it."""
    seen = say(daemon, "binhost", "key", "--json").json
    made, valid = (datetime.fromisoformat(seen[at]) for at in ("made_at", "created_at"))
    assert abs(time.time() - made.timestamp()) < 600 and made - valid == timedelta(days=1)
    said = say(daemon, "binhost", "key")
    assert said.err == f"fingerprint {seen['fingerprint']}, made {seen['made_at']}\n"
    assert said.out == seen["armored"]


def test_explain_tells_why_a_package_waits(daemon: Daemon) -> None:
    def ask(method: str, path: str, body: object) -> None:
        key = {"X-Admin-Key": say(daemon, "admin-key").out.strip()}
        answer = daemon.request(method, path, body, surface="buildswarm", headers=key)
        assert answer.status == 200, answer.body

    package = "app-misc/hello-1.0"
    ask("POST", "/api/v1/queue", {"packages": [package], "session_name": "one"})
    assert say(daemon, "explain", package).out.startswith("no builder is registered: ")
    drone = {"id": "d1", "name": "drone-1", "ip": "127.0.0.1", "capabilities": {"cores": 2}}
    ask("POST", "/api/v1/register", drone)
    said = say(daemon, "explain", package)
    assert said.out.startswith("goes to whoever comes for work first: drone-1; it is next\n")
    ask("POST", "/api/v1/control", {"action": "block", "target": package})
    (row,) = say(daemon, "jobs", "--kind", "package", "--json").json["jobs"]
    told = say(daemon, "explain", "--json", row["id"]).json
    assert told["waits_for"][0].startswith("the end of its block in ")
    assert told["nodes"] == [
        {"node": "drone-1", "can_run": False, "reasons": ["only sweepers get what is blocked"]}
    ]
    assert say(daemon, "explain", "app-misc/hello").status == 1


@pytest.mark.parametrize("name", ["logs", "cancel", "explain"])
@pytest.mark.parametrize("job_id", ["no-such-job", "a/b?c#d", "..", "é"])
def test_unknown_job_is_an_error(daemon: Daemon, name: str, job_id: str) -> None:
    said = say(daemon, name, "--", job_id)
    assert (said.status, said.out) == (1, "")
    assert said.err.startswith("error: ")


def test_interrupted_wait_says_how_to_go_on(daemon: Daemon) -> None:
    waiting = subprocess.Popen(
        command("submit", "--follow", "--name", "waited", "--", "sh", "-c", "echo up; sleep 60"),
        env=environment({"SWARMD_DATA_DIR": str(daemon.data_dir)}),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert waiting.stdout is not None
    assert waiting.stdout.readline() == "up\n"
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=90)
    assert waiting.returncode == 130
    (running,) = say(daemon, "jobs", "--type", "waited", "--json").json["jobs"]
    assert f"`swarmd cancel {running['id']}` ends it" in err
    assert running["status"] == "running"
    assert say(daemon, "cancel", running["id"]).status == 0


def test_reader_that_goes_away_is_no_traceback(daemon: Daemon) -> None:
    line = " ".join(command("jobs", "--data-dir", daemon.data_dir))
    done = subprocess.run(
        f"{line} --json | head -c 1", shell=True, env=environment(), capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr


def test_second_daemon_on_one_directory_is_refused(daemon: Daemon) -> None:
    said = swarmd("up", "--data-dir", daemon.data_dir, env={"SWARMD_SURFACES_JOBQUEUE_PORT": "0"})
    assert said.status == 1
    assert str(daemon.data_dir) in said.err
    assert say(daemon, "status").status == 0


def test_taken_port_names_the_surface_and_the_setting(daemon: Daemon, tmp_path: Path) -> None:
    env = {"SWARMD_SURFACES_JOBQUEUE_PORT": str(daemon.ports["jobqueue"]),
           "SWARMD_SURFACES_CONSOLE_PORT": "0"}  # fmt: skip
    said = swarmd("up", "--data-dir", tmp_path / "other", env=env)
    assert said.status == 1
    assert "jobqueue" in said.err
    assert "SWARMD_SURFACES_JOBQUEUE_PORT" in said.err or "surfaces.jobqueue" in said.err


@pytest.mark.parametrize("jobs", [False, True])
def test_down_ends_the_node_and_with_jobs_its_jobs(tmp_path: Path, jobs: bool) -> None:
    mark = tmp_path / "pid"
    tmp_path.chmod(0o777)
    with running_daemon(tmp_path / "d", jobs={"grace_s": 1}) as daemon:
        submit(daemon, "--", "sh", "-c", f"echo $$ > {mark}.new; mv {mark}.new {mark}; sleep 60")
        deadline = time.monotonic() + 20
        while not mark.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        if not mark.exists():
            pytest.skip("the temporary directory is closed to the account of jobs")
        pid = int(mark.read_text())
        said = say(daemon, "down", *(["--jobs"] if jobs else []))
        assert (said.status, said.out) == (0, "")
        assert daemon.process.wait(1) == 0
        assert Path(f"/proc/{pid}").exists() is not jobs
        assert say(daemon, "down").status == 1
        assert "no daemon is running" in say(daemon, "status").err


def test_ports_of_settings_are_served(tmp_path: Path) -> None:
    ports = free_ports({"console": 8470})
    with running_daemon(tmp_path, surfaces__console={"port": ports["console"]}) as daemon:
        assert daemon.request("GET", "/api/v1/health", surface="console").status == 200


def test_commands_of_the_page_run_as_they_stand(daemon: Daemon) -> None:
    need("bash")
    page = (ROOT / "docs" / "cli.md").read_text()
    (block,) = re.findall(r"^```console\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    assert len(lines) >= 10
    text = f'set -eux\nswarmd() {{ {shlex.join(command())} "$@"; }}\n' + "\n".join(lines)
    done = subprocess.run(
        ["bash", "-c", text], env=environment({"SWARMD_DATA_DIR": str(daemon.data_dir)}),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("hello\n")
