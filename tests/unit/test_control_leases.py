"""Whose work is given away, and when; what a leader answers to those who ask for a lease."""

from __future__ import annotations

import math
from typing import Any

import pytest
import trio
import trio.testing

from swarmd.cluster.asks import Lease, RenewLease
from swarmd.cluster.handle import Leadership, LogView, reads_are_local
from swarmd.control.leases import (
    GIVE_AWAY_S,
    LEASE_S,
    PRESENT_S,
    Leases,
    give_away,
    plan,
)
from swarmd.domain.errors import NotFound, Unavailable
from swarmd.domain.jobs import (
    Attempt,
    AttemptId,
    AttemptStatus,
    Installed,
    JobId,
    JobSpec,
    NodeId,
)
from swarmd.domain.nodes import Node
from swarmd.runner.core import LEASE_GRACE_MS
from swarmd.state.commands import LoseAttempts
from swarmd.state.queries import Duty, Hold, LeasesView, ListDuties, ListMemberIds, ViewLeases

A, B, C, D = map(NodeId, "abcd")


def duty(attempt_id: int, node_id: NodeId = B, disconnect_s: float | None = None) -> Duty:
    attempt = Attempt(AttemptId(attempt_id), JobId("j"), node_id, False, "",
                      AttemptStatus.RUNNING, 0)  # fmt: skip
    return Duty(attempt, JobSpec("t", Installed("true"), disconnect_s=disconnect_s))


def test_the_times_leave_room_between_an_end_and_a_beginning() -> None:
    assert GIVE_AWAY_S - LEASE_S - LEASE_GRACE_MS / 1000 >= 0.5


def test_what_is_over_is_given_away_and_the_rest_waits_for_its_time() -> None:
    duties = [duty(1), duty(2, disconnect_s=5.0), duty(3, disconnect_s=1.5)]
    found = plan({B: duties}, {A: 30.0, B: 9.0}, now=10.0)
    assert found.lost == {B: [AttemptId(1)]}
    assert found.next_look == 10.5
    found = plan({B: duties}, {A: 30.0, B: 9.0}, now=14.0)
    assert found.lost == {B: [AttemptId(n) for n in (1, 2, 3)]}
    assert found.next_look == 30.0


def test_who_asked_since_it_was_found_over_keeps_what_it_has() -> None:
    assert plan({B: [duty(1)]}, {B: 13.0}, now=10.0).lost == {}


def test_with_nothing_held_there_is_nothing_to_look_for() -> None:
    assert plan({}, {}, now=1.0).next_look == math.inf


HEARTBEAT_S = 0.3


class Cluster:
    """As much of one as a leader's leases need, with a quorum that can be taken away."""

    def __init__(self, *others: NodeId) -> None:
        self.node = Node(A, "a")
        self.members = {n: Node(n, n) for n in (A, *others)}
        self.version = 2
        self.term = 5
        self.quorum = trio.Event()
        self.quorum.set()
        self.work: dict[NodeId, list[Duty]] = {}
        self.holds: list[Hold] = []
        self.lost: list[tuple[float, LoseAttempts]] = []
        self.proposing: trio.Event | None = None
        self.learners: tuple[NodeId, ...] = ()
        self.words: list[bool] = []
        """Of a quorum; whether each was asked for at once."""
        self.looks = 0
        """So often it was looked up who is a member."""
        self.index = 0
        self._members: frozenset[str] = frozenset()

    def cluster_version(self) -> int:
        return self.version

    def leadership(self) -> Leadership:
        return Leadership(A, self.term, True)

    def log_view(self) -> LogView:
        return LogView(5, 9, 9, 1, 9, (A,), self.learners, False, {})

    async def vouched(self, *, at_once: bool) -> int:
        """All that is acknowledged here is that members come and go."""
        self.words.append(at_once)
        await trio.sleep(0 if at_once else HEARTBEAT_S)
        await self.quorum.wait()
        members = frozenset(self.members)
        self.index += members != self._members
        self._members = members
        return self.index

    async def read(self, query: Any) -> Any:
        if not reads_are_local():
            await self.quorum.wait()
        await trio.lowlevel.checkpoint()
        match query:
            case ListMemberIds():
                self.looks += 1
                return frozenset(self.members)
            case ViewLeases():
                busy = tuple(n for n, duties in self.work.items() if duties)
                return LeasesView(busy, tuple(self.holds))
            case ListDuties(node_id=node_id):
                return list(self.work[NodeId(node_id)])
        raise AssertionError(query)

    async def propose(self, command: LoseAttempts, actor: object) -> int:
        if self.proposing is not None:
            await self.proposing.wait()
        self.lost.append((trio.current_time(), command))
        held = self.work.get(command.node_id, [])
        self.work[command.node_id] = [d for d in held if d.attempt.id not in command.attempts]
        return len(held) - len(self.work[command.node_id])


