"""Watchers: clients that follow the events, now at one node, now at another, and go on where they
were. Each event that one wants comes to it once, in order, and as it was agreed on.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import trio

from swarmd.cluster.feed import EVERYTHING, Wanted
from swarmd.cluster.handle import Cluster
from swarmd.domain.events import Event, JobAssigned, JobEnded, JobSubmitted, SettingChanged
from swarmd.sim.witness import Broken

WANTS = (
    EVERYTHING, Wanted.of(SettingChanged), Wanted.of(JobSubmitted, JobAssigned, JobEnded),
)  # fmt: skip


class Watcher:
    def __init__(self, name: str, wants: Wanted) -> None:
        self.name = name
        self.wants = wants
        self.since: int | None = None
        """The last event that was before it came; None: it did not come to anybody yet."""
        self.after = 0
        """The last that it knows of."""
        self.moves = 0
        """How often it went on at a node after another."""
        self.seen: list[tuple[int, bytes]] = []

    async def follow(self, cluster: Cluster, for_s: float) -> None:
        """At one node, for a while."""
        with trio.move_on_after(for_s):
            async with cluster.watch(
                None if self.since is None else self.after, self.wants
            ) as news:
                if self.since is None:
                    self.since = self.after = news.last_seq
                else:
                    self.moves += 1
                async for event in news:
                    self._take(event)

    def _take(self, event: Event) -> None:
        if event.seq <= self.after:
            raise Broken(f"{self.name} is told of event {event.seq} after {self.after}")
        self.after = event.seq
        self.seen.append((event.seq, packed(event)))

    def last(self, events: Sequence[Event]) -> int:
        """Which it has to see yet, or saw last."""
        return next((each.seq for each in reversed(events) if self.wants(each)), 0)

    def judge(self, events: Sequence[Event]) -> None:
        """Against all that there were, from the first on; it has seen the last."""
        if self.since is None:
            return
        due = [(each.seq, packed(each)) for each in events[self.since :] if self.wants(each)]
        if self.seen == due:
            return
        seen = dict(self.seen)
        missing = [seq for seq, _ in due if seq not in seen]
        others = [seq for seq, what in due if seen.get(seq, what) != what]
        raise Broken(
            f"{self.name} was never told of events {missing[:5]}, and of {others[:5]} otherwise; it"
            f" has {len(self.seen)} of {len(due)} since {self.since}"
        )


def packed(event: Event) -> bytes:
    return msgspec.msgpack.encode(event)
