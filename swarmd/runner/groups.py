"""The cgroups of one attempt: its members, its bounds, and what the kernel counted of it.

While a launcher is inside, one more process fits and no quota counts, which could stall it; memory
counts from the beginning. Right after it has left the exact bounds are set: a job may have forked
one too many until then.
"""

from __future__ import annotations

import contextlib
import os
import signal

from swarmd.runner.hierarchy import members, open_file, read_text, remove, write_text
from swarmd.runner.orders import Order

LEFT_BYTES_MAX = 1 << 20
"""Memory that the jobs before may have left charged to a cgroup that is used again."""
PERIOD_US = 100_000
QUOTA_US_MIN = 1000
PIDS_MAX = 1 << 22
"""More than this the kernel will not have as a bound."""
WORDS = {"memory": "memory", "cpu": "cpus", "pids": "pids"}
"""Of a controller, as orders and notes call what it bounds."""

Limits = tuple[int | None, float | None, int | None]
"""Of memory, CPUs and processes."""


class Group:
    """Of its paths the tracking one is the first."""

    def __init__(self, paths: list[str], unified: bool) -> None:
        self.paths = paths
        self.unified = unified
        """The first path is a v2 cgroup."""
        self.limited = False
        self.doubtful = False
        self.kept_for: Limits | None = None
        """The limits that it has for good, once empty; None where it is used once."""
        self._bounds: dict[str, tuple[int, bytes, bytes]] = {}
        """Of a controller: its file, what bounds the job, and what leaves room for its launcher."""
        self._oom_kills = -1
        self._oom_kills_before = 0
        self._usage = -1
        self.enter = [open_file(f"{path}/cgroup.procs", os.O_WRONLY) for path in paths]
        self._events = open_file(f"{paths[0]}/cgroup.events", os.O_RDONLY) if unified else -1

    def empty(self) -> bool:
        if self.unified:
            return b"populated 0" in os.pread(self._events, 256, 0)
        return all(read_text(f"{path}/cgroup.procs") in ("", None) for path in self.paths)

    def pids(self) -> set[int]:
        return {pid for path in self.paths[: 1 if self.unified else None] for pid in members(path)}

    def kill(self) -> None:
        """SIGKILL all members. To be repeated until empty: without cgroup.kill a fork may win."""
        if self.unified:
            try:
                write_text(f"{self.paths[0]}/cgroup.kill", "1")
                return
            except FileNotFoundError:
                pass
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        for pid in self.pids() - {os.getpid()}:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def oom_kills(self) -> int:
        """How many of this attempt's processes the kernel killed for memory."""
        try:
            return self._count_oom_kills() - self._oom_kills_before
        except OSError:
            return 0

    def _count_oom_kills(self) -> int:
        if self._oom_kills >= 0:
            for line in os.pread(self._oom_kills, 4096, 0).splitlines():
                key, _, value = line.partition(b" ")
                if key == b"oom_kill":
                    return int(value)
        return 0

    def limit(self, what: str, path: str, version: int, order: Order) -> None:
        """Prepare one controller's bound; OSError where the kernel will not have it."""
        self.limited = True
        if what == "pids":
            pids = order.pids or 1
            self._bound(what, f"{path}/pids.max", str(pids), str(min(pids + 1, PIDS_MAX)))
        elif what == "cpu":
            quota = max(QUOTA_US_MIN, round((order.cpus or 0) * PERIOD_US))
            if version == 2:
                self._bound(what, f"{path}/cpu.max", f"{quota} {PERIOD_US}", f"max {PERIOD_US}")
            else:
                write_text(f"{path}/cpu.cfs_period_us", str(PERIOD_US))
                self._bound(what, f"{path}/cpu.cfs_quota_us", str(quota), "-1")
        else:
            new, swap, events, usage = (
                ("max", "swap.max", "events", "current")
                if version == 2
                else ("limit_in_bytes", "memsw.limit_in_bytes", "oom_control", "usage_in_bytes")
            )
            bound = str(order.memory_bytes)
            write_text(f"{path}/memory.{new}", bound)
            with contextlib.suppress(FileNotFoundError):
                write_text(f"{path}/memory.{swap}", "0" if version == 2 else bound)
            self._oom_kills = open_file(f"{path}/memory.{events}", os.O_RDONLY)
            self._usage = open_file(f"{path}/memory.{usage}", os.O_RDONLY)

    def _bound(self, what: str, path: str, held: str, lifted: str) -> None:
        self._bounds[what] = (open_file(path, os.O_WRONLY), held.encode(), lifted.encode())

    def lift(self) -> None:
        """Make room for a launcher: one more process, and no quota that could stall it."""
        for fd, _, lifted in self._bounds.values():
            os.write(fd, lifted)

    def hold(self) -> list[str]:
        """Set the bounds of processes and CPU; answer notes on those that cannot be kept."""
        notes = []
        for what, (fd, held, _) in self._bounds.items():
            try:
                os.write(fd, held)
            except OSError as exc:
                self.kept_for = None
                notes.append(f"{WORDS[what]} limit not enforced: {exc.strerror}")
        return notes

    def renew(self) -> bool:
        """Make an empty group ready for another attempt with the same limits; False: it cannot."""
        try:
            if self._usage >= 0 and int(os.pread(self._usage, 32, 0)) > LEFT_BYTES_MAX:
                return False
            self._oom_kills_before = self._count_oom_kills()
        except OSError:
            return False
        return True

    def close(self) -> None:
        bounds = [fd for fd, _, _ in self._bounds.values()]
        for fd in (*self.enter, self._events, self._oom_kills, self._usage, *bounds):
            if fd >= 0:
                os.close(fd)
        self.enter, self._bounds = [], {}
        self._events = self._oom_kills = self._usage = -1
        for path in self.paths:
            remove(path)
