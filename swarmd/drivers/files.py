"""New files, hashed as they grow and fsynced before they get their name: all of one, or none."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

import trio

from swarmd.domain.blobs import BlobInfo
from swarmd.domain.errors import Unavailable

SLICE_BYTES = 256 * 1024
INLINE_BYTES_MAX = 128 * 1024
"""Read and hashed on the loop: about 0.3 ms where the processor has no SHA instructions."""


RESERVE_BYTES, RESERVE_PART = 64 * 1024 * 1024, 20
"""What others send may not take the last of a disk, or a twentieth of a small one: the node's own
log and state grow there too, and a node that cannot write them ends."""


@contextmanager
def disk_refusals(path: Path) -> Iterator[None]:
    """Turn a disk that cannot take the data into a refusal that a user understands."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            words = f"the disk under {path.parent} is full"
        elif error.errno in (errno.EROFS, errno.EIO, errno.EACCES, errno.EFBIG, errno.EMFILE):
            words = f"{path.parent} cannot be written: {os.strerror(error.errno)}"
        else:
            raise
        raise Unavailable(words, directory=str(path.parent)) from error


class HashedFile:
    """A new file while it is written. One task writes; only `finish` makes it durable."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.size_bytes = 0
        self._fd = fd
        self._sha256 = hashlib.sha256()
        self._pending: list[bytes | bytearray] = []
        self._pending_bytes = 0

    async def write(self, data: bytes | bytearray) -> None:
        """Take the bytes; the caller must not change them afterwards."""
        self.size_bytes += len(data)
        self._pending.append(data)
        self._pending_bytes += len(data)
        if self._pending_bytes >= SLICE_BYTES:
            with disk_refusals(self.path):
                await trio.to_thread.run_sync(self._flush)

    async def finish(self) -> BlobInfo:
        """Flush, fsync and close. The file has no writer left when this returns."""
        with disk_refusals(self.path):
            await trio.to_thread.run_sync(self._finish)
        return BlobInfo(self._sha256.hexdigest(), self.size_bytes)

    def close(self) -> None:
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)

    def _flush(self) -> None:
        data, self._pending, self._pending_bytes = b"".join(self._pending), [], 0
        leave_room(self._fd, len(data))
        self._sha256.update(data)
        write_all(self._fd, data)

    def _finish(self) -> None:
        self._flush()
        os.fsync(self._fd)
        self.close()


@asynccontextmanager
async def new_file(path: Path, *, mode: int = 0o600) -> AsyncIterator[HashedFile]:
    """A file that is not there yet, and is gone again unless the body ends well."""
    with disk_refusals(path):
        file = HashedFile(path, await trio.to_thread.run_sync(open_new, path, mode))
    try:
        yield file
    except BaseException:
        file.close()
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(remove, path)  # a large unlink takes its time
        raise
    finally:
        file.close()


def open_new(path: Path, mode: int) -> int:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    os.fchmod(fd, mode)  # whatever the umask says
    return fd


def leave_room(fd: int, size_bytes: int) -> None:
    """Raises the OSError of a full disk where these bytes would take of its reserve."""
    disk = os.fstatvfs(fd)
    reserve = min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize // RESERVE_PART)
    if disk.f_bavail * disk.f_frsize - size_bytes < reserve:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    with suppress(FileNotFoundError):
        path.unlink()


def sha256_of(path: Path) -> str:
    """Hash a file. Blocks for long on a large one: call it from a worker thread then."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        digest = hashlib.sha256()
        while data := os.read(fd, SLICE_BYTES):
            digest.update(data)
        return digest.hexdigest()
    finally:
        os.close(fd)
