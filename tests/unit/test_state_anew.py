"""A copy of a state begins anew: members are forgotten, what they ran is in the queue again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import RECOVERIES_MAX, AttemptStatus, JobStatus
from swarmd.domain.nodes import NodeKind
from swarmd.state import commands as c
from swarmd.state import queries as q
from swarmd.state.anew import RESTORED, begin_anew
from swarmd.state.machine import Machine, Place, read_place
from swarmd.state.tx import GENESIS_HASH, chained
from tests.unit.test_state_jobs import State

ME = Actor("local", "restore")


def copied(state: State, path: Path) -> Path:
    """A copy as a snapshot is one."""
    with sqlite3.connect(path) as copy:
        state.conn.backup(copy)
    copy.close()
    return path


class Reopened(State):
    """The state that lies in a file, after its new beginning."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.conn.close()
        self.conn = sqlite3.connect(path, isolation_level=None)
        self.machine = Machine(self.conn)
        self.index = iter(range(self.machine.place.index + 1, 10**6))
        self.now = self.machine.last_at


@pytest.fixture
def begun(tmp_path: Path) -> Callable[..., Reopened]:
    def begin(state: State, now_ms: int = 5_000_000) -> Reopened:
        path = copied(state, tmp_path / "copy.db")
        begin_anew(path, ME, settings={"cluster_id": b"new"}, conf=b"alone", now_ms=now_ms)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["copy.db"]
        return Reopened(path)

    return begin


def test_what_members_held_is_lost_to_them_and_queued_again(
    begun: Callable[..., Reopened],
) -> None:
    state = State()
    state.node("n1", 2)
    state.node("n2", 2)
    for n in range(250):
        state.submit(f"j{n}")
    for n, node in enumerate(("n1", "n1", "n2")):
        state.assign(f"j{n}", node)
    state.apply(c.ReportAttempts(state.job("j0").node_id, (c.AttemptReport(
        state.job("j0").attempt_id, 5),)))  # type: ignore[arg-type]  # fmt: skip
    state.assign("j3", "n2")
    state.end("j3")
    assert state.job("j0").status is JobStatus.RUNNING
    anew = begun(state)
    for n in range(3):
        job = anew.job(f"j{n}")
        assert (job.status, job.node_id, job.recoveries) == (JobStatus.PENDING, None, 1)
        assert (job.attempts[-1].status, job.attempts[-1].error) == (AttemptStatus.LOST, RESTORED)
    assert anew.job("j3").status is JobStatus.COMPLETED
    assert anew.ask(q.CountJobs(anew.job("j0").spec.kind))[("pending", 50)] == 249
    anew.check_counts()
    # They can be given away, to a node that bears the name of one that is forgotten.
    anew.node("n1", 4)
    assert anew.assign("j0", "n1") == 1


def test_what_nodes_keep_dying_of_is_given_up_here_too(begun: Callable[..., Reopened]) -> None:
    state = State()
    state.node("n1", 2)
    state.submit("j1")
    for _ in range(RECOVERIES_MAX - 1):
        state.assign("j1")
        state.end("j1", AttemptStatus.LOST)
    state.assign("j1")
    job = begun(state).job("j1")
    assert job.status is JobStatus.FAILED
    assert "dead letter" in (job.error or "")


def test_members_are_forgotten_and_executors_keep_what_they_claimed(
    begun: Callable[..., Reopened],
) -> None:
    state = State()
    state.node("n1", 2)
    state.submit("j1")
    assert state.claim("e1") is not None
    state.apply(c.AddBlob("b" * 64, 10, state.ask(q.ListNodes())[0].id))
    anew = begun(state)
    assert anew.ask(q.ListNodes()) == []
    assert [n.kind for n in anew.ask(q.ListNodes(tuple(NodeKind)))] == [NodeKind.EXECUTOR]
    assert anew.job("j1").status is JobStatus.RUNNING
    assert anew.ask(q.FindBlob("b" * 64)) is not None
    assert anew.conn.execute("SELECT count(*) FROM blob_holders").fetchone() == (0,)
    assert anew.finish("j1", "e1").status is JobStatus.COMPLETED


def test_it_stands_one_entry_further_under_its_own_settings(
    begun: Callable[..., Reopened],
) -> None:
    state = State()
    state.apply(c.PutSetting("cluster_id", b"old"))
    state.apply(c.PutSetting("other", b"kept"))
    before = read_place(state.conn)
    anew = begun(state)
    assert anew.machine.place == Place(before.index + 1, before.term, b"alone")
    assert anew.ask(q.GetSetting("cluster_id")) == b"new"
    assert anew.ask(q.GetSetting("other")) == b"kept"


def test_time_goes_on_and_the_chain_of_events_says_what_was_done(
    begun: Callable[..., Reopened],
) -> None:
    state = State()
    state.now = 9_000_000
    state.node("n1", 2)
    state.submit("j1")
    state.assign("j1")
    anew = begun(state, now_ms=1)
    assert anew.machine.last_at == 9_000_000
    last = GENESIS_HASH
    rows = anew.conn.execute("SELECT * FROM events ORDER BY seq").fetchall()
    for seq, at, index, actor, body, digest in rows:
        last = chained(last, seq, at, index, actor, body)
        assert last == digest
    kinds = [type(e.body).__name__ for e in anew.ask(q.ListEvents(0)) if e.actor == ME]
    assert kinds == ["JobRequeued", "SettingChanged", "NodeChanged"]


def test_what_is_no_state_of_a_swarm_is_refused(tmp_path: Path) -> None:
    foreign, garbage = tmp_path / "foreign.db", tmp_path / "garbage.db"
    with sqlite3.connect(foreign) as conn:
        conn.execute("CREATE TABLE notes(text)")
    conn.close()
    garbage.write_bytes(b"x" * 9000)
    empty = copied(State(), tmp_path / "empty.db")
    for path in (foreign, garbage, empty):
        with pytest.raises(Unavailable):
            begin_anew(path, ME, settings={"cluster_id": b"new"}, conf=b"", now_ms=1)


def test_a_copy_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    state = State()
    state.submit("j1")
    path = copied(state, tmp_path / "copy.db")
    with sqlite3.connect(path) as conn:
        conn.execute("INSERT INTO _sqlite_migrations VALUES (99, 'swarmd', 'future', 'now')")
    conn.close()
    with pytest.raises(Unavailable, match="newer"):
        begin_anew(path, ME, settings={"cluster_id": b"new"}, conf=b"", now_ms=1)
