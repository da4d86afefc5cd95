"""This node's lease: its leave to go on with its work, asked of the leader each second.

A lease counts from when it was asked for, by the clock that the runner goes by. Where one had run
out in between, the state is looked at before anything goes on: work may have been given away.
`swarmd.control.leases` has the arithmetic, and what a new leader does.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Protocol

import trio

from swarmd.agent.runners import Leasing
from swarmd.cluster.asks import Lease, RenewLease
from swarmd.cluster.handle import LEADER, Cluster, Leadership, local_reads
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Invalid, SwarmError
from swarmd.domain.jobs import AttemptId
from swarmd.drivers.frames import LEASE_S_MAX
from swarmd.state.commands import HoldAttempts
from swarmd.state.queries import FindHold

log = logging.getLogger(__name__)

RENEW_EVERY_S = 1.0
AGAIN_S = 0.1
"""After an asking that failed; a new leader is asked at once."""
ASK_S_MAX = 1.5
LOOK_S_MAX = 2.0
RUNNER_S_MAX = 1.0
HOLD_S = 60.0
HOLD_S_MAX = 2.0
"""A planned stop is not held up for longer, with or without the swarm's knowledge."""


class Work(Protocol):
    """What runs by the lease."""

    def leased(self) -> Mapping[float, Sequence[AttemptId]]:
        """What the runner has, or is about to have, by how much longer than others it may run."""

    def begun(self) -> bool:
        """Whether there is anything that the runner has, or had and the swarm was not told of."""

    def ordering(self) -> bool:
        """Whether orders are on their way to the runner."""

    async def look_anew(self) -> None:
        """See what the swarm says is ours, as of now, and stop the rest. Unavailable: not now."""


