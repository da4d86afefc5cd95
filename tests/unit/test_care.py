"""Care: who is done what, and when; what the rules let happen; and what is said to a host."""

from __future__ import annotations

import itertools
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from swarmd.config_sources import load
from swarmd.control.care import RESUME_MS_MAX, Patient, Plan, Step, follow, plan
from swarmd.domain.builds import GROUNDED_MS, Builder, HostSort
from swarmd.domain.care import (
    ACT_MS_MAX,
    ALERT,
    FAILING_MS_MIN,
    FAILURES_MIN,
    HEALTHY,
    LADDER,
    PAUSES_MS,
    TRIES_MAX,
    Care,
    CareAction,
    _kill_start,
    action_text,
    may_reboot,
)
from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import AttemptStopped, CareTaken
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node, NodeKind
from swarmd.domain.probes import ProbeStatus
from swarmd.state import build_commands as b
from swarmd.state.care_commands import BeginCare, EaseCare, EndCare, ResetCare
from swarmd.state.care_queries import Cared, ListCare
from swarmd.state.versions import RESTARTS_SINCE
from tests.unit.test_state_builds import Builds

PROBE_MS = 30_000
BAD = [status for status in ProbeStatus if status not in HEALTHY]
NOW = 10_000_000


def patient(
    name: str = "one", status: ProbeStatus | None = ProbeStatus.SERVICE_DOWN, *,
    failures: int = FAILURES_MIN, failing_ms: int = FAILING_MS_MIN, way: bool = True,
    sort: HostSort = HostSort.LXC, auto_reboot: bool = True, care: dict[str, Any] | None = None,
    builder: dict[str, Any] | None = None, kind: NodeKind = NodeKind.DRONE,
) -> Patient:  # fmt: skip
    node_id = NodeId(name)
    return Patient(
        Cared(
            Builder(node_id, sort, auto_reboot, **(builder or {})),
            Node(node_id, name, kind),
            Care(node_id, **(care or {})),
        ),
        way, status, failures, NOW - failing_ms, NOW - 1,
    )  # fmt: skip


def taken(*patients: Patient, now: int = NOW) -> CareAction | None:
    step = plan(patients, now).step
    return None if step is None else step.action


def after(level: int, ago_ms: int, **more: Any) -> dict[str, Any]:
    """Of a builder that was brought to a level some time ago."""
    ended = NOW - ago_ms
    return {
        "level": level, "action": LADDER[level - 1], "rises": True, "begun_at": ended - 5,
        "ended_at": ended, "ok": True, **more,
    }  # fmt: skip


@pytest.mark.parametrize("status", BAD)
def test_three_failures_in_a_row_over_three_minutes_are_the_first_step(status: ProbeStatus) -> None:
    assert taken(patient(status=status)) is CareAction.RESTART
    assert taken(patient(status=status, failures=FAILURES_MIN - 1)) is None
    assert taken(patient(status=status, failing_ms=FAILING_MS_MIN - 1)) is None
    assert taken(patient(status=status, way=False)) is None


@pytest.mark.parametrize("status", [*sorted(HEALTHY), None])
def test_who_is_well_or_was_not_probed_is_left_alone(status: ProbeStatus | None) -> None:
    assert plan([patient(status=status, failures=0)], NOW) == Plan()


@pytest.mark.parametrize(("level", "action"), [*enumerate(LADDER)])
def test_the_ladder_is_climbed_level_by_level_after_its_pauses(
    level: int, action: CareAction
) -> None:
    if level == 0:
        return
    pause = PAUSES_MS[LADDER[level - 1]]
    assert taken(patient(care=after(level, pause))) is action
    assert taken(patient(care=after(level, pause - 1))) is None


def test_at_the_top_there_is_nothing_more() -> None:
    assert taken(patient(care=after(ALERT, 10**9))) is None


