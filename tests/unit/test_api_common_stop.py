"""The stop is bounded and kind; what was bound is given back."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import trio

from api.common.limits import HttpLimits
from tests.surfaces import (
    HOST,
    QUICK,
    UPGRADE,
    World,
    open_descriptors,
    read_all,
    read_until,
    serving,
)


class Stoppable:
    """The server in a task of its own, so that a test can watch it stop."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.stop = trio.Event()
        self.stopped_after_s = -1.0

    async def run(self, task_status: trio.TaskStatus[World] = trio.TASK_STATUS_IGNORED) -> None:
        async with serving(self.limits) as world:
            task_status.started(world)
            await self.stop.wait()
            began = trio.current_time()
        self.stopped_after_s = trio.current_time() - began


async def test_the_stop_lets_requests_finish_and_ends_streams() -> None:
    server = Stoppable(replace(QUICK, stop_grace_s=30, websocket_ping_s=30, handler_timeout_s=30))
    async with trio.open_nursery() as nursery:
        world: World = await nursery.start(server.run)
        port = world.port
        streams: list[trio.SocketStream] = []
        for raw, mark in [
            (b"GET /follow HTTP/1.1\r\n" + HOST + b"\r\n", b"first\n\r\n"),
            (b"GET /hot/follow HTTP/1.1\r\n" + HOST + b"\r\n", b"first\n\r\n"),
            (UPGRADE % b"/ws", b"\r\n\r\n"),
        ]:
            stream = await world.connect()
            streams.append(stream)
            await stream.send_all(raw)
            await read_until(stream, mark)
        await trio.testing.wait_all_tasks_blocked(0.05)
        running = await world.connect()
        await running.send_all(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
        await world.saw("waiting")
        server.stop.set()
        ends = [await read_all(stream, within_s=20) for stream in streams]
        assert ends[:2] == [b"0\r\n\r\n"] * 2
        assert ends[2].endswith(b"\x88\x02\x03\xe9")
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", port)
        assert server.stopped_after_s < 0
        world.gate.set()
        got = await read_all(running, within_s=20)
        assert b'"waited":true' in got and b"Connection: close" in got
        for stream in (*streams, running):
            await stream.aclose()
    assert server.stopped_after_s < 10


async def test_the_stop_is_bounded_whatever_hangs() -> None:
    server = Stoppable(replace(QUICK, handler_timeout_s=30, write_stall_timeout_s=30))
    descriptors = open_descriptors()
    async with trio.open_nursery() as nursery:
        world: World = await nursery.start(server.run)
        streams = [await world.connect() for _ in range(4)]
        for stream, raw in zip(
            streams,
            (
                b"GET /hot/hang HTTP/1.1\r\n" + HOST + b"\r\n",
                b"GET /flood HTTP/1.1\r\n" + HOST + b"\r\n",
                UPGRADE % b"/ws/deaf",
                b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n",
            ),
            strict=True,
        ):
            await stream.send_all(raw)
        await world.saw("waiting")
        server.stop.set()
        with trio.fail_after(20):
            while server.stopped_after_s < 0:
                await trio.sleep(0.01)
        for stream in streams:
            await stream.aclose()
    assert server.stopped_after_s < 10
    gc.collect()
    assert open_descriptors() == descriptors


async def test_an_error_in_the_body_of_the_context_passes_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serving():
            raise KeyError("mine")
