"""Versions of payloads are made known: what is refused leaves nothing in the store of blobs."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from swarmd.agent.blobs import BlobStore
from swarmd.agent.sharing import NodeBlobs
from swarmd.cluster.replica import Replica
from swarmd.domain import payloads as words
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import Conflict, Invalid
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.domain.payloads import Payload, PayloadSort
from swarmd.ops import payloads
from swarmd.ops.payloads import NewPayload
from swarmd.state import commands as c
from tests.cluster import open_alone

FILE = b"a file" * 100_000


@dataclass
class Swarm:
    cluster: Replica
    store: BlobStore

    async def register(self, version: str, data: bytes) -> tuple[Payload, bool]:
        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 65_536):
                yield data[start : start + 65_536]

        new = NewPayload(PayloadSort.CONFIG, version)
        return await payloads.register(self.cluster, SYSTEM, new, pieces())

    def stored(self) -> int:
        found = sum(1 for _, _, files in os.walk(self.store.root) for _ in files)
        assert bool(found) == bool(self.store.total_bytes)
        return found


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[Swarm]:
    node = Node(NodeId("n1"), "n1", addresses=("127.0.0.1",), machine_version=c.VERSION)
    async with open_alone(tmp_path, node, now_ms=lambda: 1_000_000) as cluster:
        await cluster.propose(c.RaiseVersion(c.VERSION, cluster.leadership().term), SYSTEM)
        with trio.fail_after(10):
            while cluster.cluster_version() < c.VERSION:
                await trio.sleep(0.01)
        store = BlobStore(tmp_path / "blobs", bytes_max=1 << 30)
        cluster.blobs = NodeBlobs(cluster, store, 1 << 20)
        yield Swarm(cluster, store)


async def test_another_file_under_a_known_version_is_refused_and_not_stored(swarm: Swarm) -> None:
    first, new = await swarm.register("1.0", FILE)
    assert new and first.size_bytes == len(FILE) and swarm.stored() == 1
    for other in (FILE + b".", b"short", b""):
        with pytest.raises(Conflict, match="as another file") as refused:
            await swarm.register("1.0", other)
        assert refused.value.facts["sha256"] == first.sha256
    assert swarm.stored() == 1
    assert await swarm.register("1.0", FILE) == (first, False)
    assert (await swarm.register("1.1", FILE))[1], "the same file under another version"
    assert swarm.stored() == 1


async def test_one_version_too_many_is_refused_before_any_of_it_is_stored(
    swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(words, "VERSIONS_MAX", 2)
    for version in ("1", "2"):
        await swarm.register(version, FILE)
    with pytest.raises(Conflict, match="there are 2 versions"):
        await swarm.register("3", b"another")
    assert swarm.stored() == 1
    assert not (await swarm.register("2", FILE))[1], "one of those that there are"


async def test_a_file_without_bytes_is_no_version(swarm: Swarm) -> None:
    with pytest.raises(Invalid, match="empty"):
        await swarm.register("1", b"")
    assert await payloads.list_payloads(swarm.cluster) == []
