"""Applying is deterministic: the same history leaves the same state, however it is cut in batches
and wherever it runs. What the source may not say for that stands in test_state_source.py."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from swarmd.domain.actors import Actor
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import OUTSIDE, Control, HostSort, Outcome
from swarmd.domain.care import CareAction
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import (
    AttemptId,
    AttemptStatus,
    Constraint,
    Fetch,
    GroupId,
    Installed,
    JobId,
    JobKind,
    JobSpec,
    NodeId,
    Output,
    Resources,
    Result,
)
from swarmd.domain.nodes import AdminState, Capacity, Node, NodeKind, Taint, TaintEffect
from swarmd.domain.payloads import (
    Before,
    Deployment,
    Payload,
    PayloadSort,
    Place,
    PlaceStatus,
    Progress,
    Roll,
    Step,
)
from swarmd.domain.terminals import Terminal, TerminalEnd
from swarmd.state import build_commands as b
from swarmd.state import care_commands as care
from swarmd.state import commands as c
from swarmd.state import payload_commands as p
from swarmd.state import terminal_commands as t
from swarmd.state.machine import RULES, Machine, dump_hash
from swarmd.state.rules.payloads import host_key_setting
from tests.unit.test_state_jobs import State

ROOT = Path(__file__).parent.parent.parent


OUTPUTS = (Output(), Output(b"out", size=3), Output(blob="b" * 64, size=10**6))


class Story:
    """A random history of all commands: many of them refused, repeated, late or fenced off."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.at = 1_000_000
        self.jobs = 0
        self.sent: list[tuple[Any, c.RequestId]] = []
        self.seqs = dict.fromkeys((11, 12, 13), 0)
        self.boots = dict.fromkeys((11, 12, 13), 1)

    def entries(self, count: int) -> list[c.Entry]:
        index = term = 1
        first = c.RaiseVersion(c.VERSION, term)
        found = [c.Entry(index, term, self.at, Actor("system", "control"), first)]
        while len(found) < count:
            index += 1
            if self.rng.random() < 0.02:
                term += 1
            self.at += self.rng.choice((0, 0, 1, 50, 5000))
            for _ in range(self.rng.choice((1, 1, 1, 5))):
                command, request = self._next(term)
                actor = Actor(self.rng.choice("xyz"), self.rng.choice(("jobqueue", "console")))
                found.append(c.Entry(index, term, self.at, actor, command, request))
        return found

    def _next(self, term: int) -> tuple[Any, c.RequestId | None]:
        rng = self.rng
        if self.sent and rng.random() < 0.1:
            return rng.choice(self.sent[-200:])
        origin = rng.choice((11, 12, 13))
        if rng.random() < 0.005:
            self.boots[origin] += 1
            self.seqs[origin] = 0
        self.seqs[origin] += rng.choice((1, 1, 1, 2))
        request = c.RequestId(origin, self.boots[origin], self.seqs[origin])
        if rng.random() < 0.05:
            term -= 1
        make = rng.choice(MAKERS)
        self.sent.append((make(self, term), request))
        return self.sent[-1]

    def job(self) -> JobId:
        return JobId(f"j{self.rng.randint(1, max(1, self.jobs))}")

    def late_job(self) -> JobId:
        """One that may well be ready still."""
        return JobId(f"j{self.rng.randint(max(1, self.jobs - 8), max(1, self.jobs))}")

    def node(self) -> NodeId:
        return NodeId(f"n{self.rng.randint(1, 4)}")

    def attempt(self) -> AttemptId:
        return AttemptId(self.rng.randint(1, max(1, self.jobs)))

    def labels(self) -> dict[str, str]:
        names = ["disk", "zone", "gpu", "rack"]
        self.rng.shuffle(names)
        return {name: self.rng.choice("ab") for name in names[: self.rng.randint(0, 4)]}

    def result(self) -> Result:
        return Result(exit_code=self.rng.randint(0, 2), stdout=self.rng.choice(OUTPUTS))

    def submit(self, term: int) -> c.SubmitJobs:
        rng, new = self.rng, []
        for _ in range(rng.randint(1, 4)):
            again = rng.random() < 0.05
            self.jobs += not again
            spec = JobSpec(
                rng.choice(("t1", "t2", "t3")),
                rng.choice((Installed("true"), Fetch("blob:sha256:" + "a" * 64, "a" * 64))),
                priority=rng.choice((10, 50, 100)), labels=self.labels(), env=self.labels(),
                max_retries=rng.randint(0, 2), timeout_s=rng.choice((None, 5.0)),
                depends_on=tuple(self.job() for _ in range(rng.choice((0, 0, 0, 1, 3)))),
                idempotency_key=rng.choice((None, None, "k1", "k2", "k3")),
                resources=Resources(cpus=rng.choice((None, 1.0)), gpus=rng.choice((0, 0, 1))),
                constraints=rng.choice(((), (Constraint("node.labels.disk", "==", "a"),))),
            )  # fmt: skip
            new.append(c.NewJob(self.job() if again else JobId(f"j{self.jobs}"), spec))
        return c.SubmitJobs(tuple(new), rng.choice((None, GroupId("g1"))))

    def create_group(self, term: int) -> c.CreateGroup:
        name = GroupId(f"g{self.rng.randint(1, 6)}")
        return c.CreateGroup(Group(name, self.rng.choice([*GroupKind]), labels=self.labels()))

    def cancel(self, term: int) -> c.CancelJobs:
        return c.CancelJobs((self.job(), self.job()), self.rng.random() < 0.5)

    def claim(self, term: int) -> c.ClaimJob:
        return c.ClaimJob(self.rng.choice(("e1", "e2")), "10.0.0.1", self.labels())

    def assign(self, term: int) -> c.AssignJobs:
        devices = self.rng.choice(((), (), ("gpu0",)))
        return c.AssignJobs(
            tuple(c.Assignment(self.late_job(), self.node(), devices) for _ in range(4)), term
        )

    def report(self, term: int) -> c.ReportAttempts:
        ends = [s for s in AttemptStatus if s not in (AttemptStatus.ASSIGNED,)]
        reports = tuple(
            c.AttemptReport(
                self.attempt(), self.rng.choice((None, 20)), self.rng.choice((None, 10)),
                self.rng.choice((None, *ends)), self.rng.choice((None, self.result())),
            )
            for _ in range(3)
        )  # fmt: skip
        return c.ReportAttempts(self.node(), reports)

    def finish(self, term: int) -> c.FinishClaim:
        ok = self.rng.random() < 0.5
        return c.FinishClaim(self.job(), self.rng.choice(("e1", "e2")), ok, self.result())

    def expire(self, term: int) -> c.ExpireAttempts:
        return c.ExpireAttempts((self.attempt(),), (self.attempt(),), term)

    def lose(self, term: int) -> c.LoseAttempts:
        attempts = tuple(AttemptId(n) for n in range(1, self.jobs) if self.rng.random() < 0.3)
        return c.LoseAttempts(self.node(), attempts, self.rng.choice((0, 0, 0, 40)), term)

    def hold(self, term: int) -> c.HoldAttempts:
        return c.HoldAttempts(self.node(), self.rng.choice((0, 0, 0, 0, 60_000, None, 10**9)))

    def wake(self, term: int) -> c.WakeJobs:
        return c.WakeJobs(self.rng.randint(1, 5), term)

    def settle(self, term: int) -> c.SettleDependents:
        return c.SettleDependents(self.rng.randint(1, 5), term)

    def prune(self, term: int) -> c.PruneJobs:
        return c.PruneJobs(self.at - 100_000, self.rng.randint(1, 5), term)

    def prune_events(self, term: int) -> c.PruneEvents:
        return c.PruneEvents(500, self.rng.randint(1, 50), term)

    def put_node(self, term: int) -> c.PutNode:
        rng, node_id = self.rng, self.node()
        return c.PutNode(
            Node(
                node_id, rng.choice((node_id, node_id, "taken")), kind=rng.choice([*NodeKind]),
                capacity=Capacity(rng.randint(0, 3)), labels=self.labels(),
                taints=rng.choice(((), (), (Taint("k", TaintEffect.NO_SCHEDULE),))),
                admin=rng.choice([*AdminState]), machine_version=c.VERSION,
            )
        )  # fmt: skip

    def passing(self) -> NodeId:
        """One of those that come and go, and do not come again."""
        return NodeId(f"passing{self.rng.randint(0, 40)}")

    def put_passing(self, term: int) -> c.PutNode:
        node_id = self.passing()
        return c.PutNode(Node(node_id, node_id, capacity=Capacity(2), machine_version=c.VERSION))

    def remove_node(self, term: int) -> c.RemoveNode:
        return c.RemoveNode(self.passing(), self.rng.randint(1, 9), self.rng.randint(1, 3))

    def forget_gone(self, term: int) -> c.ForgetGone:
        return c.ForgetGone(self.at - 100_000, self.rng.randint(1, 3), term)

    def found_trust(self, term: int) -> c.FoundTrust:
        return c.FoundTrust(self.rng.randbytes(4), {"a": b"1", "b": b"2"}, self.node(), b"box")

    def put_secret(self, term: int) -> c.PutSecret:
        return c.PutSecret(self.rng.choice("xyz"), self.rng.randbytes(4), 0)

    def put_wraps(self, term: int) -> c.PutWraps:
        boxes = {self.node(): self.rng.randbytes(4) for _ in range(2)}
        return c.PutWraps(boxes, (self.node(),), term)

    def put_token(self, term: int) -> c.PutToken:
        return c.PutToken(self.rng.randbytes(32), 50_000, self.rng.random() < 0.1)

    def drop_tokens(self, term: int) -> c.DropTokens:
        return c.DropTokens()

    def add_blob(self, term: int) -> c.AddBlob:
        return c.AddBlob(self.rng.choice("abc") * 64, 100, self.node())

    def drop_blobs(self, term: int) -> c.DropBlobs:
        return c.DropBlobs(self.at, self.rng.randint(1, 3), term)

    def put_setting(self, term: int) -> c.PutSetting:
        value = self.rng.randbytes(8)
        return c.PutSetting(self.rng.choice("abc"), value, self.rng.random() < 0.3)

    def raise_version(self, term: int) -> c.RaiseVersion:
        return c.RaiseVersion(1, term)

    # Packages

    def package(self) -> str:
        return f"app-misc/p-{self.rng.randint(1, 5)}"

    def builder(self) -> NodeId:
        outside = [f"{OUTSIDE}{name}" for name in ("d1", "d2", "d3", "sweeper-1")]
        return NodeId(self.rng.choice(("n1", "n2", *outside)))

    def queue(self, term: int) -> c.SubmitJobs:
        new = []
        for _ in range(self.rng.randint(1, 3)):
            self.jobs += 1
            package = self.package()
            spec = JobSpec(
                package, Installed("emerge"), kind=JobKind.PACKAGE,
                labels={"package": package.rpartition("-")[0]},
                depends_on=tuple(self.job() for _ in range(self.rng.choice((0, 0, 0, 1)))),
            )  # fmt: skip
            new.append(c.NewJob(JobId(f"j{self.jobs}"), spec))
        return c.SubmitJobs(tuple(new), self.rng.choice((None, GroupId("g2"))))

    def put_builder(self, term: int) -> b.PutBuilder:
        node_id, node = self.builder(), None
        if not node_id.startswith("n"):
            name = node_id.removeprefix(OUTSIDE)
            node = Node(node_id, name, NodeKind.DRONE, labels=self.labels())
        return b.PutBuilder(node_id, self.rng.random() < 0.8, self.rng.choice(("", "today")), node)

    def note_builder(self, term: int) -> b.NoteBuilder:
        paused = self.rng.choice((None, None, False, False, True))
        return b.NoteBuilder(self.builder(), paused, self.rng.choice((None, *HostSort)))

    def note_presence(self, term: int) -> b.NotePresence:
        return b.NotePresence((self.builder(), self.builder()), (self.builder(),), term)

    def take(self, term: int) -> b.TakeBuilds:
        return b.TakeBuilds(self.builder(), self.rng.choice((1, 4, 16)), "10.0.0.9")

    def start(self, term: int) -> b.StartBuild:
        return b.StartBuild(self.builder(), self.package())

    def finish_build(self, term: int) -> b.FinishBuild:
        return b.FinishBuild(
            self.builder(), self.package(),
            self.rng.choice((*Outcome, Outcome.FAILED, Outcome.FAILED)),
            self.rng.choice((None, 5, 70_000)), self.rng.choice((Result(), self.result())),
        )  # fmt: skip

    def reclaim(self, term: int) -> b.ReclaimBuilds:
        attempts = tuple(AttemptId(n) for n in range(1, self.jobs) if self.rng.random() < 0.1)
        return b.ReclaimBuilds(attempts, "silent", self.rng.random() < 0.5, term)

    def take_revoked(self, term: int) -> b.TakeRevoked:
        return b.TakeRevoked(self.builder(), self.rng.choice((1, 100)))

    def stage(self, term: int) -> b.StagePackage:
        category, _, file = self.package().partition("/")
        name, _, version = file.rpartition("-")
        sha = self.rng.choice("abc") * 64
        size_bytes = self.rng.choice((100, 5000))
        pkg = BinPkg(category, name, version, "gpkg", sha, size_bytes, "0" * 32, "0" * 40)
        owner = self.rng.choice((self.builder(), "", ""))
        return b.StagePackage(owner, self.rng.choice("fgh"), pkg)

    def drop_staged(self, term: int) -> b.DropStaged:
        return b.DropStaged(self.at - 100_000, 3, term)

    def remove_binpkg(self, term: int) -> b.RemoveBinPkg:
        name, _, version = self.package().rpartition("-")
        return b.RemoveBinPkg(f"{name}/{name.partition('/')[2]}-{version}-1.gpkg.tar")

    def replace_binpkg(self, term: int) -> b.ReplaceBinPkg:
        path, (before, after) = self.remove_binpkg(term).path, self.rng.choices("abc", k=2)
        category, name, file = path.split("/")
        version = file.removeprefix(f"{name}-").removesuffix("-1.gpkg.tar")
        pkg = BinPkg(category, name, version, "gpkg", after * 64, 5000, "0", "0", build_id=1)
        return b.ReplaceBinPkg(path, before * 64, pkg)

    def control(self, term: int) -> b.ControlBuilds:
        actions = [*Control, Control.RESUME, Control.RESUME, Control.RESUME]
        target = self.rng.choice((None, None, self.package(), self.builder()))
        return b.ControlBuilds(self.rng.choice(actions), self.rng.choice((1, 3, 100)), target)

    # Payloads

    def put_payload(self, term: int) -> p.PutPayload:
        rng = self.rng
        sort, version = rng.choice([*PayloadSort]), rng.choice(("1", "2", "3"))
        return p.PutPayload(Payload(sort, version, rng.choice("aab") * 64, 100))

    def drop_payload(self, term: int) -> p.DropPayload:
        return p.DropPayload(self.rng.choice([*PayloadSort]), self.rng.choice(("1", "2", "3")))

    def hold_payload(self, term: int) -> p.HoldPayload:
        rng = self.rng
        return p.HoldPayload(
            rng.choice([*PayloadSort]), rng.choice(("", "", self.builder())), rng.choice("xy"),
            rng.choice((0, 50_000, 500_000)), rng.random() < 0.2,
        )  # fmt: skip

    def release_payload(self, term: int) -> p.ReleasePayload:
        rng = self.rng
        return p.ReleasePayload(rng.choice([*PayloadSort]), rng.choice(("", f"{OUTSIDE}d1")), "x")

    def note_deployment(self, term: int) -> p.NoteDeployment:
        rng, node_id, sort = self.rng, self.builder(), self.rng.choice([*PayloadSort])
        version = rng.choice(("1", "2", "3"))
        place = Place(node_id, sort, rng.choice([*PlaceStatus]), version)
        return p.NoteDeployment(
            Deployment(node_id, "", sort, version, rng.choice([*Step]), rng.random() < 0.5),
            rng.choice((None, place)),
        )

    def begin_roll(self, term: int) -> p.BeginRoll:
        rng = self.rng
        roll = Roll(
            f"r{self.at}", rng.choice([*PayloadSort]), rng.choice(("1", "2", "3")),
            (self.builder(), self.builder()),
        )  # fmt: skip
        return p.BeginRoll(roll, rng.choice("xy"))

    def take_roll(self, term: int) -> p.TakeRoll:
        return p.TakeRoll(self.rng.choice([*PayloadSort]), self.rng.choice("xy"))

    def note_roll(self, term: int) -> p.NoteRoll:
        rng = self.rng
        progress = Progress(rng.choice((0, 1, 2, 3)), rng.choice((None, Before(None, None))))
        return p.NoteRoll(rng.choice([*PayloadSort]), rng.choice("xy"), progress)

    def end_roll(self, term: int) -> p.EndRoll:
        rng = self.rng
        return p.EndRoll(rng.choice([*PayloadSort]), rng.choice("xy"), rng.random() < 0.5)

    def put_drone_token(self, term: int) -> c.PutDroneToken:
        return c.PutDroneToken(self.rng.choice(("one", "two", "-")), self.rng.randbytes(32))

    def drop_drone_token(self, term: int) -> c.DropDroneToken:
        return c.DropDroneToken(self.rng.choice(("one", "two", "-")))

    def forget_builder(self, term: int) -> b.ForgetBuilder:
        return b.ForgetBuilder(self.builder())

    def forget_host_key(self, term: int) -> p.ForgetHostKey:
        return p.ForgetHostKey(self.builder())

    def put_host_key(self, term: int) -> c.PutSetting:
        return c.PutSetting(host_key_setting(self.builder()), b"key", only_new=True)

    # Care

    def begin_care(self, term: int) -> care.BeginCare:
        rises = self.rng.random() < 0.7
        action = self.rng.choice([CareAction.RESTART] * 12 + [*CareAction])
        since = self.rng.choice((None, self.at))
        return care.BeginCare(self.builder(), action, rises, since, "it ails", term)

    def end_care(self, term: int) -> care.EndCare:
        return care.EndCare(self.builder(), self.rng.random() < 0.7, "as it was", term)

    def ease_care(self, term: int) -> care.EaseCare:
        return care.EaseCare((self.builder(), self.builder()), term)

    def reset_care(self, term: int) -> care.ResetCare:
        return care.ResetCare(self.builder())

    # Terminals

    def begin_terminal(self, term: int) -> t.BeginTerminal:
        node_id, id = self.builder(), self.rng.choice("abcdefgh")
        began = Terminal(id, node_id, "", "10.0.0.1", "root", "", "", self.node(), "n")
        return t.BeginTerminal(began)

    def end_terminal(self, term: int) -> t.EndTerminal:
        rng = self.rng
        return t.EndTerminal(
            rng.choice("abcdefgh"), rng.choice([*TerminalEnd]), rng.choice((None, 0)),
            rng.choice((None, rng.choice("abc") * 64)), rng.random() < 0.1,
        )  # fmt: skip

    def forget_terminals(self, term: int) -> t.ForgetTerminals:
        return t.ForgetTerminals(self.at - 100_000, self.rng.randint(1, 3), term)


