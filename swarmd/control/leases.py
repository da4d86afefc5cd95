"""Leases: who may go on with its work, and whose work is given away. Never both at once.

A node asks each second, and counts its LEASE_S from when it *asked*. The leader answers only after
a quorum has said, after it was asked, that it leads; and remembers when it was asked last. So with
`asked` by the node <= `heard` by the leader <= the quorum's word:

- The node's runner ends what it runs at asked + 3.0 s, by SIGKILL at asked + 3.5 s.
- The same leader gives it away at heard + 4.0 s, or later: 0.5 s after that at the least, which is
  for clocks that do not run alike, and for a runner that is scheduled late.
- Another leader was elected after the quorum's word, for a quorum knew no other then, and gives
  nothing away before it has led for 4.0 s: after asked + 4.0 s as well.

So a leader that is cut off renews nobody, itself neither, from the moment of the cut on: no timer
has a part in it. That a leader without a quorum steps down (CheckQuorum: within two election times,
2.0 s by default and 1.0 s with the LAN profile) comes on top, and would not do alone: it could
grant until 2.0 s after another was elected, and what it granted run until 5.5 s of that one's term;
4.5 s on a LAN. Either is more than 4.0 s.

What was given away is in the state before a node that had no lease gets one; and it looks there,
once it has one, before it starts or keeps anything.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import trio

from swarmd.cluster.asks import Lease, RenewLease
from swarmd.cluster.handle import Cluster, local_reads
from swarmd.domain.actors import SYSTEM
from swarmd.domain.errors import Conflict, NotFound, Unavailable
from swarmd.domain.jobs import AttemptId, NodeId
from swarmd.state.commands import SINCE, LoseAttempts
from swarmd.state.queries import Duty, Hold, ListDuties, ListMemberIds, ViewLeases

log = logging.getLogger(__name__)

LEASE_S = 3.0
GIVE_AWAY_S = 4.0
HOLD_SLACK_S = 1.0
"""A node counts its hold from when it asked for it, too."""
PRESENT_S = 2.5
"""New work goes only to nodes that asked since: two askings may have been lost."""
CONFIRM_S_MAX = 1.0
LOOK_EVERY_S = 0.5
VERSION_LOOK_S = 0.5
ATTEMPTS_PER_ENTRY = 100
LOSES_SINCE = SINCE[LoseAttempts]


class Leases:
    """Of one term of leadership, in the leader's memory."""

    def __init__(self, cluster: Cluster, term: int) -> None:
        self._cluster = cluster
        self._term = term
        self._began = trio.current_time()
        self._heard: dict[NodeId, float] = {}
        self._doubted: dict[NodeId, float] = {}
        """Who was not heard of in this term, and since when somebody wants to know."""
        self._holds: dict[tuple[NodeId, int], float] = {}
        """When each was first seen."""
        self._busy: tuple[NodeId, ...] | None = None
        """Who held something at the last look; members or not."""
        self._taking: set[NodeId] = set()
        """Of these something is being given away: until that is in the state, they get nothing."""
        self._taken = trio.Event()
        self._members: frozenset[str] = frozenset()
        self._members_at = -1
        """The place in the log that they were looked up at, or before."""
        self._looking = trio.Lock()
        self.arrived: Callable[[], None] = lambda: None
        """Called when a node that was not there has come."""

    # What nodes ask for.

    async def renew(self, ask: RenewLease) -> Lease:
        """NotFound: the swarm does not know this node, or not any more. Unavailable: it is not
        certain that this node leads."""
        node_id, heard = ask.node_id, trio.current_time()
        with trio.move_on_after(CONFIRM_S_MAX):
            # Who goes on with what it has can wait for the next heartbeat.
            at = await self._cluster.vouched(at_once=not self.present(node_id))
            if node_id not in await self._members_as_of(at):
                raise NotFound("no such node", node_id=node_id[:128])
            while node_id in self._taking:
                await self._taken.wait()
            if not self._leads():
                raise Unavailable("this node leads no longer")
            came = not self.present(node_id)
            self._heard[node_id] = max(heard, self._heard.get(node_id, heard))
            if came:
                self.arrived()
            return Lease(LEASE_S, self._alone_with(node_id))
        raise Unavailable("no quorum says that this node leads; ask again")

    async def _members_as_of(self, at: int) -> frozenset[str]:
        """The ids of members at a place in the log that is applied here, or at a later one."""
        if at > self._members_at:
            async with self._looking:
                if at > self._members_at:
                    with local_reads():
                        self._members = await self._cluster.read(ListMemberIds())
                    self._members_at = at
        return self._members

    def _leads(self) -> bool:
        standing = self._cluster.leadership()
        return (standing.leader, standing.term) == (self._cluster.node.id, self._term)

    def _alone_with(self, node_id: NodeId) -> bool:
        """There is nobody to give anything to, nor anybody who could. A node that is told so says
        it to the log before it goes by it: those who come later find it there."""
        if node_id != self._cluster.node.id or self._cluster.cluster_version() < LOSES_SINCE:
            return False
        view = self._cluster.log_view()
        members = {*view.voters, *view.learners, *self._cluster.members}
        return members == {node_id} and not view.joint

    # Who is there.

    def present(self, node_id: NodeId) -> bool:
        """Whether work that is given to it now is likely to be run."""
        if self._cluster.cluster_version() < LOSES_SINCE:
            return True  # there may be nodes that do not ask yet
        heard = self._heard.get(node_id)
        return heard is not None and trio.current_time() - heard < PRESENT_S

    def silent(self, node_id: NodeId) -> bool:
        """Whether its last ordinary lease is surely over. One that was never heard of may be new:
        it has as long to be heard, from the first asking on."""
        now = trio.current_time()
        doubted = now
        if node_id not in self._heard:
            doubted = self._doubted.setdefault(node_id, now) + GIVE_AWAY_S
        return now >= max(doubted, self._end(node_id))

    def ends(self, node_id: NodeId, holds: Mapping[NodeId, Hold]) -> float:
        """From when on nothing runs there by an ordinary lease, in Trio's time."""
        end, hold = self._end(node_id), holds.get(node_id)
        if hold is None:
            return end
        if hold.for_ms is None:
            # Who was alone and was removed by those who came is gone: somebody said so.
            return math.inf if node_id in self._cluster.members else end
        seen = self._holds[node_id, hold.revision]
        return max(end, seen + hold.for_ms / 1000 + HOLD_SLACK_S)

    def _end(self, node_id: NodeId) -> float:
        return max(self._began, self._heard.get(node_id, self._began)) + GIVE_AWAY_S

    # Giving away.

    def quiet_until(self) -> float:
        """Before then nothing can be due; those who ask meanwhile put it off."""
        if self._busy is None:
            return -math.inf
        # Who was heard of and is no member any more may hold what it was given since that look.
        return min(
            map(self._end, (*self._cluster.members, *self._busy, *self._heard)), default=math.inf
        )

    def begin_anew(self) -> None:
        """Nobody's lease is over earlier than that of one who asked just now."""
        self._began = trio.current_time()

    async def look(self) -> float:
        """Give away what is due; answers when to look again."""
        view = await self._cluster.read(ViewLeases())
        self._busy, now = view.busy, trio.current_time()
        holds = {hold.node_id: hold for hold in view.holds}
        self._holds = {
            (h.node_id, h.revision): self._holds.get((h.node_id, h.revision), now)
            for h in view.holds
        }
        for node_id in self._heard.keys() - {*self._cluster.members, *view.busy}:
            del self._heard[node_id]
        for node_id in self._doubted.keys() - self._cluster.members.keys():
            del self._doubted[node_id]
        ends = {node_id: self.ends(node_id, holds) for node_id in view.busy}
        over = {n: await self._cluster.read(ListDuties(n)) for n, end in ends.items() if end <= now}
        # Who asked meanwhile keeps what it has.
        ends = {node_id: self.ends(node_id, holds) for node_id in view.busy}
        taken = plan(over, ends, trio.current_time())
        doubtful: dict[NodeId, list[AttemptId]] = {node_id: [] for node_id in sorted(self._taking)}
        # All of them from here on: while one is taken from, another would be granted a lease.
        self._taking.update(taken.lost)
        for node_id, attempts in (doubtful | taken.lost).items():
            hold = holds.get(node_id)
            await self._take(node_id, attempts, 0 if hold is None else hold.revision)
        return taken.next_look

    async def _take(self, node_id: NodeId, attempts: Sequence[AttemptId], hold: int) -> None:
        lost = 0
        for start in range(0, max(1, len(attempts)), ATTEMPTS_PER_ENTRY):
            part = tuple(attempts[start : start + ATTEMPTS_PER_ENTRY])
            # Where this raises it may yet be done: the node waits until a later one is decided,
            # though there be nothing left to take.
            command = LoseAttempts(node_id, part, hold, self._term)
            lost += await self._cluster.propose(command, SYSTEM)
        if lost:
            log.warning("work was taken back from a silent node",
                        extra={"node_id": node_id, "attempts": lost})  # fmt: skip
        self._taking.discard(node_id)
        taken, self._taken = self._taken, trio.Event()
        taken.set()


