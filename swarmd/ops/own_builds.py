"""Own builds: what the builder that this node itself is says to the queue, by the very operations
that drones use."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from swarmd.cluster.handle import Cluster
from swarmd.domain.actors import Actor
from swarmd.ops import binhost, builds
from swarmd.ops.syncs import Syncs


@dataclass(frozen=True)
class OwnCounter:
    cluster: Cluster
    actor: Actor
    cores: int
    auto_reboot: bool
    staging: binhost.Staging
    """What is being signed lies there."""
    syncs: Syncs = field(default_factory=Syncs)

    async def register(self, tree_at: str, task: str | None, metrics: dict[str, float]) -> None:
        await builds.register_own(
            self.cluster, self.actor, self.auto_reboot, tree_at, task, metrics
        )

    async def work(self, tried: str) -> builds.Work:
        return await builds.work_of(
            self.cluster, self.actor, self.cluster.node.id, self.cores, syncs=self.syncs,
            tried=tried,
        )  # fmt: skip

    async def hand_in(self, path: str, file: Path) -> None:
        await binhost.stage_own(self.cluster, self.actor, path, file, self.staging)
