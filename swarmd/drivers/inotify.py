"""Waiting for a file to change, by the kernel's word: Linux alone, and never on the loop."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

_IN_MODIFY, _IN_CLOSE_WRITE, _IN_DELETE_SELF = 0x2, 0x8, 0x400
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def changed(self) -> None:
        """Wait until the file was written to, closed or removed since the last time."""
        while True:
            try:
                os.read(self._fd, 65536)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._fd)


@contextmanager
def watching(path: Path) -> Iterator[Watch]:
    """FileNotFoundError where there is no such file; OSError where the kernel has no watch left."""
    fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    try:
        mask = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_DELETE_SELF
        if _libc.inotify_add_watch(fd, os.fsencode(path), mask) < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(path))
        yield Watch(fd)
    finally:
        os.close(fd)
