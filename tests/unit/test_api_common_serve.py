"""The server over real sockets: answers, framing, bodies and errors."""

from __future__ import annotations

from dataclasses import replace

import pytest
from prometheus_client import generate_latest

from tests.surfaces import (
    HOST,
    KEY,
    QUICK,
    read_all,
    read_until,
    serving,
)


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


async def test_a_stream_that_breaks_off_has_no_end(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as world:
        broken = await world.get("/hot/broken")
        assert broken.body == b"6\r\nfirst\n\r\n"  # no last chunk: the client can tell
        assert [(r.levelname, r.message) for r in caplog.records] == [
            ("WARNING", "an answer broke off")
        ]


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
