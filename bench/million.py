"""A queue of a million jobs: what a page, a claim, a submit and a restart take beside it.

    python -m bench.million [--jobs 1000000]

The jobs are put into the state by the machine itself, in entries of 100, without HTTP and without
fsync, so that filling takes a minute; everything that is measured goes over HTTP to a daemon that
was started on that state. It runs no jobs of its own. Times are those of a client on one kept
connection; "inside" is the daemon's own mean over the same requests, from its metrics.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.facts import machine, percentile, table
from swarmd.domain.actors import Actor
from swarmd.domain.jobs import Constraint, Fetch, JobId, JobSpec, Priority
from swarmd.state.commands import Entry, NewJob, PruneEvents, SubmitJobs
from swarmd.state.machine import Machine
from swarmd.state.schema import migrate
from tests.daemon import Daemon, start_daemon

PAGE_MS, CLAIM_MS, RESTART_S = 20.0, 2.0, 10.0
TYPES = 20
LANES = 5
BATCH = 100
EVENTS_KEEP = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description="what a long queue costs")
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args()
    print(machine())
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name).resolve()
        folder.chmod(0o711)
        data_dir = folder / "data"
        data_dir.mkdir(mode=0o700)
        began = time.perf_counter()
        fill(data_dir / "state.db", given.jobs)
        took = time.perf_counter() - began
        print(f"{given.jobs:,} jobs put in by the machine in {took:.0f} s")
        report(folder, data_dir, given.jobs, given.rounds)


def fill(path: Path, count: int) -> None:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA journal_mode = WAL")
    conn.execute("PRAGMA synchronous = OFF")
    conn.execute("PRAGMA cache_size = -262144")
    migrate(conn)
    machine = Machine(conn)
    actor = Actor("bench", "bench")
    at = time.time_ns() // 1_000_000 - count
    entries = (
        Entry(index + 1, 1, at + start, actor,
              SubmitJobs(tuple(NewJob(JobId(f"job-{i:09}"), spec(i)) for i in jobs)))
        for index, start in enumerate(range(0, count, BATCH))
        for jobs in (range(start, min(count, start + BATCH)),)
    )  # fmt: skip
    last = None
    while batch := list(itertools.islice(entries, 200)):
        machine.apply(batch)
        last = batch[-1]
    # A leader forgets events as they come; jobs that are not put in over time leave a million.
    while last is not None:
        last = Entry(last.index + 1, 1, last.at, actor, PruneEvents(EVENTS_KEEP, 10_000, 1))
        (pruned,) = machine.apply([last])
        if not pruned.value:
            break
    conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    conn.close()


def spec(number: int) -> JobSpec:
    """Types, priorities and shapes in turns; what is typical of a job in size."""
    sha256 = f"{number % 1000:064x}"
    lane = number % LANES
    return JobSpec(
        type=f"type-{number % TYPES}",
        source=Fetch(f"https://example.org/binaries/{number % 1000}", sha256),
        priority=(Priority.FOREGROUND, Priority.BACKGROUND, Priority.BEST_EFFORT)[number % 3],
        arguments=("--input", f"/data/input-{number}", "--output", f"/data/output-{number}"),
        env={"STAGE": "production", "SHARD": str(number % 64)},
        constraints=(Constraint("node.labels.lane", "!=", f"not-{lane}"),) if lane else (),
    )


class Client:
    """One kept connection, and the daemon's own count of what it took."""

    def __init__(self, daemon: Daemon) -> None:
        self._connection = http.client.HTTPConnection(
            "127.0.0.1", daemon.ports["jobqueue"], timeout=60
        )

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        raw = None if body is None else json.dumps(body).encode()
        self._connection.request(
            method, f"/api/v1{path}", raw, {"Content-Type": "application/json"}
        )
        answer = self._connection.getresponse()
        data = answer.read()
        assert answer.status < 300, (method, path, answer.status, data[:300])
        return data

    def inside(self) -> tuple[float, float]:
        """Seconds and requests in all, the metrics' own left out."""
        text = self("GET", "/metrics").decode()
        found = []
        for what in ("sum", "count"):
            lines = re.findall(
                rf"^executr_api_request_duration_seconds_{what}\{{(.*)\}} (\S+)$", text, re.M
            )
            assert lines, text[-2000:]
            found.append(sum(float(n) for labels, n in lines if "/metrics" not in labels))
        return found[0], found[1]


