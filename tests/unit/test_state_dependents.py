"""Who waits for whom: packages are put in order and never lost by it, other jobs need the end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from swarmd.domain.builds import BLOCKED_MS, Control, Outcome
from swarmd.domain.jobs import Installed, JobId, JobKind, JobSpec, JobStatus, NodeId
from swarmd.state import build_queries as bq
from swarmd.state import commands as c
from swarmd.state import queries as q
from swarmd.state.schema import migrate
from swarmd.state.versions import ORDER_SINCE
from tests.unit.test_state_builds import Builds
from tests.unit.test_state_jobs import State

LIB, APP = "dev-libs/lib-1", "app-misc/app-1"


@pytest.fixture
def state() -> Iterator[Builds]:
    made = Builds()
    yield made
    made.check_counts()
    made.conn.close()


def job_id(package: str) -> JobId:
    return JobId(f"job {package}")


def settle(state: State, limit: int = 100) -> int:
    """What the leader does; how often."""
    for times in range(1000):
        if not state.ask(q.GetStanding()).unsettled:
            return times
        state.apply(c.SettleDependents(limit, 1))
    raise AssertionError("it comes to no end")


def put_behind(state: Builds, package: str, *others: str) -> None:
    state.queue(package, depends_on=tuple(map(job_id, others)))


def fail(state: Builds, *builders: NodeId, outcome: Outcome = Outcome.FAILED) -> None:
    for node_id in builders:
        assert state.take(node_id) == [LIB]
        assert state.say(node_id, outcome, LIB)


def test_what_waits_for_a_package_comes_after_it(state: Builds) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    one, two = state.builder("one"), state.builder("two")
    assert state.take(one, 16) == [LIB] and state.take(two, 16) == []
    assert state.package(APP).waits == "dependencies"
    state.say(one, Outcome.FAILED, LIB)
    assert settle(state) == 0 and state.take(two, 16) == [LIB], "it is tried by another first"
    state.say(two, Outcome.BUILT, LIB)
    assert settle(state) == 1 and state.take(two, 16) == [APP]


@pytest.mark.parametrize("outcome", [Outcome.FAILED, Outcome.MASKED])
def test_what_waits_for_a_package_that_was_given_up_is_tried_all_the_same(
    state: Builds, outcome: Outcome
) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    put_behind(state, "a/far-1", APP)
    one, two = state.builder("one"), state.builder("two")
    fail(state, one, *((two,) if outcome is Outcome.FAILED else ()), outcome=outcome)
    assert state.package(LIB).waits in ("blocked", "aside")
    assert settle(state) == 1
    assert state.take(one, 16) == [APP], "and what waits for that goes on waiting"
    state.say(one, Outcome.BUILT, APP)
    settle(state)
    assert state.take(one, 16) == ["a/far-1"]
    # The package itself comes back later, and whoever waited for it waits no more.
    state.now += BLOCKED_MS
    state.control(Control.RETRY_FAILURES)
    assert state.take(two) == [LIB]
    state.say(two, Outcome.BUILT, LIB)
    assert settle(state) == 0 and state.package(LIB).status is JobStatus.COMPLETED


def test_what_nobody_is_left_to_build_holds_nobody_up(state: Builds) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    one = state.builder("one")
    fail(state, one)
    assert state.package(LIB).waits == "blocked"
    settle(state)
    assert state.take(one) == [APP]


def test_what_waits_for_a_package_that_left_the_queue_is_built(state: Builds) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    state.apply(c.CancelJobs((job_id(LIB),)))
    assert state.package(APP).waits == "dependencies"
    settle(state)
    assert state.package(APP).status is JobStatus.PENDING
    assert state.take(state.builder("one")) == [APP]


def test_other_jobs_need_the_package_itself(state: Builds) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    state.submit("test it", depends_on=(job_id(LIB),))
    one, two = state.builder("one"), state.builder("two")
    fail(state, one, two)
    assert settle(state) == 1
    assert state.package(APP).waits is None and state.job("test it").waits == "dependencies"
    state.control(Control.UNBLOCK)
    assert state.take(one) == [LIB]
    state.say(one, Outcome.BUILT, LIB)
    settle(state)
    assert state.job("test it").waits is None
    state.queue("a/b-1")
    state.submit("test that", depends_on=(job_id("a/b-1"),))
    state.apply(c.CancelJobs((job_id("a/b-1"),)))
    settle(state)
    assert state.job("test that").status is JobStatus.FAILED


def test_nothing_waits_for_what_is_not_to_be_built(state: Builds) -> None:
    one, two = state.builder("one"), state.builder("two")
    state.queue(LIB)
    fail(state, one, two)
    state.queue("a/gone-1", "a/built-1")
    state.apply(c.CancelJobs((job_id("a/gone-1"),)))
    assert state.take(one) == ["a/built-1"]
    state.say(one, Outcome.BUILT, "a/built-1")
    put_behind(state, APP, LIB, "a/gone-1", "a/built-1", "a/never-1")
    assert state.package(APP).waits is None
    assert state.package(APP).spec.depends_on == ()
    # Those of one command may wait for each other, in their order.
    first, second = JobId("first"), JobId("second")
    spec = JobSpec("a/x-1", Installed("emerge"), kind=JobKind.PACKAGE)
    behind = JobSpec("a/y-1", Installed("emerge"), kind=JobKind.PACKAGE, depends_on=(first,))
    state.apply(c.SubmitJobs((c.NewJob(first, spec), c.NewJob(second, behind))))
    assert state.job("second").waits == "dependencies"


def test_a_package_that_somebody_blocked_stays_so_when_its_turn_comes(state: Builds) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    one = state.builder("one")
    state.control(Control.BLOCK, APP)
    assert state.take(one, 16) == [LIB]
    state.say(one, Outcome.BUILT, LIB)
    settle(state)
    assert state.package(APP).waits == "blocked" and state.take(one) == []
    state.control(Control.UNBLOCK, APP)
    assert state.take(one) == [APP]


def test_who_unblocks_a_package_has_it_built_at_once(state: Builds) -> None:
    state.queue(LIB)
    put_behind(state, APP, LIB)
    one, two = state.builder("one"), state.builder("two")
    assert state.take(one) == [LIB]
    state.control(Control.BLOCK, APP)
    state.control(Control.UNBLOCK, APP)
    assert state.take(two) == [APP]
    state.say(one, Outcome.BUILT, LIB)
    settle(state)
    assert state.package(APP).status is JobStatus.ASSIGNED
    assert state.say(two, Outcome.BUILT, APP)


def test_many_that_wait_are_let_go_some_at_a_time(state: Builds) -> None:
    state.queue(LIB)
    names = [f"a/p{number}-1" for number in range(7)]
    for number, name in enumerate(names):
        put_behind(state, name, LIB)
        state.submit(f"job behind {number}", depends_on=(job_id(LIB),))
    one, two = state.builder("one"), state.builder("two")
    fail(state, one, two)
    assert settle(state, limit=4) == 4
    assert all(state.package(name).waits is None for name in names)
    assert all(state.job(f"job behind {n}").waits == "dependencies" for n in range(7))


def test_a_package_is_built_while_those_behind_it_are_let_go(state: Builds) -> None:
    state.queue(LIB)
    names = [f"a/p{number}-1" for number in range(5)]
    for name in names:
        put_behind(state, name, LIB)
    one, two = state.builder("one"), state.builder("two")
    fail(state, one, two)
    state.apply(c.SettleDependents(2, 1))
    state.control(Control.UNBLOCK)
    assert state.take(one) == [LIB]
    state.say(one, Outcome.BUILT, LIB)
    settle(state, limit=2)
    assert all(state.package(name).waits is None for name in names)


def test_before_its_version_all_is_as_it_was() -> None:
    state = State()
    state.apply(c.RaiseVersion(ORDER_SINCE - 1, 1))
    migrate(state.conn)
    spec = JobSpec(LIB, Installed("emerge"), kind=JobKind.PACKAGE)
    state.apply(c.SubmitJobs((c.NewJob(job_id(LIB), spec),)))
    behind = JobSpec(APP, Installed("emerge"), kind=JobKind.PACKAGE, depends_on=(job_id(LIB),))
    state.apply(c.SubmitJobs((c.NewJob(job_id(APP), behind),)))
    state.apply(c.CancelJobs((job_id(LIB),)))
    settle(state)
    assert state.job(job_id(APP)).status is JobStatus.FAILED
    state.conn.close()


def test_what_is_open_is_listed_and_which_tree_it_needs(state: Builds) -> None:
    one, two = state.builder("one"), state.builder("two")
    state.queue(LIB)
    fail(state, one, two)
    times = ("Thu, 12 Feb 2026 00:30:01 +0000", "2026-03-01", "nonsense")
    for number, time in enumerate(times):
        package = f"a/p{number}-1"
        spec = JobSpec(package, Installed("e"), kind=JobKind.PACKAGE, labels={"tree": time})
        state.apply(c.SubmitJobs((c.NewJob(job_id(package), spec),)))
    assert set(state.ask(bq.ListOpenBuilds(10))) == {"a/p0-1", "a/p1-1", "a/p2-1"}
    assert len(state.ask(bq.ListOpenBuilds(2))) == 2
    assert state.ask(bq.TreeWanted(one, 1)) == times[0]
    assert state.ask(bq.TreeWanted(one, 16)) == times[1]
    sweeper = state.builder("sweeper-1")
    assert state.ask(bq.TreeWanted(sweeper, 16)) == ""
    assert state.ask(bq.TreeWanted("nobody", 16)) == ""
