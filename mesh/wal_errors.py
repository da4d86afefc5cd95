"""Every way the log on disk says no. Each message names the file and what would be right.

None of these is met with a guess: a log that cannot keep its word stops giving it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path


class LogError(Exception):
    """The root of them, with plain facts beside the message."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.message = message
        self.facts: dict[str, object] = facts


class LogMissing(LogError):
    """There is no log where the caller says that there must be one."""


class LogDamaged(LogError):
    """What lies in the file is not what was written. Nothing was repaired, nothing changed."""


class LogFailed(LogError):
    """A write did not reach the disk, or may not have: the log is over until the next start."""


class DiskFull(LogFailed):
    """There was no room for a write. Nothing of it was acknowledged."""


class LogBusy(LogError):
    """Too much waits for the disk already; nothing was taken."""


class OutOfOrder(LogError):
    """The caller breaks a rule of the log (a gap, a falling term, a second vote): a bug above."""


def damaged(path: Path, what: str, **facts: object) -> LogDamaged:
    return LogDamaged(
        f"the log {path} cannot be trusted: {what}. It was left as it is. Keep a copy, move the"
        " node's data away and let this host join again under a new id: the other voters hold"
        " what was acknowledged. Where this node is the only one, restore its last snapshot",
        file=str(path),
        **facts,
    )


def unreadable(error: sqlite3.Error, path: Path) -> LogError:
    """What it means that SQLite cannot read the file."""
    code, name = _code(error)
    if code & 0xFF in _ACCESS and code not in _UNREADABLE:
        return LogError(
            f"the log {path} cannot be read: {error} ({name}). Look at the rights of the file and"
            " of its directory, and for other processes that have it open",
            file=str(path), reason=name,
        )  # fmt: skip
    if code in _UNREADABLE:
        return damaged(path, f"the disk does not give it back ({error})", reason=name)
    return damaged(path, f"SQLite finds it malformed ({error})", reason=name)


def unwritable(error: sqlite3.Error, path: Path) -> LogError:
    """What it means that SQLite did not write."""
    code, name = _code(error)
    if code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code in _UNREADABLE:
        return unreadable(error, path)
    if code & 0xFF == sqlite3.SQLITE_FULL:
        return DiskFull(
            f"no room for the log {path}: {error}. Nothing of the write was acknowledged. Free"
            " space on its file system, then start this node again; it loses nothing",
            file=str(path), reason=name,
        )  # fmt: skip
    return LogFailed(
        f"the log {path} could not be written: {error} ({name}). What was not acknowledged may be"
        " lost, and this process can no longer tell what is on disk. Look at the disk (kernel"
        " log, SMART, free space, limits on file sizes), then start this node again",
        file=str(path), reason=name,
    )  # fmt: skip


def _code(error: sqlite3.Error) -> tuple[int, str]:
    # Errors of the module itself, of text that is none for example, have no code.
    return (
        getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR),
        getattr(error, "sqlite_errorname", type(error).__name__),
    )


_UNREADABLE = (
    sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ, sqlite3.SQLITE_IOERR_CORRUPTFS,
)  # fmt: skip
_ACCESS = (
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_FULL,
)  # fmt: skip