class NodeLease:
    def __init__(self, cluster: Cluster, runner: Leasing, work: Work) -> None:
        self._cluster = cluster
        self._runner = runner
        self._work = work
        self._actor = Actor(cluster.node.name, "agent")
        self._from_ns = 0
        self._lease_s = 0.0
        """math.inf: without end."""
        self._looked = False
        """Since the last time without a lease, at what the swarm says is ours."""
        self._hold: int | None = 0
        """Of this node, in the state: 0 is none, None is without end."""
        self._told_endless = False
        self._granted = trio.Event()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    # For whoever starts work.

    @property
    def there(self) -> bool:
        return self._runner.boottime_ns() < self._until_ns

    @property
    def _until_ns(self) -> float:
        return self._from_ns + self._lease_s * 1e9

    async def wait(self) -> None:
        """Until there is one."""
        while not self.there:
            await self._granted.wait()

    def terms(self, disconnect_s: float) -> tuple[int | None, int | None]:
        """How long work that begins now may run on without renewal, in ms, and since when. None:
        for ever."""
        if self._lease_s == math.inf:
            return None, None
        return int(min(self._lease_s + disconnect_s, LEASE_S_MAX) * 1000), self._from_ns

    # Renewal.

    async def keep(self) -> None:
        """Renew it, until `stop`."""
        try:
            with self._scope:
                while True:
                    standing = self._cluster.leadership()
                    next_at = trio.current_time() + RENEW_EVERY_S
                    if not await self._renew(standing):
                        next_at = trio.current_time() + AGAIN_S
                    with trio.move_on_at(next_at):
                        await self._cluster.leadership_changed(standing)
        finally:
            self._ended.set()

    async def _renew(self, standing: Leadership) -> bool:
        asked_ns = self._runner.boottime_ns()
        try:
            lease = await self._ask(standing)
            if lease is None:
                return False
            if asked_ns > self._until_ns:
                self._looked = False
            with trio.move_on_after(LOOK_S_MAX) as looking, local_reads(False):
                await self._look_anew()
                if lease.alone:
                    await self._be_alone()
            if looking.cancelled_caught:
                return False
            await self._go_by(lease, asked_ns)
        except Invalid:
            # A leader of an older version knows no leases, and gives nothing away.
            self._looked = False
            await self._go_on_without()
        except SwarmError as refusal:
            log.debug("no lease yet", extra={"reason": refusal.message})
            return False
        return True

    async def _ask(self, standing: Leadership) -> Lease | None:
        """None: nobody answered in time, or somebody else leads by now."""
        lease: Lease | None = None
        refusal: SwarmError | None = None
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self._cluster.leadership_changed(standing)
                nursery.cancel_scope.cancel()

            nursery.cancel_scope.deadline = trio.current_time() + ASK_S_MAX
            nursery.start_soon(give_up)
            try:
                lease = await self._cluster.ask(LEADER, RenewLease(self._cluster.node.id))
            except SwarmError as refused:
                refusal = refused
            nursery.cancel_scope.cancel()
        if refusal is not None:
            raise refusal
        return lease

    async def _look_anew(self) -> None:
        """Where there was no lease for a moment, all may be otherwise than this node thinks."""
        if self._looked:
            return
        await self._work.look_anew()
        hold = await self._cluster.read(FindHold(self._cluster.node.id))
        self._hold = 0 if hold is None else hold.for_ms
        self._looked = True

    async def _be_alone(self) -> None:
        """Said to the log before this node goes by it: whoever comes later finds it there."""
        if self._hold is not None:
            await self._cluster.propose(HoldAttempts(self._cluster.node.id, None), self._actor)
            self._hold = None

    async def _go_by(self, lease: Lease, asked_ns: int) -> None:
        endless = lease.alone and self._hold is None
        self._begin(asked_ns, math.inf if endless else lease.lease_s)
        if endless:
            if not self._told_endless:
                self._told_endless = await self._tell()
            return
        self._told_endless = False
        # What may still run for longer has to be cut short before the swarm counts by leases.
        if await self._tell() and self._hold != 0 and not self._work.ordering():
            with trio.move_on_after(HOLD_S_MAX):
                await self._cluster.propose(HoldAttempts(self._cluster.node.id, 0), self._actor)
                self._hold = 0

    async def _go_on_without(self) -> None:
        self._begin(0, math.inf)
        if not self._told_endless:
            self._told_endless = await self._tell()

    def _begin(self, from_ns: int, lease_s: float) -> None:
        self._from_ns, self._lease_s = from_ns, lease_s
        granted, self._granted = self._granted, trio.Event()
        granted.set()

    async def _tell(self) -> bool:
        """The runner. It may be on its way back, which holds up no asking."""
        from_ns = None if self._lease_s == math.inf else self._from_ns
        with trio.move_on_after(RUNNER_S_MAX):
            for disconnect_s, ids in self._work.leased().items():
                lease_s = min(self._lease_s + disconnect_s, LEASE_S_MAX)
                await self._runner.renew(ids, lease_s, from_ns)
            return True
        return False

    # A planned stop.

    async def stop(self) -> None:
        """No asking of this node is under way, or will be."""
        self._scope.cancel()
        await self._ended.wait()

    async def hold(self) -> None:
        """After `stop`: have the swarm wait for what runs here, or has ended and was not told of,
        for as long as it takes to start the daemon again. Where it does not answer in time, the
        lease counts as it stands."""
        if self._lease_s == math.inf or not self._work.begun():
            return
        asked_ns = self._runner.boottime_ns()
        command = HoldAttempts(self._cluster.node.id, int(HOLD_S * 1000))
        with trio.move_on_after(HOLD_S_MAX, shield=True):
            try:
                if self._cluster.leadership().leader is not None:
                    await self._cluster.propose(command, self._actor)
                    self._begin(asked_ns, HOLD_S)
                    await self._tell()
                    return
            except SwarmError as refusal:
                log.debug("the swarm does not hold the work", extra={"reason": refusal.message})
        log.warning("stopping without a hold: what runs here ends with its lease")
