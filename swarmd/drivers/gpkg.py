"""Binary packages as files: read with suspicion, signed by the swarm's key, verified.

A signed package is a file that this module wrote, never one that a builder sent: what is served
has no byte in it that was not hashed and bounded before. Old packages (xpak) are read, and cannot
be signed.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import trio

from swarmd.domain.binpkgs import WANTED_KEYS, BinPkg, Format, Measured, described
from swarmd.domain.errors import Invalid, NotFound, TooLarge, Unavailable
from swarmd.drivers import xpak
from swarmd.drivers.files import disk_refusals, leave_room, open_new, remove, write_all
from swarmd.drivers.openpgp import (
    CLEAR_HEAD,
    SIGNATURE_BYTES_MAX,
    Hash,
    PublicKey,
    Signer,
    split_clear,
)
from swarmd.drivers.tars import (
    CHUNK_BYTES,
    END,
    Member,
    Slice,
    header,
    members,
    padding,
    unpacked,
)

MARK = "gpkg-1"
"""The file that says what it is, and in which version."""
MARK_BYTES_MAX = 4096
MANIFEST = "Manifest"
MANIFEST_BYTES_MAX = 64 * 1024
MEMBERS_MAX = 8
VALUE_BYTES_MAX = 256 * 1024
"""Of one of the metadata as it is written; less of it is kept."""
_PREFIX = re.compile(r"[A-Za-z0-9_][A-Za-z0-9+_.-]{0,254}")
_ARCHIVE = re.compile(r"(metadata|image)\.tar(?:\.(?!sig$)[a-z0-9]{1,4})?")
_RECORD = re.compile(r"DATA (\S+) ([0-9]{1,15})((?: [A-Z0-9_]{1,32} [0-9a-fA-F]{1,256}){1,8})")
_workers = trio.CapacityLimiter(2)
"""Hashing takes a core; the other threads are for what users wait for."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one package may be. Over it: TooLarge."""

    file_bytes_max: int = 16 * 1024**3
    metadata_bytes_max: int = 10_000_000
    """Compressed. Portage takes no more from a binhost."""
    unpacked_bytes_max: int = 64 * 1024**2
    """Of the metadata, which hold the whole environment of a build."""
    metadata_files_max: int = 1024


@dataclass(frozen=True, slots=True)
class Signed:
    pkg: BinPkg
    path: Path
    """The signed file: the one that came, where it was signed already."""


DEFAULT_LIMITS = Limits()


async def read(path: Path, limits: Limits = DEFAULT_LIMITS) -> BinPkg:
    """What a package of either format is. Invalid: it is none, damaged, or not what its Manifest
    says. No signature is looked at. TooLarge: over a limit. NotFound: no such file."""
    return await trio.to_thread.run_sync(_read, path, limits, None, limiter=_workers)


async def verify(path: Path, public: PublicKey, limits: Limits = DEFAULT_LIMITS) -> BinPkg:
    """As read, and Invalid also unless all of it is signed by this key, as Portage asks for."""
    return await trio.to_thread.run_sync(_read, path, limits, public, limiter=_workers)


async def sign(
    path: Path, out: Path, key: Signer, at_s: int, limits: Limits = DEFAULT_LIMITS
) -> Signed:
    """A copy of the package that is signed by this key and no other, at a new path. One that this
    key has signed stays where it is, and `out` is not made. The same package, key and time give
    the same bytes. Invalid: as for read, or an xpak."""
    return await trio.to_thread.run_sync(_sign, path, out, key, at_s, limits, limiter=_workers)


def _read(path: Path, limits: Limits, public: PublicKey | None) -> BinPkg:
    with _opened(path, limits) as file:
        if xpak.segment_size(file.raw, file.size_bytes) is not None:
            if public is not None:
                raise Invalid("a package of the old format (xpak) cannot be signed; build a gpkg")
            return described(_said_by_xpak(file, limits), file.measured("xpak"))
        container = _examined(file, limits)
        if public is not None:
            _check_signed(container, public)
        return described(_said(file, container, limits), container.file)


def _sign(path: Path, out: Path, key: Signer, at_s: int, limits: Limits) -> Signed:
    with _opened(path, limits) as file:
        if xpak.segment_size(file.raw, file.size_bytes) is not None:
            raise Invalid("a package of the old format (xpak) cannot be signed; build a gpkg")
        container = _examined(file, limits)
        pkg = described(_said(file, container, limits), container.file)
        if _is_signed(container, key.public):
            return Signed(pkg, path)
        with disk_refusals(out):
            fd = open_new(out, 0o644)
            try:
                _write(file, container, fd, key, at_s)
                os.utime(fd, (at_s, at_s))
                os.fsync(fd)
            except BaseException:
                remove(out)
                raise
            finally:
                os.close(fd)
    try:
        # What is given out is what was read again, not what was meant to be written.
        return Signed(_read(out, limits, key.public), out)
    except BaseException:
        remove(out)
        raise


