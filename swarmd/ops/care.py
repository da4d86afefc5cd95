"""Care: how builders are, as they were last probed, and how far somebody came with what fails."""

from __future__ import annotations

import msgspec

from swarmd.cluster.asks import ListProbes, ProbeNow, Probes, ProbeSign
from swarmd.cluster.handle import LEADER, Cluster
from swarmd.domain.actors import Actor
from swarmd.domain.builds import Builder
from swarmd.domain.care import Care
from swarmd.domain.errors import Conflict, NotFound, Unavailable
from swarmd.domain.nodes import Node
from swarmd.ops.builds import require_builds
from swarmd.state.care_commands import ResetCare
from swarmd.state.care_queries import Cared, ListCare


class CareView(msgspec.Struct, frozen=True):
    builder: Builder
    node: Node
    care: Care
    sign: ProbeSign
    """Of the last probe."""


class Watch(msgspec.Struct, frozen=True):
    running: bool
    """Builders are probed and healed."""
    round_at: int | None
    """When all were last probed; None: not since the leader leads."""
    builders: tuple[CareView, ...]
    """By name."""


async def watch(cluster: Cluster) -> Watch:
    """All builders. Where nobody leads nobody watches, and nothing is known of probes."""
    require_builds(cluster)
    all_cared = await cluster.read(ListCare())
    try:
        probes = await cluster.ask(LEADER, ListProbes())
    except Unavailable as refusal:
        probes = Probes(False, None, ())
        why = refusal.message
    else:
        why = "it has not been probed yet"
    return Watch(probes.running, probes.round_at, _views(all_cared, probes, why))


async def find(cluster: Cluster, name: str) -> CareView:
    """NotFound."""
    for view in (await watch(cluster)).builders:
        if view.node.name == name:
            return view
    raise _nobody(name)


async def probe(cluster: Cluster, name: str) -> CareView:
    """Now, and what came of it. NotFound; Conflict: there is no way to it; Unavailable."""
    cared = await _cared(cluster, name)
    probes = await cluster.ask(LEADER, ProbeNow((cared.node.id,), waits=True))
    (view,) = _views([cared], probes, "")
    if not view.sign.way:
        probes = await cluster.ask(LEADER, ListProbes())
        why = next((s.detail for s in probes.signs if s.node_id == cared.node.id), "")
        raise Conflict(f"{name} cannot be probed; {why}", name=name)
    return view


async def probe_all(cluster: Cluster) -> tuple[str, ...]:
    """Begin to probe all that are there and can be; their names."""
    require_builds(cluster)
    online = {c.node.id: c.node.name for c in await cluster.read(ListCare()) if c.builder.online}
    if not online:
        return ()
    probes = await cluster.ask(LEADER, ProbeNow(tuple(online), waits=False))
    return tuple(sorted(online[sign.node_id] for sign in probes.signs))


async def reset(cluster: Cluster, actor: Actor, name: str) -> int:
    """To the foot of the ladder; where it stood. NotFound."""
    cared = await _cared(cluster, name)
    return await cluster.propose(ResetCare(cared.node.id), actor)


async def _cared(cluster: Cluster, name: str) -> Cared:
    require_builds(cluster)
    for each in await cluster.read(ListCare()):
        if each.node.name == name:
            return each
    raise _nobody(name)


def _views(all_cared: list[Cared], probes: Probes, why: str) -> tuple[CareView, ...]:
    signs = {sign.node_id: sign for sign in probes.signs}
    return tuple(
        CareView(
            each.builder, each.node, each.care,
            signs.get(each.node.id) or ProbeSign(each.node.id, "", detail=why),
        )
        for each in all_cared
    )  # fmt: skip


def _nobody(name: str) -> NotFound:
    return NotFound("no such drone", name=name[:128])
