"""A node's own lease: from when it counts, what is done where it ran out, who is told what."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing

from swarmd.agent.leases import ASK_S_MAX, HOLD_S, HOLD_S_MAX, NodeLease
from swarmd.cluster.asks import Lease, RenewLease
from swarmd.cluster.handle import Leadership, reads_are_local
from swarmd.domain.errors import Invalid, Unavailable
from swarmd.domain.jobs import AttemptId, NodeId
from swarmd.domain.nodes import Node
from swarmd.drivers.frames import LEASE_S_MAX
from swarmd.state.commands import HoldAttempts
from swarmd.state.queries import FindHold, Hold

ME = NodeId("n1")
S = 1_000_000_000


@dataclass
class Around:
    """Everything around the lease of a node, and what it did to it, in order."""

    took_s: float = 0.0
    """Until the leader answers."""
    answer: Lease | Exception = field(default_factory=lambda: Lease(3.0))
    hold: int | None = 0
    suspended_s: float = 0.0
    """By how much the runner's clock went on while Trio's stood still."""
    work: dict[float, list[AttemptId]] = field(default_factory=lambda: {0.0: [AttemptId(1)]})
    ends_untold: bool = False
    orders_under_way: bool = False
    runner_answers: bool = True
    log_answers: bool = True
    done: list[tuple[Any, ...]] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    node: Node = field(default_factory=lambda: Node(ME, "one"))
    standing: Leadership = field(default_factory=lambda: Leadership(NodeId("n2"), 3))
    changed: trio.Event = field(default_factory=trio.Event)

    # The cluster.

    def leadership(self) -> Leadership:
        return self.standing

    async def leadership_changed(self, seen: Leadership) -> Leadership:
        while self.standing == seen:
            await self.changed.wait()
        return self.standing

    def lead(self, leader: str | None) -> None:
        self.standing = Leadership(leader and NodeId(leader), self.standing.term + 1)
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    async def ask(self, target: object, request: RenewLease) -> Lease:
        assert request == RenewLease(ME)
        self.asked_at.append(trio.current_time())
        await trio.sleep(self.took_s)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    async def read(self, query: FindHold) -> Hold | None:
        assert not reads_are_local()
        await trio.lowlevel.checkpoint()
        return None if self.hold == 0 else Hold(ME, self.hold, 1)

    async def propose(self, command: HoldAttempts, actor: object) -> None:
        if not self.log_answers:
            await trio.sleep_forever()
        await trio.sleep(0.01)
        self.done.append(("said", command.for_ms))
        self.hold = command.for_ms

    # The runner.

    def boottime_ns(self) -> int:
        return int((trio.current_time() + self.suspended_s) * S) + 1

    async def renew(self, ids: Any, lease_s: float, from_ns: int | None = None) -> list[int]:
        if not self.runner_answers:
            await trio.sleep_forever()
        await trio.sleep(0.01)
        self.done.append(("told", list(ids), lease_s, from_ns))
        return []

    # The work.

    def leased(self) -> dict[float, list[AttemptId]]:
        return self.work

    def begun(self) -> bool:
        return bool(self.work) or self.ends_untold

    def ordering(self) -> bool:
        return self.orders_under_way

    async def look_anew(self) -> None:
        assert not reads_are_local()
        await trio.sleep(0.01)
        self.done.append(("looked",))

    def told(self) -> list[tuple[Any, ...]]:
        return [done for done in self.done if done[0] == "told"]


@asynccontextmanager
async def keeping(around: Around) -> AsyncIterator[NodeLease]:
    lease = NodeLease(around, around, around)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lease.keep)
        yield lease
        nursery.cancel_scope.cancel()


Clock = trio.testing.MockClock


async def test_it_counts_from_when_it_was_asked_for(autojump_clock: Clock) -> None:
    around = Around(took_s=1.2)
    asked = around.boottime_ns()
    async with keeping(around) as lease:
        await lease.wait()
        assert trio.current_time() * S + 1 - asked >= 1.2 * S
        assert lease.terms(0.0) == (3000, asked)
        await trio.sleep(0.1)
        assert around.told()[0] == ("told", [1], 3.0, asked)
        around.answer = Unavailable("nobody leads")
        await trio.sleep_until((asked - 1) / S + 2.99)
        assert lease.there
        await trio.sleep(0.02)
        assert not lease.there


async def test_it_is_asked_for_each_second_and_looked_at_once(autojump_clock: Clock) -> None:
    around = Around(took_s=0.2)
    async with keeping(around):
        await trio.sleep(10.1)
    assert len(around.asked_at) == 11
    assert around.done.count(("looked",)) == 1
    assert around.done[0] == ("looked",)
    assert len(around.told()) == 10


async def test_where_it_ran_out_the_state_is_looked_at_before_anything_goes_on(
    autojump_clock: Clock,
) -> None:
    around = Around()
    async with keeping(around) as lease:
        await trio.sleep(0.5)
        around.answer = Unavailable("nobody leads")
        await trio.sleep(5)
        assert not lease.there
        around.done.clear()
        around.answer = Lease(3.0)
        await lease.wait()
        assert around.done == [("looked",)]


async def test_time_in_which_the_machine_was_suspended_counts(autojump_clock: Clock) -> None:
    around = Around()
    async with keeping(around) as lease:
        await trio.sleep(0.5)
        around.suspended_s = 10.0
        assert not lease.there
        around.done.clear()
        await trio.sleep(1)
        assert around.done[0] == ("looked",)


async def test_a_short_interruption_changes_nothing(autojump_clock: Clock) -> None:
    around = Around()
    async with keeping(around) as lease:
        await trio.sleep(0.5)
        around.answer = Unavailable("nobody leads")
        await trio.sleep(2)
        around.answer = Lease(3.0)
        await trio.sleep(1)
        assert lease.there
    assert around.done.count(("looked",)) == 1


async def test_a_new_leader_is_asked_at_once_and_the_old_one_not_waited_for(
    autojump_clock: Clock,
) -> None:
    around = Around(took_s=100.0)
    async with keeping(around) as lease:
        await trio.sleep(0.3)
        around.took_s = 0.0
        around.lead("n3")
        began = trio.current_time()
        await lease.wait()
        assert trio.current_time() - began < 0.05
        await trio.sleep(0.2)
        around.lead("n2")
        await trio.sleep(0.01)
        assert around.asked_at[-1] > trio.current_time() - 0.02


async def test_who_does_not_answer_is_asked_again(autojump_clock: Clock) -> None:
    around = Around(took_s=100.0)
    async with keeping(around):
        await trio.sleep(3 * (ASK_S_MAX + 0.1) - 0.01)
    assert len(around.asked_at) == 3


async def test_a_runner_that_does_not_answer_holds_up_no_asking(autojump_clock: Clock) -> None:
    around = Around()
    async with keeping(around):
        await trio.sleep(0.5)
        around.runner_answers = False
        before = len(around.asked_at)
        await trio.sleep(10)
        assert len(around.asked_at) - before >= 9


async def test_some_work_may_run_on_for_longer(autojump_clock: Clock) -> None:
    around = Around(work={0.0: [AttemptId(1)], 30.0: [AttemptId(2), AttemptId(3)]})
    asked = around.boottime_ns()
    async with keeping(around) as lease:
        await trio.sleep(0.5)
        assert lease.terms(30.0) == (33_000, asked)
    assert around.told() == [("told", [1], 3.0, asked), ("told", [2, 3], 33.0, asked)]


async def test_alone_it_says_so_to_the_log_before_it_goes_on_without_end(
    autojump_clock: Clock,
) -> None:
    around = Around(answer=Lease(3.0, alone=True))
    async with keeping(around) as lease:
        await trio.sleep(5)
        assert lease.terms(30.0) == (None, None)
        around.answer = Unavailable("nobody leads")
        await trio.sleep(1000)
        assert lease.there
    assert around.done == [("looked",), ("said", None), ("told", [1], LEASE_S_MAX, None)]


async def test_alone_but_unable_to_say_so_it_has_no_more_than_others(autojump_clock: Clock) -> None:
    around = Around(answer=Lease(3.0, alone=True), log_answers=False)
    async with keeping(around) as lease:
        await trio.sleep(20)
        assert not lease.there
    assert around.told() == []


@pytest.mark.parametrize("left", [None, 60_000])
async def test_a_hold_is_ended_only_after_the_runner_has_cut_the_lease_short(
    autojump_clock: Clock, left: int | None
) -> None:
    """Of a swarm of one that others have joined, and of a planned stop that is over."""
    around = Around(hold=left, runner_answers=False)
    async with keeping(around) as lease:
        await trio.sleep(5)
        assert around.done.count(("said", 0)) == 0
        around.runner_answers = True
        around.orders_under_way = True
        await trio.sleep(2.5)
        assert around.told() and around.done.count(("said", 0)) == 0
        around.orders_under_way = False
        await trio.sleep(5)
        assert around.done.count(("said", 0)) == 1
        assert lease.terms(0.0)[0] == 3000


async def test_others_that_join_end_the_time_alone(autojump_clock: Clock) -> None:
    around = Around(answer=Lease(3.0, alone=True))
    async with keeping(around) as lease:
        await trio.sleep(2.5)
        around.done.clear()
        around.answer = Lease(3.0)
        await trio.sleep(1)
        (told, said) = around.done
        assert told[:3] == ("told", [1], 3.0) and said == ("said", 0)
        assert lease.there


async def test_a_leader_that_knows_no_leases_gives_nothing_away(autojump_clock: Clock) -> None:
    around = Around(answer=Invalid("this version knows no such ask"))
    async with keeping(around) as lease:
        await trio.sleep(100)
        assert lease.there and lease.terms(0.0) == (None, None)
        assert around.done == [("told", [1], LEASE_S_MAX, None)]
        around.answer = Lease(3.0)
        await trio.sleep(1.5)
        assert around.done[1] == ("looked",)
        assert around.told()[-1][2] == 3.0


# A planned stop


async def stopped(around: Around) -> float:
    """Stop after a while; how long the hold took."""
    async with keeping(around) as lease:
        await trio.sleep(2.5)
        around.done.clear()
        await lease.stop()
        asked = len(around.asked_at)
        began = trio.current_time()
        await lease.hold()
        took_s = trio.current_time() - began
        await trio.sleep(5)
        assert len(around.asked_at) == asked
    return took_s


async def test_a_planned_stop_has_the_swarm_wait(autojump_clock: Clock) -> None:
    around = Around()
    assert await stopped(around) < 0.1
    said, told = around.done
    assert said == ("said", 60_000)
    # Counted from before it was said: whoever leads counts from when it learns of it.
    assert told[:3] == ("told", [1], HOLD_S)
    assert told[3] == int(2.5 * S) + 1


async def test_a_planned_stop_has_the_swarm_wait_for_ends_that_were_not_told(
    autojump_clock: Clock,
) -> None:
    """Else who ran to its end would be run again, were the daemon away for longer than a lease."""
    around = Around(work={}, ends_untold=True)
    assert await stopped(around) < 0.1
    assert around.done == [("said", 60_000)]


async def test_a_stop_is_not_held_up_by_a_swarm_that_does_not_answer(autojump_clock: Clock) -> None:
    around = Around(log_answers=False)
    assert await stopped(around) == pytest.approx(HOLD_S_MAX)
    assert around.done == []


async def test_a_stop_without_a_leader_waits_for_nobody(autojump_clock: Clock) -> None:
    around = Around()
    around.lead(None)
    assert await stopped(around) == 0.0
    assert around.done == []


@pytest.mark.parametrize("why", ["nothing runs", "alone"])
async def test_a_stop_says_nothing_where_there_is_nothing_to_say(
    autojump_clock: Clock, why: str
) -> None:
    around = Around(answer=Lease(3.0, alone=why == "alone"))
    if why == "nothing runs":
        around.work = {}
    assert await stopped(around) == 0.0
    assert around.done == []


def test_no_lease_is_longer_than_a_runner_takes() -> None:
    around = Around()
    lease = NodeLease(around, around, around)  # type: ignore[arg-type]
    lease._begin(1, LEASE_S_MAX)
    assert lease.terms(1000.0) == (int(LEASE_S_MAX) * 1000, 1)
    assert math.isfinite(LEASE_S_MAX)
