"""Logs of attempts on this node's disk: where they lie, how they are read while they grow, and how
much of them is kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio

from swarmd.cluster.asks import LogChunk, ReadLog
from swarmd.domain.errors import Busy, Invalid, NotFound
from swarmd.domain.jobs import AttemptId
from swarmd.drivers.inotify import Watches

STREAMS = ("stdout", "stderr")
READ_BYTES_MAX = 1024 * 1024
READERS_MAX = 256
_SEEK_DATA, _SEEK_HOLE = os.SEEK_DATA, os.SEEK_HOLE


class AttemptLogs:
    """`running` says whether an attempt of this node is under way; `ended` lets those who follow
    its logs see the end."""

    def __init__(self, root: Path, running: Callable[[AttemptId], bool]) -> None:
        self._root = root
        self._running = running
        self._ends: dict[AttemptId, trio.Event] = {}
        self._readers = 0
        self._watches = Watches()

    def directory(self, attempt_id: AttemptId) -> Path:
        return self._root / str(int(attempt_id))

    def ended(self, attempt_id: AttemptId) -> None:
        event = self._ends.pop(attempt_id, None)
        if event is not None:
            event.set()

    async def read(self, ask: ReadLog) -> LogChunk:
        """NotFound: this node has no log of it, or not any more."""
        if ask.stream not in STREAMS:
            raise Invalid(f"stream must be one of {', '.join(STREAMS)}", field="stream")
        if self._readers >= READERS_MAX:
            raise Busy("too many follow logs on this node; try again shortly")
        self._readers += 1
        try:
            return await self._read(ask)
        finally:
            self._readers -= 1

    async def _read(self, ask: ReadLog) -> LogChunk:
        path = self.directory(ask.attempt_id) / ask.stream
        bytes_max = max(1, min(ask.bytes_max, READ_BYTES_MAX))
        offset = max(0, ask.offset)
        with trio.move_on_after(ask.wait_s):
            while True:
                # Asked before the read: what is written until the end is then still read.
                running = self._running(ask.attempt_id)
                data, at = self._pread(path, offset, bytes_max, running)
                if data or not running:
                    return LogChunk(data, at + len(data), not running and not data)
                if ask.wait_s <= 0:
                    break
                await self._change(path, ask.attempt_id, offset)
        return LogChunk(b"", offset, not self._running(ask.attempt_id))

    def _pread(self, path: Path, offset: int, bytes_max: int, running: bool) -> tuple[bytes, int]:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            if running or path.parent.is_dir():
                return b"", offset  # not started yet, or nothing printed there
            raise NotFound("this node has no log of that attempt", path=path.name) from None
        try:
            start = offset
            with suppress(OSError):  # past the end, or a filesystem that knows no holes
                start = max(offset, os.lseek(fd, offset, _SEEK_DATA))
                hole = os.lseek(fd, start, _SEEK_HOLE)
                bytes_max = min(bytes_max, max(1, hole - start))
            note = (
                f"[... {start - offset} bytes cut here ...]\n".encode() if start > offset else b""
            )
            data = os.pread(fd, bytes_max, start)
            return (note + data, start - len(note)) if data else (b"", offset)
        finally:
            os.close(fd)

    async def _change(self, path: Path, attempt_id: AttemptId, offset: int) -> None:
        """Wait until the file grew, or appeared, or the attempt ended."""
        ended = self._ends.setdefault(attempt_id, trio.Event())
        async with trio.open_nursery() as nursery:

            async def first(wait: Callable[[], object]) -> None:
                await wait()  # type: ignore[misc]
                nursery.cancel_scope.cancel()

            nursery.start_soon(first, ended.wait)
            # The directory is made when the attempt is started, the file with its first byte.
            made = next((at for at in (path.parent, path) if not at.exists()), None)
            watches = self._watches
            watching = watches.watching(path) if made is None else watches.appearing(made)
            with suppress(FileNotFoundError), watching as watch:
                news = _size(path) > offset if made is None else made.exists()
                if not news and self._running(attempt_id):
                    await first(watch.changed)
                nursery.cancel_scope.cancel()

    def forget_oldest(self, bytes_max: int, keep: frozenset[AttemptId]) -> int:
        """Remove the oldest attempts' directories until what is left fits. Blocks: in a thread."""
        sizes: list[tuple[int, int, Path]] = []
        for entry in os.scandir(self._root):
            if entry.name.isdigit() and int(entry.name) not in keep:
                with suppress(FileNotFoundError):
                    sizes.append((int(entry.name), _disk_bytes(Path(entry.path)), Path(entry.path)))
        sizes.sort()
        total = sum(size for _, size, _ in sizes)
        removed = 0
        for _, size, path in sizes:
            if total <= bytes_max:
                break
            shutil.rmtree(path, ignore_errors=True)
            total -= size
            removed += 1
        return removed


def _size(path: Path) -> int:
    return path.stat().st_size


def _disk_bytes(directory: Path) -> int:
    total = 4096
    for entry in os.scandir(directory):
        with suppress(FileNotFoundError):
            total += entry.stat(follow_symlinks=False).st_blocks * 512
    return total
