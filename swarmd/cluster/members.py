"""Members of the log: who joins, who votes, who leads next. A change is proposed until it holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import msgspec
import trio

from mesh.consensus import Consensus
from mesh.garbage import GARBAGE
from mesh.identity.files import Identity
from mesh.keyring import encode_keyring
from mesh.raft import Change, ChangeKind, ConfChangeV2, ProposalDropped
from mesh.wires import Refused, WireError, Wires, applicant_of
from swarmd.cluster.asks import TakePlace
from swarmd.cluster.channels import wire_refusal
from swarmd.cluster.handle import Ask, Leadership, LogView, Progress
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.trust import NONCE, Application, Trust
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import BY_CODE, Conflict, NotFound, SwarmError, Unauthorized, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Command, PutNode, PutWraps, RemoveNode, T
from swarmd.state.queries import GetTrust, Query

log = logging.getLogger(__name__)

JOIN = "join"
CHANGE_S_MAX = 10.0
AGAIN_S = 1.0
HAND_OVER_S_MAX = 3.0
LINK_LOOK_S = 0.02
JOIN_TIMEOUT_S = 15.0
JOIN_AGAIN_S = 0.25
REDIRECTS_MAX = 5
REMOVE_STEP = 100
"""What a node holds is given back in parts: no entry takes long."""


class JoinAsk(msgspec.Struct, frozen=True, array_like=True):
    node: Node
    replaces: NodeId | None = None
    """The id that the same host had before."""


class Joined(msgspec.Struct, frozen=True, array_like=True):
    cluster_id: str
    members: tuple[tuple[NodeId, tuple[str, ...]], ...]
    certificate: bytes = b""
    authority: bytes = b""
    ring: bytes = b""
    replica: bool = True
    """False: there are as many as there may be; `members` are those that have one."""


@dataclass(frozen=True)
class Grounds:
    """Why a swarm should take this node in: it knows the secret of a token, or can prove whom it
    was. The pin tells that swarm from others."""

    pin: bytes
    secret: bytes = b""
    earlier: Identity | None = None


class Holder(Protocol):
    """The replica, as far as members need it."""

    node: Node
    cluster_id: str
    introduced: trio.Event
    members: dict[NodeId, Node]
    trust: Trust | None

    async def read(self, query: Query[T]) -> T: ...

    async def ask(self, target: NodeId, request: Ask[T]) -> T: ...

    def now_ms(self) -> int: ...

    async def propose(self, command: Command[T], actor: Actor) -> T: ...

    def leadership(self) -> Leadership: ...

    async def leadership_changed(self, seen: Leadership) -> Leadership: ...

    async def conf_changed(self) -> None: ...


class Members:
    def __init__(
        self, holder: Holder, consensus: Consensus, wires: Wires, replicas_max: int
    ) -> None:
        self._holder = holder
        self._consensus = consensus
        self._wires = wires
        self.replicas_max = replicas_max
        self._taking_in = trio.Lock()

    def view(self) -> LogView:
        status = self._consensus.status()
        conf = status.conf_state

        def named(ids: tuple[int, ...]) -> tuple[NodeId, ...]:
            return tuple(NodeId(self._consensus.name_of(i) or f"#{i}") for i in ids)

        progress = {
            named((raft_id,))[0]: Progress(p.match, p.state.name.lower(), p.active)
            for raft_id, p in status.progress.items()
        }
        return LogView(
            term=status.term,
            committed=status.commit,
            applied=status.applied,
            first=self._consensus.first_index(),
            last=status.last_index,
            voters=named(conf.voters),
            learners=named((*conf.learners, *conf.learners_next)),
            joint=bool(conf.voters_outgoing),
            progress=progress,
        )

    def serve(self) -> None:
        self._wires.handle_call(JOIN, self._answer_join, applicants=self._holder.trust is not None)

    async def _answer_join(self, peer: str, body: bytes) -> bytes:
        """A node asks to become a member: it is made known, and a learner, before it is told."""
        holder = self._holder
        try:
            application = msgspec.msgpack.decode(body, type=Application)
            ask = msgspec.msgpack.decode(application.ask, type=JoinAsk)
        except GARBAGE as error:
            raise Refused("invalid", f"this is no request to join: {error}") from None
        await self._check_grounds(peer, application, ask)
        leadership = holder.leadership()
        if leadership.leader == holder.node.id and not holder.introduced.is_set():
            raise Refused(Unavailable.code, "the swarm is only being founded")
        if leadership.leader != holder.node.id or not leadership.ready:
            leader = holder.members.get(leadership.leader) if leadership.leader else None
            # Facts of a refusal are plain words on the wires.
            where = " ".join(leader.mesh) if leader else ""
            raise Refused("not_leader", "another node leads", mesh=where)
        try:
            vouched = self._vouch(ask.node)
            if ask.replaces is not None:
                await self._retire(ask.replaces, ask.node)
            await self._make_room(peer, ask.node)
            raft_id = raft_id_of(ask.node.id)
            self._consensus.know({raft_id: ask.node.id})
            await holder.propose(PutNode(ask.node), Actor(ask.node.name, "mesh"))
            replica = await self._take_in(ask.node.id)
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None
        known = {**holder.members, holder.node.id: holder.node}
        if not replica:
            known = {n: node for n, node in known.items() if raft_id_of(n) in self._everyone()}
        members = tuple((node.id, node.mesh) for node in known.values())
        return msgspec.msgpack.encode(Joined(holder.cluster_id, members, *vouched, replica=replica))

    async def _take_in(self, node_id: NodeId) -> bool:
        """Whether it is to hold a replica. One after the other: two that ask at once shall not both
        get the last place."""
        async with self._taking_in:
            if raft_id_of(node_id) in self._everyone():
                return True
            if len(self._everyone()) >= self.replicas_max:
                return False
            await self.change(learners=(node_id,))
            return True

    async def _check_grounds(self, peer: str, application: Application, ask: JoinAsk) -> None:
        """Whoever may not come in learns nothing else, not even who leads."""
        holder = self._holder
        try:
            if holder.trust is None:
                if ask.node.id != peer:
                    raise Unauthorized("a node joins for itself alone")
                return
            holder.trust.learn(await holder.read(GetTrust()))
            known = holder.members.get(ask.node.id)
            if known is not None and known.public_key != ask.node.public_key:
                raise Unauthorized("another node has this id")
            holder.trust.check(peer, application, ask, holder.now_ms())
        except SwarmError as refusal:
            raise wire_refusal(refusal) from None

    def _vouch(self, node: Node) -> tuple[bytes, bytes, bytes]:
        trust = self._holder.trust
        if trust is None:
            return b"", b"", b""
        certificate = trust.vouch(node.id, node.public_key)
        ring = b"" if trust.ring is None else encode_keyring(trust.ring)
        return certificate, trust.known.authority, ring

    async def _retire(self, old: NodeId, host: Node) -> None:
        """A host that begins anew takes its own place: whoever it was goes first, once the streams
        to it have broken. Each step may be made again."""
        known = self._holder.members.get(old)
        if known is None or raft_id_of(old) == raft_id_of(host.id):
            return
        if known.name != host.name:
            raise Conflict(
                f"{old} is the node {known.name}, and this one is called {host.name}: it can take"
                " its own place only",
                name=known.name,
            )
        if self._wires.linked(old):
            raise Unavailable(f"{old} is still there")
        await self.remove(old)

    async def _make_room(self, peer: str, newcomer: Node) -> None:
        """One that is gone gives its name to who comes to its place; else this is refused. Where
        two want it at once, the state has the last word."""
        applicant = applicant_of(peer)
        source = "" if applicant is None else applicant.address
        for held in [*self._holder.members.values()]:
            if held.name == newcomer.name and held.id != newcomer.id:
                with suppress(NotFound):
                    ask = TakePlace(held.id, newcomer.mesh, source)
                    await self._holder.ask(self._holder.node.id, ask)

    async def remove(self, node_id: NodeId) -> None:
        """Out of the log first, then out of the state: nobody counts on it any more."""
        if raft_id_of(node_id) in self._everyone():
            await self.change(removed=(node_id,))
        command = RemoveNode(node_id, raft_id_of(node_id), REMOVE_STEP)
        while await self._holder.propose(command, SYSTEM):
            pass

    def _everyone(self) -> set[int]:
        conf = self._consensus.conf
        return {*conf.voters, *conf.learners, *conf.learners_next}

    async def change(
        self, *, learners: tuple[NodeId, ...] = (), voters: tuple[NodeId, ...] = (),
        removed: tuple[NodeId, ...] = (),
    ) -> None:  # fmt: skip
        steps = [
            *(Change(ChangeKind.ADD_NODE, raft_id_of(n)) for n in voters),
            *(Change(ChangeKind.ADD_LEARNER, raft_id_of(n)) for n in learners),
            *(Change(ChangeKind.REMOVE_NODE, raft_id_of(n)) for n in removed),
        ]
        await self._hand_keys(voters)
        change = ConfChangeV2(changes=tuple(steps))

        def holds() -> bool:
            conf = self._consensus.conf
            now_voters, now_learners = set(conf.voters), {*conf.learners, *conf.learners_next}
            return (
                not conf.voters_outgoing
                and all(raft_id_of(n) in now_voters for n in voters)
                and all(raft_id_of(n) in now_learners for n in learners)
                and not any(raft_id_of(n) in now_voters | now_learners for n in removed)
            )

        with trio.move_on_after(CHANGE_S_MAX):
            while not holds():
                if not self._consensus.leads:
                    raise Unavailable("this node leads no longer; ask the one that does")
                # The core takes one change at a time, and drops a second in silence.
                try:
                    self._consensus.propose_change(change)
                except ProposalDropped:
                    await trio.sleep(AGAIN_S / 10)
                    continue
                with trio.move_on_after(AGAIN_S):
                    while not holds():
                        await self._holder.conf_changed()
            return
        raise Unavailable(
            "the swarm does not agree on the change of members; see `swarmd raft status`"
        )

    async def _hand_keys(self, voters: tuple[NodeId, ...]) -> None:
        """Who votes can open what the swarm keeps sealed, before it does."""
        trust, holder = self._holder.trust, self._holder
        if trust is None:
            return
        lacking = [
            holder.members[node_id]
            for node_id in voters
            if node_id in holder.members and node_id not in trust.known.boxes
        ]
        if lacking:
            command = PutWraps(trust.boxes_for(lacking), (), holder.leadership().term)
            await holder.propose(command, SYSTEM)

    async def hand_over(self, to: NodeId | None) -> None:
        holder = self._holder
        if not self._consensus.leads:
            if to is None or to == holder.leadership().leader:
                return
            raise Unavailable("this node leads no longer; ask the one that does")
        if to == holder.node.id:
            return
        if to is not None and to not in self.view().voters:
            raise Conflict("only a voter can lead", node_id=to)
        with trio.move_on_after(HAND_OVER_S_MAX):
            while (chosen := to or self._next_leader()) is not None:
                if await self._taken_over(chosen):
                    return
                if to is not None:
                    break
            else:
                return  # nobody is there who could
        raise Unavailable("the other node did not take over in time; this one leads on")

    def _next_leader(self) -> NodeId | None:
        """Of the voters that are there, the one that is furthest."""
        view = self.view()
        there = [
            voter
            for voter in view.voters
            if voter != self._holder.node.id
            and voter in view.progress
            and view.progress[voter].active
            and self._wires.linked(voter)
        ]
        return max(there, key=lambda v: (view.progress[v].match, v), default=None)

    async def _taken_over(self, to: NodeId) -> bool:
        """False: it went away before it could."""
        holder = self._holder
        self._consensus.transfer(raft_id_of(to))
        while (seen := holder.leadership()).leader in (holder.node.id, None):
            with trio.move_on_after(LINK_LOOK_S):
                await holder.leadership_changed(seen)
            if not self._wires.linked(to):
                return False
        return True


async def ask_to_join(
    wires: Wires, seeds: tuple[str, ...], ask: JoinAsk, grounds: Grounds | None,
    told: Callable[[str], None] = lambda why: None,
) -> Joined:  # fmt: skip
    """Ask every seed in turn, and whom they name as the leader, until one takes this node in.
    Without grounds the wires must say who asks. Conflict, Unauthorized: they never will. `told`
    gets each new reason why not."""
    reasons: dict[str, str] = {}
    while True:
        waiting = list(seeds)
        for _ in range(len(seeds) + REDIRECTS_MAX):
            if not waiting:
                break
            address = waiting.pop(0)
            try:
                return await _apply_at(wires, address, ask, grounds)
            except Refused as refused:
                reason = refused.message
                if refused.code in (Conflict.code, Unauthorized.code):
                    raise BY_CODE[refused.code](
                        f"{address} does not take this node in: {reason}", **refused.facts
                    ) from None
                if refused.code == "not_leader":
                    waiting = str(refused.facts.get("mesh", "")).split() + waiting
            except WireError as error:
                reason = error.message
            if reasons.get(address) != reason:
                reasons[address] = reason
                told(f"{address}: {reason}")
                log.warning("not joined yet", extra={"seed": address, "reason": reason})
        await trio.sleep(JOIN_AGAIN_S)


async def _apply_at(wires: Wires, address: str, ask: JoinAsk, grounds: Grounds | None) -> Joined:
    """Raises WireError."""
    asked = msgspec.msgpack.encode(ask)
    pin, secret, proof = (None, b"", b"") if grounds is None else (grounds.pin, grounds.secret, b"")
    if grounds is not None and grounds.earlier is not None:
        # A nonce is good at the node alone that gave it.
        _, nonce = await wires.call_address(address, NONCE, b"", JOIN_TIMEOUT_S, pin=pin)
        secret, proof = b"", grounds.earlier.prove(nonce, asked)
    body = msgspec.msgpack.encode(Application(asked, secret, proof))
    _, answer = await wires.call_address(address, JOIN, body, JOIN_TIMEOUT_S, pin=pin)
    return msgspec.msgpack.decode(answer, type=Joined)


async def join_again(wires: Wires, peer: str, node: Node) -> Joined:
    """As a member that the wires know: into the log again, where it was taken out or never was.
    Raises WireError."""
    body = msgspec.msgpack.encode(Application(msgspec.msgpack.encode(JoinAsk(node))))
    return msgspec.msgpack.decode(await wires.call(peer, JOIN, body, JOIN_TIMEOUT_S), type=Joined)
