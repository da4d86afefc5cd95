"""Rules of leases: what is lost goes back, what is held stays, and nothing counts twice."""

from __future__ import annotations

import pytest

from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import AttemptStopped, JobRequeued, NodeChanged
from swarmd.domain.jobs import (
    HOLD_MS_MAX,
    RECOVERIES_MAX,
    AttemptId,
    AttemptStatus,
    JobStatus,
    NodeId,
    Result,
)
from swarmd.state import commands as c
from swarmd.state import queries as q
from tests.unit.test_state_jobs import State

N1 = NodeId("n1")


@pytest.fixture
def state() -> State:
    state = State()
    state.node(slots=4)
    return state


def assigned(state: State, name: str) -> AttemptId:
    state.submit(name)
    state.assign(name)
    attempt = state.job(name).attempt_id
    assert attempt is not None
    return attempt


def lose(state: State, *attempts: AttemptId, hold: int = 0, node: NodeId = N1) -> int:
    return int(state.apply(c.LoseAttempts(node, attempts, hold, 1)))


def test_what_is_lost_is_queued_again_and_its_node_told_to_stop(state: State) -> None:
    running, waiting = assigned(state, "running"), assigned(state, "waiting")
    state.apply(c.ReportAttempts(N1, (c.AttemptReport(running, 10),)))
    assert lose(state, running, waiting, AttemptId(99)) == 2
    bodies = [event.body for event in state.events]
    assert [b.attempt_id for b in bodies if isinstance(b, AttemptStopped)] == [running, waiting]
    assert [b.attempt_id for b in bodies if isinstance(b, JobRequeued)] == [running, waiting]
    for name in ("running", "waiting"):
        job = state.job(name)
        assert (job.status, job.recoveries, job.node_id) == (JobStatus.PENDING, 1, None)
        (attempt,) = job.attempts
        assert attempt.status is AttemptStatus.LOST
        assert "not heard of" in (attempt.error or "")
    state.check_counts()
    assert lose(state, running, waiting) == 0


def test_what_a_node_says_of_what_was_lost_moves_nothing(state: State) -> None:
    attempt = assigned(state, "job")
    lose(state, attempt)
    for status in (None, AttemptStatus.COMPLETED, AttemptStatus.LOST, AttemptStatus.FAILED):
        report = c.AttemptReport(attempt, 10, 5, status, Result(exit_code=0))
        assert state.apply(c.ReportAttempts(N1, (report,))) == (False,)
    job = state.job("job")
    assert (job.status, job.recoveries, job.result) == (JobStatus.PENDING, 1, None)
    # It is run elsewhere, and only that counts.
    state.assign("job")
    again = state.job("job").attempt_id
    assert again is not None and again != attempt
    late = c.AttemptReport(attempt, 10, 5, AttemptStatus.COMPLETED, Result(exit_code=0))
    done = c.AttemptReport(again, 10, 5, AttemptStatus.COMPLETED, Result(exit_code=0))
    assert state.apply(c.ReportAttempts(N1, (late, done))) == (False, True)
    assert state.job("job").status is JobStatus.COMPLETED
    state.check_counts()


def test_a_job_that_its_nodes_keep_dying_of_is_given_up(state: State) -> None:
    state.submit("deadly")
    for _ in range(RECOVERIES_MAX):
        state.assign("deadly")
        attempt = state.job("deadly").attempt_id
        assert attempt is not None
        assert lose(state, attempt) == 1
    job = state.job("deadly")
    assert job.status is JobStatus.FAILED and "dead letter" in (job.error or "")


def test_only_the_leader_of_the_term_takes_work_back(state: State) -> None:
    attempt = assigned(state, "job")
    with pytest.raises(Conflict, match="another term"):
        state.apply(c.LoseAttempts(N1, (attempt,), 0, 2), 1)
    assert state.job("job").status is JobStatus.ASSIGNED


def test_only_what_the_named_node_holds_is_taken(state: State) -> None:
    attempt = assigned(state, "job")
    assert lose(state, attempt, node=NodeId("other")) == 0
    state.submit("claimed")
    state.claim()
    claimed = state.job("claimed").attempt_id
    assert claimed is not None and lose(state, claimed) == 0


def hold(state: State, for_ms: int | None) -> q.Hold | None:
    state.apply(c.HoldAttempts(N1, for_ms))
    return state.ask(q.FindHold(N1))


def test_a_hold_that_the_leader_has_not_seen_protects_all_the_same(state: State) -> None:
    attempt = assigned(state, "job")
    first = hold(state, 60_000)
    assert first is not None
    assert lose(state, attempt) == 0
    second = hold(state, 60_000)
    assert second is not None and second.revision > first.revision
    assert lose(state, attempt, hold=first.revision) == 0
    assert state.job("job").status is JobStatus.ASSIGNED
    assert lose(state, attempt, hold=second.revision) == 1


def test_a_hold_is_told_and_ends(state: State) -> None:
    found = hold(state, None)
    assert found is not None and found.for_ms is None
    assert state.ask(q.ViewLeases()).holds == (found,)
    assert [event.body for event in state.events] == [NodeChanged(N1, "work is held")]
    assert hold(state, 0) is None
    assert [event.body for event in state.events] == [NodeChanged(N1, "work is held no longer")]
    assert hold(state, 0) is None
    assert not state.events


@pytest.mark.parametrize("for_ms", [-1, HOLD_MS_MAX + 1])
def test_a_hold_is_bounded(state: State, for_ms: int) -> None:
    with pytest.raises(Invalid, match="at most"):
        hold(state, for_ms)


def test_nobody_holds_for_a_node_that_is_not_there(state: State) -> None:
    with pytest.raises(NotFound):
        state.apply(c.HoldAttempts(NodeId("nobody"), 1000))


def test_a_node_that_is_being_started_again_is_given_nothing_new(state: State) -> None:
    def offered() -> list[str]:
        return [node.id for node in state.ask(q.ViewPlacement(8, 200)).nodes]

    assert offered() == [N1]
    hold(state, 60_000)
    assert offered() == []
    hold(state, None)  # alone
    assert offered() == [N1]
    hold(state, 0)
    assert offered() == [N1]


def test_who_holds_work_is_known_executors_aside(state: State) -> None:
    assert state.ask(q.ViewLeases()).busy == ()
    assigned(state, "a")
    assigned(state, "b")
    state.submit("claimed")
    state.claim()
    assert state.ask(q.ViewLeases()).busy == (N1,)
    members = state.ask(q.ListMemberIds())
    assert N1 in members and "executor/e1" not in members
