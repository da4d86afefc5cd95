"""The console's routes for trust: tokens for nodes that are to join, and drones' own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.common.streams import shielded
from api.common.surface import Request, Response, json_answer
from api.console.raft import local_only
from api.console.shapes import DroneIn, DroneTokenIn, TokenIn, moment, read_body
from swarmd.domain.errors import Invalid
from swarmd.ops import drone_tokens, trust

if TYPE_CHECKING:
    from api.console.routes import Console


async def make_token(console: Console, request: Request) -> Response:
    """Whoever may open the socket may let others in."""
    local_only(request)
    asked = await read_body(TokenIn, await request.body())
    made = await shielded(
        trust.make_token, console.cluster, request.actor, asked.ttl_s, asked.rotate
    )
    return json_answer({"token": made.token, "ends_at": moment(made.ends_at)}, 201)


async def drop_tokens(console: Console, request: Request) -> Response:
    local_only(request)
    dropped = await shielded(trust.drop_tokens, console.cluster, request.actor)
    return json_answer({"dropped": dropped})


async def list_drone_tokens(console: Console, request: Request) -> Response:
    found = await drone_tokens.list_tokens(console.cluster)
    rows = [{"name": each.name, "by": each.by, "at": moment(each.at)} for each in found]
    return json_answer({"tokens": rows})


async def put_drone_token(console: Console, request: Request) -> Response:
    local_only(request)
    asked = await read_body(DroneTokenIn, await request.body())
    try:
        hash = bytes.fromhex(asked.hash)
    except ValueError:
        raise Invalid("hash must be hexadecimal digits", field="hash") from None
    put = drone_tokens.put
    await shielded(put, console.cluster, request.actor, asked.name, hash)
    return json_answer({"name": asked.name}, 201)


async def revoke_drone_token(console: Console, request: Request) -> Response:
    local_only(request)
    asked = await read_body(DroneIn, await request.body())
    await shielded(drone_tokens.revoke, console.cluster, request.actor, asked.name)
    return json_answer({"revoked": asked.name})
