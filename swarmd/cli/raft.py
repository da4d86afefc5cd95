"""The swarm's log: its standing, who leads, and copies of the state for the day they are needed.

A copy is whole and checked before it has its name, and nothing that is there is ever written over.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import click

from swarmd.cli import options, show
from swarmd.cli.client import Refused, find_daemon
from swarmd.cli.main import tell

STATUS_TIMEOUT_S = 5.0
TRANSFER_TIMEOUT_S = 20.0
COPY_TIMEOUT_S = 600.0
"""For the daemon to make a copy of the state and check it, before its first byte comes."""


@click.group("raft")
def raft() -> None:
    """The swarm's log: its standing, who leads, backup and restore.

    docs/consensus.md says what to do when there is no leader, a majority is lost, a disk is full
    or a file is damaged.
    """


@raft.command("status")
@options.as_json
@options.data_dir
def status(as_json: bool, data_dir: Path | None) -> None:
    """Where the log stands as this node sees it, and how far each member is. Needs no leader."""
    seen = find_daemon(data_dir).get("/api/v1/raft", timeout_s=STATUS_TIMEOUT_S)
    if as_json:
        show.emit_json(seen)
        return
    leader = seen.get("leader") or "none is known"
    stale_ms = seen.get("staleness_ms")
    heard = "never" if stale_ms is None else f"{show.span(stale_ms)} ago"
    for heading, said in (
        ("cluster", seen.get("cluster_id")),
        ("node", f"{seen.get('node')}, {seen.get('role')}; up to date {heard}"),
        ("leader", f"{leader}, term {seen.get('term')}"),
        ("log", f"{seen.get('first')} to {seen.get('last')}, committed {seen.get('committed')},"
                f" applied {seen.get('applied')}"),
        ("standing", seen.get("standing")),
    ):  # fmt: skip
        click.echo(f"{heading:8} {show.printable(said)}")
    show.emit_table(
        ["MEMBER", "ROLE", "ALIVE", "MATCH", "BEHIND", "STATE", "RTT"],
        [
            [m.get("name"), m.get("role"), m.get("alive"), m.get("match"), m.get("behind"),
             m.get("state"), _rtt(m.get("rtt_ms"))]
            for m in seen.get("members", [])
        ],
    )  # fmt: skip
    if note := seen.get("note"):
        tell(f"note: {show.printable(note)}")


def _rtt(milliseconds: Any) -> str | None:
    return f"{milliseconds:.2g} ms" if isinstance(milliseconds, int | float) else None


@raft.command("transfer")
@click.argument("node", required=False)
@options.as_json
@options.data_dir
def transfer(node: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Have another voter lead: NODE, or the one that is furthest.

    No request fails by it. Before a leader's host is taken down it need not be called: a node that
    is stopped hands over by itself.
    """
    said = find_daemon(data_dir).post(
        "/api/v1/raft/transfer", {"node": node}, timeout_s=TRANSFER_TIMEOUT_S
    )
    if as_json:
        show.emit_json(said)
    elif said["leader"] == said["before"]:
        click.echo(f"{show.printable(said['leader'])} leads already, term {said['term']}")
    else:
        click.echo(f"{show.printable(said['leader'])} leads, term {said['term']}")


@raft.group("snapshot")
def snapshot() -> None:
    """Copies of the state, for backup."""


@snapshot.command("save")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@options.as_json
@options.data_dir
def save(file: Path, as_json: bool, data_dir: Path | None) -> None:
    """Save all that this node has applied to FILE. Needs no leader.

    FILE appears when it is whole, checked and on disk, and one that is there is left alone. It
    holds secrets and is for its owner alone.
    """
    daemon = find_daemon(data_dir)
    _refuse_present(file)
    with daemon.download("/api/v1/raft/snapshot", COPY_TIMEOUT_S) as (headers, pieces):
        size, digest = _save(file, headers, pieces)
    facts = {
        "file": str(file), "index": int(headers["x-snapshot-index"]),
        "term": int(headers["x-snapshot-term"]), "size_bytes": size, "sha256": digest,
    }  # fmt: skip
    if as_json:
        show.emit_json(facts)
        return
    for name, value in facts.items():
        click.echo(f"{name:10} {value}")


