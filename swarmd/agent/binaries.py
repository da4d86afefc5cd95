"""Executables by sha256, ready to run: each is hashed again every time it is handed out.

The files are the daemon's own and closed before they get their name, so that a job's account can
run but not change them, and no fork can hold one open for writing when it is started. What is
handed out is pinned until released; only what is not pinned makes room, least recently used first.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import stat
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Protocol

import trio

from swarmd.domain.blobs import blob_of, checked_sha256
from swarmd.domain.errors import Invalid, SwarmError, Unavailable
from swarmd.domain.jobs import Fetch
from swarmd.drivers.files import INLINE_BYTES_MAX, fsync_dir, new_file, remove, sha256_of
from swarmd.drivers.http import DEFAULTS, HttpSettings, download

log = logging.getLogger(__name__)

CACHE_BYTES_MAX = 400_000_000
ENTRIES_MAX = 10_000
FETCHES_MAX = 4
FETCH_TIMEOUT_S = 600.0
MODE = 0o755
HASHES_A_TURN = 8
"""Of small files, on the loop, before other tasks get their turn: 2 ms at worst."""


class Blobs(Protocol):
    def open(self, sha256: str, /) -> AbstractAsyncContextManager[AsyncIterator[bytes]]: ...


class Binaries:
    """Make it before the loop serves: it walks the cache once."""

    def __init__(
        self,
        root: Path,
        blobs: Blobs,
        *,
        bytes_max: int = CACHE_BYTES_MAX,
        http: HttpSettings = DEFAULTS,
        fetch_timeout_s: float = FETCH_TIMEOUT_S,
        fetches_max: int = FETCHES_MAX,
    ) -> None:
        self.bytes_max = bytes_max
        self._root = root
        self._prefix = f"{root}/"
        self._tmp = root / "tmp"
        self._blobs = blobs
        self._http = http
        self._fetch_timeout_s = fetch_timeout_s
        self._fetching: dict[str, _Fetching] = {}
        self._fetch_slots = trio.CapacityLimiter(fetches_max)
        self._serial = itertools.count()
        self._pins: Counter[str] = Counter()
        self._cached: OrderedDict[str, _Cached] = OrderedDict()
        """Of every cached file, the least recently used first."""
        self._total_bytes = 0
        self._open()

    @property
    def total_bytes(self) -> int:
        return self._total_bytes

    async def obtain(self, source: Fetch) -> Path:
        """The executable, verified just now, and pinned: `release` it when its attempt has ended.

        Refused with Invalid (the source, or another hash than expected), NotFound (no such blob
        here), TooLarge or Unavailable (the download, the disk).
        """
        sha256 = check_source(source)
        while True:
            # Pinned first: it must not be evicted while a thread hashes it.
            self._pins[sha256] += 1
            try:
                if await self._is_sound(sha256):
                    return self._path(sha256)
                fetching = self._fetching.get(sha256)
                if fetching is None:
                    await self._fetch(source, sha256)
                    return self._path(sha256)
                await fetching.ended.wait()
                if fetching.error is not None and fetching.url == source.url:
                    raise _same(fetching.error)
            except BaseException:
                self._unpin(sha256)
                raise
            self._unpin(sha256)  # and look again: it is there, or our own source is to be tried

    def has(self, source: Fetch) -> bool:
        """Whether it is cached: `obtain` will not have to fetch, unless the file is damaged."""
        return source.sha256.lower() in self._cached

    def path(self, source: Fetch) -> Path:
        """Where it lies, or would: for `hold`, of what is known to run."""
        return self._path(check_source(source))

    async def obtain_many(self, sources: Sequence[Fetch]) -> list[Path | SwarmError]:
        """As `obtain` for each, in their places; equal sources share one verification.

        It takes as long as the slowest fetch: what must not wait for one (`has`) is asked apart.
        """
        places: dict[Fetch, list[int]] = {}
        for index, source in enumerate(sources):
            places.setdefault(source, []).append(index)
        outcomes: list[Path | SwarmError | None] = [None] * len(sources)

        async def obtain_for(source: Fetch, indices: list[int]) -> None:
            outcome: Path | SwarmError
            try:
                outcome = await self.obtain(source)
                self._pins[outcome.name] += len(indices) - 1
            except SwarmError as error:
                outcome = error
            for index in indices:
                outcomes[index] = outcome

        try:
            for number, source in enumerate([s for s in places if self.has(s)]):
                if number % HASHES_A_TURN == HASHES_A_TURN - 1:
                    await trio.lowlevel.checkpoint()
                await obtain_for(source, places.pop(source))
            if places:
                async with trio.open_nursery() as nursery:
                    for source, indices in places.items():
                        nursery.start_soon(obtain_for, source, indices)
        except BaseException:
            for outcome in outcomes:
                if isinstance(outcome, Path):
                    self.release(outcome)
            raise
        return [outcome for outcome in outcomes if outcome is not None]

    def release(self, path: Path) -> None:
        """What `obtain` gave is no longer run; once for each time."""
        self._unpin(path.name)

    def hold(self, path: Path) -> None:
        """Pin what runs already, when attempts are taken back from the runner."""
        self._pins[path.name] += 1

    @asynccontextmanager
    async def held(self, source: Fetch) -> AsyncIterator[Path]:
        path = await self.obtain(source)
        try:
            yield path
        finally:
            self.release(path)

    def _open(self) -> None:
        # Accounts of jobs pass through and run what they were told the name of; none may list.
        self._root.mkdir(parents=True, exist_ok=True)
        self._root.chmod(0o711)
        self._tmp.mkdir(mode=0o700, exist_ok=True)
        for left in self._tmp.iterdir():  # by a daemon that died while it fetched
            remove(left)
        found: list[tuple[int, str, int]] = []
        for path in self._root.iterdir():
            facts = path.lstat()
            if len(path.name) == 64 and stat.S_ISREG(facts.st_mode):
                found.append((facts.st_mtime_ns, path.name, facts.st_size))
        for _, name, size in sorted(found):
            self._cached[name] = _Cached(size)
            self._total_bytes += size
        for name in self._surplus():
            self._total_bytes -= self._cached.pop(name).size_bytes
            remove(self._path(name))

    def _path(self, sha256: str) -> Path:
        return Path(self._prefix + sha256)

    def _unpin(self, sha256: str) -> None:
        left = self._pins[sha256] - 1
        if left > 0:
            self._pins[sha256] = left
        else:
            del self._pins[sha256]

    async def _is_sound(self, sha256: str) -> bool:
        cached = self._cached.get(sha256)
        if cached is None:
            return False
        path = self._prefix + sha256
        try:
            if cached.size_bytes <= INLINE_BYTES_MAX:
                found = _sha256_of_small(path)
            else:
                found = await trio.to_thread.run_sync(sha256_of, Path(path))
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise Unavailable(f"the binary cannot be read: {error.strerror}") from error
            found = "nothing that can be read"
        if self._cached.get(sha256) is not cached:
            # Another task found it damaged while we hashed, and may have placed it anew already.
            return await self._is_sound(sha256)
        if found == sha256:
            self._cached.move_to_end(sha256)
            return True
        log.error("a cached binary is damaged", extra={"sha256": sha256, "found": found})
        await self._drop([sha256])
        return False

    async def _fetch(self, source: Fetch, sha256: str) -> None:
        """Fetch and place, for everybody who waits for the same hash."""
        fetching = self._fetching[sha256] = _Fetching(source.url)
        try:
            async with self._fetch_slots:
                temp = self._tmp / f"fetch-{next(self._serial)}"
                try:
                    size = await self._fetch_into(temp, source, sha256)
                    await trio.to_thread.run_sync(_place, temp, self._path(sha256))
                except OSError as error:
                    raise Unavailable(
                        f"the cache of binaries cannot take it: {error.strerror}", sha256=sha256
                    ) from error
                finally:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(remove, temp)
            self._cached[sha256] = _Cached(size)
            self._total_bytes += size
            await self._drop(self._surplus())
        except SwarmError as error:
            fetching.error = error
            raise
        finally:
            del self._fetching[sha256]
            fetching.ended.set()

    async def _fetch_into(self, temp: Path, source: Fetch, sha256: str) -> int:
        if blob_of(source.url) is not None:
            async with self._blobs.open(sha256) as chunks, new_file(temp, mode=MODE) as file:
                async for chunk in chunks:
                    await file.write(chunk)
                return (await file.finish()).size_bytes
        got = await download(
            source.url,
            temp,
            bytes_max=self.bytes_max,
            timeout_s=self._fetch_timeout_s,
            settings=self._http,
            mode=MODE,
        )
        if got.sha256 != sha256:
            encoding = got.content_encoding
            served = "" if encoding == "identity" else f" (it was served with encoding {encoding})"
            raise Invalid(
                f"the binary does not have the expected hash: expected sha256 {sha256},"
                f" got {got.sha256}{served}",
                expected=sha256,
                got=got.sha256,
            )
        return got.size_bytes

    def _surplus(self) -> list[str]:
        """What has to go. The bound gives way to what is pinned: running jobs have their own."""
        total_bytes, count, names = self._total_bytes, len(self._cached), []
        for name, cached in self._cached.items():
            if total_bytes <= self.bytes_max and count <= ENTRIES_MAX:
                break
            if name not in self._pins:
                names.append(name)
                total_bytes, count = total_bytes - cached.size_bytes, count - 1
        return names

    async def _drop(self, names: list[str]) -> None:
        """Out of the way at once, since the name may be placed anew; unlinked at leisure."""
        moved = []
        for name in names:
            self._total_bytes -= self._cached.pop(name).size_bytes
            aside = self._tmp / f"drop-{next(self._serial)}"
            with suppress(FileNotFoundError):
                self._path(name).rename(aside)
                moved.append(aside)
        with trio.CancelScope(shield=True):
            for aside in moved:
                await trio.to_thread.run_sync(remove, aside)


class _Cached:
    """A file in the cache; another object stands for another file of the same name."""

    __slots__ = ("size_bytes",)

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


class _Fetching:
    def __init__(self, url: str) -> None:
        self.url = url
        self.ended = trio.Event()
        self.error: SwarmError | None = None


def check_source(source: Fetch) -> str:
    """The sha256 in lower case. Refused with Invalid where a blob's url names another one."""
    sha256 = checked_sha256(source.sha256, "binary_sha256")
    blob = blob_of(source.url)
    if blob is not None and blob != sha256:
        raise Invalid(
            f"the url names blob {blob}, but the sha256 beside it is {sha256}: they must agree",
            field="binary_sha256",
        )
    return sha256


def _same(error: SwarmError) -> SwarmError:
    """The same refusal for another task: one exception raised in two grows both their traces."""
    return type(error)(error.message, **error.facts)


def _sha256_of_small(path: str) -> str:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One byte more than there may be: a file that grew does not have the hash.
        return hashlib.sha256(os.read(fd, INLINE_BYTES_MAX + 1)).hexdigest()
    finally:
        os.close(fd)


def _place(temp: Path, target: Path) -> None:
    temp.replace(target)
    fsync_dir(target.parent)
