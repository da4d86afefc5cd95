"""Whole files to and from other hosts: verified where they lie before they get their name, and at
once in place of the former; what fails leaves nothing."""

from __future__ import annotations

import hashlib
import posixpath
import re
import secrets
import shlex
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from pathlib import Path

import msgspec
import trio

from swarmd.domain.blobs import BlobInfo, checked_sha256
from swarmd.domain.errors import Conflict, Invalid, NotFound, SwarmError, TooLarge, Unavailable
from swarmd.drivers.files import INLINE_BYTES_MAX, SLICE_BYTES, new_file
from swarmd.drivers.ssh_sftp import PIECE_BYTES, READ, WRITE_NEW, Files, open_files

__all__ = ["Files", "Upload", "check_path", "get", "hashed", "hashing", "open_files", "put"]

PATH_BYTES_MAX = 4096
_NONE, _NO_FILE, _NO_TOOL = 44, 45, 46
_HASHED = re.compile(rb"[\s\S]*?\b([0-9a-f]{64})\b[^\n]*\n\s*([0-9]{1,18})\s*")
_HASHING = (
    "f=%s; [ -e \"$f\" ] || exit 44; [ -f \"$f\" ] || exit 45; "
    "if command -v sha256sum >/dev/null 2>&1; then sha256sum <\"$f\"; "
    "elif command -v openssl >/dev/null 2>&1; then openssl dgst -sha256 -r <\"$f\"; "
    "elif command -v shasum >/dev/null 2>&1; then shasum -a 256 <\"$f\"; "
    "elif command -v python3 >/dev/null 2>&1; then python3 -c "
    "'import hashlib,sys;print(hashlib.file_digest(sys.stdin.buffer,\"sha256\").hexdigest())' "
    "<\"$f\"; else exit 46; fi && wc -c <\"$f\""
)  # fmt: skip


class Upload(msgspec.Struct, frozen=True):
    source: Path | AsyncIterator[bytes]
    remote_path: str
    sha256: str
    size_bytes: int
    mode: int
    keep_previous: bool

    def beside(self, token: str, ending: str) -> str:
        folder, name = posixpath.split(self.remote_path)
        return posixpath.join(folder, f".{name[:100]}.{token}.{ending}")


Afresh = Callable[[], AbstractAsyncContextManager[Files]]
RemoteHash = Callable[[str], Awaitable[BlobInfo]]


async def put(files: Files, afresh: Afresh, remote_hash: RemoteHash, upload: Upload) -> None:
    """Upload, verify, swap. `afresh` opens another way to the files, for what is to be removed
    after this one broke. A source that is a generator is closed."""
    token = secrets.token_hex(6)
    new, former = upload.beside(token, "new"), upload.beside(token, "former")
    try:
        await _write(files, upload, new)
        lies = await remote_hash(new)
        if (lies.sha256, lies.size_bytes) != (upload.sha256, upload.size_bytes):
            raise Conflict(
                f"what lies on {files.name} has another hash than what was sent; look at its disk",
                host=files.name, sha256=upload.sha256, found=lies.sha256,
            )  # fmt: skip
        # Not to be left in the middle: a request that was sent is carried out.
        with trio.CancelScope(shield=True):
            await _swap(files, upload, new, former)
    except BaseException:
        with trio.move_on_after(files.end_timeout_s, shield=True):
            await _remove(afresh, new, former)
        raise


async def get(files: Files, remote_path: str, into: Path, bytes_max: int) -> BlobInfo:
    handle = await files.open(remote_path, READ)
    async with new_file(into) as file, aclosing(files.read(handle)) as pieces:
        async for data in pieces:
            if file.size_bytes + len(data) > bytes_max:
                raise TooLarge(
                    f"{remote_path} on {files.name} is larger than the {bytes_max} bytes allowed",
                    bytes_max=bytes_max,
                )
            await file.write(data)
        return await file.finish()


async def read_hash(files: Files, remote_path: str) -> BlobInfo:
    """For a host that has no tool for it."""
    handle = await files.open(remote_path, READ)
    hasher = _Hasher()
    async with aclosing(files.read(handle)) as pieces:
        async for data in pieces:
            await hasher.add(data)
    return hasher.info()


def hashing(remote_path: str) -> str:
    """A command that says a file's hash and size, where the host has some tool for it."""
    return _HASHING % shlex.quote(remote_path)


