"""Rules of the binary host: what builders have put in staging, and what is published of it.

A file is pinned for as long as it stands here; a package is published by the end of its build."""

from __future__ import annotations

import msgspec

from swarmd.domain.binpkgs import BinPkg, path_of, placed
from swarmd.domain.builds import STAGED_BYTES_MIN, STAGED_MAX
from swarmd.domain.errors import Busy, Conflict, NotFound
from swarmd.domain.events import BinPkgChanged
from swarmd.domain.jobs import JobId
from swarmd.state.build_commands import DropStaged, RemoveBinPkg, StagePackage
from swarmd.state.rows import encode
from swarmd.state.rules.blobs import pin, unpin
from swarmd.state.tx import Tx
from swarmd.state.versions import ONCE_SINCE, in_force

decode_binpkg = msgspec.msgpack.Decoder(BinPkg).decode
SECOND_MS = 1000
ANYBODY = ""
"""In the place of the builder: an operator put it there."""


def stage(tx: Tx, command: StagePackage) -> None:
    pkg, node_id = command.pkg, command.node_id
    if node_id != ANYBODY:
        held = tx.execute(
            "SELECT 1 FROM attempts a JOIN jobs j ON j.seq = a.job_seq WHERE a.node_id = ?"
            " AND a.active = 1 AND j.kind = 'package' AND j.type = ?",
            (node_id, pkg.cpv),
        ).fetchone()
        if held is None:
            raise Conflict(
                f"this builder does not hold {pkg.cpv}: only what it is given to build goes into"
                " staging",
                package=pkg.cpv,
            )
    again = command.file if in_force(tx.execute) >= ONCE_SINCE else ""  # takes nobody's place
    known = tx.execute(
        "SELECT count(*) FROM staged WHERE node_id = ? AND file != ?", (node_id, again)
    ).fetchone()[0]
    if known >= STAGED_MAX:
        raise Busy(f"{STAGED_MAX} files are in staging; report what is built of them first")
    _unstage(tx, node_id, command.file)
    tx.execute(
        "INSERT INTO staged VALUES (?,?,?,?,?)",
        (node_id, command.file, pkg.cpv, encode(pkg), tx.at),
    )
    pin(tx, _staged_as(node_id, command.file), pkg.sha256)


def _staged_as(node_id: str, file: str) -> str:
    return f"staged {node_id} {file}"


def _unstage(tx: Tx, node_id: str, file: str) -> None:
    tx.execute("DELETE FROM staged WHERE node_id = ? AND file = ?", (node_id, file))
    unpin(tx, _staged_as(node_id, file))


def is_staged(tx: Tx, node_id: str, cpv: str) -> bool:
    """Whether there is what could be a binary package of it."""
    return any(pkg.size_bytes >= STAGED_BYTES_MIN for _, _, pkg in _staged(tx, node_id, cpv))


def _staged(tx: Tx, node_id: str, cpv: str) -> list[tuple[str, str, BinPkg]]:
    rows = tx.execute(
        "SELECT node_id, file, body FROM staged WHERE cpv = ? AND node_id IN (?, '')"
        " ORDER BY node_id, file",
        (cpv, node_id),
    ).fetchall()
    return [(row[0], row[1], decode_binpkg(row[2])) for row in rows]


def publish(tx: Tx, node_id: str, cpv: str, job_id: JobId) -> None:
    for owner, file, pkg in _staged(tx, node_id, cpv):
        if pkg.size_bytes >= STAGED_BYTES_MIN:
            _publish_one(tx, pkg, node_id, job_id)
        _unstage(tx, owner, file)


def _publish_one(tx: Tx, pkg: BinPkg, node_id: str, job_id: JobId) -> None:
    rows = tx.execute("SELECT body FROM binpkgs WHERE cpv = ? ORDER BY path", (pkg.cpv,)).fetchall()
    others = [decode_binpkg(row[0]) for row in rows]
    if any(other.sha256 == pkg.sha256 for other in others):
        return
    pkg = placed(pkg, others)
    path = path_of(pkg)
    tx.execute(
        "INSERT OR REPLACE INTO binpkgs VALUES (?,?,?,?,?,?)",
        (path, pkg.cpv, encode(pkg), job_id, node_id, tx.at),
    )
    pin(tx, f"binhost {path}", pkg.sha256)
    changed(tx)
    tx.emit(BinPkgChanged(path, pkg.cpv, True))


def drop_staged_of(tx: Tx, node_id: str, cpv: str) -> None:
    """The build came to another end."""
    for owner, file, _ in _staged(tx, node_id, cpv):
        if owner == node_id:
            _unstage(tx, owner, file)


def drop_staged(tx: Tx, command: DropStaged) -> int:
    rows = tx.execute(
        "SELECT node_id, file FROM staged WHERE at < ? ORDER BY at, node_id, file LIMIT ?",
        (command.before, command.limit),
    ).fetchall()
    for node_id, file in rows:
        _unstage(tx, node_id, file)
    return len(rows)


def remove(tx: Tx, command: RemoveBinPkg) -> None:
    row = tx.execute("SELECT cpv FROM binpkgs WHERE path = ?", (command.path,)).fetchone()
    if row is None:
        raise NotFound("no such binary package", path=command.path[:300])
    tx.execute("DELETE FROM binpkgs WHERE path = ?", (command.path,))
    unpin(tx, f"binhost {command.path}")
    changed(tx)
    tx.emit(BinPkgChanged(command.path, row[0], False))


def changed(tx: Tx) -> None:
    """When, for the index: at least a second after the last time. Hosts take an index only if it is
    of a later second than theirs, and so may what changes fast run ahead of the clock."""
    row = tx.execute("SELECT value FROM meta WHERE key = 'binhost_at'").fetchone()
    at = tx.at if row is None else max(tx.at, int(row[0]) + SECOND_MS)
    tx.execute("INSERT OR REPLACE INTO meta VALUES ('binhost_at', ?)", (at,))
