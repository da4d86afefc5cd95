"""This node's blobs on disk, named by their sha256: what is served under a name has that hash.

`root/aa/<sha256>`, `root/tmp` for what is being written, `root/damaged` for what rotted. A blob
is fsynced, with its directory, before its name is given out.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from threading import Lock

import trio

from swarmd.domain.blobs import BlobInfo, OtherContent, checked_sha256
from swarmd.domain.errors import NotFound, TooLarge, Unavailable
from swarmd.drivers.files import (
    SLICE_BYTES,
    disk_refusals,
    fsync_dir,
    leave_room,
    new_file,
    open_new,
    remove,
    sha256_of,
    write_all,
)

log = logging.getLogger(__name__)

DAMAGED_KEPT_MAX = 4
LIST_MAX = 1000
_SHARD = re.compile(r"[0-9a-f]{2}")
_NAME = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """Make it before the loop serves: it walks the disk once, to clean and to count."""

    def __init__(self, root: Path, *, bytes_max: int) -> None:
        self.root = root
        self.bytes_max = bytes_max
        self._tmp = root / "tmp"
        self._damaged = root / "damaged"
        self._serial = itertools.count()
        self._placing = Lock()
        self._reserved_bytes = 0
        for directory in (root, self._tmp, self._damaged):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._tmp.iterdir():  # by a daemon that died while it wrote
            remove(left)
        self._total_bytes = sum(info.size_bytes for info in self._walk(""))
        self.fresh: set[str] | None = set()
        """What was put since it was opened, until whoever tidies up says that it has."""

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    def path(self, sha256: str) -> Path:
        """Where the blob lies, or would."""
        name = checked_sha256(sha256)
        return self.root / name[:2] / name

    def has(self, sha256: str) -> bool:
        return self.path(sha256).exists()

    async def put(
        self,
        chunks: AsyncIterator[bytes],
        *,
        expected_sha256: str | None = None,
        bytes_max: int | None = None,
    ) -> BlobInfo:
        """Keep what the chunks hold, durably, or nothing of it.

        Refused with TooLarge over `bytes_max`, OtherContent where the hash is not the expected one,
        Unavailable where the store or the disk is full.
        """
        wanted = None if expected_sha256 is None else checked_sha256(expected_sha256)
        temp = self._temp()
        with self._reservation() as reserve:
            async with _closing(chunks), new_file(temp) as file:
                async for chunk in chunks:
                    if bytes_max is not None and file.size_bytes + len(chunk) > bytes_max:
                        raise TooLarge(
                            f"the blob is larger than the {bytes_max} bytes allowed",
                            bytes_max=bytes_max,
                        )
                    reserve(len(chunk))
                    await file.write(chunk)
                written = await file.finish()
                _check_expected(wanted, written.sha256)
                with disk_refusals(temp):
                    await trio.to_thread.run_sync(self._place, temp, written)
        return written

    async def put_bytes(self, data: bytes, *, expected_sha256: str | None = None) -> BlobInfo:
        """Like `put`, for what is in memory already: one turn of a worker thread."""
        wanted = None if expected_sha256 is None else checked_sha256(expected_sha256)
        temp = self._temp()
        with self._reservation() as reserve, disk_refusals(temp):
            reserve(len(data))
            return await trio.to_thread.run_sync(self._put_whole, temp, data, wanted)

    @asynccontextmanager
    async def open(self, sha256: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """The blob's bytes in slices. Refused with NotFound where it is not here, or damaged.

        A small blob is checked before its first byte is given; a large one while it is read:
        then NotFound comes in place of the last slice.
        """
        name = checked_sha256(sha256)
        try:
            fd = await trio.to_thread.run_sync(_open_for_reading, self.path(name))
        except FileNotFoundError:
            raise _missing(name) from None
        chunks = self._slices(fd, name)
        try:
            if os.fstat(fd).st_size <= SLICE_BYTES:
                data = b"".join([chunk async for chunk in chunks])
                chunks = _once(data)
            yield chunks
        except _Damaged:
            await trio.to_thread.run_sync(self._set_aside, name)
            raise _missing(name, "was damaged on this disk and was set aside") from None
        finally:
            await chunks.aclose()
            os.close(fd)

    async def read(self, sha256: str, *, bytes_max: int) -> bytes:
        """A whole blob into memory. Refused with TooLarge over `bytes_max`."""
        name = checked_sha256(sha256)
        try:
            data = await trio.to_thread.run_sync(_read_whole, self.path(name), name, bytes_max)
        except FileNotFoundError:
            raise _missing(name) from None
        except _Damaged:
            await trio.to_thread.run_sync(self._set_aside, name)
            raise _missing(name, "was damaged on this disk and was set aside") from None
        return data

    async def verify(self, sha256: str) -> bool:
        """Hash the blob now. False: it is damaged, and was set aside. NotFound where it is not."""
        name = checked_sha256(sha256)
        try:
            found = await trio.to_thread.run_sync(sha256_of, self.path(name))
        except FileNotFoundError:
            raise _missing(name) from None
        if found != name:
            await trio.to_thread.run_sync(self._set_aside, name)
        return found == name

    async def delete(self, sha256: str) -> bool:
        """Who reads it at present still reads it to its end. False where there was none."""
        return await trio.to_thread.run_sync(self._delete, checked_sha256(sha256))

    async def list_blobs(self, *, after: str = "", limit: int = LIST_MAX) -> list[BlobInfo]:
        """Ordered by hash; `after` is the last one of the page before."""
        start = checked_sha256(after, "after") if after else ""
        count = min(limit, LIST_MAX)
        return await trio.to_thread.run_sync(
            lambda: list(itertools.islice(self._walk(start), count))
        )

    # Below here: in worker threads.

    def _place(self, temp: Path, blob: BlobInfo) -> None:
        """Over one of the same name as well: that heals a damaged one, and readers keep theirs."""
        if self.fresh is not None:
            self.fresh.add(blob.sha256)
        target = self.path(blob.sha256)
        if not target.parent.exists():
            target.parent.mkdir(mode=0o700, exist_ok=True)
            fsync_dir(self.root)
        with self._placing:
            before = _size(target)
            temp.replace(target)
            self._total_bytes += blob.size_bytes - before
        fsync_dir(target.parent)

    def _put_whole(self, temp: Path, data: bytes, wanted: str | None) -> BlobInfo:
        blob = BlobInfo(hashlib.sha256(data).hexdigest(), len(data))
        _check_expected(wanted, blob.sha256)
        try:
            fd = open_new(temp, 0o600)
            try:
                leave_room(fd, len(data))
                write_all(fd, data)
                os.fsync(fd)
            finally:
                os.close(fd)
            self._place(temp, blob)
        except BaseException:
            remove(temp)
            raise
        return blob

    def _delete(self, name: str) -> bool:
        with self._placing:
            path = self.path(name)
            size = _size(path)
            try:
                path.unlink()
            except FileNotFoundError:
                return False
            self._total_bytes -= size
            return True

    def _set_aside(self, name: str) -> None:
        with self._placing:
            path = self.path(name)
            # Since it was read, a sound one may have taken its place, or it is gone already.
            with suppress(FileNotFoundError):
                if sha256_of(path) != name:
                    size = _size(path)
                    path.replace(self._damaged / name)
                    self._total_bytes -= size
                    log.error("a blob is damaged and was set aside", extra={"sha256": name})
            kept = sorted(self._damaged.iterdir(), key=lambda p: p.stat().st_mtime_ns)
            for old in kept[:-DAMAGED_KEPT_MAX]:
                remove(old)

    def _walk(self, after: str) -> Iterator[BlobInfo]:
        for shard in _names(self.root):
            if not _SHARD.fullmatch(shard) or shard < after[:2]:
                continue
            for name in _names(self.root / shard):
                if name > after and _NAME.fullmatch(name):
                    with suppress(FileNotFoundError):  # deleted meanwhile
                        yield BlobInfo(name, (self.root / shard / name).stat().st_size)

    # Below here: on the loop.

    def _temp(self) -> Path:
        return self._tmp / f"put-{next(self._serial)}"

    @contextmanager
    def _reservation(self) -> Iterator[_Reserve]:
        """Room taken by what is being written counts, or many puts at once would pass the bound."""
        taken = _Reserve(self)
        try:
            yield taken
        finally:
            self._reserved_bytes -= taken.size_bytes

    async def _slices(self, fd: int, name: str) -> AsyncGenerator[bytes, None]:
        """One slice behind the reading, so that the last is only given once the hash is right."""
        digest = hashlib.sha256()

        def read() -> bytes:
            data = os.read(fd, SLICE_BYTES)
            digest.update(data)
            return data

        held = b""
        while data := await trio.to_thread.run_sync(read):
            if held:
                yield held
            held = data
        if digest.hexdigest() != name:
            raise _Damaged
        if held:
            yield held


class _Reserve:
    def __init__(self, store: BlobStore) -> None:
        self.size_bytes = 0
        self._store = store

    def __call__(self, more_bytes: int) -> None:
        store = self._store
        if store._total_bytes + store._reserved_bytes + more_bytes > store.bytes_max:
            raise Unavailable(
                f"the blob store is full: it holds {store._total_bytes} bytes, more are being"
                f" written, and {store.bytes_max} are allowed",
                bytes_max=store.bytes_max,
            )
        store._reserved_bytes += more_bytes
        self.size_bytes += more_bytes


class _Damaged(Exception):
    """The bytes on disk do not have the hash that names them."""


@asynccontextmanager
async def _closing(chunks: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """A generator that is left early is closed here and now, not whenever it is collected."""
    try:
        yield
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()


async def _once(data: bytes) -> AsyncGenerator[bytes, None]:
    if data:
        yield data


def _open_for_reading(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _read_whole(path: Path, name: str, bytes_max: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise TooLarge(f"the blob is larger than the {bytes_max} bytes allowed")
    if hashlib.sha256(data).hexdigest() != name:
        raise _Damaged
    return data


def _check_expected(wanted: str | None, found: str) -> None:
    if wanted is not None and wanted != found:
        raise OtherContent(wanted, found)


def _missing(name: str, how: str = "is not on this node") -> NotFound:
    return NotFound(f"blob:sha256:{name} {how}", sha256=name)


def _names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
