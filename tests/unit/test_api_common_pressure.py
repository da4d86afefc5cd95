"""Slow, greedy and flooding clients: each has an end, and none holds the loop."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import trio

from tests.steps import measured
from tests.surfaces import (
    HOST,
    QUICK,
    UPGRADE,
    read_all,
    read_until,
    serving,
)


async def test_slow_clients_are_cut() -> None:
    async with serving() as world:
        began = trio.current_time()
        assert (await world.ask(b"", within_s=2)).raw == b""
        assert (await world.ask(b"GET / HT", within_s=3)).status == 408
        one = b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n"
        assert (await world.ask(one, within_s=3)).status == 200  # idle afterwards
        for path in (b"/echo", b"/hot/echo"):
            slow = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\nabc"
            found = await world.ask(slow, within_s=3)
            assert found.status == 408 and found.json["code"] == "timeout"
        assert trio.current_time() - began < 8
        await world.empty()


async def test_dripping_headers_do_not_renew_their_time() -> None:
    async with serving() as world, await world.connect() as stream:
        with trio.fail_after(3), pytest.raises(trio.BrokenResourceError):
            for byte in (b"GET / HTTP/1.1\r\nX: " + b"y" * 1000) * 2:
                await stream.send_all(bytes([byte]))
                await trio.sleep(0.02)


async def test_a_long_upload_earns_its_time() -> None:
    limits = replace(QUICK, body_bytes_per_s_min=20_000)
    async with serving(limits) as world, await world.connect() as stream:
        await stream.send_all(
            b"POST /hot/upload HTTP/1.1\r\n" + HOST + b"Content-Length: 80000\r\n"
            b"Connection: close\r\n\r\n"
        )
        for _ in range(10):  # one second in all, more than twice the bound for a stall
            await stream.send_all(b"x" * 8000)
            await trio.sleep(0.1)
        assert b'{"bytes":80000}' in await read_all(stream)


@pytest.mark.parametrize("path", ["/flood", "/hot/flood"])
async def test_an_endless_source_leaves_room_for_others(path: str) -> None:
    patient = replace(QUICK, write_stall_timeout_s=60)
    async with serving(patient) as world, await world.connect() as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        got = 0
        while got < 50_000_000:
            piece = await stream.receive_some(1 << 20)
            assert piece, "it was cut"
            got += len(piece)
            if got % 3 == 0:
                assert (await world.get("/hot/x")).status == 200
        assert (await world.get(path, method="HEAD")).body == b""


@pytest.mark.parametrize("path", ["/flood", "/hot/flood"])
async def test_a_reader_who_stalls_is_cut(path: str) -> None:
    async with serving() as world, await world.connect() as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await read_until(stream, b"\r\n\r\n")
        await world.empty(within_s=3)


async def test_a_hot_route_that_hangs_is_cancelled() -> None:
    async with serving() as world:
        found = await world.ask(b"GET /hot/hang HTTP/1.1\r\n" + HOST + b"\r\n", within_s=3)
        assert found.status == 503


async def test_one_request_too_many_is_503_at_once() -> None:
    async with serving(replace(QUICK, requests_max=2, handler_timeout_s=30)) as world:
        async with await world.connect() as first, await world.connect() as second:
            for stream, waiting in ((first, b"/wait"), (second, b"/hot/wait")):
                await stream.send_all(b"GET " + waiting + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            with trio.fail_after(3):
                while world.events != ["waiting", "waiting"]:
                    await trio.sleep(0.005)
            for path in ("/hot/x", "/q/x"):
                busy = await world.get(path)
                assert (busy.status, busy.header("retry-after")) == (503, "1")
            world.gate.set()
            for stream in (first, second):
                assert b'"waited":true' in await read_until(stream, b"true")
        assert (await world.get("/hot/x")).status == 200


async def test_one_connection_too_many_is_told_so() -> None:
    async with serving(replace(QUICK, connections_max=2, idle_timeout_s=30)) as world:
        async with await world.connect() as first, await world.connect():
            await first.send_all(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_until(first, b"anonymous")
            busy = await world.ask(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n")
            assert busy.status == 503 and busy.header("retry-after") and busy.json["code"] == "busy"
        await world.empty()
        assert (await world.get("/hot/x")).status == 200


async def test_streams_have_places_of_their_own() -> None:
    async with serving(replace(QUICK, streams_max=1, requests_max=1)) as world:
        async with await world.connect() as stream:
            await stream.send_all(b"GET /follow HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_until(stream, b"first")
            for path in ("/follow", "/hot/follow"):
                assert (await world.get(path)).status == 503
            assert (await world.get("/hot/x")).status == 200
        await world.empty()


async def test_a_connection_serves_a_bounded_number_of_requests() -> None:
    async with serving(replace(QUICK, keep_alive_requests_max=3)) as world:
        got = await world.ask((b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n") * 5)
        assert got.raw.count(b"HTTP/1.1 200") == 3 and got.raw.count(b"Connection: close") == 1


CHUNKS = HOST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 40_000
FLOODS = {
    "tiny chunks": b"POST /hot/upload HTTP/1.1\r\n" + CHUNKS,
    "tiny chunks to Quart": b"POST /echo HTTP/1.1\r\n" + CHUNKS,
    "empty lines": b"\r\n" * 100_000,
    "headers": b"GET /hot/x HTTP/1.1\r\n" + HOST + b"a:\r\n" * 4000 + b"\r\n",
    "pipelined requests": (b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n") * 3000,
    "empty frames": UPGRADE % b"/ws" + b"\x01\x80abcd" + b"\x00\x80abcd" * 20_000,
    "pings": UPGRADE % b"/ws" + b"\x89\x80abcd" * 20_000,
}


@pytest.mark.parametrize("flood", FLOODS)
async def test_no_flood_holds_the_loop(flood: str) -> None:
    longest_s = []
    async with serving(replace(QUICK, idle_timeout_s=0.2)) as world:
        await world.get("/q/warm")
        for _ in range(3):
            async with await world.connect() as stream:
                # Those that serve connections.
                with measured("api.", "quart_trio.") as steps, trio.move_on_after(3):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_send_what_is_taken, stream, FLOODS[flood])
                        with suppress(trio.BrokenResourceError):
                            while await stream.receive_some(65536):
                                pass
                        nursery.cancel_scope.cancel()
                longest_s.append(steps.longest_s)
    assert min(longest_s) < 0.005


async def _send_what_is_taken(stream: trio.SocketStream, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)


async def test_a_client_that_goes_cancels_the_handler() -> None:
    async with serving() as world:
        async with await world.connect() as stream:
            await stream.send_all(b"GET /wait HTTP/1.1\r\n" + HOST + b"\r\n")
            await world.saw("waiting")
        await world.saw("cancelled")
        await world.empty()


async def test_what_commits_is_shielded_from_a_client_that_goes() -> None:
    async with serving() as world:
        async with await world.connect() as stream:
            await stream.send_all(b"GET /commit HTTP/1.1\r\n" + HOST + b"\r\n")
            await world.saw("waiting")
        await trio.testing.wait_all_tasks_blocked(0.05)
        world.gate.set()
        await world.saw("committed")
        await world.empty()


async def test_what_takes_too_long_to_commit_is_answered_as_such() -> None:
    async with serving() as world:
        late = await world.get("/commit/late")
        assert (late.status, b"not done within 0.05 s" in late.body) == (503, True), late.body


@pytest.mark.parametrize("path", [b"/follow", b"/hot/follow"])
async def test_a_stream_ends_with_its_client_and_with_its_source(path: bytes) -> None:
    async with serving() as world:
        async with await world.connect() as stream:
            await stream.send_all(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_until(stream, b"6\r\nfirst\n\r\n")
        await world.saw("stream closed")
        await world.empty()
        world.gate.set()
        whole = await world.get(path.decode())
        assert whole.body == b"6\r\nfirst\n\r\n5\r\nlast\n\r\n0\r\n\r\n"
