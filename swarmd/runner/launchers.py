"""Launchers: for each account a process that starts its jobs, for a half of what a fork costs.

`posix_spawn` copies nothing, but cannot change the account. So a launcher is forked once, gives up
its rights for good, and spawns from there; the runner moves it into the attempt's cgroup for that
instant. It is of the jobs' account and they may kill or stop it, though not look into it: one that
was stopped, or does not answer in time, is killed, its children become the runner's, and the runner
goes on without it for a while. It reaps a child only after it told of its start, so none is unknown
after its death; of one that it reaped and could not tell of any more, the end is lost.
"""

from __future__ import annotations

import errno
import marshal
import os
import resource
import select
import signal
import socket
import struct
import time
from typing import Any, NoReturn

from swarmd.runner import libc

ANSWER_S_MAX = 1.0
PAUSE_NS = 30 * 1_000_000_000
"""After one was lost; its account's jobs are started the dearer way meanwhile."""
IDLE_MS = 60_000
LAUNCHERS_MAX = 16
MESSAGE_BYTES_MAX = 64 * 1024
_STARTED, _FAILED, _EXITED = range(3)
_REPORT = struct.Struct("=iiiqqq")

Account = tuple[int, int]
Death = tuple[int, int, "Usage"]
Request = tuple[list[bytes], list[bytes], dict[bytes, bytes]]
"""Where the program may be, its arguments and its environment."""


class LauncherLostError(Exception):
    """It is gone or silent; whether it started anything has to be looked for."""


class Usage:
    """What is asked of a rusage, of a process that another one reaped."""

    __slots__ = ("ru_maxrss", "ru_stime", "ru_utime")

    def __init__(self, user_us: int, system_us: int, max_rss_kib: int) -> None:
        self.ru_utime = user_us / 1e6
        self.ru_stime = system_us / 1e6
        self.ru_maxrss = max_rss_kib


class Launcher:
    """The runner's end of one."""

    def __init__(self, account: Account, files: tuple[int, int]) -> None:
        self.account = account
        self.children: set[int] = set()
        """Started by it and not reported as dead."""
        self.deaths: list[Death] = []
        self.reaped = False
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock = ours
        # Held back until the child has its default handlers, and not our wakeup descriptor.
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        try:
            self.pid = os.fork()
            if self.pid == 0:
                _serve(theirs, account, files)
        except BaseException:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
            theirs.close()
        self._sock.settimeout(ANSWER_S_MAX)

    def fileno(self) -> int:
        return self._sock.fileno()

    def start(self, request: Request, fds: list[int]) -> int:
        """Start a program in the directory, with the output, that the three descriptors stand for.
        OSError: it cannot be run. LauncherLostError: nobody knows."""
        data = marshal.dumps(request)
        aside = -1
        if len(data) > MESSAGE_BYTES_MAX:
            aside = os.memfd_create("request", os.MFD_CLOEXEC)
        try:
            if aside >= 0:
                _write(aside, data)
                fds, data = [*fds, aside], b"aside"
            try:
                socket.send_fds(self._sock, [data], fds, socket.MSG_NOSIGNAL)
                kind, pid, code = self._answer()
            except OSError as exc:  # a timeout is one too
                raise LauncherLostError from exc
        finally:
            if aside >= 0:
                os.close(aside)
        if kind == _FAILED:
            raise OSError(code, os.strerror(code))
        self.children.add(pid)
        return pid

    def _answer(self) -> tuple[int, int, int]:
        deadline = time.monotonic() + ANSWER_S_MAX
        while time.monotonic() < deadline:
            report = self._take(self._sock.recv(_REPORT.size))
            if report is not None:
                return report
        raise LauncherLostError

    def hear(self) -> bool:
        """Take in what it told of its children; False where it will tell no more."""
        try:
            while data := os.read(self._sock.fileno(), _REPORT.size):
                self._take(data)
        except BlockingIOError:
            return True
        except (OSError, LauncherLostError):
            pass
        return False

    def _take(self, data: bytes) -> tuple[int, int, int] | None:
        if len(data) != _REPORT.size:
            raise LauncherLostError
        kind, pid, code, user_us, system_us, max_rss_kib = _REPORT.unpack(data)
        if kind != _EXITED:
            return kind, pid, code
        self.children.discard(pid)
        self.deaths.append((pid, code, Usage(user_us, system_us, max_rss_kib)))
        return None

    def kill(self) -> None:
        """End it; what it has told until then is still heard, its children are ours now."""
        deadline = time.monotonic() + ANSWER_S_MAX
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            while os.waitpid(self.pid, os.WNOHANG)[0] == 0 and time.monotonic() < deadline:
                signal.sigtimedwait((), 0.001)
        self.hear()
        self._sock.close()


def unreaped(pid: int) -> bool:
    """Is this a child of ours, alive or dead?"""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


# -- the other side ------------------------------------------------------------------------------


def _serve(sock: socket.socket, account: Account, files: tuple[int, int]) -> NoReturn:
    """In the forked process, to its end."""
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        own = sock.fileno()
        os.closerange(3, own)
        os.closerange(own + 1, 2**31 - 1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        wake, wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        resource.setrlimit(resource.RLIMIT_NOFILE, files)
        uid, gid = account
        libc.call_process(b"swarmd launcher for account %d" % uid)
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)  # From here on no other process of this account may trace us.
        libc.forbid_new_privileges()
        libc.die_with_parent()  # also when a job has stopped it
        _launch_all(sock, wake)
        code = 0
    finally:
        os._exit(code)


def _launch_all(sock: socket.socket, wake: int) -> None:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    poll.register(wake, select.POLLIN)
    children = 0
    while (ready := poll.poll(IDLE_MS)) or children:
        for fd, _ in ready:
            if fd == wake:
                os.read(wake, 65536)
                continue
            data, fds, _, _ = socket.recv_fds(
                sock, MESSAGE_BYTES_MAX + 4096, 4, socket.MSG_CMSG_CLOEXEC
            )
            if not data:
                return
            kind, pid, number = _launch(data, fds)
            children += kind == _STARTED
            sock.send(_REPORT.pack(kind, pid, number, 0, 0, 0))
        while children:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if not pid:
                break
            children -= 1
            times = (int(usage.ru_utime * 1e6), int(usage.ru_stime * 1e6), usage.ru_maxrss)
            sock.send(_REPORT.pack(_EXITED, pid, status, *times))


def _launch(data: bytes, fds: list[int]) -> tuple[int, int, int]:
    try:
        if len(fds) == 4:
            data = os.pread(fds[3], os.fstat(fds[3]).st_size, 0)
        request: Any = marshal.loads(data)  # noqa: S302 - of the runner, which is above us
        os.fchdir(fds[0])
        return _STARTED, spawn(request, fds[1], fds[2]), 0
    except OSError as exc:
        return _FAILED, 0, exc.errno or errno.EIO
    finally:
        for fd in fds:
            os.close(fd)


def spawn(request: Request, stdout: int, stderr: int) -> int:
    """Start a program as the account, in the directory and cgroups, that this process has."""
    programs, argv, env = request
    actions = [(os.POSIX_SPAWN_DUP2, stdout, 1), (os.POSIX_SPAWN_DUP2, stderr, 2)]
    error: OSError = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    for program in programs:
        try:
            return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True)
        except OSError as exc:
            error = worse(error, exc)
    raise error


def worse(known: OSError, new: OSError) -> OSError:
    """Of all places on PATH, the complaint of one where there was something to complain about."""
    return known if isinstance(new, FileNotFoundError | NotADirectoryError) else new


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
