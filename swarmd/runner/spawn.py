"""Starting one process. Three ways, one result: own session, its own files as output, nothing else
inherited, default signals. A program that cannot be run is told as such, never as exit code 127.

`posix_spawn` costs little more than the exec itself, but can neither change the account nor enter
cgroups that limit. `spawn_as` changes the account between fork and exec in C, as the standard
library's subprocess does; `fork` runs the interpreter there, which copies many more pages, but can
do everything. The cgroup that only tracks is entered by the runner itself for that instant, which
is safe because nothing there can kill or stall it.
"""

from __future__ import annotations

import _posixsubprocess
import errno
import os
import signal
import struct
import sys

from swarmd.runner import libc
from swarmd.runner.orders import Order

_PATH = b"/usr/local/bin:/usr/bin:/bin"
_FAILURE = struct.Struct("=ii")
_STEPS = (
    "", "enter the cgroup", "take its files", "change its account", "enter its directory", "run",
)  # fmt: skip


_FORK_EXEC_KNOWN = (3, 11) <= sys.version_info < (3, 14)
"""Its arguments are private to the standard library, and these versions have the same."""


class Spawner:
    def __init__(self) -> None:
        self._failures = os.memfd_create("failures", os.MFD_CLOEXEC)
        """By pid: what the child could not do. Read only when a child exits with 127."""

    def spawn(self, order: Order, stdout: int, stderr: int) -> int:
        """Start it with this process's cgroups; the working directory becomes the job's."""
        os.chdir(os.path.join(order.dir, "work"))
        actions = [(os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
        error = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        for program in _programs(order):
            try:
                return os.posix_spawn(
                    program, order.argv, order.env, file_actions=actions, setsid=True
                )
            except OSError as exc:
                error = _worse(error, exc)
        raise error

    can_spawn_as = _FORK_EXEC_KNOWN

    def spawn_as(self, order: Order, stdout: int, stderr: int) -> int:
        """Start it as order's account with this process's cgroups."""
        assert order.uid is not None and order.gid is not None
        read_end, write_end = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                pid = _posixsubprocess.fork_exec(
                    order.argv, _programs(order), False, (), os.path.join(order.dir, "work"),
                    [name + b"=" + value for name, value in order.env.items()],
                    -1, -1, -1, stdout, -1, stderr, read_end, write_end,
                    True, True, -1, order.gid, [], order.uid, -1,
                    libc.forbid_new_privileges_in_child, True,
                )  # fmt: skip
            finally:
                os.close(write_end)
            trouble = b""  # Nothing, and then the end, once the exec has closed the other side.
            while data := os.read(read_end, 4096):
                trouble += data
        finally:
            os.close(read_end)
        if not trouble:
            return int(pid)
        os.waitpid(pid, 0)
        kind, code, *_ = [*trouble.split(b":"), b"0"]
        number = int(code, 16) if kind == b"OSError" else 0
        raise OSError(number or errno.EPERM, os.strerror(number or errno.EPERM))

    def fork(self, order: Order, stdout: int, stderr: int, enter: list[int]) -> int:
        """Start it as order's account, within the cgroups whose procs files are given."""
        work = os.path.join(order.dir, "work")
        programs = _programs(order)
        # Held back until the child has its default handlers, so that an early stop is not lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            pid = os.fork()
            if pid:
                return pid
            step = 1
            try:
                for fd in enter:
                    os.write(fd, b"0")
                step = 2
                os.setsid()
                os.dup2(stdout, 1)
                os.dup2(stderr, 2)
                # Before the account changes: the way to it may be closed to the job.
                step = 4
                os.chdir(work)
                step = 3
                if order.uid is not None and order.gid is not None:
                    os.setgroups([])
                    os.setresgid(order.gid, order.gid, order.gid)
                    os.setresuid(order.uid, order.uid, order.uid)
                    libc.forbid_new_privileges()
                step = 5
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                error = OSError(errno.ENOENT, "")
                for program in programs:
                    try:
                        os.execve(program, order.argv, order.env)
                    except OSError as exc:
                        error = _worse(error, exc)
                raise error
            except OSError as exc:
                record = _FAILURE.pack(step, exc.errno or errno.EIO)
                os.pwrite(self._failures, record, os.getpid() * _FAILURE.size)
            finally:
                os._exit(127)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))

    def failure(self, pid: int) -> str:
        """Why a child that exited with 127 never became the program; empty where it did."""
        at = pid * _FAILURE.size
        data = os.pread(self._failures, _FAILURE.size, at)
        if len(data) < _FAILURE.size:
            return ""
        step, code = _FAILURE.unpack(data)
        if not step:
            return ""
        os.pwrite(self._failures, bytes(_FAILURE.size), at)
        return f"could not {_STEPS[step]}: {os.strerror(code)}"


def _programs(order: Order) -> list[bytes]:
    program = order.argv[0]
    if b"/" in program:
        return [program]
    folders = order.env.get(b"PATH", _PATH).split(b":")
    return [os.path.join(folder or b".", program) for folder in folders[:100]]


def _worse(known: OSError, new: OSError) -> OSError:
    """Of all places on PATH, the complaint of one where there was something to complain about."""
    return known if new.errno in (errno.ENOENT, errno.ENOTDIR) else new
