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
    output,
    run,
    shell,
    started,
    until,
)  # fmt: skip
from tests.parts import need


@pytest.fixture
def folder() -> Iterator[Path]:
    need("root", "cgroup")
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
    if runner.facts.tracking != "cgroup2":
        pytest.skip("part missing: a writable cgroup v2")
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


async def test_however_it_is_killed_each_job_runs_once_and_is_told_once(folder: Path) -> None:
    counter = folder / "count"
    counter.touch()
    counter.chmod(0o666)
    chance = random.Random(4)
    async with client(folder) as runner:
        orders = [
            shell(folder, f"echo {number} >> {counter}; sleep 0.01", uid=uid, gid=uid)
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


async def test_it_goes_with_the_runner(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "sleep 100", **NOBODY)
        await runner.start([job])
        await started(runner)
        pid = await launcher_of(runner)
        os.kill(runner.facts.pid, signal.SIGKILL)
        assert (await ends(runner))[job.id].reason == "lost"
        await until(lambda: not alive(pid))
