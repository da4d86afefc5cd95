"""Tar files and compressed streams of strangers: read once, in order, by the fewest rules.

Nothing is unpacked to a disk here, no name becomes a path, and nothing is held that has not been
bounded before: a file that says it is large costs no more than the bytes that are really there.
"""

from __future__ import annotations

import bz2
import io
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple, Protocol

from swarmd.domain.errors import Invalid, TooLarge

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 512
CHUNK_BYTES = 1024 * 1024
PADDING_BYTES_MAX = 1024 * 1024
"""Tar fills its last record with zeros: 10 KiB by default."""
NAME_BYTES_MAX = 4096
ZSTD_WINDOW_LOG_MAX = 27
XZ_MEMORY_BYTES_MAX = 128 * 1024 * 1024
FRAMES_MAX = 4096
"""Streams that follow one another in a compressed file, as parallel compressors write them."""

_REGULAR = (b"0", b"\0")
_GNU_LONG_NAME = b"L"
_OTHER_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a device", b"4": "a device",
    b"5": "a directory", b"6": "a pipe", b"S": "a sparse file",
    b"x": "a header of the pax format", b"g": "a header of the pax format",
}  # fmt: skip

Reader = Callable[[int], bytes]
"""Reads at most so many bytes; none at the end."""


class Member(NamedTuple):
    name: str
    size_bytes: int
    content: Iterator[bytes]
    """To be taken before the next member is; what is left of it is passed over."""


def members(read: Reader, *, members_max: int) -> Iterator[Member]:
    """The regular files of a tar of the ustar or GNU format, up to its end and its padding.
    Invalid: cut short, damaged, or anything but a regular file in it."""
    long_name: str | None = None
    count = 0
    while (head := _exactly(read, BLOCK, "a header")).strip(b"\0"):
        name, size_bytes, kind = _header(head)
        content = _content(read, size_bytes)
        if kind == _GNU_LONG_NAME:
            if size_bytes > NAME_BYTES_MAX or long_name is not None:
                raise Invalid(f"a name in the tar file is longer than {NAME_BYTES_MAX} bytes")
            long_name = _text(b"".join(content))
            continue
        if kind not in _REGULAR:
            what = _OTHER_KINDS.get(kind, f"of the unknown kind {kind!r}")
            raise Invalid(f"{name!r} in the tar file is {what}; only regular files may be")
        name, long_name = long_name or name, None
        if (count := count + 1) > members_max:
            raise TooLarge(f"the tar file has more than {members_max} members")
        yield Member(name, size_bytes, content)
        for _ in content:
            pass
    if long_name is not None:
        raise Invalid("the tar file ends where a member should follow a name")
    _check_padding(read)


def header(name: str, size_bytes: int, mtime_s: int) -> bytes:
    """The header of a regular file, with its long name or its great size where it has one. (The
    standard library's writer would do; ours goes with the reader: it writes what that one reads.)
    """
    encoded = name.encode()
    if len(encoded) > 100:
        longer = encoded + b"\0"
        long_name = _ustar(b"././@LongLink", len(longer), 0, _GNU_LONG_NAME)
        return long_name + longer + padding(len(longer)) + _ustar(encoded, size_bytes, mtime_s)
    return _ustar(encoded, size_bytes, mtime_s)


def padding(size_bytes: int) -> bytes:
    return bytes(-size_bytes % BLOCK)


END = bytes(2 * BLOCK)


def unpacked(read: Reader, compression: str, *, bytes_max: int) -> Reader:
    """A reader of what the compressed one holds. Invalid: damaged, or an unknown compression.
    TooLarge (as it is read): more than bytes_max come out."""
    if compression == "":
        inflate: Iterator[bytes] = _uncompressed(read)
    elif compression in DECOMPRESSORS:
        inflate = _inflated(read, DECOMPRESSORS[compression], compression)
    else:
        raise Invalid(
            f"the compression {compression} is not known here; "
            f"packages may have none, or {', '.join(sorted(DECOMPRESSORS))}"
        )
    return _Rest(inflate, bytes_max).read


class _Decompressor(Protocol):
    def decompress(self, data: bytes, max_length: int) -> bytes: ...
    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...


class _Gunzip:
    """zlib's decompressor with the face of the others."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(wbits=31)

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data


def _unzstd() -> _Decompressor:
    options: dict[int, int] = {zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG_MAX}
    return zstd.ZstdDecompressor(options=options)


DECOMPRESSORS: dict[str, Callable[[], _Decompressor]] = {
    "bz2": bz2.BZ2Decompressor,
    "gz": _Gunzip,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=XZ_MEMORY_BYTES_MAX),
    "zst": _unzstd,
}
"""By the end of a file's name. Each gives at most so many bytes at once as it is asked for."""


