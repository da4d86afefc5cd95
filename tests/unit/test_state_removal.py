"""A node that is removed: what it held goes to others, its id and its requests never come back."""

from __future__ import annotations

from typing import Any

import pytest

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, NotFound
from swarmd.domain.events import NodeChanged
from swarmd.domain.jobs import JobStatus, NodeId
from swarmd.domain.nodes import Node
from swarmd.state import commands as c
from swarmd.state import queries as q
from swarmd.state.machine import Applied, Machine
from tests.unit.test_state_jobs import State

N1 = NodeId("n1")
ORIGIN = 77
LIMIT = 2


@pytest.fixture
def state() -> State:
    return State()


def remove(state: State, limit: int = LIMIT) -> int:
    return int(state.apply(c.RemoveNode(N1, ORIGIN, limit)))


def ask(state: State, command: Any, boot: int, seq: int) -> Applied:
    """A request of the node's own."""
    index = next(state.index)
    request = c.RequestId(ORIGIN, boot, seq)
    entry = c.Entry(index, 1, state.now, Actor("n1", "mesh"), command, request)
    (applied,) = state.machine.apply([entry])
    return applied


def test_what_lay_there_is_forgotten_in_bounded_steps(state: State) -> None:
    state.node()
    for letter in "abcde":
        state.apply(c.AddBlob(letter * 64, 10, N1))
    left = []
    for _ in range(3):
        assert [n.id for n in state.ask(q.ListNodes())] == [N1]
        left.append(remove(state))
    assert left == [3, 1, 0]
    assert state.ask(q.ListNodes()) == []
    assert state.events[-1].body == NodeChanged(N1, "removed")
    assert state.conn.execute("SELECT count(*) FROM blob_holders").fetchone() == (0,)
    with pytest.raises(NotFound):
        remove(state)


def test_what_it_runs_is_given_away_by_the_leases_alone(state: State) -> None:
    """It may run that still: until its lease is over nobody else is to."""
    state.node()
    state.submit("a")
    state.assign("a")
    state.apply(c.HoldAttempts(N1, 60_000))
    assert remove(state) == 0
    (job,) = state.ask(q.FindJobs(("a",)))
    assert job.status is JobStatus.ASSIGNED
    view = state.ask(q.ViewLeases())
    assert view.busy == (N1,)
    assert [(hold.node_id, hold.for_ms) for hold in view.holds] == [(N1, 60_000)]


def test_a_hold_without_an_end_goes_with_its_node(state: State) -> None:
    state.node()
    state.apply(c.HoldAttempts(N1, None))
    assert remove(state) == 0
    assert state.conn.execute("SELECT count(*) FROM holds").fetchone() == (0,)


def test_its_id_does_not_come_back_and_its_name_may(state: State) -> None:
    state.node()
    assert remove(state) == 0
    with pytest.raises(Conflict, match="does not come back"):
        state.apply(c.PutNode(Node(N1, "n1")))
    state.apply(c.PutNode(Node(NodeId("n2"), "n1")))
    # Long after the last of its certificates, nothing has to be remembered.
    assert state.apply(c.ForgetGone(state.now, 10, 1)) == 0
    assert state.apply(c.ForgetGone(state.now + 1, 10, 1)) == 1


def test_its_requests_count_no_more_whatever_boot_they_are_of(state: State) -> None:
    state.node()
    put = c.PutSetting("k", b"v")
    assert ask(state, put, 3, 1).refusal is None
    assert remove(state) == 0
    for boot, seq in ((3, 1), (3, 2), (4, 1)):
        refusal = ask(state, put, boot, seq).refusal
        assert isinstance(refusal, Conflict) and "was removed" in refusal.message
    rows = state.conn.execute("SELECT count(*) FROM outcomes WHERE origin = ?", (ORIGIN,))
    assert rows.fetchone() == (0,)
    # Also after a restart.
    state.machine = Machine(state.conn)
    assert isinstance(ask(state, put, 5, 1).refusal, Conflict)


def test_when_a_node_was_taken_in_is_noted_once_and_is_no_word_of_its_own(state: State) -> None:
    state.apply(c.PutNode(Node(N1, "old", born=7)))
    assert born(state) == {"old": 0}  # by an older machine nothing is noted
    state.apply(c.RaiseVersion(2, 1))
    two = Node(NodeId("n2"), "two", born=10**6, machine_version=2)
    first = state.apply(c.PutNode(two)).born
    assert 0 < first < 10**6 and first == born(state)["two"]
    # It starts again, is somewhere else, and says something else: that stays.
    state.apply(c.PutNode(Node(NodeId("n2"), "two", mesh=("h:1",), born=1, machine_version=2)))
    assert born(state)["two"] == first
    state.apply(c.PutNode(Node(NodeId("n2"), "two", mesh=("h:1",), machine_version=2)))
    assert state.events == []
    # Who takes a name over is younger than whoever had it.
    assert state.apply(c.RemoveNode(NodeId("n2"), ORIGIN, LIMIT)) == 0
    assert state.apply(c.PutNode(Node(NodeId("n3"), "two", machine_version=2))).born > first


def born(state: State) -> dict[str, int]:
    return {node.name: node.born for node in state.ask(q.ListNodes())}
