"""The console's routes for trust: tokens for nodes that are to join."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.common.streams import shielded
from api.common.surface import Request, Response, json_answer
from api.console.raft import local_only
from api.console.shapes import TokenIn, moment, read_body
from swarmd.ops import trust

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
