"""Where cgroups are on this machine, and the few things that are done to their files.

A hierarchy is known by its controller, the v2 one by "". Nothing here keeps state.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal

CONTROLLERS = ("memory", "cpu", "pids")


def parents(mount: str, here: str) -> list[str]:
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


def enable(
    mount: str, parent: str, base: str, here: str, wanted: set[str], name: str
) -> set[str]:  # fmt: skip
    """Have the controllers in the children of base; answer which of them are."""
    if parent == f"{mount}/swarmd.slice":
        _switch_on(mount, wanted)
    if not _switch_on(parent, wanted) and parent == here:
        leaf = f"{parent}/runner-{name}"
        with contextlib.suppress(OSError):
            if make(leaf):
                write_text(f"{leaf}/cgroup.procs", "0")
                _switch_on(parent, wanted)
    _switch_on(base, wanted)
    return wanted & words(f"{base}/cgroup.subtree_control")


def _switch_on(path: str, wanted: set[str]) -> bool:
    """Enable controllers for the children of a cgroup; False where one stayed off."""
    have = words(f"{path}/cgroup.subtree_control")
    for name in sorted(wanted - have):
        try:
            write_text(f"{path}/cgroup.subtree_control", f"+{name}")
        except OSError:
            return False
    return True


def may_move(base: str, home: int) -> bool:
    """Try to step into a group and back: needs more rights than making it."""
    probe = f"{base}/probe"
    if not make(probe):
        return False
    try:
        write_text(f"{probe}/cgroup.procs", "0")
        os.write(home, b"0")
        return True
    except OSError:
        return False
    finally:
        remove(probe)


def mounts() -> dict[str, tuple[str, str]]:
    """Controller ("" for v2) to where its hierarchy is mounted, and which cgroup that shows."""
    found: dict[str, tuple[str, str]] = {}
    for line in (read_text("/proc/self/mountinfo") or "").splitlines():
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


def own_places() -> dict[str, str]:
    """Controller ("" for v2) to the cgroup that this process is in."""
    found = {}
    for line in (read_text("/proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            if name or number == "0":
                found[name] = path
    return found


def below(mount: str, root: str, own: str) -> str:
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
        for name in folders(path):
            remove(f"{path}/{name}")
        with contextlib.suppress(OSError):
            os.rmdir(path)


def members(path: str) -> set[int]:
    pids = {int(pid) for pid in words(f"{path}/cgroup.procs")} - {0}
    for name in folders(path):
        pids |= members(f"{path}/{name}")
    return pids


def folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def make(path: str) -> bool:
    try:
        os.mkdir(path, 0o755)
    except FileExistsError:
        return True
    except OSError:
        return False
    return True


def open_file(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC)


def way_in(path: str) -> int | None:
    try:
        return open_file(path, os.O_WRONLY)
    except OSError:
        return None


def words(path: str) -> set[str]:
    return set((read_text(path) or "").split())


def read_text(path: str) -> str | None:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        return None


def write_text(path: str, text: str) -> None:
    fd = open_file(path, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def nap() -> None:
    signal.sigtimedwait((), 0.01)
