"""Logs and directories of attempts on the disk: what is read, what goes, what is used again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmd.agent.directories import tidy
from swarmd.agent.logs import AttemptLogs
from swarmd.cluster.asks import LogChunk, ReadLog
from swarmd.domain.errors import Invalid, NotFound
from swarmd.domain.jobs import AttemptId

ID = AttemptId(7)


class Place:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.running: set[AttemptId] = {ID}
        self.logs = AttemptLogs(root, lambda attempt_id: attempt_id in self.running)
        self.directory = self.logs.directory(ID)
        (self.directory / "work").mkdir(parents=True)

    def write(self, text: str, stream: str = "stdout") -> None:
        with (self.directory / stream).open("a") as file:
            file.write(text)

    def end(self) -> None:
        self.running.discard(ID)
        self.logs.ended(ID)

    async def read(self, offset: int = 0, wait_s: float = 0.0, **more: object) -> LogChunk:
        ask = ReadLog(ID, **{"stream": "stdout", **more}, offset=offset, wait_s=wait_s)  # type: ignore[arg-type]
        return await self.logs.read(ask)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    yield Place(tmp_path / "attempts")


async def test_a_log_is_read_from_an_offset_to_its_end(place: Place) -> None:
    place.write("0123456789")
    chunk = await place.read(4, bytes_max=3)
    assert (chunk.data, chunk.next_offset, chunk.ended) == (b"456", 7, False)
    place.end()
    assert await place.read(7) == LogChunk(b"789", 10, False)
    assert await place.read(10) == LogChunk(b"", 10, True)
    assert await place.read(99) == LogChunk(b"", 99, True)


async def test_who_waits_is_woken_by_the_first_byte_by_more_and_by_the_end(place: Place) -> None:
    got: list[LogChunk] = []

    async def follow() -> None:
        while not got or not got[-1].ended:
            offset = got[-1].next_offset if got else 0
            got.append(await place.read(offset, wait_s=60))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert got == []
            place.write("one")
            while b"".join(chunk.data for chunk in got) != b"one":
                await trio.testing.wait_all_tasks_blocked()
            place.write("two")
            while b"".join(chunk.data for chunk in got) != b"onetwo":
                await trio.testing.wait_all_tasks_blocked()
            place.end()
    assert got[-1].ended


async def test_a_hole_is_told_and_passed_over(place: Place) -> None:
    path = place.directory / "stdout"
    with path.open("wb") as file:
        file.write(b"head" * 1024)
        file.seek(1024 * 1024)
        file.write(b"tail")
    data, offset = b"", 0
    while chunk := (await place.read(offset)):
        if not chunk.data:
            break
        data, offset = data + chunk.data, chunk.next_offset
    assert data.startswith(b"head" * 1024) and data.endswith(b"tail")
    assert b"bytes cut here" in data and len(data) < 8192
    assert offset == 1024 * 1024 + 4


async def test_a_name_that_is_no_stream_and_an_attempt_that_never_was(place: Place) -> None:
    with pytest.raises(Invalid):
        await place.read(stream="../work")
    with pytest.raises(NotFound):
        await place.logs.read(ReadLog(AttemptId(8), "stdout", 0))


async def test_a_link_in_the_place_of_a_log_is_not_followed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (place.directory / "stdout").symlink_to(tmp_path / "secret")
    with pytest.raises(OSError):
        await place.read()


def test_a_directory_is_used_again_only_where_nothing_was_left(tmp_path: Path) -> None:
    spares = tmp_path / "spare"
    spares.mkdir()
    made = {}
    for name in ("clean", "log", "file", "attribute", "fifth"):
        made[name] = tmp_path / name
        (made[name] / "work").mkdir(parents=True)
    (made["clean"] / "program").write_text("x")
    (made["log"] / "stdout").write_text("said")
    (made["file"] / "work" / "left").write_text("x")
    try:
        os.setxattr(made["attribute"] / "work", "user.left", b"x")
    except OSError:
        (made["attribute"] / "work" / "left").write_text("x")  # no attributes on this filesystem
    kept = tidy(made.values(), spares, room=1)
    assert kept == [spares / "clean"] and [e.name for e in kept[0].iterdir()] == ["work"]
    assert [p.name for p in made["log"].iterdir()] == ["stdout"]
    for name in ("clean", "file", "attribute", "fifth"):
        assert not made[name].exists(), name


def test_the_oldest_logs_go_first_and_those_of_the_living_stay(place: Place) -> None:
    for number in range(1, 6):
        directory = place.root / str(number)
        directory.mkdir()
        (directory / "stdout").write_bytes(b"x" * 100_000)
    removed = place.logs.forget_oldest(250_000, frozenset({AttemptId(1)}))
    left = sorted(int(entry.name) for entry in place.root.iterdir())
    assert removed == 2 and left == [1, 4, 5, 7]
