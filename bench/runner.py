"""What a job costs in the runner: CPU-milliseconds of the runner and its children, beside a bare
posix_spawn in the same run. `python bench/runner.py [JOBS]`; as root it also measures accounts.
"""

from __future__ import annotations

import gc
import itertools
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import trio

sys.path.insert(0, str(Path(__file__).parents[1]))

from swarmd.drivers.frames import AttemptOrder, Ended
from swarmd.drivers.process import RunnerClient, RunnerSettings, open_runner

PROGRAM = "/bin/true"
CHUNKS = 4
"""The least of these counts: what else the machine does can only make it more."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """User and system time of a process, of the children it has reaped, and the same of those
    that it has now: the runner's launchers."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(map(int, fields[11:15])) / TICKS_PER_S + sum(cpu_s(int(i)) for i in children)


def resident_mib(pid: int) -> float:
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) / 1024


def own_cpu_s() -> float:
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def bare(jobs: int) -> tuple[float, float]:
    gc.freeze()
    found = []
    for _ in range(CHUNKS):
        begun_s, begun_cpu_s = time.perf_counter(), own_cpu_s()
        for _ in range(jobs):
            os.waitpid(os.posix_spawn(PROGRAM, [PROGRAM], {}, setsid=True), 0)
        found.append((own_cpu_s() - begun_cpu_s, time.perf_counter() - begun_s))
    return min(found)


async def through_runner(client: RunnerClient, orders: list[AttemptOrder]) -> tuple[float, float]:
    begun_s, begun_cpu_s = time.perf_counter(), cpu_s(client.facts.pid)
    await client.start(orders)
    left = len(orders)
    while left:
        ended = [event for event in await client.take() if isinstance(event, Ended)]
        assert all(event.exit_code == 0 for event in ended), ended
        left -= len(ended)
        await client.ack([event.id for event in ended])
    return cpu_s(client.facts.pid) - begun_cpu_s, time.perf_counter() - begun_s


def show(name: str, jobs: int, cost: tuple[float, float]) -> None:
    cpu_ms, wall_ms = (1000 * seconds / jobs for seconds in cost)
    print(f"{name:44}{cpu_ms:10.3f}{wall_ms:12.3f}{1000 / wall_ms:10.0f}")


async def main(jobs: int, folder: Path) -> None:
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"the least of {CHUNKS} times {jobs} jobs of {PROGRAM}")
    print(f"{'':44}{'CPU-ms/job':>10}{'wall-ms/job':>12}{'jobs/s':>10}")
    show("bare posix_spawn, one after another", jobs, bare(jobs))
    async with open_runner(folder, RunnerSettings(idle_s=1)) as client:
        kinds: dict[str, dict[str, int]] = {"runner, own account": {}}
        limits = {"memory_bytes": 1 << 30, "pids": 100, "cpus": 1}
        if os.geteuid() == 0:
            account = {"uid": 65534, "gid": 65534}
            kinds["runner, another account"] = account
            kinds["runner, another account, three limits"] = account | limits
        else:
            kinds["runner, three limits"] = limits
        numbers = itertools.count(1)
        for name, more in kinds.items():
            found = []
            for _ in range(CHUNKS):
                orders = [
                    AttemptOrder(id=i, dir=str(folder / f"attempt-{i}"), argv=(PROGRAM,), **more)
                    for i in itertools.islice(numbers, jobs)
                ]
                found.append(await through_runner(client, orders))
            show(name, jobs, min(found))
        print(f"tracking by {client.facts.tracking}, limits enforced: {client.facts.enforces}")
        print(f"runner's resident memory: {resident_mib(client.facts.pid):.1f} MiB")
        await client.quit(jobs=True)
        await client.gone()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 1000, Path(temporary))
