"""The log of the swarm as operators see it: where it stands, who leads next, copies of the state.

To look needs no leader: what this node cannot know by itself is asked for briefly, and said to be
missing where nobody answers.
"""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from typing import BinaryIO

import msgspec
import trio

from swarmd.cluster.asks import HandOver, ReadLogView
from swarmd.cluster.handle import Cluster, LogView, StateCopy, local_reads
from swarmd.domain.errors import Busy, Conflict, NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.queries import ListNodes
from swarmd.state.store import check_copy

log = logging.getLogger(__name__)

LEADER_S_MAX = 1.0
"""For the leader to tell how far it has brought each member."""
HAND_OVER_S_MAX = 8.0
SETTLE_S_MAX = 1.5
SETTLE_LOOK_S = 0.05
BEHIND_MAX = 1000
"""Entries that a voter may lack and still take over at once: they are with it in a moment, and
writes wait no longer than that."""
CHUNK_BYTES = 256 * 1024


class MemberView(msgspec.Struct, frozen=True):
    name: str
    id: str
    role: str
    alive: bool
    rtt_ms: float | None
    match: int | None
    """How far the leader knows its log to be on its disk; None: the leader did not tell."""
    behind: int | None
    """Entries that it lacks of the leader's log."""
    state: str | None
    """probe, replicate or snapshot."""


class RaftStatus(msgspec.Struct, frozen=True):
    cluster_id: str
    node: str
    role: str
    """leader, follower (a voter that does not lead), learner, or none of them."""
    leader: str | None
    term: int
    first: int
    last: int
    committed: int
    applied: int
    staleness_ms: int | None
    voters: tuple[str, ...]
    learners: tuple[str, ...]
    joint: bool
    members: tuple[MemberView, ...]
    standing: str
    """In words: whether writes can go on, and what would stop them."""
    note: str
    """What is missing here, and why; else empty."""


async def status(cluster: Cluster) -> RaftStatus:
    """As this node sees it, leader or not; how far the others are, as the leader does."""
    view, note = await _leaders_view(cluster)
    mine, leadership = cluster.log_view(), cluster.leadership()
    nodes = await _members(cluster)
    me = cluster.node.id
    return RaftStatus(
        cluster_id=cluster.cluster_id,
        node=cluster.node.name,
        role="leader" if leadership.leader == me else _role(mine, me),
        leader=None if leadership.leader is None else _name(nodes, leadership.leader),
        term=mine.term,
        first=mine.first,
        last=mine.last,
        committed=mine.committed,
        applied=mine.applied,
        staleness_ms=cluster.staleness_ms(),
        voters=tuple(sorted(_name(nodes, n) for n in mine.voters)),
        learners=tuple(sorted(_name(nodes, n) for n in mine.learners)),
        joint=mine.joint,
        members=_member_views(cluster, mine, view, nodes),
        standing=standing(cluster),
        note=note,
    )


async def _leaders_view(cluster: Cluster) -> tuple[LogView | None, str]:
    leader = cluster.leadership().leader
    if leader is None:
        return None, "no leader is known: how far each member is, nobody can tell"
    if leader == cluster.node.id:
        return cluster.log_view(), ""
    try:
        with trio.fail_after(LEADER_S_MAX):
            return await cluster.ask(leader, ReadLogView()), ""
    except trio.TooSlowError:
        why = f"no answer within {LEADER_S_MAX:g} s"
    except SwarmError as refusal:
        why = refusal.message
    return None, f"the leader does not tell how far each member is: {why}"


async def _members(cluster: Cluster) -> dict[NodeId, Node]:
    with local_reads():
        return {node.id: node for node in await cluster.read(ListNodes())}


def _name(nodes: dict[NodeId, Node], node_id: NodeId) -> str:
    return nodes[node_id].name if node_id in nodes else node_id


def _role(view: LogView, node_id: NodeId) -> str:
    if node_id in view.voters:
        return "follower"
    return "learner" if node_id in view.learners else "none"


def _member_views(
    cluster: Cluster, mine: LogView, leaders: LogView | None, nodes: dict[NodeId, Node]
) -> tuple[MemberView, ...]:
    views = []
    for node_id in sorted({*mine.voters, *mine.learners}, key=lambda n: (_name(nodes, n), n)):
        seen = cluster.peer(node_id)
        progress = leaders.progress.get(node_id) if leaders is not None else None
        match = behind = None
        if leaders is not None and progress is not None:
            match, behind = progress.match, max(0, leaders.last - progress.match)
        views.append(
            MemberView(
                name=_name(nodes, node_id),
                id=node_id,
                role="voter" if node_id in mine.voters else "learner",
                alive=seen.alive,
                rtt_ms=seen.rtt_ms,
                match=match,
                behind=behind,
                state=None if progress is None else progress.state,
            )
        )
    return tuple(views)


def standing(cluster: Cluster) -> str:
    """Whether writes can go on as far as this node sees, and what would stop them."""
    view = cluster.log_view()
    count = len(view.voters)
    needed = count // 2 + 1
    up = sum(cluster.peer(voter).alive for voter in view.voters)
    if view.joint:
        return "voters are being changed: a majority of the old and one of the new must agree"
    if cluster.leadership().leader is None:
        return (
            f"no leader: this node reaches {up} of {count} voters, {needed} are needed;"
            " writes, and reads that are vouched for, are refused"
        )
    if count <= 1:
        return "one voter: the swarm is as durable as its disk"
    if up < needed:
        return f"this node reaches {up} of {count} voters, {needed} are needed for writes"
    if up == needed:
        stops = "losing either" if count == 2 else "losing one more"
        return f"{up} of {count} voters are there, {needed} are needed: {stops} stops writes"
    return f"{up} of {count} voters are there, {needed} are needed"