@pytest.mark.parametrize("sort", [*HostSort])
@pytest.mark.parametrize("auto_reboot", [True, False])
def test_what_may_not_be_rebooted_is_not(sort: HostSort, auto_reboot: bool) -> None:
    one = patient(sort=sort, auto_reboot=auto_reboot, care=after(2, 60_000))
    allowed = auto_reboot and sort in (HostSort.LXC, HostSort.QEMU)
    assert taken(one) is (CareAction.REBOOT if allowed else CareAction.ALERT)


def test_only_what_was_probed_since_the_last_step_is_a_reason_for_the_next() -> None:
    old = patient(care=after(1, 0))
    assert taken(old, now=NOW + 60_000) is None


def test_people_are_called_when_a_step_fails_again_and_again() -> None:
    failed = {"action": CareAction.RESTART, "begun_at": 1, "ended_at": 2}
    assert taken(patient(care={**failed, "failed_tries": 1})) is CareAction.RESTART
    assert taken(patient(care={**failed, "failed_tries": TRIES_MAX})) is CareAction.ALERT


def test_never_two_at_once_and_the_one_that_waited_longest_first() -> None:
    lately = patient("a", care=after(1, 29_000))
    other = patient("b")
    assert taken(lately, other) is None
    under_way = patient("a", care={"action": CareAction.RESTART, "begun_at": NOW - 1})
    assert taken(under_way, other) is None
    recovered = patient("a", ProbeStatus.OK, failures=0, care=after(1, 29_000))
    assert plan([recovered, other], NOW) == Plan((NodeId("a"),), (), plan([other], NOW).step)
    before = patient("a", care=after(1, 31_000))
    step = plan([before, other], NOW).step
    assert step is not None and step.node_id == "b"


def test_a_step_that_nobody_ended_is_forgotten_in_time() -> None:
    lost = patient(care={"action": CareAction.REBOOT, "begun_at": NOW - ACT_MS_MAX - 1})
    assert plan([lost], NOW) == Plan((), (NodeId("one"),), None)
    new = patient(care={"action": CareAction.REBOOT, "begun_at": NOW - ACT_MS_MAX})
    assert plan([new], NOW) == Plan()


@pytest.mark.parametrize(
    ("groundings", "sort", "action"),
    [
        (1, HostSort.LXC, CareAction.RESTART),
        (2, HostSort.QEMU, CareAction.REBOOT),
        (2, HostSort.BARE_METAL, CareAction.RESTART),
        (2, HostSort.UNKNOWN, CareAction.RESTART),
        (0, HostSort.LXC, None),
    ],
)
def test_a_grounded_builder_is_restarted_then_rebooted_each_time_once(
    groundings: int, sort: HostSort, action: CareAction | None
) -> None:
    builder = {"groundings": groundings, "grounded_until": NOW + GROUNDED_MS}
    one = patient(status=ProbeStatus.OK, failures=0, sort=sort, builder=builder)
    assert taken(one) is action
    step = plan([one], NOW).step
    assert step is None or not step.rises
    seen = patient(
        status=ProbeStatus.OK, failures=0, sort=sort, builder=builder,
        care={"grounded_until": NOW + GROUNDED_MS},
    )  # fmt: skip
    assert taken(seen) is None
    over = patient(status=None, builder={"groundings": groundings, "grounded_until": NOW})
    assert taken(over) is None


@pytest.mark.parametrize("level", [3, 0])
@pytest.mark.parametrize("ok", [True, False])
def test_a_member_takes_up_work_when_its_reboot_should_have_come(level: int, ok: bool) -> None:
    def resumed(
        ago_ms: int, status: ProbeStatus | None = None, kind: NodeKind = NodeKind.MEMBER,
        **more: Any,
    ) -> bool:  # fmt: skip
        rebooted = {**after(3, ago_ms, ok=ok), "level": level, **more}
        todo = plan([patient(status=status, failures=0, kind=kind, care=rebooted)], NOW)
        return todo.resumed == (NodeId("one"),)

    pause = PAUSES_MS[CareAction.REBOOT]
    assert resumed(pause) and not resumed(pause - 1)
    assert resumed(pause - 1, ProbeStatus.OK), "it is well again"
    assert not resumed(pause, ended_at=None), "it is under way"
    assert not resumed(pause, kind=NodeKind.DRONE)
    assert resumed(pause, action=CareAction.ALERT), "people were called since"
    assert not resumed(pause, action=CareAction.RESTART)
    assert resumed(RESUME_MS_MAX) == (level > 0)


