"""Cgroups: where this machine lets us make them, one for each attempt that can have one.

Looked at once, at start. A v2 tree, whether alone or beside v1, tracks every attempt: its members
cannot leave, one write kills them, one read tells that the last is gone. Controllers, of v2 where
it has them and else of v1, are used only for limits that were asked for. A limit that could not be
set is named in the group's notes; nothing pretends.

Empty groups are used again, those with limits for the very same limits.

The groups lie in a directory of this data directory's own key, below the nearest cgroup that was
delegated to us (systemd's Delegate=yes marks it), else as root in swarmd.slice at the top, else
below our own. In v2 a cgroup with controllers enabled for its children may hold no process itself:
where we sit in that very one, we move to a leaf beside our groups.
"""

from __future__ import annotations

import contextlib
import os
import signal

from swarmd.runner import hierarchy
from swarmd.runner.groups import WORDS, Group
from swarmd.runner.hierarchy import CONTROLLERS
from swarmd.runner.orders import Order

POOL_MAX = 64
POOL_LIMITED_MAX = 32
LIMIT_BYTES_MIN = 32 << 20
"""A memory limit below this would feel what is left, and is no place for a launcher."""


class Cgroups:
    """What can be had here: a base directory for tracking, and one for each controller."""

    def __init__(self, key: str) -> None:
        self._name = f"swarmd-{key}"
        self._pool: list[Group] = []
        self._pool_limited: list[Group] = []
        self._count = 0
        self._home = -1
        self.unified = ""
        """The v2 directory below which every attempt is tracked; empty without one."""
        self.controllers: dict[str, tuple[str, int]] = {}
        """Controller to its base directory and cgroup version."""
        self._homes: dict[str, int] = {}
        """Of a v1 base: the way to where we are in its hierarchy."""
        mounts, own = hierarchy.mounts(), hierarchy.own_places()
        if "" in mounts and "" in own:
            self._find_unified(*mounts[""], own[""])
        for controller in CONTROLLERS:
            if controller not in self.controllers and controller in mounts and controller in own:
                here = hierarchy.below(*mounts[controller], own[controller])
                base = os.path.join(here, self._name)
                if hierarchy.make(base):
                    self.controllers[controller] = (base, 1)
                    home = hierarchy.way_in(f"{here}/cgroup.procs")
                    if home is not None and base not in self._homes:
                        self._homes[base] = home
        self._clear()

    @property
    def tracking(self) -> str:
        return "cgroup2" if self.unified else "cgroup1" if self.controllers else "proc"

    def enforces(self) -> dict[str, bool]:
        return {WORDS[name]: name in self.controllers for name in CONTROLLERS}

    @property
    def can_visit(self) -> bool:
        """The runner may step into a tracking group and back out."""
        return self._home >= 0

    def open(self, order: Order) -> tuple[Group | None, list[str]]:
        """A group for one attempt, and notes on what of its limits cannot be kept."""
        limits = (order.memory_bytes, order.cpus, order.pids)
        asked = [n for n, value in zip(CONTROLLERS, limits, strict=True) if value is not None]
        notes = [
            f"{WORDS[name]} limit not enforced: no writable cgroup has the {name} controller"
            for name in asked
            if name not in self.controllers
        ]
        asked = [name for name in asked if name in self.controllers]
        if not asked and self.unified and self._pool:
            return self._pool.pop(), notes
        # Only of jobs that could not have changed them.
        keep = self.unified and order.uid not in (None, 0, os.geteuid())
        if asked and keep:
            for group in reversed(self._pool_limited):
                if group.kept_for == limits:
                    self._pool_limited.remove(group)
                    return group, notes
        self._count += 1
        name = f"a{self._count}"
        plan: dict[str, int] = {f"{self.unified}/{name}": 2} if self.unified else {}
        if not plan and not asked:
            asked_paths = [f"{base}/{name}" for base, _ in list(self.controllers.values())[:1]]
        else:
            asked_paths = [f"{self.controllers[what][0]}/{name}" for what in asked]
        paths = list(dict.fromkeys([*plan, *asked_paths]))
        if not paths:
            return None, notes
        try:
            for path in paths:
                os.mkdir(path, 0o755)
            group = Group(paths, bool(self.unified))
        except OSError as exc:
            for path in paths:
                hierarchy.remove(path)
            why = f"limits not enforced: cannot make a cgroup: {exc.strerror}"
            return None, [*notes, why] if asked else notes
        if keep and not _lean(order):
            group.kept_for = limits
        for what in asked:
            base, version = self.controllers[what]
            try:
                group.limit(what, f"{base}/{name}", version, order)
            except OSError as exc:
                group.kept_for = None
                notes.append(f"{WORDS[what]} limit not enforced: {exc.strerror}")
        return group, notes

    def close(self, group: Group) -> None:
        """Give an empty group back, to be used again where it is as good as new."""
        if group.doubtful or not group.unified:
            group.close()
        elif group.limited:
            if group.kept_for is None or not group.renew():
                group.close()
                return
            self._pool_limited.append(group)
            if len(self._pool_limited) > POOL_LIMITED_MAX:
                self._pool_limited.pop(0).close()
        elif len(self._pool) >= POOL_MAX:
            group.close()
        else:
            self._pool.append(group)

    def visit(self, group: Group) -> None:
        os.write(group.enter[0], b"0")

    def can_send(self, group: Group, order: Order) -> bool:
        """Whether a launcher can go into it and come back, and is safe there meanwhile."""
        known = all(os.path.dirname(path) in self._homes for path in group.paths[1:])
        return self.can_visit and group.unified and known and not _lean(order)

    def send(self, pid: int, group: Group) -> None:
        """Move a process of ours into an attempt's cgroups."""
        who = b"%d" % pid
        for fd in group.enter:
            os.write(fd, who)

    def recall(self, pid: int, group: Group) -> None:
        """Have it back where we are."""
        who = b"%d" % pid
        os.write(self._home, who)
        for path in group.paths[1:]:
            os.write(self._homes[os.path.dirname(path)], who)

    def leave(self, group: Group) -> None:
        """Step back home. Where that fails, this group must never be killed: we sit in it."""
        try:
            os.write(self._home, b"0")
        except OSError:
            group.doubtful = True
            os.close(self._home)
            self._home = -1
            raise

    def remove(self) -> None:
        """Take everything of ours away, when the runner ends."""
        for group in (*self._pool, *self._pool_limited):
            group.close()
        for base in {self.unified, *(base for base, _ in self.controllers.values())} - {""}:
            hierarchy.remove(base)
            if base.endswith(f"/swarmd.slice/{self._name}"):
                with contextlib.suppress(OSError):  # others may be in it
                    os.rmdir(os.path.dirname(base))

    def _clear(self) -> None:
        """Kill what a runner before us left: the lock is ours, so none of it has an owner."""
        bases = {self.unified, *(base for base, _ in self.controllers.values())} - {""}
        for base in bases:
            for name in hierarchy.folders(base):
                path = f"{base}/{name}"
                with contextlib.suppress(OSError):
                    hierarchy.write_text(f"{path}/cgroup.kill", "1")
                for _ in range(100):
                    pids = hierarchy.members(path)
                    for pid in pids:
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGKILL)
                    if not pids:
                        break
                    hierarchy.nap()
                hierarchy.remove(path)

    def _find_unified(self, mount: str, root: str, own: str) -> None:
        here = hierarchy.below(mount, root, own)
        wanted = set(CONTROLLERS) & hierarchy.words(f"{mount}/cgroup.controllers")
        best: tuple[int, str] = (-1, "")
        for parent in hierarchy.parents(mount, here):
            base = f"{parent}/{self._name}"
            if not hierarchy.make(parent) or not hierarchy.make(base):
                continue
            home = hierarchy.way_in(f"{here}/cgroup.procs")
            if home is None or not hierarchy.may_move(base, home):
                hierarchy.remove(base)
                continue
            os.close(home)
            have = hierarchy.enable(mount, parent, base, here, wanted, self._name)
            if len(have) > best[0]:
                if best[1]:
                    hierarchy.remove(best[1])
                best = (len(have), base)
                self.controllers = dict.fromkeys(have, (base, 2))
            elif base != best[1]:
                hierarchy.remove(base)
            if have == wanted:
                break
        if not best[1]:
            return
        self.unified = best[1]
        # Our own place may have changed to the leaf beside our groups.
        now = hierarchy.below(mount, root, hierarchy.own_places().get("", own))
        self._home = hierarchy.open_file(f"{now}/cgroup.procs", os.O_WRONLY)


def _lean(order: Order) -> bool:
    return order.memory_bytes is not None and order.memory_bytes < LIMIT_BYTES_MIN
