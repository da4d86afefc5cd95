"""Terminals on drones over a WebSocket: messages in JSON both ways, each taken or refused by
itself.

Only one task writes at a time, so that no message is cut in two by the end of another."""

from __future__ import annotations

from functools import partial
from typing import cast

import msgspec
import trio
from quart import websocket
from quart_trio import QuartTrio

from api.buildswarm.envelope import ADMIN_ENVELOPE, admin_failure
from api.buildswarm.requests import drone_name, whole_of
from api.common.auth import current_actor
from swarmd.domain.errors import Busy, Invalid, SwarmError, Unavailable, instead
from swarmd.domain.terminals import TerminalEnd
from swarmd.ops.terminals import Session, Terminals

PATH = "/ws/ssh/<drone_name>"
COLS, ROWS, TERM = 80, 24, "xterm-256color"
SIZE_MAX = 1000
KEPT_S_MAX = 2.0
"""It is closed when its recording is there to be read, or after so long."""
ENDED, POLICY, FAILED, AGAIN = 1000, 1008, 1011, 1013
ENDS = {
    TerminalEnd.LOST: (FAILED, "the connection to the drone was lost; connect again"),
    TerminalEnd.IDLE: (POLICY, "nothing was typed or shown for too long; connect again"),
    TerminalEnd.OVERTIME: (POLICY, "this terminal was open for as long as one may be; connect"
                           " again"),
}  # fmt: skip
"""Those that are no end of the shell's own."""


class InputIn(msgspec.Struct, frozen=True, tag="input"):
    data: str


class ResizeIn(msgspec.Struct, frozen=True, tag="resize"):
    cols: int
    rows: int


class ConnectedOut(msgspec.Struct, frozen=True, tag="connected"):
    drone: str
    ip: str
    user: str


class OutputOut(msgspec.Struct, frozen=True, tag="output"):
    data: str


class ExitOut(msgspec.Struct, frozen=True, tag="exit"):
    code: int


class ErrorOut(msgspec.Struct, frozen=True, tag="error"):
    """As the dialect's refusals, and of what type it is."""

    error: str
    hint: str


Out = ConnectedOut | OutputOut | ExitOut | ErrorOut
_decode = msgspec.json.Decoder(InputIn | ResizeIn).decode
_encode = msgspec.json.Encoder().encode


def make_app(terminals: Terminals) -> QuartTrio:
    """What is not answered by a hot route: terminals, and nothing else."""
    app = QuartTrio("api.buildswarm", static_folder=None)
    app.add_websocket(PATH, "terminal", partial(_serve, terminals))
    return app


async def _serve(terminals: Terminals, drone_name: str) -> None:
    await websocket.accept()
    try:
        with instead(SwarmError, lambda error: error):
            code = await _connect(terminals, drone_name)
    except SwarmError as refusal:
        await _say(_refused(refusal))
        code = AGAIN if isinstance(refusal, Busy | Unavailable) else POLICY
    await websocket.close(code)


async def _connect(terminals: Terminals, name: str) -> int:
    """Until it is over, and what it showed is kept; the code to close with."""
    cols = whole_of(websocket.args, "cols", COLS, SIZE_MAX, low=1)
    rows = whole_of(websocket.args, "rows", ROWS, SIZE_MAX, low=1)
    term = websocket.args.get("term") or TERM
    async with terminals.open(
        current_actor(), drone_name(name), cols=cols, rows=rows, term=term
    ) as session:
        about = session.terminal
        await _say(ConnectedOut(about.name, about.host, about.user))
        await _follow(session)
        code = await _say_how(session)
    with trio.move_on_after(KEPT_S_MAX):
        await terminals.kept(about.id)
    return code


async def _follow(session: Session) -> None:
    writing = trio.Lock()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_take, session, writing)
        while text := await session.shown():
            async with writing:
                await _say(OutputOut(text))
        async with writing:
            nursery.cancel_scope.cancel()


async def _say_how(session: Session) -> int:
    """The last message; the code to close with."""
    end, exit_code = session.end, session.exit_code
    assert end is not None
    if end is TerminalEnd.EXITED:
        assert exit_code is not None
        await _say(ExitOut(exit_code))
        return ENDED
    code, words = ENDS[end]
    await _say(_refused(Unavailable(words)))
    return code


async def _take(session: Session, writing: trio.Lock) -> None:
    """What the client says. That it has gone ends the task that this one is a part of."""
    while True:
        message = await websocket.receive()
        try:
            said = _read(message)
            if isinstance(said, InputIn):
                await session.type(said.data)
            else:
                session.resize(said.cols, said.rows)
        except Unavailable:
            continue  # the shell has ended, which is about to be said
        except SwarmError as refusal:
            async with writing:
                await _say(_refused(refusal))


def _read(message: str | bytes | None) -> InputIn | ResizeIn:
    if not isinstance(message, str):
        raise Invalid("the message is binary; messages are JSON in text frames")
    try:
        return cast(InputIn | ResizeIn, _decode(message))
    except msgspec.ValidationError as error:
        raise Invalid(
            f'the message is none that a terminal takes ({error}); send {{"type": "input", "data":'
            ' "…"} or {"type": "resize", "cols": 80, "rows": 24}'
        ) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        raise Invalid("the message is no JSON; messages are JSON objects with a type") from None


def _refused(refusal: SwarmError) -> ErrorOut:
    said = admin_failure(ADMIN_ENVELOPE.status_of(refusal), refusal.message)
    return ErrorOut(said.error, said.hint)


async def _say(message: Out) -> None:
    await websocket.send(_encode(message).decode())
