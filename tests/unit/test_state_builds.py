"""Packages: who gets which, what a builder's word does, and what operators may say."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from swarmd.domain.binpkgs import BinPkg, path_of
from swarmd.domain.builds import (
    BLOCKED_MS,
    BUILDERS_MAX,
    FAILURES_IN_A_ROW_MAX,
    GROUNDED_MS,
    NO_WORK_MS,
    STAGED_MAX,
    Builder,
    Control,
    Controlled,
    HostSort,
    Outcome,
    prefetch,
)
from swarmd.domain.errors import Busy, Conflict, Invalid, NotFound
from swarmd.domain.events import (
    AttemptStopped,
    BinPkgChanged,
    BuilderChanged,
    JobAssigned,
    JobBlocked,
    JobEnded,
    JobReady,
    PackageBuilt,
)
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    RECOVERIES_MAX,
    AttemptStatus,
    GroupId,
    Installed,
    Job,
    JobFilter,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Result,
)
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state import build_commands as b
from swarmd.state import build_queries as bq
from swarmd.state import commands as c
from swarmd.state import queries as q
from swarmd.state.rules.payloads import host_key_setting
from tests.unit.test_state_jobs import State

PACKAGE = "dev-libs/openssl-3.2.0"


class Builds(State):
    def __init__(self, version: int = c.VERSION) -> None:
        super().__init__()
        self.apply(c.RaiseVersion(version, 1))

    def queue(self, *packages: str, session: str | None = None, **fields: Any) -> None:
        new = [
            c.NewJob(JobId(f"job {package}"), JobSpec(
                package, Installed("emerge"), kind=JobKind.PACKAGE,
                labels={"package": package.rpartition("-")[0]}, **fields,
            ))
            for package in packages
        ]  # fmt: skip
        group = None if session is None else GroupId(session)
        assert all(isinstance(one, Job) for one in self.apply(c.SubmitJobs(tuple(new), group)))

    def builder(self, name: str, *, online: bool = True, **fields: Any) -> NodeId:
        node_id = NodeId(f"builder/{name}")
        node = Node(node_id, name, NodeKind.DRONE, addresses=("10.0.0.1",), reach=("http",))
        self.apply(b.PutBuilder(node_id, node=node, **fields))
        if online:
            self.apply(b.NotePresence((node_id,), (), 1))
        return node_id

    def take(self, node_id: NodeId, cores: int = 1) -> list[str]:
        may = self.ask(bq.AnythingFor(node_id, self.now, cores))
        held = self.view(node_id).held
        taken = [job.spec.type for job in self.apply(b.TakeBuilds(node_id, cores))]
        assert may == bool(taken) or held, "the question and the rule disagree"
        return taken

    def stage(self, node_id: str, package: str, size_bytes: int = 2000, salt: str = "") -> BinPkg:
        """As after an upload."""
        category, _, file = package.partition("/")
        name, _, version = file.rpartition("-")
        sha = hashlib.sha256(f"{package}{salt}".encode()).hexdigest()
        pkg = BinPkg(category, name, version, "gpkg", sha, size_bytes, "0" * 32, "0" * 40)
        self.apply(c.AddBlob(sha, size_bytes, NodeId("n1")))
        self.apply(b.StagePackage(node_id, f"{category}/{file}.gpkg.tar", pkg))
        return pkg

    def blob(self, sha256: str) -> tuple[int, bool]:
        """How often it is referred to, and whether it may be dropped."""
        refs, idle = self.conn.execute(
            "SELECT refs, idle_since IS NOT NULL FROM blobs WHERE sha256 = ?", (sha256,)
        ).fetchone()
        return refs, bool(idle)

    def say(self, node_id: NodeId, outcome: Outcome, package: str = PACKAGE, **fields: Any) -> bool:
        if outcome is Outcome.BUILT and package in [h.package for h in self.view(node_id).held]:
            self.stage(node_id, package)
        end = self.apply(b.FinishBuild(node_id, package, outcome, **fields))
        return end.job is not None

    def view(self, node_id: NodeId) -> bq.BuilderView:
        found = self.ask(bq.FindBuilder(node_id))
        assert found is not None
        return found  # type: ignore[no-any-return]

    def package(self, package: str = PACKAGE) -> Job:
        return self.job(f"job {package}")

    def counts(self) -> tuple[int, int, int, int, int]:
        n = self.ask(bq.CountBuilds())
        return n.needed, n.delegated, n.received, n.blocked, n.aside

    def control(self, action: Control, target: str | None = None, limit: int = 100) -> Controlled:
        return self.apply(b.ControlBuilds(action, limit, target))  # type: ignore[no-any-return]

    def kinds(self) -> list[type]:
        return [type(event.body) for event in self.events]


@pytest.fixture
def state() -> Iterator[Builds]:
    made = Builds()
    yield made
    made.check_counts()
    made.conn.close()


@pytest.mark.parametrize(
    ("cores", "gets"), [(0, 1), (1, 1), (4, 1), (7, 1), (8, 2), (16, 2), (128, 2)]
)
def test_a_builder_that_holds_nothing_gets_by_its_cores(cores: int, gets: int) -> None:
    assert prefetch(cores) == gets


def test_the_queue_has_since_when_a_builder_holds_each(state: Builds) -> None:
    def given() -> int | None:
        (job,) = state.ask(q.ListJobs(JobFilter(JobKind.PACKAGE)))
        assert len(job.attempts) <= 1
        return job.attempts[0].assigned_at if job.attempts else None

    one = state.builder("one")
    state.queue(PACKAGE)
    assert given() is None
    taken = state.now
    assert state.take(one) == [PACKAGE] and given() == taken
    state.now += 5000
    state.apply(b.StartBuild(one, PACKAGE))
    assert given() == taken
    state.say(one, Outcome.RETURNED)
    assert given() is None
    taken = state.now
    assert state.take(one) == [PACKAGE] and given() == taken
    state.now += 5000
    assert state.say(one, Outcome.BUILT) and given() == taken
    assert all(not job.attempts for job in state.ask(q.ListJobs(JobFilter())))


def test_packages_go_out_in_their_order_and_come_back_built(state: Builds) -> None:
    state.queue(PACKAGE, "a/b-1", "a/c-1")
    one, other = state.builder("one"), state.builder("other")
    assert state.take(one, 16) == [PACKAGE, "a/b-1"]
    assert state.kinds() == [JobAssigned, JobAssigned]
    assert state.take(one, 16) == [], "it holds some"
    assert state.take(other, 16) == ["a/c-1"]
    assert state.counts() == (0, 3, 0, 0, 0)
    assert state.apply(b.StartBuild(one, PACKAGE)) is True
    assert state.apply(b.StartBuild(one, PACKAGE)) is False
    assert state.package().status is JobStatus.RUNNING
    state.now += 5000
    assert state.say(one, Outcome.BUILT)
    assert state.kinds() == [PackageBuilt, BinPkgChanged, JobEnded]
    assert state.package().status is JobStatus.COMPLETED
    assert [held.package for held in state.view(one).held] == ["a/b-1"]
    assert state.counts() == (0, 2, 1, 0, 0)
    (build,) = state.ask(bq.ListBuilds(bq.BuildFilter()))
    assert (build.package, build.node_name, build.ok, build.duration_ms) == (
        PACKAGE, "one", True, 5000,
    )  # fmt: skip
    assert state.view(one).builder.completed == 1


def test_a_report_of_what_it_does_not_hold_changes_nothing(state: Builds) -> None:
    state.queue(PACKAGE)
    one, other = state.builder("one"), state.builder("other")
    state.take(one)
    assert not state.say(other, Outcome.BUILT) and state.events == []
    assert not state.say(one, Outcome.FAILED, "a/b-1")
    state.control(Control.REBALANCE)
    assert not state.say(one, Outcome.BUILT)
    assert state.package().status is JobStatus.PENDING
    assert state.ask(bq.ListBuilds(bq.BuildFilter())) == []


def test_who_failed_a_package_does_not_get_it_again_and_two_block_it(state: Builds) -> None:
    state.queue(PACKAGE)
    one, two, sweeper = state.builder("one"), state.builder("two"), state.builder("sweeper-1")
    assert state.take(sweeper) == [], "nothing is blocked"
    state.take(one)
    assert state.say(one, Outcome.FAILED, result=Result(error="no gcc"))
    assert state.take(one) == [] and state.counts() == (1, 0, 0, 0, 0)
    assert state.take(two) == [PACKAGE]
    state.say(two, Outcome.FAILED, result=Result(error="no gcc either"))
    assert JobBlocked in state.kinds()
    assert state.counts() == (0, 0, 0, 1, 0)
    assert state.package().waits == "blocked" and state.package().failures == 2
    three = state.builder("three")
    assert state.take(three) == []
    assert state.take(sweeper) == [PACKAGE]
    state.say(sweeper, Outcome.RETURNED)
    assert state.counts() == (0, 0, 0, 1, 0), "what was blocked is blocked again"
    assert state.ask(q.GetStanding()).delayed_until == state.now + BLOCKED_MS
    state.now += BLOCKED_MS
    assert state.apply(c.WakeJobs(10, 1)) == 1
    assert state.kinds() == [JobReady]
    assert state.take(one) == [PACKAGE], "tried again, by anybody"


def test_what_all_that_are_there_have_failed_is_blocked_at_once(state: Builds) -> None:
    """Else nobody would come for it, and nobody would know."""
    state.queue(PACKAGE)
    one, two = state.builder("one"), state.builder("two")
    state.builder("sweeper-1")
    state.builder("away", online=False)
    state.take(one)
    state.say(one, Outcome.FAILED)
    assert state.counts() == (1, 0, 0, 0, 0), "two may do it"
    state.apply(b.NotePresence((), (two,), 1))
    assert state.counts() == (0, 0, 0, 1, 0)
    state.control(Control.UNBLOCK)
    state.take(one)
    state.say(one, Outcome.FAILED)
    assert state.counts() == (0, 0, 0, 1, 0)


def test_five_failures_in_all_block_a_package_too(state: Builds) -> None:
    """However long ago: from then on each one does."""
    state.queue(PACKAGE)
    one, two = state.builder("one"), state.builder("two")
    for _ in range(2):
        for node_id in (one, two):
            assert state.take(node_id) == [PACKAGE]
            state.say(node_id, Outcome.FAILED)
        assert state.counts() == (0, 0, 0, 1, 0)
        state.control(Control.UNBLOCK)
    state.take(one)
    state.control(Control.REBALANCE)
    assert state.counts() == (1, 0, 0, 0, 0), "it was taken back, and has not failed since"
    state.take(one)
    state.say(one, Outcome.FAILED)
    assert state.counts() == (0, 0, 0, 1, 0) and state.package().failures == 5


def test_masked_is_put_aside_until_somebody_says_otherwise(state: Builds) -> None:
    state.queue(PACKAGE, "a/after-1")
    one = state.builder("one")
    state.take(one)
    state.say(one, Outcome.MASKED, result=Result(error="masked by: ~amd64"))
    assert state.counts() == (1, 0, 0, 0, 1) and "masked by" in (state.package().error or "")
    assert state.ask(q.GetStanding()).delayed_until is None
    assert state.control(Control.UNBLOCK) == Controlled(0, 0)
    assert state.control(Control.RETRY_FAILURES) == Controlled(1, 0)
    assert state.take(one) == [PACKAGE]
    state.say(one, Outcome.MASKED)
    assert state.control(Control.CLEAR_FAILURES) == Controlled(1, 0)
    assert state.package().status is JobStatus.CANCELLED


def test_eight_failures_in_a_row_ground_a_builder_and_give_its_work_back(state: Builds) -> None:
    names = [f"a/p-{n}" for n in range(FAILURES_IN_A_ROW_MAX + 2)]
    state.queue(*names)
    one = state.builder("one")
    for _ in range(FAILURES_IN_A_ROW_MAX):
        if not (held := [each.package for each in state.view(one).held]):
            held = state.take(one, 8)
        state.say(one, Outcome.FAILED, held[0])
    assert BuilderChanged in state.kinds()
    view = state.view(one)
    assert view.held == () and view.builder.groundings == 1 and view.builder.failures == 0
    assert state.take(one) == []
    state.now += GROUNDED_MS - 1
    assert state.take(one) == []
    state.now += 1
    assert state.take(one) != []
    state.say(one, Outcome.BUILT, state.view(one).held[0].package)
    assert state.view(one).builder.groundings == 0


def test_one_success_clears_the_count_of_failures(state: Builds) -> None:
    state.queue("a/bad-1", "a/good-1")
    one = state.builder("one")
    state.take(one)
    state.say(one, Outcome.FAILED, "a/bad-1")
    assert state.view(one).builder.failures == 1
    state.take(one)
    state.say(one, Outcome.BUILT, "a/good-1")
    assert state.view(one).builder.failures == 0


def test_three_failed_uploads_and_it_gets_no_work_for_a_while(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    for _ in range(3):
        assert state.take(one) == [PACKAGE], "an upload is not the package's fault"
        state.say(one, Outcome.NOT_UPLOADED)
    assert state.take(one) == [] and state.package().failures == 0
    state.now += NO_WORK_MS
    assert state.take(one) == [PACKAGE]


def test_paused_is_paused_queue_and_builder(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.control(Control.PAUSE)
    assert state.ask(bq.CountBuilds()).paused and state.take(one) == []
    state.control(Control.RESUME)
    state.apply(b.NoteBuilder(one, paused=True))
    assert [event.body for event in state.events] == [BuilderChanged(one, "paused")]
    assert state.take(one) == []
    state.apply(b.NoteBuilder(one, paused=False))
    assert state.take(one) == [PACKAGE]
    with pytest.raises(NotFound):
        state.apply(b.NoteBuilder(NodeId("builder/nobody"), paused=True))


def test_what_is_taken_back_is_told_once(state: Builds) -> None:
    state.queue(PACKAGE, "a/b-1")
    one = state.builder("one")
    state.take(one, 8)
    assert state.control(Control.RECLAIM, "one") == Controlled(2, 0)
    assert state.kinds().count(AttemptStopped) == 2
    assert state.view(one).revoked == (PACKAGE, "a/b-1")
    assert state.apply(b.TakeRevoked(one, 100)) == (PACKAGE, "a/b-1")
    assert state.view(one).revoked == () and state.apply(b.TakeRevoked(one, 100)) == ()


def test_work_of_the_silent_goes_back_and_one_that_kills_builders_is_put_aside(
    state: Builds,
) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    for n in range(RECOVERIES_MAX):
        assert state.take(one) == [PACKAGE], n
        attempt = state.view(one).held[0].attempt_id
        assert state.apply(b.ReclaimBuilds((attempt,), "silent", True, 1)) == 1
        assert state.apply(b.ReclaimBuilds((attempt,), "silent", True, 1)) == 0
    assert state.counts() == (0, 0, 0, 0, 1)
    assert state.package().attempts[-1].status is AttemptStatus.TIMEOUT
    state.control(Control.RETRY_FAILURES)
    assert state.take(one) == [PACKAGE]
    attempt = state.view(one).held[0].attempt_id
    state.apply(b.ReclaimBuilds((attempt,), "silent", True, 1))
    assert state.counts() == (1, 0, 0, 0, 0), "what was counted is since it was tried anew"


def test_a_control_touches_no_more_than_its_limit_and_says_what_is_left(state: Builds) -> None:
    names = [f"a/p-{n}" for n in range(5)]
    state.queue(*names)
    for name in names:
        state.control(Control.BLOCK, name)
    assert state.counts() == (0, 0, 0, 5, 0)
    assert state.control(Control.UNBLOCK, limit=2).done == 2
    assert state.counts() == (2, 0, 0, 3, 0)
    assert state.control(Control.UNBLOCK, "a/p-4") == Controlled(1, 0)
    with pytest.raises(Conflict, match="not blocked"):
        state.control(Control.UNBLOCK, "a/p-4")
    with pytest.raises(NotFound, match="no package a/none-1"):
        state.control(Control.UNBLOCK, "a/none-1")
    with pytest.raises(NotFound, match="no builder"):
        state.control(Control.UNGROUND, "nobody")
    with pytest.raises(NotFound, match="no builder"):
        state.control(Control.RECLAIM, "nobody")


def test_reset_makes_all_needed_that_was_not_received(state: Builds) -> None:
    state.queue("a/built-1", "a/held-1", "a/masked-1", "a/blocked-1", "a/new-1")
    one, two = state.builder("one"), state.builder("two")
    state.take(one)
    state.say(one, Outcome.BUILT, "a/built-1")
    state.take(one)
    state.take(two)
    state.say(two, Outcome.MASKED, "a/masked-1")
    state.control(Control.BLOCK, "a/blocked-1")
    assert state.counts() == (1, 1, 1, 1, 1)
    assert state.control(Control.RESET).left == 0
    assert state.counts() == (4, 0, 1, 0, 0)


def test_a_session_is_over_when_nothing_is_needed_or_held(state: Builds) -> None:
    group = Group(GroupId("session-1"), GroupKind.SESSION, labels={"name": "world"})
    state.apply(c.CreateGroup(group))
    state.queue("a/one-1", "a/two-1", session="session-1")
    one = state.builder("one")
    state.take(one)
    (view,) = state.ask(bq.ListSessions(10))
    assert (view.needed, view.delegated, view.ended_at) == (1, 1, None)
    state.say(one, Outcome.BUILT, "a/one-1")
    state.take(one)
    state.now += 1000
    state.say(one, Outcome.MASKED, "a/two-1")
    (view,) = state.ask(bq.ListSessions(10))
    assert (view.received, view.aside, view.ended_at) == (1, 1, state.now - 1000)
    assert view.group.labels == {"name": "world"}
    state.control(Control.CLEAR_FAILURES)
    state.apply(c.PruneJobs(state.now + 1, 100, 1))
    assert state.ask(bq.ListSessions(10)) == []
    assert len(state.ask(bq.ListBuilds(bq.BuildFilter()))) == 2, "the history is kept"


def test_a_session_tells_of_what_is_forgotten_of_it_too(state: Builds) -> None:
    group = Group(GroupId("session-1"), GroupKind.SESSION, labels={"name": "world"})
    state.apply(c.CreateGroup(group))
    state.queue("a/one-1", "a/two-1", "a/three-1", session="session-1")
    one = state.builder("one")
    state.take(one)
    state.say(one, Outcome.BUILT, "a/one-1")
    built_at = state.now
    state.take(one)
    state.say(one, Outcome.MASKED, "a/two-1")
    state.control(Control.CLEAR_FAILURES)
    state.now += 1000
    (before,) = state.ask(bq.ListSessions(10))
    assert (before.needed, before.received, before.dropped) == (1, 1, 1)
    assert state.apply(c.PruneJobs(state.now, 100, 1)) == 2
    (after,) = state.ask(bq.ListSessions(10))
    assert after == before
    state.control(Control.BLOCK, "a/three-1")
    (over,) = state.ask(bq.ListSessions(10))
    assert (over.received, over.dropped, over.ended_at) == (1, 1, built_at)


def test_a_session_that_has_no_package_is_over_and_goes(state: Builds) -> None:
    """Another request had queued all that it was for."""
    for name in ("empty", "other"):
        state.apply(c.CreateGroup(Group(GroupId(name), GroupKind.SESSION)))
    state.queue(PACKAGE, session="other")
    began = state.now
    other, empty = state.ask(bq.ListSessions(10))
    assert (empty.ended_at, other.ended_at) == (began, None)
    state.apply(c.PruneJobs(began, 100, 1))
    assert len(state.ask(bq.ListSessions(10))) == 2
    state.now += 1000
    state.apply(c.PruneJobs(state.now, 100, 1))
    assert [view.group.id for view in state.ask(bq.ListSessions(10))] == ["other"]


def test_estimates_are_of_the_package_else_its_category_else_all(state: Builds) -> None:
    state.queue("a/one-1", "a/two-1", "b/three-1")
    one = state.builder("one")
    for package, took in (("a/one-1", 1000), ("a/two-1", 3000), ("b/three-1", 8000)):
        state.take(one)
        state.say(one, Outcome.BUILT, package, duration_ms=took)
    asked = ("a/one", "a/other", "c/other")
    assert state.ask(bq.BuildTimes(asked)) == {"a/one": 1000, "a/other": 2000, "c/other": 4000}
    assert state.control(Control.CLEAR_HISTORY) == Controlled(3, 0)
    assert state.ask(bq.BuildTimes(asked)) == {}


def test_the_history_is_filtered(state: Builds) -> None:
    state.queue("a/one-1", "a/two-1", "a/three-1")
    one, two = state.builder("one"), state.builder("two")
    for node_id, package, outcome in (
        (one, "a/one-1", Outcome.BUILT), (two, "a/two-1", Outcome.BUILT),
        (one, "a/three-1", Outcome.FAILED),
    ):  # fmt: skip
        state.take(node_id)
        state.say(node_id, outcome, package)

    def found(**wanted: Any) -> list[str]:
        return [each.package for each in state.ask(bq.ListBuilds(bq.BuildFilter(**wanted)))]

    assert found() == ["a/three-1", "a/two-1", "a/one-1"]
    assert found(ok=True) == ["a/two-1", "a/one-1"] and found(limit=1) == ["a/three-1"]
    assert found(node_name="one", ok=False) == ["a/three-1"] and found(node_name="x") == []


def test_a_builder_says_what_it_is_and_keeps_what_was_decided(state: Builds) -> None:
    one = state.builder("one", tree_at="yesterday", online=False)
    assert [type(e.body) for e in state.events][-1] is BuilderChanged
    state.apply(b.NoteBuilder(one, sort=HostSort.LXC, paused=True))
    state.builder("one", tree_at="today", auto_reboot=False, online=False)
    assert BuilderChanged not in state.kinds()
    assert state.view(one).builder == Builder(
        one, HostSort.LXC, auto_reboot=False, tree_at="today", paused=True,
        revision=state.view(one).builder.revision,
    )  # fmt: skip
    before = state.view(one).builder.revision
    state.builder("one", tree_at="today", auto_reboot=False, online=False)
    assert state.events == [] and state.view(one).builder.revision == before
    with pytest.raises(NotFound):
        state.apply(b.PutBuilder(NodeId("nobody")))
    assert state.apply(b.NotePresence((one, NodeId("gone")), (), 1)) == 1
    assert state.apply(b.NotePresence((one,), (), 1)) == 0
    assert state.view(one).builder.online
    other = NodeId("builder/x")
    with pytest.raises(Conflict, match="another node is called one"):
        state.apply(b.PutBuilder(other, node=Node(other, "one", NodeKind.DRONE)))
    assert [view.node.name for view in state.ask(bq.ListBuilders())] == ["one"]
    assert state.ask(bq.FindBuilder("", "one")) == state.view(one)


def test_a_host_that_was_set_up_anew_takes_its_name_once_the_old_one_is_gone(
    state: Builds,
) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    anew = NodeId("builder/anew")
    put = b.PutBuilder(anew, node=Node(anew, "one", NodeKind.DRONE))
    with pytest.raises(Conflict, match="another node is called one"):
        state.apply(put)
    state.apply(b.NotePresence((), (one,), 1))
    state.apply(b.NoteBuilder(one, True, HostSort.BARE_METAL))
    state.apply(put)
    kept = state.view(anew).builder
    assert (kept.paused, kept.sort) == (True, HostSort.BARE_METAL), "an operator said so"
    state.apply(b.NoteBuilder(anew, False))
    assert [view.node.id for view in state.ask(bq.ListBuilders())] == [anew]
    assert state.counts() == (1, 0, 0, 0, 0) and state.take(anew) == [PACKAGE]
    assert state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT)).job is None
    state.node("member")
    with pytest.raises(Conflict, match="another node is called member"):
        state.apply(b.PutBuilder(anew, node=Node(anew, "member", NodeKind.DRONE)))


def test_a_builder_from_outside_is_forgotten_once_it_is_gone(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    key = host_key_setting(one)
    state.apply(c.PutSetting(key, b"ssh-ed25519 AAAA", only_new=True))
    with pytest.raises(Conflict, match="stop it first"):
        state.apply(b.ForgetBuilder(one))
    state.apply(b.NotePresence((), (one,), 1))
    assert state.apply(b.ForgetBuilder(one)) == 1
    assert not state.ask(bq.ListBuilders()) and state.counts() == (1, 0, 0, 0, 0)
    assert state.conn.execute("SELECT count(*) FROM settings WHERE key = ?", (key,)).fetchone() == (
        0,
    )
    with pytest.raises(NotFound):
        state.apply(b.ForgetBuilder(one))
    assert state.take(state.builder("one")) == [PACKAGE], "it may come again"
    state.node("member")
    state.apply(b.PutBuilder(NodeId("member")))
    with pytest.raises(Conflict, match="a node of the swarm"):
        state.apply(b.ForgetBuilder(NodeId("member")))


def test_a_member_that_is_removed_leaves_nothing_of_its_builder(state: Builds) -> None:
    state.queue(PACKAGE)
    member = NodeId("member")
    state.node(member)
    state.apply(b.PutBuilder(member))
    assert state.take(member) == [PACKAGE]
    (held,) = state.ask(bq.ListBuilders())[0].held
    state.apply(b.ReclaimBuilds((held.attempt_id,), "another builder is idle", False, 1))
    count = "SELECT (SELECT count(*) FROM builders), (SELECT count(*) FROM revoked)"
    assert state.conn.execute(count).fetchone() == (1, 1)
    state.apply(c.RemoveNode(member, 7, 100))
    assert state.conn.execute(count).fetchone() == (0, 0)


def test_executors_and_the_scheduler_see_no_packages(state: Builds) -> None:
    state.queue(PACKAGE)
    state.node()
    assert not state.ask(q.AnyReady()) and state.ask(q.AnyReady(JobKind.PACKAGE))
    assert state.claim() is None
    view = state.ask(q.ViewPlacement(8, 100))
    assert view.heads == () and view.shapes == {}
    one = state.builder("one")
    state.take(one)
    assert state.ask(q.ListClaims()) == [] and state.ask(q.ViewLeases()).busy == ()
    assert [node_id for node_id, _ in state.ask(bq.ListHeldBuilds())] == [one]


def test_a_member_that_builds_reports_its_attempts_as_of_any_job(state: Builds) -> None:
    state.node("n1", slots=2)
    me = NodeId("n1")
    state.apply(b.PutBuilder(me))
    state.builder("another")
    state.queue(PACKAGE, "a/bad-1", "a/masked-1", "a/lost-1")
    ends = (
        (AttemptStatus.COMPLETED, None, JobStatus.COMPLETED, None),
        (AttemptStatus.FAILED, None, JobStatus.PENDING, None),
        (AttemptStatus.FAILED, Outcome.MASKED, JobStatus.PENDING, "aside"),
        (AttemptStatus.LOST, None, JobStatus.PENDING, None),
    )
    for status, outcome, left, waits in ends:
        (package,) = state.take(me)
        held = state.view(me).held[0]
        if status is AttemptStatus.COMPLETED:
            state.stage(me, package)
        assert state.package(package).attempts[-1].external is False
        report = c.AttemptReport(held.attempt_id, 20, 10, status, Result(error="so"), outcome)
        assert state.apply(c.ReportAttempts(me, (report,))) == (True,)
        job = state.package(package)
        assert (job.status, job.waits) == (left, waits)
    assert state.view(me).builder.completed == 1 and state.view(me).builder.failed == 2
    assert state.ask(q.ViewLeases()).busy == ()


def test_packages_that_wait_for_others_are_needed_and_not_given_out(state: Builds) -> None:
    state.queue(PACKAGE)
    state.queue("a/after-1", depends_on=(JobId(f"job {PACKAGE}"),))
    one = state.builder("one")
    assert state.take(one, 16) == [PACKAGE] and state.counts() == (1, 1, 0, 0, 0)
    state.say(one, Outcome.BUILT)
    state.apply(c.SettleDependents(10, 1))
    assert state.take(one, 16) == ["a/after-1"]


def test_a_package_is_queued_once(state: Builds) -> None:
    """Whoever asks for it again is told as which job it is there, and what waits for it waits for
    that one."""
    state.queue(PACKAGE)

    def again(name: str, package: str, *waits_for: str) -> c.NewJob:
        spec = JobSpec(
            package, Installed("emerge"), kind=JobKind.PACKAGE,
            depends_on=tuple(JobId(each) for each in waits_for),
        )  # fmt: skip
        return c.NewJob(JobId(name), spec)

    known, new, twice = state.apply(c.SubmitJobs((
        again("known", PACKAGE), again("new", "a/new-1", "known"), again("twice", "a/new-1"),
    )))  # fmt: skip
    assert (known.code, known.facts) == ("conflict", {c.QUEUED_AS: f"job {PACKAGE}"})
    assert (twice.code, twice.facts) == ("conflict", {c.QUEUED_AS: "new"})
    assert (new.spec.depends_on, new.waits) == ((f"job {PACKAGE}",), "dependencies")
    one = state.builder("one")
    assert state.take(one, 8) == [PACKAGE]
    state.say(one, Outcome.BUILT)
    (anew,) = state.apply(c.SubmitJobs((again("anew", PACKAGE),)))
    assert anew.id == "anew", "what was received may be wanted again"


def test_what_is_in_the_queue_is_found(state: Builds) -> None:
    state.queue(PACKAGE, "a/b-1")
    one = state.builder("one")
    state.take(one)
    state.say(one, Outcome.BUILT)
    asked = (PACKAGE, "a/b-1", "a/none-1")
    assert state.ask(bq.FindQueued(asked)) == {"a/b-1": "job a/b-1"}


def test_a_hostile_report_is_cut_and_bounded(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    state.say(one, Outcome.FAILED, duration_ms=10**15, result=Result(error="x" * 100_000))
    (build,) = state.ask(bq.ListBuilds(bq.BuildFilter()))
    assert build.duration_ms == 7 * 86_400_000 and build.error == "x" * 4000


# The binary host


def test_without_a_binary_package_in_staging_nothing_is_built(state: Builds) -> None:
    state.queue(PACKAGE, "virtual/libc-1")
    one = state.builder("one")
    state.take(one, 8)
    state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT))
    assert state.package().status is JobStatus.PENDING and state.package().failures == 0
    assert state.view(one).builder.upload_failures == 1
    state.apply(b.FinishBuild(one, "virtual/libc-1", Outcome.BUILT))
    assert state.package("virtual/libc-1").status is JobStatus.COMPLETED
    state.take(one)
    state.stage(one, PACKAGE, size_bytes=1023)
    state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT))
    assert state.package().status is JobStatus.PENDING


def test_what_is_built_is_published_and_kept(state: Builds) -> None:
    state.queue(PACKAGE)
    one, other = state.builder("one"), state.builder("other")
    with pytest.raises(Conflict, match="does not hold"):
        state.stage(one, PACKAGE)
    state.take(one)
    with pytest.raises(Conflict, match="does not hold"):
        state.stage(other, PACKAGE)
    pkg = state.stage(one, PACKAGE)
    assert state.blob(pkg.sha256) == (1, False) and state.ask(bq.ViewBinHost()).pkgs == ()
    state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT))
    (there,) = state.ask(bq.ViewBinHost()).pkgs
    path = path_of(there)
    assert there.sha256 == pkg.sha256 and state.ask(bq.FindBinPkg(path)) == there
    assert state.blob(pkg.sha256) == (1, False) and state.ask(bq.BinHostAt()) == state.now
    state.apply(b.RemoveBinPkg(path))
    assert state.blob(pkg.sha256) == (0, True) and state.ask(bq.ViewBinHost()).pkgs == ()
    with pytest.raises(NotFound):
        state.apply(b.RemoveBinPkg(path))


def test_a_package_that_is_signed_anew_takes_its_own_place(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    state.stage(one, PACKAGE)
    state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT))
    (there,) = state.ask(bq.ViewBinHost()).pkgs
    path, new = path_of(there), replace(there, sha256="9" * 64)
    state.apply(c.AddBlob(new.sha256, new.size_bytes, NodeId("n1")))
    at = state.ask(bq.BinHostAt())
    state.apply(b.ReplaceBinPkg(path, there.sha256, new))
    assert state.ask(bq.ViewBinHost()).pkgs == (new,) and state.ask(bq.BinHostAt()) > at
    assert state.blob(there.sha256) == (0, True) and state.blob(new.sha256) == (1, False)
    with pytest.raises(Conflict, match="another file by now"):
        state.apply(b.ReplaceBinPkg(path, there.sha256, new))
    for other in (replace(new, build_id=7), replace(new, version="9"), replace(new, name="x")):
        with pytest.raises(Invalid, match="another package"):
            state.apply(b.ReplaceBinPkg(path, new.sha256, other))
    state.apply(b.RemoveBinPkg(path))
    assert state.blob(new.sha256) == (0, True)
    with pytest.raises(NotFound):
        state.apply(b.ReplaceBinPkg(path, new.sha256, there))


def test_two_instances_of_a_version_are_two_packages(state: Builds) -> None:
    one = state.builder("one")
    for number in range(2):
        new = c.NewJob(JobId(f"j{number}"), JobSpec(PACKAGE, Installed("e"), kind=JobKind.PACKAGE))
        state.apply(c.SubmitJobs((new,)))
        state.take(one)
        state.stage(one, PACKAGE, salt=str(number))
        state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT))
    assert len({path_of(pkg) for pkg in state.ask(bq.ViewBinHost()).pkgs}) == 2


def test_what_was_staged_for_another_end_is_dropped_or_in_the_end_all_of_it(state: Builds) -> None:
    state.queue(PACKAGE, "a/b-1")
    one = state.builder("one")
    state.take(one, 8)
    failed, late = state.stage(one, PACKAGE), state.stage(one, "a/b-1")
    state.say(one, Outcome.FAILED)
    assert state.blob(failed.sha256) == (0, True) and state.blob(late.sha256) == (1, False)
    assert state.apply(b.DropStaged(state.now, 10, 1)) == 0
    assert state.apply(b.DropStaged(state.now + 1, 10, 1)) == 1
    assert state.blob(late.sha256) == (0, True)


@pytest.mark.parametrize("lost", [True, False])
def test_what_was_staged_of_what_goes_back_is_dropped(state: Builds, lost: bool) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    staged = state.stage(one, PACKAGE)
    (held,) = state.view(one).held
    state.apply(b.ReclaimBuilds((held.attempt_id,), "it is silent", lost, 1))
    assert state.blob(staged.sha256) == (0, True)
    assert state.take(one) == [PACKAGE]
    assert state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT)).job.status is JobStatus.PENDING


def test_staging_of_one_builder_is_bounded(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    pkg = state.stage(one, PACKAGE)
    for number in range(STAGED_MAX - 1):
        state.apply(b.StagePackage(one, f"f{number}", pkg))
    with pytest.raises(Busy):
        state.apply(b.StagePackage(one, "one more", pkg))
    state.apply(b.StagePackage(one, "f0", pkg))  # the same once more


def test_what_an_operator_staged_is_for_whoever_builds_it(state: Builds) -> None:
    state.queue(PACKAGE)
    one = state.builder("one")
    state.take(one)
    state.stage("", PACKAGE)
    state.apply(b.FinishBuild(one, PACKAGE, Outcome.BUILT))
    assert state.package().status is JobStatus.COMPLETED


def test_no_more_builders_than_are_borne(state: Builds) -> None:
    for number in range(BUILDERS_MAX):
        state.builder(f"b{number}", online=False)
    with pytest.raises(Conflict, match="no more than that"):
        state.builder("one more")
    state.builder("b1", tree_at="new")
