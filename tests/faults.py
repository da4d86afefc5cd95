"""Five real daemons as five hosts, what goes wrong between them, and what must hold all the while.

Each host has a network namespace, a small disk and a clock of its own; whoever asks them is at the
switch. A case strikes once, under load: who is on the side that can decide must serve soon, who is
not must say so, and after the healing, by which nobody touches a node, the jobs' own traces and
the files of all five are the witnesses.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from tests.daemon import SURFACES, Response, runner_pids, start_daemon
from tests.durability import check_jobs, check_state
from tests.load import JOIN_S_MAX, QUICK, SHELL, Client, Load, Place, drain
from tests.netns import Host, Switched, switched_network
from tests.parts import need
from tests.swarms import VOTERS, Node, Swarm, joining, until

HOSTS = 5
SERVES_S = 3.0
"""How soon after a fault the side that can decide must take writes."""
HEALS_S = 30.0
ASK_S_MAX = 60.0
"""A node without a quorum has said so by then."""
PROBE_EVERY_S = 0.2
TRACE_EVERY_S = 0.3
STEADY_S = 3.0
"""For so long after the healing nobody is called dead."""
DISK_BYTES = 128 << 20
ENDS_S = 30.0
"""A daemon whose disk is full has ended by then, under load."""
PORTS = {**SURFACES, "mesh": 8473}
ALWAYS_CLOSED = {"buildadmin"}
"""It takes the key, wherever it listens."""
_CLOCK = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>

static volatile long long *jump_s;
static int (*real)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
  const char *name = getenv("CLOCK_JUMP_FILE");
  int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
  void *at = fd < 0 ? MAP_FAILED : mmap(0, sizeof *jump_s, PROT_READ, MAP_SHARED, fd, 0);
  if (at != MAP_FAILED) jump_s = at;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  // Other libraries ask for the time while they are loaded, before it is our turn.
  if (!real) real = (int (*)(clockid_t, struct timespec *)) dlsym(RTLD_NEXT, "clock_gettime");
  int failed = real(clock, now);
  if (!failed && jump_s && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
    now->tv_sec += *jump_s;
  return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec told;
  int failed = clock_gettime(CLOCK_REALTIME, &told);
  now->tv_sec = told.tv_sec;
  now->tv_usec = told.tv_nsec / 1000;
  return failed;
}

time_t time(time_t *now) {
  struct timespec told;
  clock_gettime(CLOCK_REALTIME, &told);
  if (now) *now = told.tv_sec;
  return told.tv_sec;
}
"""
"""The kernel has no time of day for one process alone, and ours is everybody's: what a daemon asks
its C library for, be it for Python, SQLite or OpenSSL, is moved in between."""


class Clock:
    """What a daemon's time of day is moved by."""

    def __init__(self, file: Path, library: Path) -> None:
        file.write_bytes(bytes(8))
        with file.open("r+b") as opened:
            self._moved = mmap.mmap(opened.fileno(), 8)
        self.environment = {"LD_PRELOAD": str(library), "CLOCK_JUMP_FILE": str(file)}

    def jump(self, by_s: int) -> None:
        self._moved[:] = struct.pack("=q", by_s)


@dataclass
class HostNode(Node):
    """A node that is a host: it starts where its address is."""

    host: Host = field(kw_only=True)
    clock: Clock = field(kw_only=True)

    def start(self) -> None:
        assert not self.up
        with self.host.entered():
            self._daemon = start_daemon(
                self.folder, environment=self.clock.environment, **self.settings
            )

    @property
    def filler(self) -> Path:
        return self.data_dir / "filler"

    def fill_disk(self) -> None:
        room = os.statvfs(self.data_dir)
        with self.filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, room.f_bavail * room.f_frsize)

    def empty_disk(self) -> None:
        self.filler.unlink(missing_ok=True)

    def wait_ended(self, timeout_s: float) -> int:
        return self.daemon.process.wait(timeout_s)


class Book:
    """All that was acknowledged, over all cases. What check_jobs asks a load for."""

    def __init__(self) -> None:
        self.acknowledged: dict[str, str] = {}
        self.completed: set[str] = set()
        self.problems: list[str] = []


