"""Launchers: of the jobs' account, so at their mercy; the runner and what it promised are not."""

# ruff: noqa: ASYNC240 - what is watched here are processes and files

from __future__ import annotations

import contextlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from swarmd.drivers.process import RunnerClient
from tests.drivers.runners import (
    NOBODY,
    PATH,
    alive,
    client,
    data_directory,
    ends,
    order,
    output,
    run,
    shell,
    started,
    until,
)  # fmt: skip
from tests.parts import need


@pytest.fixture
def folder() -> Iterator[Path]:
    need("root", "cgroup2")
    with data_directory() as found:
        yield found


def launchers(runner: RunnerClient) -> list[int]:
    """Children of the runner that call themselves so."""
    pid = runner.facts.pid
    found = []
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{child}/cmdline").read_bytes()
            same = words.startswith(b"swarmd launcher for account ")
            # A job on its way to its exec looks the same, but for its session.
            same = same and os.getsid(int(child)) == os.getsid(pid)
            if same and "\nUid:\t0\t" not in Path(f"/proc/{child}/status").read_text():
                found.append(int(child))
    return found


async def launcher_of(runner: RunnerClient) -> int:
    assert runner.facts.tracking == "cgroup2"
    (pid,) = launchers(runner)
    return pid


async def test_jobs_cannot_look_into_it(folder: Path) -> None:
    async with client(folder) as runner:
        await run(runner, shell(folder, "true", **NOBODY))
        pid = await launcher_of(runner)
        script = (
            f"head -c1 /proc/{pid}/mem; ls /proc/{pid}/fd/; cat /proc/{pid}/environ;"
            f" cat /proc/{pid}/maps; cat /proc/{pid}/fd/0; readlink /proc/{pid}/cwd; true"
        )
        job = shell(folder, script, **NOBODY)
        await run(runner, job)
        assert output(job, "stderr").count("ermission denied") >= 5
        assert not Path(job.dir, "stdout").exists()
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status and "CapPrm:\t0000000000000000" in status
        assert "Groups:\t \n" in status
        assert await launcher_of(runner) == pid


@pytest.mark.parametrize("how", ["KILL", "STOP"])
async def test_jobs_may_end_or_stop_it_and_gain_nothing(folder: Path, how: str) -> None:
    counter = folder / "count"
    counter.touch()
    counter.chmod(0o666)
    async with client(folder) as runner:
        before = shell(folder, "while ! [ -e ../../go ]; do sleep 0.05; done; exit 7", **NOBODY)
        await runner.start([before])
        await started(runner)
        pid, own = await launcher_of(runner), runner.facts.pid
        evil = shell(folder, f"kill -{how} {pid}; kill -{how} {own} || echo refused", **NOBODY)
        await runner.start([evil])
        await until(lambda: not alive(pid))
        orders = [shell(folder, f"echo $$ >> {counter}; exit 3", **NOBODY) for _ in range(20)]
        assert await runner.start(orders) == []
        found = await ends(runner, 21)
        assert found.pop(evil.id).exit_code == 0
        assert output(evil) == "refused\n"
        assert {end.exit_code for end in found.values()} == {3}
        assert len(counter.read_text().split()) == 20
        assert not alive(pid) and alive(own) and runner.facts.pid == own
        Path(folder, "go").touch()
        assert (await ends(runner))[before.id].exit_code == 7


@pytest.mark.parametrize("limits", [{}, {"memory_bytes": 64 << 20, "cpus": 0.5, "pids": 9}])
async def test_however_it_is_killed_each_job_runs_once_and_is_told_once(
    folder: Path, limits: dict[str, float]
) -> None:
    counter = folder / "count"
    counter.touch()
    counter.chmod(0o666)
    chance = random.Random(4)
    async with client(folder) as runner:
        orders = [
            shell(folder, f"echo {number} >> {counter}; sleep 0.01", uid=uid, gid=uid, **limits)
            for uid in range(70_000, 70_012)
            for number in range(uid * 100, uid * 100 + 12)
        ]
        killed: set[int] = set()

        async def kill() -> None:
            while True:
                for pid in set(launchers(runner)) - killed:
                    killed.add(pid)
                    await trio.sleep(chance.uniform(0, 0.02))
                    if pid in launchers(runner):
                        os.kill(pid, chance.choice((signal.SIGKILL, signal.SIGSTOP)))
                await trio.sleep(0.001)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill)
            assert await runner.start(orders) == []
            found = await ends(runner, len(orders))
            nursery.cancel_scope.cancel()
        ran = counter.read_text().split()
        assert len(ran) == len(set(ran)) == len(orders) == len(found)
        assert len(killed) > 3
        assert {end.exit_code for end in found.values() if end.reason != "lost"} == {0}
        # Only what it had reaped and not told when it was killed.
        assert sum(end.reason == "lost" for end in found.values()) <= len(killed)


