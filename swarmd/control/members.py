"""Members of the log: which learners become voters, and when the machine may do what is new."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import trio

from swarmd.cluster.handle import Cluster, LogView
from swarmd.domain.actors import SYSTEM
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import NodeKind
from swarmd.state.commands import VERSION, RaiseVersion
from swarmd.state.queries import ListNodes

log = logging.getLogger(__name__)

LOOK_EVERY_S = 0.25
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


def plan_voters(
    view: LogView, caught_up_s: dict[NodeId, float], settings: VoterSettings
) -> tuple[NodeId, ...]:
    """Which learners become voters now. `caught_up_s` says for how long each has kept up."""
    if view.joint:
        return ()
    members = len(view.voters) + len(view.learners)
    wanted = settings.voters_many if members >= settings.many_nodes else settings.voters
    missing = wanted - len(view.voters)
    ready = sorted(
        (n for n in view.learners if caught_up_s.get(n, 0.0) >= settings.settle_s),
        key=lambda n: (-caught_up_s[n], n),
    )
    return tuple(ready[: max(0, missing)])


async def keep_voters(cluster: Cluster, settings: VoterSettings) -> None:
    """Make learners voters once they keep up, until there are as many as wanted."""
    since: dict[NodeId, float] = {}
    while True:
        view, now = cluster.log_view(), trio.current_time()
        behind = view.last - settings.lag_max
        keeping_up = {
            n: p for n, p in view.progress.items()
            if n in view.learners and p.active and p.state == "replicate" and p.match >= behind
        }  # fmt: skip
        since = {n: since.get(n, now) for n in keeping_up}
        chosen = plan_voters(view, {n: now - at for n, at in since.items()}, settings)
        if chosen:
            await cluster.change_members(voters=chosen)
            log.info("learners became voters", extra={"nodes": ", ".join(chosen)})
        await trio.sleep(LOOK_EVERY_S)


async def raise_version(cluster: Cluster, term: int) -> None:
    """Once every replica can apply a newer version of the machine, it does so from then on."""
    while True:
        view = cluster.log_view()
        replicas = {*view.voters, *view.learners}
        nodes = await cluster.read(ListNodes((NodeKind.MEMBER,)))
        known = [n.machine_version for n in nodes if n.id in replicas]
        if len(known) == len(replicas):
            version = min(*known, VERSION)
            if version > cluster.cluster_version():
                await cluster.propose(RaiseVersion(version, term), SYSTEM)
                log.info("the machine's version was raised", extra={"version": version})
        await trio.sleep(VERSIONS_EVERY_S)
