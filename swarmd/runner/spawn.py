"""Starting one process. Three ways, one result: own session, its own pipes as output, nothing else
inherited, default signals. A program that cannot be run is told as such, never as exit code 127.

`posix_spawn` costs little more than the exec itself, but can neither change the account nor enter
cgroups that limit; where the account is another, a launcher of that account does it. `fork` runs
the interpreter in the child, which copies many pages, but can do everything. The cgroups are those
of who spawns, for that instant: the runner itself steps only into one that tracks, where nothing
can stall it, and a launcher also into those that limit, but for a memory limit that it would feel.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import struct
from collections.abc import Iterator

from swarmd.runner import libc
from swarmd.runner.launchers import Request, spawn, worse
from swarmd.runner.orders import Order

_PATH = b"/usr/local/bin:/usr/bin:/bin"
_FAILURE = struct.Struct("=ii")
_STEPS = (
    "", "enter the cgroup", "take its files", "change its account", "enter its directory", "run",
)  # fmt: skip


class Spawner:
    def __init__(self) -> None:
        self._failures = os.memfd_create("failures", os.MFD_CLOEXEC)
        """By pid: what the child could not do. Read only when a child exits with 127."""
        self.files = resource.getrlimit(resource.RLIMIT_NOFILE)
        """As it was given to us, and is given to the jobs. We ourselves take all there is."""
        self._files_own = (self.files[1], self.files[1])
        resource.setrlimit(resource.RLIMIT_NOFILE, self._files_own)

    @contextlib.contextmanager
    def files_of_jobs(self) -> Iterator[None]:
        """Within this, what is started may open as many files as we were meant to."""
        if self.files == self._files_own:
            yield
            return
        resource.setrlimit(resource.RLIMIT_NOFILE, self.files)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, self._files_own)

    def spawn(self, order: Order, stdout: int, stderr: int) -> int:
        """Start it with this process's account and cgroups; we stay in its working directory."""
        os.chdir(os.path.join(order.dir, "work"))
        return spawn(request_of(order), stdout, stderr)

    def fork(self, order: Order, stdout: int, stderr: int, enter: list[int]) -> int:
        """Start it as order's account, within the cgroups whose procs files are given."""
        work = os.path.join(order.dir, "work")
        programs, _, _ = request_of(order)
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
                resource.setrlimit(resource.RLIMIT_NOFILE, self.files)
                step = 5
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, ())
                error = OSError(errno.ENOENT, "")
                for program in programs:
                    try:
                        os.execve(program, order.argv, order.env)
                    except OSError as exc:
                        error = worse(error, exc)
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


def request_of(order: Order) -> Request:
    program = order.argv[0]
    programs = [program]
    if b"/" not in program:
        folders = order.env.get(b"PATH", _PATH).split(b":")
        programs = [os.path.join(folder or b".", program) for folder in folders[:100]]
    return programs, order.argv, order.env