def report(folder: Path, data_dir: Path, count: int, rounds: int) -> None:
    daemon, first_s = started(folder, data_dir)
    try:
        client = Client(daemon)
        rows = [row(client, name, step, goal, rounds) for name, step, goal in steps(client, count)]
        heads = ("request", "rounds", "p50 ms", "p99 ms", "max ms", "inside ms", "goal")
        print(table(heads, rows))
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        rss_kib = int(status.split("VmRSS:")[1].split()[0])
        began = time.perf_counter()
        assert daemon.stop() == 0
        stop_s = time.perf_counter() - began
        daemon, second_s = started(folder, data_dir)
        daemon.kill()
        daemon, third_s = started(folder, data_dir)
    finally:
        daemon.end()
    facts = [
        ("first start until /health is 200", f"{first_s:.2f} s", f"{RESTART_S:g} s"),
        ("stop by SIGTERM", f"{stop_s:.2f} s", "5 s"),
        ("restart after a stop", f"{second_s:.2f} s", f"{RESTART_S:g} s"),
        ("restart after kill -9", f"{third_s:.2f} s", f"{RESTART_S:g} s"),
        ("resident memory of the daemon", f"{rss_kib / 1024:.0f} MiB", ""),
        ("state.db", f"{(data_dir / 'state.db').stat().st_size / 2**20:.0f} MiB", ""),
    ]
    print(table(("fact", "value", "goal"), facts))


def started(folder: Path, data_dir: Path) -> tuple[Daemon, float]:
    began = time.perf_counter()
    daemon = start_daemon(folder, data_dir=data_dir, jobs={"executor": False})
    assert daemon.request("GET", "/api/v1/health").status == 200
    return daemon, time.perf_counter() - began


def steps(client: Client, count: int) -> Iterable[tuple[str, Callable[[], Any], float | None]]:
    queries = [
        ("first page", ""),
        ("status", "?status=pending"),
        ("type", "?type=type-7"),
        ("priority", "?priority=best_effort"),
        ("status, type", "?status=pending&type=type-7"),
        ("status, type, priority", "?status=pending&type=type-7&priority=background"),
        ("a type that is not", "?type=none"),
        ("status that none has", "?status=failed"),
        ("1000 rows", "?limit=1000"),
    ]
    queries += [
        (f"status, offset {offset:,}", f"?status=pending&offset={offset}")
        for offset in (1000, 100_000, count // 2, count - 1000)
    ]
    queries += [
        (f"type, offset {offset:,}", f"?type=type-7&offset={offset}")
        for offset in (1000, count // TYPES // 2, count // TYPES - 100)
    ]
    queries += [
        (f"{' and '.join(given)}, from the middle",
         "?" + "&".join(f"{name}={given[name]}" for name in given) + f"&offset={count // of}")
        for given, of in (
            ({"priority": "foreground"}, 6),
            ({"status": "pending", "priority": "foreground"}, 6),
            ({"status": "pending", "type": "type-7"}, 2 * TYPES),
            ({"type": "type-7", "priority": "background"}, 6 * TYPES),
            ({"status": "pending", "type": "type-7", "priority": "background"}, 6 * TYPES),
        )
    ]  # fmt: skip
    queries += [("1000 rows from the middle", f"?limit=1000&offset={count // 2}")]
    queries += [(f"no filter, offset {count // 2:,}", f"?offset={count // 2}")]
    queries += [(f"no filter, offset {count - 1000:,}", f"?offset={count - 1000}")]
    for name, query in queries:
        yield f"list: {name}", lambda query=query: client("GET", f"/jobs{query}"), PAGE_MS
    yield "one job", lambda: client("GET", f"/jobs/job-{count // 2:09}"), None
    yield "explain", lambda: client("GET", f"/jobs/job-{count // 2:09}/explain"), None
    yield "stats", lambda: client("GET", "/admin/stats"), None
    body = {
        "type": "new", "binary_url": "https://example.org/b", "binary_sha256": "a" * 64,
        "priority": "background",
    }  # fmt: skip
    yield "submit", lambda: client("POST", "/jobs", body), None
    yield "bulk submit of 100", lambda: client("POST", "/jobs/bulk", [body] * 100), None
    ids = iter(range(10**9))
    claim = {"executor_ip": "10.0.0.1"}
    yield "claim", lambda: client(
        "POST", "/jobs/claim", {"executor_id": f"e{next(ids) % 50}", **claim}
    ), CLAIM_MS  # fmt: skip
    held: list[tuple[str, str]] = []

    def claim_and_complete() -> None:
        executor = f"e{next(ids) % 50}"
        job = json.loads(client("POST", "/jobs/claim", {"executor_id": executor}))
        held.append((job["id"], executor))
        client("PUT", f"/jobs/{job['id']}/complete", {"executor_id": executor, "exit_code": 0})

    yield "claim and complete", claim_and_complete, None


def row(
    client: Client, name: str, step: Callable[[], Any], goal_ms: float | None, rounds: int
) -> tuple[object, ...]:
    step()
    inside_s, requests = client.inside()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        times.append((time.perf_counter() - began) * 1000)
    after_s, after_requests = client.inside()
    mean_ms = (after_s - inside_s) / (after_requests - requests) * 1000
    goal = "" if goal_ms is None else f"{goal_ms:g} ms"
    return (name, rounds, f"{percentile(times, 0.5):.2f}", f"{percentile(times, 0.99):.2f}",
            f"{max(times):.2f}", f"{mean_ms:.2f}", goal)  # fmt: skip


if __name__ == "__main__":
    main()
