"""A dialect made for tests, served by the real server on a free port of 127.0.0.1."""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio
from quart_trio import QuartTrio

from api.common.auth import current_actor
from api.common.bodies import read_json
from api.common.limits import HttpLimits
from api.common.metrics import RequestMetrics
from api.common.serve import Bound, open_surfaces
from api.common.streams import shielded, stream_answer, stream_bytes
from api.common.surface import (
    TEXT,
    Envelope,
    HotRoute,
    Request,
    Response,
    Surface,
    json_answer,
)
from swarmd.domain.errors import (
    Busy,
    Conflict,
    Forbidden,
    Invalid,
    NotFound,
    TooLarge,
    Unauthorized,
    Unavailable,
)

KEY = "correct-horse-battery"
ENVELOPE = Envelope(
    {
        Invalid: 400,
        NotFound: 404,
        Conflict: 409,
        Unauthorized: 401,
        Forbidden: 403,
        TooLarge: 413,
        Busy: 503,
        Unavailable: 503,
    },
    lambda status, code, message, facts: {"error": message, "code": code, "context": facts},
)
QUICK = HttpLimits(
    header_timeout_s=0.4,
    body_timeout_s=0.4,
    idle_timeout_s=0.6,
    write_stall_timeout_s=0.5,
    handler_timeout_s=1.0,
    websocket_ping_s=0.3,
    stop_grace_s=0.5,
)

