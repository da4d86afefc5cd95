"""Events of the build swarm: what became of builders and packages, as far as it is kept."""

from __future__ import annotations

from swarmd.cluster.handle import Cluster
from swarmd.domain.events import Event
from swarmd.ops.builds import require_builds
from swarmd.state.build_queries import ListBuilders
from swarmd.state.event_queries import ListLately
from swarmd.state.event_queries import Only as Only

RECENT = 20_000
"""Of all events, whatever they are about: so far back what is recent goes."""
SCANNED_MAX = 1_000_000


async def list_events(
    cluster: Cluster, kinds: tuple[str, ...], only: Only | None = None, *, limit: int, since: int,
    about: str = "", recent: bool = False,
) -> tuple[list[Event], dict[str, str]]:  # fmt: skip
    """The newest first, and the names of those they are about."""
    require_builds(cluster)
    names = {view.node.id: view.node.name for view in await cluster.read(ListBuilders())}
    node_id = next((i for i, name in names.items() if name == about), "")
    if about and not node_id:
        return [], {}
    scan = RECENT if recent else SCANNED_MAX
    events = await cluster.read(ListLately(kinds, limit, scan, since, node_id, only))
    return events, {str(node_id): name for node_id, name in names.items()}