def leases_of(cluster: Cluster) -> Leases:
    return Leases(cluster, cluster.term)  # type: ignore[arg-type]


async def run_for(cluster: Cluster, leases: Leases, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await give_away(cluster, leases)  # type: ignore[arg-type]


async def test_a_new_leader_waits_for_those_it_never_heard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B)
    cluster.work = {B: [duty(n) for n in range(1, 251)]}
    began = trio.current_time()
    await run_for(cluster, leases_of(cluster), 10)
    assert [len(c.attempts) for _, c in cluster.lost] == [100, 100, 50]
    assert all(c.term == 5 and c.node_id == B for _, c in cluster.lost)
    assert cluster.lost[0][0] - began == pytest.approx(GIVE_AWAY_S, abs=0.01)


async def test_a_node_is_silent_once_its_lease_is_over_or_it_had_time_to_be_heard(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B)
    leases = leases_of(cluster)
    await trio.sleep(100)
    # It may have come a moment ago.
    assert not leases.silent(B)
    await trio.sleep(GIVE_AWAY_S - 0.1)
    assert not leases.silent(B)
    await leases.renew(RenewLease(B))
    await trio.sleep(GIVE_AWAY_S - 0.1)
    assert not leases.silent(B)
    await trio.sleep(0.2)
    assert leases.silent(B)
    # Of one that never asked only what it was asked of tells.
    assert not leases.silent(A)
    await trio.sleep(GIVE_AWAY_S)
    assert leases.silent(A)


