"""What a one-file bundle sets right before the first line of ours, in each of its processes.

The bundle is two processes: the loader, which unpacked it, waits and will delete it, and this one,
Python. Nobody else may notice: neither what we start, nor who kills us, nor who manages us.
"""

import contextlib
import ctypes
import fcntl
import os
import shutil
import signal
import sys
import time

_UNPACKED_PREFIX = "_MEI"
_MARKER = "swarmd-unpacked"
_ABANDONED_AGE_S = 60.0
"""Younger ones may still be unpacked by their loader, and are not held yet."""
_PR_SET_PDEATHSIG = 1


def _set_right() -> None:
    # The very file that was started, though another may take its name while this one runs.
    import pyimod02_importers  # type: ignore[import-not-found]  # PyInstaller's, in the bundle

    pyimod02_importers.pyz_archive._filename = "/proc/self/exe"
    # What we start finds the environment that we were given.
    for name in [*os.environ]:
        if name.startswith(("_PYI_", "PYINSTALLER_")):
            del os.environ[name]
    given = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    os.environ.pop("LD_LIBRARY_PATH", None)
    if given is not None:
        os.environ["LD_LIBRARY_PATH"] = given
    # Who is asked to tell that it lives is the loader, as far as the manager knows.
    loader = os.getppid()
    if os.environ.get("WATCHDOG_PID") == str(loader):
        os.environ["WATCHDOG_PID"] = str(os.getpid())
    # SIGKILL of the process that somebody started is meant for this one. Other signals are passed
    # on by the loader itself.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != loader:
        os._exit(128 + signal.SIGKILL)
    # Held for as long as this process lives: those that tidy temporary files leave it alone.
    home = sys._MEIPASS  # type: ignore[attr-defined]
    fcntl.flock(os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), fcntl.LOCK_SH)
    if sys.argv[1:2] == ["up"]:
        _remove_abandoned(os.path.dirname(home))


def _remove_abandoned(place: str) -> None:
    """Those of ours whose loader was killed before it could."""
    with contextlib.suppress(OSError), os.scandir(place) as entries:
        for entry in entries:
            if entry.name.startswith(_UNPACKED_PREFIX):
                with contextlib.suppress(OSError):
                    _remove_if_abandoned(entry.path)


def _remove_if_abandoned(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        facts = os.fstat(fd)
        ours = facts.st_uid == os.geteuid() and os.access(f"{path}/{_MARKER}", os.F_OK)
        if ours and time.time() - facts.st_mtime > _ABANDONED_AGE_S:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(fd)


_set_right()
