"""Syncs: which builders were told to bring their Portage tree up to date before they get work.

In this node's memory alone, and only a hint: whoever tried, or was told for long enough, gets work
with the tree that he has, since a swarm must not stand still for a mirror that lags behind.
"""

from __future__ import annotations

from dataclasses import dataclass

from swarmd.domain.builds import Builder
from swarmd.domain.jobs import NodeId
from swarmd.domain.trees import is_older

TOLD_S_MAX = 900.0
"""For one that does not say whether it tried."""
BUILDERS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class _Told:
    wanted: str
    had: str
    """As of when its tree was then."""
    since: float


class Syncs:
    def __init__(self) -> None:
        self._told: dict[NodeId, _Told] = {}

    def must(self, builder: Builder, wanted: str, tried: str, now: float) -> bool:
        """Whether it is to do so first. `tried` is for which tree it says that it has tried."""
        if not is_older(builder.tree_at, wanted):
            self._told.pop(builder.node_id, None)
            return False
        if tried and not is_older(tried, wanted):
            return False
        told = self._told.get(builder.node_id)
        if told is None or is_older(told.wanted, wanted):
            if told is None and len(self._told) >= BUILDERS_MAX:
                del self._told[next(iter(self._told))]
            self._told[builder.node_id] = _Told(wanted, builder.tree_at, now)
            return True
        came_nearer = is_older(told.had, builder.tree_at)
        return not came_nearer and now - told.since < TOLD_S_MAX