class CaseLoad(Load):
    """Of one case: its wishes have its name, and what it is told goes into the book."""

    def __init__(
        self, case: str, places: Sequence[Place], trace: Path, blobs: dict[Path, str], book: Book
    ) -> None:
        super().__init__(places, trace, blobs, seed=len(book.acknowledged))
        self._case = case
        self.acknowledged = book.acknowledged
        self.completed = book.completed
        self.problems = book.problems

    def _thread(self, name: str, *more: Any) -> threading.Thread:
        return super()._thread(f"{self._case}-{name}", *more)

    @property
    def begun(self) -> bool:
        return any(token.startswith(self._case) for token in list(self.acknowledged.values()))

    def job_outside(self, token: str) -> dict[str, Any]:
        return self._job("outside", token, keyed=True)


@dataclass
class Wait:
    """One write, from when it was asked for until it was acknowledged."""

    node: str
    asked_at: float
    took_s: float


@dataclass
class Seen:
    """What a case cost."""

    case: str
    first_s: dict[str, float] = field(default_factory=dict)
    """By node of the deciding side: the first write asked for after the strike."""
    waits: list[Wait] = field(default_factory=list)
    struck_at: float = 0.0
    refused_s: dict[str, float] = field(default_factory=dict)
    """How soon a node without a quorum says so."""
    whole_s: float = 0.0
    """From the healing on until every node sees a whole swarm."""

    @property
    def longest_s(self) -> float:
        return max((w.took_s for w in self.waits if w.asked_at + w.took_s > self.struck_at),
                   default=0.0)  # fmt: skip

    def __str__(self) -> str:
        parts = [f"{self.case}:"]
        if self.first_s:
            parts.append(f"first write {max(self.first_s.values()):.2f} s,"
                         f" longest {self.longest_s:.2f} s of {len(self.waits)};")  # fmt: skip
        if self.refused_s:
            parts.append(f"refused within {max(self.refused_s.values()):.2f} s;")
        return " ".join([*parts, f"whole again {self.whole_s:.2f} s after"])


