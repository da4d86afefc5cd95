"""Waiting for files: each waiter hears of its own file, also when who reads for all goes."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmd.agent.directories import tidy
from swarmd.agent.logs import AttemptLogs
from swarmd.cluster.asks import LogChunk, ReadLog
from swarmd.domain.errors import NotFound
from swarmd.domain.jobs import AttemptId
from swarmd.drivers.inotify import Watches


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    made = [tmp_path / name for name in "abc"]
    for path in made:
        path.touch()
    return made


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("x")


async def test_each_waiter_hears_of_its_own_file(files: list[Path]) -> None:
    watches = Watches()
    heard: list[str] = []

    async def wait(path: Path, task_status: trio.TaskStatus[None]) -> None:
        with watches.watching(path) as watch:
            task_status.started()
            await watch.changed()
            heard.append(path.name)

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for path in [*files, files[1]]:
                await nursery.start(wait, path)
            for count, path in ((1, files[2]), (3, files[1]), (4, files[0])):
                append(path)
                while len(heard) < count:
                    await trio.lowlevel.checkpoint()
    assert heard == ["c", "b", "b", "a"]


async def test_when_the_reader_goes_another_reads_on(files: list[Path]) -> None:
    watches = Watches()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            reader = trio.CancelScope()

            async def read_first(task_status: trio.TaskStatus[None]) -> None:
                with reader, watches.watching(files[0]) as watch:
                    task_status.started()
                    await watch.changed()

            await nursery.start(read_first)
            await trio.testing.wait_all_tasks_blocked()
            with watches.watching(files[1]) as watch:
                async with trio.open_nursery() as inner:
                    inner.start_soon(watch.changed)
                    await trio.testing.wait_all_tasks_blocked()
                    reader.cancel()
                    await trio.testing.wait_all_tasks_blocked()
                    append(files[1])


async def test_a_file_that_is_removed_wakes_its_waiter(files: list[Path]) -> None:
    watches = Watches()
    with trio.fail_after(60), watches.watching(files[0]) as watch:
        files[0].unlink()
        await watch.changed()
    with pytest.raises(FileNotFoundError), watches.watching(files[0]):
        pass


async def test_a_file_that_is_made_wakes_who_waits_for_it_alone(tmp_path: Path) -> None:
    watches = Watches()
    with trio.fail_after(60), watches.appearing(tmp_path / "out") as watch:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch.changed)
            await trio.testing.wait_all_tasks_blocked()
            append(tmp_path / "err")
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert nursery.child_tasks
            append(tmp_path / "out")
    with pytest.raises(FileNotFoundError), watches.appearing(tmp_path / "no" / "out"):
        pass


async def test_a_log_is_followed_from_before_its_directory_is_there(tmp_path: Path) -> None:
    attempt = AttemptId(7)
    logs = AttemptLogs(tmp_path, lambda _: True)
    chunks: list[LogChunk] = []

    async def follow() -> None:
        offset = 0
        while offset < 2:
            chunks.append(await logs.read(ReadLog(attempt, "stdout", offset, 100, 120.0)))
            offset = chunks[-1].next_offset

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "7").mkdir()
            await trio.testing.wait_all_tasks_blocked(0.02)
            append(tmp_path / "7" / "stderr")
            (tmp_path / "7" / "stdout").touch()
            await trio.testing.wait_all_tasks_blocked(0.02)
            append(tmp_path / "7" / "stdout")
            while not chunks:
                await trio.testing.wait_all_tasks_blocked(0.01)
            append(tmp_path / "7" / "stdout")
    assert b"".join(chunk.data for chunk in chunks) == b"xx"


async def test_a_stream_without_a_file_is_empty_and_without_a_directory_unknown(
    tmp_path: Path,
) -> None:
    logs = AttemptLogs(tmp_path, lambda _: False)
    for number in (1, 2):
        (tmp_path / str(number) / "work").mkdir(parents=True)
    append(tmp_path / "1" / "stderr")
    assert tidy([tmp_path / "1", tmp_path / "2"], tmp_path / "spares", 0) == []
    chunk = await logs.read(ReadLog(AttemptId(1), "stdout", 0))
    assert (chunk.data, chunk.ended) == (b"", True)
    assert (await logs.read(ReadLog(AttemptId(1), "stderr", 0))).data == b"x"
    with pytest.raises(NotFound):
        await logs.read(ReadLog(AttemptId(2), "stdout", 0))


def instances() -> int:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return links.count("anon_inode:inotify")


async def test_one_instance_serves_them_all_and_goes_with_them(files: list[Path]) -> None:
    before = instances()
    watches = Watches()
    for path in files * 10:
        with watches.watching(path):
            assert instances() == before + 1
    del watches
    gc.collect()
    assert instances() == before
