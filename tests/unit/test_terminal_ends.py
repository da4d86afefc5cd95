"""The end of a terminal is told: with its recording where that can be had, and at last without."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from swarmd.agent.blobs import BlobStore
from swarmd.agent.sharing import NodeBlobs
from swarmd.cluster.replica import Replica
from swarmd.domain.actors import SYSTEM
from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.domain.terminals import Terminal, TerminalEnd
from swarmd.drivers import asciicast
from swarmd.ops import terminals
from swarmd.ops.terminals import TerminalSettings, open_terminals
from swarmd.state import commands as c
from swarmd.state.build_commands import PutBuilder
from swarmd.state.terminal_commands import BeginTerminal
from tests.cluster import open_alone

ME, DRONE, ID = NodeId("n1"), NodeId("builder/one"), "a-terminal"
CAST = b'{"version": 2}\n[0.1, "o", "$ "]\n'
GIVEN_UP = "a recording cannot be read, and is put aside"


class Swarm:
    def __init__(self, cluster: Replica, folder: Path) -> None:
        self.cluster = cluster
        self.folder = folder
        self.file = folder / f"{ID}.cast"

    async def end(self) -> Terminal:
        """As the node that begins again has it end, which died with a terminal open."""
        nobody: Any = None
        async with open_terminals(
            self.cluster, nobody, self.folder, TerminalSettings(), lambda: False
        ):
            with trio.fail_after(20):
                while (found := await terminals.find(self.cluster, ID)).end is None:
                    await trio.sleep(0.01)
                while self.file.exists():
                    await trio.sleep(0.01)
        return found


@pytest.fixture
async def swarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Swarm]:
    monkeypatch.setattr(terminals, "KEEP_AGAIN_S", 0.01)
    monkeypatch.setattr(terminals, "KEEP_AGAIN_S_MAX", 0.01)
    monkeypatch.setattr(terminals, "READS_MAX", 5)
    node = Node(ME, "n1", addresses=("127.0.0.1",), machine_version=c.VERSION)
    async with open_alone(tmp_path, node, now_ms=lambda: 1_000_000) as cluster:
        await cluster.propose(c.RaiseVersion(c.VERSION, cluster.leadership().term), SYSTEM)
        with trio.fail_after(10):
            while cluster.cluster_version() < c.VERSION:
                await trio.sleep(0.01)
        cluster.blobs = NodeBlobs(cluster, BlobStore(tmp_path / "b", bytes_max=1 << 20), 1 << 20)
        drone = Node(DRONE, "one", NodeKind.DRONE, reach=("http",))
        await cluster.propose(PutBuilder(DRONE, node=drone), SYSTEM)
        begun = Terminal(ID, DRONE, "one", "10.0.0.1", "root", "", "", ME, "n1")
        await cluster.propose(BeginTerminal(begun), SYSTEM)
        folder = tmp_path / "terminals"
        folder.mkdir()
        yield Swarm(cluster, folder)


async def test_a_recording_that_can_never_be_read_is_put_aside_and_costs_the_end_nothing(
    swarm: Swarm, caplog: pytest.LogCaptureFixture
) -> None:
    swarm.file.mkdir()  # whoever opens it gets an OSError, even root
    ended = await swarm.end()
    assert (ended.end, ended.cut, ended.sha256) == (TerminalEnd.STOPPED, True, None)
    assert [file.name for file in swarm.folder.iterdir()] == [f"{ID}.unreadable"]
    (told,) = [record for record in caplog.records if record.message == GIVEN_UP]
    assert told.levelno == logging.ERROR and told.__dict__["terminal_id"] == ID
    # The next start has nothing to do with it.
    caplog.clear()
    assert await swarm.end() == ended
    assert not caplog.records and [*swarm.folder.iterdir()]


async def test_one_that_is_read_at_last_is_kept(
    swarm: Swarm, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm.file.write_bytes(CAST)
    fails = iter(range(terminals.READS_MAX - 1))
    mend = asciicast.mend

    def late(path: Path) -> int | None:
        for _ in fails:
            raise OSError(5, "Input/output error")
        return mend(path)

    monkeypatch.setattr(asciicast, "mend", late)
    ended = await swarm.end()
    chunks, size_bytes = await terminals.recording_of(swarm.cluster, ID)
    assert b"".join([chunk async for chunk in chunks]) == CAST and size_bytes == len(CAST)
    assert ended.sha256 is not None and not [*swarm.folder.iterdir()]
    assert GIVEN_UP not in caplog.messages


async def test_a_store_that_is_full_is_waited_for_however_long(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recording is there, and there will be room some day."""
    swarm.file.write_bytes(CAST)
    blobs, fails = swarm.cluster.blobs, iter(range(3 * terminals.READS_MAX))

    class Full:
        async def put(self, chunks: AsyncIterator[bytes], **how: Any) -> BlobInfo:
            for _ in fails:
                raise Unavailable("the blob store is full")
            return await blobs.put(chunks, **how)

    monkeypatch.setattr(swarm.cluster, "blobs", Full())
    ended = await swarm.end()
    assert ended.sha256 is not None and not [*swarm.folder.iterdir()]


def test_a_few_that_cannot_be_read_stay_for_who_can(tmp_path: Path) -> None:
    for number in range(asciicast.ASIDE_MAX + 3):
        file = tmp_path / f"{number:02}.cast"
        file.touch()
        asciicast.set_aside(file)
    left = sorted(file.name for file in tmp_path.iterdir())
    assert left == [f"{number:02}.unreadable" for number in range(3, asciicast.ASIDE_MAX + 3)]
