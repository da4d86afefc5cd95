"""The console's routes for binary packages: what there is, why none fits, what signs them.

What changes anything is answered on the node's own socket alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.common.streams import shielded
from api.common.surface import Request, Response, json_answer
from api.console.raft import local_only
from api.console.shapes import Body, Json, moment, read_body
from swarmd.domain.binpkgs import BinPkg, path_of
from swarmd.domain.errors import Invalid
from swarmd.ops import binhost, signing

if TYPE_CHECKING:
    from api.console.routes import Console

LAST_MOMENT_S = 253_402_300_799
"""Of the year 9999: what a package says of when it was built may be anything."""


class PathIn(Body):
    path: str


async def list_pkgs(console: Console, request: Request) -> Response:
    package, after = request.arg("package") or "", request.arg("after") or ""
    found = await binhost.list_pkgs(console.cluster, package, after)
    more = not package and len(found) == binhost.PAGE
    rows = [_row(pkg) for pkg in found]
    return json_answer({"packages": rows, "next": path_of(found[-1]) if more else None})


def _row(pkg: BinPkg) -> Json:
    return {
        "path": path_of(pkg),
        "package": pkg.cpv,
        "slot": pkg.slot,
        "use": sorted(pkg.use),
        "size_bytes": pkg.size_bytes,
        "sha256": pkg.sha256,
        "built_at": moment(min(pkg.build_time_s, LAST_MOMENT_S) * 1000 or None),
    }


async def explain(console: Console, request: Request) -> Response:
    package = request.arg("package")
    if not package:
        raise Invalid("say which package: dev-libs/openssl", field="package")
    said = {name: request.arg(name) or "" for name in binhost.Host.__struct_fields__}
    return json_answer(await binhost.explain_fit(console.cluster, package, binhost.Host(**said)))


async def remove(console: Console, request: Request) -> Response:
    local_only(request)
    asked = await read_body(PathIn, await request.body())
    await shielded(binhost.remove, console.cluster, request.actor, asked.path)
    return json_answer({"removed": asked.path})


async def resign(console: Console, request: Request) -> Response:
    """One package: whoever wants all of them asks for each, and may go on where it ended."""
    local_only(request)
    asked = await read_body(PathIn, await request.body())
    async with console.signing:
        done = await binhost.resign(
            console.cluster, request.actor, asked.path, console.data_dir / "staging",
            console.blob_bytes_max,
        )  # fmt: skip
    return json_answer({"path": asked.path, "signed": done})


async def key(console: Console, request: Request) -> Response:
    return _shown(await signing.public_key(console.cluster))


async def rotate(console: Console, request: Request) -> Response:
    local_only(request)
    return _shown(await shielded(signing.rotate, console.cluster, request.actor))


def _shown(key: signing.KeyView) -> Response:
    return json_answer({
        "fingerprint": key.fingerprint, "created_at": moment(key.created_s * 1000),
        "made_at": moment(key.made_s * 1000), "armored": key.armored,
    })  # fmt: skip
