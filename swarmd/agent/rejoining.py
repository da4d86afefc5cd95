"""Rejoining: a node whose files are older than its promises begins anew, as another node.

Its place is taken over under the same name. What it had is set aside, never deleted before the next
time; a note that outlives every crash says how far that has come, and ends when it is a member.
"""

from __future__ import annotations

import logging
import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from swarmd.domain.errors import Unavailable
from swarmd.domain.jobs import NodeId
from swarmd.drivers.files import fsync_dir, write_all

log = logging.getLogger(__name__)

NOTE = "rejoin.json"
ASIDE = "set-aside"
_SUFFIXES = ("", "-wal", "-shm", "-journal")
_FILES = (
    *(f"raft.db{s}" for s in _SUFFIXES), *(f"state.db{s}" for s in _SUFFIXES),
    "identity", "node-id",
)  # fmt: skip
NOTE_BYTES_MAX = 64 * 1024


class Rejoin(msgspec.Struct, frozen=True):
    """What a node that begins anew has to know of its earlier life."""

    replaces: NodeId
    seeds: tuple[str, ...]


def begin(data_dir: Path, node_id: NodeId, seeds: tuple[str, ...]) -> None:
    """From here on the node is another; the next start does the rest."""
    fresh = data_dir / f"{NOTE}.new"
    with suppress(FileNotFoundError):
        fresh.unlink()
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        write_all(fd, msgspec.json.encode(Rejoin(node_id, seeds)))
        os.fsync(fd)
    finally:
        os.close(fd)
    fresh.rename(data_dir / NOTE)
    fsync_dir(data_dir)


def resume(data_dir: Path, node_id: NodeId | None) -> Rejoin | None:
    """What a start is told of an earlier life, which is set aside if it still lies there. The id
    that is there now says whose the files are: those of the new life stay."""
    try:
        with (data_dir / NOTE).open("rb") as file:
            note = msgspec.json.decode(file.read(NOTE_BYTES_MAX), type=Rejoin)
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise Unavailable(
            f"{data_dir / NOTE} cannot be read: {error}. It says how this node joins its swarm"
            " again: move the data directory away and join as a new node"
        ) from None
    if node_id == note.replaces:
        _set_aside(data_dir)
    return note


def put_away(data_dir: Path) -> None:
    """This node is no member any more, for good: the next start here is another one's first."""
    _set_aside(data_dir)
    done(data_dir)


def done(data_dir: Path) -> None:
    """It is a member again."""
    with suppress(FileNotFoundError):
        (data_dir / NOTE).unlink()
        fsync_dir(data_dir)


def _set_aside(data_dir: Path) -> None:
    """The log goes first: where it still lies, what was set aside is of an earlier time. The id
    goes last: until then the files that are left are the old ones."""
    aside = data_dir / ASIDE
    there = [name for name in _FILES if (data_dir / name).exists()]
    if _FILES[0] in there:
        shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700, exist_ok=True)
    for name in there:
        (data_dir / name).rename(aside / name)
        fsync_dir(data_dir)
    fsync_dir(aside)
    log.warning(
        "what this node had is set aside; the next start here is another node's",
        extra={"set_aside": str(aside)},
    )
