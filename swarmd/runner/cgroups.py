"""Cgroups: where this machine lets us make them, one for each attempt that can have one.

Looked at once, at start. A v2 tree, whether alone or beside v1, tracks every attempt: its members
cannot leave, one write kills them, one read tells that the last is gone. Controllers, of v2 where
it has them and else of v1, are used only for limits that were asked for. A limit that could not be
set is named in the group's notes; nothing pretends.

Empty groups are used again, those with limits for the very same limits. While a launcher is inside,
one more process fits and no quota counts, which could stall it; memory counts from the beginning.
Right after it has left the exact bounds are set: a job may have forked one too many until then.

The groups lie in a directory of this data directory's own key, below the nearest cgroup that was
delegated to us (systemd's Delegate=yes marks it), else as root in swarmd.slice at the top, else
below our own. In v2 a cgroup with controllers enabled for its children may hold no process itself:
where we sit in that very one, we move to a leaf beside our groups.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal

from swarmd.runner.orders import Order

CONTROLLERS = ("memory", "cpu", "pids")
POOL_MAX = 64
POOL_LIMITED_MAX = 32
LEFT_BYTES_MAX = 1 << 20
"""Memory that the jobs before may have left charged to a cgroup that is used again."""
LIMIT_BYTES_MIN = 32 << 20
"""A memory limit below this would feel what is left, and is no place for a launcher."""
PERIOD_US = 100_000
QUOTA_US_MIN = 1000
PIDS_MAX = 1 << 22
"""More than this the kernel will not have as a bound."""
_WORDS = {"memory": "memory", "cpu": "cpus", "pids": "pids"}

Limits = tuple[int | None, float | None, int | None]
"""Of memory, CPUs and processes."""


class Group:
    """The cgroups of one attempt: the tracking one first."""

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
        self.enter = [_open(f"{path}/cgroup.procs", os.O_WRONLY) for path in paths]
        self._events = _open(f"{paths[0]}/cgroup.events", os.O_RDONLY) if unified else -1

    def empty(self) -> bool:
        if self.unified:
            return b"populated 0" in os.pread(self._events, 256, 0)
        return all(_read(f"{path}/cgroup.procs") in ("", None) for path in self.paths)

    def pids(self) -> set[int]:
        return {pid for path in self.paths[: 1 if self.unified else None] for pid in _members(path)}

    def kill(self) -> None:
        """SIGKILL all members. To be repeated until empty: without cgroup.kill a fork may win."""
        if self.unified:
            try:
                _write(f"{self.paths[0]}/cgroup.kill", "1")
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
                _write(f"{path}/cpu.cfs_period_us", str(PERIOD_US))
                self._bound(what, f"{path}/cpu.cfs_quota_us", str(quota), "-1")
        else:
            new, swap, events, usage = (
                ("max", "swap.max", "events", "current")
                if version == 2
                else ("limit_in_bytes", "memsw.limit_in_bytes", "oom_control", "usage_in_bytes")
            )
            _write(f"{path}/memory.{new}", str(order.memory_bytes))
            with contextlib.suppress(FileNotFoundError):
                _write(f"{path}/memory.{swap}", "0" if version == 2 else str(order.memory_bytes))
            self._oom_kills = _open(f"{path}/memory.{events}", os.O_RDONLY)
            self._usage = _open(f"{path}/memory.{usage}", os.O_RDONLY)

    def _bound(self, what: str, path: str, held: str, lifted: str) -> None:
        self._bounds[what] = (_open(path, os.O_WRONLY), held.encode(), lifted.encode())

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
                notes.append(f"{_WORDS[what]} limit not enforced: {exc.strerror}")
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
        mounts, own = _mounts(), _own()
        if "" in mounts and "" in own:
            self._find_unified(*mounts[""], own[""])
        for controller in CONTROLLERS:
            if controller not in self.controllers and controller in mounts and controller in own:
                here = _below(*mounts[controller], own[controller])
                base = os.path.join(here, self._name)
                if _make(base):
                    self.controllers[controller] = (base, 1)
                    home = _open_or_none(f"{here}/cgroup.procs")
                    if home is not None and base not in self._homes:
                        self._homes[base] = home
        self._clear()

    @property
    def tracking(self) -> str:
        return "cgroup2" if self.unified else "cgroup1" if self.controllers else "proc"

    def enforces(self) -> dict[str, bool]:
        return {_WORDS[name]: name in self.controllers for name in CONTROLLERS}

    @property
    def can_visit(self) -> bool:
        """The runner may step into a tracking group and back out."""
        return self._home >= 0

    def open(self, order: Order) -> tuple[Group | None, list[str]]:
        """A group for one attempt, and notes on what of its limits cannot be kept."""
        limits = (order.memory_bytes, order.cpus, order.pids)
        asked = [n for n, value in zip(CONTROLLERS, limits, strict=True) if value is not None]
        notes = [
            f"{_WORDS[name]} limit not enforced: no writable cgroup has the {name} controller"
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
                remove(path)
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
                notes.append(f"{_WORDS[what]} limit not enforced: {exc.strerror}")
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
            remove(base)
            if base.endswith(f"/swarmd.slice/{self._name}"):
                with contextlib.suppress(OSError):  # others may be in it
                    os.rmdir(os.path.dirname(base))

    def _clear(self) -> None:
        """Kill what a runner before us left: the lock is ours, so none of it has an owner."""
        bases = {self.unified, *(base for base, _ in self.controllers.values())} - {""}
        for base in bases:
            for name in _folders(base):
                path = f"{base}/{name}"
                with contextlib.suppress(OSError):
                    _write(f"{path}/cgroup.kill", "1")
                for _ in range(100):
                    pids = _members(path)
                    for pid in pids:
                        with contextlib.suppress(OSError):
                            os.kill(pid, signal.SIGKILL)
                    if not pids:
                        break
                    _nap()
                remove(path)

    def _find_unified(self, mount: str, root: str, own: str) -> None:
        here = _below(mount, root, own)
        wanted = set(CONTROLLERS) & set((_read(f"{mount}/cgroup.controllers") or "").split())
        best: tuple[int, str] = (-1, "")
        for parent in _parents(mount, here):
            base = f"{parent}/{self._name}"
            if not _make(parent) or not _make(base):
                continue
            home = _open_or_none(f"{here}/cgroup.procs")
            if home is None or not _may_move(base, home):
                remove(base)
                continue
            os.close(home)
            have = _enable(mount, parent, base, here, wanted, self._name)
            if len(have) > best[0]:
                if best[1]:
                    remove(best[1])
                best = (len(have), base)
                self.controllers = dict.fromkeys(have, (base, 2))
            elif base != best[1]:
                remove(base)
            if have == wanted:
                break
        if not best[1]:
            return
        self.unified = best[1]
        # Our own place may have changed to the leaf beside our groups.
        now = _below(mount, root, _own().get("", own))
        self._home = _open(f"{now}/cgroup.procs", os.O_WRONLY)


def _lean(order: Order) -> bool:
    return order.memory_bytes is not None and order.memory_bytes < LIMIT_BYTES_MIN


def _parents(mount: str, here: str) -> list[str]:
    """Where our groups may lie, the most proper place first."""
    found, at = [], here
    while at.startswith(mount + "/"):
        if _delegated(at):
            found.append(at)
            break
        at = os.path.dirname(at)
    if os.geteuid() == 0:
        found.append(f"{mount}/swarmd.slice")
    return [*found, here]


def _delegated(path: str) -> bool:
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(path, name) == b"1":
                return True
    return False


def _enable(
    mount: str, parent: str, base: str, here: str, wanted: set[str], name: str
) -> set[str]:  # fmt: skip
    """Have the controllers in the children of base; answer which of them are."""
    if parent == f"{mount}/swarmd.slice":
        _switch_on(mount, wanted)
    if not _switch_on(parent, wanted) and parent == here:
        leaf = f"{parent}/runner-{name}"
        with contextlib.suppress(OSError):
            if _make(leaf):
                _write(f"{leaf}/cgroup.procs", "0")
                _switch_on(parent, wanted)
    _switch_on(base, wanted)
    return wanted & set((_read(f"{base}/cgroup.subtree_control") or "").split())


def _switch_on(path: str, wanted: set[str]) -> bool:
    """Enable controllers for the children of a cgroup; False where one stayed off."""
    have = set((_read(f"{path}/cgroup.subtree_control") or "").split())
    for name in sorted(wanted - have):
        try:
            _write(f"{path}/cgroup.subtree_control", f"+{name}")
        except OSError:
            return False
    return True


def _may_move(base: str, home: int) -> bool:
    """Try to step into a group and back: needs more rights than making it."""
    probe = f"{base}/probe"
    if not _make(probe):
        return False
    try:
        _write(f"{probe}/cgroup.procs", "0")
        os.write(home, b"0")
        return True
    except OSError:
        return False
    finally:
        remove(probe)


def _mounts() -> dict[str, tuple[str, str]]:
    """Controller ("" for v2) to where its hierarchy is mounted, and which cgroup that shows."""
    found: dict[str, tuple[str, str]] = {}
    for line in (_read("/proc/self/mountinfo") or "").splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, at = left.split(" ")[3:5]
        at = at.replace("\\040", " ")
        if kind == "cgroup2":
            found.setdefault("", (at, root))
        elif kind == "cgroup":
            for name in set(options.replace(" ", ",").split(",")) & set(CONTROLLERS):
                found.setdefault(name, (at, root))
    return found


def _own() -> dict[str, str]:
    """Controller ("" for v2) to the cgroup that this process is in."""
    found = {}
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name or number == "0":
                found[name] = path
    return found


def _below(mount: str, root: str, own: str) -> str:
    """The directory of a cgroup in a mount that shows the hierarchy from root on."""
    if root != "/":
        own = own.removeprefix(root) if own == root or own.startswith(root + "/") else "/"
    path = (mount + "/" + own.strip("/")).rstrip("/")
    return path if os.path.isdir(path) else mount


def remove(path: str) -> None:
    """Remove a cgroup and those below it, as far as they are empty."""
    try:
        os.rmdir(path)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            return
        for name in _folders(path):
            remove(f"{path}/{name}")
        with contextlib.suppress(OSError):
            os.rmdir(path)


def _members(path: str) -> set[int]:
    pids = {int(pid) for pid in (_read(f"{path}/cgroup.procs") or "").split()} - {0}
    for name in _folders(path):
        pids |= _members(f"{path}/{name}")
    return pids


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _make(path: str) -> bool:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def _open_or_none(path: str) -> int | None:
    try:
        return _open(path, os.O_WRONLY)
    except OSError:
        return None


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def _write(path: str, text: str) -> None:
    fd = _open(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _nap() -> None:
    signal.sigtimedwait((), 0.01)
