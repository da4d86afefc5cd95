"""Three replicas on one machine: durable writes and linearizable reads, and what one costs.

    python -m bench.consensus [--seconds 4] [--dir .] [--only swarmd,etcd,pysyncobj]

Three processes on loopback, each with its log, its state and its wires, fsync on. A write sets one
of 10,000 keys to a value of 128 bytes; it counts when it is applied where it was asked for, and the
rate is taken when all three have applied all of them. Clients run in the process of the member that
they ask, each with one write under way. CPU is that of all three processes a write, the clients'
included. Beside them, in the same run and driven the same way, stand three members of etcd (fsync
on) and of pysyncobj (which never fsyncs), where they are installed; what is missing is named.
"""

from __future__ import annotations

import argparse
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bench import consensus_etcd, consensus_pysyncobj
from bench.facts import cpu_ms, machine, table

MEMBERS = ("a", "b", "c")
START_S_MAX = 30.0
ANSWER_S_MAX = 60.0
WANTED = {
    ("put", 1): "p50 at most 2 ms",
    ("put", 64): "5,000",
    ("put", 1000): "no error but Busy",
    ("put", 1024): "20,000",
}
COLUMNS = (
    "what", "asked", "in flight", "a second", "p50 ms", "p99 ms", "max ms", "CPU-µs each",
    "the leader's", "busy", "errors", "wanted",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="what agreement between three nodes costs")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--dir", default=".", help="on the disk that is to be measured")
    parser.add_argument("--only", default="swarmd,etcd,pysyncobj")
    parser.add_argument("--switch-ms", type=float, help="sys.setswitchinterval of the members")
    parser.add_argument("--pysyncobj", default=sys.executable, metavar="PYTHON",
                        help="an interpreter that has pysyncobj")  # fmt: skip
    parser.add_argument("--member", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.member:
        from bench import consensus_member

        name, folder, *join = given.member
        consensus_member.main(name, Path(folder), tuple(join), given.switch_ms)
        return
    print(machine())
    runs = {
        "swarmd": lambda folder: measure_swarmd(folder, given.seconds, given.switch_ms),
        "etcd": lambda folder: consensus_etcd.measure(folder, given.seconds),
        "pysyncobj": lambda folder: consensus_pysyncobj.measure(
            given.pysyncobj, folder, given.seconds
        ),
    }
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory(dir=given.dir, prefix="bench-consensus-") as folder:
            print(f"\n{name}")
            runs[name](Path(folder))
            print("load at the end:", " ".join(Path("/proc/loadavg").read_text().split()[:2]))


def measure_swarmd(folder: Path, seconds: float, switch_ms: float | None) -> None:
    with open_swarm(folder, switch_ms) as swarm:
        leader, follower = swarm.leader, swarm.follower
        leader.ask("fill")
        swarm.settle(leader)
        rows = [
            swarm.measure(what, member, clients, seconds)
            for what, member, clients in (
                ("put", leader, 1),
                ("put", leader, 64),
                ("put", leader, 1000),
                ("put", leader, 1024),
                ("put", leader, 4000),
                ("put", follower, 1),
                ("put", follower, 64),
                ("put", follower, 1024),
                ("read", leader, 1),
                ("read", leader, 64),
                ("read", follower, 1),
                ("read", follower, 64),
                ("job", leader, 1),
                ("job", leader, 64),
                ("job", leader, 1024),
                ("100 jobs", leader, 16),
            )
        ]
        hashes = swarm.hashes()
        print(table(COLUMNS, rows))
        print("the three states are equal" if len(hashes) == 1 else f"STATES DIFFER: {hashes}")


class Member:
    """A process that holds a replica, as `bench.consensus_member` is asked."""

    def __init__(self, name: str, folder: Path, join: str, switch_ms: float | None) -> None:
        self.name, self.folder = name, folder
        command = [sys.executable, "-m", "bench.consensus", "--member", name, str(folder)]
        command += [join] if join else []
        command += [] if switch_ms is None else ["--switch-ms", str(switch_ms)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.mesh = ""

    def ask(self, do: str, **order: object) -> Any:
        self.tell(do, **order)
        return self.answer()

    def tell(self, do: str, **order: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **order}).encode() + b"\n")

    def answer(self) -> Any:
        """The next line that it says; it has a minute for anything."""
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], ANSWER_S_MAX)[0]:
            raise SystemExit(f"member {self.name} says nothing for {ANSWER_S_MAX:.0f} s")
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"member {self.name} ended with {self.process.wait()}")
        return json.loads(line)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()


class Swarm:
    def __init__(self, members: list[Member]) -> None:
        self.members = members
        standing = {member.name: member.ask("standing") for member in members}
        self.leader = next(m for m in members if standing[m.name]["leads"])
        self.follower = next(m for m in members if m is not self.leader)

    def measure(self, what: str, member: Member, clients: int, seconds: float) -> list[str]:
        self.settle(member)
        before, start = self.cpu_ms(), time.perf_counter()
        led_ms = cpu_ms(self.leader.process.pid)
        found = member.ask(what, clients=clients, seconds=seconds)
        # A write that is answered is applied where it was asked for; it counts when all have it.
        for other in self.members:
            other.ask("applied", index=found["last"])
        took_s = time.perf_counter() - start
        done = max(1, found["done"])
        led_ms = cpu_ms(self.leader.process.pid) - led_ms
        asked = "leader" if member is self.leader else "follower"
        return [
            what, asked, f"{clients:,}", f"{done / took_s:,.0f}",
            *(f"{found[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")),
            f"{(self.cpu_ms() - before) / done * 1000:.0f}", f"{led_ms / done * 1000:.0f}",
            f"{found['busy']:,}",
            str(found["errors"] or 0),
            WANTED.get((what, clients), "") if member is self.leader else "",
        ]  # fmt: skip

    def settle(self, member: Member) -> None:
        """Everything so far is applied on all."""
        last = member.ask("standing")["last"]
        for each in self.members:
            each.ask("applied", index=last)

    def cpu_ms(self) -> float:
        return sum(cpu_ms(member.process.pid) for member in self.members)

    def hashes(self) -> set[str]:
        """Of each state in full, once all stand still."""
        self.settle(self.leader)
        for member in self.members:
            member.tell("hash")
        return {member.answer()["hash"] for member in self.members}


@contextmanager
def open_swarm(folder: Path, switch_ms: float | None) -> Iterator[Swarm]:
    with ExitStack() as stack:
        members: list[Member] = []
        for name in MEMBERS:
            join = members[0].mesh if members else ""
            member = Member(name, folder / name, join, switch_ms)
            members.append(member)
            stack.callback(member.end)
            member.mesh = member.answer()["mesh"]
        until = time.monotonic() + START_S_MAX
        while any(member.ask("standing")["voters"] < len(MEMBERS) for member in members):
            if time.monotonic() > until:
                raise SystemExit("the three did not come to vote together")
            time.sleep(0.1)
        yield Swarm(members)


if __name__ == "__main__":
    main()
