"""Removal and promotion: what operators ask of the leader about members, and what a host asks that
was set up anew. Refused before anything is changed where the log would be left without a quorum.

What a removed node holds is not touched here: it gets no lease any more, and once its last is over
the leases give its work away, as of any other that fell silent.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv6Address, ip_address

from swarmd.cluster.asks import (
    MemberPromoted,
    MemberRemoved,
    PromoteMember,
    RemoveMember,
    TakePlace,
)
from swarmd.cluster.handle import Cluster, LogView, local_reads
from swarmd.cluster.numbers import raft_id_of
from swarmd.control.members import VoterSettings
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, NotFound, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.commands import RemoveNode
from swarmd.state.queries import ListNodes

log = logging.getLogger(__name__)

LAG_MAX = 256
"""Entries that a learner may be behind and still vote at once."""
STEP = 100
"""A node that has much is forgotten in parts: no entry takes long."""


class Removal:
    """Of one term of leadership."""

    def __init__(
        self, cluster: Cluster, settings: VoterSettings, silent: Callable[[NodeId], bool]
    ) -> None:
        self._cluster = cluster
        self._settings = settings
        self._silent = silent
        """Whether a node's last lease is over."""

    async def remove(self, ask: RemoveMember) -> MemberRemoved:
        node, nodes = await self._find(ask.node_id)
        view = self._cluster.log_view()
        next_voter = self._check_removal(view, node, nodes)
        if not ask.force and not ask.idle and not ask.dry and node.id != self._cluster.node.id:
            self._check_gone(node)
        if ask.dry:
            return MemberRemoved(node.name, len(view.voters))
        if node.id == self._cluster.node.id:
            # Somebody else has to do it: who is no member leads nobody.
            if next_voter is not None:
                await self._cluster.change_members(voters=(next_voter,))
            await self._cluster.hand_over()
            return MemberRemoved(node.name, len(view.voters), handed_over=True)
        await self._take_out(node, view, next_voter, ask.actor)
        return MemberRemoved(node.name, len(self._cluster.log_view().voters))

    async def take_place(self, ask: TakePlace) -> None:
        node, nodes = await self._find(ask.node_id)
        state = self._cluster.peer(node.id).state
        check_succession(node, state, self._silent(node.id), ask.mesh, ask.source)
        view = self._cluster.log_view()
        next_voter = self._check_removal(view, node, nodes)
        await self._take_out(node, view, next_voter, Actor(node.name, "mesh"))

    async def promote(self, ask: PromoteMember) -> MemberPromoted:
        node, _ = await self._find(ask.node_id)
        check_promotion(self._cluster.log_view(), node.id, node.name)
        await self._cluster.change_members(voters=(node.id,))
        return MemberPromoted(node.name, len(self._cluster.log_view().voters))

    async def _find(self, node_id: NodeId) -> tuple[Node, list[Node]]:
        with local_reads():
            nodes: list[Node] = await self._cluster.read(ListNodes((NodeKind.MEMBER,)))
        for node in nodes:
            if node.id == node_id:
                return node, nodes
        raise NotFound("no such node", node_id=node_id[:128])

    def _check_removal(self, view: LogView, node: Node, nodes: list[Node]) -> NodeId | None:
        """Who votes in its place, if anybody is to. Conflict: it cannot go."""
        reached = self._reached()
        next_voter = successor(view, node.id, self._settings.wanted(view), reached)
        check_removal(view, node.id, next_voter, reached, _names(nodes))
        return next_voter

    def _reached(self) -> set[NodeId]:
        members = (*self._cluster.members, self._cluster.node.id)
        return {node_id for node_id in members if self._cluster.peer(node_id).alive}

    def _check_gone(self, node: Node) -> None:
        if self._cluster.peer(node.id).alive:
            raise Conflict(
                f"{node.name} is alive: `swarmd leave` on it is the better way, for it ends its"
                " jobs first. With --force it is removed as it is",
                node=node.name,
            )

    async def _take_out(
        self, node: Node, view: LogView, next_voter: NodeId | None, actor: Actor
    ) -> None:
        """Out of the log first, then out of the state: nobody counts on it any more."""
        voters = () if next_voter is None else (next_voter,)
        if node.id in (*view.voters, *view.learners):
            await self._cluster.change_members(voters=voters, removed=(node.id,))
        command = RemoveNode(node.id, raft_id_of(node.id), STEP)
        while await self._cluster.propose(command, actor):
            pass
        log.warning("a node was removed", extra={"node_id": node.id, "node": node.name})


