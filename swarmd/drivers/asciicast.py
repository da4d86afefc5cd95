"""Recordings of terminals as asciicast v2: a head, then a line for each moment. A file stays within
its bound and ends with a whole line; what was typed is not in it, but for what the host showed."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import trio

from swarmd.drivers.files import SLICE_BYTES, disk_refusals, open_new, remove, write_all

log = logging.getLogger(__name__)

HELD_BYTES_MAX = 64 * 1024
LAST_BYTES = 256
"""Kept free for the line that says why it stops."""
ASIDE = ".unreadable"
ASIDE_MAX = 16
_encode = msgspec.json.Encoder().encode


class Recording:
    """One task shows and resizes at a time; any may flush. A disk that takes no more stops the
    recording, never the terminal."""

    def __init__(self, path: Path, fd: int, bytes_max: int, size_bytes: int) -> None:
        self.path = path
        self.cut = False
        """Something was left out."""
        self._fd = fd
        self._bytes_max = bytes_max
        self._began = trio.current_time()
        self._size_bytes = size_bytes
        self._held = bytearray()
        self._writing = trio.Lock()

    async def shown(self, text: str) -> None:
        """This came on the screen. Waits for the disk where much is held."""
        self._add("o", text)
        if len(self._held) >= HELD_BYTES_MAX:
            await self.flush()

    def resized(self, cols: int, rows: int) -> None:
        self._add("r", f"{cols}x{rows}")

    async def flush(self) -> None:
        async with self._writing:
            await self._write(sync=False)

    async def close(self) -> None:
        """Flushed and fsynced."""
        async with self._writing:
            if self._fd >= 0:
                await self._write(sync=True)
                fd, self._fd = self._fd, -1
                os.close(fd)

    def _add(self, kind: str, data: str) -> None:
        if self.cut:
            return
        line = self._line(kind, data)
        if self._size_bytes + len(line) + LAST_BYTES > self._bytes_max:
            self.cut = True
            words = f"the recording stops here: it has the {self._bytes_max} bytes that it may have"
            line = self._line("m", words)
        self._held += line
        self._size_bytes += len(line)

    def _line(self, kind: str, data: str) -> bytes:
        moment = round(trio.current_time() - self._began, 6)
        return _encode((moment, kind, data)) + b"\n"

    async def _write(self, *, sync: bool) -> None:
        data, self._held = self._held, bytearray()
        if self._fd < 0 or not (data or sync):
            return
        try:
            with trio.CancelScope(shield=True):  # a file is whole lines
                await trio.to_thread.run_sync(_append, self._fd, data, sync)
        except OSError as error:
            if not self.cut:
                self.cut = True
                log.warning(
                    "a recording stops: the disk takes no more of it",
                    extra={"path": str(self.path), "error": os.strerror(error.errno or 0)},
                )


async def open_recording(
    path: Path, *, cols: int, rows: int, term: str, title: str, at_s: int, bytes_max: int
) -> Recording:
    """A new file with its head. Unavailable: the disk cannot take it."""
    head = _encode({
        "version": 2, "width": cols, "height": rows, "timestamp": at_s, "title": title,
        "env": {"TERM": term},
    }) + b"\n"  # fmt: skip
    with disk_refusals(path):
        fd = await trio.to_thread.run_sync(_begin, path, head)
    return Recording(path, fd, bytes_max, len(head))


def mend(path: Path) -> int | None:
    """Cut a file whose writer died after its last whole line; how much is left, and None where
    there is no file. Blocks. OSError, as the disk has it."""
    try:
        file = path.open("r+b")
    except FileNotFoundError:
        return None
    with file:
        at = size_bytes = os.fstat(file.fileno()).st_size
        while at > 0:
            start = max(0, at - SLICE_BYTES)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < size_bytes:
            file.truncate(at)
            os.fsync(file.fileno())
    return at


async def pieces(path: Path) -> AsyncIterator[bytes]:
    """The file as it lies there. OSError, as the disk has it."""
    async with await trio.open_file(path, "rb") as file:
        while piece := await file.read(SLICE_BYTES):
            yield piece


def drop(path: Path) -> None:
    """Of no more use. Where the disk does not let go of it, there is the next start. Blocks."""
    try:
        remove(path)
    except OSError as error:
        log.warning(
            "a recording that is not needed here stays on the disk",
            extra={"path": str(path), "error": os.strerror(error.errno or 0)},
        )


def set_aside(path: Path) -> None:
    """One that cannot be read stays for whoever can; the oldest such go. Blocks."""
    try:
        path.replace(path.with_suffix(ASIDE))
        aside = [(file.stat().st_mtime_ns, file) for file in path.parent.glob(f"*{ASIDE}")]
        for _, old in sorted(aside)[:-ASIDE_MAX]:
            remove(old)
    except OSError as error:
        log.warning(
            "a recording that cannot be read could not be put aside",
            extra={"path": str(path), "error": os.strerror(error.errno or 0)},
        )


def _begin(path: Path, head: bytes) -> int:
    fd = open_new(path, 0o600)
    try:
        write_all(fd, head)
    except BaseException:
        os.close(fd)
        remove(path)
        raise
    return fd


def _append(fd: int, data: bytes | bytearray, sync: bool) -> None:
    if data:
        before = os.fstat(fd).st_size
        try:
            write_all(fd, bytes(data))
        except OSError:
            os.ftruncate(fd, before)  # no half of a line
            os.lseek(fd, before, os.SEEK_SET)
            raise
    if sync:
        os.fsync(fd)
