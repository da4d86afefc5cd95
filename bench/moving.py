"""How soon a job runs again elsewhere when its host dies, the leader's or another.

    python -m bench.moving [--times 5]

Three daemons on loopback addresses. A host dies whole: its daemon, its runner and its jobs are
killed at once. Measured is from the kill to the first thing that the job does elsewhere; every run
ends with the proof, from what the jobs wrote, that no two ran at once.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

from bench.facts import machine, percentile, table
from tests.moving import job_on, kill_host, wait_for_leases
from tests.swarms import running_swarm

BOUNDS_S = {"another's": 6.0, "the leader's": 8.0}
WAIT_S = 30.0


def measure(times: int) -> dict[str, list[float]]:
    took: dict[str, list[float]] = {name: [] for name in BOUNDS_S}
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
        place = Path(name)
        place.chmod(0o755)  # jobs may run as another account
        with running_swarm(place, jobs={"slots": 4}) as swarm:
            wait_for_leases(swarm)
            for _ in range(times):
                for whose in BOUNDS_S:
                    leads = whose == "the leader's"
                    host = swarm.leader() if leads else swarm.followers()[0]
                    job = job_on(swarm, place, host)
                    time.sleep(random.uniform(0.0, 1.0))
                    took[whose].append(job.moved_after(kill_host(host), WAIT_S))
                    job.cancel()
                    host.start()
                    swarm.wait_whole()
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5)
    given = parser.parse_args()
    print(machine())
    rows = []
    for whose, times in measure(given.times).items():
        cells = [f"{percentile(times, part):.2f}" for part in (0.0, 0.5, 1.0)]
        rows.append((whose, str(len(times)), *cells, f"{BOUNDS_S[whose]:g}"))
    print(table(("host", "times", "min (s)", "p50", "max", "bound"), rows))


if __name__ == "__main__":
    main()