class Transfer(msgspec.Struct, frozen=True):
    leader: str
    term: int
    before: str


async def transfer(cluster: Cluster, wanted: str | None) -> Transfer:
    """Have another voter lead, the one that is furthest where none is named, by name or id.
    NotFound: no such node. Conflict: it is no voter, does not answer, or is far behind.
    Unavailable: nobody leads, or it did not come about in time."""
    nodes = await _members(cluster)
    to = None if wanted is None else _find(nodes, wanted)
    with trio.move_on_after(HAND_OVER_S_MAX):
        before, term = await _leader_that_can(cluster, to, nodes)
        if to == before:
            return Transfer(_name(nodes, before), term, _name(nodes, before))
        await cluster.ask(before, HandOver(to))
        while (now := cluster.leadership()).leader in (before, None):
            await cluster.leadership_changed(now)
        leader = _name(nodes, now.leader)
        if to is not None and now.leader != to:
            raise Conflict(f"{leader} came before {nodes[to].name} and leads now", leader=leader)
        return Transfer(leader, now.term, _name(nodes, before))
    raise Unavailable(
        f"nobody took over within {HAND_OVER_S_MAX:g} s; `swarmd raft status` shows who leads"
    )


def _find(nodes: dict[NodeId, Node], wanted: str) -> NodeId:
    for node in nodes.values():
        if wanted in (node.name, node.id):
            return node.id
    known = ", ".join(sorted(node.name for node in nodes.values())[:20])
    raise NotFound(f"no node of this swarm is called {wanted[:128]!r}; there are {known}")


async def _leader_that_can(
    cluster: Cluster, to: NodeId | None, nodes: dict[NodeId, Node]
) -> tuple[NodeId, int]:
    """Who leads, in which term, once it could hand over. One that was only just elected has not
    heard of all members yet, so what may pass is waited for a little."""
    settled_at = trio.current_time() + SETTLE_S_MAX
    while True:
        leader = cluster.leadership().leader
        if leader is None:
            raise Unavailable("nobody leads at present, so there is nothing to hand over")
        view: LogView = await cluster.ask(leader, ReadLogView())
        try:
            if to is None:
                _check_any(view, leader, nodes)
            elif to != leader:
                _check_one(view, to, nodes)
            return leader, view.term
        except _NotYet:
            if trio.current_time() >= settled_at:
                raise
        await trio.sleep(SETTLE_LOOK_S)


class _NotYet(Conflict):
    """It may be another in a moment."""


def _check_any(view: LogView, leader: NodeId, nodes: dict[NodeId, Node]) -> None:
    """Refused with every voter's reason where nobody can take over."""
    others = [voter for voter in view.voters if voter != leader]
    if not others:
        raise Conflict(f"{_name(nodes, leader)} is the only voter: nobody else can lead")
    refusals = []
    for voter in others:
        try:
            _check_one(view, voter, nodes)
            return
        except Conflict as refusal:
            refusals.append(refusal.message)
    raise _NotYet(f"nobody can take over: {'; '.join(refusals)}")


def _check_one(view: LogView, to: NodeId, nodes: dict[NodeId, Node]) -> None:
    name = _name(nodes, to)
    if to not in view.voters:
        part = "a learner" if to in view.learners else "no member of the log"
        raise Conflict(f"{name} is {part}: only a voter can lead", node=name)
    progress = view.progress.get(to)
    if progress is None or not progress.active:
        raise _NotYet(f"{name} does not answer the leader", node=name)
    behind = view.last - progress.match
    if progress.state != "replicate" or behind > BEHIND_MAX:
        raise _NotYet(
            f"{name} is {behind} entries behind and could not take over at once; try again when"
            " `swarmd raft status` shows it caught up",
            node=name,
        )


class Copies:
    """Copies of the state for backup, one at a time: each is as large as the state."""

    def __init__(self, cluster: Cluster, place: Path) -> None:
        self._cluster = cluster
        self._path = place / "backup.db"
        self.busy = False

    async def take(self) -> Copy:
        """A whole copy of what this node has applied, checked. Needs no leader. Busy: another is
        under way; Unavailable: the disk has no room for it, or the state is damaged."""
        if self.busy:
            raise Busy("another copy of the state is being taken on this node", retry_after_s=5)
        self.busy = True
        try:
            made = await self._cluster.copy_state(self._path)
            await trio.to_thread.run_sync(check_copy, self._path)
            return Copy(self, made, self._path.open("rb"))
        except (OSError, sqlite3.Error) as error:
            self.busy = False
            raise Unavailable(
                f"no copy of the state could be made in {self._path.parent}: {error}. It needs as"
                " much room there as state.db has"
            ) from error
        except BaseException:
            self.busy = False
            raise
        finally:
            # Whoever reads it has it open; nothing is left, however that ends.
            self._path.unlink(missing_ok=True)


class Copy:
    """A copy as it is given out, in pieces. It has to be closed, begun or not."""

    def __init__(self, copies: Copies, made: StateCopy, file: BinaryIO) -> None:
        self.made = made
        self._copies = copies
        self._file = file

    def __aiter__(self) -> Copy:
        return self

    async def __anext__(self) -> bytes:
        data = await trio.to_thread.run_sync(self._file.read, CHUNK_BYTES)
        if not data:
            raise StopAsyncIteration
        return data

    async def aclose(self) -> None:
        self._file.close()
        self._copies.busy = False