def test_who_is_heard_of_is_not_unreachable() -> None:
    assert follow((2, 5), ProbeStatus.UNREACHABLE, 9, heard=True) == (0, None)
    assert follow((2, 5), ProbeStatus.UNREACHABLE, 9, heard=False) == (3, 5)
    assert follow((2, 5), ProbeStatus.TIMEOUT, 9, heard=True) == (3, 5)
    assert follow((0, None), ProbeStatus.ERROR, 9, heard=True) == (1, 9)
    for status in HEALTHY:
        assert follow((2, 5), status, 9, heard=False) == (0, None)


# All of it together, whatever comes: the plan, and the rules it proposes to


@dataclass
class Host:
    node_id: NodeId
    sort: HostSort
    auto_reboot: bool
    streak: tuple[int, int | None] = (0, None)
    status: ProbeStatus | None = None
    probed_at: int | None = None
    was: list[Care] = field(default_factory=list)


class Ward(Builds):
    """Builders, and a leader that does what the plan says; it forgets all when it is another."""

    def __init__(self, sorts: list[tuple[HostSort, bool]]) -> None:
        super().__init__()
        self.hosts = []
        for number, (sort, auto_reboot) in enumerate(sorts):
            node_id = self.builder(f"b{number}", auto_reboot=auto_reboot)
            self.apply(b.NoteBuilder(node_id, sort=sort))
            self.hosts.append(Host(node_id, sort, auto_reboot))
        self.steps: list[tuple[int, Step]] = []

    def cared(self, node_id: NodeId) -> Cared:
        (found,) = [each for each in self.ask(ListCare()) if each.node.id == node_id]
        return found  # type: ignore[no-any-return]

    def tick(self, statuses: list[ProbeStatus], heard: bool, ends: bool | None) -> None:
        """Half a minute; `ends` says how a step that is taken ends, None: the leader is gone."""
        self.now += PROBE_MS
        for host, status in zip(self.hosts, statuses, strict=True):
            host.streak = follow(host.streak, status, self.now, heard)
            host.status, host.probed_at = status, self.now
        self.now += 1
        todo = plan([self._patient(host) for host in self.hosts], self.now)
        for node_id in todo.forgotten:
            assert self.apply(EndCare(node_id, False, "gone", 1))
        if todo.eased:
            assert self.apply(EaseCare(todo.eased, 1)) == len(todo.eased)
        if todo.step is not None:
            self._take(todo.step, ends)
        for host in self.hosts:
            host.was.append(self.cared(host.node_id).care)

    def _patient(self, host: Host) -> Patient:
        cared = self.cared(host.node_id)
        return Patient(cared, True, host.status, *host.streak, host.probed_at)

    def _take(self, step: Step, ends: bool | None) -> None:
        before = {host.node_id: self._patient(host) for host in self.hosts}
        self.apply(BeginCare(
            step.node_id, step.action, step.rises, step.failing_since, step.reason, 1
        ))  # fmt: skip
        if step.action.loses_builds:
            assert not self.view(step.node_id).held
        self.steps.append((self.now, step))
        for node_id, patient in before.items():
            if node_id != step.node_id:
                assert not patient.cared.care.pauses(self.now) or patient.well, "two at once"
        if ends is None:
            for host in self.hosts:
                host.streak, host.status, host.probed_at = (0, None), None, None
        else:
            assert self.apply(EndCare(step.node_id, ends, "as it was", 1))


SORTS = st.tuples(st.sampled_from([*HostSort]), st.booleans())
TICKS = st.lists(
    st.tuples(
        st.lists(
            st.sampled_from([*BAD, ProbeStatus.SERVICE_DOWN, ProbeStatus.SERVICE_DOWN,
                             ProbeStatus.SERVICE_DOWN, ProbeStatus.OK]),
            min_size=3, max_size=3,
        ),
        st.sampled_from([False, False, True]),
        st.sampled_from([True, True, True, False, None]),
        st.integers(1, 12),
    ),
    min_size=1, max_size=8,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(SORTS, min_size=3, max_size=3), TICKS)
