"""`terminal`: this terminal becomes one on a builder's host, by the documented WebSocket alone."""

from __future__ import annotations

import codecs
import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode, urlsplit

import click

from swarmd.cli import options, show
from swarmd.cli.client import Refused, find_daemon
from swarmd.cli.main import EXIT_REFUSED, tell
from swarmd.domain.pauses import doubling

if TYPE_CHECKING:
    import trio
    from trio_websocket import WebSocketConnection

PORT = 8093
ESCAPE = b"\x1d"
END_OF_INPUT = "\x04"
END_AGAIN_S, END_AGAIN_S_MAX = 0.5, 60.0
"""Of quiet, after something was shown."""
READ_BYTES = 4096
CONNECT_S = 60.0
COLS, ROWS, SIZE_MAX = 80, 24, 1000


@click.command("terminal")
@click.argument("drone")
@click.option("--url", metavar="URL", help="Another node's admin port: http://node:8093. It takes"
              " the key in ADMIN_KEY.")  # fmt: skip
@options.data_dir
def terminal(drone: str, url: str | None, data_dir: Path | None) -> int:
    """A terminal on the host of DRONE. What is on the screen is recorded.

    Ctrl-] leaves it and ends what runs there. The exit status is the shell's. Where stdin is no
    terminal, the shell gets it as its input.
    """
    import trio

    host, port, tls, key = _place(url, data_dir)
    with _raw(sys.stdin.fileno()):
        return trio.run(_connect, host, port, tls, key, drone)


def _place(url: str | None, data_dir: Path | None) -> tuple[str, int, bool, str]:
    """Where to connect to, whether by TLS, and the admin key."""
    if url is None:
        daemon = find_daemon(data_dir)
        key = daemon.get("/api/v1/admin-key")["admin_key"]
        told = {row["setting"]: row["value"] for row in daemon.get("/api/v1/config")["settings"]}
        binds = told["surfaces.buildadmin.bind"] or told["node.bind"]
        if not told["surfaces.buildadmin.enabled"]:
            raise Refused("this node has its port buildadmin switched off; name another by --url")
        return binds[0], int(told["surfaces.buildadmin.port"]), False, _known(key)
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or PORT
    except ValueError:
        host, port = None, 0
    if host is None or parts.scheme not in ("http", "https", "ws", "wss"):
        raise click.BadParameter("write http://NODE:8093", param_hint="--url")
    return host, port, parts.scheme in ("https", "wss"), _known(os.environ.get("ADMIN_KEY"))


def _known(key: str | None) -> str:
    if not key:
        raise Refused("terminals take the admin key: give it in ADMIN_KEY")
    return key


@contextmanager
def _raw(fd: int) -> Iterator[None]:
    """Every key goes to the host, until it is left."""
    if not os.isatty(fd):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(fd)
    try:
        tty.setraw(fd)
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


class _Shown:
    """How much was on the screen so far."""

    pieces = 0


async def _connect(host: str, port: int, tls: bool, key: str, drone: str) -> int:
    import trio
    import trio_websocket

    from swarmd.domain.errors import instead

    def say(error: BaseException) -> BaseException:
        if isinstance(error, trio_websocket.ConnectionRejected):
            return Refused(_words(error.body, f"the node answered {error.status_code}"))
        if isinstance(error, KeyboardInterrupt | BrokenPipeError):
            return error
        why = str(error) or f"no answer within {CONNECT_S:g} s"
        return Refused(f"{at} cannot be reached: {why}")

    at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    path = f"/ws/ssh/{quote(drone, safe='')}?{urlencode(_size())}"
    code, shown = EXIT_REFUSED, _Shown()
    kinds = (trio_websocket.HandshakeError, OSError, trio.TooSlowError, KeyboardInterrupt)
    with instead(kinds, say):
        async with trio.open_nursery() as nursery:
            with trio.fail_after(CONNECT_S):
                open_stream = trio.open_ssl_over_tcp_stream if tls else trio.open_tcp_stream
                connection = await trio_websocket.wrap_client_stream(
                    nursery, await open_stream(host, port), at, path,
                    extra_headers=[(b"X-Admin-Key", key.encode())],
                )  # fmt: skip
            nursery.start_soon(_type, connection, shown, nursery.cancel_scope)
            nursery.start_soon(_follow_size, connection)
            code = await _show(connection, shown)
            nursery.cancel_scope.cancel()
    return code


async def _show(connection: WebSocketConnection, shown: _Shown) -> int:
    """Until it closes: the exit status."""
    import trio_websocket

    code = EXIT_REFUSED
    with suppress(trio_websocket.ConnectionClosed):
        while True:
            message = _read(await connection.get_message())
            match message.get("type"):
                case "output":
                    shown.pieces += 1
                    sys.stdout.write(str(message.get("data", "")))
                    sys.stdout.flush()
                case "exit":
                    code = int(message.get("code", EXIT_REFUSED)) & 0xFF
                case "error":
                    tell(f"\r\nerror: {_of_error(message)}\r")
    return code


async def _type(connection: WebSocketConnection, shown: _Shown, leaving: trio.CancelScope) -> None:
    import trio
    import trio_websocket

    fd, last = sys.stdin.fileno(), ""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    with suppress(trio_websocket.ConnectionClosed):
        while True:
            # Not waited for as readable: it may be a file.
            data = await trio.to_thread.run_sync(os.read, fd, READ_BYTES, abandon_on_cancel=True)
            if ESCAPE in data and os.isatty(fd):
                leaving.cancel()
                return
            text = decoder.decode(data, final=not data)
            last = (last + text)[-1:]
            if not data:
                # In the middle of a line ^D ends no input, it only hands over what is there.
                text += END_OF_INPUT if last in ("", "\n", "\r") else f"\n{END_OF_INPUT}"
            await connection.send_message(json.dumps({"type": "input", "data": text}))
            if not data:
                break
        await _stay_ended(connection, shown)


async def _stay_ended(connection: WebSocketConnection, shown: _Shown) -> None:
    """One ^D is not enough: what the shell runs may take it, and a shell that edits its lines
    misses one that comes while it does not read. So there is another once more was shown, and no
    more comes: that may be its prompt."""
    import trio

    for quiet_s in doubling(END_AGAIN_S, END_AGAIN_S_MAX):
        answered, before = shown.pieces, -1
        while before != shown.pieces or before == answered:
            before = shown.pieces
            await trio.sleep(quiet_s)
        said = {"type": "input", "data": END_OF_INPUT}
        await connection.send_message(json.dumps(said))


async def _follow_size(connection: WebSocketConnection) -> None:
    import trio
    import trio_websocket

    with trio.open_signal_receiver(signal.SIGWINCH) as changes:
        async for _ in changes:
            with suppress(trio_websocket.ConnectionClosed):
                await connection.send_message(json.dumps({"type": "resize", **_size()}))


def _size() -> dict[str, int]:
    cols = rows = 0
    with suppress(OSError):
        cols, rows = os.get_terminal_size(sys.stdin.fileno())
    return {"cols": min(cols or COLS, SIZE_MAX), "rows": min(rows or ROWS, SIZE_MAX)}


def _words(body: bytes | None, otherwise: str) -> str:
    said = _read(body or b"")
    return _of_error(said) if "error" in said else otherwise


def _read(data: str | bytes) -> dict[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    return said if isinstance(said, dict) else {}


def _of_error(said: dict[str, Any]) -> str:
    return show.printable(f"{said.get('error')}; {said.get('hint')}")