HOST = b"Host: localhost\r\n"
UPGRADE = (
    b"GET %b HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT_FRAME = b"\x81\x85\x00\x00\x00\x00hello"
CLOSE_FRAME = b"\x88\x82\x00\x00\x00\x00\x03\xe8"


@dataclass
class World:
    """What the handlers saw, and what lets them go on."""

    events: list[str] = field(default_factory=list)
    gate: trio.Event = field(default_factory=trio.Event)
    bound: Bound | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics("test_"))

    @property
    def port(self) -> int:
        assert self.bound is not None
        return int(self.bound.url("jobqueue").rsplit(":", 1)[1])

    async def saw(self, event: str) -> None:
        with trio.fail_after(5):
            while event not in self.events:
                await trio.sleep(0.005)

    async def empty(self, within_s: float = 5) -> None:
        """Until no connection, request or stream is counted any more."""
        assert self.bound is not None
        load = self.bound.load
        with trio.fail_after(within_s):
            while load.connections or load.requests or load.streams:
                await trio.sleep(0.01)

    async def ask(self, raw: bytes, *, within_s: float = 5) -> Answer:
        """Send bytes, read to the end of the connection."""
        async with await self.connect() as stream:
            await stream.send_all(raw)
            return Answer(await read_all(stream, within_s))

    async def get(self, path: str, *headers: str, method: str = "GET", body: bytes = b"") -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "Connection: close", *headers]
        if not any(header.lower().startswith("host:") for header in headers):
            lines.append("Host: localhost")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return await self.ask("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)

    async def connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream("127.0.0.1", self.port)


@dataclass
class Answer:
    raw: bytes

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def body(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        for line in self.raw.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")[1:]:
            key, _, value = line.partition(": ")
            if key.lower() == name.lower():
                return value
        return None


async def read_all(stream: trio.abc.ReceiveStream, within_s: float = 5) -> bytes:
    """Everything up to the end of the connection, which has to come."""
    got = bytearray()
    with trio.fail_after(within_s):
        while piece := await stream.receive_some(65536):
            got += piece
    return bytes(got)


async def read_until(stream: trio.abc.ReceiveStream, mark: bytes, within_s: float = 5) -> bytes:
    got = bytearray()
    with trio.fail_after(within_s):
        while mark not in got:
            piece = await stream.receive_some(65536)
            assert piece, f"the connection ended after {bytes(got)!r}"
            got += piece
    return bytes(got)


def make_surface(world: World, **changes: Any) -> Surface:
    return replace(
        Surface(
            "jobqueue",
            ENVELOPE,
            app=lambda: make_app(world),
            hot=make_hot(world),
            body_limits={("POST", "/big/<name>"): 64_000, ("POST", "/small"): 10},
            probes=frozenset({"/health"}),
            metrics=world.metrics,
        ),
        **changes,
    )


@asynccontextmanager
async def serving(limits: HttpLimits = QUICK, **changes: Any) -> AsyncIterator[World]:
    world = World()
    surface = make_surface(world, **changes)
    async with open_surfaces([surface], limits, admin_key=lambda: KEY, wall=time.time) as bound:
        world.bound = bound
        yield world


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def make_hot(world: World) -> tuple[HotRoute, ...]:
    async def hello(request: Request) -> Response:
        return json_answer({"hello": request.params["name"], "who": request.actor.name})

    async def echo(request: Request) -> Response:
        return Response(200, await request.body(), TEXT)

    async def ignore(request: Request) -> Response:
        return json_answer({"read": False})

    async def upload(request: Request) -> Response:
        total = 0
        async for chunk in request.chunks():
            total += len(chunk)
        return json_answer({"bytes": total})

    async def follow(request: Request) -> Response:
        return stream_answer(ticks(world))

    async def broken(request: Request) -> Response:
        return stream_answer(breaking())

    async def flood(request: Request) -> Response:
        return stream_answer(zeros())

    async def hang(request: Request) -> Response:
        await trio.sleep_forever()
        raise AssertionError

    async def wait(request: Request) -> Response:
        world.events.append("waiting")
        await world.gate.wait()
        return json_answer({"waited": True})

    async def boom(request: Request) -> Response:
        raise KeyError("an inner secret")

    async def unlucky(request: Request) -> Response:
        raise Conflict("job is completed", job_id="7")

    async def parsed(request: Request) -> Response:
        return json_answer(await read_json(request, dict[str, object]))

    return (
        HotRoute("GET", "/hot/{name}", hello),
        HotRoute("POST", "/hot/echo", echo),
        HotRoute("POST", "/hot/ignore", ignore),
        HotRoute("POST", "/hot/upload", upload, body_bytes_max=2**40, timeout_s=None),
        HotRoute("POST", "/hot/json", parsed),
        HotRoute("GET", "/hot/follow", follow),
        HotRoute("GET", "/hot/flood", flood),
        HotRoute("GET", "/hot/broken", broken),
        HotRoute("GET", "/hot/hang", hang),
        HotRoute("GET", "/hot/wait", wait),
        HotRoute("GET", "/hot/boom", boom),
        HotRoute("GET", "/hot/conflict", unlucky),
        HotRoute("PUT", "/both", ignore),
    )


async def ticks(world: World) -> AsyncIterator[bytes]:
    try:
        yield b"first\n"
        await world.gate.wait()
        yield b"last\n"
    finally:
        world.events.append("stream closed")


async def breaking() -> AsyncIterator[bytes]:
    yield b"first\n"
    raise Unavailable("the node that has the log is gone")


async def zeros() -> AsyncIterator[bytes]:
    block = bytes(256 * 1024)
    while True:
        yield block


def make_app(world: World) -> QuartTrio:
    import quart

    app = QuartTrio(__name__)

    @app.get("/q/<name>")
    async def greet(name: str) -> dict[str, str]:
        return {"hello": name, "who": current_actor().name}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/both")
    async def both() -> dict[str, bool]:
        return {"quart": True}

    @app.post("/big/<name>")
    @app.post("/small", defaults={"name": "small"})
    @app.post("/echo", defaults={"name": "echo"})
    async def echo(name: str) -> bytes | str:
        return await quart.request.get_data()

    @app.get("/boom")
    async def boom() -> str:
        raise KeyError("an inner secret")

    @app.get("/conflict")
    async def unlucky() -> str:
        raise Conflict("job is completed", job_id="7")

    @app.get("/wait")
    async def wait() -> dict[str, bool]:
        world.events.append("waiting")
        try:
            await world.gate.wait()
        except trio.Cancelled:
            world.events.append("cancelled")
            raise
        return {"waited": True}

    @app.get("/commit")
    async def commit() -> dict[str, bool]:
        async def work() -> None:
            world.events.append("waiting")
            await world.gate.wait()
            world.events.append("committed")

        await shielded(work)
        return {"committed": True}

    @app.get("/commit/late")
    async def commit_late() -> dict[str, bool]:
        await shielded(trio.sleep_forever, limit_s=0.05)
        return {}

    @app.get("/follow")
    async def follow() -> quart.Response:
        return stream_bytes(ticks(world))

    @app.get("/flood")
    async def flood() -> quart.Response:
        return stream_bytes(zeros())

    @app.websocket("/ws")
    async def ws() -> None:
        try:
            while True:
                message = await quart.websocket.receive()
                await quart.websocket.send(message)
        finally:
            world.events.append("websocket closed")

    @app.websocket("/ws/refused")
    async def refused() -> None:
        raise NotFound("job is not known", job_id="7")

    @app.websocket("/ws/boom")
    async def ws_boom() -> None:
        await quart.websocket.accept()
        raise KeyError("an inner secret")

    @app.websocket("/ws/deaf")
    async def deaf() -> None:
        await quart.websocket.accept()
        try:
            await trio.sleep_forever()
        finally:
            world.events.append("deaf closed")

    return app
