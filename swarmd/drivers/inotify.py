"""Waiting for files to change, by the kernel's word: Linux alone, and never on the loop.

One instance serves all who wait: the kernel takes up to 20 ms to close one, and a watch but
microseconds to add or remove. Whoever waits first reads for the others too.
"""

from __future__ import annotations

import ctypes
import os
import struct
import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import trio

_IN_MODIFY, _IN_CLOSE_WRITE, _IN_DELETE_SELF = 0x2, 0x8, 0x400
_IN_MOVED_TO, _IN_CREATE, _IN_ONLYDIR = 0x80, 0x100, 0x1000000
_CHANGES = _IN_MODIFY | _IN_CLOSE_WRITE | _IN_DELETE_SELF
_ENTRIES = _IN_MOVED_TO | _IN_CREATE | _IN_DELETE_SELF | _IN_ONLYDIR
_EVENT = struct.Struct("=iIII")
_OVERFLOW = -1
_libc = ctypes.CDLL(None, use_errno=True)


class Watch:
    def __init__(self, watches: Watches, name: bytes) -> None:
        self._watches = watches
        self.name = name
        """In a watched directory, the one entry that matters."""
        self.fired = False
        self.wake = trio.Event()
        """Fired, or nobody reads any more."""

    async def changed(self) -> None:
        """Wait until the file was written to, closed or removed since the last time, or the entry
        has appeared. It may also return for no reason."""
        await self._watches.wait(self)
        self.fired = False


class Watches:
    def __init__(self) -> None:
        self._fd = -1
        self._by_number: dict[int, set[Watch]] = {}
        self._reading = False

    def watching(self, path: Path) -> AbstractContextManager[Watch]:
        """FileNotFoundError where there is no such file; OSError where the kernel has no watch
        left."""
        return self._watching(path, _CHANGES, b"")

    def appearing(self, path: Path) -> AbstractContextManager[Watch]:
        """Wait for a file to be made. FileNotFoundError where its directory is not there either."""
        return self._watching(path.parent, _ENTRIES, os.fsencode(path.name))

    @contextmanager
    def _watching(self, path: Path, mask: int, name: bytes) -> Iterator[Watch]:
        if self._fd < 0:
            self._open()
        number = _libc.inotify_add_watch(self._fd, os.fsencode(path), mask)
        if number < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), str(path))
        watch = Watch(self, name)
        watchers = self._by_number.setdefault(number, set())
        watchers.add(watch)
        try:
            yield watch
        finally:
            watchers.discard(watch)
            if not watchers:
                del self._by_number[number]
                # A file that is gone has taken its watch along, which is no matter.
                _libc.inotify_rm_watch(self._fd, number)

    def _open(self) -> None:
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            code = ctypes.get_errno()
            raise OSError(code, f"no file can be watched: {os.strerror(code)}")
        weakref.finalize(self, os.close, self._fd)

    async def wait(self, mine: Watch) -> None:
        while not mine.fired:
            if not self._reading:
                await self._read_until_fired(mine)
                return
            mine.wake = trio.Event()
            await mine.wake.wait()

    async def _read_until_fired(self, mine: Watch) -> None:
        self._reading = True
        try:
            while not mine.fired:
                try:
                    self._tell(os.read(self._fd, 65536))
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(self._fd)
        finally:
            self._reading = False
            for watchers in self._by_number.values():
                for watch in watchers:
                    watch.wake.set()  # one of them reads on

    def _tell(self, data: bytes) -> None:
        at = 0
        while at < len(data):
            number, _, _, name_bytes = _EVENT.unpack_from(data, at)
            at += _EVENT.size
            name = data[at : at + name_bytes].rstrip(b"\0")
            at += name_bytes
            told = self._by_number.values() if number == _OVERFLOW else (
                self._by_number.get(number, set()),
            )  # fmt: skip
            for watchers in told:
                for watch in watchers:
                    if name and watch.name and name != watch.name:
                        continue
                    watch.fired = True
                    watch.wake.set()
