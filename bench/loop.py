"""How long a request may hold the event loop: the longest step of any task, by sort of request.

    python -m bench.loop [--only WORD] [--stacks]

A daemon with an instrument in its loop is asked what is heavy: bulk submits small and large, ends
with megabytes of output, pages of a thousand fat jobs, metrics with a thousand types. The goal is
that no step takes more than 5 ms. "cpu" is the CPU of the longest step by itself: where it is far
below "wall", another thread or process had the processor or the interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from wsproto import ConnectionType, WSConnection, events

from bench.facts import machine, table
from tests.daemon import SURFACES, end_runner, free_ports

GOAL_MS = 5.0
SHELL = Path("/bin/sh")
TRUE = Path("/bin/true")


def main() -> None:
    parser = argparse.ArgumentParser(description="the longest step of the loop, by request")
    parser.add_argument("--only", default="", help="scenarios whose name holds this word")
    parser.add_argument("--stacks", action="store_true", help="show where the long steps were")
    parser.add_argument("--serve", type=Path, help="be the daemon, with this data directory")
    given = parser.parse_args()
    if given.serve:
        sys.exit(serve(given.serve, json.loads(os.environ["PORTS"])))
    print(machine())
    scenarios = [s for s in SCENARIOS if given.only in s.__name__]
    rows, stacks, worst = [], [], 0.0
    for scenario in scenarios:
        for row, stack in measure(scenario):
            rows.append(row)
            worst = max(worst, float(row[3]))
            if float(row[3]) > GOAL_MS and stack:
                stacks.append((row, stack))
    print(table(("scenario", "task or request", "steps", "wall ms", "cpu ms", "gc ms",
                 f"over {GOAL_MS:g} ms", "max cpu ms"), rows))  # fmt: skip
    print(f"the longest step: {worst:.1f} ms (goal: {GOAL_MS:g} ms)")
    for row, stack in stacks if given.stacks else ():
        print(f"\n{row[0]} / {row[1]}: {row[3]} ms\n    " + "\n    ".join(stack))


def serve(data_dir: Path, ports: dict[str, int]) -> int:
    """The daemon as it is, with the instrument; what it saw goes to a file at its end."""
    import trio

    from api.common.streams import current_exchange
    from bench.loopwatch import LoopWatch
    from swarmd import daemon
    from swarmd.config_sources import load

    def label(task: trio.lowlevel.Task) -> str:
        exchange: Any = task.context.get(current_exchange)
        if exchange is None:
            return task.name.rpartition(".")[2] if "." in task.name else task.name
        return f"{exchange.head.method} {exchange.endpoint}"

    flags = {"node.data_dir": data_dir}
    config = load(
        {**os.environ, **{f"SWARMD_SURFACES_{n.upper()}_PORT": str(p) for n, p in ports.items()}},
        flags,
    )
    sys.setswitchinterval(daemon.SWITCH_INTERVAL_S)
    watch = LoopWatch(label)

    def forget(number: int, frame: object) -> None:
        watch.longest.clear()  # the start is over: requests alone are measured

    signal.signal(signal.SIGUSR1, forget)
    trio.run(daemon._main, config, instruments=[watch])
    facts = {name: longest.facts() for name, longest in watch.longest.items()}
    (data_dir / "longest.json").write_text(json.dumps(facts))
    return 0


def measure(scenario: Callable[[Ask], None]) -> Iterator[tuple[tuple[object, ...], list[str]]]:
    """One daemon for each scenario; a row for each label whose longest step is worth a word."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        Path(folder).chmod(0o711)
        data_dir = Path(folder).resolve() / "data"
        ports = free_ports(SURFACES)
        said = Path(folder) / "stderr"
        with said.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "bench.loop", "--serve", str(data_dir)],
                env={**os.environ, "PORTS": json.dumps(ports)}, stderr=stderr,
                cwd=Path(__file__).parents[1],
            )  # fmt: skip
        try:
            ask = Ask(ports, process.pid)
            scenario(ask)
            process.terminate()
            process.wait(20)
            facts = json.loads((data_dir / "longest.json").read_text())
        except Exception as failure:
            failure.add_note(said.read_text(errors="replace")[-2000:])
            raise
        finally:
            process.kill()
            process.wait()
            end_runner(data_dir)
    heavy = sorted(facts.items(), key=lambda item: -item[1]["wall_ms"])
    for name, seen in heavy[:5]:
        if seen["wall_ms"] >= 1.0 or name == heavy[0][0]:
            numbers = (f"{seen[key]:.1f}" for key in ("wall_ms", "cpu_ms", "gc_ms"))
            row = (scenario.__name__, name, seen["steps"], *numbers, seen["long"],
                   f"{seen['cpu_ms_max']:.1f}")  # fmt: skip
            yield row, seen["stack"]


