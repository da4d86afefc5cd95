"""The server over real sockets: framing, limits, errors, streams and the stop."""

from __future__ import annotations

import gc
import json
import logging
import os
import resource
import socket
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from prometheus_client import generate_latest

from api.common.faults import CannotListen, PortTaken
from api.common.limits import HttpLimits
from api.common.serve import open_surfaces
from api.common.surface import Access
from tests.parts import need
from tests.surfaces import (
    KEY,
    QUICK,
    World,
    make_surface,
    open_descriptors,
    read_all,
    read_until,
    serving,
)

HOST = b"Host: localhost\r\n"
UPGRADE = (
    b"GET %b HTTP/1.1\r\n" + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT_FRAME = b"\x81\x85\x00\x00\x00\x00hello"
CLOSE_FRAME = b"\x88\x82\x00\x00\x00\x00\x03\xe8"


# -- ordinary answers ---------------------------------------------------------------------------


async def test_hot_and_quart_routes_answer() -> None:
    async with serving() as world:
        hot = await world.get("/hot/a%2Fb")
        assert (hot.status, hot.json) == (200, {"hello": "a/b", "who": "anonymous"})
        assert hot.header("server") is None and hot.header("date") is not None
        assert hot.header("x-content-type-options") == "nosniff"
        quart = await world.get("/q/bob", f"X-Admin-Key: {KEY}")
        assert (quart.status, quart.json) == (200, {"hello": "bob", "who": "admin"})
        assert quart.header("server") is None
        body = b"x" * 100_000
        for path in ("/echo", "/hot/echo"):
            assert (await world.get(path, method="POST", body=body)).body == body


async def test_many_requests_go_over_one_connection() -> None:
    async with serving() as world, await world.connect() as stream:
        for n in range(50):
            path = b"/hot/%d" % n if n % 2 else b"/q/%d" % n
            await stream.send_all(b"GET %b HTTP/1.1\r\n%b\r\n" % (path, HOST))
            got = await read_until(stream, b'"anonymous"')
            assert b'"%d"' % n in got and b"Connection" not in got
        await stream.send_all(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
        assert b"Connection: close" in await read_all(stream)


async def test_pipelined_requests_are_answered_in_turn() -> None:
    async with serving() as world:
        one = b"POST /hot/echo HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n\r\n%03d"
        raw = b"".join(one % n for n in range(100)) + (
            b"GET /q/end HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        )
        got = (await world.ask(raw)).raw
        assert got.count(b"HTTP/1.1 200 OK") == 101
        places = [got.index(b"\r\n\r\n%03d" % n) for n in range(100)]
        assert places == sorted(places)


async def test_head_and_options() -> None:
    async with serving() as world:
        for path in ("/hot/x", "/q/x"):
            head = await world.get(path, method="HEAD")
            assert (
                head.status == 200 and head.body == b"" and int(head.header("content-length") or 0)
            )
            options = await world.get(path, method="OPTIONS")
            assert options.status == 204 and "GET" in (options.header("allow") or "")
        both = await world.get("/both", method="OPTIONS")
        assert both.header("allow") == "GET, HEAD, OPTIONS, PUT"
        assert (await world.get("*", method="OPTIONS")).status == 204
        assert (await world.get("/none", method="OPTIONS")).status == 404


async def test_unknown_paths_and_methods_wear_the_envelope() -> None:
    async with serving() as world:
        none = await world.get("/no/such?x=1")
        assert none.status == 404 and none.json["context"]["path"] == "/no/such"
        for path, method, allow in [
            ("/q/x", "POST", "GET, HEAD, OPTIONS"),
            ("/hot/x", "DELETE", "GET, HEAD, OPTIONS"),
            ("/both", "POST", "GET, HEAD, OPTIONS, PUT"),
            ("/hot/x", "BREW", "GET, HEAD, OPTIONS"),
        ]:
            wrong = await world.get(path, method=method)
            assert (wrong.status, wrong.header("allow")) == (405, allow)
            assert wrong.json["code"] == "method_not_allowed"
        plain = await world.get("/ws")
        assert plain.status == 400 and "WebSocket" in plain.json["error"]


async def test_refusals_and_faults(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as world:
        for path in ("/conflict", "/hot/conflict"):
            refused = await world.get(path)
            assert (refused.status, refused.json["context"]) == (409, {"job_id": "7"})
        assert not caplog.records
        for path in ("/boom", "/hot/boom"):
            caplog.clear()
            fault = await world.get(path, "X-Admin-Key: do-not-log")
            assert fault.status == 500 and fault.json["code"] == "internal"
            assert b"secret" not in fault.raw and b"KeyError" not in fault.raw
            failures = [r for r in caplog.records if r.exc_info]
            assert len(failures) == 1 and "KeyError" in caplog.text
            assert "do-not-log" not in caplog.text


async def test_http_1_0_gets_no_chunks() -> None:
    async with serving() as world:
        assert (await world.ask(b"GET /hot/x HTTP/1.0\r\n\r\n")).status == 200
        world.gate.set()
        for path in (b"/follow", b"/hot/follow"):
            old = await world.ask(b"GET " + path + b" HTTP/1.0\r\n\r\n")
            assert old.body == b"first\nlast\n" and old.header("transfer-encoding") is None


async def test_requests_are_counted_by_template() -> None:
    async with serving() as world:
        await world.get("/hot/one")
        await world.get("/q/two")
        for n in range(5):
            await world.get(f"/unknown/{n}")
        await world.empty()
        text = generate_latest(world.metrics.registry).decode()
    for labels, count in [
        ('endpoint="/hot/{name}",method="GET",status="200"', 1),
        ('endpoint="/q/{name}",method="GET",status="200"', 1),
        ('endpoint="other",method="GET",status="404"', 5),
    ]:
        assert f"test_api_requests_total{{{labels}}} {count}.0" in text


# -- bodies -------------------------------------------------------------------------------------


async def test_two_gigabytes_are_refused_before_they_are_sent() -> None:
    async with serving() as world:
        for path in (b"/echo", b"/hot/echo", b"/hot/json"):
            async with await world.connect() as stream:
                await stream.send_all(
                    b"POST "
                    + path
                    + b" HTTP/1.1\r\n"
                    + HOST
                    + b"Content-Length: 2147483648\r\n\r\n"
                )
                got = await read_all(stream)
                assert got.startswith(b"HTTP/1.1 413") and b'"too_large"' in got


async def test_a_route_has_its_own_bound() -> None:
    async with serving(replace(QUICK, body_bytes_max=1000)) as world:
        assert (await world.get("/echo", method="POST", body=b"x" * 1001)).status == 413
        assert (await world.get("/hot/echo", method="POST", body=b"x" * 1001)).status == 413
        assert (await world.get("/big/one", method="POST", body=b"x" * 64_000)).status == 200
        assert (await world.get("/big/one", method="POST", body=b"x" * 64_001)).status == 413
        assert (await world.get("/small", method="POST", body=b"x" * 11)).status == 413
        assert (await world.get("/hot/upload", method="POST", body=b"x" * 70_000)).json == {
            "bytes": 70_000
        }


@pytest.mark.parametrize("path", [b"/echo", b"/hot/echo"])
async def test_chunked_bodies_are_bounded_too(path: bytes) -> None:
    async with serving(replace(QUICK, body_bytes_max=10_000)) as world:
        start = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n"
        fine = await world.ask(
            start + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nA: b\r\n\r\n"
            b"GET /hot/x HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
        )
        assert b"abcde" in fine.raw and b'{"hello":"x"' in fine.raw
        over = await world.ask(
            start + b"2000\r\n" + b"x" * 0x2000 + b"\r\n2000\r\n" + b"x" * 0x2000
        )
        assert over.status == 413
        bad = await world.ask(start + b"3\r\nabcd\r\n0\r\n\r\n")
        assert bad.status == 400


async def test_100_continue_comes_when_the_body_is_wanted() -> None:
    async with serving() as world:
        for path in (b"/echo", b"/hot/echo"):
            async with await world.connect() as stream:
                await stream.send_all(
                    b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n"
                    b"Expect: 100-continue\r\nConnection: close\r\n\r\n"
                )
                await read_until(stream, b"HTTP/1.1 100 Continue\r\n\r\n")
                await stream.send_all(b"abc")
                assert (await read_all(stream)).endswith(b"abc")
        refused = await world.ask(
            b"POST /none HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nExpect: 100-continue\r\n\r\n"
        )
        assert refused.status == 404 and b"100 Continue" not in refused.raw
        assert (await world.get("/hot/x", "Expect: tea")).status == 417


async def test_a_body_nobody_read_does_not_become_a_request() -> None:
    async with serving() as world:
        smuggled = b"GET /boom HTTP/1.1\r\n" + HOST + b"\r\n"
        for path in (b"/hot/ignore", b"/none"):
            raw = b"POST %b HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (
                path, HOST, len(smuggled), smuggled,
            )  # fmt: skip
            end = b"GET /hot/end HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n"
            got = (await world.ask(raw + end)).raw
            assert got.count(b"HTTP/1.1 ") == 2 and b" 500 " not in got


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff", b"[" * 10_000, b'{"a":' * 10_000, b'"\\u0000"', b'{"a": "\\u0000"}', b"[1]"],
)
async def test_broken_json_is_refused(body: bytes) -> None:
    async with serving() as world:
        found = await world.get("/hot/json", method="POST", body=body)
        assert found.status == 400 and found.json["code"] == "invalid"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
        (b"hello\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 501),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: \x00\r\n\r\n", 400),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
            400,
        ),
        (
            b"POST / HTTP/1.1\r\n" + HOST + b"Content-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            400,
        ),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"GET /" + b"y" * 20_000 + b" HTTP/1.1\r\n", 414),
    ],
)
async def test_what_is_no_request_is_told_so_and_hung_up_on(raw: bytes, status: int) -> None:
    async with serving() as world:
        found = await world.ask(raw + b"GET /boom HTTP/1.1\r\n" + HOST + b"\r\n")
        assert found.status == status and found.json["error"]
        assert found.header("connection") == "close" and found.raw.count(b"\r\nDate: ") == 1


