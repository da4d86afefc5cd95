"""Process trees without cgroups: who descends from a job, as /proc tells it.

A process belongs to an attempt when it is in the session that the job began with, carries the
attempt's tag in its environment, or has an ancestor that does. Used where no cgroup can be had, and
to find what a runner that was killed has left behind.
"""

from __future__ import annotations

import os

from swarmd.runner.orders import ATTEMPT_VARIABLE

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
ENVIRON_BYTES_MAX = 4 * 1024 * 1024


class Process:
    __slots__ = ("parent", "session", "since_ns", "zombie")

    def __init__(self, stat: bytes) -> None:
        fields = stat.rpartition(b")")[2].split()
        self.zombie = fields[0] in (b"Z", b"X")
        self.parent = int(fields[1])
        self.session = int(fields[3])
        self.since_ns = int(fields[19]) * (1_000_000_000 // _TICKS_PER_S)


def scan() -> dict[int, Process]:
    """Every process that can be seen, the dead but unreaped left out."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                process = Process(_slurp(f"/proc/{name}/stat", 4096))
            except (OSError, IndexError, ValueError):
                continue
            if not process.zombie:
                found[int(name)] = process
    return found


def tag_of(pid: int) -> str:
    """The attempt's tag in a process's environment as it was at its exec, or nothing."""
    try:
        environ = _slurp(f"/proc/{pid}/environ", ENVIRON_BYTES_MAX)
    except OSError:
        return ""
    prefix = ATTEMPT_VARIABLE.encode() + b"="
    for item in environ.split(b"\0"):
        if item.startswith(prefix):
            return item[len(prefix) :].decode("ascii", "replace")
    return ""


def with_descendants(processes: dict[int, Process], roots: set[int]) -> set[int]:
    """The roots that live, and all that descends from any of them."""
    children: dict[int, list[int]] = {}
    for pid, process in processes.items():
        children.setdefault(process.parent, []).append(pid)
    found: set[int] = set()
    todo = list(roots)
    while todo:
        pid = todo.pop()
        if pid not in found:
            found.add(pid)
            todo += children.get(pid, ())
    return found & processes.keys()


def own_children() -> list[int]:
    """Direct children of this process, orphans of its descendants among them."""
    me = os.getpid()
    try:
        return [int(pid) for pid in _slurp(f"/proc/self/task/{me}/children", 1 << 20).split()]
    except OSError:
        return [pid for pid, process in scan().items() if process.parent == me]


def _slurp(path: str, size_max: int) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts, left = [], size_max
        while left > 0 and (data := os.read(fd, min(left, 65536))):
            parts.append(data)
            left -= len(data)
        return b"".join(parts)
    finally:
        os.close(fd)
