"""The three faults of the stock server stay mended, and WebSockets end as they should."""

from __future__ import annotations

import resource
import socket
from dataclasses import replace

import pytest
import trio

from tests.surfaces import (
    CLOSE_FRAME,
    HOST,
    QUICK,
    TEXT_FRAME,
    UPGRADE,
    read_all,
    read_until,
    serving,
)


async def test_fault_1_bytes_sent_along_with_an_upgrade_kill_nobody() -> None:
    """Stock: h11.LocalProtocolError leaves serve() and cancels the nursery around it."""
    async with serving() as world:
        for extra in (b"x", b"\x00" * 70_000, b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 10):
            async with await world.connect() as stream:
                await stream.send_all(UPGRADE % b"/ws" + extra)
                assert (await read_all(stream)).startswith(b"HTTP/1.1 101")
        async with await world.connect() as stream:  # a frame that came early is no loss
            await stream.send_all(UPGRADE % b"/ws" + TEXT_FRAME)
            await read_until(stream, b"\x81\x05hello")
        assert (await world.get("/hot/x")).status == 200
        await world.empty()


async def test_fault_2_connection_close_gets_its_end_and_idle_ones_time_out() -> None:
    """Stock: no EOF after `Connection: close`, no idle timeout, the full grace at every stop."""
    async with serving(replace(QUICK, stop_grace_s=30)) as world:
        for path in (b"/q/x", b"/hot/x"):
            async with await world.connect() as stream:
                await stream.send_all(
                    b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
                )
                await read_all(stream, within_s=30)
        await world.empty()
        began = trio.current_time()
        async with await world.connect() as idle:
            await idle.send_all(b"GET /q/x HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_all(idle, within_s=30)
        assert 0.5 < trio.current_time() - began < 10
        idlers = [await world.connect() for _ in range(5)]
        for idler in idlers:
            await idler.send_all(b"GET /q/x HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_until(idler, b"anonymous")
        began = trio.current_time()
    assert trio.current_time() - began < 10
    for idler in idlers:
        await idler.aclose()


@pytest.mark.parametrize("path", [b"/wait", b"/hot/wait"])
async def test_fault_3_bytes_ahead_of_an_answer_leak_nothing(path: bytes) -> None:
    """Stock: extra bytes during a response, then a close, leak the connection for good."""
    async with serving() as world:
        for extra in (b"x", b"y" * 200_000, b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n"):
            world.events.clear()
            stream = await world.connect()
            await stream.send_all(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            await world.saw("waiting")
            with trio.move_on_after(0.1):
                await stream.send_all(extra)
            await stream.aclose()
            world.gate.set()
            await world.empty(within_s=30)
            world.gate = trio.Event()


@pytest.mark.parametrize("path", [b"/follow", b"/hot/follow"])
async def test_a_stream_ends_with_a_client_that_sent_more_than_is_kept(path: bytes) -> None:
    async with serving() as world:
        async with await world.connect() as stream:
            await stream.send_all(
                b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" + b"x" * 150_000
            )
            await read_until(stream, b"first")
        await world.empty(within_s=30)


async def test_running_out_of_descriptors_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(replace(QUICK, idle_timeout_s=30, header_timeout_s=30)) as world:
        clients = [socket.socket() for _ in range(12)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(c.fileno() for c in clients) + 4, hard))
        try:
            for client in clients:
                client.connect(("127.0.0.1", world.port))
            with trio.fail_after(30):
                while not caplog.records:
                    await trio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.sendall(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            client.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
                assert (await read_all(stream)).startswith(b"HTTP/1.1 200")
        assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1


async def test_websockets_echo_and_close() -> None:
    async with serving() as world, await world.connect() as stream:
        await stream.send_all(UPGRADE % b"/ws")
        await read_until(stream, b"\r\n\r\n")
        for _ in range(3):
            await stream.send_all(TEXT_FRAME)
            await read_until(stream, b"\x81\x05hello")
        await stream.send_all(CLOSE_FRAME)
        assert b"\x88\x02\x03\xe8" in await read_all(stream)
        await world.saw("websocket closed")
        await world.empty()


async def test_a_websocket_that_is_refused_is_answered_in_the_envelope() -> None:
    async with serving() as world:
        refused = await world.ask(UPGRADE % b"/ws/refused")
        assert refused.status == 404 and refused.json["context"] == {"job_id": "7"}
        assert (await world.ask(UPGRADE % b"/ws/none")).status == 404
        wrong = UPGRADE.replace(b"Version: 13", b"Version: 12") % b"/ws"
        assert (await world.ask(wrong)).status == 400
        foreign = UPGRADE.replace(b"\r\n\r\n", b"\r\nOrigin: http://evil.example\r\n\r\n") % b"/ws"
        found = await world.ask(foreign)
        assert found.status == 403 and found.json["code"] == "forbidden"
        await world.empty()


async def test_a_websocket_fault_is_logged_once_and_closed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as world:
        got = (await world.ask(UPGRADE % b"/ws/boom")).raw
        assert got.startswith(b"HTTP/1.1 101") and b"\x03\xf3" in got  # 1011
        assert len([r for r in caplog.records if r.exc_info]) == 1
        await world.empty()


async def test_a_message_over_its_bound_ends_the_websocket() -> None:
    async with serving(replace(QUICK, websocket_message_bytes_max=1000)) as world:
        async with await world.connect() as stream:
            await stream.send_all(UPGRADE % b"/ws")
            await read_until(stream, b"\r\n\r\n")
            with trio.move_on_after(1):
                frame = b"\x01\xfe\x10\x00\x00\x00\x00\x00" + b"x" * 4096
                for _ in range(200):
                    await stream.send_all(frame)
            with trio.fail_after(30):
                try:
                    while await stream.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    pass
        await world.empty()


async def test_silent_and_unheard_websockets_are_cut() -> None:
    async with serving() as world:
        async with await world.connect() as silent, await world.connect() as unheard:
            await silent.send_all(UPGRADE % b"/ws")  # never answers a ping
            await unheard.send_all(UPGRADE % b"/ws/deaf" + TEXT_FRAME * 2000)
            await world.empty(within_s=5)
        await world.saw("deaf closed")