def test_whatever_comes_nobody_is_hurt(
    sorts: list[tuple[HostSort, bool]], ticks: list[Any]
) -> None:
    ward = Ward(sorts)
    ward.queue(*(f"a/p-{n}" for n in range(4)))
    for statuses, heard, ends, times in ticks:
        for _ in range(times):
            for host in ward.hosts:
                ward.take(host.node_id, 8)
            ward.tick(statuses, heard, ends)
            for host, status in zip(ward.hosts, statuses, strict=True):
                care = host.was[-1]
                if status in HEALTHY and host.probed_at is not None and not care.under_way:
                    # What was forgotten just now is to be probed once more.
                    assert care.level == 0 or care.ended_at == ward.now
    by_id = {host.node_id: host for host in ward.hosts}
    for _, step in ward.steps:
        host = by_id[step.node_id]
        if step.action is CareAction.REBOOT:
            assert may_reboot(host.sort, host.auto_reboot)
    for host in ward.hosts:
        for before, now in itertools.pairwise(host.was):
            assert now.level >= before.level or now.level == 0, "down to the foot or not at all"
            if now.level > before.level:
                assert now.ok and now.action is not None and now.action.level == now.level
    ward.conn.close()


def test_the_whole_ladder_for_one_that_never_recovers() -> None:
    ward = Ward([(HostSort.QEMU, True), (HostSort.BARE_METAL, True), (HostSort.LXC, True)])
    bad = [ProbeStatus.SERVICE_DOWN] * 3
    for _ in range(60):
        ward.tick(bad, False, True)
    assert [ward.cared(host.node_id).care.level for host in ward.hosts] == [ALERT] * 3
    actions = {host.node_id: [s.action for _, s in ward.steps if s.node_id == host.node_id]
               for host in ward.hosts}  # fmt: skip
    first, second, third = (actions[host.node_id] for host in ward.hosts)
    assert first == third == [*LADDER]
    assert second == [CareAction.RESTART, CareAction.KILL_START, CareAction.ALERT]
    ward.tick([ProbeStatus.OK] * 3, False, True)
    assert [ward.cared(host.node_id).care.level for host in ward.hosts] == [0] * 3
    ward.conn.close()


# The rules


@pytest.fixture
def builds() -> Any:
    state = Builds()
    yield state
    state.check_counts()
    state.conn.close()


def begin(
    node_id: NodeId, action: CareAction = CareAction.RESTART, rises: bool = True
) -> BeginCare:
    return BeginCare(node_id, action, rises, 5, "it ails", 1)


def events(state: Builds) -> list[CareTaken]:
    return [event.body for event in state.events if isinstance(event.body, CareTaken)]


def test_what_a_builder_holds_is_given_back_before_it_is_ended(builds: Builds) -> None:
    for number, action in enumerate(CareAction):
        if not action.loses_builds:
            continue
        one, two = builds.builder(f"one{number}"), builds.builder(f"two{number}")
        builds.apply(b.NoteBuilder(one, sort=HostSort.QEMU))
        package = f"a/p-{number}"
        builds.queue(package)
        assert builds.take(one) == [package]
        stopped = [type(event.body) for event in builds.events].count(AttemptStopped)
        builds.apply(begin(one, action))
        assert [type(event.body) for event in builds.events].count(AttemptStopped) == stopped + 1
        view = builds.view(one)
        assert not view.held and view.revoked == (package,) and builds.take(one) == []
        assert builds.take(two) == [package]
        builds.apply(EndCare(one, True, "", 1))
        builds.now += 3 * ACT_MS_MAX
        builds.queue(f"b/p-{number}")
        assert builds.take(one) == [f"b/p-{number}"]


