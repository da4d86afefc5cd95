"""Restoring: a copy of the state becomes a data directory that founds a swarm of one.

It is another swarm: under a new id, with a new node. Nodes of the old one that come back know other
ids, so neither takes the other's word. The data directory holds all of it in the end, or nothing.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from mesh.raft import ConfState
from swarmd.cluster.lineage import CLUSTER_ID
from swarmd.cluster.numbers import raft_id_of
from swarmd.cluster.snapshots import encode_conf
from swarmd.domain.actors import Actor
from swarmd.domain.errors import Conflict, Invalid, Unavailable
from swarmd.state.anew import begin_anew
from swarmd.state.store import sync_directory

ACTOR = Actor("local", "restore")
PART = "restore.part"
MAY_BE_THERE = frozenset({"swarmd.toml", "lost+found", "daemon.lock"})
"""What is no node's data: settings, a file system's own, and the lock of whoever looks."""
_OF_A_PART = frozenset({PART, *(PART + s for s in ("-journal", "-wal", "-shm")), "node-id"})
_CHUNK_BYTES = 1024 * 1024


class Restored(msgspec.Struct, frozen=True):
    data_dir: str
    cluster_id: str
    node_id: str
    index: int
    term: int
    sha256: str
    size_bytes: int
    nodes_removed: tuple[str, ...]
    jobs_given_back: int


def check_empty(data_dir: Path) -> None:
    """Conflict: something is there. What a restore that was broken off left is taken away."""
    there = {entry.name for entry in data_dir.iterdir()} - MAY_BE_THERE
    if PART in there and there <= _OF_A_PART:
        for name in there:
            (data_dir / name).unlink()
        return
    if there:
        raise Conflict(
            f"{data_dir} is not empty; move it away (keep it: it may be wanted yet), or name"
            " another with --data-dir"
        )


def restore(
    copy: Path, data_dir: Path, *, node_id: str, cluster_id: str, now_ms: int,
    sha256: str | None = None,
) -> Restored:  # fmt: skip
    """Found a swarm of one from a copy, in an empty directory that the caller holds against a
    daemon's start. Nobody may have the copy open. Invalid: it has another hash; Unavailable: it is
    damaged, or the disk is full. Then nothing is left."""
    check_empty(data_dir)
    part = data_dir / PART
    try:
        size, found = _bring(copy, part)
        # The state of a node that did not end well has its newest part beside it.
        rest = copy.with_name(copy.name + "-wal")
        if rest.exists():
            _bring(rest, data_dir / f"{PART}-wal")
        if sha256 is not None and found != sha256.lower():
            raise Invalid(f"{copy} has the hash {found}, not the one that was given")
        conf = encode_conf(ConfState(voters=(raft_id_of(node_id),)))
        anew = begin_anew(
            part, ACTOR, settings={CLUSTER_ID: cluster_id.encode()}, conf=conf, now_ms=now_ms
        )
        with _new_file(data_dir / "node-id") as file:
            file.write(node_id.encode())
            _sync(file)
        with part.open("rb") as whole:
            os.fsync(whole.fileno())
        part.rename(data_dir / "state.db")
        sync_directory(data_dir)
    except BaseException as error:
        for name in _OF_A_PART:
            with suppress(OSError):
                (data_dir / name).unlink()
        if isinstance(error, OSError):
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            why = "the disk is full" if full else error.strerror
            raise Unavailable(f"{data_dir} cannot take the copy: {why}") from error
        raise
    return Restored(
        str(data_dir), cluster_id, node_id, anew.place.index, anew.place.term, found, size,
        anew.nodes_removed, anew.jobs_given_back,
    )  # fmt: skip


def _bring(copy: Path, part: Path) -> tuple[int, str]:
    """How much it was, and its hash."""
    digest, size = hashlib.sha256(), 0
    try:
        source = copy.open("rb")
    except OSError as error:
        raise Unavailable(f"{copy} cannot be read: {error.strerror}") from error
    with source, _new_file(part) as file:
        while data := source.read(_CHUNK_BYTES):
            digest.update(data)
            size += len(data)
            file.write(data)
        _sync(file)
    return size, digest.hexdigest()


def _new_file(path: Path) -> BinaryIO:
    return os.fdopen(
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
    )


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
