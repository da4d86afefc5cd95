"""Two adjacent versions live together: a rolling restart under load loses nothing, and goes back.

The next version is made from this one's text (`tests/versions.py`): a state with a command and a
table more, gossip, frames and a runner that say more. Its leader writes the command in every look.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from swarmd import __version__
from swarmd.cli.client import Daemon as CommandLine
from swarmd.state.commands import VERSION
from swarmd.state.versions import in_force_in
from tests.cli import Said, environment
from tests.daemon import ROOT, runner_pids
from tests.durability import check_jobs, check_state
from tests.failover import Tried
from tests.load import QUICK, SHELL, Client, Load
from tests.swarms import Node, running_swarm, until
from tests.versions import NEXT, NOTICES, RELEASE, next_version

# One at a time: they would only measure each other.
pytestmark = pytest.mark.xdist_group("swarm")
SEED = 20
SLOTS = 4
RAISED_S = 60.0
AWAY_S = 600.0
"""Jobs go on through a restart, however slow the machine is. Holds have a test of their own."""
PAGE = (ROOT / "docs" / "operations.md").read_text()
(_SECTION,) = re.findall(r"^## Upgrading\n(.*?)^## ", PAGE, re.DOTALL | re.MULTILINE)
SHOWN = [line.split() for line in re.findall(r"^swarmd (.*)$", _SECTION, re.MULTILINE)]
LONG = """
echo "$$ $SWARMD_ATTEMPT" > {folder}/{token}.new && mv {folder}/{token}.new {folder}/{token}
n=0; until [ -e {folder}/go ] || [ $n = 1200 ]; do sleep 0.1; n=$((n+1)); done
echo "$$ $SWARMD_ATTEMPT"
"""
"""Says which process and attempt it is, twice: when it begins, and when it is let go."""


@dataclass
class Long:
    """A job that is to run on through everything."""

    id: str
    began: str
    host: Node
    runner: int


class PatientLoad(Load):
    """Its jobs bear that their node is away."""

    def _job(self, kind: str, token: str, ticks: int = 0, *, keyed: bool) -> dict[str, Any]:
        job = super()._job(kind, token, ticks, keyed=keyed)
        return job | {"disconnect_seconds": AWAY_S}


class Rolling:
    """A swarm under load, one of whose nodes after the other is started anew."""

    def __init__(self, tried: Tried, folder: Path, program: Path) -> None:
        self.tried = tried
        self.swarm = tried.swarm
        self.program = program
        self.marks = folder / "long"
        self.marks.mkdir()
        self.marks.chmod(0o777)  # jobs may run as another account

    def upgrade(self, node: Node) -> None:
        self.restart(node, self.program)

    def downgrade(self, node: Node) -> None:
        self.restart(node, ROOT)

    def restart(self, node: Node, program: Path) -> None:
        node.stop()
        node.program = program
        node.start()
        self.swarm.wait_whole()

    def long_jobs(self) -> list[Long]:
        """One on every node, under way."""
        found: dict[str, Long] = {}
        for number in range(30):
            token = f"long-{number}"
            script = LONG.format(folder=self.marks, token=token)
            labels = {"token": token}
            job_id = self.swarm.nodes[0].run(
                script, type="long", labels=labels, disconnect_seconds=AWAY_S
            )
            self.tried.load.acknowledge(job_id, token)
            mark = self.marks / token
            until(mark.exists, "a long job does not begin")
            host = self.swarm[str(self.swarm.nodes[0].console("GET", f"/jobs/{job_id}")["node"])]
            (runner,) = runner_pids(host.data_dir)
            found.setdefault(host.name, Long(job_id, mark.read_text(), host, runner))
            if len(found) == len(self.swarm.nodes):
                return [*found.values()]
        raise AssertionError(f"long jobs come to {sorted(found)} only")

    def check_long(self, jobs: list[Long]) -> None:
        """They were never ended, nor begun again: the same process of the same attempt."""
        (self.marks / "go").touch()
        for job in jobs:
            ended = self.swarm.up()[0].ended(job.id)
            assert ended["status"] == "completed" and len(ended["attempts"]) == 1, ended
            for node in self.swarm.up():
                assert node.ask("GET", f"/jobs/{job.id}")["stdout"] == job.began, node.name

    def check_mixed(self) -> None:
        """All serve writes and reads, none does what only some can do, and all hear each other."""
        for node in self.swarm.nodes:
            assert in_force(node) == VERSION and notices(node) is None, node.name
            token = f"mixed-{node.name}-{time.monotonic_ns()}"
            with contextlib.closing(Client([node.place])) as client:
                assert self.tried.load.write(client, token)
            job_id = node.run("true", type="quick", labels={"token": f"{token}-run"})
            self.tried.load.acknowledge(job_id, f"{token}-run")
            for other in self.swarm.nodes:
                assert other.ask("GET", f"/jobs/{job_id}")["id"] == job_id

    def check_leaders(self) -> None:
        """Each leads in its turn, and the others write through it."""
        for node in self.swarm.nodes:
            leader = self.swarm.leader()
            if leader is not node:
                self.hand_over(leader, node)
            self.check_mixed()

    def hand_over(self, leader: Node, to: Node) -> None:
        CommandLine(leader.data_dir).post("/api/v1/raft/transfer", {"node": to.name})
        until(lambda: self.swarm.leader() is to, f"{to.name} does not lead")

    def wait_raised(self) -> None:
        until(
            lambda: all(in_force(node) == NEXT for node in self.swarm.nodes),
            "the new version does not come into force", RAISED_S,
        )  # fmt: skip
        until(lambda: all(map(notices, self.swarm.nodes)), "nobody writes what is new")


def in_force(node: Node) -> int:
    with contextlib.closing(node.state()) as conn:
        return in_force_in(conn)


def ended_by_restarts(node: Node) -> list[tuple[int, str, str]]:
    """Attempts that were under way and did not come to their end."""
    with contextlib.closing(node.state()) as conn:
        return conn.execute(
            "SELECT id, status, error FROM attempts"
            " WHERE status != 'completed' AND started_at IS NOT NULL"
        ).fetchall()


def notices(node: Node) -> int | None:
    """How many of what came with the next version are in its state; None: it has no table yet."""
    with contextlib.closing(node.state()) as conn:
        query = "SELECT 1 FROM sqlite_master WHERE name = ?"
        if conn.execute(query, (NOTICES,)).fetchone() is None:
            return None
        return int(conn.execute(f"SELECT count(*) FROM {NOTICES}").fetchone()[0])


def swarmd(program: Path, node: Node, *args: str) -> Said:
    """A program's command line, of a version of its own, on a node."""
    done = subprocess.run(
        [sys.executable, "-m", "swarmd", *args],
        env=environment({"SWARMD_DATA_DIR": str(node.data_dir), "PYTHONPATH": str(program)}),
        cwd=program, timeout=120, check=False, stdin=subprocess.DEVNULL, capture_output=True,
        text=True,
    )  # fmt: skip
    return Said(done.returncode, done.stdout, done.stderr)


