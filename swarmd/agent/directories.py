"""Directories of attempts: each goes with its attempt, but for logs, or is used again.

Only one that nothing was left in is, no file, no attribute and no access list: what an attempt
finds never tells of another. A new one would be dearer: the filesystem looks for free inodes past
all that were freed of late.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path

import trio

TIDY_EVERY_S = 0.5
TIDY_AT_ONCE = 100
"""So many are put in order before that, so that there is a spare one for each new attempt."""
SPARES_MAX = 256
LOGS_LOOK_EVERY_S = 60.0


class Directories:
    """Of one node. They are put in order many at a time and off the loop."""

    def __init__(self, root: Path, forget_logs: Callable[[], Awaitable[object]]) -> None:
        self._forget_logs = forget_logs
        """Removes the oldest directories. Never while others are put aside: what is being removed
        must not come into use again."""
        self._spares_dir = root / "spare"
        self._spares: list[Path] = []
        self._untidy: list[Path] = []
        self._some_untidy = trio.Event()
        self._much_untidy = trio.Event()

    def spare(self) -> Path | None:
        """One as good as new, to be renamed."""
        return self._spares.pop() if self._spares else None

    def ended(self, directory: Path) -> None:
        """Its attempt has ended, and the swarm knows how."""
        self._untidy.append(directory)
        self._some_untidy.set()
        if len(self._untidy) >= TIDY_AT_ONCE:
            self._much_untidy.set()

    async def keep_tidy(self) -> None:
        await trio.to_thread.run_sync(_empty, self._spares_dir)
        next_look = trio.current_time()
        while True:
            if trio.current_time() >= next_look:
                next_look = trio.current_time() + LOGS_LOOK_EVERY_S
                await self._forget_logs()
            if self._untidy:
                directories, self._untidy = self._untidy, []
                self._some_untidy, self._much_untidy = trio.Event(), trio.Event()
                room = SPARES_MAX - len(self._spares)
                self._spares += await trio.to_thread.run_sync(
                    tidy, directories, self._spares_dir, room
                )
            with trio.move_on_at(next_look):
                await self._some_untidy.wait()
                with trio.move_on_after(TIDY_EVERY_S):
                    await self._much_untidy.wait()


def tidy(directories: Iterable[Path], spares: Path, room: int) -> list[Path]:
    """The working directory goes with its attempt, logs stay. Directories that nothing was left in
    are put aside for attempts to come, as many as there is room for; answers those. Blocks: in a
    thread."""
    kept: list[Path] = []
    for directory in directories:
        with suppress(OSError):
            (directory / "program").unlink()
        if len(kept) < room and _as_new(directory):
            with suppress(OSError):
                kept.append(directory.rename(spares / directory.name))
                continue
        try:
            (directory / "work").rmdir()
        except OSError:
            shutil.rmtree(directory / "work", ignore_errors=True)
        with suppress(OSError):  # a log is made with its first byte, and then stays
            directory.rmdir()
    return kept


def _as_new(directory: Path) -> bool:
    """Nothing tells of the attempt that had it: no file, no attribute, no access list."""
    work = directory / "work"
    try:
        return (
            stat.S_ISDIR(work.lstat().st_mode)
            and not any(entry.name != "work" for entry in os.scandir(directory))
            and not any(os.scandir(work))
            and not os.listxattr(work, follow_symlinks=False)
        )
    except OSError:
        return False


def _empty(directory: Path) -> None:
    """What an earlier daemon put aside is not known to be as good as new."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(mode=0o700)