def hashed(remote_path: str, exit_code: int, stdout: bytes) -> BlobInfo | None:
    """What the command said; None: there is no tool."""
    if exit_code == _NONE:
        raise NotFound(f"there is no {remote_path} on that host", path=remote_path)
    if exit_code == _NO_FILE:
        raise Invalid(f"{remote_path} is no file on that host", path=remote_path)
    if exit_code == _NO_TOOL:
        return None
    said = _HASHED.fullmatch(stdout)
    if exit_code != 0 or said is None:
        raise Unavailable(f"{remote_path} cannot be read on that host", path=remote_path)
    return BlobInfo(said[1].decode("ascii"), int(said[2]))


def check_upload(remote_path: str, sha256: str, size_bytes: int, mode: int) -> None:
    check_path(remote_path)
    if checked_sha256(sha256) != sha256:
        raise Invalid("sha256 is written in lower case", field="sha256")
    if size_bytes < 0:
        raise Invalid("size_bytes is 0 or more", field="size_bytes")
    if not 0 <= mode <= 0o7777:
        raise Invalid("mode is between 0 and 0o7777", field="mode")


def check_path(remote_path: str) -> None:
    name = posixpath.basename(remote_path)
    if not remote_path.startswith("/") or name in ("", ".", "..") or "\0" in remote_path:
        raise Invalid(f"{remote_path!r} is no absolute path of a file", field="path")
    try:
        if len(remote_path.encode()) > PATH_BYTES_MAX:
            raise Invalid(f"the path is over {PATH_BYTES_MAX} bytes", field="path")
    except UnicodeEncodeError:
        raise Invalid("the path is no valid text", field="path") from None


async def _write(files: Files, upload: Upload, new: str) -> None:
    # Cancelled between the request and its answer, nobody knew whether there is a file to remove.
    with trio.CancelScope(shield=True):
        handle = await files.open(new, WRITE_NEW)
    hasher = _Hasher()
    async with aclosing(_pieces(upload.source)) as pieces:
        async for piece in pieces:
            at = hasher.size_bytes
            if at + len(piece) > upload.size_bytes:
                raise Invalid(f"there is more to send than {upload.size_bytes} bytes")
            await hasher.add(piece)
            for start in range(0, len(piece), PIECE_BYTES):
                await files.write(handle, at + start, piece[start : start + PIECE_BYTES])
    await files.settle()
    if hasher.info() != BlobInfo(upload.sha256, upload.size_bytes):
        raise Invalid(
            "what was to be sent is not what was announced: its sha256 or its size differs",
            sha256=upload.sha256, size_bytes=upload.size_bytes,
        )  # fmt: skip
    await files.set_mode(handle, upload.mode)
    await files.sync(handle)
    await files.close(handle)


async def _swap(files: Files, upload: Upload, new: str, former: str) -> None:
    kept = False
    if upload.keep_previous:
        with suppress(NotFound):
            await files.link(upload.remote_path, former)
            kept = True
    await files.rename(new, upload.remote_path)
    if not kept:
        return
    try:
        await files.rename(former, upload.remote_path + ".previous")
    except SwarmError:
        await files.rename(former, upload.remote_path)
        raise
    # Two names of one file, and a rename between them does nothing.
    with suppress(NotFound):
        await files.remove(former)


async def _remove(afresh: Afresh, *paths: str) -> None:
    with suppress(SwarmError):
        async with afresh() as files:
            for path in paths:
                with suppress(NotFound):
                    await files.remove(path)


def _pieces(source: Path | AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    return _read(source) if isinstance(source, Path) else _owned(source)


async def _owned(source: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in source:
            yield piece
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


async def _read(path: Path) -> AsyncGenerator[bytes, None]:
    try:
        async with await trio.open_file(path, "rb") as file:
            while piece := await file.read(SLICE_BYTES):
                yield piece
    except OSError as error:
        raise Unavailable(f"{path} cannot be read: {error.strerror}") from error


class _Hasher:
    def __init__(self) -> None:
        self.size_bytes = 0
        self._sha256 = hashlib.sha256()

    async def add(self, data: bytes) -> None:
        self.size_bytes += len(data)
        if len(data) > INLINE_BYTES_MAX:
            await trio.to_thread.run_sync(self._sha256.update, data)
        else:
            self._sha256.update(data)

    def info(self) -> BlobInfo:
        return BlobInfo(self._sha256.hexdigest(), self.size_bytes)
