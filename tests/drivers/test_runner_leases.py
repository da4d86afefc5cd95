"""Leases in a real runner: what runs by one ends with it, whoever is there to see it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from swarmd.drivers.frames import boottime_ns
from swarmd.runner.core import LEASE_GRACE_MS
from tests.drivers.runners import alive, client, data_directory, ends, shell, started, until

STUBBORN = "trap '' TERM; echo $$ > {file}; while :; do sleep 0.05; done"
S = 1_000_000_000


@pytest.fixture
def folder() -> Iterator[Path]:
    with data_directory() as place:
        place.chmod(0o777)
        yield place


async def said(file: Path) -> int:
    """The pid that a job writes once it is as stubborn as it will be."""
    await until(lambda: file.exists() and file.read_text().endswith("\n"), 60)
    return int(await trio.Path(file).read_text())


async def test_it_ends_in_time_whatever_grace_the_job_has(folder: Path) -> None:
    """Half a second after its lease it is gone: the other half of what is left is for us."""
    job = shell(folder, STUBBORN.format(file=folder / "pid"), lease_ms=60_000, grace_ms=20_000)
    async with client(folder) as runner:
        await runner.start([job])
        await said(folder / "pid")
        began_ns = boottime_ns()
        assert await runner.renew([job.id], 0.6) == []
        end = (await ends(runner))[job.id]
    assert end.reason == "lease" and end.ended_boottime_ns is not None
    least_s = 0.6 + LEASE_GRACE_MS / 1000
    assert least_s - 0.1 < (end.ended_boottime_ns - began_ns) / S < 10


async def test_it_ends_while_no_daemon_is_there(folder: Path) -> None:
    job = shell(folder, STUBBORN.format(file=folder / "pid"), lease_ms=60_000)
    async with client(folder) as runner:
        await runner.start([job])
        pid = await said(folder / "pid")
        assert await runner.renew([job.id], 1.0) == []
    assert alive(pid)
    await until(lambda: not alive(pid), 20)
    async with client(folder) as runner:
        assert (await ends(runner))[job.id].reason == "lease"


async def test_a_stop_that_takes_its_time_does_not_outlast_the_lease(folder: Path) -> None:
    job = shell(folder, STUBBORN.format(file=folder / "pid"), lease_ms=60_000)
    async with client(folder) as runner:
        await runner.start([job])
        await said(folder / "pid")
        began = time.monotonic()
        await runner.stop([job.id], 30)
        assert await runner.renew([job.id], 0.5) == []
        end = (await ends(runner))[job.id]
    assert end.reason == "stopped"
    assert time.monotonic() - began < 10


async def test_what_waits_for_a_place_is_not_begun_after_its_lease(folder: Path) -> None:
    first = shell(folder, "sleep 1.2")
    second = shell(folder, f"touch {folder}/begun", lease_ms=400)
    third = shell(folder, "exit 3", lease_ms=60_000)
    async with client(folder, slots=1) as runner:
        await runner.start([first, second, third])
        found = await ends(runner, 3)
    assert found[second.id].reason == "lease"
    assert found[second.id].started_boottime_ns is None
    assert not (folder / "begun").exists()
    assert found[third.id].exit_code == 3


async def test_what_waits_for_a_place_can_be_renewed(folder: Path) -> None:
    first = shell(folder, f"until [ -e {folder}/over ]; do sleep 0.05; done")
    second = shell(folder, "exit 4", lease_ms=5000)
    async with client(folder, slots=1) as runner:
        over_ns = boottime_ns() + 5 * S
        await runner.start([first, second])
        assert await runner.renew([second.id], 60) == []
        await until(lambda: boottime_ns() > over_ns + S // 2)
        (folder / "over").touch()
        assert (await ends(runner, 2))[second.id].exit_code == 4


async def test_a_lease_counts_from_when_it_was_asked_for(folder: Path) -> None:
    late = shell(folder, f"touch {folder}/begun", lease_ms=3000,
                 lease_from_ns=boottime_ns() - 4 * S)  # fmt: skip
    job = shell(folder, "sleep 60", lease_ms=60_000)
    async with client(folder) as runner:
        await runner.start([late, job])
        assert (await ends(runner))[late.id].reason == "lease"
        assert not (folder / "begun").exists()
        # A renewal that was long on its way: most of it is used up.
        began = time.monotonic()
        await runner.renew([job.id], 30.0, boottime_ns() - int(29.6 * S))
        assert (await ends(runner))[job.id].reason == "lease"
        assert time.monotonic() - began < 10


async def test_nobody_asked_in_the_time_to_come(folder: Path) -> None:
    job = shell(folder, "sleep 60", lease_ms=60_000)
    async with client(folder) as runner:
        await runner.start([job])
        await started(runner)
        with trio.fail_after(20):
            await runner.renew([job.id], 0.3, boottime_ns() + 1000 * S)
            assert (await ends(runner))[job.id].reason == "lease"