class Ask:
    """A client with one kept connection to each surface, and a daemon that is ready."""

    def __init__(self, ports: dict[str, int], pid: int) -> None:
        self._pid = pid
        self._ports = ports
        self._connections = {
            name: http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            for name, port in ports.items()
        }
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError):
                self("GET", "/health")
                break
            for connection in self._connections.values():
                connection.close()
            assert time.monotonic() < deadline, "the daemon does not start"
            time.sleep(0.05)
        self.blobs = {}
        for path in (SHELL, TRUE):
            data = path.read_bytes()
            self("PUT", "/blobs", data, surface="console")
            self.blobs[path] = hashlib.sha256(data).hexdigest()

    def begin(self) -> None:
        """What comes from here on is measured."""
        os.kill(self._pid, signal.SIGUSR1)
        time.sleep(0.1)

    def __call__(
        self, method: str, path: str, body: object = None, surface: str = "jobqueue",
        headers: dict[str, str] | None = None, refused: bool = False,
    ) -> Any:  # fmt: skip
        """The answer; with `refused`, what the node says to what it must not take."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = self._connections[surface]
        connection.request(
            method, f"/api/v1{path}", raw, {"Content-Type": "application/json", **(headers or {})}
        )
        answer = connection.getresponse()
        data = answer.read()
        if (400 <= answer.status < 500) if refused else answer.status < 300:
            pass
        else:
            raise RuntimeError(f"{method} {path}: {answer.status} {data[:300]!r}")
        kind = answer.headers.get("Content-Type", "")
        return json.loads(data) if data and "json" in kind else data

    def job(self, **more: object) -> dict[str, object]:
        sha256 = self.blobs[TRUE]
        return {"type": "loop", "binary_url": f"blob:sha256:{sha256}", "binary_sha256": sha256,
                "priority": "background", **more}  # fmt: skip

    def shell(self, script: str, **more: object) -> dict[str, object]:
        sha256 = self.blobs[SHELL]
        return self.job(arguments=["-c", script], binary_url=f"blob:sha256:{sha256}",
                        **more) | {"binary_sha256": sha256}  # fmt: skip

    def listen(self, job_id: str) -> int:
        """Follow a job's logs over a WebSocket to its end; answers how many bytes came."""
        connection = WSConnection(ConnectionType.CLIENT)
        received = 0
        with socket.create_connection(("127.0.0.1", self._ports["jobqueue"]), 60) as sock:
            target = f"/api/v1/jobs/{job_id}/logs"
            sock.sendall(connection.send(events.Request("127.0.0.1", target)))
            while data := sock.recv(65536):
                connection.receive_data(data)
                for event in connection.events():
                    if isinstance(event, events.TextMessage):
                        received += len(event.data)
                    elif isinstance(event, events.Ping | events.CloseConnection):
                        sock.sendall(connection.send(event.response()))
        return received

    def waiting(self, **more: object) -> dict[str, object]:
        """One that no node of ours may run."""
        return self.job(constraints=["node.labels.lane==outside"], **more)

    def bulk(self, jobs: list[dict[str, object]]) -> list[str]:
        return [one["id"] for one in self("POST", "/jobs/bulk", jobs)]

    def drain(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            counts = self("GET", "/admin/stats")["jobs_by_status"]
            if not counts["pending"] + counts["running"]:
                return
            assert time.monotonic() < deadline, counts
            time.sleep(0.05)


FAT = {"A": "a" * 100_000, "B": "b" * 95_000}


def bulk_of_1000_small(ask: Ask) -> None:
    jobs = [ask.waiting(arguments=["x", str(i)]) for i in range(1000)]
    ask.begin()
    for _ in range(8):
        ask.bulk(jobs)


def bulk_of_1000_at_4_kb(ask: Ask) -> None:
    jobs = [ask.waiting(env_variables={"A": "a" * 3600}) for i in range(1000)]
    ask.begin()
    for _ in range(4):
        ask.bulk(jobs)


def bulk_of_20_at_200_kb(ask: Ask) -> None:
    jobs = [ask.waiting(env_variables=FAT) for i in range(20)]
    ask.begin()
    for _ in range(6):
        ask.bulk(jobs)


def bulk_with_many_parts(ask: Ask) -> None:
    """As many small strings as fit: what is dear by number, not by size."""
    more = {"env_variables": {f"N{i}": "v" for i in range(300)}, "arguments": ["a"] * 200}
    jobs = [ask.waiting(**more) for _ in range(600)]
    ask.begin()
    for _ in range(4):
        ask.bulk(jobs)


def submit_of_200_kb(ask: Ask) -> None:
    jobs = [
        ask.waiting(env_variables=FAT),
        ask.waiting(env_variables={f"N{i}": "v" * 170 for i in range(1000)}),
        ask.waiting(arguments=["a" * 170] * 1000),
    ]
    ask.begin()
    for _ in range(10):
        for job in jobs:
            ask("POST", "/jobs", job)


def complete_with_8_mib(ask: Ask) -> None:
    ids = ask.bulk([ask.waiting() for _ in range(9)])
    texts = ("o" * (4 * 2**20 - 500), "\n\x00é" * 280_000, "\u20ac" * 650_000)
    ask.begin()
    for at in range(len(ids)):
        body = {"executor_id": "e", "labels": {"lane": "outside"}}
        job = ask("POST", "/jobs/claim", body)
        raw = {"executor_id": "e", "exit_code": 0, "stdout": texts[at % 3], "stderr": texts[at % 3]}
        ask("PUT", f"/jobs/{job['id']}/complete", raw)
        ask("GET", f"/jobs/{job['id']}")
        ask("GET", f"/jobs/{job['id']}", surface="console")


def pages_of_1000_small(ask: Ask) -> None:
    for _ in range(5):
        ask.bulk([ask.waiting() for i in range(1000)])
    ask.begin()
    for _ in range(5):
        ask("GET", "/jobs?limit=1000&status=pending")
        ask("GET", "/jobs?limit=1000", surface="console")


def pages_of_1000_fat(ask: Ask) -> None:
    for _ in range(50):
        ask.bulk([ask.waiting(env_variables=FAT) for i in range(20)])
    ask.begin()
    for _ in range(3):
        ask("GET", "/jobs?limit=1000")
        ask("GET", "/jobs?limit=1000", surface="console")


def details_and_explanations(ask: Ask) -> None:
    ids = ask.bulk([ask.waiting(env_variables=FAT), ask.waiting(arguments=["a"] * 1000)])
    ask.begin()
    for _ in range(20):
        for job_id in ids:
            ask("GET", f"/jobs/{job_id}")
            ask("GET", f"/jobs/{job_id}/explain")
            ask("GET", f"/jobs/{job_id}", surface="console")


def metrics_of_1000_types(ask: Ask) -> None:
    for priority in ("foreground", "background", "best_effort"):
        ask.bulk([ask.waiting(type=f"type-{i}", priority=priority) | {"priority": priority}
                  for i in range(1000)])  # fmt: skip
    ask.begin()
    for _ in range(10):
        ask("GET", "/metrics")
        ask("GET", "/admin/stats")


def a_thousand_executors(ask: Ask) -> None:
    ask.bulk([ask.waiting() for i in range(1000)])
    ask.begin()
    for number in range(1000):
        ask("POST", "/jobs/claim", {"executor_id": f"e{number}", "labels": {"lane": "outside"}})
    for _ in range(5):
        ask("GET", "/admin/executors")
        ask("GET", "/admin/stats")


def bulk_cancel_of_1000(ask: Ask) -> None:
    batches = [ask.bulk([ask.waiting() for i in range(1000)]) for _ in range(3)]
    fat = [
        job_id for _ in range(5)
        for job_id in ask.bulk([ask.waiting(env_variables=FAT) for i in range(20)])
    ]  # fmt: skip
    ask.begin()
    for ids in [*batches, fat]:
        ask("POST", "/jobs/bulk/cancel", {"job_ids": ids})


def two_thousand_processes(ask: Ask) -> None:
    ask.begin()
    for _ in range(2):
        ask.bulk([ask.job() for i in range(1000)])
    ask.drain()


def jobs_that_write_much(ask: Ask) -> None:
    script = "i=0; while [ $i -lt 40 ]; do head -c 262144 /dev/zero | tr '\\0' x; i=$((i+1)); done"
    job = ask.shell(script)
    ask.begin()
    ids = ask.bulk([job] * 6)
    for job_id in ids[1:]:
        ask("GET", f"/jobs/{job_id}/logs?follow=true")
    ask.listen(ids[0])
    ask.drain()
    for job_id in ids:
        ask.listen(job_id)
        ask("GET", f"/jobs/{job_id}/logs")
        ask("GET", f"/jobs/{job_id}")
        ask("GET", f"/jobs/{job_id}", surface="console")
        ask("GET", f"/jobs/{job_id}/wait", surface="console")


def outputs_that_are_no_text(ask: Ask) -> None:
    """Bytes that have to be replaced one by one, and characters that JSON writes as six."""
    ff = "head -c 1048000 /dev/zero | tr '\\0' '\\377'"
    ids = ask.bulk([ask.shell(f"{ff}; head -c 1048000 /dev/zero >&2")] * 3)
    ask.drain()
    ask.begin()
    for job_id in ids:
        ask.listen(job_id)
        for surface in SURFACES:
            ask("GET", f"/jobs/{job_id}", surface=surface)
            ask("GET", f"/jobs/{job_id}/logs", surface=surface)


def complete_with_odd_texts(ask: Ask) -> None:
    """One character makes a string four times as large; one byte in six is a character."""
    texts = ["o" * (8 * 2**20 - 500) + "\U0001f600", "\0" * 1_390_000, '"' * 4_100_000]
    ids = ask.bulk([ask.waiting(max_retries=1) for _ in texts])
    ask.begin()
    for text in texts:
        body = {"executor_id": "e", "labels": {"lane": "outside"}}
        job = ask("POST", "/jobs/claim", body)
        raw = json.dumps({"executor_id": "e", "stdout": text}, ensure_ascii=False).encode()
        if len(raw) > 8 * 2**20:
            raw = json.dumps({"executor_id": "e", "stdout": text}).encode()
        ask("PUT", f"/jobs/{job['id']}/complete", raw)
    for job_id in ids:
        for surface in SURFACES:
            ask("GET", f"/jobs/{job_id}", surface=surface)
    ask.bulk([ask.waiting()])
    job = ask("POST", "/jobs/claim", {"executor_id": "e", "labels": {"lane": "outside"}})
    ask("PUT", f"/jobs/{job['id']}/fail",
        {"executor_id": "e", "error_message": "e" * 8_000_000})  # fmt: skip


def bodies_that_are_refused(ask: Ask) -> None:
    ids = ask.bulk([ask.waiting()])
    mib = 2**20
    texts = (
        b"[" * mib, b'{"a":' * (mib // 5), b"[" * (mib // 2) + b"]" * (mib // 2),
        b'{"type":"a","x":[' + b"1," * (mib // 2 - 100) + b"1]}",
        b'{"type":"a","x":[' + b"[]," * (mib // 3 - 100) + b"1]}",
        b'{"type":"a","arguments":[' + b'"",' * 85_000 + b'""]}',
        b'{"type":"a","env_variables":{' + b",".join(b'"%d":""' % i for i in range(30_000)) + b"}}",
        b'{"type":"' + b"a" * (mib - 100) + b'"}',
    )  # fmt: skip
    paths = (("POST", "/jobs"), ("POST", "/jobs/bulk"), ("POST", "/jobs/bulk/cancel"),
             ("POST", "/jobs/claim"), ("PUT", f"/jobs/{ids[0]}/complete"))  # fmt: skip
    ask.begin()
    for text in texts:
        for method, path in paths:
            ask(method, path, text, refused=True)
        ask("POST", "/jobs", text[: 512 * 1024], surface="console", refused=True)
    for text in (b"[" + b"1," * 2_000_000 + b"1]", b"[" + b"{}," * 1_300_000 + b"1]"):
        ask("POST", "/jobs/bulk", text, refused=True)
        ask("PUT", f"/jobs/{ids[0]}/complete", text, refused=True)


def console_submits_of_200_kb(ask: Ask) -> None:
    sha256 = ask.blobs[TRUE]
    base = {"binary": {"url": f"blob:sha256:{sha256}", "sha256": sha256},
            "constraints": ["node.labels.lane==outside"]}  # fmt: skip
    ask.begin()
    for more in ({"env": FAT}, {"env": {f"N{i}": "v" * 170 for i in range(1000)}},
                 {"arguments": ["a" * 170] * 1000}):  # fmt: skip
        for _ in range(5):
            job = ask("POST", "/jobs", base | more, surface="console")
            ask("GET", f"/jobs/{job['id']}", surface="console")
    for wrong in ({"arguments": ["a"] * 60_000}, {"env": {f"N{i}": "" for i in range(20_000)}},
                  {f"unknown{i}": 1 for i in range(15_000)}):  # fmt: skip
        ask("POST", "/jobs", base | dict(wrong), surface="console", refused=True)


def heads_at_their_limits(ask: Ask) -> None:
    """As many header lines and query fields as are read."""
    headers = {f"X-{i}": "v" * 40 for i in range(90)}
    query = "&".join(f"x{i}={'%41' * 30}" for i in range(90))
    ask.begin()
    for _ in range(20):
        ask("GET", f"/jobs?limit=1&{query}", headers=headers)
        ask("GET", f"/jobs?limit=1&{query}", headers=headers, surface="console")
        ask("GET", "/jobs?" + "&".join(f"x{i}=1" for i in range(200)), refused=True)
        ask("GET", f"/jobs/{'%41' * 2000}", refused=True)


def jobs_of_many_parts(ask: Ask) -> None:
    """Claimed, explained, cancelled: each with some hundreds of strings, or of dependencies."""
    more = {"env_variables": {f"N{i}": "v" for i in range(300)}, "arguments": ["a"] * 200}
    ids = [i for _ in range(2) for i in ask.bulk([ask.waiting(**more) for _ in range(500)])]
    fat = [i for _ in range(5) for i in ask.bulk([ask.waiting(env_variables=FAT)] * 20)]
    ask.begin()
    late = [ask("POST", "/jobs", ask.waiting(depends_on=deps))["id"]
            for deps in (ids[:100], fat)]  # fmt: skip
    for job_id in late:
        for _ in range(3):
            ask("GET", f"/jobs/{job_id}/explain")
            ask("GET", f"/jobs/{job_id}/explain", surface="console")
    for _ in range(50):
        body = {"executor_id": "e", "labels": {"lane": "outside"}}
        job = ask("POST", "/jobs/claim", body)
        ask("PUT", f"/jobs/{job['id']}/fail", {"executor_id": "e", "error_message": "no"})
    ask("POST", "/jobs/bulk/cancel", {"job_ids": ids})
    ask("POST", "/jobs/bulk/cancel", {"job_ids": ["x" * 240] * 1000})


def pages_far_down(ask: Ask) -> None:
    for priority in ("foreground", "background", "best_effort"):
        for _ in range(4):
            ask.bulk([ask.waiting(type=f"t{i % 50}") | {"priority": priority} for i in range(1000)])
    ask.begin()
    for offset in range(0, 12_000, 1500):
        for query in ("", "&status=pending", "&type=t7", "&priority=background"):
            ask("GET", f"/jobs?limit=1000&offset={offset}{query}")


def blobs_of_64_mib(ask: Ask) -> None:
    data = os.urandom(64 * 2**20)
    ask.begin()
    stored = ask("PUT", "/blobs", data, surface="console")
    ask("GET", f"/blobs/{stored['sha256']}", surface="console")


SCENARIOS: tuple[Callable[[Ask], None], ...] = (
    bulk_of_1000_small,
    bulk_of_1000_at_4_kb,
    bulk_of_20_at_200_kb,
    bulk_with_many_parts,
    submit_of_200_kb,
    complete_with_8_mib,
    pages_of_1000_small,
    pages_of_1000_fat,
    details_and_explanations,
    metrics_of_1000_types,
    a_thousand_executors,
    bulk_cancel_of_1000,
    two_thousand_processes,
    jobs_that_write_much,
    outputs_that_are_no_text,
    complete_with_odd_texts,
    bodies_that_are_refused,
    console_submits_of_200_kb,
    heads_at_their_limits,
    jobs_of_many_parts,
    pages_far_down,
    blobs_of_64_mib,
)


if __name__ == "__main__":
    main()