@dataclass(frozen=True)
class Plan:
    lost: dict[NodeId, list[AttemptId]]
    next_look: float
    """When the next of what there is may be due."""


def plan(over: Mapping[NodeId, Sequence[Duty]], ends: Mapping[NodeId, float], now: float) -> Plan:
    """What is given away now: of nodes whose leases are `over`, what need not wait longer. `ends`
    says for each node that holds something when its lease is surely over."""
    lost: dict[NodeId, list[AttemptId]] = {}
    dues = list(ends.values())
    for node_id, duties in over.items():
        for duty in duties:
            due = ends[node_id] + (duty.spec.disconnect_s or 0.0)
            if due <= now:
                lost.setdefault(node_id, []).append(duty.attempt.id)
            else:
                dues.append(due)
    return Plan(lost, min((due for due in dues if due > now), default=math.inf))


async def give_away(cluster: Cluster, leases: Leases) -> None:
    """Runs until it is cancelled, or until the term is over."""
    while cluster.cluster_version() < LOSES_SINCE:
        await trio.sleep(VERSION_LOOK_S)
        leases.begin_anew()  # nodes that did not ask before have their time from here on
    while True:
        now, quiet = trio.current_time(), leases.quiet_until()
        if quiet > now:
            await trio.sleep_until(min(quiet, now + GIVE_AWAY_S))
            continue
        try:
            next_look = await leases.look()
        except Conflict:
            return  # deposed: the nursery of the term is about to end
        await trio.sleep_until(min(next_look, trio.current_time() + LOOK_EVERY_S))
