"""Members: who leaves, who is taken out for good, who votes. Each is refused in words, or done.

The leader of the day does it; one that loses its office in between is followed by the next.
"""

from __future__ import annotations

import trio

from swarmd.cluster.asks import (
    EndWork,
    MemberPromoted,
    MemberRemoved,
    PromoteMember,
    RemoveMember,
)
from swarmd.cluster.handle import LEADER, Ask, Cluster, T, local_reads
from swarmd.domain.actors import Actor
from swarmd.domain.errors import NotFound, SwarmError, Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.ops import builds
from swarmd.state.queries import ListNodes

REMOVE_S_MAX = 30.0
LEADER_S_MAX = 8.0
AGAIN_S = 0.2
END_WORK_S_MAX = 30.0
SHUT_OUT_S_MAX = 5.0
"""For a node whose answer was cut off to see whether it was removed."""


async def remove(cluster: Cluster, actor: Actor, wanted: str, force: bool) -> MemberRemoved:
    """Take a node out for good, by name or id; also a builder that is no member. NotFound;
    Conflict: it is alive and `force` is not set, or the log would be left without a quorum."""
    try:
        node_id = await find_member(cluster, wanted)
    except NotFound as unknown:
        try:
            await builds.forget(cluster, actor, wanted)
        except NotFound:
            raise unknown from None
        return MemberRemoved(wanted, len(cluster.log_view().voters))
    return await _remove(cluster, RemoveMember(node_id, actor, force))


async def leave(cluster: Cluster, actor: Actor, removed: trio.Event) -> MemberRemoved:
    """Take this node itself out: its jobs go back to the queue first, and another leads if it did.
    `removed` says that the others know it no more."""
    me = cluster.node.id
    # Before anything is ended: whether this can go on to its end.
    await _at_leader(cluster, RemoveMember(me, actor, dry=True))
    if cluster.leadership().leader == me:
        await _hand_over(cluster, RemoveMember(me, actor))
    try:
        with trio.move_on_after(END_WORK_S_MAX):
            await cluster.ask(me, EndWork())
        return await _remove_me(cluster, RemoveMember(me, actor, idle=True), removed)
    except BaseException:
        if not removed.is_set():
            with trio.CancelScope(shield=True):
                await cluster.ask(me, EndWork(resume=True))
        raise


async def _remove_me(cluster: Cluster, ask: RemoveMember, removed: trio.Event) -> MemberRemoved:
    """Who is out is cut off at once: that may come before the answer."""
    done: list[MemberRemoved] = []
    refusal: SwarmError | None = None
    async with trio.open_nursery() as nursery:

        async def cut_off() -> None:
            await removed.wait()
            done.append(MemberRemoved(cluster.node.name, 0))
            nursery.cancel_scope.cancel()

        nursery.start_soon(cut_off)
        try:
            done.append(await _remove(cluster, ask))
        except SwarmError as refused:
            refusal = refused
            if isinstance(refused, Unavailable | NotFound):
                await trio.sleep(SHUT_OUT_S_MAX)
        nursery.cancel_scope.cancel()
    if done:
        return done[0]
    assert refusal is not None
    raise refusal


async def _remove(cluster: Cluster, ask: RemoveMember) -> MemberRemoved:
    asked = False
    with trio.move_on_after(REMOVE_S_MAX):
        while True:
            try:
                answer = await cluster.ask(LEADER, ask)
                if not answer.handed_over:
                    return answer
                await _led_by_another(cluster, ask.node_id)
            except NotFound:
                if asked:
                    return MemberRemoved(ask.node_id, len(cluster.log_view().voters))
                raise
            except Unavailable:
                # It may be done, in part or wholly: asked again it is gone on with.
                asked = True
                await trio.sleep(AGAIN_S)
    raise Unavailable(
        f"the node was not removed within {REMOVE_S_MAX:g} s; `swarmd raft status` shows who"
        " leads and votes. Asked again, it is gone on with"
    )


async def _hand_over(cluster: Cluster, ask: RemoveMember) -> None:
    await cluster.ask(cluster.node.id, ask)
    await _led_by_another(cluster, ask.node_id)


async def _led_by_another(cluster: Cluster, before: NodeId) -> None:
    with trio.move_on_after(REMOVE_S_MAX):
        while (seen := cluster.leadership()).leader in (before, None):
            await cluster.leadership_changed(seen)
        return
    raise Unavailable("nobody took over in time; `swarmd raft status` shows who leads")


async def promote(cluster: Cluster, wanted: str) -> MemberPromoted:
    """Have a learner vote at once. NotFound; Conflict: it votes, has no replica, is behind."""
    return await _at_leader(cluster, PromoteMember(await find_member(cluster, wanted)))


async def _at_leader(cluster: Cluster, ask: Ask[T]) -> T:
    """One that was only just elected does not answer yet."""
    refusal = Unavailable("nobody leads the swarm at present; try again later")
    with trio.move_on_after(LEADER_S_MAX):
        while True:
            try:
                return await cluster.ask(LEADER, ask)
            except Unavailable as refused:
                refusal = refused
                await trio.sleep(AGAIN_S)
    raise refusal


async def find_member(cluster: Cluster, wanted: str) -> NodeId:
    """Of a name or an id, as this node knows the members."""
    with local_reads():
        nodes: list[Node] = await cluster.read(ListNodes((NodeKind.MEMBER,)))
    for node in nodes:
        if wanted in (node.id, node.name):
            return node.id
    known = ", ".join(sorted(node.name for node in nodes)[:20])
    raise NotFound(f"no node of this swarm is called {wanted[:128]!r}; there are {known}")