class Five:
    """The swarm, its network, and the memory of all that was acknowledged."""

    def __init__(self, swarm: Swarm, network: Switched, trace: Path, voters: int) -> None:
        self.swarm = swarm
        self.network = network
        self.trace = trace
        self.voters = voters
        self.book = Book()
        self.blobs: dict[Path, str] = {}
        self.serves_s = SERVES_S
        self.heals_s = HEALS_S
        self.broken = False
        """A case failed: no other is to begin where it ended."""

    @property
    def nodes(self) -> list[HostNode]:
        return [node for node in self.swarm.nodes if isinstance(node, HostNode)]

    def leader(self) -> HostNode:
        found = self.swarm.leader()
        assert isinstance(found, HostNode)
        return found

    def but(self, *nodes: HostNode) -> list[HostNode]:
        return [node for node in self.nodes if node not in nodes]

    def roles(self) -> tuple[list[HostNode], list[HostNode]]:
        """Those who vote, the leader first, and those who do not."""
        leader = self.leader()
        rows = {row["name"]: row["role"] for row in leader.status()["nodes"]}
        voters = [node for node in self.but(leader) if rows[node.name] == "voter"]
        return [leader, *voters], [n for n in self.nodes if n is not leader and n not in voters]

    def term(self) -> int:
        return max(int(node.status()["term"]) for node in self.nodes)

    def wait_whole(self) -> None:
        def whole() -> bool:
            with ThreadPoolExecutor(HOSTS) as pool:
                return all(pool.map(partial(_sees_whole, voters=self.voters), self.nodes))

        until(whole, "not every node sees a whole swarm", self.heals_s)
        self.swarm.leader()

    # -- a case --------------------------------------------------------------------------------

    def case(
        self,
        name: str,
        strike: Callable[[], None],
        heal: Callable[[], None],
        *,
        deciding: Sequence[HostNode],
        cut_off: Sequence[HostNode] = (),
        hold: Callable[[], None] = lambda: None,
    ) -> Seen:
        """One fault from its strike to the end of the last job. `deciding` are nodes of the side
        that serves on, if there is one; those `cut_off` must refuse, and say why, which takes as
        long as a request waits for a leader. What else the fault has to last for is in `hold`."""
        seen = Seen(name)
        self.wait_whole()
        # Without a side that serves, the clients are everywhere, and go on as soon as they can.
        load = CaseLoad(
            name, [n.place for n in deciding or self.nodes], self.trace, self.blobs, self.book
        )
        with load.running(quick=False, long_every_s=TRACE_EVERY_S), self._guarded(name):
            with self._probing(load, seen, deciding) as going:
                until(
                    lambda: len(seen.waits) >= 2 * len(deciding) and load.begun,
                    "the load does not take hold",
                )
                self._strike(load, seen, strike, deciding)
                self._check_refusals(load, seen, cut_off)
                hold()
                heal()
                healed = time.monotonic()
                self.wait_whole()
                seen.whole_s = time.monotonic() - healed
                dead = self._deaths()
                time.sleep(STEADY_S)  # that nothing happens meanwhile is what is tried
                assert self._deaths() == dead, f"called dead after the healing\n{self.swarm.logs()}"
                self.wait_whole()
                going.clear()
            load.stop_submitting()
            self._drain()
        self._check_states()
        print(seen)
        if deciding:
            slow = {n: took for n, took in seen.first_s.items() if took > self.serves_s}
            assert not slow, f"served late: {slow}; {seen}"
        return seen

    @contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """A swarm in which a case failed is not used for the next."""
        try:
            yield
        except BaseException as failure:
            self.broken = True
            self.network.heal()  # or the load would hang on what is cut
            failure.add_note(f"case {name}, in {self.swarm.folder}; the logs end:"
                             f"\n{self.swarm.logs()}")  # fmt: skip
            raise

    @contextmanager
    def _probing(
        self, load: CaseLoad, seen: Seen, nodes: Sequence[HostNode]
    ) -> Iterator[threading.Event]:
        """Through each of the nodes a write now and then: the next when the last was answered."""
        going = threading.Event()
        going.set()

        def write(node: HostNode) -> None:
            number = 0
            with contextlib.closing(Client([node.place])) as client:
                while going.is_set():
                    number += 1
                    asked = time.monotonic()
                    if load.write(client, f"{seen.case}-probe-{node.name}-{number}"):
                        seen.waits.append(Wait(node.name, asked, time.monotonic() - asked))
                    time.sleep(PROBE_EVERY_S)

        threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in nodes]
        for thread in threads:
            thread.start()
        try:
            yield going
        finally:
            going.clear()
            for thread in threads:
                thread.join(JOIN_S_MAX)
                assert not thread.is_alive(), "a probe hangs"

    def _strike(
        self, load: CaseLoad, seen: Seen, strike: Callable[[], None], deciding: Sequence[HostNode]
    ) -> None:
        def first(node: HostNode) -> None:
            with contextlib.closing(Client([node.place])) as client:
                if load.write(client, f"{seen.case}-first-{node.name}"):
                    seen.first_s[node.name] = time.monotonic() - seen.struck_at

        seen.struck_at = time.monotonic()
        strike()
        if deciding:
            with ThreadPoolExecutor(len(deciding)) as pool:
                list(pool.map(first, deciding))
            assert len(seen.first_s) == len(deciding), f"not all serve: {seen.first_s}"

    def _check_refusals(self, load: CaseLoad, seen: Seen, nodes: Sequence[HostNode]) -> None:
        """Each says in words that it cannot write, and still tells what it sees."""

        def check(node: HostNode) -> None:
            began = time.monotonic()
            job = load.job_outside(f"{seen.case}-refused-{node.name}")
            answer = self._ask(node, "POST", "/jobs", job)
            assert answer.status == 503, (node.name, answer.status, answer.body)
            assert "voters" in answer.json["error"], answer.json
            seen.refused_s[node.name] = time.monotonic() - began
            began = time.monotonic()
            health = self._ask(node, "GET", "/health")
            assert (health.status, health.json["status"]) == (503, "unhealthy"), (node.name, health)
            for path in ("/status", "/nodes"):
                told = self._ask(node, "GET", path, surface="console")
                assert told.status == 200, (node.name, path, told)
                assert len(told.json["nodes"]) == HOSTS, (node.name, told.json)
            took_s = time.monotonic() - began
            assert took_s < self.serves_s, f"{node.name} is slow to tell what it sees"

        with ThreadPoolExecutor(max(1, len(nodes))) as pool:
            list(pool.map(check, nodes))

    def _ask(
        self, node: HostNode, method: str, path: str, body: object = None, *,
        surface: str = "jobqueue",
    ) -> Response:  # fmt: skip
        return node.request(method, path, body, surface=surface, timeout_s=ASK_S_MAX)

    def _deaths(self) -> int:
        """How often anybody was called dead, by any."""
        return sum(node.daemon.stderr().count("a member is dead") for node in self.nodes)

    def _drain(self) -> None:
        drain(lambda: self.leader().ask("GET", "/admin/stats")["jobs_by_status"])

    def _check_states(self) -> None:
        """All five are level and equal, and everything that was acknowledged is there."""

        def equal() -> bool:
            self.swarm.wait_level()
            return len({(node.applied(), node.dump()) for node in self.nodes}) == 1

        with self._guarded("the files of all"):
            until(equal, "the replicas differ", self.heals_s)
            for node in self.nodes:
                check_state(node.data_dir / "state.db")
            check_jobs(
                self.nodes[0].data_dir / "state.db", self.trace,
                self.book, recoveries=True,  # type: ignore[arg-type]
            )  # fmt: skip


