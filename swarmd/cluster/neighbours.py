"""Neighbours: what gossip tells this node of the other members, and what it tells them.

A hint, never a decision: what follows from a death is proposed, and agreed on, elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import trio

from mesh.gossip import Gossip, open_gossip
from mesh.gossip_sockets import Datagrams
from mesh.identity.boxes import Entropy
from mesh.sealing import Sealing
from mesh.swim import INCARNATION_MAX, MemberView, Rng, RttStats, Self, Settings, State
from mesh.wires import NotAllowed, WireError, Wires
from swarmd.cluster.handle import Doubles, PeerView, Role
from swarmd.cluster.trust import Trust
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node

log = logging.getLogger(__name__)

SESSION_BYTES = 16
LOOK_EVERY_S = 5.0
UNBORN_LOOK_S = 0.25
UNBORN = INCARNATION_MAX
LEAVE_S_MAX = 1.0
SEEDS_MAX = 64
STATES = {
    State.ALIVE: "alive",
    State.SUSPECT: "suspect",
    State.DEAD: "dead",
    State.LEFT: "left",
}


@dataclass(frozen=True)
class GossipSettings:
    profile: Settings
    binds: tuple[str, ...]
    """Where the wires listen: datagrams come and go there too."""
    boot: int
    """Grows with each start of this node."""
    opens: Callable[[Sequence[str]], Datagrams] | None = None
    """Where datagrams go by other ways than sockets."""


class Neighbours:
    """Owned by the node's loop. Nothing is known until this node has the keys of the gossip."""

    def __init__(self) -> None:
        self._gossip: Gossip | None = None
        self._heard: tuple[str, ...] = ()

    def heard(self, addresses: Iterable[str]) -> None:
        """Members may answer there too; who is there is found out by asking."""
        self._heard = tuple(addresses)[:SEEDS_MAX]

    def state(self, node_id: NodeId) -> str | None:
        """alive, suspect, dead or left; None: gossip does not know it, or not yet."""
        member = self._gossip.member(node_id) if self._gossip is not None else None
        return None if member is None else STATES[member.state]

    def rtt(self, node_id: NodeId) -> RttStats | None:
        """Of this node's own probes."""
        return self._gossip.rtt(node_id) if self._gossip is not None else None

    def distance_s(self, a: NodeId, b: NodeId) -> float | None:
        """The round trip between any two, by their coordinates."""
        return self._gossip.distance(a, b) if self._gossip is not None else None

    @property
    def health(self) -> int | None:
        """Of this node in its own eyes; 0 is well."""
        return self._gossip.health if self._gossip is not None else None

    def doubles(self) -> Doubles:
        """Names that several go by, and a second process with this node's id."""
        gossip = self._gossip
        if gossip is None:
            return Doubles()
        names = {
            name: tuple((NodeId(id), _places(gossip.member(id))) for id in ids)
            for name, ids in gossip.namesakes().items()
        }
        return Doubles(names, gossip.double)

    def drops(self) -> Mapping[str, int]:
        """Datagrams that were thrown away, by reason."""
        return dict(self._gossip.counts.dropped) if self._gossip is not None else {}

    async def run(
        self,
        node: Node,
        members: Callable[[], Mapping[NodeId, Node]],
        trust: Trust,
        wires: Wires,
        settings: GossipSettings,
        *,
        entropy: Entropy,
        rng: Rng,
    ) -> None:
        """Take part, from when the keys are here until it is cancelled."""
        while trust.ring is None:
            await trust.changed.wait()
        sealing = Sealing(node.id, entropy(SESSION_BYTES), trust.ring)
        tags = {"version": node.version, "machine": str(node.machine_version)}
        me = Self(
            id=node.id, boot=settings.boot, name=node.name, addresses=node.mesh, tags=tags,
            born=_born(members(), node.id),
        )  # fmt: skip
        async with open_gossip(
            settings.profile, me, wires, sealing, binds=settings.binds, rng=rng,
            seeds=_addresses(members().values(), node.id), opens=settings.opens,
        ) as gossip:  # fmt: skip
            self._gossip = gossip
            try:
                await self._follow(gossip, node.id, members, trust, sealing)
            finally:
                self._gossip = None

    async def leave(self) -> None:
        """Before this node stops: nobody has to find out."""
        if self._gossip is not None:
            await self._gossip.leave(LEAVE_S_MAX)

    async def _follow(
        self,
        gossip: Gossip,
        me: NodeId,
        members: Callable[[], Mapping[NodeId, Node]],
        trust: Trust,
        sealing: Sealing,
    ) -> None:
        """Keys that change, nodes that are removed, and where the others live."""
        removed: frozenset[NodeId] = frozenset()
        told: tuple[str, ...] = ()
        born = gossip.me.born
        while True:
            changed = trust.changed
            if born == UNBORN and (born := _born(members(), me)) != UNBORN:
                gossip.be_born(born)
            if trust.ring is not None:
                sealing.use(trust.ring)
            # Of its own removal a node hears by its trust, and ends.
            for node_id in sorted(trust.known.gone - removed - {me}):
                gossip.remove(node_id)
            removed = trust.known.gone
            known = _addresses(members().values(), me)
            addresses = tuple(dict.fromkeys((*known, *self._heard)))[:SEEDS_MAX]
            if addresses != told:
                told = addresses
                try:
                    gossip.seed(addresses)
                except (WireError, NotAllowed) as error:
                    log.warning("addresses of members are not usable", extra={"reason": str(error)})
            with trio.move_on_after(LOOK_EVERY_S if born != UNBORN else UNBORN_LOOK_S):
                await changed.wait()


def _born(members: Mapping[NodeId, Node], me: NodeId) -> int:
    """When this node was taken into the swarm, by the state, which says the same everywhere. Before
    it says so here this node is the youngest of all: its name is another's until then."""
    known = members.get(me)
    return UNBORN if known is None else known.born


def _places(member: MemberView | None) -> str:
    return "" if member is None else ", ".join(member.addresses)


def _addresses(nodes: Iterable[Node], me: NodeId) -> tuple[str, ...]:
    return tuple(sorted({at for node in nodes if node.id != me for at in node.mesh}))[:SEEDS_MAX]


def view_of(role: Role, node_id: NodeId, neighbours: Neighbours, wires: Wires) -> PeerView:
    """What this node sees of another. Before gossip knows it, whether a stream to it stands."""
    state = neighbours.state(node_id)
    if state is None:
        state = "alive" if wires.linked(node_id) else "dead"
    stats, about = neighbours.rtt(node_id), wires.about(node_id)
    rtt_s = about.rtt_smoothed_s if about is not None else None
    if stats is not None:
        rtt_s = stats.smoothed_s
    rtt_ms = None if rtt_s is None else rtt_s * 1000
    return PeerView(role, alive=state in ("alive", "suspect"), rtt_ms=rtt_ms, state=state)
