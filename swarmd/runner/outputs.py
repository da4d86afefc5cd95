"""What a job prints: plain files that it writes itself, kept under a bound by freeing their middle.

The job's stdout and stderr are files opened for appending, not pipes: nothing is copied, nothing is
lost when the runner dies, and a job never waits for a reader. The price is that the bound is kept
afterwards: on each tick a file that takes more than `size_max` on disk has its middle punched out,
head and tail stay, every byte stays at its offset, and the attempt's end tells the range that went.
Between two ticks a fast writer may be over the bound. Where the filesystem cannot punch holes, the
tail is copied aside and put back at its offset after truncation; what the job prints during that
instant may fall into the cut range. Being files they can be truncated by a job that opens
/dev/stdout anew with `>`; `>>` adds, as it does on a terminal.
"""

from __future__ import annotations

import errno
import os

from swarmd.runner.libc import punch_hole

BLOCK_BYTES = 4096
COPY_BYTES = 1024 * 1024

Cut = tuple[int, int]


def keep_bound(path: str, size_max: int, cut: Cut | None) -> Cut | None:
    """Free the middle of a file that has outgrown its bound; answer what is missing of it now."""
    stat = os.stat(path, follow_symlinks=False)
    if stat.st_blocks * 512 <= size_max:
        return cut
    head = size_max // 4 // BLOCK_BYTES * BLOCK_BYTES
    start, end = head, (stat.st_size - size_max // 2) // BLOCK_BYTES * BLOCK_BYTES
    if end <= start:
        return cut
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        try:
            punch_hole(fd, start, end - start)
        except OSError as exc:
            if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            _cut_by_copy(path, fd, start, end)
    finally:
        os.close(fd)
    return (start, max(end, cut[1]) if cut else end)


def _cut_by_copy(path: str, fd: int, start: int, end: int) -> None:
    aside = os.open(f"{path}.tail", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.unlink(f"{path}.tail")
        at = end
        while data := os.pread(fd, COPY_BYTES, at):
            at += os.pwrite(aside, data, at - end)
        os.ftruncate(fd, start)
        done = 0
        while data := os.pread(aside, COPY_BYTES, done):
            done += os.pwrite(fd, data, end + done)
    finally:
        os.close(aside)
