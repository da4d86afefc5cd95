"""Probes: the line runs in every shell that is here, and hostile answers are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarmd.domain.errors import Invalid
from swarmd.domain.probes import (
    PROBE_BYTES_MAX,
    Probed,
    ProbeStatus,
    ServiceState,
    probe_command,
    read_probe,
)

SHELLS = [shell for shell in (["sh"], ["dash"], ["bash"], ["busybox", "sh"], ["zsh", "-y"])
          if shutil.which(shell[0])]  # fmt: skip
GOOD = (
    "swarmd-probe 1\nload 0.50\ncores 4\ndisk 45\ndisk \nmemory 62\nservice up\nemerge 1\n"
    "uptime 12345.67\nswarmd-probe end\n"
)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_the_line_runs_here(shell: list[str], tmp_path: Path) -> None:
    odd = tmp_path / "a 'b' $(exit 1) \"*\""
    odd.mkdir()
    (odd / "pid").write_text(str(os.getpid()))
    line = probe_command(pidfile=str(odd / "pid"), paths=["/", str(odd), "/none"])
    assert "\n" not in line
    probed = read_probe(_run([*shell, "-c", line]))
    assert probed.cores == os.cpu_count() and probed.uptime_s > 0
    assert probed.service is ServiceState.UP
    assert [each is None for each in probed.disk_percent] == [False, False, True]
    assert 0 < probed.memory_percent < 100


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize(
    ("said", "state"), [(0, ServiceState.UP), (3, ServiceState.DOWN), (1, ServiceState.DOWN)]
)
def test_openrc_is_asked_where_it_is(
    shell: list[str], tmp_path: Path, said: int, state: ServiceState
) -> None:
    """By a command of that name in its place: OpenRC itself wants to be process 1's child."""
    (tmp_path / "rc-service").write_text(f'#!/bin/sh\n[ "$*" = "drone status" ] && exit {said}\n')
    (tmp_path / "rc-service").chmod(0o755)
    if Path("/run/systemd/system").exists():
        state = ServiceState.DOWN  # systemd is asked first, and has no such unit
    path = f"{tmp_path}:{os.environ['PATH']}"
    assert read_probe(_run([*shell, "-c", probe_command("drone")], path)).service is state