def versions(node: Node) -> dict[str, str]:
    nodes: list[dict[str, Any]] = node.status()["nodes"]
    return {each["name"]: each["version"] for each in nodes}


@contextmanager
def rolling(folder: Path) -> Iterator[Rolling]:
    """For the block, load on all nodes of this version; then all that was acknowledged is there,
    each job was run exactly once, and the replicas are equal."""
    program = next_version(folder / "next")
    trace = folder / "trace"
    trace.touch()
    trace.chmod(0o666)
    with running_swarm(folder, jobs={"slots": SLOTS}) as swarm:
        until(lambda: all(in_force(n) == VERSION for n in swarm.nodes), "this version", RAISED_S)
        blobs = swarm.upload(QUICK, SHELL)
        load = PatientLoad([node.place for node in swarm.nodes], trace, blobs, SEED)
        tried = Tried(swarm, load, SEED, trace)
        with load.running():
            yield Rolling(tried, folder, program)
            load.stop_submitting()
            tried.drain()
        swarm.stop()
        swarm.check_replicas()
        state = swarm.nodes[0].data_dir / "state.db"
        check_state(state)
        ran = {job.type for job in check_jobs(state, trace, load, recoveries=True)}
        # What a node was given while it stopped, and had not begun, may be given to another.
        assert ended_by_restarts(swarm.nodes[0]) == []
        assert ran >= {"quick", "trace", "outside", "long"} and load.losses and load.completed


def test_a_rolling_restart_loses_nothing_and_goes_back_until_all_are_new(tmp_path: Path) -> None:
    with rolling(tmp_path) as roll:
        swarm = roll.swarm
        long = roll.long_jobs()
        leader, (one, other) = swarm.leader(), swarm.followers()
        roll.upgrade(leader)
        roll.check_leaders()
        assert versions(one) == {leader.name: RELEASE, one.name: __version__,
                                 other.name: __version__}  # fmt: skip
        check_command_lines(roll.program, leader, one)
        roll.downgrade(leader)
        roll.check_mixed()
        leader, (one, other) = swarm.leader(), swarm.followers()
        for node in (one, other):
            roll.upgrade(node)
            roll.check_mixed()
        roll.hand_over(swarm.leader(), leader)
        roll.upgrade(leader)  # the last, and the leader
        roll.wait_raised()
        for job in long:
            assert runner_pids(job.host.data_dir) == [job.runner], "it holds a long job"
        roll.check_long(long)
        for node in swarm.nodes:
            assert "ERROR" not in (node.folder / "swarmd.stderr").read_text(), node.name
        check_refused(roll, swarm.followers()[0])
        roll.tried.load.stop_submitting()
        roll.tried.drain()
        for node in swarm.nodes:
            until(lambda: has_new_runner(node, roll.program), "an old runner stays")  # noqa: B023