def test_until_all_know_it_a_restart_gives_nothing_back() -> None:
    builds = Builds(version=RESTARTS_SINCE - 1)
    one = builds.builder("one")
    builds.queue("a/p-1")
    assert builds.take(one) == ["a/p-1"]
    builds.apply(begin(one))
    assert [held.package for held in builds.view(one).held] == ["a/p-1"]
    builds.conn.close()


@pytest.mark.parametrize("sort", [HostSort.BARE_METAL, HostSort.UNKNOWN])
def test_no_rule_lets_such_a_host_be_rebooted(builds: Builds, sort: HostSort) -> None:
    one = builds.builder("one")
    builds.apply(b.NoteBuilder(one, sort=sort))
    with pytest.raises(Conflict, match="not to be rebooted"):
        builds.apply(begin(one, CareAction.REBOOT))
    builds.apply(b.NoteBuilder(one, sort=HostSort.LXC))
    builds.apply(begin(one, CareAction.REBOOT))
    protected = builds.builder("protected", auto_reboot=False)
    builds.apply(b.NoteBuilder(protected, sort=HostSort.LXC))
    with pytest.raises(Conflict, match="not to be rebooted"):
        builds.apply(begin(protected, CareAction.REBOOT))


def test_no_rule_lets_two_be_cared_for_at_once(builds: Builds) -> None:
    one, two = builds.builder("one"), builds.builder("two")
    builds.apply(begin(one))
    for node_id in (one, two):
        with pytest.raises(Conflict, match="being cared for"):
            builds.apply(begin(node_id))
    builds.apply(EndCare(one, True, "", 1))
    builds.apply(begin(two))
    builds.now += ACT_MS_MAX + 1
    builds.apply(begin(one, CareAction.KILL_START))


def test_a_level_is_reached_when_its_action_succeeded(builds: Builds) -> None:
    one = builds.builder("one")
    builds.apply(begin(one))
    assert builds.apply(EndCare(one, False, "no route", 1))
    assert not builds.apply(EndCare(one, True, "", 1)), "it is over"
    (cared,) = builds.ask(ListCare())
    assert (cared.care.level, cared.care.failed_tries, cared.care.detail) == (0, 1, "no route")
    builds.apply(begin(one))
    builds.apply(EndCare(one, True, "done", 1))
    assert [(e.what, e.level) for e in events(builds)] == [("done", 1)]
    with pytest.raises(Conflict, match="reached already"):
        builds.apply(begin(one))
    assert builds.apply(ResetCare(one)) == 1
    (cared,) = builds.ask(ListCare())
    assert (cared.care.level, cared.care.attempts, cared.care.failing_since) == (0, 0, None)
    assert builds.apply(ResetCare(one)) == 0 and builds.apply(EaseCare((one,), 1)) == 0


def test_a_grounding_raises_no_level(builds: Builds) -> None:
    one = builds.builder("one")
    builds.apply(begin(one, rises=False))
    builds.apply(EndCare(one, True, "", 1))
    (cared,) = builds.ask(ListCare())
    assert cared.care.level == 0 and cared.care.level_at is None


def test_what_was_reset_while_it_was_under_way_rises_no_more(builds: Builds) -> None:
    one = builds.builder("one")
    builds.apply(begin(one))
    builds.apply(ResetCare(one))
    builds.apply(EndCare(one, True, "", 1))
    (cared,) = builds.ask(ListCare())
    assert cared.care.level == 0


def test_a_leader_of_another_term_has_no_say(builds: Builds) -> None:
    one = builds.builder("one")
    for command in (begin(one), EndCare(one, True, "", 1), EaseCare((one,), 1)):
        with pytest.raises(Conflict, match="another term"):
            builds.apply(command, 2)
    with pytest.raises(NotFound):
        builds.apply(begin(NodeId("nobody")))
    with pytest.raises(NotFound):
        builds.apply(ResetCare(NodeId("nobody")))