def successor(
    view: LogView, leaving: NodeId, wanted: int, reached: Collection[NodeId]
) -> NodeId | None:
    """The learner that votes in the place of a voter; None: there is none, or no need, as where
    enough others vote: a leader that is to leave has one more vote beside it, and then goes."""
    left = [n for n in view.voters if n != leaving]
    if leaving not in view.voters or (len(left) >= wanted and _decide(left, reached)):
        return None
    ready = [n for n in view.learners if n != leaving and _lacks(view, n) == ""]
    return max(ready, key=lambda n: (view.progress[n].match, n), default=None)


def _decide(voters: Collection[NodeId], reached: Collection[NodeId]) -> bool:
    return sum(n in reached for n in voters) > len(voters) // 2


def check_removal(
    view: LogView, leaving: NodeId, next_voter: NodeId | None, reached: Collection[NodeId],
    names: Mapping[NodeId, str],
) -> None:  # fmt: skip
    """Conflict: what is left would have no quorum, or nothing is left."""
    name = names.get(leaving, leaving)
    if set(names) == {leaving}:
        raise Conflict(
            f"{name} is the last node of its swarm: it cannot leave itself. `swarmd down` stops it;"
            " moving its data directory away ends the swarm"
        )
    if leaving not in view.voters:
        return
    left = [n for n in view.voters if n != leaving]
    left += [] if next_voter is None else [next_voter]
    if not left:
        raise Conflict(
            f"{name} is the only voter, and no learner has all that it has: without it the swarm's"
            " state is gone. See `swarmd raft status`, and try again when a learner has caught up"
        )
    if not _decide(left, reached):
        there, needed = sum(n in reached for n in left), len(left) // 2 + 1
        lost = [names.get(n, n) for n in left if n not in reached]
        raise Conflict(
            f"without {name} {there} of {len(left)} voters would be there, and {needed} are needed:"
            f" writes would stop for good. Not there: {', '.join(sorted(lost))}. Start them, or"
            " remove them first if they are gone for good",
            voters=len(left), there=there, needed=needed,
        )  # fmt: skip


def check_succession(
    node: Node, state: str, silent: bool, mesh: Collection[str], source: str
) -> None:
    """Whether a newcomer takes the place of the node that has the name it wants. Conflict: that one
    is alive, or was somewhere else: it may be a host that is only down, and this one a copy of it.
    Unavailable: ask again."""
    where = ", ".join(node.mesh) or "an unknown place"
    if state == "alive":
        raise Conflict(
            f"another node is called {node.name}; give this one a name of its own (--name,"
            f" node.name). That one is alive, at {where}; `swarmd leave` there frees the name",
            name=node.name, node_id=node.id,
        )  # fmt: skip
    if not _same_place(node.mesh, mesh, source):
        raise Conflict(
            f"another node is called {node.name}; give this one a name of its own (--name,"
            f" node.name). That one was at {where} and is not there at present; this one is at"
            f" {', '.join(mesh) or 'an unknown place'}{_asking_from(source)}. If that one is gone"
            f" for good, `swarmd remove {node.name}` on a member frees the name",
            name=node.name, node_id=node.id,
        )  # fmt: skip
    if state == "suspect" or not silent:
        raise Unavailable(
            f"a node that was called {node.name} and was at the same place is not known to be gone"
            " yet; it is looked for, and this one is taken in in its place as soon as it is"
        )


def _same_place(before: Collection[str], now: Collection[str], source: str) -> bool:
    """Who listens at an address says that nobody else does; and asks from there too, or its
    configuration is another host's."""
    asks_from = _number(source)
    return any(
        address in now and (asks_from is None or _number(address) in (None, asks_from))
        for address in before
    )


def _number(address: str) -> object | None:
    """The host of `host:port` where it is a number; None: it is a name, or nothing."""
    host = address.rpartition(":")[0].strip("[]").partition("%")[0]
    try:
        number = ip_address(host)
    except ValueError:
        return None
    return (number.ipv4_mapped or number) if isinstance(number, IPv6Address) else number


def _asking_from(source: str) -> str:
    return f", and asks from {source.rpartition(':')[0]}" if source else ""


def check_promotion(view: LogView, node_id: NodeId, name: str) -> None:
    if node_id in view.voters:
        raise Conflict(f"{name} votes already", node=name)
    if node_id not in view.learners:
        raise Conflict(
            f"{name} has no replica of the state: only a learner can become a voter", node=name
        )
    if lacks := _lacks(view, node_id):
        raise Conflict(f"{name} {lacks}; a vote of it would hold up the others", node=name)


def _lacks(view: LogView, learner: NodeId) -> str:
    progress = view.progress.get(learner)
    if progress is None or not progress.active:
        return "does not answer the leader"
    behind = view.last - progress.match
    if progress.state != "replicate" or behind > LAG_MAX:
        return f"is {max(0, behind)} entries behind (`swarmd raft status` shows when it is not)"
    return ""


def _names(nodes: Collection[Node]) -> dict[NodeId, str]:
    return {node.id: node.name for node in nodes}
