"""Work that moves, with real daemons: hosts that die whole, and jobs that tell when they ran.

A job writes down the time, twenty times a second, into a file of its attempt's own: whether two
of them ever ran at once is read there, not asked of anybody.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from swarmd.state.versions import VERSION_KEY
from tests.daemon import runner_pids
from tests.swarms import Node, Swarm, until

BEAT_S = 0.05
SCRIPT = "for n in $(seq {beats}); do date +%s.%N >> {trace}/$SWARMD_ATTEMPT; sleep 0.05; done"
VERSION_WITH_LEASES = 2


@dataclass(frozen=True)
class Span:
    """When an attempt ran, by its own word."""

    name: str
    first: float
    last: float


class Moving:
    """A job, and the traces of its attempts."""

    def __init__(self, swarm: Swarm, folder: Path, length_s: float = 600.0, **more: object) -> None:
        self.swarm = swarm
        self.trace = folder / f"trace-{time.monotonic_ns()}"
        self.trace.mkdir()
        self.trace.chmod(0o777)  # jobs may run as another account
        script = SCRIPT.format(beats=int(length_s / BEAT_S), trace=self.trace)
        self.id = swarm.up()[0].run(script, **more)

    def cancel(self) -> None:
        self.swarm.up()[0].console("POST", f"/jobs/{self.id}/cancel")

    def spans(self) -> list[Span]:
        found = []
        for file in self.trace.iterdir():
            # What is being written may lack its end.
            lines = [line for line in file.read_text().split("\n")[:-1] if line]
            if lines:
                found.append(Span(file.name, float(lines[0]), float(lines[-1])))
        return sorted(found, key=lambda span: span.first)

    def seen(self, at: Node | None = None) -> dict[str, object]:
        node = at or self.swarm.up()[0]
        answer: dict[str, object] = node.console("GET", f"/jobs/{self.id}")
        return answer

    def host(self) -> Node:
        """Where it runs, once it does and says so."""

        def running() -> Node | None:
            job = self.seen()
            return self.swarm[str(job["node"])] if job["status"] == "running" else None

        found = until(running, "the job does not run")
        until(self.spans, "the job writes nothing")
        return found

    def moved_after(self, struck: float, timeout_s: float) -> float:
        """How long after a time another attempt began."""
        until(lambda: len(self.spans()) >= 2, "the job did not move", timeout_s)
        self.check()
        return self.spans()[-1].first - struck

    def check(self) -> None:
        """No attempt began before the one before it had ended."""
        spans = self.spans()
        for before, after in itertools.pairwise(spans):
            assert after.first > before.last, f"two at once: {spans}"


def wait_for_leases(swarm: Swarm) -> None:
    def in_force() -> bool:
        return all(_version(node) >= VERSION_WITH_LEASES for node in swarm.up())

    until(in_force, "leases do not come into force")


def _version(node: Node) -> int:
    with contextlib.closing(node.state()) as conn:
        row = conn.execute("SELECT value FROM settings WHERE key = ?", (VERSION_KEY,)).fetchone()
    return 1 if row is None else int(row[0])


def job_on(swarm: Swarm, folder: Path, wanted: Node, **more: object) -> Moving:
    """A job that runs on a certain node, and may run on others."""
    others: list[Moving] = []
    for _ in range(10):
        job = Moving(swarm, folder, **more)  # type: ignore[arg-type]
        if job.host() is wanted:
            for other in others:
                other.cancel()
            return job
        others.append(job)  # it takes up a slot where the next would go as well
    raise AssertionError(f"no job comes to {wanted.name}")


def kill_host(node: Node) -> float:
    """The daemon, its runner and what that runs, by SIGKILL, as where the power goes; when."""
    runners = runner_pids(node.data_dir)
    below = _below(set(runners))
    struck = time.time()
    for pid in (node.daemon.process.pid, *runners, *below):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.daemon.kill()
    return struck


def _below(roots: set[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                fields = (entry / "stat").read_bytes().rpartition(b")")[2].split()
                parents[int(entry.name)] = int(fields[1])
    found = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found - roots
