"""Rotating: the keys of the gossip change one step at a time, each once all nodes have the last.

A step is the next generation of the ring, in the state before anybody goes by it. So a rotation
that was cut short, wherever that was, is read off the ring and gone on with.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress

import trio

from mesh.keyring import Keyring
from mesh.wires import Wires
from swarmd.cluster.asks import ReadRing, RotateKeyring
from swarmd.cluster.handle import Cluster, RingView, Rotated
from swarmd.cluster.trust import Trust
from swarmd.domain.errors import Conflict, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId

log = logging.getLogger(__name__)

ROTATE_S_MAX = 30.0
LOOK_EVERY_S = 0.1
ASK_S_MAX = 5.0


def next_ring(ring: Keyring, fresh: Callable[[], bytes] | None) -> Keyring | None:
    """The next step of a rotation, from the ring alone: a new key stands last until the others are
    gone. None: it is over, and `fresh` says whether another begins."""
    newest = ring.key_ids[-1]
    if newest != ring.primary:
        return ring.promote(newest)
    if len(ring.keys) > 1:
        return ring.retire(ring.key_ids[0])
    return None if fresh is None else ring.add(fresh())


def ring_view(ring: Keyring) -> RingView:
    return RingView(ring.generation, ring.primary.hex(), tuple(i.hex() for i in ring.key_ids))


class Rotating:
    def __init__(self, cluster: Cluster, trust: Trust, wires: Wires) -> None:
        self._cluster = cluster
        self._trust = trust
        self._wires = wires
        self._under_way = False

    def serve(self) -> None:
        self._cluster.answers(ReadRing, self._read)
        self._cluster.answers(RotateKeyring, self._rotate)

    async def _read(self, ask: ReadRing) -> RingView:
        trust = self._trust
        if trust.ring is None or trust.ring.generation < ask.generation:
            await trust.look(self._cluster)
            if not trust.vouches:
                with suppress(Unavailable):
                    await trust.fetch_ring(self._cluster, self._wires)
        if trust.ring is None:
            raise Unavailable("this node does not have the keys of the gossip yet")
        return ring_view(trust.ring)

    async def _rotate(self, ask: RotateKeyring) -> Rotated:
        standing = self._cluster.leadership()
        if standing.leader != self._cluster.node.id or not standing.ready:
            raise Unavailable("this node does not lead, or not yet; try again in a moment")
        if self._under_way:
            raise Conflict("the keys are being changed already; `swarmd keyring` shows how far")
        self._under_way = True
        lacking: dict[NodeId, str] = {}
        try:
            with trio.move_on_after(ROTATE_S_MAX):
                return await self._run(ask, lacking)
        finally:
            self._under_way = False
        names = ", ".join(f"{self._name(n)} ({why})" for n, why in sorted(lacking.items())[:5])
        raise Unavailable(
            f"within {ROTATE_S_MAX:g} s the new keys are not on {names or 'the log of the swarm'}."
            " The old key is good as long as that is so; when they are back, or are removed,"
            " `swarmd keyring rotate` goes on from here"
        )

    async def _run(self, ask: RotateKeyring, lacking: dict[NodeId, str]) -> Rotated:
        trust, cluster = self._trust, self._cluster
        await trust.look(cluster)
        if trust.ring is None or not trust.vouches:
            raise Unavailable("this node cannot open the swarm's keys yet; try again in a moment")
        finishing = next_ring(trust.ring, None) is not None
        fresh: Callable[[], bytes] | None = None if finishing else trust.fresh_key
        while True:
            ring = trust.ring
            assert ring is not None
            nodes = await self._on_all(ring.generation, lacking)
            step = next_ring(ring, fresh)
            if step is None:
                break
            fresh = None
            await trust.put_ring(cluster, step, ask.actor)
            await trust.look(cluster)
            log.info("the keys of the gossip changed", extra={"generation": step.generation})
        return Rotated(ring_view(ring), nodes, finishing)

    async def _on_all(self, generation: int, lacking: dict[NodeId, str]) -> int:
        """Wait until each node that is there has this generation, or a newer. One that is away
        gets it when it is back."""
        others = [n for n in self._cluster.members if n != self._cluster.node.id]
        there = [n for n in others if self._cluster.peer(n).alive]
        async with trio.open_nursery() as nursery:
            for node_id in there:
                lacking[node_id] = "it has not answered yet"
                nursery.start_soon(self._on_one, node_id, generation, lacking)
        return 1 + len(there)

    async def _on_one(self, node_id: NodeId, generation: int, lacking: dict[NodeId, str]) -> None:
        while self._cluster.peer(node_id).alive and node_id in self._cluster.members:
            try:
                with trio.move_on_after(ASK_S_MAX):
                    found = await self._cluster.ask(node_id, ReadRing(generation))
                    if found.generation >= generation:
                        break
                    lacking[node_id] = f"it has generation {found.generation}"
            except SwarmError as refusal:
                lacking[node_id] = refusal.message
            await trio.sleep(LOOK_EVERY_S)
        lacking.pop(node_id, None)

    def _name(self, node_id: NodeId) -> str:
        node = self._cluster.members.get(node_id)
        return node_id if node is None else node.name
