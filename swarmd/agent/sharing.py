"""Blobs between nodes: one that is put lies on two of them, one that is wanted comes from whoever
has it. What arrives is checked by its hash, whoever sent it.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
import trio

from swarmd.agent.blobs import BlobStore
from swarmd.cluster.handle import Channel, Cluster, local_reads
from swarmd.domain.actors import Actor
from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import Invalid, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.state.commands import AddBlob
from swarmd.state.queries import ListHolders

log = logging.getLogger(__name__)

GET, PUT = "blob-get", "blob-put"
STALL_S_MAX = 30.0
PEERS_TRIED_MAX = 3
FETCHES_MAX = 8


class Asked(msgspec.Struct, frozen=True, array_like=True):
    sha256: str
    size_bytes: int = 0


class _Fetch:
    def __init__(self) -> None:
        self.done = trio.Event()
        self.refusal: SwarmError | None = None


class NodeBlobs:
    """The port through which everyone above stores and reads."""

    def __init__(self, cluster: Cluster, store: BlobStore, blob_bytes_max: int) -> None:
        self._cluster = cluster
        self._store = store
        self._blob_bytes_max = blob_bytes_max
        self._actor = Actor(cluster.node.name, "mesh")
        self._fetching: dict[str, _Fetch] = {}
        self._fetches = trio.CapacityLimiter(FETCHES_MAX)
        cluster.answers_channel(GET, self._give)
        cluster.answers_channel(PUT, self._take)

    async def put(
        self, chunks: AsyncIterator[bytes], *, expected_sha256: str | None = None
    ) -> BlobInfo:
        info = await self._store.put(
            chunks, expected_sha256=expected_sha256, bytes_max=self._blob_bytes_max
        )
        await self._bring_to_another(info)
        return info

    async def put_bytes(self, data: bytes) -> BlobInfo:
        info = await self._store.put_bytes(data)
        await self._bring_to_another(info)
        return info

    @asynccontextmanager
    async def open(self, sha256: str) -> AsyncIterator[AsyncIterator[bytes]]:
        if not self._store.has(sha256):
            await self._fetch(sha256)
        async with self._store.open(sha256) as chunks:
            yield chunks

    # Out.

    async def _bring_to_another(self, info: BlobInfo) -> None:
        """One host that burns down must not take it along; where no other answers, one has it."""
        for peer in self._peers(info.sha256)[:PEERS_TRIED_MAX]:
            try:
                await self._bring(peer, info)
                return
            except (SwarmError, trio.TooSlowError) as error:
                log.warning(
                    "a blob did not reach a second node",
                    extra={"node": peer, "sha256": info.sha256, "reason": str(error)},
                )

    def _peers(self, sha256: str) -> list[NodeId]:
        """Members that answer, in an order that the hash picks: so blobs spread evenly."""
        alive = sorted(
            n for n in self._cluster.members
            if n != self._cluster.node.id and self._cluster.peer(n).alive
        )  # fmt: skip
        start = int(sha256[:8], 16) % len(alive) if alive else 0
        return alive[start:] + alive[:start]

    async def _bring(self, peer: NodeId, info: BlobInfo) -> None:
        asked = msgspec.msgpack.encode(Asked(info.sha256, info.size_bytes))
        async with self._cluster.open_channel(peer, PUT, asked) as channel:
            with trio.fail_after(STALL_S_MAX):
                if await channel.receive() == b"have":
                    return
            async with self._store.open(info.sha256) as chunks:
                async for chunk in chunks:
                    with trio.fail_after(STALL_S_MAX):
                        await channel.send(chunk)
            await channel.send_end()
            with trio.fail_after(STALL_S_MAX):
                if await channel.receive() != b"ok":
                    raise Unavailable("the node did not say that it has the blob")

    async def _give(self, asked: bytes, channel: Channel) -> None:
        found = _asked(asked)
        async with self._store.open(found.sha256) as chunks:
            async for chunk in chunks:
                with trio.fail_after(STALL_S_MAX):
                    await channel.send(chunk)

    # In.

    async def _take(self, asked: bytes, channel: Channel) -> None:
        wanted = _asked(asked)
        if self._store.has(wanted.sha256):
            await channel.send(b"have")
        else:
            await channel.send(b"send")
            await self._store.put(
                _received(channel), expected_sha256=wanted.sha256, bytes_max=self._blob_bytes_max
            )
        command = AddBlob(wanted.sha256, wanted.size_bytes, self._cluster.node.id)
        await self._cluster.propose(command, self._actor)
        await channel.send(b"ok")

    async def _fetch(self, sha256: str) -> None:
        """Once, however many want it."""
        under_way = self._fetching.get(sha256)
        if under_way is not None:
            await under_way.done.wait()
            if under_way.refusal is not None:
                raise type(under_way.refusal)(under_way.refusal.message, sha256=sha256)
            return
        self._fetching[sha256] = fetch = _Fetch()
        try:
            async with self._fetches:
                await self._fetch_from_any(sha256)
        except SwarmError as refusal:
            fetch.refusal = refusal
            raise
        except BaseException:
            fetch.refusal = Unavailable("whoever fetched the blob gave up; try again")
            raise
        finally:
            del self._fetching[sha256]
            fetch.done.set()

    async def _fetch_from_any(self, sha256: str) -> None:
        others = await self._other_holders(sha256)
        asked = msgspec.msgpack.encode(Asked(sha256))
        for peer in sorted(others, key=lambda n: not self._cluster.peer(n).alive):
            try:
                async with self._cluster.open_channel(peer, GET, asked) as channel:
                    info = await self._store.put(
                        _received(channel), expected_sha256=sha256, bytes_max=self._blob_bytes_max
                    )
            except (SwarmError, trio.TooSlowError) as error:
                log.warning(
                    "a blob could not be had from a node",
                    extra={"node": peer, "sha256": sha256, "reason": str(error)},
                )
                continue
            command = AddBlob(info.sha256, info.size_bytes, self._cluster.node.id)
            try:
                await self._cluster.propose(command, self._actor)
            except SwarmError as refusal:  # it is here all the same
                log.info("a blob's holder is not noted", extra={"reason": refusal.message})
            return
        if others:
            raise Unavailable("no node that has the blob answers; try again later", sha256=sha256)
        raise NotFound("no such blob", sha256=sha256)

    async def _other_holders(self, sha256: str) -> list[NodeId]:
        """As this replica knows them. Where it knows none it may be behind: the swarm is asked."""
        for local in (True, False):
            with local_reads(local):
                holders = await self._cluster.read(ListHolders(sha256))
            if others := [n for n in holders if n != self._cluster.node.id]:
                return others
        return []


async def _received(channel: Channel) -> AsyncIterator[bytes]:
    while True:
        with trio.fail_after(STALL_S_MAX):
            chunk = await channel.receive()
        if not chunk:
            return
        yield chunk


def _asked(body: bytes) -> Asked:
    try:
        return msgspec.msgpack.decode(body, type=Asked)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"this asks for no blob: {error}") from None
