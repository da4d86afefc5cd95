"""The three calls of the C library that Python lacks; each raises OSError as Python's own do."""

from __future__ import annotations

import ctypes
import os
from functools import partial

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_fallocate = getattr(_libc, "fallocate64", None) or _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]

_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_FALLOC_KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02


def become_subreaper() -> None:
    """From now on orphans of our descendants become our children, and can be seen and reaped."""
    _checked(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def forbid_new_privileges() -> None:
    """No setuid program gives this process, or what comes of it, more than it has."""
    _checked(_prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")


forbid_new_privileges_in_child = partial(_prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
"""The same without a line of Python, for between fork and exec. The call with these arguments
cannot fail on a kernel that has it at all, which is each one since 3.5."""


def punch_hole(fd: int, start: int, length: int) -> None:
    """Give the blocks of a range back to the filesystem; the file keeps its size."""
    _checked(_fallocate(fd, _FALLOC_KEEP_SIZE_PUNCH_HOLE, start, length), "fallocate")


def _checked(result: int, call: str) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{call}: {os.strerror(code)}")