def _save(file: Path, headers: Mapping[str, str], pieces: Iterator[bytes]) -> tuple[int, str]:
    from swarmd.drivers.files import fsync_dir, write_all

    digest, size = hashlib.sha256(), 0
    with _part(file) as out:
        for piece in pieces:
            digest.update(piece)
            size += len(piece)
            write_all(out, piece)
        found = digest.hexdigest()
        if headers.get("x-snapshot-sha256") != found:
            raise Refused("what came is not what was sent; nothing was saved, try again")
        os.fsync(out)
        _refuse_present(file)
        _part_of(file).rename(file)
    fsync_dir(file.absolute().parent)
    return size, found


def _part_of(file: Path) -> Path:
    return file.with_name(file.name + ".part")


@contextmanager
def _part(file: Path) -> Iterator[int]:
    """FILE.part, empty and ours for the block; gone unless it was given its name. One that a save
    left that did not end is used again, one that another writes now is not."""
    part = _part_of(file)
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as problem:
        raise Refused(f"{part} cannot be written: {problem.strerror}") from problem
    try:
        if not _is_ours(fd, part):
            raise Refused(f"another save to {file} is under way")
        try:
            os.fchmod(fd, 0o600)
            os.ftruncate(fd, 0)
            yield fd
        except BaseException as problem:
            with suppress(OSError):
                part.unlink()
            if isinstance(problem, OSError):
                full = problem.errno in (errno.ENOSPC, errno.EDQUOT)
                why = "the disk is full" if full else problem.strerror
                raise Refused(f"{file} was not saved: {why}; nothing of it is left") from problem
            raise
    finally:
        os.close(fd)


def _is_ours(fd: int, part: Path) -> bool:
    """Nobody else holds it, and it has its name yet."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(fd), part.stat(follow_symlinks=False))
    except OSError:
        return False


def _refuse_present(file: Path) -> None:
    if os.path.lexists(file):
        raise Refused(f"{file} is there already and is left alone; choose another name")


@raft.command("restore")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--sha256", metavar="HEX", help="The hash that `snapshot save` told.")
@options.as_json
@options.data_dir
def restore(file: Path, sha256: str | None, as_json: bool, data_dir: Path | None) -> None:
    """Found a NEW swarm of one from FILE, in a data directory that is empty or not there yet.

    For the day on which the old swarm is lost. It is another swarm with another id: what is left
    of the old one never mixes with it. `swarmd up` then starts it, and other nodes join it with
    empty data directories of their own.
    """
    from swarmd.cluster.restoring import MAY_BE_THERE, check_empty
    from swarmd.cluster.restoring import restore as restore_into
    from swarmd.paths import claimed, find_data_dir

    target = find_data_dir(os.environ, data_dir, os.geteuid())
    if (file.parent / "daemon.lock").exists():
        with claimed(file.parent):
            pass  # its own state: refused while a daemon writes it
    try:
        taken = target.is_dir() and {entry.name for entry in target.iterdir()} - MAY_BE_THERE
    except OSError as problem:
        raise Refused(f"{problem.filename} cannot be read: {problem.strerror}") from problem
    if taken and not (target / "daemon.lock").exists():
        check_empty(target)
    with claimed(target):
        done = restore_into(
            file, target, node_id=str(uuid4()), cluster_id=str(uuid4()),
            now_ms=time.time_ns() // 1_000_000, sha256=sha256,
        )  # fmt: skip
    if as_json:
        import msgspec

        show.emit_json(msgspec.to_builtins(done))
        return
    for name, value in (
        ("data", done.data_dir),
        ("cluster", f"{done.cluster_id}, a new one"),
        ("node", f"{done.node_id}, a new one"),
        ("index", done.index),
        ("term", done.term),
        ("sha256", done.sha256),
        ("forgotten", f"nodes {', '.join(done.nodes_removed) or 'none'}"),
        ("queued", f"{done.jobs_given_back} jobs that those nodes held are in the queue again"),
    ):
        click.echo(f"{name:10} {show.printable(value)}")
    tell(f"`swarmd up --data-dir {done.data_dir}` starts it")
