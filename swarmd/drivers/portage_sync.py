"""A builder's Portage tree: brought up to date when the swarm says that it is too old for its work.

Once for each tree that is wanted, and not again for a while: a mirror that lags behind, or one that
cannot be reached, is no reason to ask it without end. The swarm is told what was tried.
"""

from __future__ import annotations

import logging

import trio

from swarmd.domain.errors import SwarmError
from swarmd.domain.trees import TREE_CHARS_MAX, is_older
from swarmd.drivers.portage import Portage

log = logging.getLogger(__name__)

SYNC_S_MAX = 3600.0
AGAIN_S = 1800.0
"""Mirrors get a new tree so often, and want to be left alone in between."""


class TreeSync:
    """`command` is None where this host's tree is not to be touched."""

    def __init__(self, portage: Portage, command: tuple[str, ...] | None) -> None:
        self.tried = ""
        """Which tree it tried to come up to, in the swarm's words."""
        self._portage = portage
        self._command = command
        self._synced_at: float | None = None

    @property
    def tree_at(self) -> str:
        return self._portage.description.timestamp[:TREE_CHARS_MAX]

    async def look(self) -> None:
        """Somebody else may have brought it up to date."""
        try:
            await self._portage.describe()
        except SwarmError as refusal:
            log.warning("Portage does not answer", extra={"error": refusal.message})

    async def bring_up_to(self, wanted: str) -> None:
        """As far as it can be: `tried` says that it was tried."""
        if wanted == self.tried:
            return
        self.tried = wanted[:TREE_CHARS_MAX]
        facts = {"here": self.tree_at, "wanted": self.tried}
        if self._command is None:
            log.warning("the Portage tree is older than the swarm wants", extra=facts)
            return
        now = trio.current_time()
        if self._synced_at is not None and now - self._synced_at < AGAIN_S:
            log.info("the Portage tree was brought up to date just now", extra=facts)
            return
        self._synced_at = now
        log.info("the Portage tree is brought up to date", extra=facts)
        try:
            await self._portage.sync(self._command, SYNC_S_MAX)
        except SwarmError as refusal:
            log.warning("it was not brought up to date", extra={"error": refusal.message})
            return
        if is_older(self.tree_at, self.tried):
            log.warning("the tree is still older than the swarm wants", extra=facts)
