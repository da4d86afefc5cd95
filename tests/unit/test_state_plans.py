"""How SQLite goes about each statement of the state: by an index, never sorting a big table.

A plan depends on the tables alone, since nothing ever gathers statistics: so a few rows stand here
for millions, and no time is measured. Every rule and every query is made to speak.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from contextlib import suppress

import pytest
from msgspec.structs import replace

from swarmd.domain.binpkgs import BinPkg, path_of, placed
from swarmd.domain.builds import Control, HostSort, Outcome
from swarmd.domain.care import CareAction
from swarmd.domain.errors import Conflict
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    AttemptId,
    AttemptStatus,
    Fetch,
    GroupId,
    Installed,
    JobFilter,
    JobId,
    JobKind,
    JobSpec,
    JobStatus,
    NodeId,
    Output,
    Result,
)
from swarmd.domain.nodes import Node, NodeKind
from swarmd.domain.payloads import (
    Deployment,
    Payload,
    PayloadSort,
    Place,
    PlaceStatus,
    Progress,
    Roll,
    Step,
)
from swarmd.domain.terminals import KEPT_MS, Terminal, TerminalEnd
from swarmd.state import build_commands as b
from swarmd.state import build_queries as bq
from swarmd.state import care_commands as care
from swarmd.state import care_queries
from swarmd.state import commands as c
from swarmd.state import payload_commands as p
from swarmd.state import payload_queries as pq
from swarmd.state import queries as q
from swarmd.state import terminal_commands as t
from swarmd.state import terminal_queries as tq
from swarmd.state.event_queries import Only
from swarmd.state.machine import RULES
from tests.unit.test_state_jobs import HOUR_MS, SHA, State

SMALL = {
    "meta", "settings", "nodes", "holds", "counts", "totals", "spans", "sessions", "outcomes",
    "secrets", "tokens", "wraps", "gone", "builders", "care", "payloads", "payload_places",
    "payload_holds", "given_up", "terminals", "payload_rolls", "drone_tokens",
}  # fmt: skip
"""Tables that do not grow with the queue, or hardly: they may be read whole."""
BOUNDED = (
    # What is settled waits for a moment only, and is read a few rows at a time.
    "SELECT 1 FROM settled LIMIT",
    "SELECT count(*) FROM (SELECT 1 FROM settled LIMIT",
    "SELECT seq, completed FROM settled ORDER BY seq LIMIT 1",
    "SELECT seq, at, entry, actor, body FROM events ORDER BY seq DESC LIMIT",
    "SELECT seq, hash FROM events ORDER BY seq DESC LIMIT 1",
    # The groups of the hundred jobs that one entry forgets.
    "SELECT DISTINCT group_id FROM jobs WHERE group_id IS NOT NULL AND seq IN (",
    # What executors hold at present is sorted; the queue is not.
    "SELECT a.id, j.id, j.type, a.node_id, a.started_at, a.deadline_at FROM attempts a",
    # What builders hold at present is sorted, or what keeps them from a package: an index has it.
    "SELECT a.id FROM attempts a JOIN jobs j ON j.seq = a.job_seq",
    "SELECT a.node_id, a.id, j.id, j.type, j.group_id, a.assigned_at, a.started_at FROM attempts a",
    "SELECT seq FROM jobs WHERE kind = 'package' AND waits IN (",
    # The jobs of one package.
    "SELECT seq FROM jobs WHERE kind = 'package' AND type = ",
    "SELECT id FROM jobs WHERE kind = 'package' AND type = ",
    "UPDATE _sqlite_migrations",  # a handful
    "SELECT status FROM jobs WHERE kind = 'package' AND type = ",
    # What is failed at present, in order, and the first hundred of it.
    "SELECT DISTINCT job_seq FROM build_failures ORDER BY job_seq LIMIT",
    # One end of a table, in its own order.
    "SELECT id FROM builds ORDER BY id LIMIT",
    "SELECT id, job_id, package, node_id, node_name, ok, duration_ms, error, session_id, at FROM"
    " builds ORDER BY id DESC LIMIT",
    "SELECT count(*) FROM (SELECT 1 FROM builds LIMIT",
    "SELECT g.body FROM build_sessions s",
    "SELECT s.id, g.body FROM build_sessions s JOIN groups g ON g.id = s.id ORDER BY s.n LIMIT",
    # What is held at present is walked through, in an index that has nothing else.
    "SELECT DISTINCT node_id FROM attempts WHERE active = 1",
)
# The rows of a statement that inserts several are no table.
_TABLE = re.compile(r"\b(SCAN|SEARCH) (?!(?:\d+ )?CONSTANT ROWS?)(\w+)")


_PARTIAL = re.compile(r"USING (?:COVERING )?INDEX (?:shapes_ready|jobs_packages_ready)")


@pytest.fixture
def spoken() -> Iterator[tuple[State, list[str]]]:
    state = State()
    statements: list[str] = []
    state.conn.set_trace_callback(statements.append)
    yield state, statements
    state.conn.close()


def test_no_statement_reads_or_sorts_a_big_table_whole(spoken: tuple[State, list[str]]) -> None:
    state, statements = spoken
    commands = live(state)
    assert {type(command) for command in commands} == RULES.keys(), "a rule was not tried"
    asked = ask_everything(state)
    assert {type(query) for query in asked} == q.QUERIES.keys(), "a query was not tried"
    state.conn.set_trace_callback(None)
    seen = sorted({statement for statement in statements if is_plain(statement)})
    assert len(seen) > 60
    faults = [fault for statement in seen for fault in faults_of(state, statement)]
    assert not faults, "\n".join(faults)


def is_plain(statement: str) -> bool:
    return statement.startswith(("SELECT", "INSERT", "UPDATE", "DELETE"))


def faults_of(state: State, statement: str) -> Iterator[str]:
    plan = [row[3] for row in state.conn.execute(f"EXPLAIN QUERY PLAN {statement}")]
    tables = {found[2] for line in plan if (found := _TABLE.search(line))}
    for line in plan:
        found = _TABLE.search(line)
        scans = found is not None and found[1] == "SCAN" and found[2] not in SMALL
        # A partial index holds the few rows of its condition; it may be walked from end to end.
        partial = _PARTIAL.search(line)
        sorts = "TEMP B-TREE" in line and not tables <= SMALL
        if ((scans and not partial) or sorts) and not statement.startswith(BOUNDED):
            yield f"{line}: {statement}"


def live(state: State) -> list[object]:
    """Every command there is, so that each branch that writes is taken."""
    applied: list[object] = []
    apply = state.apply

    def noted(command: object, term: int = 1) -> object:
        applied.append(command)
        return apply(command, term)

    state.apply = noted  # type: ignore[method-assign]
    me = NodeId("n1")
    blob = Fetch(f"blob:sha256:{SHA}", SHA)
    state.apply(c.PutSetting("a", b"b", only_new=True))
    state.apply(c.AddBlob(SHA, 10, me))
    state.apply(c.CreateGroup(Group(GroupId("g"), GroupKind.BULK)))
    state.node(slots=8)
    state.submit("done", source=blob, idempotency_key="k", max_retries=1)
    state.submit("done", source=blob, idempotency_key="k", max_retries=1)
    state.submit("next", depends_on=(JobId("done"),))
    state.submit("never", depends_on=(JobId("gone"),)) if state.submit("gone") else None
    spec = state.job("gone").spec
    state.apply(c.SubmitJobs((c.NewJob(JobId("of group"), spec),), GroupId("g")))
    state.apply(c.CancelJobs((JobId("gone"), JobId("of group"))))
    state.assign("done")
    attempt = state.job("done").attempt_id
    assert attempt is not None
    state.apply(c.ReportAttempts(me, (c.AttemptReport(attempt, 5),)))
    broken = Result(exit_code=1, stdout=Output(blob=SHA, size=10))
    state.end("done", AttemptStatus.FAILED, broken)
    state.now += HOUR_MS
    state.apply(c.WakeJobs(10, 1))
    for status in (AttemptStatus.REVOKED, AttemptStatus.LOST, AttemptStatus.COMPLETED):
        state.assign("done")
        state.end("done", status)
    state.apply(c.SettleDependents(100, 1))
    state.submit("claimed", timeout_s=1.0)
    for ok in (None, True):
        while (job := state.claim()) is not None and job.id != "claimed":
            state.finish(job.id)
        if ok is None:
            state.apply(c.ExpireAttempts((state.job("claimed").attempt_id or AttemptId(0),), (), 1))
        else:
            state.finish("claimed")
    state.apply(c.ExpireAttempts((), (AttemptId(1),), 1))
    state.submit("lost")
    state.assign("lost")
    state.apply(c.HoldAttempts(me, None))
    state.apply(c.HoldAttempts(me, 0))
    state.apply(c.LoseAttempts(me, (state.job("lost").attempt_id or AttemptId(0),), 0, 1))
    state.apply(c.CancelJobs((JobId("lost"),)))
    state.now += 100 * HOUR_MS
    state.apply(c.PruneJobs(state.now, 100, 1))
    state.apply(c.PruneEvents(1, 10, 1))
    state.apply(c.RaiseVersion(2, 1))
    state.apply(c.DropBlobs(state.now, 10, 1))
    for job_id in ("left", "assigned", "cancelled"):  # so that a page merges several streams
        state.submit(job_id, source=blob)
    state.assign("assigned")
    state.apply(c.CancelJobs((JobId("cancelled"),)))
    state.apply(c.FoundTrust(b"authority", {"a": b"1"}, me, b"box"))
    revision = state.apply(c.PutSecret("k", b"1", 0))
    state.apply(c.PutSecret("k", b"2", revision))
    state.apply(c.PutWraps({me: b"box"}, (me,), 1))
    state.apply(c.PutToken(bytes(32), 1000, alone=True))
    state.apply(c.PutToken(bytes(32), 1000))
    state.apply(c.DropTokens())
    while state.apply(c.RemoveNode(me, 11, 1)):
        pass
    state.apply(c.ForgetGone(state.now + 1, 10, 1))
    state.node(slots=8)
    state.assign("assigned")
    build(state)
    return applied


def build(state: State) -> None:
    """Packages, and all that may befall them."""
    one, two = NodeId("builder/one"), NodeId("builder/sweeper-two")
    state.apply(c.RaiseVersion(c.VERSION, 1))
    state.apply(c.CreateGroup(Group(GroupId("s"), GroupKind.SESSION)))
    names = [f"a/p-{n}" for n in range(9)]
    new = tuple(
        c.NewJob(JobId(name), JobSpec(name, Installed("emerge"), kind=JobKind.PACKAGE))
        for name in names
    )
    state.apply(c.SubmitJobs(new, GroupId("s")))
    for node_id in (one, two):
        node = Node(node_id, node_id.removeprefix("builder/"), NodeKind.DRONE)
        state.apply(b.PutBuilder(node_id, node=node))
    state.apply(b.NoteBuilder(one, paused=False))
    state.apply(b.NotePresence((one,), (two,), 1))
    for outcome in Outcome:
        (job,) = state.apply(b.TakeBuilds(one, 1))
        state.apply(b.StartBuild(one, job.spec.type))
        state.apply(b.FinishBuild(one, job.spec.type, outcome, 1000))
    (job,) = state.apply(b.TakeBuilds(one, 1))
    category, _, file = job.spec.type.partition("/")
    pkg = BinPkg(category, *file.rsplit("-", 1), "gpkg", SHA, 2000, "0" * 32, "0" * 40)
    for name in ("f", "g"):
        state.apply(b.StagePackage(one, name, pkg))
    state.apply(b.FinishBuild(one, job.spec.type, Outcome.BUILT))
    there = placed(pkg, ())
    state.apply(b.ReplaceBinPkg(path_of(there), pkg.sha256, there))
    state.apply(b.RemoveBinPkg(path_of(there)))
    state.apply(b.StagePackage("", "f", pkg))
    state.apply(b.DropStaged(state.now + 1, 10, 1))
    state.apply(b.ControlBuilds(Control.BLOCK, 10, names[-1]))
    state.apply(b.TakeBuilds(two, 1))
    assert any(job.attempts for job in state.ask(q.ListJobs(JobFilter(JobKind.PACKAGE))))
    for lost in (False, True):
        (job,) = state.apply(b.TakeBuilds(one, 1))
        attempt = state.job(job.id).attempt_id
        assert attempt is not None
        state.apply(b.ReclaimBuilds((attempt,), "silent", lost, 1))
    state.apply(b.TakeRevoked(one, 1))
    for action in Control:
        targets = (None, names[-2]) if action is not Control.BLOCK else (names[-2],)
        if action in (Control.RECLAIM, Control.REBALANCE, Control.UNGROUND):
            targets = (None, "one")
        for target in targets:
            state.apply(b.TakeBuilds(one, 8))
            with suppress(Conflict):
                state.apply(b.ControlBuilds(action, 10, target))
    state.apply(b.NoteBuilder(one, sort=HostSort.LXC))
    for action in CareAction:
        state.apply(b.TakeBuilds(one, 8))
        state.apply(care.BeginCare(one, action, True, 1, "it ails", 1))
        state.apply(care.EndCare(one, True, "", 1))
    state.apply(care.EaseCare((one, two), 1))
    state.apply(care.ResetCare(one))
    state.now += HOUR_MS
    state.apply(c.WakeJobs(10, 1))
    state.apply(c.CancelJobs((JobId(names[0]), JobId(names[1]))))
    state.apply(c.PruneJobs(state.now + 1, 100, 1))
    order(state, one)
    deploy(state, one)
    log_in(state, one)
    state.apply(b.NotePresence((), (one,), 1))
    state.apply(b.ForgetBuilder(one))


def order(state: State, node_id: NodeId) -> None:
    """Packages that wait for one which is given up."""
    before, behind = JobId("before"), tuple(JobId(f"behind {n}") for n in range(3))
    specs = [JobSpec(i, Installed("e"), kind=JobKind.PACKAGE) for i in (before, *behind)]
    specs[1:] = (replace(spec, depends_on=(before,)) for spec in specs[1:])
    new = zip((before, *behind), specs, strict=True)
    state.apply(c.SubmitJobs(tuple(itertools.starmap(c.NewJob, new))))
    state.apply(b.ControlBuilds(Control.BLOCK, 10, before))
    state.apply(c.SettleDependents(2, 1))
    state.apply(c.SettleDependents(2, 1))


def deploy(state: State, node_id: NodeId) -> None:
    """Payloads, and where they go."""
    sort = PayloadSort.CONFIG
    state.apply(c.AddBlob(SHA, 10, NodeId("n1")))
    for version in ("1", "1", "2"):
        state.apply(p.PutPayload(Payload(sort, version, SHA, 10)))
    state.apply(p.DropPayload(sort, "2"))
    for again in (False, True):
        state.apply(p.HoldPayload(sort, "", "h", 1000, again))
    done = Deployment(node_id, "", sort, "1", Step.DEPLOY, True)
    state.apply(p.NoteDeployment(done, Place(node_id, sort, PlaceStatus.DEPLOYED, "1")))
    state.apply(p.BeginRoll(Roll("r", sort, "1", (node_id,)), "h"))
    state.apply(p.TakeRoll(sort, "h"))
    state.apply(p.NoteRoll(sort, "h", Progress(1)))
    state.apply(p.EndRoll(sort, "h", True))
    state.apply(p.ReleasePayload(sort, "", "h"))
    state.apply(p.ForgetHostKey(node_id))
    state.apply(c.PutDroneToken("one", bytes(32)))
    state.apply(c.DropDroneToken("one"))


def log_in(state: State, node_id: NodeId) -> None:
    """Terminals, more than are kept."""
    for id in ("first", "second"):
        began = Terminal(id, node_id, "", "10.0.0.1", "root", "", "", NodeId("n1"), "n1")
        state.apply(t.BeginTerminal(began))
        state.apply(t.EndTerminal(id, TerminalEnd.EXITED, 0, SHA))
        state.now += KEPT_MS + 1
    state.apply(t.ForgetTerminals(state.now, 10, 1))


def ask_everything(state: State) -> list[object]:
    filters = (
        JobFilter(kind=kind, statuses=statuses, type=type_, priority=priority, offset=offset)
        for kind, statuses, type_, priority, offset in itertools.product(
            (None, JobKind.BINARY),
            ((), (JobStatus.PENDING,), (JobStatus.PENDING, JobStatus.ASSIGNED), tuple(JobStatus)),
            (None, "t"),
            (None, 50),
            (0, 1000),
        )
    )
    one = (
        q.FindJob("left"), q.FindJobs(("left", "gone")), q.AnyReady(), q.AheadOf("left"),
        q.CountJobs(JobKind.BINARY), q.ListTotals(JobKind.BINARY), q.ViewPlacement(8, 200),
        q.ListDuties("n1"), q.ListDuties("n1", (AttemptId(1), AttemptId(2))), q.ListClaims(),
        q.ListLately(("PackageBuilt",), 10, 100),
        q.ListLately(("PackageBuilt",), 10, 100, only=Only("PackageBuilt", "ok", (True,))),
        q.ListNodes(), q.GetTrust(), q.FindSecret("k"), q.CompletedBy(), q.UsageOf("n1"),
        q.GetSetting("a"),
        q.FindBlob(SHA), q.ListEvents(0), q.GetStanding(), q.FindOutcomes(1, 1, (1, 2)),
        q.LastBoot(1),
        q.ListHolders(SHA), q.ViewLeases(), q.FindHold("n1"), q.ListMemberIds(),
        bq.CountBuilds(), bq.FindBuilder("builder/one"), bq.FindBuilder("", "one"),
        bq.ListBuilders(), bq.ListBuilderNodes(), bq.AnythingFor("builder/one", 0, 8),
        bq.AnythingFor("builder/sweeper-two", 0, 8), bq.ListHeldBuilds(),
        *(bq.ListBuilds(bq.BuildFilter(ok, name)) for ok in (None, True) for name in (None, "x")),
        bq.ViewBinHost(), bq.FindBinPkg("a"), bq.ListBinPkgs("a/p"), bq.BinHostAt(),
        bq.ViewStaging("builder/one"),
        *(pq.ListPayloads(sort) for sort in (None, PayloadSort.CONFIG)),
        pq.FindPayload(PayloadSort.CONFIG, "1"), pq.FindPlace(PayloadSort.CONFIG, "builder/one"),
        *(pq.ListPlaces(sort) for sort in (None, PayloadSort.CONFIG)),
        *(pq.ListDeployments(PayloadSort.CONFIG, 10, i) for i in ("", "builder/one")),
        pq.ListRolls(), q.ListDroneTokens(),
        bq.BuildTimes(("a/p",)), bq.ListSessions(10), bq.FindQueued(("a/p-1", "a/p-8")),
        bq.ListOpenBuilds(10), bq.TreeWanted("builder/one", 8),
        bq.FailedBy("left"),
        care_queries.ListCare(),
        tq.ListTerminals(), tq.FindTerminal("first"), tq.ListOpenTerminals(NodeId("n1")),
        tq.OldestTerminal(),
    )  # fmt: skip
    asked: list[object] = [*map(q.ListJobs, filters), *one]
    for query in asked:
        state.ask(query)  # type: ignore[arg-type]
    return asked


def test_a_page_is_a_part_of_the_whole_wherever_it_lies(
    spoken: tuple[State, list[str]],
) -> None:
    state, _ = spoken
    state.node(slots=100)
    for number in range(30):
        state.submit(f"j{number}", type="t" if number % 3 else "u", priority=10 * (number % 2))
        if number % 4 == 1:
            state.assign(f"j{number}")
        if number % 4 == 2:
            state.apply(c.CancelJobs((JobId(f"j{number}"),)))
    both = (JobStatus.PENDING, JobStatus.ASSIGNED)
    for statuses, type_, kind in itertools.product(
        ((), both[:1], both, tuple(JobStatus)), (None, "t"), (None, JobKind.BINARY)
    ):
        wanted = JobFilter(kind=kind, statuses=statuses, type=type_, limit=1000)
        whole = state.ask(q.ListJobs(wanted))
        assert [job.seq for job in whole] == sorted((job.seq for job in whole), reverse=True)
        for limit, offset in itertools.product((1, 4, 30), range(32)):
            page = state.ask(q.ListJobs(replace(wanted, limit=limit, offset=offset)))
            assert page == whole[offset : offset + limit]
