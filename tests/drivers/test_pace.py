"""What the runner puts off so that short jobs stay cheap is done all the same, and in time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from swarmd.drivers.frames import Ended, Started
from tests.drivers.runners import client, data_directory, ends, order, output, shell, until

LOUD_BYTES = 300_000
"""More than a pipe holds: who prints this waits until it is taken."""


@pytest.fixture
def folder() -> Iterator[Path]:
    with data_directory() as found:
        yield found


async def test_news_are_told_in_time_though_others_wait_for_a_place(folder: Path) -> None:
    """Nothing else happens meanwhile that could wake the runner."""
    async with client(folder, slots=1) as runner:
        for _ in range(5):
            quick, long, waiting = (
                order(folder, "/bin/true"), shell(folder, "sleep 60"), order(folder, "/bin/true"),
            )  # fmt: skip
            assert await runner.start([quick, long, waiting]) == []
            told: list[Started | Ended] = []
            with trio.fail_after(5):
                while not any(isinstance(i, Started) and i.id == long.id for i in told):
                    told += await runner.take()
            assert [i.id for i in told if isinstance(i, Ended)] == [quick.id]
            await runner.stop([long.id], 0)
            assert (await ends(runner, 2)).keys() == {long.id, waiting.id}
            await runner.ack([quick.id])


async def test_quick_jobs_are_told_many_at_once(folder: Path) -> None:
    async with client(folder, slots=1) as runner:
        orders = [order(folder, "/bin/true") for _ in range(300)]
        assert await runner.start(orders) == []
        ended: list[int] = []
        batches = 0
        with trio.fail_after(60):
            while len(ended) < len(orders):
                ended += [i.id for i in await runner.take() if isinstance(i, Ended)]
                batches += 1
        assert ended == [i.id for i in orders]
        assert batches < len(orders)


async def test_what_prints_much_is_heard_whenever_it_began(folder: Path) -> None:
    """One that begins while another is not watched yet must not be forgotten."""
    async with client(folder) as runner:
        orders = [shell(folder, f"head -c {LOUD_BYTES} /dev/zero; exit 4") for _ in range(12)]
        for number, loud in enumerate(orders):
            await runner.start([loud])
            await trio.sleep(number / 1000)
        with trio.fail_after(8):
            found = await ends(runner, len(orders))
        assert {(end.exit_code, end.stdout_size) for end in found.values()} == {(4, LOUD_BYTES)}


async def test_what_is_left_in_a_pipe_is_kept(folder: Path) -> None:
    """It ended before it was watched."""
    async with client(folder) as runner:
        orders = [shell(folder, f"echo {number}") for number in range(50)]
        await runner.start(orders)
        await ends(runner, len(orders))
        said = [output(each) for each in orders]
        assert said == [f"{number}\n" for number in range(50)]


async def test_who_runs_long_is_heard_while_it_runs(folder: Path) -> None:
    async with client(folder) as runner:
        job = shell(folder, "echo begin; sleep 60")
        await runner.start([job])
        said = Path(job.dir, "stdout")
        await until(lambda: said.exists() and said.read_text() == "begin\n", 5)
        await runner.stop([job.id], 0)
        await ends(runner)