class _File:
    """The package while it is read: whole and once in order, which measures it, or in places."""

    def __init__(self, raw: BinaryIO, info: os.stat_result) -> None:
        self.raw = raw
        self.size_bytes = info.st_size
        self.mtime_s = int(info.st_mtime)
        self.position = 0
        # Portage's index names packages by these two; what the swarm trusts is the sha256.
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._sha256 = hashlib.sha256()

    def read(self, size: int) -> bytes:
        trio.from_thread.check_cancelled()
        data = self.raw.read(size)
        self.position += len(data)
        for hashed in (self._md5, self._sha1, self._sha256):
            hashed.update(data)
        return data

    def measured(self, kind: Format) -> Measured:
        """What was read so far must have been all of it."""
        return Measured(
            kind, self._sha256.hexdigest(), self.position, self._md5.hexdigest(),
            self._sha1.hexdigest(), self.mtime_s,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Part:
    """A member of the container, and where it lies."""

    name: str
    offset: int
    size_bytes: int
    sha512: Hash
    blake2b: Hash

    def record(self) -> str:
        """Its line in a Manifest."""
        hashes = f"SHA512 {self.sha512.hexdigest()} BLAKE2B {self.blake2b.hexdigest()}"
        return f"DATA {self.name} {self.size_bytes} {hashes}\n"


@dataclass(frozen=True, slots=True)
class _Container:
    file: Measured
    prefix: str
    parts: Mapping[str, _Part]
    """By their names within the prefix. The Manifest is not of them."""
    signatures: Mapping[str, bytes]
    manifest: bytes
    metadata: _Part
    image: _Part


@contextmanager
def _opened(path: Path, limits: Limits) -> Iterator[_File]:
    try:
        # A pipe in its place would keep us waiting.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        fd = os.open(path, flags)
    except FileNotFoundError:
        raise NotFound(f"there is no package {path.name}") from None
    except OSError as error:
        words = f"{path.name} cannot be read: {os.strerror(error.errno or 0)}"
        # A link in its place is the fault of who put it there; all else is the host's.
        raise (Invalid if error.errno == errno.ELOOP else Unavailable)(words) from None
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise Invalid(f"{path.name} is no regular file")
        if info.st_size > limits.file_bytes_max:
            raise TooLarge(f"a package may have at most {limits.file_bytes_max} bytes")
        with open(fd, "rb", buffering=0, closefd=False) as raw:
            yield _File(raw, info)
    finally:
        os.close(fd)


def _examined(file: _File, limits: Limits) -> _Container:
    """Read all of it, and hold it against its Manifest."""
    file.raw.seek(0)
    parts: dict[str, _Part] = {}
    signatures: dict[str, bytes] = {}
    manifest: bytes | None = None
    prefix = ""
    for member in members(file.read, members_max=MEMBERS_MAX):
        folder, _, name = member.name.partition("/")
        prefix = prefix or folder
        if folder != prefix or not _PREFIX.fullmatch(folder) or not _is_known(name):
            raise Invalid(f"{member.name[:80]!r} has no place in a gpkg")
        if name in parts or (name == MANIFEST and manifest is not None):
            raise Invalid(f"the package holds {name} twice")
        if name == MANIFEST:
            manifest = _whole(member, MANIFEST_BYTES_MAX)
            continue
        if member.size_bytes > (bytes_max := _bytes_max(name, limits)):
            raise TooLarge(f"{name} of a package may have at most {bytes_max} bytes")
        offset, sha512, blake2b = file.position, hashlib.sha512(), hashlib.blake2b()
        for data in member.content:
            sha512.update(data)
            blake2b.update(data)
            if name.endswith(".sig"):
                signatures[name] = signatures.get(name, b"") + data
        parts[name] = _Part(name, offset, member.size_bytes, sha512, blake2b)
    if MARK not in parts or manifest is None:
        raise Invalid(f"a gpkg must hold {MARK} and a {MANIFEST}")
    _check_manifest(_text_of(manifest), parts)
    return _Container(
        file.measured("gpkg"), prefix, parts, signatures, manifest,
        _archive(parts, "metadata"), _archive(parts, "image"),
    )  # fmt: skip


def _is_known(name: str) -> bool:
    return name in (MARK, MANIFEST) or bool(_ARCHIVE.fullmatch(name.removesuffix(".sig")))


def _bytes_max(name: str, limits: Limits) -> int:
    if name.endswith(".sig"):
        return SIGNATURE_BYTES_MAX
    if name == MARK:
        return MARK_BYTES_MAX
    return limits.metadata_bytes_max if name.startswith("metadata") else limits.file_bytes_max


def _archive(parts: Mapping[str, _Part], what: str) -> _Part:
    found = [
        part
        for name, part in parts.items()
        if (match := _ARCHIVE.fullmatch(name)) and match[1] == what
    ]
    if len(found) != 1:
        raise Invalid(f"a gpkg must hold one {what}.tar; this one holds {len(found)}")
    return found[0]


def _whole(member: Member, bytes_max: int) -> bytes:
    if member.size_bytes > bytes_max:
        raise TooLarge(f"{member.name[:80]} may have at most {bytes_max} bytes")
    return b"".join(member.content)


def _text_of(manifest: bytes) -> str:
    """Signed or not, whoever signed it."""
    text = split_clear(manifest)[0] if manifest.startswith(CLEAR_HEAD) else manifest
    try:
        return text.decode("ascii")
    except UnicodeDecodeError:
        raise Invalid(f"the package's {MANIFEST} is no plain text") from None


def _check_manifest(text: str, parts: Mapping[str, _Part]) -> None:
    told: set[str] = set()
    for line in text.removesuffix("\n").split("\n"):
        record = _RECORD.fullmatch(line)
        if record is None or record[1] in told:
            raise Invalid(f"a line of the package's {MANIFEST} is malformed: {line[:80]!r}")
        name, size_bytes, hashes = record[1], int(record[2]), record[3].split()
        told.add(name)
        part = parts.get(name)
        if part is None or part.size_bytes != size_bytes:
            raise Invalid(f"{name[:80]} is not in the package as its {MANIFEST} says")
        found = {"SHA512": part.sha512.hexdigest(), "BLAKE2B": part.blake2b.hexdigest()}
        known = [pair for pair in zip(hashes[::2], hashes[1::2], strict=True) if pair[0] in found]
        if not known or any(value.lower() != found[key] for key, value in known):
            raise Invalid(f"the hash of {name} is not what the package's {MANIFEST} says")
    if told != parts.keys():
        missing = ", ".join(sorted(parts.keys() - told))
        raise Invalid(f"the package's {MANIFEST} does not tell of {missing}")


def _is_signed(container: _Container, public: PublicKey) -> bool:
    try:
        _check_signed(container, public)
    except (Invalid, TooLarge):
        return False
    return True


def _check_signed(container: _Container, public: PublicKey) -> None:
    if not container.manifest.startswith(CLEAR_HEAD):
        raise Invalid(
            f"the package is not signed; its {MANIFEST} should be, by {public.fingerprint}"
        )
    public.check_clear(container.manifest)
    for part in (container.metadata, container.image):
        signature = container.signatures.get(f"{part.name}.sig")
        if signature is None:
            raise Invalid(f"{part.name} of the package is not signed")
        public.check(part.sha512, signature)
    if len(container.signatures) != 2:
        raise Invalid("the package holds a signature over nothing")


def _said(file: _File, container: _Container, limits: Limits) -> dict[str, str]:
    """The metadata that are wanted."""
    part = container.metadata
    archive = Slice(file.raw, part.offset, part.size_bytes)
    compression = part.name.removeprefix("metadata.tar").removeprefix(".")
    inner = unpacked(archive.read, compression, bytes_max=limits.unpacked_bytes_max)
    said: dict[str, str] = {}
    for member in members(inner, members_max=limits.metadata_files_max):
        folder, _, key = member.name.partition("/")
        if folder != "metadata" or not key or "/" in key:
            raise Invalid(f"{member.name[:80]!r} has no place in a package's metadata")
        if key in WANTED_KEYS:
            if key in said:
                raise Invalid(f"the package says its {key} twice")
            said[key] = _whole(member, VALUE_BYTES_MAX).decode("utf-8", "replace")
    return said


def _said_by_xpak(file: _File, limits: Limits) -> dict[str, str]:
    file.raw.seek(0)
    while file.read(CHUNK_BYTES):
        pass
    values = xpak.read_values(
        file.raw, file.size_bytes, WANTED_KEYS,
        segment_bytes_max=limits.metadata_bytes_max, value_bytes_max=VALUE_BYTES_MAX,
    )  # fmt: skip
    return {key: value.decode("utf-8", "replace") for key, value in values.items()}


def _write(file: _File, container: _Container, fd: int, key: Signer, at_s: int) -> None:
    """In the order that Portage reads from afar: each signature follows what it signs."""
    records: list[str] = []
    leave_room(fd, file.size_bytes)

    def put(name: str, data: bytes) -> None:
        write_all(fd, header(f"{container.prefix}/{name}", len(data), at_s))
        write_all(fd, data + padding(len(data)))

    for part in (container.parts[MARK], container.metadata, container.image):
        write_all(fd, header(f"{container.prefix}/{part.name}", part.size_bytes, at_s))
        content = Slice(file.raw, part.offset, part.size_bytes)
        while data := content.read(CHUNK_BYTES):
            trio.from_thread.check_cancelled()
            write_all(fd, data)
        write_all(fd, padding(part.size_bytes))
        records.append(part.record())
        if part.name != MARK:
            signature = key.sign(part.sha512, at_s)
            name = f"{part.name}.sig"
            put(name, signature)
            hashes = hashlib.sha512(signature), hashlib.blake2b(signature)
            records.append(_Part(name, 0, len(signature), *hashes).record())
    put(MANIFEST, key.sign_clear("".join(records).encode(), at_s))
    write_all(fd, END)