@pytest.mark.parametrize("name", ["emerge", "ebuild", "ebuild.sh"])
def test_a_build_that_runs_is_seen(tmp_path: Path, name: str) -> None:
    script = tmp_path / name
    script.write_text("#!/bin/sh\necho started\nread -r end\n")
    script.chmod(0o755)
    with subprocess.Popen([script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"started\n"
        assert read_probe(_run(["sh", "-c", probe_command()])).emerge_running
        process.stdin.write(b"\n")


PYTHON = ("python3.11", 0)


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
@pytest.mark.parametrize(
    ("comm", "uid", "arguments", "builds"),
    [
        ("emerge", 250, ["whatever"], True), ("ebuild.sh", 250, [], True),
        (*PYTHON, ["python3.11", "/usr/bin/emerge", "-1", "app-misc/hello"], True),
        (*PYTHON, ["/usr/bin/python3.11", "-b", "-W", "ignore", "-Xdev", "/x/ebuild"], True),
        ("pypy3", 0, ["pypy3", "emerge"], True),
        (*PYTHON, ["python3.11", "-W", "emerge", "/usr/bin/other", "/usr/bin/emerge"], False),
        (*PYTHON, ["python3.11", "/usr/bin/emerge-logs"], False),
        (*PYTHON, ["python3.11", "/usr/bin/other", "emerge"], False),
        (*PYTHON, ["python3.11", "-c", "emerge", "/usr/bin/emerge"], False),
        (*PYTHON, ["python3.11", "-Im", "emerge", "/usr/bin/emerge"], False),
        (*PYTHON, ["python3.11"], False), (*PYTHON, [], False),
        (*PYTHON, ["python3.11", "$(echo emerge 1)\nemerge", "*"], False),
        ("python3", 12345, ["python3", "/usr/bin/emerge"], False),
        ("vim", 0, ["vim", "/usr/bin/emerge"], False),
        ("a 'b' $(c)", 0, ["emerge"], False), ("*", 0, ["emerge"], False),
    ],
)  # fmt: skip
def test_what_a_process_runs_tells_of_a_build(
    shell: list[str], tmp_path: Path, comm: str, uid: int, arguments: list[str], builds: bool
) -> None:
    """Beside processes of a shell and of Python, and one that has gone meanwhile."""
    lay_process(tmp_path / "1", "sh", 0, ["sh", "emerge"])
    lay_process(tmp_path / "2", "python3", 0, ["python3", "/usr/bin/other"])
    lay_process(tmp_path / "3", comm, uid, arguments)
    lay_process(tmp_path / "4", "python3", 0, ["python3"])
    (tmp_path / "5").mkdir()
    line = probe_command().replace("/proc/[0-9]*", f"{tmp_path}/[0-9]*")
    assert str(tmp_path) in line
    assert read_probe(_run([*shell, "-c", line])).emerge_running is builds


def lay_process(folder: Path, comm: str, uid: int, arguments: list[str]) -> None:
    folder.mkdir()
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "status").write_text(f"Name:\t{comm}\nState:\tS (sleeping)\nUid:\t{uid}\t0\t0\t0\n")
    (folder / "cmdline").write_text("".join(f"{each}\0" for each in arguments))


def test_a_build_is_seen_whose_python_was_told_the_script(tmp_path: Path) -> None:
    (tmp_path / "python3.11").symlink_to(sys.executable)
    script = tmp_path / "emerge"
    script.write_text("print('started', flush=True)\ninput()\n")
    command = [tmp_path / "python3.11", "-I", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"started\n"
        assert Path(f"/proc/{process.pid}/comm").read_text() == "python3.11\n"
        assert read_probe(_run(["sh", "-c", probe_command()])).emerge_running
        process.stdin.write(b"\n")


def test_what_a_host_says_is_read() -> None:
    noise = "Welcome!\n" + GOOD + "Goodbye\n"
    assert read_probe(noise.encode()) == Probed(
        load=0.5, cores=4, disk_percent=(45, None), memory_percent=62, service=ServiceState.UP,
        emerge_running=True, uptime_s=12345.67,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "status"),
    [
        ("load 0.50", "load 50.0", ProbeStatus.OK),
        ("load 0.50", "load 50.01", ProbeStatus.OVERLOADED),
        ("disk 45", "disk 90", ProbeStatus.OK),
        ("disk 45", "disk 91", ProbeStatus.DISK_WARNING),
        ("disk 45", "disk 96", ProbeStatus.DISK_CRITICAL),
        ("memory 62", "memory 96", ProbeStatus.MEMORY_CRITICAL),
        ("service up", "service unknown", ProbeStatus.OK),
        ("load 0.50", "load 99\ndisk 99", ProbeStatus.DISK_CRITICAL),
        ("disk 45\ndisk \nmemory 62\nservice up", "disk 99\nmemory 99\nservice down",
         ProbeStatus.SERVICE_DOWN),
    ],
)  # fmt: skip
def test_what_it_amounts_to(before: str, after: str, status: ProbeStatus) -> None:
    assert before in GOOD
    assert read_probe(GOOD.replace(before, after).encode()).status is status


def spoilt() -> Iterator[str]:
    yield from ("", "swarmd-probe 1\n", GOOD.replace("end", "en"), GOOD.replace(" 1\nload", "\nl"))
    yield GOOD + "x" * PROBE_BYTES_MAX
    yield GOOD.replace("disk 45\n", "")
    yield GOOD.replace("disk 45\n", "disk 45\n" * 17)
    for line in GOOD.splitlines()[1:-1]:
        key = line.split()[0]
        for value in (
            "",
            "-1",
            "1e999",
            "nan",
            "inf",
            "999999999999999999",
            "٣",
            "0x10",
            " 5",
            "5 5",
        ):
            yield GOOD.replace(line, f"{key} {value}") if key != "disk" or value else GOOD + "é"
        if key != "disk":
            yield GOOD.replace(line + "\n", "")
            yield GOOD.replace(line, f"{line}\n{line}")
    yield GOOD.replace("uptime", "uptime 1\nuptimes")


@pytest.mark.parametrize("said", [*spoilt()])
def test_what_cannot_be_is_refused(said: str) -> None:
    with pytest.raises(Invalid):
        read_probe(said.encode())


@given(st.binary(max_size=500), st.integers(0, len(GOOD)), st.integers(0, 20))
def test_no_answer_does_harm(data: bytes, at: int, cut: int) -> None:
    for said in (data, GOOD[:at].encode() + data + GOOD[at + cut :].encode()):
        try:
            probed = read_probe(said)
        except Invalid:
            continue
        assert 0 <= probed.memory_percent <= 100 and probed.status in ProbeStatus


@pytest.mark.parametrize("service", ["", "a b", "-x", "$(x)", "a;b", "a\n", "x" * 200, "../x"])
def test_what_is_no_service_is_refused(service: str) -> None:
    with pytest.raises(Invalid):
        probe_command(service)


@pytest.mark.parametrize(
    "paths", [[], ["relative"], [""], ["/a\n"], ["/a\0"], ["/x"] * 17, ["/" + "x" * 2000]]
)
def test_what_is_no_path_is_refused(paths: list[str]) -> None:
    with pytest.raises(Invalid):
        probe_command(paths=paths)


def _run(command: list[str], path: str | None = None) -> bytes:
    env = {**os.environ, "PATH": path} if path else None
    return subprocess.run(command, check=True, capture_output=True, timeout=30, env=env).stdout
