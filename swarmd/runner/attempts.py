"""Attempts: what one started process and its tree are, from fork to the record of their end.

An attempt has ended when its whole tree is gone, not when its first process is.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from typing import Any

from swarmd.runner import trees
from swarmd.runner.groups import Group
from swarmd.runner.orders import NS_PER_MS, Order
from swarmd.runner.outputs import Output
from swarmd.runner.wire import dumps

CLEAR_S_MAX = 10


class Attempt:
    __slots__ = (
        "clear_by_ns", "error", "group", "kill_ns", "lease_ns", "notes", "oom_kills", "order",
        "outputs", "pid", "reason", "started_ns", "status", "tag", "timeout_ns", "usage",
    )  # fmt: skip

    def __init__(self, order: Order, tag: str, now_ns: int) -> None:
        self.order = order
        self.tag = tag
        self.pid = 0
        self.started_ns = now_ns
        self.group: Group | None = None
        self.notes: list[str] = []
        self.reason = ""
        """Why it was told to end; empty where it ended by itself."""
        self.error = ""
        self.status: int | None = None
        """As wait told it, once the first process is gone."""
        self.usage: Any = None
        self.oom_kills = 0
        self.outputs: list[Output] = []
        self.kill_ns: int | None = None
        self.clear_by_ns: int | None = None
        self.timeout_ns: int | None = None
        self.lease_ns = order.lease_ns
        if order.timeout_ms is not None:
            self.timeout_ns = now_ns + order.timeout_ms * NS_PER_MS

    def due_ns(self) -> int | None:
        """When something has to be done about it, apart from its own end. Its lease may run out
        while it is ending, too."""
        first = self.timeout_ns if self.kill_ns is None else self.kill_ns
        dues = [due for due in (first, self.lease_ns) if due is not None]
        return min(dues) if dues else None

    def end(self, reason: str, grace_ms: int, now_ns: int) -> None:
        """SIGTERM to the tree now, SIGKILL after the grace. A second call only shortens that."""
        kill_ns = now_ns + grace_ms * NS_PER_MS
        if self.kill_ns is not None:
            self.kill_ns = min(self.kill_ns, kill_ns)
            return
        self.reason = self.reason or reason
        self.kill_ns = kill_ns
        if grace_ms:
            self._signal(signal.SIGTERM)

    def of_its_group(self, pid: int) -> bool:
        """Whether a process, dead and unreaped perhaps, is in its tracking group."""
        if self.group is None:
            return False
        with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="utf-8") as file:
            name = "/" + "/".join(self.group.paths[0].rsplit("/", 2)[1:])
            return any(line.startswith("0::") and line.rstrip("\n").endswith(name) for line in file)
        return False

    def empty(self, mains: dict[int, Attempt]) -> bool:
        if self.group is not None:
            return self.group.empty()
        if all(pid in mains for pid in trees.own_children()):
            return True
        return not self._members(mains)

    def kill(self) -> None:
        if self.group is not None and not self.group.doubtful:
            self.group.kill()
        else:
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        if self.group is not None:
            self.group.signal(number)
            return
        for pid in self._members({}):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _members(self, mains: dict[int, Attempt]) -> set[int]:
        """Of what descends from the runner: our session, our tag, and what comes of those."""
        processes = trees.scan()
        me = os.getpid()
        ours = trees.with_descendants(processes, {me}) - {me}
        others = {pid for pid, attempt in mains.items() if attempt is not self}
        roots = {
            pid
            for pid in ours - others
            if processes[pid].session == self.pid
            or (processes[pid].parent == me and trees.tag_of(pid) == self.tag)
        }
        return trees.with_descendants(processes, roots)

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def record(self, now_ns: int) -> str:
        """Its end as JSON, for the journal and the daemon alike. Empty fields are left out."""
        end: dict[str, Any] = {
            "id": self.order.id,
            "reason": self.reason or "exit",
            "pid": self.pid,
            "started_ns": self.started_ns,
            "ended_ns": now_ns,
        }
        if self.error:
            end["error"] = self.error
        if self.status is not None and self.reason != "start_failed":
            code = os.waitstatus_to_exitcode(self.status)
            end["exit_code" if code >= 0 else "signal"] = abs(code)
        if self.usage is not None:
            end["user_cpu_ms"] = round(self.usage.ru_utime * 1000, 3)
            end["sys_cpu_ms"] = round(self.usage.ru_stime * 1000, 3)
            # The kernel counts in what the process was before its exec, which is a copy of us.
            if self.usage.ru_maxrss > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
                end["max_rss_bytes"] = self.usage.ru_maxrss * 1024
        for output in self.outputs:
            if output.size:
                end[f"{output.name}_size"] = output.size
            if output.cut:
                end[f"{output.name}_cut"] = output.cut
            if output.trouble:
                self.note(output.trouble)
        if self.notes:
            end["notes"] = self.notes
        return dumps(end)

    def standing(self) -> dict[str, Any]:
        ending = self.kill_ns is not None or self.status is not None
        return {
            "id": self.order.id,
            "status": "ending" if ending else "running",
            "pid": self.pid,
            "started_ns": self.started_ns,
        }


def end_unstarted(attempt_id: int, reason: str, error: str, now_ns: int) -> str:
    """The end of an attempt that never had a process, or of which nothing is left but a record."""
    end = {"id": attempt_id, "reason": reason, "ended_ns": now_ns}
    if error:
        end["error"] = error
    return dumps(end)
