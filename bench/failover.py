"""How long a swarm of three cannot be written to when its leader is killed, cut off or stopped.

    python -m bench.failover [--kills 20] [--cuts 5] [--stops 10]

Three daemons on loopback addresses, under the load of the failover tests: jobs one by one and in
bulk through every node, real processes, outside executors. A time is from the blow to the first
answer of a write that was asked for after it; "any" by the client that was answered first, "each"
by the one that waited longest, of one client at each survivor. For a stop it is the longest that
any client who writes without pause waits for an answer. The links are cut in silence, in a network
namespace (root), so that only the timers tell. Every run ends with the proof that nothing was lost.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.facts import machine, percentile, table
from tests.failover import cut_leaders, kill_leaders, stop_leader, swarm_under_load
from tests.netns import own_network
from tests.parts import is_here
from tests.swarms import running_swarm

BOUNDS_MS = {"kill": 600, "cut": 2200, "cut, lan": 1200, "stop": 100}


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
        yield Path(name)


def kills(times: int, seed: int) -> list[tuple[float, float]]:
    with folder() as place:
        with swarm_under_load(place, seed) as tried:
            kill_leaders(tried, times)
        tried.check()
    return [(outage.first_s, outage.last_s) for outage in tried.outages]


def cuts(times: int, seed: int, timing: str) -> list[tuple[float, float]]:
    with folder() as place, own_network() as network:
        with swarm_under_load(place, seed, quick=False, first=11, mesh={"timing": timing}) as tried:
            cut_leaders(tried, network, times)
        tried.check()
    return [(outage.first_s, outage.last_s) for outage in tried.outages]


def stops(times: int) -> list[tuple[float, float]]:
    gaps = []
    with folder() as place, running_swarm(place) as swarm:
        for number in range(times):
            seen = stop_leader(swarm, number)
            assert not seen.failed, seen.failed
            gaps.append((seen.gap_s, seen.gap_s))
    return gaps


def row(name: str, times: Sequence[tuple[float, float]], bound_ms: int) -> tuple[str, ...]:
    cells = [name, str(len(times))]
    for each in zip(*times, strict=True):
        cells += [f"{percentile(each, part) * 1000:.0f}" for part in (0.5, 0.99, 1.0)]
    return (*cells, str(bound_ms))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--stops", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    given = parser.parse_args()
    print(f"{machine()}, seed {given.seed}")
    rows = []
    if given.kills:
        rows.append(row("kill -9", kills(given.kills, given.seed), BOUNDS_MS["kill"]))
    if given.cuts and is_here("netns"):
        for name, timing in (("cut", "default"), ("cut, lan", "lan")):
            rows.append(row(name, cuts(given.cuts, given.seed, timing), BOUNDS_MS[name]))
    elif given.cuts:
        print("cutting links needs root and iproute2: left out")
    if given.stops:
        rows.append(row("stop", stops(given.stops), BOUNDS_MS["stop"]))
    headers = ("leader", "times", "any p50", "p99", "max", "each p50", "p99", "max", "bound (ms)")
    print(table(headers, rows))


if __name__ == "__main__":
    main()
