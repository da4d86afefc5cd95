"""Rules of packages that are signed anew: the file is another, the package and its place stay."""

from __future__ import annotations

from swarmd.domain.binpkgs import path_of
from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import BinPkgChanged
from swarmd.state.build_commands import ReplaceBinPkg
from swarmd.state.rows import encode
from swarmd.state.rules.binhost import changed, decode_binpkg
from swarmd.state.rules.blobs import pin, unpin
from swarmd.state.tx import Tx


def replace_file(tx: Tx, command: ReplaceBinPkg) -> None:
    path, pkg = command.path, command.pkg
    row = tx.execute("SELECT body FROM binpkgs WHERE path = ?", (path,)).fetchone()
    if row is None:
        raise NotFound("no such binary package", path=path[:300])
    known = decode_binpkg(row[0])
    if known.sha256 != command.replaces:
        raise Conflict("it is another file by now; look again", path=path)
    if (path_of(pkg), pkg.cpv, pkg.build_id) != (path, known.cpv, known.build_id):
        raise Invalid("this is another package than the one that it is to replace", path=path)
    tx.execute("UPDATE binpkgs SET body = ? WHERE path = ?", (encode(pkg), path))
    unpin(tx, f"binhost {path}")
    pin(tx, f"binhost {path}", pkg.sha256)
    changed(tx)
    tx.emit(BinPkgChanged(path, pkg.cpv, True))
