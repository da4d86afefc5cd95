"""Is the end of SQLite's write-ahead log torn, or its middle broken?

SQLite forgets everything from the first bad frame on. That is right for the last transaction, the
only one that may be half on disk. A break with a later transaction behind it lies in something
that was fsynced, and so acknowledged: that is damage, and never passes for a torn write.
"""

from __future__ import annotations

import itertools
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

HEADER_BYTES = 32
FRAME_HEADER_BYTES = 24
SECTOR_BYTES = 512
_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = {0x377F0682: "little", 0x377F0683: "big"}
_MASK = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class Tail:
    frames: int
    """Frames up to the first one that is broken, or is not of this generation."""
    damage: str = ""
    """What proves that something acknowledged is gone; empty where nothing does."""


def examine(wal: Path) -> Tail:
    """Read the file as it lies there; SQLite must not have it open."""
    with wal.open("rb") as file:
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return Tail(0)
        magic, _, page_bytes, _, salt1, salt2, sum1, sum2 = _HEADER.unpack(header)
        order = _MAGIC.get(magic, "")
        sums = _checksum(header[: HEADER_BYTES - 8], order, (0, 0))
        if not order or sums != (sum1, sum2) or page_bytes not in _PAGE_SIZES:
            # The header is fsynced before the first frame behind it is written.
            if any(file.read(FRAME_HEADER_BYTES)):
                return Tail(0, "the header of its -wal file is broken, with frames behind it")
            return Tail(0)
        intact = 0
        while len(frame := file.read(FRAME_HEADER_BYTES + page_bytes)) == (
            FRAME_HEADER_BYTES + page_bytes
        ):
            _, _, *salts, sum1, sum2 = _FRAME.unpack_from(frame)
            sums = _checksum(frame[:8], order, sums)
            sums = _checksum(frame[FRAME_HEADER_BYTES:], order, sums)
            if salts != [salt1, salt2] or sums != (sum1, sum2):
                break
            intact += 1
        return Tail(intact, _damage_behind(file, intact, page_bytes, [salt1, salt2]))


_PAGE_SIZES = frozenset(2**power for power in range(9, 17))


def _damage_behind(file: BinaryIO, intact: int, page_bytes: int, salts: list[int]) -> str:
    """The transaction that holds the broken frame ends with the first commit frame from there on.
    Whatever of this generation follows was written after that commit had been fsynced."""
    committed = False
    for number in itertools.count(intact):
        at = HEADER_BYTES + number * (FRAME_HEADER_BYTES + page_bytes)
        file.seek(at)
        if len(head := file.read(FRAME_HEADER_BYTES)) < FRAME_HEADER_BYTES:
            break
        _, pages, *found, _, _ = _FRAME.unpack(head)
        if found != salts:
            continue
        if committed:
            return (
                f"frame {intact + 1} of its -wal file is broken, and frame {number + 1} was"
                " written after it had been fsynced"
            )
        # Where a sector ends between the two words, one may be old and the other new.
        committed = pages != 0 and (at + 8) % SECTOR_BYTES != 0
    return ""


def _checksum(raw: bytes, order: str, start: tuple[int, int]) -> tuple[int, int]:
    words = array("I", raw)
    if order != _NATIVE:
        words.byteswap()
    one, two = start
    for even, odd in zip(words[::2], words[1::2], strict=True):
        one = (one + even + two) & _MASK
        two = (two + odd + one) & _MASK
    return one, two


_NATIVE = "little" if array("I", [1]).tobytes()[0] else "big"