def _inflated(read: Reader, make: Callable[[], _Decompressor], name: str) -> Iterator[bytes]:
    data = read(CHUNK_BYTES)
    frames = 0
    while data:
        if (frames := frames + 1) > FRAMES_MAX:
            raise TooLarge(f"the compressed file is of more than {FRAMES_MAX} streams")
        decompressor = make()
        try:
            while not decompressor.eof:
                yield decompressor.decompress(data, CHUNK_BYTES)
                data = b""
                if decompressor.needs_input and not decompressor.eof:
                    data = read(CHUNK_BYTES)
                    if not data:
                        raise Invalid(f"the {name} stream is cut short")
        except (zlib.error, OSError, EOFError, lzma.LZMAError, zstd.ZstdError, ValueError) as error:
            raise Invalid(f"the {name} stream is damaged: {error}") from None
        data = decompressor.unused_data or read(CHUNK_BYTES)


def _uncompressed(read: Reader) -> Iterator[bytes]:
    while data := read(CHUNK_BYTES):
        yield data


class _Rest:
    """Pieces of any size, read as a file is."""

    def __init__(self, pieces: Iterator[bytes], bytes_max: int) -> None:
        self._pieces = pieces
        self._bytes_max = bytes_max
        self._left = bytes_max
        self._rest = memoryview(b"")

    def read(self, size: int) -> bytes:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._left -= len(piece)
            if self._left < 0:
                raise TooLarge(f"the compressed file holds more than {self._bytes_max} bytes")
            self._rest = memoryview(piece)
        data, self._rest = self._rest[:size], self._rest[size:]
        return bytes(data)


class Slice:
    """A part of a file, read as a file of its own."""

    def __init__(self, file: BinaryIO, offset: int, size_bytes: int) -> None:
        file.seek(offset)
        self._file, self._left = file, size_bytes

    def read(self, size: int) -> bytes:
        data = self._file.read(min(size, self._left))
        self._left -= len(data)
        return data


def _content(read: Reader, size_bytes: int) -> Iterator[bytes]:
    left = size_bytes
    while left:
        data = read(min(left, CHUNK_BYTES))
        if not data:
            raise Invalid("the tar file is cut short")
        left -= len(data)
        yield data
    if fill := -size_bytes % BLOCK:
        _exactly(read, fill, "a member's end")


def _exactly(read: Reader, size: int, what: str) -> bytes:
    data = read(size)
    while len(data) < size and (more := read(size - len(data))):
        data += more
    if len(data) < size:
        raise Invalid(f"the tar file is cut short within {what}")
    return data


def _check_padding(read: Reader) -> None:
    seen = 0
    while data := read(CHUNK_BYTES):
        if data.strip(b"\0"):
            raise Invalid("there is more behind the end of the tar file")
        if (seen := seen + len(data)) > PADDING_BYTES_MAX:
            raise TooLarge(f"more than {PADDING_BYTES_MAX} zeros are behind the tar file")


def _header(head: bytes) -> tuple[str, int, bytes]:
    magic = head[257:265]
    if magic not in (b"ustar\x0000", b"ustar  \0"):
        raise Invalid("this is no tar file of the ustar or GNU format")
    blanked = head[:148] + b" " * 8 + head[156:]
    if _octal(head[148:156]) != sum(blanked):
        raise Invalid("a header of the tar file is damaged")
    name = head[:100]
    if magic == b"ustar\x0000" and (prefix := head[345:500].split(b"\0", 1)[0]):
        name = prefix + b"/" + name.split(b"\0", 1)[0]
    kind = head[156:157]
    text = _text(name)
    if kind == b"\0" and text.endswith("/"):
        kind = b"5"  # so the oldest tar files marked directories
    return text, _octal(head[124:136]), kind


def _octal(number: bytes) -> int:
    if number[:1] == b"\x80":
        return int.from_bytes(number[1:])
    digits = number.split(b"\0", 1)[0].strip(b" ") or b"0"
    if digits.strip(b"01234567"):  # int() takes signs and underscores too
        raise Invalid("a number in a header of the tar file is damaged")
    return int(digits, 8)


def _text(name: bytes) -> str:
    try:
        return name.split(b"\0", 1)[0].decode()
    except UnicodeDecodeError:
        raise Invalid("a name in the tar file is no UTF-8") from None


def _ustar(name: bytes, size_bytes: int, mtime_s: int, kind: bytes = b"0") -> bytes:
    great = size_bytes >= 8**11
    head = io.BytesIO()
    head.write(name[:100].ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2)
    head.write(b"\x80" + size_bytes.to_bytes(11) if great else b"%011o\0" % size_bytes)
    head.write(b"%011o\0" % (mtime_s % 8**11) + b" " * 8 + kind + bytes(100))
    gnu = great or kind == _GNU_LONG_NAME or len(name) > 100
    head.write(b"ustar  \0" if gnu else b"ustar\x0000")
    blanked = head.getvalue().ljust(BLOCK, b"\0")
    return blanked[:148] + b"%06o\0 " % sum(blanked) + blanked[156:]