async def test_large_environments_and_closed_ways_are_no_hindrance(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(0o700)
    async with client(folder) as runner:
        env = {"PATH": PATH, **{f"V{i}": "x" * 60_000 for i in range(5)}}
        job = shell(closed, "echo ${#V0} ${#V4}; touch y; ls", env=env, **NOBODY)
        assert (await run(runner, job)).exit_code == 0
        assert output(job) == "60000 60000\ny\n"
        assert await launcher_of(runner)


def groups_of(pid: int, kind: str) -> Path:
    """Where the bound of a kind of a process is written."""
    found = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        number, kinds, path = line.split(":", 2)
        found.update(dict.fromkeys(kinds.split(",") if number != "0" else [""], path))
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        system, _, options = right.split(" ", 2)
        v1 = system == "cgroup" and kind in options.replace(" ", ",").split(",")
        if v1 or (system == "cgroup2" and kind not in found):
            root, mount = left.split()[3:5]
            return Path(mount + "/" + found.get(kind, found[""]).removeprefix(root))
    raise AssertionError(kind)


def text_of(folder: Path, *names: str) -> str:
    (path,) = [folder / name for name in names if (folder / name).exists()]
    return path.read_text().strip()


@pytest.mark.needs("cgroup-memory", "cgroup-pids", "cgroup-cpu")
async def test_limits_hold_in_what_it_starts(folder: Path) -> None:
    limits = {"memory_bytes": 64 << 20, "cpus": 0.5, "pids": 7, **NOBODY}
    async with client(folder) as runner:
        await run(runner, shell(folder, "true", **NOBODY))
        launcher = await launcher_of(runner)
        home = Path(f"/proc/{launcher}/cgroup").read_text()
        for _ in range(3):  # the later ones in the cgroups of the first
            job = shell(folder, "sleep 100", **limits)
            await runner.start([job])
            pid = (await started(runner)).pid
            assert Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] == str(
                launcher
            )
            memory = text_of(groups_of(pid, "memory"), "memory.limit_in_bytes", "memory.max")
            cpu = text_of(groups_of(pid, "cpu"), "cpu.cfs_quota_us", "cpu.max")
            assert int(memory) == 64 << 20 and cpu.split()[0] == "50000"
            assert text_of(groups_of(pid, "pids"), "pids.max") == "7"
            assert (
                Path(f"/proc/{launcher}/cgroup").read_text()
                == home
                != (Path(f"/proc/{pid}/cgroup").read_text())
            )
            await runner.stop([job.id])
            assert (await ends(runner))[job.id].notes == ()


@pytest.mark.needs("cgroup-memory")
async def test_an_end_for_memory_is_of_the_job_that_met_it(folder: Path) -> None:
    argv = ("/bin/dd", "if=/dev/zero", "of=/dev/null", "count=1", "status=none")
    async with client(folder) as runner:
        await run(runner, shell(folder, "true", **NOBODY))
        pid = await launcher_of(runner)
        for size_mib in (300, 1, 300, 300, 1):
            job = order(folder, *argv, f"bs={size_mib}M", memory_bytes=64 << 20, **NOBODY)
            end = await run(runner, job)
            assert (end.reason, end.notes) == ("oom" if size_mib > 64 else "exit", ())
        # Too little for a launcher to go in.
        job = order(folder, *argv, "bs=60M", memory_bytes=20 << 20, **NOBODY)
        assert (await run(runner, job)).reason == "oom"
        assert await launcher_of(runner) == pid


@pytest.mark.needs("cgroup-pids")
@pytest.mark.parametrize("pids", [1, 4, 2**22])
async def test_processes_of_another_account_are_limited(folder: Path, pids: int) -> None:
    script = "for i in 1 2 3 4 5 6 7 8; do sleep 5 & done; wait"
    if pids > 8:
        script = "for i in 1 2 3 4 5 6 7 8; do sleep 0 & done; wait"
    async with client(folder) as runner:
        await run(runner, shell(folder, "true", **NOBODY))
        pid = await launcher_of(runner)
        for _ in range(2):
            job = shell(folder, script, pids=pids, grace_ms=100, timeout_ms=1500, **NOBODY)
            end = await run(runner, job)
            assert Path(job.dir, "stderr").exists() == (pids < 8)
            assert end.notes == ()
        assert await launcher_of(runner) == pid


async def test_it_goes_with_the_runner(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "sleep 100", **NOBODY)
        await runner.start([job])
        await started(runner)
        pid = await launcher_of(runner)
        os.kill(runner.facts.pid, signal.SIGKILL)
        assert (await ends(runner))[job.id].reason == "lost"
        await until(lambda: not alive(pid))
