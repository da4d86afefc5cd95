"""The console's routes for terminals: who had which, and what was on their screens. All of it is
answered on the node's own socket alone: a screen may have shown anything."""

from __future__ import annotations

from typing import TYPE_CHECKING

from api.common.streams import stream_answer
from api.common.surface import Request, Response, json_answer
from api.console.raft import local_only
from api.console.shapes import Json, moment
from swarmd.domain.terminals import Terminal
from swarmd.ops import terminals

if TYPE_CHECKING:
    from api.console.routes import Console

MEDIA_TYPE = "application/x-asciicast"


async def list_terminals(console: Console, request: Request) -> Response:
    local_only(request)
    found = await terminals.list_terminals(console.cluster)
    return json_answer({"terminals": [_row(console, terminal) for terminal in found]})


async def find(console: Console, request: Request) -> Response:
    local_only(request)
    found = await terminals.find(console.cluster, request.params["id"][:256])
    return json_answer(_row(console, found))


async def recording(console: Console, request: Request) -> Response:
    local_only(request)
    id = request.params["id"][:256]
    chunks, size_bytes = await terminals.recording_of(console.cluster, id)
    return stream_answer(chunks, content_type=MEDIA_TYPE, length=size_bytes)


def _row(console: Console, terminal: Terminal) -> Json:
    if terminal.end is not None:
        state = terminal.end.value
    else:
        state = "open" if terminals.is_open(console.cluster, terminal) else "unknown"
    return {
        "id": terminal.id,
        "drone": terminal.name,
        "host": terminal.host,
        "user": terminal.user,
        "by": terminal.by,
        "address": terminal.address,
        "via": terminal.via_name,
        "began_at": moment(terminal.began_at),
        "ended_at": moment(terminal.ended_at),
        "duration_ms": None if terminal.ended_at is None else terminal.ended_at - terminal.began_at,
        "end": state,
        "exit_code": terminal.exit_code,
        "sha256": terminal.sha256,
        "size_bytes": terminal.size_bytes,
        "cut": terminal.cut,
    }