MAKERS = [
    Story.submit, Story.submit, Story.submit, Story.create_group, Story.cancel, Story.claim,
    Story.claim, Story.assign, Story.assign, Story.report, Story.report, Story.report,
    *[Story.finish] * 3, Story.expire, Story.lose, Story.hold, *[Story.wake] * 3, Story.settle,
    Story.prune, Story.prune_events,
    Story.put_node, Story.put_node, Story.put_passing, Story.remove_node, Story.forget_gone,
    Story.found_trust, Story.put_secret, Story.put_wraps, Story.put_token, Story.drop_tokens,
    Story.add_blob, Story.drop_blobs, Story.put_setting,
    Story.raise_version,
    Story.queue, Story.queue, Story.put_builder, Story.note_builder, Story.note_presence,
    *[Story.take] * 6, Story.start, *[Story.finish_build] * 8, Story.reclaim, Story.take_revoked,
    Story.control, *[Story.stage] * 5, Story.drop_staged,
    *[Story.remove_binpkg] * 3, Story.replace_binpkg,
    Story.begin_care, *[Story.end_care] * 2, Story.ease_care, Story.reset_care,
    *[Story.put_payload] * 2, Story.drop_payload, Story.hold_payload, Story.release_payload,
    Story.note_deployment, Story.forget_builder, Story.forget_host_key, Story.put_host_key,
    *[Story.begin_roll] * 2, Story.take_roll, Story.note_roll, Story.end_roll,
    Story.put_drone_token, Story.drop_drone_token,
    Story.begin_terminal, *[Story.end_terminal] * 2, Story.forget_terminals,
]  # fmt: skip


