"""Metadata at the end of Gentoo's old binary packages: a compressed tar, then an xpak segment.

Every number in it is the builder's word: each is held against the size of the file before it is
followed.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import BinaryIO

from swarmd.domain.errors import Invalid, TooLarge

TAIL_BYTES = 8
"""The segment's size, and STOP."""
_HEAD, _STOP = b"XPAKPACK", b"XPAKSTOP"
INDEX_BYTES_MAX = 256 * 1024


def segment_size(file: BinaryIO, size_bytes: int) -> int | None:
    """How much of the file's end, without the tail, is xpak. None: the file is not of this kind."""
    if size_bytes < TAIL_BYTES + len(_STOP):
        return None
    file.seek(size_bytes - TAIL_BYTES - len(_STOP))
    tail = file.read(TAIL_BYTES + len(_STOP))
    if not tail.startswith(_STOP) or not tail.endswith(b"STOP"):
        return None
    return int.from_bytes(tail[len(_STOP) : len(_STOP) + 4])


def read_values(
    file: BinaryIO,
    size_bytes: int,
    wanted: Collection[str],
    *,
    segment_bytes_max: int,
    value_bytes_max: int,
) -> dict[str, bytes]:
    """The wanted ones of what the segment holds. Invalid: its numbers do not go together."""
    segment = segment_size(file, size_bytes)
    if segment is None or not 24 <= segment <= size_bytes - TAIL_BYTES:
        raise Invalid("the package's xpak segment is damaged")
    if segment > segment_bytes_max:
        raise TooLarge(f"the package's metadata have more than {segment_bytes_max} bytes")
    start = size_bytes - TAIL_BYTES - segment
    file.seek(start)
    head = file.read(16)
    index_bytes, data_bytes = int.from_bytes(head[8:12]), int.from_bytes(head[12:16])
    if head[:8] != _HEAD or 16 + index_bytes + data_bytes + len(_STOP) != segment:
        raise Invalid("the package's xpak segment is damaged")
    if index_bytes > INDEX_BYTES_MAX:
        raise TooLarge(f"the package's list of metadata has more than {INDEX_BYTES_MAX} bytes")
    index = file.read(index_bytes)
    found: dict[str, bytes] = {}
    at = 0
    while at < len(index):
        end = at + 4 + int.from_bytes(index[at : at + 4])
        name = index[at + 4 : end].decode("ascii", "replace")
        offset, size = (
            int.from_bytes(index[end : end + 4]),
            int.from_bytes(index[end + 4 : end + 8]),
        )
        at = end + 8
        if at > len(index) or offset + size > data_bytes:
            raise Invalid("the package's xpak segment is damaged")
        if name not in wanted:
            continue
        if name in found:
            raise Invalid(f"the package says its {name} twice")
        if size > value_bytes_max:
            raise TooLarge(f"the package's {name} has more than {value_bytes_max} bytes")
        file.seek(start + 16 + index_bytes + offset)
        found[name] = file.read(size)
    return found
