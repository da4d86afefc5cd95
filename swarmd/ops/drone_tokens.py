"""Drones' own tokens: who has one is known on every node, so that a request is judged at once. The
token itself is made where it is shown, and never comes here; its hash does."""

from __future__ import annotations

from swarmd.cluster.handle import Cluster, local_reads
from swarmd.cluster.patience import keep_up
from swarmd.domain.actors import Actor
from swarmd.domain.builds import OUTSIDE
from swarmd.domain.drone_tokens import PREFIX, DroneToken, owner_of
from swarmd.domain.errors import Unavailable
from swarmd.domain.events import Event, TrustChanged
from swarmd.ops.builds import find_builder, node_id_of
from swarmd.state.build_queries import FindBuilder
from swarmd.state.commands import DropDroneToken, PutDroneToken
from swarmd.state.queries import ListDroneTokens
from swarmd.state.rules.trust import DRONE_TOKENS
from swarmd.state.versions import ROLLS_SINCE, check_since

AGAIN_S = 0.5


class DroneTokens:
    """As this node knows them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._hashes: dict[str, bytes] | None = None

    def owner(self, shown: str) -> str | None:
        """The name of the drone whose token this is. Unavailable: this node is only starting."""
        if self._hashes is None:
            if shown.startswith(PREFIX):
                raise Unavailable("this node does not know yet who has a token; try again shortly")
            return None
        return owner_of(shown, self._hashes)

    async def follow(self) -> None:
        """Until it is cancelled."""
        await keep_up(self._cluster, _concerns, self._look, AGAIN_S)

    async def _look(self) -> None:
        with local_reads():
            known = await self._cluster.read(ListDroneTokens())
        self._hashes = {token.name: token.hash for token in known}


def _concerns(event: Event) -> bool:
    body = event.body
    return isinstance(body, TrustChanged) and body.what == DRONE_TOKENS


async def put(cluster: Cluster, actor: Actor, name: str, hash: bytes) -> None:
    """In place of the one it had."""
    _require(cluster)
    await cluster.propose(PutDroneToken(name, hash), actor)


async def revoke(cluster: Cluster, actor: Actor, name: str) -> None:
    """NotFound: it has none."""
    _require(cluster)
    await cluster.propose(DropDroneToken(name), actor)


async def list_tokens(cluster: Cluster) -> list[DroneToken]:
    return await cluster.read(ListDroneTokens())


async def name_of(cluster: Cluster, builder_id: str) -> str | None:
    """By which name a builder with this id is known."""
    view = await cluster.read(FindBuilder(node_id_of(builder_id)))
    return None if view is None else view.node.name


async def id_of(cluster: Cluster, name: str) -> str:
    """NotFound: no builder has that name."""
    return (await find_builder(cluster, name)).node.id.removeprefix(OUTSIDE)


def _require(cluster: Cluster) -> None:
    check_since(cluster.cluster_version(), ROLLS_SINCE, "drones' tokens")
