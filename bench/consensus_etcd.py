"""etcd beside the swarm: three members on loopback with fsync, driven over gRPC by one process.

The driver speaks HTTP/2 by itself, with a handful of connections and many streams on each, and does
for each answer no more than find the stream's end and send the next request, so that etcd is what
is measured. What the driver costs is printed too. Member processes are ended with the measurement.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from bench.facts import cpu_ms, table
from bench.http2 import Client

NAMES = ("a", "b", "c")
START_S_MAX = 20.0
KEYS = 10_000
VALUE_BYTES = 128
CONNECTIONS = 8
COLUMNS = (
    "what", "asked", "in flight", "a second", "p50 ms", "p99 ms", "max ms", "CPU-µs each",
    "driver's", "errors",
)  # fmt: skip
PUT, RANGE = "/etcdserverpb.KV/Put", "/etcdserverpb.KV/Range"


def measure(folder: Path, seconds: float) -> None:
    program, control = shutil.which("etcd"), shutil.which("etcdctl")
    if program is None or control is None:
        print("missing: etcd-server and etcd-client are Debian's packages of it")
        return
    said = subprocess.run([program, "--version"], capture_output=True, check=True).stdout
    print(said.decode().splitlines()[0])
    with _open_members(program, control, folder) as swarm:
        leader, follower = swarm.leader, swarm.follower
        _drive(swarm, leader, PUT, 256, 2.0)
        rows = [
            _row(swarm, what, port, "leader" if port == leader else "follower", clients, seconds)
            for what, port, clients in (
                ("put", leader, 1),
                ("put", leader, 64),
                ("put", leader, 1000),
                ("put", leader, 1024),
                ("put", follower, 1),
                ("put", follower, 64),
                ("put", follower, 1024),
                ("read", leader, 1),
                ("read", leader, 64),
                ("read", follower, 1),
                ("read", follower, 64),
            )
        ]
    print(table(COLUMNS, rows))


class Members:
    def __init__(self, control: str, ports: list[int], pids: list[int]) -> None:
        self._control, self._ports, self.pids = control, ports, pids
        until = time.monotonic() + START_S_MAX
        while not (found := self.standing()) or not all(each["leader"] for each in found):
            if time.monotonic() > until:
                raise SystemExit("the three members of etcd did not come together")
            time.sleep(0.1)
        at = next(i for i, each in enumerate(found) if each["member"] == each["leader"])
        self.leader, self.follower = ports[at], ports[at - 1]

    def standing(self) -> list[dict[str, int]]:
        """Of each member; empty where not all of them answer."""
        where = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        done = subprocess.run(
            [self._control, "--endpoints", where, "endpoint", "status", "-w", "json"],
            env={**os.environ, "ETCDCTL_API": "3"}, capture_output=True, check=False,
        )  # fmt: skip
        if done.returncode:
            return []
        return [
            {
                "member": each["Status"]["header"]["member_id"],
                "leader": each["Status"].get("leader", 0),
                "applied": each["Status"].get("raftAppliedIndex", 0),
            }
            for each in json.loads(done.stdout)
        ]

    def settle(self) -> None:
        """All three have applied the same."""
        until = time.monotonic() + START_S_MAX
        while len({each["applied"] for each in self.standing()}) != 1:
            if time.monotonic() > until:
                raise SystemExit("the members of etcd do not come to the same index")

    def cpu_ms(self) -> float:
        return sum(map(cpu_ms, self.pids))


def _row(
    swarm: Members, what: str, port: int, asked: str, clients: int, seconds: float
) -> list[str]:
    swarm.settle()
    before, start = swarm.cpu_ms(), time.perf_counter()
    found = _drive(swarm, port, PUT if what == "put" else RANGE, clients, seconds)
    if what == "put":
        swarm.settle()
    done, took_s = found["done"], time.perf_counter() - start
    return [
        what, asked, f"{clients:,}", f"{done / took_s:,.0f}",
        *(f"{found[key]:.2f}" for key in ("p50_ms", "p99_ms", "max_ms")),
        f"{(swarm.cpu_ms() - before) / done * 1000:.0f}", f"{found['cpu_ms'] / done * 1000:.0f}",
        str(found["errors"]),
    ]  # fmt: skip


def _drive(swarm: Members, port: int, path: str, clients: int, seconds: float) -> Any:
    """In a process of its own, as a client is."""
    order = json.dumps([port, path, clients, seconds])
    code = "import sys; from bench.consensus_etcd import drive; drive(sys.argv[1])"
    done = subprocess.run(
        [sys.executable, "-c", code, order], stdout=subprocess.PIPE, check=True
    )  # fmt: skip
    return json.loads(done.stdout)


def drive(order: str) -> None:
    port, path, clients, seconds = json.loads(order)
    numbers = count(time.time_ns())
    body = _put if path == PUT else _range
    with Client(("127.0.0.1", port), path, min(CONNECTIONS, clients)) as client:
        client.run(lambda: body(next(numbers)), clients, 0.2)
        began = time.process_time()
        found = client.run(lambda: body(next(numbers)), clients, seconds)
        found["cpu_ms"] = (time.process_time() - began) * 1000
    print(json.dumps(found))


def _put(number: int) -> bytes:
    """A PutRequest: field 1 is the key, field 2 the value."""
    return b"\x0a\x0b" + _key(number) + b"\x12\x80\x01%0*d" % (VALUE_BYTES, number)


def _range(number: int) -> bytes:
    """A RangeRequest of one key; linearizable is what it asks for where it says nothing."""
    return b"\x0a\x0b" + _key(number)


def _key(number: int) -> bytes:
    return b"bench/%05d" % (number * 7919 % KEYS)


@contextmanager
def _open_members(program: str, control: str, folder: Path) -> Iterator[Members]:
    ports = _free_ports(2 * len(NAMES))
    clients, peers = ports[: len(NAMES)], ports[len(NAMES) :]
    everyone = ",".join(
        f"{name}=http://127.0.0.1:{port}" for name, port in zip(NAMES, peers, strict=True)
    )
    with ExitStack() as stack:
        pids: list[int] = []
        for name, client, peer in zip(NAMES, clients, peers, strict=True):
            urls = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            process = subprocess.Popen(
                [program, "--name", name, "--data-dir", str(folder / name),
                 "--listen-client-urls", urls[0], "--advertise-client-urls", urls[0],
                 "--listen-peer-urls", urls[1], "--initial-advertise-peer-urls", urls[1],
                 "--initial-cluster", everyone, "--initial-cluster-token", folder.name],
                stdout=log, stderr=log,
            )  # fmt: skip
            stack.callback(_end, process)
            pids.append(process.pid)
        yield Members(control, clients, pids)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_ports(wanted: int) -> list[int]:
    with ExitStack() as stack:
        socks = [stack.enter_context(socket.socket()) for _ in range(wanted)]
        for sock in socks:
            sock.bind(("127.0.0.1", 0))
        return [sock.getsockname()[1] for sock in socks]