def replay(entries: list[c.Entry], batch_max: int, seed: int) -> tuple[str, list[str]]:
    """The dump after a history in batches of such sizes, and what each entry was answered."""
    state, rng = State(), random.Random(seed)
    answers: list[str] = []
    at = 0
    while at < len(entries):
        size = rng.randint(1, batch_max)
        for applied in state.machine.apply(entries[at : at + size]):
            refusal = applied.refusal and (applied.refusal.code, applied.refusal.message)
            answers.append(repr((applied.value, refusal, applied.events, applied.repeated)))
        at += size
        if rng.random() < 0.05:
            state.machine = Machine(state.conn)
    state.check_counts()
    dump = dump_hash(state.conn)
    state.conn.close()
    return dump, answers


def test_the_story_tells_of_every_command_and_most_of_them_do_something() -> None:
    """Several stories: what one of them never comes to is chance, and another with each change."""
    done = set()
    for seed in range(1, 5):
        entries = Story(seed).entries(8000)
        assert {type(entry.command) for entry in entries} == {*RULES}
        state = State()
        for entry in entries:
            (applied,) = state.machine.apply([entry])
            if applied.events or applied.value:
                done.add(type(entry.command))
        state.conn.close()
    assert {*RULES} - done <= {
        c.RaiseVersion, c.AddBlob, b.StagePackage, b.ReplaceBinPkg, p.NoteRoll,
    }  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_the_same_history_in_other_batches_leaves_the_same_state(seed: int) -> None:
    entries = Story(seed).entries(1500)
    alone = replay(entries, 1, seed)
    for batch_max in (4, 64, 1500):
        assert replay(entries, batch_max, seed + batch_max) == alone


def test_the_same_history_in_other_processes_leaves_the_same_state(tmp_path: Path) -> None:
    """Each with another order of sets, of the names in a dict, and in another place."""
    entries = Story(9).entries(1500)
    path = tmp_path / "history"
    path.write_bytes(msgspec.msgpack.encode(entries))
    program = (
        "import sys, msgspec; from pathlib import Path;"
        "from swarmd.state import commands as c;"
        "from tests.unit.test_state_determinism import replay;"
        "data = Path(sys.argv[1]).read_bytes();"
        "print(replay(msgspec.msgpack.decode(data, type=list[c.Entry]), int(sys.argv[2]), 1)[0])"
    )
    dumps = {replay(entries, 8, 2)[0]}
    for hash_seed, batch_max, zone in (("1", "1", "UTC"), ("2", "200", "Asia/Tokyo")):
        ran = subprocess.run(
            [sys.executable, "-c", program, str(path), batch_max], timeout=60, check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "TZ": zone, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        dumps.add(ran.stdout.strip())
    assert len(dumps) == 1
