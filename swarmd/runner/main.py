"""Starting and ending the runner process: alone for its data directory, and no one's child.

It answers to its socket and to SIGTERM, which ends all its jobs. Whoever starts it waits for its
exit status: 0 says that a runner serves this directory now, this one or one before it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import resource
import select
import signal
import socket
import sys
import time

from swarmd.runner import libc
from swarmd.runner.cgroups import Cgroups
from swarmd.runner.core import Core
from swarmd.runner.journal import Journal
from swarmd.runner.loop import Loop, now_ns
from swarmd.runner.wire import Decoder, encode

IDLE_S = 30.0
ALIVE_S_MAX = 10.0
LOG_BYTES_MAX = 1024 * 1024
_USAGE = "usage: swarmd runner --data-dir DIR [--idle-s SECONDS] [--foreground]"


class UsageError(Exception):
    """The command line was not understood."""


def main(argv: list[str]) -> int:
    """0: a runner serves the directory. 1: none could be started. 2: wrong usage."""
    try:
        data_dir, idle_s, foreground = _parse(argv)
    except UsageError as exc:
        print(f"{exc}\n{_USAGE}", file=sys.stderr)  # noqa: T201 - a command's answer
        return 2
    try:
        _leave_everything()
        os.makedirs(data_dir, 0o700, exist_ok=True)
        return _serve(data_dir, idle_s, -1) if foreground else _detach(data_dir, idle_s)
    except OSError as exc:
        print(f"runner: {exc}", file=sys.stderr)  # noqa: T201
        return 1


def _parse(argv: list[str]) -> tuple[str, float, bool]:
    data_dir, idle_s, foreground = "", IDLE_S, False
    left = [item for at, item in enumerate(argv) if not (at == 0 and item == "runner")]
    while left:
        option, _, value = left.pop(0).partition("=")
        if option == "--foreground":
            foreground = True
            continue
        if option not in ("--data-dir", "--idle-s"):
            raise UsageError(f"runner: no such option: {option}")
        if not value:
            if not left:
                raise UsageError(f"runner: {option} needs a value")
            value = left.pop(0)
        if option == "--data-dir":
            data_dir = os.path.abspath(value)
            continue
        try:
            idle_s = float(value)
        except ValueError:
            idle_s = -1.0
        if not 0 <= idle_s <= 1e6:
            raise UsageError("runner: --idle-s takes seconds from 0 to 1000000")
    if not data_dir:
        raise UsageError("runner: --data-dir is missing")
    return data_dir, idle_s, foreground


def _leave_everything() -> None:
    """Nothing of the daemon's: descriptors, directory, signals, the environment of a bundle."""
    os.closerange(3, 2**31 - 1)
    os.umask(0o022)
    for number in signal.valid_signals():
        if number in (signal.SIGKILL, signal.SIGSTOP):
            continue
        # Neither the kernel's nor the library's own signals may be set.
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    # Handled, not ignored: what is ignored would stay so in the jobs.
    for number in (signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGXFSZ):
        signal.signal(number, _ignore)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for name in list(os.environ):
        if name.startswith(("_PYI_", "_MEIPASS")):
            del os.environ[name]
    original = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    os.environ.pop("LD_LIBRARY_PATH", None)
    if original is not None:
        os.environ["LD_LIBRARY_PATH"] = original


def _detach(data_dir: str, idle_s: float) -> int:
    """Go on as init's child; the first process stays until the runner serves, or has failed."""
    ready, say_ready = os.pipe2(os.O_CLOEXEC)
    if os.fork():
        os.close(say_ready)
        answer = os.read(ready, 1)
        return answer[0] if answer else 1
    os.close(ready)
    code = 1
    try:
        with contextlib.suppress(PermissionError):
            os.setsid()
        code = _serve(data_dir, idle_s, say_ready)
    except OSError as exc:
        # Standard error is still the starter's until the runner serves.
        print(f"runner: {exc}", file=sys.stderr, flush=True)  # noqa: T201
    except Exception:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def _serve(data_dir: str, idle_s: float, say_ready: int) -> int:
    lock = os.open(f"{data_dir}/runner.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if not _locked(lock):
        code = 0 if _proved_alive(data_dir) else 1
        if code:
            print("runner: another holds the lock, but does not answer", file=sys.stderr)  # noqa: T201
        _say(say_ready, code)
        return code
    os.ftruncate(lock, 0)
    os.write(lock, f"{os.getpid()}\n".encode())
    log = Log(data_dir)
    libc.become_subreaper()
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot_id = file.read().strip()
    journal = Journal(data_dir, boot_id)
    cgroups = Cgroups(journal.key)
    epoll = select.epoll()
    core = Core(journal, cgroups, epoll, now_ns())
    listener = _listen(data_dir)
    loop = Loop(core, epoll, listener, idle_s, log.write)
    log.write(f"runner {os.getpid()} serves; tracking by {cgroups.tracking}")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    os.chdir("/")
    _say(say_ready, 0)
    gc.collect()
    gc.freeze()  # A collection would touch, and so copy, every page shared with a forked child.
    gc.set_threshold(50_000, 20, 100)
    try:
        loop.run()
    except BaseException as exc:
        log.write(f"the runner ended by {type(exc).__name__}: {exc}")
        raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{data_dir}/runner.sock")
    cgroups.remove()
    log.write("runner ended")
    return 0


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _say(fd: int, code: int) -> None:
    if fd >= 0:
        os.write(fd, bytes([code]))
        os.close(fd)


def _proved_alive(data_dir: str) -> bool:
    """Ask the other until it answers; it may be starting just now."""
    deadline = time.monotonic() + ALIVE_S_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(_address(data_dir))
            sock.sendall(encode({"kind": "ping"}))
            if any(f["kind"] == "pong" for f in Decoder().feed(sock.recv(65536))):
                return True
        time.sleep(0.05)
    return False


def _address(data_dir: str) -> str:
    """The socket's path through a descriptor: a real one may be too long for its field."""
    folder = os.open(data_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _folders.append(folder)
    while len(_folders) > 1:
        os.close(_folders.pop(0))
    return f"/proc/self/fd/{folder}/runner.sock"


_folders: list[int] = []


def _listen(data_dir: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(f"{data_dir}/runner.sock")
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(_address(data_dir))
    finally:
        os.umask(mask)
    listener.listen(16)
    listener.setblocking(False)
    return listener


def _ignore(number: int, frame: object) -> None:
    """A handler, so that the signal is neither deadly here nor ignored by the jobs."""


class Log:
    """What the runner says of itself: D/runner.log, at most twice LOG_BYTES_MAX with the old."""

    def __init__(self, data_dir: str) -> None:
        self._path = f"{data_dir}/runner.log"

    def write(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = f"{stamp} [{os.getpid()}] {text[:2000]}\n".encode("utf-8", "replace")
        # A full disk must not end the runner: its jobs are worth more than its log.
        with contextlib.suppress(OSError):
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(fd, line)
                full = os.fstat(fd).st_size > LOG_BYTES_MAX
            finally:
                os.close(fd)
            if full:
                os.replace(self._path, f"{self._path}.1")