def check_command_lines(program: Path, new: Node, old: Node) -> None:
    """Either's, on either's daemon."""
    for mine, node in ((ROOT, new), (program, old)):
        for words in (["status"], ["ping"], *SHOWN):
            said = swarmd(mine, node, *words)
            assert said.status == 0 and new.name in said.out, said
        assert "versions differ" in swarmd(mine, node, "doctor").out


def check_refused(roll: Rolling, node: Node) -> None:
    """The old program is too old by now: it says so, and changes nothing, here or anywhere."""
    node.stop()
    before, standing = node.dump(), roll.swarm.leader().status()["term"]
    # Not as a node of the swarm: its runner goes on meanwhile, with what it has.
    config = node.folder / "swarmd.toml"
    said = swarmd(ROOT, node, "up", "--config", str(config))
    assert said.status == 1 and "Traceback" not in said.err, said
    assert f"as of version {NEXT} of its state" in said.err, said
    assert "start the newer swarmd here" in said.err, said
    assert node.dump() == before and roll.swarm.leader().status()["term"] == standing
    node.start()
    roll.swarm.wait_whole()


def has_new_runner(node: Node, program: Path) -> bool:
    pids = runner_pids(node.data_dir)
    with contextlib.suppress(OSError):
        return [str(program) in Path(f"/proc/{p}/cmdline").read_text() for p in pids] == [True]
    return False


MEMBER = """
import random, sys
from mesh.swim import LAN, OwnIdTaken, Self, Swim

me, other = sys.argv[1:]
swim = Swim(LAN, Self(id=me, boot=1, name=me, addresses=(me,)), 0.0, random.Random(me))
taken = 0
for line in sys.stdin:
    what, _, rest = line.strip().partition(" ")
    now, _, body = rest.partition(" ")
    now, body = float(now), bytes.fromhex(body)
    answer = b""
    match what:
        case "ask": answer = swim.sync_ask(now)
        case "answer": answer = swim.sync_answer(now, other, body)
        case "done": swim.sync_done(now, other, body)
        case "take": swim.receive(now, other, other, body)
        case "tick": swim.tick(now)
    out = swim.take()
    taken += sum(isinstance(event, OwnIdTaken) for event in out.events)
    said = [answer, *(datagram.payload for datagram in out.datagrams)]
    state = swim.member(other)
    facts = [state and state.state.name, swim.rtt(other) is not None, swim.counts.dropped, taken]
    print(" ".join(each.hex() or "-" for each in said), "|", *facts, flush=True)
"""
"""A member without wires of its own, told what comes; it says what goes out, and what it holds."""


class Member:
    """Of the one version or the other, in a process of its own."""

    def __init__(self, program: Path, name: str, other: str) -> None:
        self.facts = ""
        self._process = subprocess.Popen(
            [sys.executable, "-c", MEMBER, name, other], cwd=program, text=True,
            env=environment({"PYTHONPATH": str(program)}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def tell(self, what: str, now: float, body: str = "") -> tuple[str, list[str]]:
        """Its answer, and its datagrams."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{what} {now} {body}\n")
        self._process.stdin.flush()
        said, _, self.facts = self._process.stdout.readline().partition(" | ")
        assert self.facts, f"{what} {now} {body}"
        answer, *datagrams = said.split()
        return answer, datagrams

    def end(self) -> None:
        self._process.communicate(timeout=60)


def test_members_of_both_versions_hear_all_that_they_tell_each_other(tmp_path: Path) -> None:
    program = next_version(tmp_path)
    old, new = Member(ROOT, "a", "b"), Member(program, "b", "a")
    try:
        for asking, asked in ((old, new), (new, old)):
            answer, _ = asked.tell("answer", 0.0, asking.tell("ask", 0.0)[0])
            asking.tell("done", 0.0, answer)
        now = 0.0
        for _ in range(60):
            for one, another in ((old, new), (new, old)):
                now += 0.05
                on_way = [(another, one, each) for each in one.tell("tick", now)[1]]
                while on_way:
                    to, back, datagram = on_way.pop(0)
                    now += 0.001
                    on_way += [(back, to, each) for each in to.tell("take", now, datagram)[1]]
        # Alive, an answer to a probe came, nothing was dropped, and nobody else has its id.
        assert old.facts == new.facts == "ALIVE True {} 0\n", (old.facts, new.facts)
    finally:
        old.end()
        new.end()
