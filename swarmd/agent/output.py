"""Cutting what lies in a file: its ends alone are read, however long it grew."""

from __future__ import annotations

import os
from pathlib import Path

from swarmd.domain.cutting import (
    NOTE_BYTES,
    check_bound,
    join_ends,
    joined,
    whole_ahead,
    whole_back,
)
from swarmd.domain.jobs import OUTPUT_BYTES_MAX

COUNTED_BYTES_MAX = 64 * 1024 * 1024
"""Lines are counted by reading: up to here, 50 ms. Beyond it only bytes are told."""
_SLICE_BYTES = 256 * 1024


def cut_file(
    path: Path, bytes_max: int = OUTPUT_BYTES_MAX, cut: tuple[int, int] | None = None
) -> bytes:
    """Cut a file, reading its ends alone; `cut` is a hole in it, bytes freed from-to.

    Blocks on the disk: call it from a worker thread.
    """
    check_bound(bytes_max)
    with path.open("rb", buffering=0) as file:
        fd = file.fileno()
        size = os.fstat(fd).st_size
        hole_from, hole_to = cut or (size, size)
        hole_from = min(max(hole_from, 0), size)
        hole_to = min(max(hole_to, hole_from), size)
        if hole_from == hole_to:
            if size <= bytes_max:
                return _read(fd, 0, size)
            head = _read(fd, 0, bytes_max)
            tail = _read(fd, size - bytes_max, size)
            counted = size <= COUNTED_BYTES_MAX
            count = (lambda: _lines_of_file(fd, size)) if counted else None
            return join_ends(head, tail, size, bytes_max, count)
        if hole_from + size - hole_to <= bytes_max - NOTE_BYTES:
            head, tail = _read(fd, 0, hole_from), _read(fd, hole_to, size)
            return joined(head[: whole_back(head)], tail[whole_ahead(tail) :], size, None)
        head = _read(fd, 0, min(hole_from, bytes_max))
        tail = _read(fd, max(hole_to, size - bytes_max), size)
        return join_ends(head, tail, size, bytes_max, None)


def _lines_of_file(fd: int, size: int) -> tuple[int, int]:
    newlines, at, last = 0, 0, b""
    while at < size and (data := os.pread(fd, min(_SLICE_BYTES, size - at), at)):
        newlines += data.count(b"\n")
        at += len(data)
        last = data[-1:]
    return newlines, newlines + (last != b"\n")


def _read(fd: int, start: int, end: int) -> bytes:
    parts: list[bytes] = []
    while start < end and (data := os.pread(fd, end - start, start)):
        parts.append(data)
        start += len(data)
    return b"".join(parts)
