"""Reports: what became of this node's attempts, told to the swarm until it has heard.

An end takes the place of a start that was not told yet, and what is told twice counts once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Set
from dataclasses import dataclass

import trio

from swarmd.cluster.handle import Cluster
from swarmd.cluster.patience import propose_patiently
from swarmd.domain.actors import Actor
from swarmd.domain.builds import Outcome
from swarmd.domain.jobs import AttemptId, AttemptStatus, Result
from swarmd.state.commands import AttemptReport, ReportAttempts

REPORTS_MAX = 100
LINGER_S = 0.025
"""While more wait for the slots, reports are gathered this long: no job waits for them."""


@dataclass(slots=True)
class Report:
    attempt_id: AttemptId
    started_at: float | None = None
    """In Trio's time, as the end is."""
    ended_at: float | None = None
    status: AttemptStatus | None = None
    """None: it has begun, and not ended."""
    result: Result | None = None
    acknowledge: bool = False
    """To the runner, once the swarm has it."""
    outcome: Outcome | None = None
    """Of a package."""

    def aged(self, now: float) -> AttemptReport:
        return AttemptReport(
            self.attempt_id, _age_ms(now, self.started_at), _age_ms(now, self.ended_at),
            self.status, self.result, self.outcome,
        )  # fmt: skip


class Reports:
    def __init__(
        self, cluster: Cluster, actor: Actor, crowded: Callable[[], bool],
        heard: Callable[[list[Report]], Awaitable[None]],
    ) -> None:  # fmt: skip
        """`crowded` is whether more wait for the slots. `heard` is for the ends that were told."""
        self._cluster = cluster
        self._actor = actor
        self._crowded = crowded
        self._heard = heard
        self._untold: dict[AttemptId, Report] = {}
        self._wanted = trio.Event()

    def put(self, report: Report) -> None:
        self._untold[report.attempt_id] = report
        self._wanted.set()

    def untold(self) -> Set[AttemptId]:
        return self._untold.keys()

    async def tell(self) -> None:
        """Until it is cancelled."""
        while True:
            await self._wanted.wait()
            if self._crowded():
                await trio.sleep(LINGER_S)
            self._wanted = trio.Event()
            while self._untold:
                some = list(self._untold)[:REPORTS_MAX]
                await self._tell([self._untold.pop(attempt_id) for attempt_id in some])

    async def _tell(self, batch: list[Report]) -> None:
        now = trio.current_time()
        reports = tuple(report.aged(now) for report in batch)
        command = ReportAttempts(self._cluster.node.id, reports)
        await propose_patiently(self._cluster, command, self._actor)
        await self._heard([report for report in batch if report.status is not None])


def _age_ms(now: float, at: float | None) -> int | None:
    return None if at is None else max(0, int((now - at) * 1000))
