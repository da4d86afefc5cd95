"""A WebSocket of a daemon, read to its end."""

from __future__ import annotations

import trio
import trio_websocket

from tests.daemon import Daemon

TIMEOUT_S = 20.0


async def read_all(
    daemon: Daemon, path: str, *, say: str | None = None, surface: str = "jobqueue"
) -> tuple[str, int]:
    """All text messages as one text, and the close code. Any other message fails."""
    port = daemon.ports[surface]
    text = ""
    # The stream is ours, because trio_websocket leaves it open where the server closes first.
    with trio.fail_after(TIMEOUT_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            async with trio.open_nursery() as nursery:
                socket = await trio_websocket.wrap_client_stream(
                    nursery, stream, f"127.0.0.1:{port}", path
                )
                if say is not None:
                    await socket.send_message(say)
                try:
                    while True:
                        message = await socket.get_message()
                        assert isinstance(message, str)
                        text += message
                except trio_websocket.ConnectionClosed as closed:
                    assert closed.reason is not None
                    code = int(closed.reason.code)
                nursery.cancel_scope.cancel()
    return text, code
