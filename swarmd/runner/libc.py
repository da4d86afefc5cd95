"""The few calls of the C library that Python lacks; each raises OSError as Python's own do."""

from __future__ import annotations

import ctypes
import os
import signal

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02


def become_subreaper() -> None:
    """From now on orphans of our descendants become our children, and can be seen and reaped."""
    _checked(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def forbid_new_privileges() -> None:
    """No setuid program gives this process, or what comes of it, more than it has."""
    _checked(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


def die_with_parent() -> None:
    """SIGKILL when the parent ends; a change of account afterwards would undo it."""
    _checked(_prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def call_process(words: bytes) -> None:
    """Have ps and /proc show these words as our command line, as far as the old one was long."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    if 0 < start < end:
        ctypes.memmove(start, words[: end - start - 1].ljust(end - start, b"\0"), end - start)


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give the blocks of a range back to the filesystem; the file keeps its size."""
    _checked(_fallocate(fd, _FALLOC_KEEP_SIZE_PUNCH_HOLE, start, length), "fallocate")


def _checked(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
