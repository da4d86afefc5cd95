"""Durable jobs a second, what one costs in CPU, and how soon it starts.

    python -m bench.jobs [--jobs 2000]

A daemon and its runner are started on free ports; jobs are `/bin/true` from a blob, submitted in
bulk over HTTP, each verified, run as a process of its own and reported. CPU is that of the daemon,
the runner and the jobs; the client's is not counted. A bare posix_spawn of the same program stands
beside it. "External" is an executor over HTTP that claims and completes at once.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.facts import cpu_ms, machine, percentile, table
from tests.daemon import Daemon, runner_pids, start_daemon

TRUE = Path("/bin/true")
LIMITS = {"cpus": 0.1, "memory_bytes": 64 * 2**20, "pids": 64}


class Client:
    """One kept connection."""

    def __init__(self, daemon: Daemon, surface: str = "jobqueue") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", daemon.ports[surface])

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if raw is not None else {}
        self._connection.request(method, path, raw, headers)
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status < 300, (answer.status, data[:500])
        return json.loads(data) if data else None


def job(sha256: str, **more: object) -> dict[str, object]:
    url = f"blob:sha256:{sha256}"
    return {"type": "bench", "binary_url": url, "binary_sha256": sha256, "priority": "background",
            **more}  # fmt: skip


def run_bulk(daemon: Daemon, sha256: str, count: int, **more: object) -> tuple[float, float]:
    """Jobs a second and CPU-milliseconds a job, from the first submit to the last end."""
    ask = Client(daemon)
    pids = family(daemon)
    done = ask("GET", "/api/v1/admin/stats")["jobs_by_status"]["completed"]
    before, start = sum(map(cpu_ms, pids)), time.perf_counter()
    for at in range(0, count, 1000):
        ask("POST", "/api/v1/jobs/bulk", [job(sha256, **more)] * min(1000, count - at))
    while ask("GET", "/api/v1/admin/stats")["jobs_by_status"]["completed"] < done + count:
        time.sleep(0.05)
    wall = time.perf_counter() - start
    return count / wall, (sum(map(cpu_ms, pids)) - before) / count


def family(daemon: Daemon) -> list[int]:
    """The daemon, its runner, and what lives below that: the launchers. Jobs are reaped by them."""
    pids = [daemon.process.pid, *runner_pids(daemon.data_dir)]
    for pid in pids[1:]:
        tasks = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        pids += [int(child) for child in tasks]
    return pids


def submit_to_start(daemon: Daemon, sha256: str, count: int) -> list[float]:
    """Milliseconds from submission to start, one job at a time, by the swarm's own times."""
    ask, console = Client(daemon), Client(daemon, "console")
    waits = []
    for _ in range(count):
        job_id = ask("POST", "/api/v1/jobs", job(sha256))["id"]
        ended = console("GET", f"/api/v1/jobs/{job_id}/wait?timeout_s=10")
        waits.append(_ms(ended["started_at"]) - _ms(ended["created_at"]))
    return waits


def _ms(text: str) -> float:
    import datetime

    return datetime.datetime.fromisoformat(text).timestamp() * 1000


def run_external(directory: Path, sha256: str, count: int) -> tuple[float, float]:
    daemon = start_daemon(directory, jobs={"executor": False})
    try:
        ask = Client(daemon)
        for at in range(0, count, 1000):
            ask("POST", "/api/v1/jobs/bulk", [job(sha256)] * min(1000, count - at))
        before, start = cpu_ms(daemon.process.pid), time.perf_counter()
        for _ in range(count):
            claimed = ask("POST", "/api/v1/jobs/claim", {"executor_id": "e", "executor_ip": "h"})
            end = {"executor_id": "e", "stdout": "", "stderr": "", "exit_code": 0}
            ask("PUT", f"/api/v1/jobs/{claimed['id']}/complete", end)
        wall = time.perf_counter() - start
        return count / wall, (cpu_ms(daemon.process.pid) - before) / count
    finally:
        daemon.end()


def bare_spawn(count: int) -> tuple[float, float]:
    before, start = os.times(), time.perf_counter()
    for _ in range(count):
        os.waitpid(os.posix_spawn(TRUE, ["true"], {}), 0)
    after, wall = os.times(), time.perf_counter() - start
    spent_s = sum(after[:4]) - sum(before[:4])
    return count / wall, spent_s / count * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2000)
    count = parser.parse_args().jobs
    print(machine())
    with tempfile.TemporaryDirectory(prefix="swarmd-bench-") as name:
        directory = Path(name)
        directory.chmod(0o711)  # so that the jobs' account can pass
        daemon = start_daemon(directory / "a")
        try:
            uploaded = Client(daemon, "console")("PUT", "/api/v1/blobs", TRUE.read_bytes())
            sha256 = uploaded["sha256"]
            assert sha256 == hashlib.sha256(TRUE.read_bytes()).hexdigest()
            run_bulk(daemon, sha256, 100)
            rows = [("bare posix_spawn", *bare_spawn(min(count, 1000)))]
            rows.append(("/bin/true, bulk", *run_bulk(daemon, sha256, count)))
            limited = run_bulk(daemon, sha256, count, resources=LIMITS)
            rows.append(("/bin/true, bulk, with limits", *limited))
            waits = submit_to_start(daemon, sha256, 200)
        finally:
            daemon.end()
        rows.append(("no-op, external executor", *run_external(directory / "b", sha256, count)))
    shown = [(name, f"{rate:.0f}", f"{cost:.2f}") for name, rate, cost in rows]
    print(table(("what", "jobs/s", "CPU-ms a job"), shown))
    p50, p99 = percentile(waits, 0.5), percentile(waits, 0.99)
    print(f"submit to start: p50 {p50:.1f} ms, p99 {p99:.1f} ms")


if __name__ == "__main__":
    main()
