"""Terminals as their users have them: a daemon, a host that it reaches, a documented WebSocket."""

from __future__ import annotations

import json
import socket
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import msgspec
import trio
import trio_websocket

from swarmd.cli.client import Daemon as Client
from swarmd.cli.client import Refused
from swarmd.domain.actors import Actor
from swarmd.domain.events import EventBody
from tests.contract.buildswarm_admin import CONNECTED, EXIT, OUTPUT, REFUSED
from tests.contract.kinds import faults
from tests.daemon import Daemon
from tests.sshd import Sshd, alive

KEY = "a-key-for-tests"
TIMEOUT_S = 120.0


class Host:
    """A daemon, and one host that it reaches."""

    def __init__(self, daemon: Daemon, host: Sshd) -> None:
        self.daemon = daemon
        self.host = host

    def drone(self, name: str, ip: str = "127.0.0.1") -> str:
        says = {"id": f"id-{name}", "name": name, "ip": ip}
        answer = self.daemon.request("POST", "/api/v1/register", says, surface="buildswarm")
        assert answer.status == 200, answer.body
        return name

    @property
    def local(self) -> Client:
        """As the command line has it."""
        return Client(self.daemon.data_dir)

    def terminals(self) -> list[dict[str, Any]]:
        return list(self.local.get("/api/v1/terminals")["terminals"])

    def events(self) -> list[tuple[Actor, EventBody]]:
        conn = sqlite3.connect(f"file:{self.daemon.data_dir / 'state.db'}?mode=ro", uri=True)
        try:
            rows = conn.execute("SELECT actor, body FROM events ORDER BY seq").fetchall()
        finally:
            conn.close()
        decode = msgspec.msgpack.decode
        return [(decode(a, type=Actor), decode(b, type=EventBody)) for a, b in rows]

    def recorded(self, id: str) -> list[Any]:
        """Its lines."""
        data = b"".join(self.local.stream(f"/api/v1/terminals/{id}/recording"))
        assert data.endswith(b"\n")
        return [json.loads(line) for line in data.splitlines()]

    async def ended(self, known: int) -> dict[str, Any]:
        """The newest, of which the swarm has heard all: there were so many before."""
        with trio.fail_after(TIMEOUT_S):
            while True:
                found = await trio.to_thread.run_sync(self.terminals)
                if len(found) > known and found[0]["ended_at"] is not None:
                    return found[0]
                await trio.sleep(0.02)

    def await_terminals(self) -> None:
        """The state comes to the version that has them by itself."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with suppress(Refused):
                self.terminals()
                return
            time.sleep(0.02)
        raise AssertionError("the state does not come to the version with terminals")

    def await_recordings(self) -> None:
        """Until the swarm has the end of every terminal."""
        kept = self.daemon.data_dir / "terminals"
        deadline = time.monotonic() + TIMEOUT_S
        while any(kept.iterdir()):
            assert time.monotonic() < deadline, "a terminal has no end"
            time.sleep(0.01)


class Screen:
    """The client's side of a terminal."""

    def __init__(self, socket: trio_websocket.WebSocketConnection) -> None:
        self.socket = socket
        self._parts: list[str] = []

    @property
    def shown(self) -> str:
        """All that was on the screen so far."""
        self._parts = ["".join(self._parts)]
        return self._parts[0]

    async def next(self) -> dict[str, Any]:
        message = json.loads(await self.socket.get_message())
        shapes = {"connected": CONNECTED, "output": OUTPUT, "exit": EXIT, "error": REFUSED}
        assert faults(message, shapes[message["type"]]) == []
        if message["type"] == "output":
            self._parts.append(message["data"])
        return message

    async def say(self, **message: object) -> None:
        await self.socket.send_message(json.dumps(message))

    async def type(self, text: str) -> None:
        await self.say(type="input", data=text)

    async def until(self, text: str) -> None:
        """The echo of what is typed is on the screen too: ask for what only its answer has."""
        while text not in self.shown:
            message = await self.next()
            assert message["type"] == "output", (message, self.shown)

    async def until_type(self, kind: str) -> dict[str, Any]:
        while (message := await self.next())["type"] != kind:
            assert message["type"] == "output", message
        return message

    async def closed(self, shows: bool = False) -> int:
        """The code that it closes with; nothing comes first but what it still `shows`."""
        while True:
            try:
                message = await self.next()
            except trio_websocket.ConnectionClosed as closed:
                assert closed.reason is not None
                return int(closed.reason.code)
            assert shows and message["type"] == "output", message


@asynccontextmanager
async def terminal(
    host: Host, name: str = "drone-01", query: str = f"key={KEY}",
    headers: tuple[tuple[bytes, bytes], ...] = (),
) -> AsyncIterator[Screen]:  # fmt: skip
    """A WebSocket that was accepted. Left early, its connection is cut without a word."""
    port = host.daemon.ports["buildadmin"]
    with trio.fail_after(TIMEOUT_S):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
            async with trio.open_nursery() as nursery:
                wrapped = await trio_websocket.wrap_client_stream(
                    nursery, stream, f"127.0.0.1:{port}", f"/ws/ssh/{name}?{query}",
                    extra_headers=[*headers],
                )  # fmt: skip
                yield Screen(wrapped)
                nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(host: Host, name: str = "drone-01", **more: Any) -> AsyncIterator[Screen]:
    async with terminal(host, name, **more) as screen:
        message = await screen.next()
        assert message["type"] == "connected", message
        yield screen


async def gone(pids: list[int]) -> None:
    with trio.fail_after(TIMEOUT_S):
        while any(map(alive, pids)):
            await trio.sleep(0.02)
