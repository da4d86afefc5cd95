"""A swarm under load that loses its leader: how soon others write, and what became of every job.

Shared by the proof and by the benchmark. A time is counted from the blow to the first answer of a
write that was asked for after it, by a client that knows one survivor and has a connection there.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType

from tests.durability import JobSeen, check_jobs, check_state
from tests.load import OUTSIDE, QUICK, SHELL, Client, Load, Lost, drain
from tests.netns import Network
from tests.swarms import Node, Swarm, running_swarm

SLOTS = 3
WRITE_S_MAX = 180.0
WRITE_EVERY_S = 0.005
SETTLE_S = 0.3


@dataclass
class Outage:
    """How long each survivor's client waited for its first write after a blow."""

    waited_s: dict[str, float]

    @property
    def first_s(self) -> float:
        return min(self.waited_s.values())

    @property
    def last_s(self) -> float:
        return max(self.waited_s.values())


@dataclass
class Tried:
    """A swarm and its load, with what was measured."""

    swarm: Swarm
    load: Load
    seed: int
    trace: Path
    outages: list[Outage] = field(default_factory=list)

    def blow(self, struck: Node, strike: Callable[[], None]) -> Outage:
        """Strike the leader, and measure at the others."""
        survivors = [node for node in self.swarm.up() if node is not struck]
        outage = Outage(_first_writes(self.load, survivors, strike, len(self.outages)))
        self.outages.append(outage)
        return outage

    def drain(self) -> None:
        """Wait until nothing waits or runs any more."""
        drain(lambda: self.swarm.up()[0].ask("GET", "/admin/stats")["jobs_by_status"])

    def check(self) -> list[JobSeen]:
        """After the end: every replica is whole and equal; every acknowledged job is there, ended,
        and was run by one at a time: by another only where its node was away past its lease."""
        self.swarm.check_replicas()
        state = self.swarm.nodes[0].data_dir / "state.db"
        check_state(state)
        return check_jobs(state, self.trace, self.load, recoveries=True)


@contextmanager
def swarm_under_load(
    folder: Path, seed: int, *, quick: bool = True, first: int = 1,
    mesh: Mapping[str, object] = MappingProxyType({}),
) -> Iterator[Tried]:  # fmt: skip
    """Load on every node for the block; then all of it is worked off, and all have stopped."""
    trace = folder / "trace"
    trace.touch()
    trace.chmod(0o666)  # jobs may run as another account
    with running_swarm(folder, first=first, jobs={"slots": SLOTS}, mesh=mesh) as swarm:
        blobs = swarm.upload(QUICK, SHELL)
        load = Load([node.place for node in swarm.nodes], trace, blobs, seed)
        tried = Tried(swarm, load, seed, trace)
        with load.running(quick=quick):
            yield tried
            load.stop_submitting()
            tried.drain()
        swarm.stop()


def kill_leaders(tried: Tried, times: int) -> None:
    """kill -9, at random moments; each comes back, and may be killed again."""
    rng = random.Random(tried.seed)
    for number in range(times):
        time.sleep(rng.uniform(0.2, 1.2))
        leader = tried.swarm.leader()
        tried.blow(leader, leader.kill)
        for node in tried.swarm.up():
            # What a person submits: a program that every node has.
            token = f"plain-{number}-{node.name}"
            job_id = node.run("true", type="quick", labels={"token": token})
            tried.load.acknowledge(job_id, token)
        leader.start()


def cut_leaders(tried: Tried, network: Network, times: int) -> None:
    """Cut each off from the others in silence, and heal that once they have another."""
    swarm = tried.swarm
    for _ in range(times):
        leader = swarm.leader()
        others = [node for node in swarm.nodes if node is not leader]
        cut = partial(network.cut, leader.address, *(node.address for node in others))
        tried.blow(leader, cut)
        assert swarm.leader(others) is not leader
        network.heal()
        swarm.wait_whole()


def _first_writes(
    load: Load, survivors: Sequence[Node], strike: Callable[[], None], number: int
) -> dict[str, float]:
    """By survivor, how long after the strike a write is answered that was asked for after it."""
    struck = threading.Event()
    began = 0.0
    answered: dict[str, float] = {}

    def write(node: Node) -> None:
        with closing(Client([node.place])) as client:
            client.ask("GET", "/api/v1/health")  # so that the connection stands
            connected.release()
            struck.wait(WRITE_S_MAX)
            if load.write(client, f"after-blow-{number}-{node.name}"):
                answered[node.name] = time.monotonic() - began

    connected = threading.Semaphore(0)
    threads = [threading.Thread(target=write, args=(node,), daemon=True) for node in survivors]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert connected.acquire(timeout=WRITE_S_MAX), "a survivor did not answer before the blow"
    began = time.monotonic()
    strike()
    struck.set()
    for thread in threads:
        thread.join(WRITE_S_MAX)
    assert len(answered) == len(survivors), f"no write passed through all: {answered}"
    return answered


@dataclass
class Handover:
    """What clients of the others saw while a leader was stopped."""

    gap_s: float
    """The longest time in which one of them, who wrote all the time, was not answered."""
    failed: list[str]
    written: int


def stop_leader(swarm: Swarm, round_number: int) -> Handover:
    """SIGTERM to the leader, while clients of the others write without pause; it is then started
    again."""
    leader = swarm.leader()
    going = threading.Event()
    going.set()
    seen = Handover(0.0, [], 0)
    lock = threading.Lock()

    def write(node: Node) -> None:
        with closing(Client([node.place])) as client:
            before = time.monotonic()
            number = 0
            while going.is_set():
                number += 1
                job = {"type": "never", "binary_url": "http://localhost/none", "binary_sha256":
                       "0" * 64, "priority": "background", "constraints": [OUTSIDE],
                       "labels": {"token": f"{round_number}-{node.name}-{number}"}}  # fmt: skip
                try:
                    status, said = client.ask("POST", "/api/v1/jobs", job)
                except Lost as lost:
                    status, said = 0, lost
                now = time.monotonic()
                with lock:
                    seen.gap_s = max(seen.gap_s, now - before)
                    if status == 201:
                        seen.written += 1
                    elif len(seen.failed) < 10:
                        seen.failed.append(f"{node.name}: {status} {said}")
                before = now
                time.sleep(WRITE_EVERY_S)

    others = [node for node in swarm.up() if node is not leader]
    threads = [threading.Thread(target=write, args=(n,), daemon=True) for n in others]
    for thread in threads:
        thread.start()
    try:
        time.sleep(SETTLE_S)
        leader.stop()
        time.sleep(SETTLE_S)
    finally:
        going.clear()
        for thread in threads:
            thread.join(WRITE_S_MAX)
    leader.start()
    return seen


def figures(outages: Sequence[Outage]) -> str:
    """For people: what each blow cost, in milliseconds."""
    firsts = ", ".join(f"{outage.first_s * 1000:.0f}" for outage in outages)
    lasts = ", ".join(f"{outage.last_s * 1000:.0f}" for outage in outages)
    return f"first write after (ms): {firsts}; through every survivor: {lasts}"
