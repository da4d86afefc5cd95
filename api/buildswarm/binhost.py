"""The binary host's routes: what Portage reads of PORTAGE_BINHOST, the key it checks that with, and
where builders put what they made. Reading takes no key; staging takes the admin key, or the drone's
own token."""

from __future__ import annotations

import hmac
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from functools import partial

from api.buildswarm import tokens
from api.buildswarm.routes import API, Swarm, check_admin, token_of
from api.common.streams import stream_answer
from api.common.surface import HotRoute, Request, Response, json_answer
from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.errors import Invalid, Unauthorized
from swarmd.ops import binhost, signing

BINHOST = "/binhost"
OCTETS = "application/octet-stream"
PLAIN = "text/plain; charset=utf-8"
GZIP = "application/gzip"
KEYS = "application/pgp-keys"
TOKEN_CHARS_MAX = 256
SINCE_TOLERANCE_S = 5
"""Portage asks for what is newer than its index and this. Taken by the letter, it would miss what
changes so soon after a change."""


@dataclass(frozen=True, slots=True)
class BinHost:
    """What the routes stand on."""

    swarm: Swarm
    index: binhost.Index
    staging: binhost.Staging


def hot_routes(on: BinHost) -> tuple[HotRoute, ...]:
    staging, bytes_max = f"{BINHOST}/staging", on.staging.bytes_max
    return (
        *(HotRoute("GET", f"{BINHOST}{end}", _to_index) for end in ("", "/")),
        HotRoute("GET", f"{BINHOST}/Packages", partial(_index, on, False)),
        HotRoute("GET", f"{BINHOST}/Packages.gz", partial(_index, on, True)),
        HotRoute("GET", f"{BINHOST}/swarm.asc", partial(_key, on)),
        HotRoute("GET", f"{API}/binhost/explain", partial(_explain, on)),
        HotRoute("GET", f"{BINHOST}/{{category}}/{{file}}", partial(_read, on)),
        HotRoute("GET", f"{BINHOST}/{{category}}/{{name}}/{{file}}", partial(_read, on)),
        *(
            HotRoute(
                "PUT", f"{staging}/{where}", partial(_stage, on), bytes_max, None, by_token=True
            )
            for where in ("{category}/{file}", "{category}/{name}/{file}")
        ),
    )


async def _to_index(request: Request) -> Response:
    """For people: Portage asks for what it knows to be there."""
    return Response(302, b"", PLAIN, (("Location", f"{BINHOST}/Packages"),))


async def _index(on: BinHost, packed: bool, request: Request) -> Response:
    file = await on.index.read()
    tag = f'"{file.at:x}{"-gz" if packed else ""}"'
    at_s = file.at // 1000
    headers = (("ETag", tag), ("Last-Modified", formatdate(at_s, usegmt=True)))
    if _is_known(request, tag, at_s):
        return Response(304, headers=headers)
    if packed:
        return Response(200, file.packed, GZIP, headers)
    return Response(200, file.plain, PLAIN, headers)


def _is_known(request: Request, tag: str, at_s: int) -> bool:
    """Whether who asks has this very index."""
    if (tags := request.header(b"if-none-match")) is not None:
        return tag in [each.strip().removeprefix("W/") for each in tags.split(",")]
    try:
        since = parsedate_to_datetime(request.header(b"if-modified-since") or "")
        return since.timestamp() == at_s + SINCE_TOLERANCE_S
    except (ValueError, OverflowError):
        return False


async def _key(on: BinHost, request: Request) -> Response:
    key = await signing.public_key(on.swarm.cluster)
    return Response(200, key.armored.encode(), KEYS)


async def _explain(on: BinHost, request: Request) -> Response:
    package = request.arg("package")
    if not package:
        raise Invalid("say which package: ?package=dev-libs/openssl", field="package")
    said = {name: request.arg(name) or "" for name in binhost.Host.__struct_fields__}
    return json_answer(await binhost.explain_fit(on.swarm.cluster, package, binhost.Host(**said)))


def _path(request: Request) -> str:
    params = request.params
    parts = [params[name] for name in ("category", "name", "file") if name in params]
    if any(part in (".", "..") or "/" in part or not part.isprintable() for part in parts):
        raise Invalid("a path has a category, a name where there are several, and a file")
    return "/".join(parts)


async def _read(on: BinHost, request: Request) -> Response:
    pkg = await binhost.find(on.swarm.cluster, _path(request))
    chunks = _bytes(on, pkg)
    # A refusal to open it is the answer; once bytes are on their way they can only be cut off.
    await anext(chunks)
    return stream_answer(chunks, content_type=OCTETS, length=pkg.size_bytes)


async def _bytes(on: BinHost, pkg: BinPkg) -> AsyncIterator[bytes]:
    """Nothing at first, when it is open."""
    async with binhost.open_package(on.swarm.cluster, pkg) as chunks:
        yield b""
        async for chunk in chunks:
            yield chunk


async def _stage(on: BinHost, request: Request) -> Response:
    builder = await _builder(on, request)
    path = _path(request)
    # Its last step commits; all before is undone where the client goes.
    pkg = await binhost.stage(
        on.swarm.cluster, request.actor, builder, path, request.chunks(), on.staging
    )
    answer = {"status": "ok", "package": pkg.cpv, "path": path, "size": pkg.size_bytes,
              "sha256": pkg.sha256}  # fmt: skip
    return json_answer(answer, 201)


async def _builder(on: BinHost, request: Request) -> str:
    """Whose token is shown; "" with the admin key."""
    cluster = on.swarm.cluster
    shown = (request.header(b"x-drone-token") or request.header(b"authorization") or "").strip()
    shown = shown.removeprefix("Bearer ").strip()
    drone, _, _ = shown.rpartition(".")
    if drone and len(shown) <= TOKEN_CHARS_MAX:
        known = token_of(on.swarm.admin_key(), drone)
        if known is not None and hmac.compare_digest(known.encode(), shown.encode()):
            await tokens.check_own(cluster, request, drone)
            return drone
    if (own := await tokens.own_id(cluster, request)) is not None:
        return own
    try:
        check_admin(on.swarm, request)
    except Unauthorized:
        raise Unauthorized(
            "staging takes the admin key, or a drone's token; send X-Drone-Token, as it came with"
            " the drone's registration"
        ) from None
    return ""
