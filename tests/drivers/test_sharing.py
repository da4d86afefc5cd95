"""Blobs between nodes: real replicas, real wires, real disks."""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from mesh.transport import Me, TransportSettings, open_transport
from mesh.wal_sqlite import open_log
from swarmd.agent.blobs import BlobStore
from swarmd.agent.sharing import NodeBlobs
from swarmd.cluster.handle import local_reads
from swarmd.cluster.opening import OpeningSettings, open_replica
from swarmd.cluster.replica import Replica
from swarmd.domain.actors import Actor
from swarmd.domain.errors import NotFound, TooLarge, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.ops import blobs
from swarmd.state.queries import ListHolders
from swarmd.state.store import StoreSettings, open_store

ME = Actor("t", "test")
BYTES_MAX = 8 << 20


class Member:
    def __init__(self, replica: Replica, store: BlobStore) -> None:
        self.replica = replica
        self.store = store


@asynccontextmanager
async def open_member(place: Path, name: str, *seeds: str) -> AsyncIterator[Member]:
    place = place / name
    (place / "copies").mkdir(parents=True)
    numbers, clock, rng = itertools.count(), itertools.count(1_000_000), random.Random(name)
    async with (
        open_log(place / "raft.db", create=True) as raft_log,
        open_store(place / "state.db", StoreSettings()) as store,
        open_transport(TransportSettings(), Me(name, raft_log.boot), rng=rng) as wires,
        open_replica(
            Node(NodeId(name), name, mesh=tuple(wires.addresses)), raft_log, store, wires,
            place / "copies", OpeningSettings(), join=seeds, now_ms=lambda: next(clock),
            new_id=lambda: f"{name}-{next(numbers)}", rng=rng,
        ) as replica,
    ):  # fmt: skip
        kept = BlobStore(place / "blobs", bytes_max=1 << 30)
        replica.blobs = NodeBlobs(replica, kept, BYTES_MAX)
        await replica.introduced.wait()
        yield Member(replica, kept)


@asynccontextmanager
async def open_three(place: Path) -> AsyncIterator[list[Member]]:
    with trio.fail_after(60):
        async with AsyncExitStack() as stack:
            first = await stack.enter_async_context(open_member(place, "a"))
            seeds = first.replica.node.mesh
            members = [first]
            for name in "bc":
                members.append(await stack.enter_async_context(open_member(place, name, *seeds)))
            for member in members:
                while not all(member.replica.peer(m.replica.node.id).alive for m in members):
                    await trio.sleep(0.05)
            yield members


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 100_000):
        yield data[start : start + 100_000]


async def test_what_is_put_on_one_lies_on_two_and_is_read_on_all(tmp_path: Path) -> None:
    async with open_three(tmp_path) as members:
        data = random.Random(1).randbytes(3_000_000)
        info = await blobs.put(members[0].replica, ME, pieces(data))
        assert sum(m.store.has(info.sha256) for m in members) == 2
        for member in members:
            found = b"".join([c async for c in blobs.read(member.replica, info.sha256)])
            assert found == data
        with local_reads():
            holders = await members[0].replica.read(ListHolders(info.sha256))
        assert set(holders) == {"a", "b", "c"}


async def test_many_who_want_the_same_fetch_it_once(tmp_path: Path) -> None:
    async with open_three(tmp_path) as members:
        info = await blobs.put(members[0].replica, ME, pieces(bytes(500_000)))
        last = next(m for m in members if not m.store.has(info.sha256))
        fetched: list[int] = []

        async def want() -> None:
            fetched.append(sum([len(c) async for c in blobs.read(last.replica, info.sha256)]))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(want)
        assert fetched == [500_000] * 20


async def test_one_that_nobody_has_is_not_found_and_one_that_nobody_gives_unavailable(
    tmp_path: Path,
) -> None:
    async with open_three(tmp_path) as members:
        with pytest.raises(NotFound):
            await anext(blobs.read(members[0].replica, "0" * 64))
        info = await members[0].store.put_bytes(b"only here")
        await members[0].replica.propose(_added(info.sha256, 9, "a"), ME)
        await members[0].store.delete(info.sha256)
        with pytest.raises(Unavailable, match="no node that has"):
            await anext(blobs.read(members[1].replica, info.sha256))


async def test_what_is_too_large_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    async with open_three(tmp_path) as members:
        data = bytes(BYTES_MAX + 1)
        with pytest.raises(TooLarge):
            await blobs.put(members[0].replica, ME, pieces(data))
        assert not any(m.store.has(hashlib.sha256(data).hexdigest()) for m in members)


async def test_a_second_node_that_is_gone_holds_nothing_up(tmp_path: Path) -> None:
    async with open_member(tmp_path, "a") as alone:
        with trio.fail_after(10):
            info = await blobs.put(alone.replica, ME, pieces(b"x" * 1000))
        assert alone.store.has(info.sha256)


def _added(sha256: str, size: int, node: str):  # type: ignore[no-untyped-def]
    from swarmd.state.commands import AddBlob

    return AddBlob(sha256, size, NodeId(node))
