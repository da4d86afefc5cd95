"""pysyncobj beside the swarm: three members that keep a journal in a mapped file.

It never calls fsync or msync while it runs, so what it acknowledges is in the page cache alone: its
figures are shown for the cost of agreement, not for that of durability. `member` runs in whatever
interpreter has the package, so it uses nothing of ours and nothing newer than that.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

START_S_MAX = 20.0
VALUE_BYTES = 128
KEYS = 10_000
COLUMNS = (
    "what", "asked", "in flight", "a second", "p50 ms", "p99 ms", "max ms", "CPU-µs each", "errors",
)  # fmt: skip


def measure(interpreter: str, folder: Path, seconds: float) -> None:
    from bench.consensus_etcd import _end, _free_ports  # not in `member`'s interpreter
    from bench.facts import cpu_ms, table

    found = subprocess.run(
        [interpreter, "-c", "import pysyncobj; from importlib.metadata import version;"
         " print(version('pysyncobj'))"],
        capture_output=True, check=False,
    )  # fmt: skip
    if found.returncode:
        print(f"missing: {interpreter} has no pysyncobj; name one that has it with --pysyncobj")
        return
    print("pysyncobj", found.stdout.decode().strip(), "(its journal is never fsynced)")
    addresses = [f"127.0.0.1:{port}" for port in _free_ports(3)]
    rows = []
    with ExitStack() as stack:
        members = []
        for at, address in enumerate(addresses):
            order = [str(folder / f"{at}.journal"), address, *addresses[:at], *addresses[at + 1 :]]
            process = subprocess.Popen(
                [interpreter, "-c", "import sys; from bench.consensus_pysyncobj import member;"
                 " member(sys.argv[1:])", *order],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )  # fmt: skip
            stack.callback(_end, process)
            members.append(process)
        leads = [_ask(each, {"do": "lead"}) for each in members]
        if len({each["leader"] for each in leads}) != 1 or leads[0]["leader"] is None:
            print(f"it did not survive: the members do not agree on a leader ({leads})")
            return
        leader = members[addresses.index(leads[0]["leader"])]
        for clients in (1, 64, 1000, 1024):
            before, start = sum(cpu_ms(each.pid) for each in members), time.perf_counter()
            drove = _ask(leader, {"do": "put", "clients": clients, "seconds": seconds})
            if drove is None:
                rows.append(["put", "leader", f"{clients:,}", "it ended", *[""] * 5])
                break
            done = drove["done"]
            for each in members:
                _ask(each, {"do": "applied", "count": drove["count"]})
            took_s = time.perf_counter() - start
            spent_ms = sum(cpu_ms(each.pid) for each in members) - before
            rows.append([
                "put", "leader", f"{clients:,}", f"{done / took_s:,.0f}",
                *(f"{drove[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")),
                f"{spent_ms / max(1, done) * 1000:.0f}", str(drove["errors"] or 0),
            ])  # fmt: skip
    print(table(COLUMNS, rows))


def _ask(process: subprocess.Popen[bytes], order: dict[str, Any]) -> Any:
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return None
    line = process.stdout.readline()
    return json.loads(line) if line else None


def member(argv: list[str]) -> None:
    """A member in this process, and its clients; orders on stdin, answers on stdout."""
    from pysyncobj import SyncObj, SyncObjConf, replicated  # type: ignore[import-not-found]

    class Values(SyncObj):  # type: ignore[misc]
        def __init__(self, journal: str, own: str, others: list[str]) -> None:
            super().__init__(own, others, SyncObjConf(journalFile=journal))
            self.values: dict[str, str] = {}
            self.count = 0

        @replicated  # type: ignore[untyped-decorator]
        def put(self, key: str, value: str) -> None:
            self.values[key] = value
            self.count += 1

    journal, own, *others = argv
    values = Values(journal, own, others)
    for line in sys.stdin:
        order = json.loads(line)
        until = time.monotonic() + START_S_MAX
        answer: dict[str, Any] = {}
        if order["do"] == "lead":
            while values._getLeader() is None and time.monotonic() < until:
                time.sleep(0.1)
            time.sleep(1.0)  # all of them are asked at once; who leads may still change
            leader = values._getLeader()
            answer = {"leader": None if leader is None else str(leader)}
        elif order["do"] == "applied":
            while values.count < order["count"] and time.monotonic() < until:
                time.sleep(0.002)
        else:
            answer = _drive(values, order["clients"], order["seconds"])
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    os._exit(0)


def _drive(values: Any, clients: int, seconds: float) -> dict[str, Any]:
    """Its own thread calls back; each answer asks for the next write."""
    took: list[float] = []
    errors: dict[str, int] = {}
    over = threading.Event()
    under_way = [clients]
    until = time.perf_counter() + seconds

    def ask(number: int) -> None:
        began = time.perf_counter()

        def answered(result: object, error: int) -> None:
            now = time.perf_counter()
            if error:
                errors[str(error)] = errors.get(str(error), 0) + 1
            else:
                took.append(now - began)
            if now < until:
                ask(number + 7919)
                return
            under_way[0] -= 1
            if not under_way[0]:
                over.set()

        value = f"{number:0{VALUE_BYTES}}"
        values.put(f"bench/{number % KEYS:05}", value, callback=answered)

    for client in range(clients):
        ask(client * 1_000_003)
    over.wait(seconds + START_S_MAX)
    ordered = sorted(took) or [0.0]
    return {
        "done": len(took), "count": values.count, "errors": errors,
        "p50_ms": ordered[len(ordered) // 2] * 1000,
        "p99_ms": ordered[int(len(ordered) * 0.99)] * 1000, "max_ms": ordered[-1] * 1000,
    }  # fmt: skip