# What is said to a host: run by a real shell, where the programs only note what they were told


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    log = tmp_path / "log"
    log.touch()

    def run(text: str, *, until: str = "", fails: str = "") -> tuple[int, list[str]]:
        for name in ("systemctl", "rc-service", "reboot"):
            code = 1 if name == fails else 0
            program = tmp_path / name
            program.write_text(f'#!/bin/sh\necho "{name} $*" >>{log}\nexit {code}\n')
            program.chmod(0o755)
        (tmp_path / "sleep").write_text("#!/bin/sh\n")
        (tmp_path / "sleep").chmod(0o755)
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
        where = subprocess.run(
            ["/bin/sh", "-c", "command -v reboot systemctl rc-service"],
            env=env, capture_output=True, text=True, check=False,
        ).stdout  # fmt: skip
        assert str(tmp_path / "reboot") in where, "or it would be in earnest"
        ran = subprocess.run(["/bin/sh", "-c", text], env=env, check=False, timeout=20)
        deadline = time.monotonic() + 20  # what is only begun is not waited for
        while until not in (said := log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.01)
        return ran.returncode, said.splitlines()

    return run


def ours(lines: list[str]) -> set[str]:
    return {line.split()[0] for line in lines}


@pytest.mark.parametrize("action", [CareAction.RESTART, CareAction.KILL_START])
def test_a_service_is_restarted_by_what_runs_it(
    shell: Callable[..., tuple[int, list[str]]], action: CareAction
) -> None:
    code, lines = shell(action_text(action, "swarm-drone"))
    assert code == 0 and len(ours(lines)) == 1
    last = lines[-1].split()
    verb = "restart" if action is CareAction.RESTART else "start"
    assert last in (
        ["systemctl", verb, "swarm-drone"], ["rc-service", "swarm-drone", verb]
    )  # fmt: skip
    if action is CareAction.KILL_START:
        assert any("SIGKILL" in line or line.endswith(" zap") for line in lines)


def test_a_service_that_is_not_there_is_not_restarted(
    shell: Callable[..., tuple[int, list[str]]],
) -> None:
    for name in ("systemctl", "rc-service"):
        code, lines = shell(action_text(CareAction.RESTART, "swarm-drone"), fails=name)
        if lines and lines[-1].split()[0] == name:
            assert code == 64


def test_what_ends_its_caller_is_only_begun(
    shell: Callable[..., tuple[int, list[str]]],
) -> None:
    code, lines = shell(action_text(CareAction.REBOOT, "swarm-drone"), until="reboot")
    assert (code, lines) == (0, ["reboot "])
    text = action_text(CareAction.RESTART, "swarmd", from_within=True)
    code, lines = shell(text, until="restart")
    assert code == 0 and "restart" in lines[-1]


def test_who_kills_his_own_service_lives_to_start_it(
    shell: Callable[..., tuple[int, list[str]]], tmp_path: Path
) -> None:
    """Of OpenRC's: what the service has begun is in its cgroup."""
    _, openrc = _kill_start("swarmd")
    listed = tmp_path / "cgroup.procs"
    text = openrc.replace("/sys/fs/cgroup/openrc.swarmd/cgroup.procs", str(listed))
    assert str(listed) in text
    with subprocess.Popen(["sleep", "1000"]) as other:
        try:
            text = f"printf '%s\\n' 1 $$ {other.pid} >{listed}; {text}"
            _, lines = shell(text, until="start")
            assert other.wait(20) == -signal.SIGKILL
        finally:
            other.kill()
    assert lines == ["rc-service swarmd zap", "rc-service swarmd start"]


@pytest.mark.parametrize("service", ["", "a b", "x;reboot", "$(reboot)", "-x", "x" * 200, "a'b"])
def test_a_service_has_a_name(service: str) -> None:
    with pytest.raises(Invalid):
        action_text(CareAction.RESTART, service)
    with pytest.raises(Invalid):
        action_text(CareAction.ALERT, "swarm-drone")


@pytest.mark.parametrize(
    ("key", "value"),
    [("service", "a b"), ("service", ""), ("own_service", "$(reboot)"), ("paths", ("here",))],
)
def test_the_configuration_names_services_and_paths_that_can_be(key: str, value: object) -> None:
    with pytest.raises(Invalid, match=f"care.{key}"):
        load({}, {f"care.{key}": value})
    assert load({}).care.service == "swarm-drone"
