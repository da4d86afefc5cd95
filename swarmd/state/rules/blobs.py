"""Rules of blobs: which there are, who has them, and for whom they are kept.

Each is counted once for every job and every pin that names it; what nobody names is idle, and goes
after a while."""

from __future__ import annotations

from collections.abc import Iterable

from swarmd.domain.events import BlobAdded, BlobsDropped
from swarmd.state.commands import AddBlob, DropBlobs
from swarmd.state.tx import Tx
from swarmd.state.versions import BUILDS_SINCE, in_force


def add_blob(tx: Tx, command: AddBlob) -> None:
    refs = tx.execute(
        "SELECT count(*) FROM blob_refs WHERE sha256 = ?", (command.sha256,)
    ).fetchone()[0]
    if in_force(tx.execute) >= BUILDS_SINCE:
        pins = "SELECT count(*) FROM blob_pins WHERE sha256 = ?"
        refs += tx.execute(pins, (command.sha256,)).fetchone()[0]
    made = tx.execute(
        "INSERT INTO blobs VALUES (?,?,?,?) ON CONFLICT DO UPDATE SET"
        " idle_since = CASE WHEN refs = 0 THEN excluded.idle_since END RETURNING refs",
        (command.sha256, command.size_bytes, refs, None if refs else tx.at),
    ).fetchone()
    assert made is not None
    held = tx.execute(
        "INSERT OR IGNORE INTO blob_holders VALUES (?,?)", (command.sha256, command.node_id)
    )
    if held.rowcount:
        tx.emit(BlobAdded(command.sha256, command.size_bytes, command.node_id))


def drop_blobs(tx: Tx, command: DropBlobs) -> tuple[str, ...]:
    rows = tx.execute(
        "SELECT sha256 FROM blobs WHERE idle_since < ? ORDER BY idle_since, sha256 LIMIT ?",
        (command.before, command.limit),
    ).fetchall()
    tx.executemany("DELETE FROM blobs WHERE sha256 = ?", rows)
    tx.executemany("DELETE FROM blob_holders WHERE sha256 = ?", rows)
    names = tuple(row[0] for row in rows)
    if names:
        tx.emit(BlobsDropped(names))
    return names


def pin(tx: Tx, owner: str, sha256: str) -> None:
    """Keep it until its owner lets go of it. One that is not known yet is kept once it comes."""
    if tx.execute("INSERT OR IGNORE INTO blob_pins VALUES (?,?)", (owner, sha256)).rowcount:
        _count(tx, sha256)


def unpin(tx: Tx, owner: str) -> None:
    _discount(tx, tx.execute("DELETE FROM blob_pins WHERE owner = ? RETURNING sha256", (owner,)))


def pin_for_job(tx: Tx, seq: int, sha256: str) -> None:
    """Keep it for as long as the job is kept."""
    if tx.execute("INSERT OR IGNORE INTO blob_refs VALUES (?,?)", (seq, sha256)).rowcount:
        _count(tx, sha256)


def release_of_job(tx: Tx, seq: int) -> None:
    _discount(tx, tx.execute("DELETE FROM blob_refs WHERE job_seq = ? RETURNING sha256", (seq,)))


def _count(tx: Tx, sha256: str) -> None:
    tx.execute("UPDATE blobs SET refs = refs + 1, idle_since = NULL WHERE sha256 = ?", (sha256,))


def _discount(tx: Tx, released: Iterable[tuple[str]]) -> None:
    for (sha256,) in [*released]:
        tx.execute(
            "UPDATE blobs SET refs = refs - 1, idle_since = CASE WHEN refs <= 1 THEN ? END"
            " WHERE sha256 = ?",
            (tx.at, sha256),
        )
