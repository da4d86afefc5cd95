"""The console's routes for members: who leaves, who votes, the keys they share, how far they are.

What changes anything is answered on the node's own socket alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.common.streams import shielded
from api.common.surface import Request, Response, json_answer
from api.console.raft import local_only
from api.console.shapes import Body, read_body
from swarmd.domain.errors import Invalid
from swarmd.ops import doctor, members, ping, trust

if TYPE_CHECKING:
    from api.console.routes import Console


class RemoveIn(Body):
    node: str
    force: bool = False


class PromoteIn(Body):
    node: str


class PingIn(Body):
    node: str | None = None
    source: str | None = None
    count: int = ping.COUNT


async def remove(console: Console, request: Request) -> Response:
    local_only(request)
    asked = await read_body(RemoveIn, await request.body())
    if asked.node in (console.cluster.node.name, console.cluster.node.id):
        raise Invalid(
            "that is this node itself: `swarmd leave` takes it out, or `swarmd remove` on another",
            field="node",
        )
    done = await shielded(members.remove, console.cluster, request.actor, asked.node, asked.force)
    return json_answer({"removed": done.name, "voters": done.voters})


async def leave(console: Console, request: Request) -> Response:
    local_only(request)
    done = await shielded(members.leave, console.cluster, request.actor, console.removed)
    console.leave()
    return json_answer({"left": done.name})


async def promote(console: Console, request: Request) -> Response:
    local_only(request)
    asked = await read_body(PromoteIn, await request.body())
    done = await shielded(members.promote, console.cluster, asked.node)
    return json_answer({"promoted": done.name, "voters": done.voters})


async def keyring(console: Console, request: Request) -> Response:
    return json_answer(await trust.keyring(console.cluster))


async def rotate(console: Console, request: Request) -> Response:
    local_only(request)
    return json_answer(await shielded(trust.rotate_keyring, console.cluster, request.actor))


async def measure(console: Console, request: Request) -> Response:
    asked = await read_body(PingIn, await request.body())
    return json_answer(await ping.ping(console.cluster, asked.node, asked.count, asked.source))


async def examine(console: Console, request: Request) -> Response:
    found = await doctor.examine(console.cluster, console.data_dir, console.builds_not())
    return json_answer(found)
