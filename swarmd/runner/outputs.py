"""What a job prints: a pipe for each stream, copied to a file that is made with the first byte.

Pipes, not files that the job writes itself: a script that opens /dev/stderr anew would truncate a
file, making two files for every quick job costs more than the job, and only who copies can keep a
bound exactly. The price is that the runner must run for jobs to print; it copies a slice of each
stream a turn, so that no loud job starves another, mostly by splice, within the kernel.

A file never takes more than `size_max` on the disk: before it would, its middle is punched out.
Head and tail stay, every byte stays at its offset, and the attempt's end tells the range that went.
Where the filesystem cannot punch holes, the tail is copied aside and put back at its offset. What
cannot be kept at all, as on a full disk, is dropped from there on, and told; the job never waits.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import termios

from swarmd.runner.libc import punch_hole

BLOCK_BYTES = 4096
SLICE_BYTES = 64 * 1024
COPY_BYTES = 1024 * 1024
DRAIN_BYTES_MAX = 16 * 1024 * 1024
"""At the end of an attempt; an ordinary account's pipe holds a sixteenth of that at most."""

Cut = tuple[int, int]

_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


class Output:
    """One stream of one attempt: the runner's end of its pipe, and its file."""

    __slots__ = ("_file", "_splices", "cut", "job_end", "name", "path", "pipe", "size", "size_max",
                 "trouble")  # fmt: skip

    def __init__(self, folder: str, name: str, size_max: int | None) -> None:
        self.name = name
        self.path = f"{folder}/{name}"
        self.size = 0
        self.size_max = size_max
        self.cut: Cut | None = None
        """What is missing of the file."""
        self.trouble = ""
        """Why nothing more is kept, for the attempt's notes."""
        self._file = -1
        self._splices = True
        self.pipe, self.job_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.pipe, False)

    def give_to(self, uid: int, gid: int) -> None:
        """Let this account open /dev/stdout or /dev/stderr, which lead to the pipe."""
        os.fchown(self.job_end, uid, gid)

    def close_job_end(self) -> None:
        if self.job_end >= 0:
            os.close(self.job_end)
            self.job_end = -1

    def take(self) -> int:
        """Copy a slice: how many bytes, 0 where no more will ever come, -1 where none is there."""
        try:
            if self.trouble:
                return len(os.read(self.pipe, SLICE_BYTES))
            room = self._room()
            if self._file >= 0 and self._splices:
                try:
                    count = os.splice(self.pipe, self._file, room, flags=os.SPLICE_F_NONBLOCK)
                    self.size += count
                    return count
                except OSError as exc:
                    if exc.errno != errno.EINVAL:
                        raise
                    self._splices = False
            data = os.read(self.pipe, room)
            if data:
                self._keep(data)
            return len(data)
        except BlockingIOError:
            return -1
        except OSError as exc:
            self.trouble = f"{self.name} is not kept beyond byte {self.size}: {exc.strerror}"
            return SLICE_BYTES

    def close(self) -> None:
        """Take what the pipe still holds, whoever else may have it open, and let go of both."""
        left = -1
        while self.pipe >= 0 and left and (count := self.take()) > 0:
            # Who writes on from outside the tree shall not keep us.
            left = min(_held(self.pipe), DRAIN_BYTES_MAX) if left < 0 else max(0, left - count)
        self.close_job_end()
        self.close_pipe()
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def close_pipe(self) -> None:
        if self.pipe >= 0:
            os.close(self.pipe)
            self.pipe = -1

    def _keep(self, data: bytes) -> None:
        if self._file < 0:
            self._file = os.open(self.path, _FILE, 0o600)
        view = memoryview(data)
        while view:
            count = os.write(self._file, view)
            self.size += count
            view = view[count:]

    def _room(self) -> int:
        """How much the file may grow now, its middle freed where it must."""
        if self.size_max is None:
            return SLICE_BYTES
        # A block less: neither end of what stays need be at a block's border.
        size_max = self.size_max - BLOCK_BYTES
        gone = self.cut[1] - self.cut[0] if self.cut else 0
        room = size_max - (self.size - gone)
        if room <= 0:
            start, end = middle(self.size, size_max)
            free(self._file, self.path, start, end)
            self.cut = (start, end)
            room = size_max - (self.size - end + start)
        return min(SLICE_BYTES, room)


def middle(size: int, size_max: int) -> Cut:
    """What to free of a file that has outgrown its bound: a quarter of that is kept as its head,
    a half as its tail, and the last quarter is what may come before the next time."""
    start = size_max // 4 // BLOCK_BYTES * BLOCK_BYTES
    return start, (size - size_max // 2) // BLOCK_BYTES * BLOCK_BYTES


def free(fd: int, path: str, start: int, end: int) -> None:
    """Give a range of a file back to the filesystem. What follows stays at its offset."""
    try:
        punch_hole(fd, start, end - start)
    except OSError as exc:
        if exc.errno not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        _free_by_copy(fd, path, start, end)


def _free_by_copy(fd: int, path: str, start: int, end: int) -> None:
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


def _held(pipe: int) -> int:
    found = array.array("i", [0])
    fcntl.ioctl(pipe, termios.FIONREAD, found)
    return found[0]