def _sees_whole(node: HostNode, voters: int) -> bool:
    status = node.status()
    rows = status["nodes"]
    return (
        status["leader"] is not None
        and len(rows) == HOSTS
        and all(row["status"] == "alive" for row in rows)
        and sum(row["role"] == "voter" for row in rows) == voters
    )


@contextmanager
def five_hosts(folder: Path, voters: int = VOTERS) -> Iterator[Five]:
    """A whole swarm of five hosts. Nothing of it is left, neither processes nor mounts."""
    need("root", "netns", "cc")
    library = clock_library(folder)
    trace = folder / "trace"
    trace.touch()
    trace.chmod(0o666)  # jobs may run as another account
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(switched_network(HOSTS))
        swarm = Swarm(folder)
        for number, host in enumerate(network.hosts, 1):
            own = folder / f"n{number}"
            (own / "data").mkdir(parents=True)
            stack.enter_context(_small_disk(own / "data"))
            clock = Clock(own / "clock", library)
            swarm.nodes.append(
                HostNode(f"n{number}", host.address, own, _settings(number, host, voters),
                         host=host, clock=clock)
            )  # fmt: skip
        stack.callback(_end, swarm)
        with network.entered():
            first, *others = swarm.nodes
            first.start()
            for node in others:
                node.settings = joining(node.settings, first)
            swarm.start(*others)
            five = Five(swarm, network, trace, voters)
            five.wait_whole()
            five.blobs = swarm.upload(QUICK, SHELL)
        yield five


def _settings(number: int, host: Host, voters: int) -> dict[str, Any]:
    return {
        "node": {"name": f"n{number}", "bind": [host.address]},
        "mesh": {"port": PORTS["mesh"], "voters": voters},
        **{
            f"surfaces__{name}": {"port": PORTS[name], "open": name not in ALWAYS_CLOSED}
            for name in SURFACES
        },
        "jobs": {"slots": 2, "grace_s": 1.0},
    }


def _end(swarm: Swarm) -> None:
    with ThreadPoolExecutor(HOSTS) as pool:
        list(pool.map(Node.end, swarm.nodes))
    left = [pid for node in swarm.nodes for pid in runner_pids(node.data_dir)]
    assert not left, f"runners are left: {left}"


@contextmanager
def _small_disk(at: Path) -> Iterator[None]:
    options = f"size={DISK_BYTES},mode=700"
    _run("mount", "-t", "tmpfs", "-o", options, "swarmd-test", str(at))
    try:
        yield
    finally:
        _run("umount", "--lazy", str(at))


def clock_library(folder: Path) -> Path:
    source, library = folder / "clock.c", folder / "clock.so"
    source.write_text(_CLOCK)
    _run("cc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl")
    return library


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
