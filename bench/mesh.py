"""What being a member costs, and how soon a killed one is known dead to all the others.

    python -m bench.mesh [--sizes 3,20,50] [--kills 5] [--idle 15] [--profile lan]

So many daemons with every surface up, on loopback addresses of one machine: their processors are
these. A kill takes a daemon and its runner at once; each other daemon's own log says when it knew.
Beside them, where Debian's serf is installed, as many of its agents with its LAN profile.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from bench.facts import machine, percentile, table
from tests.daemon import free_ports
from tests.swarms import Node, Swarm, running_swarm, until

KNOWN_S_MAX = 30.0
SETTLE_S = 5.0
LO = Path("/sys/class/net/lo/statistics/tx_bytes")
_TICK = os.sysconf("SC_CLK_TCK")
_SAID = re.compile(r"^(\S+Z) \w+ mesh\.gossip\S*: a member is dead .*node_name=(\S+)", re.MULTILINE)


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def rss_mib(pid: int) -> float:
    return (
        int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    )


class Idle:
    """Processor, memory and bytes of processes that have nothing to do."""

    def __init__(self, pids: Sequence[int], for_s: float) -> None:
        before, sent = [cpu_s(pid) for pid in pids], int(LO.read_text())
        began = time.monotonic()
        time.sleep(for_s)
        took = time.monotonic() - began
        self.cpu = [(cpu_s(p) - b) / took * 100 for p, b in zip(pids, before, strict=True)]
        self.bytes_a_node = (int(LO.read_text()) - sent) / took / len(pids)
        self.rss_mib = max(rss_mib(pid) for pid in pids)


def deaths(node: Node, name: str, after: float) -> float | None:
    """When a node said first, after a moment, that this one is dead."""
    text = (node.folder / "swarmd.stderr").read_text(errors="replace")
    for at, who in _SAID.findall(text):
        when = datetime.fromisoformat(at.replace("Z", "+00:00")).astimezone(UTC).timestamp()
        if who == name and when >= after - 0.001:
            return when
    return None


def kill_and_wait(swarm: Swarm, node: Node) -> float:
    others = [n for n in swarm.nodes if n is not node]
    at = time.time()
    node.kill()
    found: list[float] = []

    def all_know() -> bool:
        known = [deaths(other, node.name, at) for other in others]
        found[:] = [when for when in known if when is not None]
        return len(found) == len(others)

    until(all_know, f"{node.name} is not dead to all", KNOWN_S_MAX)
    return max(found) - at


def measure(size: int, kills: int, idle_s: float, profile: str) -> list[str]:
    with (
        tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name,
        running_swarm(Path(name), size, first=2, mesh={"profile": profile}) as swarm,
    ):
        time.sleep(SETTLE_S)
        leader = swarm.leader()
        pids = [n.daemon.process.pid for n in swarm.nodes]
        idle = Idle(pids, idle_s)
        leads = idle.cpu[swarm.nodes.index(leader)]
        others = [c for n, c in zip(swarm.nodes, idle.cpu, strict=True) if n is not leader]
        took = []
        for _ in range(kills):
            victim = next(n for n in reversed(swarm.nodes) if n is not swarm.leader())
            took.append(kill_and_wait(swarm, victim))
            victim.start()
            until(
                lambda: all(n["status"] == "alive" for n in leader.status()["nodes"]),
                "not all are back", KNOWN_S_MAX,
            )  # fmt: skip
        return [
            f"swarmd, {size}", f"{percentile(took, 0.5):.2f}", f"{max(took):.2f}",
            f"{leads:.2f}", f"{sum(others) / len(others):.2f}", f"{idle.bytes_a_node:.0f}",
            f"{idle.rss_mib:.0f}",
        ]  # fmt: skip


@contextmanager
def serf_agents(size: int, folder: Path) -> Iterator[list[tuple[subprocess.Popen[bytes], Path]]]:
    agents: list[tuple[subprocess.Popen[bytes], Path]] = []
    ports = free_ports({"gossip": 7946, "rpc": 7373}, [f"127.0.0.{2 + i}" for i in range(size)])
    try:
        for number in range(size):
            address, said = f"127.0.0.{2 + number}", folder / f"serf{number}.log"
            command = [
                "serf", "agent", f"-node=s{number}", f"-bind={address}:{ports['gossip']}",
                f"-rpc-addr={address}:{ports['rpc']}", "-profile=lan",
                f"-retry-join=127.0.0.2:{ports['gossip']}",
            ]  # fmt: skip
            with said.open("wb") as out:
                process = subprocess.Popen(
                    command, stdout=out, stderr=out, stdin=subprocess.DEVNULL
                )
            agents.append((process, said))
        yield agents
    finally:
        for process, _ in agents:
            process.kill()
            process.wait()


def measure_serf(size: int, kills: int, idle_s: float) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
        with serf_agents(size, Path(name)) as agents:

            def whole() -> bool:
                texts = [said.read_text(errors="replace") for _, said in agents]
                return all(t.count("EventMemberJoin: s") >= size for t in texts)

            until(whole, "serf does not come together", 60.0)
            time.sleep(SETTLE_S)
            idle = Idle([p.pid for p, _ in agents], idle_s)
            took = []
            for number in range(size - 1, max(1, size - 1 - kills), -1):
                process, _ = agents[number]
                at = time.monotonic()
                os.kill(process.pid, signal.SIGKILL)
                others = [said for _, said in agents[:number]]

                def known(others: list[Path] = others, number: int = number) -> bool:
                    said = f"EventMemberFailed: s{number} "
                    return all(said in o.read_text(errors="replace") for o in others)

                until(known, f"s{number} is not dead to all", KNOWN_S_MAX)
                took.append(time.monotonic() - at)
        return [
            f"serf, {size}", f"{percentile(took, 0.5):.2f}", f"{max(took):.2f}", "",
            f"{sum(idle.cpu) / len(idle.cpu):.2f}", f"{idle.bytes_a_node:.0f}",
            f"{idle.rss_mib:.0f}",
        ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="3,20,50")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--idle", type=float, default=15.0)
    parser.add_argument("--profile", default="lan")
    given = parser.parse_args()
    print(machine())
    rows = []
    for size in map(int, given.sizes.split(",")):
        rows.append(tuple(measure(size, given.kills, given.idle, given.profile)))
        if shutil.which("serf") and given.profile == "lan":
            rows.append(tuple(measure_serf(size, given.kills, given.idle)))
    head = ("members", "dead to all p50 (s)", "max", "leader CPU %", "others CPU %",
            "bytes/s a node", "RSS MiB")  # fmt: skip
    print(table(head, rows))


if __name__ == "__main__":
    main()
