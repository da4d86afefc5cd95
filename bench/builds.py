"""What drones cost a node: so many that register and ask for work every two seconds.

    python -m bench.builds [--drones 200] [--packages 5000] [--seconds 30]

A daemon is started on free ports. All drones register at once, then each says every two seconds
that it is there and asks for work; each holds what it was given, as one that builds does. Then the
queue is paused, so that all of them ask in vain. CPU is the daemon's alone.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from bench.facts import cpu_ms, machine, percentile, table
from tests.daemon import Daemon, await_builds, running_daemon

KEY = "bench-key"
EVERY_S = 2.0
THREADS = 20


class Link:
    """One kept connection."""

    def __init__(self, daemon: Daemon) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.ports["buildswarm"])

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "X-Admin-Key": KEY}
        self._connection.request(method, f"/api/v1{path}", raw, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        if answer.status >= 300:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
        return json.loads(data)


class Drones:
    """Some of them, one after the other, in a thread."""

    def __init__(self, daemon: Daemon, numbers: list[int]) -> None:
        self.numbers = numbers
        self.waits_ms: list[float] = []
        self.tasks: dict[int, str | None] = dict.fromkeys(numbers)
        self._links = {number: Link(daemon) for number in numbers}

    def register(self, number: int) -> None:
        self._timed(number, "POST", "/register", {
            "id": f"d{number}", "name": f"drone-{number:03}", "ip": "10.0.0.1",
            "capabilities": {"cores": 16, "ram_gb": 32.0}, "version": "0.4.0",
            "metrics": {"cpu_percent": random.random() * 100, "load_1m": 2.4},
            "current_task": self.tasks[number],
        })  # fmt: skip

    def ask(self, number: int) -> None:
        answer = self._timed(number, "GET", f"/work?id=d{number}&cores=16")
        self.tasks[number] = answer["package"]

    def run(self, until: float) -> None:
        """Each every two seconds, spread over them."""
        due = {n: time.monotonic() + EVERY_S * i / len(self.numbers)
               for i, n in enumerate(self.numbers)}  # fmt: skip
        while (number := min(due, key=lambda n: due[n])) is not None and due[number] < until:
            time.sleep(max(0.0, due[number] - time.monotonic()))
            self.register(number)
            self.ask(number)
            due[number] += EVERY_S

    def _timed(self, number: int, method: str, path: str, body: object = None) -> Any:
        began = time.perf_counter()
        answer = self._links[number](method, path, body)
        self.waits_ms.append((time.perf_counter() - began) * 1000)
        return answer


def together(work: list[Any]) -> None:
    threads = [threading.Thread(target=each) for each in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def measure(daemon: Daemon, groups: list[Drones], seconds: float) -> list[str]:
    for group in groups:
        group.waits_ms.clear()
    before, began = cpu_ms(daemon.process.pid), time.monotonic()
    until = began + seconds
    together([lambda g=group: g.run(until) for group in groups])  # type: ignore[misc]
    took_s = time.monotonic() - began
    cores = (cpu_ms(daemon.process.pid) - before) / 1000 / took_s
    waits = [ms for group in groups for ms in group.waits_ms]
    return [
        f"{len(waits) / took_s:.0f}", f"{cores:.2f}", f"{percentile(waits, 0.5):.1f}",
        f"{percentile(waits, 0.99):.1f}", f"{max(waits):.0f}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.builds", description=__doc__)
    parser.add_argument("--drones", type=int, default=200)
    parser.add_argument("--packages", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=30.0)
    given = parser.parse_args()
    print(machine())
    with (
        tempfile.TemporaryDirectory(prefix="bench-builds-") as folder,
        running_daemon(
            Path(folder), jobs={"executor": False}, environment={"ADMIN_KEY": KEY}
        ) as daemon,
    ):
        await_builds(daemon)
        link = Link(daemon)
        began = time.monotonic()
        for start in range(0, given.packages, 1000):
            names = [f"app-misc/p{n}-1.0" for n in range(start, min(start + 1000, given.packages))]
            link("POST", "/queue", {"packages": names})
        print(f"{given.packages} packages queued in {time.monotonic() - began:.1f} s")
        numbers = list(range(given.drones))
        groups = [Drones(daemon, numbers[n::THREADS]) for n in range(THREADS)]
        began = time.monotonic()
        together([lambda g=g: [g.register(n) for n in g.numbers] for g in groups])  # type: ignore[misc]
        print(f"{given.drones} drones registered in {time.monotonic() - began:.1f} s")
        rows = [["at work", *measure(daemon, groups, given.seconds)]]
        link("POST", "/control", {"action": "pause"})
        link("POST", "/control", {"action": "rebalance"})
        rows.append(["queue paused", *measure(daemon, groups, given.seconds)])
        print(table(["", "requests/s", "cores", "p50 ms", "p99 ms", "max ms"], rows))


if __name__ == "__main__":
    main()
