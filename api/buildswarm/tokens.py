"""Drones' own tokens on the routes by which a drone works: whoever shows one is that drone, and no
other, whatever the request says."""

from __future__ import annotations

from api.common.surface import Request
from swarmd.cluster.handle import Cluster
from swarmd.domain.errors import Forbidden
from swarmd.ops import drone_tokens

HEADER = b"x-drone-token"
ACTOR = "drone "
"""How the names of actors begin that showed one."""
HINT = "a drone shows its own as X-Drone-Token; `swarmd drone-token NAME` makes one"


def owner(request: Request) -> str | None:
    """The name of the drone whose token was shown; None: none was needed."""
    name = request.actor.name
    return name.removeprefix(ACTOR) if name.startswith(ACTOR) else None


async def check_own(
    cluster: Cluster, request: Request, drone: str, name: str | None = None
) -> None:
    """That a drone speaks of itself: of an id that is its own or nobody's, and by its own name."""
    own = owner(request)
    if own is None:
        return
    for said in (name, await drone_tokens.name_of(cluster, drone)):
        if said is not None and said != own:
            raise Forbidden(
                f"the token is that of {own}, and speaks for no other drone; a token is bound to"
                " one name and to that drone's own work: `swarmd drone-token NAME` makes another's"
            )


async def own_id(cluster: Cluster, request: Request) -> str | None:
    """Of the drone whose token was shown; None: none was needed. NotFound: it has to register."""
    own = owner(request)
    return None if own is None else await drone_tokens.id_of(cluster, own)
