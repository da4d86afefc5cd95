"""Members of the log: who votes, who is taken out, and when the machine may do what is new.

A node that is gone is taken out of the log after a while, not out of the swarm: it is taken in
again when it comes back. Nothing here is proposed that would leave the log without a quorum.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

import trio

from swarmd.cluster.handle import Cluster, LogView
from swarmd.domain.actors import SYSTEM
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import NodeKind
from swarmd.state.commands import VERSION, RaiseVersion
from swarmd.state.queries import ListNodes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
VERSIONS_EVERY_S = 5.0


@dataclass(frozen=True)
class VoterSettings:
    voters: int = 3
    voters_many: int = 5
    """From `many_nodes` members on."""
    many_nodes: int = 7
    lag_max: int = 256
    """Entries that a learner may be behind and still count as caught up."""
    settle_s: float = 1.0
    """A learner is looked at for so long, so that several who join together become voters in one
    step."""
    replace_after_s: float = 5.0
    """A voter that was not there for so long gives its vote to a learner that is."""
    remove_after_s: float = 600.0
    """A member that was not there for so long is taken out of the log."""

    def wanted(self, view: LogView) -> int:
        """How many are to vote, of the members that there are."""
        members = len(view.voters) + len(view.learners)
        return self.voters_many if members >= self.many_nodes else self.voters


@dataclass(frozen=True)
class Change:
    voters: tuple[NodeId, ...] = ()
    learners: tuple[NodeId, ...] = ()
    """Also voters who lose their vote."""
    removed: tuple[NodeId, ...] = ()


def plan_members(
    view: LogView,
    caught_up_s: Mapping[NodeId, float],
    gone_s: Mapping[NodeId, float],
    settings: VoterSettings,
) -> Change | None:
    """The next step, if there is one. `caught_up_s` says for how long each learner has kept up,
    `gone_s` for how long each member has not been there."""
    if view.joint:
        return None
    wanted = settings.wanted(view)
    ready = sorted(
        (n for n in view.learners if caught_up_s.get(n, 0.0) >= settings.settle_s),
        key=lambda n: (-caught_up_s[n], n),
    )
    gone = sorted(gone_s, key=lambda n: (-gone_s[n], n))
    if ready and len(view.voters) < wanted:
        return Change(voters=tuple(ready[: wanted - len(view.voters)]))
    lost = [n for n in gone if n in view.voters and gone_s[n] >= settings.replace_after_s]
    if ready and lost:
        return Change(voters=(ready[0],), learners=(lost[0],))
    for node_id in gone:
        if gone_s[node_id] >= settings.remove_after_s and _spared(view, node_id, gone_s):
            return Change(removed=(node_id,))
    return None


def _spared(view: LogView, node_id: NodeId, gone_s: Mapping[NodeId, float]) -> bool:
    """Whether those who vote without it are enough, and as good as now."""
    if node_id not in view.voters:
        return True
    left = [n for n in view.voters if n != node_id]
    return sum(n not in gone_s for n in left) > len(left) // 2


@dataclass
class Watched:
    """How the members have stood, over a term: in the leader's memory alone."""

    _kept_up: dict[NodeId, float] = field(default_factory=dict)
    _gone: dict[NodeId, float] = field(default_factory=dict)

    def look(self, cluster: Cluster, view: LogView, now: float, lag_max: int) -> None:
        behind = view.last - lag_max
        keeping_up = [
            n for n, p in view.progress.items()
            if n in view.learners and p.active and p.state == "replicate" and p.match >= behind
        ]  # fmt: skip
        self._kept_up = {n: self._kept_up.get(n, now) for n in keeping_up}
        away = [
            n
            for n in (*view.voters, *view.learners)
            if n != cluster.node.id and not cluster.peer(n).alive
        ]
        self._gone = {n: self._gone.get(n, now) for n in away}

    def caught_up_s(self, now: float) -> dict[NodeId, float]:
        return {n: now - at for n, at in self._kept_up.items()}

    def gone_s(self, now: float) -> dict[NodeId, float]:
        return {n: now - at for n, at in self._gone.items()}


async def keep_members(cluster: Cluster, settings: VoterSettings) -> None:
    """Until it is cancelled: as many voters as are wanted, all of them there."""
    watched = Watched()
    while True:
        view, now = cluster.log_view(), trio.current_time()
        watched.look(cluster, view, now, settings.lag_max)
        change = plan_members(view, watched.caught_up_s(now), watched.gone_s(now), settings)
        if change is not None:
            await cluster.change_members(
                voters=change.voters, learners=change.learners, removed=change.removed
            )
            log.info(
                "the members of the log changed",
                extra={
                    "voters": ", ".join(change.voters),
                    "learners": ", ".join(change.learners),
                    "removed": ", ".join(change.removed),
                },
            )
        await trio.sleep(LOOK_EVERY_S)


async def raise_version(cluster: Cluster, term: int) -> None:
    """Once every replica can apply a newer version of the machine, it does so from then on. A node
    without a replica that is there counts as well: it has to understand what happens. One that is
    away, and comes back with a program that is too old, is refused."""
    while True:
        view = cluster.log_view()
        replicas = {*view.voters, *view.learners}
        nodes = await cluster.read(ListNodes((NodeKind.MEMBER,)))
        known = [n.machine_version for n in nodes if n.id in replicas]
        others = [
            n.machine_version for n in nodes if n.id not in replicas and cluster.peer(n.id).alive
        ]
        if len(known) == len(replicas):
            version = min(*known, *others, VERSION)
            if version > cluster.cluster_version():
                await cluster.propose(RaiseVersion(version, term), SYSTEM)
                log.info("the machine's version was raised", extra={"version": version})
        # A node that has only just joined is in the state within moments.
        await trio.sleep(VERSIONS_EVERY_S if len(known) == len(replicas) else LOOK_EVERY_S)
