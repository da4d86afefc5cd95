"""The console's routes for the log of the swarm: its standing, who leads, copies of the state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.common.streams import shielded, stream_answer
from api.common.surface import Request, Response, json_answer
from api.console.shapes import TransferIn, read_body
from swarmd.domain.errors import Forbidden
from swarmd.ops import raft

if TYPE_CHECKING:
    from api.console.routes import Console


async def status(console: Console, request: Request) -> Response:
    return json_answer(await raft.status(console.cluster))


async def transfer(console: Console, request: Request) -> Response:
    local_only(request)
    asked = await read_body(TransferIn, await request.body())
    return json_answer(await shielded(raft.transfer, console.cluster, asked.node))


async def snapshot(console: Console, request: Request) -> Response:
    """The whole state, secrets and all: for whoever may open the socket."""
    local_only(request)
    copy = await console.copies.take()
    made = copy.made
    headers = (
        ("X-Snapshot-Index", str(made.index)),
        ("X-Snapshot-Term", str(made.term)),
        ("X-Snapshot-Sha256", made.sha256),
    )
    return stream_answer(
        copy, content_type="application/octet-stream", headers=headers, length=made.size_bytes
    )


def local_only(request: Request) -> None:
    if request.actor.name != "local":
        raise Forbidden("this is answered on the node's own socket alone; use the command line")