# -- time and number ----------------------------------------------------------------------------


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
    async with serving() as world, await world.connect() as stream:
        await stream.send_all(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        got = 0
        while got < 50_000_000:
            got += len(await stream.receive_some(1 << 20))
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
            for stream, path in ((first, b"/wait"), (second, b"/hot/wait")):
                await stream.send_all(b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n")
            with trio.fail_after(3):
                while world.events != ["waiting", "waiting"]:  # noqa: ASYNC110
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


class Steps(trio.abc.Instrument):
    """The longest step of the tasks that serve connections."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task.name.startswith(("api.", "quart_trio.")):
            self.longest_s = max(self.longest_s, time.thread_time() - self._began)


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
                steps = Steps()
                trio.lowlevel.add_instrument(steps)
                with trio.move_on_after(3):
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(_send_what_is_taken, stream, FLOODS[flood])
                        with suppress(trio.BrokenResourceError):
                            while await stream.receive_some(65536):
                                pass
                        nursery.cancel_scope.cancel()
                trio.lowlevel.remove_instrument(steps)
                longest_s.append(steps.longest_s)
    assert min(longest_s) < 0.005


async def _send_what_is_taken(stream: trio.SocketStream, data: bytes) -> None:
    with suppress(trio.BrokenResourceError):
        await stream.send_all(data)


# -- clients that go ----------------------------------------------------------------------------


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


# -- the three faults of the stock server -------------------------------------------------------


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
                await read_all(stream, within_s=1)
        await world.empty()
        began = trio.current_time()
        async with await world.connect() as idle:
            await idle.send_all(b"GET /q/x HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_all(idle, within_s=3)
        assert 0.5 < trio.current_time() - began < 2
        idlers = [await world.connect() for _ in range(5)]
        for idler in idlers:
            await idler.send_all(b"GET /q/x HTTP/1.1\r\n" + HOST + b"\r\n")
            await read_until(idler, b"anonymous")
        began = trio.current_time()
    assert trio.current_time() - began < 1
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
            await world.empty(within_s=3)
            world.gate = trio.Event()


@pytest.mark.parametrize("path", [b"/follow", b"/hot/follow"])
async def test_a_stream_ends_with_a_client_that_sent_more_than_is_kept(path: bytes) -> None:
    async with serving() as world:
        async with await world.connect() as stream:
            await stream.send_all(
                b"GET " + path + b" HTTP/1.1\r\n" + HOST + b"\r\n" + b"x" * 150_000
            )
            await read_until(stream, b"first")
        await world.empty(within_s=3)


async def test_running_out_of_descriptors_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(replace(QUICK, idle_timeout_s=30, header_timeout_s=30)) as world:
        clients = [socket.socket() for _ in range(12)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(c.fileno() for c in clients) + 4, hard))
        try:
            for client in clients:
                client.connect(("127.0.0.1", world.port))
            with trio.fail_after(3):
                while not caplog.records:  # noqa: ASYNC110
                    await trio.sleep(0.01)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.sendall(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n")
            client.setblocking(False)
            async with trio.SocketStream(trio.socket.from_stdlib_socket(client)) as stream:
                assert (await read_all(stream)).startswith(b"HTTP/1.1 200")
        assert [r.message for r in caplog.records].count(caplog.records[0].message) == 1


# -- websockets ---------------------------------------------------------------------------------


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
            with trio.fail_after(3):
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


# -- the stop -----------------------------------------------------------------------------------


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
    server = Stoppable(replace(QUICK, stop_grace_s=5, websocket_ping_s=30, handler_timeout_s=30))
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
        ends = [await read_all(stream, within_s=2) for stream in streams]
        assert ends[:2] == [b"0\r\n\r\n"] * 2
        assert ends[2].endswith(b"\x88\x02\x03\xe9")
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.1", port)
        assert server.stopped_after_s < 0
        world.gate.set()
        got = await read_all(running)
        assert b'"waited":true' in got and b"Connection: close" in got
        for stream in (*streams, running):
            await stream.aclose()
    assert server.stopped_after_s < 2


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
        with trio.fail_after(3):
            while server.stopped_after_s < 0:  # noqa: ASYNC110
                await trio.sleep(0.01)
        for stream in streams:
            await stream.aclose()
    assert server.stopped_after_s < 2
    gc.collect()
    assert open_descriptors() == descriptors


async def test_an_error_in_the_body_of_the_context_passes_as_it_is() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with serving():
            raise KeyError("mine")


# -- listening ----------------------------------------------------------------------------------


async def test_a_taken_port_names_surface_address_and_setting() -> None:
    async with serving() as world:
        with pytest.raises(PortTaken) as taken:
            async with serving(port=world.port):
                raise AssertionError
        for word in ("jobqueue", f"127.0.0.1:{world.port}", "SWARMD_SURFACES_JOBQUEUE_PORT"):
            assert word in taken.value.message


async def test_what_cannot_be_listened_on_is_named() -> None:
    for bind in ("192.0.2.1", "no-such-name.invalid"):
        with pytest.raises(CannotListen, match=bind):
            async with serving(binds=(bind,)):
                raise AssertionError


async def test_several_addresses_share_a_port() -> None:
    async with serving(binds=("127.0.0.1", "127.0.0.2")) as world:
        assert world.bound is not None
        urls = world.bound.urls["jobqueue"]
        assert urls == (f"http://127.0.0.1:{world.port}", f"http://127.0.0.2:{world.port}")
        stream = await trio.open_tcp_stream("127.0.0.2", world.port)
        async with stream:
            await stream.send_all(b"GET /hot/x HTTP/1.1\r\nHost: 127.0.0.2\r\n\r\n")
            await read_until(stream, b"anonymous")


async def test_ipv6() -> None:
    need("ipv6")
    async with serving(binds=("127.0.0.1", "::1")) as world:
        assert world.bound is not None and "http://[::1]:" in world.bound.urls["jobqueue"][1]
        async with await trio.open_tcp_stream("::1", world.port) as stream:
            await stream.send_all(b"GET /hot/x HTTP/1.1\r\nHost: [::1]:%d\r\n\r\n" % world.port)
            await read_until(stream, b"anonymous")


async def test_foreign_hosts_and_origins_are_refused_in_the_envelope() -> None:
    async with serving() as world:
        for headers in (
            ["Host: evil.example"],
            ["Host: localhost", "Origin: http://evil.example"],
            ["Host: localhost", "Sec-Fetch-Site: cross-site"],
        ):
            for path in ("/q/x", "/hot/x", "/none", "/health"):
                found = await world.get(path, *headers)
                assert (found.status, found.json["code"]) == (403, "forbidden")


async def test_a_surface_off_loopback_needs_the_key() -> None:
    async with serving(binds=("0.0.0.0",)) as world:
        for path in ("/q/x", "/hot/x", "/none"):
            closed = await world.get(path, "Host: any.name")
            assert (closed.status, closed.json["code"]) == (401, "unauthorized")
            assert closed.header("www-authenticate")
        for header in (f"X-Admin-Key: {KEY}", f"Authorization: Bearer {KEY}"):
            assert (await world.get("/hot/x", header)).json["who"] == "admin"
        assert (await world.get("/health", "Host: any.name")).status == 200
        assert (await world.get("/health", method="POST")).status == 401
        assert (await world.ask(UPGRADE % b"/ws")).status == 401
    async with serving(binds=("0.0.0.0",), access=Access.OPEN) as world:
        assert (await world.get("/hot/x", "Host: any.name")).status == 200


async def test_the_unix_socket_is_its_owners(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    path = folder / "swarmd.sock"
    old_umask = os.umask(0)
    try:
        async with serving(binds=(), unix_path=path) as world:
            assert world.bound is not None and world.bound.urls["jobqueue"] == (f"unix:{path}",)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            with pytest.raises(PortTaken, match="another daemon"):
                async with serving(binds=(), unix_path=path):
                    raise AssertionError
            client = _unix_client(path)
            async with client:
                await client.send_all(b"GET /hot/x HTTP/1.1\r\nHost: anything.at.all\r\n\r\n")
                assert b'"who":"local"' in await read_until(client, b"}")
        assert not path.exists() and not list(folder.iterdir())
    finally:
        os.umask(old_umask)


async def test_a_stale_unix_socket_is_replaced_and_a_file_is_not(tmp_path: Path) -> None:
    path = tmp_path / "swarmd.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    async with serving(binds=(), unix_path=path):
        with _unix_socket(path):
            pass
    path.write_text("precious")
    with pytest.raises(CannotListen, match="a file of that name"):
        async with serving(binds=(), unix_path=path):
            raise AssertionError
    assert path.read_text() == "precious"


async def test_a_socket_that_another_took_over_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "swarmd.sock"
    async with serving(binds=(), unix_path=path):
        path.unlink()
        path.write_text("theirs")
    assert path.read_text() == "theirs"


def _unix_socket(path: Path) -> socket.socket:
    folder = os.open(path.parent, os.O_PATH)
    try:
        client = socket.socket(socket.AF_UNIX)
        client.connect(f"/proc/self/fd/{folder}/{path.name}")
        return client
    finally:
        os.close(folder)


def _unix_client(path: Path) -> trio.SocketStream:
    client = _unix_socket(path)
    client.setblocking(False)
    return trio.SocketStream(trio.socket.from_stdlib_socket(client))


async def test_two_surfaces_serve_side_by_side() -> None:
    worlds = World(), World()
    surfaces = [make_surface(world, name=name) for world, name in zip(worlds, "ab", strict=True)]
    async with open_surfaces(surfaces, QUICK, admin_key=lambda: None, wall=time.time) as bound:
        for name in "ab":
            port = int(bound.url(name).rsplit(":", 1)[1])
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /hot/x HTTP/1.1\r\n" + HOST + b"\r\n")
                await read_until(stream, b"anonymous")


async def test_the_log_of_requests_has_no_query_and_no_header(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with serving() as world:
        await world.get("/hot/x?token=shh", "X-Admin-Key: hush", "Cookie: quiet")
        await world.get("/q/x?token=shh", "Authorization: Bearer hush")
        await world.empty()
    told = caplog.text + json.dumps([str(vars(record)) for record in caplog.records])
    assert not any(secret in told for secret in ("shh", "hush", "quiet"))
