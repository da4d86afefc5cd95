"""What a copy of a swarm's state says of its nodes and its work; the copy itself is left alone."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from mesh.raft import ConfState
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.snapshots import encode_conf
from swarmd.domain.actors import Actor
from swarmd.domain.builds import (
    BLOCKED_MS,
    FAILURES_IN_A_ROW_MAX,
    GROUNDED_MS,
    Control,
    Outcome,
)
from swarmd.domain.errors import Invalid
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    AttemptStatus,
    Constraint,
    GroupId,
    Installed,
    JobId,
    JobSpec,
    NodeId,
    Priority,
    Resources,
    Result,
)
from swarmd.domain.nodes import Capacity, Node
from swarmd.ops import jobs
from swarmd.sim import exported
from swarmd.sim.exported import Exported, read_exported
from swarmd.state import build_commands as b
from swarmd.state import commands as c
from swarmd.state.machine import Place
from tests.cluster import open_alone
from tests.unit.test_state_anew import copied
from tests.unit.test_state_builds import Builds
from tests.unit.test_state_jobs import State

SECRET = "hunter2"


def swarm_of(*names: str, state: State | None = None) -> State:
    """Members whose ids are not their names, of which the first three vote."""
    state = state or State()
    for name in names:
        state.apply(c.PutNode(Node(
            NodeId(f"id-{name}"), name, capacity=Capacity(4, 8.0, 1 << 30, ("gpu0",)),
            labels={"site": "berlin"}, arch="x86_64", os="linux", machine_version=c.VERSION,
        )))  # fmt: skip
    ids = [raft_id_of(f"id-{name}") for name in names]
    conf = encode_conf(ConfState(voters=tuple(ids[:3]), learners=tuple(ids[3:5])))
    place = state.machine.place
    state.machine.apply([], Place(place.index, place.term, conf))
    return state


def read(state: State, place: Path) -> Exported:
    """From a copy, which stays as it is."""
    path = copied(state, place / "copy.db")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    found = read_exported(path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    assert [each.name for each in place.iterdir()] == ["copy.db"]
    return found


def ran(state: State, job_id: str, node: str, for_s: float, **more: Any) -> None:
    state.assign(job_id, f"id-{node}")
    job = state.job(job_id)
    assert job.attempt_id is not None
    report = c.AttemptReport(job.attempt_id, int(1000 * for_s), 0, **more)
    state.apply(c.ReportAttempts(NodeId(f"id-{node}"), (report,)))


def test_its_nodes_voters_and_open_jobs_are_found(tmp_path: Path) -> None:
    state = swarm_of("a", "b", "c", "d", "e", "f")
    state.submit("old", type="render")
    ran(state, "old", "a", 40, status=AttemptStatus.COMPLETED, result=Result(exit_code=0))
    state.submit("first", type="render", priority=Priority.FOREGROUND, max_retries=2,
                 resources=Resources(2.0, gpus=1), env={"TOKEN": SECRET}, arguments=(SECRET,),
                 timeout_s=90.0)  # fmt: skip
    state.submit("then", type="cut", depends_on=(JobId("first"), JobId("old")),
                 constraints=(Constraint("node.id", "==", "id-c"),
                              Constraint("node.arch", "!=", "arm")))  # fmt: skip
    state.submit("runs", type="render")
    state.assign("runs", "id-b")
    attempt_id = state.job("runs").attempt_id
    assert attempt_id is not None
    state.apply(c.ReportAttempts(NodeId("id-b"), (c.AttemptReport(attempt_id, 0),)))
    state.now += 25_000
    state.submit("later")
    state.apply(c.PutSetting("admin_key", SECRET.encode()))
    found = read(state, tmp_path)
    assert [node.name for node in found.topology.nodes] == ["a", "b", "c", "d", "e", "f"]
    assert found.topology.nodes[0].capacity == Capacity(4, 8.0, 1 << 30, ("gpu0",))
    assert found.topology.nodes[0].labels == {
        "site": "berlin", "node.arch": "x86_64", "node.os": "linux",
    }  # fmt: skip
    assert (found.voters, found.replicas) == (("a", "b", "c"), ("a", "b", "c", "d", "e"))
    assert found.lengths_s == {"render": (40.0,)}
    assert found.left_out == {}
    brought = {job.id: job for job in found.jobs}
    assert list(brought) == ["first", "then", "runs", "later"]
    assert [job.ran_s for job in found.jobs] == [None, None, 25.0, None]
    first, then = brought[JobId("first")].spec, brought[JobId("then")].spec
    assert first.source == Installed("sleep")
    assert (first.priority, first.max_retries, first.timeout_s) == (100, 2, 90.0)
    assert first.resources == Resources(2.0, gpus=1)
    assert then.depends_on == ("first",)
    assert [str(each) for each in then.constraints] == [
        "node.name==c", "node.labels.node.arch!=arm",
    ]  # fmt: skip
    assert SECRET not in repr(found)


async def test_a_copy_that_a_node_made_of_its_own_state_is_read(tmp_path: Path) -> None:
    node = Node(NodeId("its-id"), "here", capacity=Capacity(2, 2.0, 1 << 30))
    ids = (f"id-{n}" for n in range(1000))
    (tmp_path / "node").mkdir()
    async with open_alone(
        tmp_path / "node", node, now_ms=lambda: 1_000_000, new_id=ids.__next__
    ) as cluster:
        job = await jobs.submit(cluster, Actor("t", "test"), JobSpec("t", Installed("true")))
        await cluster.copy_state(tmp_path / "copy.db")
    found = read_exported(tmp_path / "copy.db")
    assert [each.name for each in found.topology.nodes] == ["here"]
    assert (found.voters, found.replicas) == (("here",), ("here",))
    assert [each.id for each in found.jobs] == [job.id]
    assert sorted(os.listdir(tmp_path)) == ["copy.db", "node"]


def test_what_nothing_here_could_run_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = swarm_of("a")
    state.submit("claimed")
    assert state.claim("outside") is not None
    state.submit("after", depends_on=(JobId("claimed"),))
    for n in range(5):
        state.submit(f"j{n}", priority=n)
    monkeypatch.setattr(exported, "JOBS_MAX", 4)
    found = read(state, tmp_path)
    assert [job.id for job in found.jobs] == ["j3", "j4"]
    assert found.left_out == {
        "nodes of kind executor": 1,
        "jobs beyond the first 4": 3,
        "jobs that executors hold": 1,
        "jobs that wait for one that was left out": 1,
    }


def test_what_is_no_good_copy_is_refused_in_one_line(tmp_path: Path) -> None:
    good = copied(swarm_of("a"), tmp_path / "good.db").read_bytes()
    newer = swarm_of("a")
    newer.conn.execute("INSERT OR REPLACE INTO settings VALUES ('cluster_version', '99', 1)")
    foreign = swarm_of("a")
    foreign.conn.execute("UPDATE _sqlite_migrations SET name = 'future' WHERE name = 'trust'")
    nobody = State()
    nobody.submit("j")
    named = State()
    named.node("../../x")
    cases = {
        "garbage": (os.urandom(10_000), "is no copy that"),
        "empty": (b"", "is no copy that"),
        "cut": (good[: len(good) // 8 * 4], "damaged|cannot be read"),
        "torn": (good[:4096] + os.urandom(8192) + good[12288:], "damaged|cannot be read"),
        "newer": (newer.conn.serialize(), "no newer one than"),
        "foreign": (foreign.conn.serialize(), "by a newer swarmd"),
        "fresh": (State().conn.serialize(), "no state of a swarm"),
        "nobody": (nobody.conn.serialize(), "no member"),
        "named": (named.conn.serialize(), "is no node name"),
        "other": (_other(), "no table|no such table"),
    }
    for name, (content, words) in cases.items():
        path = tmp_path / f"{name}.db"
        path.write_bytes(content)
        with pytest.raises(Invalid, match=words) as refused:
            read_exported(path)
        assert "\n" not in refused.value.message, name
    with pytest.raises(Invalid, match="No such file"):
        read_exported(tmp_path / "none.db")
    with pytest.raises(Invalid, match="Is a directory"):
        read_exported(tmp_path)
    (tmp_path / "good.db-wal").write_bytes(b"more")
    with pytest.raises(Invalid, match="is in use"):
        read_exported(tmp_path / "good.db")


def test_a_file_that_would_keep_us_reading_for_ever_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exported, "READ_S_MAX", 0.2)
    conn = sqlite3.connect(tmp_path / "trap.db", isolation_level=None)
    for table in ("meta", "settings", "nodes", "jobs", "job_specs"):
        conn.execute(f"CREATE TABLE {table}(key, value)")
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n"
    conn.execute(f"CREATE VIEW _sqlite_migrations AS SELECT 'swarmd' AS migration_set, x AS name"
                 f" FROM ({endless})")  # fmt: skip
    conn.close()
    with pytest.raises(Invalid, match="cannot be read as a swarm's state: interrupted"):
        read_exported(tmp_path / "trap.db")


def a_queue_of_packages() -> Builds:
    """Of three drones, one of which is gone, and a sweeper."""
    state = Builds()
    swarm_of("a", "b", "c", state=state)
    one, two, three = [state.builder(f"drone-{n}", auto_reboot=n > 1) for n in (1, 2, 3)]
    state.builder("sweeper-1")
    state.apply(c.CreateGroup(Group(GroupId("s1"), GroupKind.SESSION, labels={"name": "night"})))
    state.queue("x/old-1", session="s1")
    assert state.take(one) == ["x/old-1"]
    state.say(one, Outcome.BUILT, "x/old-1", duration_ms=40_000)
    state.queue("x/bad-1", "z/masked-1", "x/odd-1", "x/slow-1", "x/next-1", session="s1")
    state.queue("y/more-2", depends_on=(JobId("job z/masked-1"), JobId("job x/next-1")))
    for builder, package, outcome in (
        (one, "x/bad-1", Outcome.FAILED), (two, "x/bad-1", Outcome.FAILED),
        (one, "z/masked-1", Outcome.MASKED), (one, "x/odd-1", Outcome.FAILED),
    ):  # fmt: skip
        assert state.take(builder) == [package]
        state.say(builder, outcome, package, result=Result(error=SECRET))
    assert state.take(two, 8) == ["x/odd-1", "x/slow-1"]
    state.say(two, Outcome.RETURNED, "x/odd-1")
    state.apply(b.StartBuild(two, "x/slow-1"))
    state.apply(b.NotePresence((), (three,), 1))
    state.apply(b.NoteBuilder(one, paused=True))
    state.now += 25_000
    state.apply(c.PutSetting("a", b"b"))
    return state


def test_its_builders_and_packages_are_found(tmp_path: Path) -> None:
    state = a_queue_of_packages()
    found = read(state, tmp_path)
    assert found.jobs == ()
    builds = found.builds
    assert [(each.name, each.member, each.about.paused) for each in builds.builders] == [
        ("drone-1", False, True), ("drone-2", False, False), ("sweeper-1", False, False),
    ]  # fmt: skip
    assert [each.about.auto_reboot for each in builds.builders] == [False, True, True]
    assert [(each.id, each.labels["name"]) for each in builds.sessions] == [("s1", "night")]
    bad, odd, slow, soon, more = builds.packages
    assert (bad.name, bad.key, bad.session) == ("x/bad-1", "x/bad", "s1")
    assert (bad.failed_by, bad.blocked_s) == (("drone-1", "drone-2"), BLOCKED_MS / 1000 - 25)
    assert (odd.failed_by, odd.blocked_s, odd.holder) == (("drone-1",), None, None)
    assert (slow.holder, slow.ran_s) == ("drone-2", 25.0)
    assert (soon.failed_by, soon.holder, soon.depends_on) == ((), None, ())
    assert (more.session, more.depends_on) == (None, ("job x/next-1",))
    assert builds.lengths_s == dict.fromkeys(("x/bad", "x/odd", "x/slow", "x/next", "y/more"), 40.0)
    assert not builds.paused
    assert found.left_out == {
        "builders that were offline": 1,
        "packages that are put aside until somebody says otherwise": 1,
    }
    assert SECRET not in repr(found)
    notes = "\n".join(builds.notes(30.0))
    assert "5 to be built: 1 with builders, 1 blocked; builders there 3" in notes
    assert "as the swarm expects for 5 of 5 packages" in notes


def test_a_builder_that_rests_does_so_for_the_rest_of_its_time(tmp_path: Path) -> None:
    state = Builds()
    swarm_of("a", state=state)
    one = state.builder("drone-1")
    for n in range(FAILURES_IN_A_ROW_MAX):
        state.queue(f"x/p{n}-1")
        assert state.take(one) == [f"x/p{n}-1"]
        state.say(one, Outcome.FAILED, f"x/p{n}-1")
    state.control(Control.PAUSE)
    state.now += 60_000
    state.apply(c.PutSetting("a", b"b"))
    found = read(state, tmp_path).builds
    assert [each.rests_s for each in found.builders] == [(GROUNDED_MS - 60_000) / 1000]
    assert found.paused


def test_a_copy_of_before_there_were_builds_has_none(tmp_path: Path) -> None:
    found = read(swarm_of("a"), tmp_path)
    assert not found.builds
    assert found.builds.notes(30.0) == []


def _other() -> bytes:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    conn.execute("CREATE TABLE songs(name)")
    return conn.serialize()