async def test_work_is_given_away_so_long_after_the_last_asking(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B)
    cluster.work = {B: [duty(1)]}
    leases = leases_of(cluster)
    last = 0.0

    async def ask() -> None:
        nonlocal last
        for _ in range(8):
            last = trio.current_time()
            assert await leases.renew(RenewLease(B)) == Lease(LEASE_S)
            await trio.sleep(1.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        nursery.start_soon(run_for, cluster, leases, 30)
    ((at, _),) = cluster.lost
    assert at - last == pytest.approx(GIVE_AWAY_S, abs=0.01)


async def test_without_a_quorum_nobody_is_renewed(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(B)
    leases = leases_of(cluster)
    await leases.renew(RenewLease(B))
    cluster.quorum = trio.Event()
    for node_id in (A, B):
        with pytest.raises(Unavailable, match="no quorum"):
            await leases.renew(RenewLease(node_id))
    await trio.sleep(PRESENT_S)
    assert not leases.present(A) and not leases.present(B)


async def test_a_term_that_ended_meanwhile_grants_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B)
    leases = leases_of(cluster)
    cluster.term += 2
    with pytest.raises(Unavailable, match="no longer"):
        await leases.renew(RenewLease(B))


async def test_who_was_removed_gets_none(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(B)
    leases = leases_of(cluster)
    del cluster.members[B]
    with pytest.raises(NotFound):
        await leases.renew(RenewLease(B))
    assert not leases.present(B)


async def test_who_asks_while_its_work_is_given_away_waits_until_that_is_done(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else it would take for its own what is somebody else's by the time it looks."""
    cluster = Cluster(B)
    cluster.work = {B: [duty(1)]}
    cluster.proposing = trio.Event()
    leases = leases_of(cluster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, cluster, leases, 20)
        await trio.sleep(GIVE_AWAY_S + 0.2)
        with pytest.raises(Unavailable):
            await leases.renew(RenewLease(B))
        asked = trio.current_time()

        async def ask() -> None:
            await leases.renew(RenewLease(B))
            assert trio.current_time() > asked + 0.3
            assert [c.attempts for _, c in cluster.lost] == [(AttemptId(1),)]

        nursery.start_soon(ask)
        await trio.sleep(0.4)
        cluster.proposing.set()


async def test_while_one_is_taken_from_the_next_in_turn_gets_no_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Else its work would be taken by what was known before, and run on there."""
    cluster = Cluster(B, C)
    cluster.work = {B: [duty(1)], C: [duty(2, C)]}
    cluster.proposing = trio.Event()
    leases = leases_of(cluster)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, cluster, leases, 20)
        await trio.sleep(GIVE_AWAY_S + 0.2)

        async def ask(node_id: NodeId) -> None:
            await leases.renew(RenewLease(node_id))
            assert cluster.work[node_id] == []

        for node_id in (C, B):
            nursery.start_soon(ask, node_id)
        await trio.sleep(0.4)
        assert cluster.lost == []
        cluster.proposing.set()
    assert [c.node_id for _, c in cluster.lost] == [B, C]


async def test_what_may_have_been_given_away_is_settled_before_a_lease(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B)
    cluster.work = {B: [duty(1)]}
    leases = leases_of(cluster)
    propose, failing = cluster.propose, True

    async def lose_the_answer(command: LoseAttempts, actor: object) -> int:
        lost = await propose(command, actor)
        if failing:
            raise Unavailable("whether this was done is not known")
        return lost

    cluster.propose = lose_the_answer  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await run_for(cluster, leases, 10)
    with pytest.raises(Unavailable):
        await leases.renew(RenewLease(B))
    failing = False
    await run_for(cluster, leases, 1)
    assert await leases.renew(RenewLease(B)) == Lease(LEASE_S)
    assert [c.attempts for _, c in cluster.lost] == [(AttemptId(1),), ()]


@pytest.mark.parametrize("for_ms", [60_000, None])
async def test_a_hold_counts_from_when_this_leader_saw_it(
    autojump_clock: trio.testing.MockClock, for_ms: int | None
) -> None:
    cluster = Cluster(B)
    cluster.work = {B: [duty(1)]}
    leases = leases_of(cluster)
    await run_for(cluster, leases, 2)
    cluster.holds = [Hold(B, for_ms, 17)]
    seen = trio.current_time()
    await run_for(cluster, leases, 200)
    if for_ms is None:
        assert cluster.lost == []
        # Those who came have removed it: somebody said that it is gone.
        del cluster.members[B]
        await run_for(cluster, leases, 2)
    ((at, command),) = cluster.lost
    assert command.hold == 17
    if for_ms is not None:
        # Seen it is when it matters, at the latest where the lease would have run out.
        assert 61 <= at - seen <= 61 + GIVE_AWAY_S + 0.6


async def test_only_who_is_the_whole_swarm_is_told_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster()
    leases = leases_of(cluster)
    assert (await leases.renew(RenewLease(A))).alone
    cluster.learners = (B,)
    assert not (await leases.renew(RenewLease(A))).alone
    cluster.learners = ()
    cluster.members[B] = Node(B, "b")
    assert not (await leases.renew(RenewLease(A))).alone
    assert not (await leases.renew(RenewLease(B))).alone


async def test_before_every_node_knows_of_leases_nothing_is_given_away(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B)
    cluster.version = 1
    cluster.work = {B: [duty(1)]}
    leases = leases_of(cluster)
    assert leases.present(B)
    assert not (await leases.renew(RenewLease(A))).alone
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run_for, cluster, leases, 40)
        await trio.sleep(20)
        assert cluster.lost == []
        cluster.version = 2
        raised = trio.current_time()
    ((at, _),) = cluster.lost
    assert GIVE_AWAY_S <= at - raised < GIVE_AWAY_S + 1


async def test_who_comes_is_told_of(autojump_clock: trio.testing.MockClock) -> None:
    cluster = Cluster(B)
    leases = leases_of(cluster)
    came = 0

    def arrived() -> None:
        nonlocal came
        came += 1

    leases.arrived = arrived
    for _ in range(3):
        began = trio.current_time()
        await leases.renew(RenewLease(B))
        # Who has none yet is not kept waiting.
        assert came > 1 or trio.current_time() - began < (0.01 if came == 0 else HEARTBEAT_S * 1.1)
    assert came == 1
    await trio.sleep(PRESENT_S)
    assert not leases.present(B)
    await leases.renew(RenewLease(B))
    assert came == 2


async def test_who_goes_on_with_what_it_has_waits_for_a_heartbeat(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B, C)
    leases = leases_of(cluster)
    for node_id in (A, B, C):
        await leases.renew(RenewLease(node_id))
    async with trio.open_nursery() as nursery:
        for node_id in (A, B, C):
            nursery.start_soon(leases.renew, RenewLease(node_id))
    assert cluster.words == [True] * 3 + [False] * 3
    assert cluster.looks == 1  # nothing changed since
    cluster.members[D] = Node(D, "d")
    async with trio.open_nursery() as nursery:
        for node_id in (A, B, C, D):
            nursery.start_soon(leases.renew, RenewLease(node_id))
    assert cluster.looks == 2


async def test_who_was_removed_meanwhile_gets_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B, C)
    leases = leases_of(cluster)
    cluster.quorum = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leases.renew, RenewLease(B))
        await trio.sleep(0.1)
        del cluster.members[C]
        nursery.start_soon(refused_as_unknown, leases, C)
        await trio.sleep(0.1)
        cluster.quorum.set()
    assert len(cluster.words) == 2 and leases.present(B)


async def refused_as_unknown(leases: Leases, node_id: NodeId) -> None:
    with pytest.raises(NotFound):
        await leases.renew(RenewLease(node_id))


async def test_who_waits_for_one_that_is_cut_off_asks_itself(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cluster = Cluster(B, C)
    leases = leases_of(cluster)
    cluster.quorum = trio.Event()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.1):
            nursery.start_soon(leases.renew, RenewLease(B))
            await leases.renew(RenewLease(C))
        cluster.quorum.set()
    assert leases.present(B) and not leases.present(C)
