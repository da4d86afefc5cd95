"""A drone's way to nodes that are odd, hostile, slow or gone: bounded, and on to the next."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from swarmd.cli import drone_link
from swarmd.cli.drone_link import Link, NoBuildSwarm
from swarmd.cli.drone_wire import Place
from swarmd.domain.errors import Conflict, Invalid, NotFound, Unauthorized, Unavailable

Handler = Callable[[trio.SocketStream], Awaitable[None]]
REGISTERED = b'{"status": "registered", "token": "id.abc", "paused": false}'
SAYS: drone_link.Says = {"id": "id", "name": "drone-01"}


@asynccontextmanager
async def served(handler: Handler) -> AsyncIterator[Place]:
    """A node that does with each connection what the handler does."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                await handler(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        yield Place.of(f"http://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()


async def head(stream: trio.SocketStream) -> tuple[bytes, bytes]:
    """A request's head, and what of its body came along."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = await stream.receive_some(4096)
        if not part:
            raise trio.ClosedResourceError
        data += part
    first, _, rest = data.partition(b"\r\n\r\n")
    return first, rest


def answers(body: bytes, status: str = "200 OK") -> Handler:
    async def handler(stream: trio.SocketStream) -> None:
        await head(stream)
        size = len(body)
        await stream.send_all(
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n" % (status.encode(), size)
        )
        await stream.send_all(body)

    return handler


def sends(*parts: bytes, endless: bytes = b"") -> Handler:
    async def handler(stream: trio.SocketStream) -> None:
        await head(stream)
        for part in parts:
            await stream.send_all(part)
        while endless:
            await stream.send_all(endless)

    return handler


async def silent(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


OK = b"HTTP/1.1 200 OK\r\n"
ODD = {
    "no HTTP": sends(b"\x00\xff garbage\r\n\r\n"),
    "nothing": sends(),
    "half a head": sends(OK),
    "half a body": sends(OK + b"Content-Length: 99\r\n\r\n{"),
    "a head without end": sends(OK, endless=b"X-More: yes\r\n"),
    "a body without end": sends(OK + b"\r\n", endless=b" " * 65536),
    "chunks without content": sends(
        OK + b"Transfer-Encoding: chunked\r\n\r\n", endless=b"1;" + b"x" * 4000 + b"\r\n \r\n"
    ),
    "heads without end": sends(endless=b"HTTP/1.1 102 Processing\r\n\r\n"),
    "another protocol": sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"),
    "a gateway": answers(b"<html>", "502 Bad Gateway"),
    "busy": answers(b'{"error": "no leader", "hint": "try again"}', "503 Service Unavailable"),
    "no JSON": answers(b"hello"),
    "nested JSON": answers(b"[" * 100_000),
    "another thing": answers(b'{"status": "ok"}'),
    "bytes": answers(b'{"status": "registered\xff"}'),
    "another surface": answers(b'{"error": "nothing is served"}', "404 Not Found"),
}


@pytest.mark.parametrize("name", ODD)
async def test_a_node_that_is_odd_is_left_for_the_next(name: str) -> None:
    with trio.fail_after(20):
        async with served(ODD[name]) as odd, served(answers(REGISTERED)) as good:
            link = Link([odd, good], None)
            assert (await link.register(SAYS)).token == "id.abc"
            with pytest.raises(Unavailable):
                await Link([odd], None).register(SAYS)


async def test_a_node_that_is_gone_or_silent_is_left_for_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    autojump_clock.autojump_threshold = 0.05  # what a socket brings comes first
    asked: list[str] = []

    async def counts(stream: trio.SocketStream) -> None:
        asked.append("good")
        await answers(REGISTERED)(stream)

    async with served(silent) as mute:
        async with served(answers(b"")) as gone:
            pass
        async with served(counts) as good:
            link = Link([gone, mute, good], None)
            began = trio.current_time()
            for _ in range(3):
                await link.register(SAYS)
            assert asked == ["good"] * 3
            # Who answered is asked first from then on.
            assert trio.current_time() - began < 2 * drone_link.ASK_TIMEOUT_S
        with pytest.raises(Unavailable) as refused:
            await link.register(SAYS)
    assert f"{mute.url} " in refused.value.message and f"{gone.url} " in refused.value.message


@pytest.mark.parametrize(
    ("status", "kind"),
    [("400 Bad Request", Invalid), ("401 Unauthorized", Unauthorized), ("404 Not Found", NotFound),
     ("409 Conflict", Conflict), ("403 Forbidden", Unauthorized), ("413 Too Large", Invalid)],
)  # fmt: skip
async def test_a_refusal_comes_out_in_the_nodes_own_words(status: str, kind: type) -> None:
    refusal = b'{"error": "no such\\u001b[1m thing", "hint": "do so"}'
    async with served(answers(refusal, status)) as place:
        with pytest.raises(kind) as refused:
            await Link([place], None).work("id", 4)
    assert refused.value.message == f"{place.url}: no such?[1m thing; do so"


async def test_at_the_first_word_what_is_no_build_swarm_is_not_passed_over() -> None:
    async with served(ODD["another surface"]) as odd, served(answers(REGISTERED)) as good:
        with pytest.raises(NoBuildSwarm, match="name port 8100"):
            await Link([odd, good], None).introduce(SAYS)


async def test_an_upload_that_is_refused_early_is_not_sent_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as made:
        made.truncate(1 << 30)
    refusal = b'{"error": "this builder does not hold it", "hint": "build what you are given"}'
    heads = []

    async def handler(stream: trio.SocketStream) -> None:
        first, _ = await head(stream)
        heads.append(first)
        if first.startswith(b"POST"):
            said = b"Content-Length: %d\r\n\r\n%b" % (len(REGISTERED), REGISTERED)
            return await stream.send_all(OK + said)
        said = b"Content-Length: %d\r\n\r\n%b" % (len(refusal), refusal)
        await stream.send_all(b"HTTP/1.1 409 Conflict\r\n" + said)
        await trio.sleep_forever()  # and reads nothing

    with trio.fail_after(20):
        async with served(handler) as place:
            with pytest.raises(Conflict, match="does not hold it"):
                await Link([place], "key").upload("app-misc/a b-1.gpkg.tar", file, SAYS)
    register, put = heads
    assert b"X-Drone-Token" not in register and b"X-Admin-Key: key" in register
    assert put.startswith(b"PUT /binhost/staging/app-misc/a%20b-1.gpkg.tar HTTP/1.1")
    assert b"X-Drone-Token: id.abc" in put and b"Content-Length: 1073741824" in put


async def test_a_token_that_is_no_longer_good_is_asked_for_anew(tmp_path: Path) -> None:
    file, seen = tmp_path / "file", list[str]()
    file.write_bytes(b"x" * 3000)

    async def handler(stream: trio.SocketStream) -> None:
        first, rest = await head(stream)
        size = int(re.search(rb"Content-Length: (\d+)", first)[1])  # type: ignore[index]
        while len(rest) < size:
            rest += await stream.receive_some(4096)
        seen.append(first.split()[0].decode())
        body, status = REGISTERED, b"200 OK"
        if seen[-1] == "PUT" and seen.count("PUT") == 2:
            body, status = b'{"error": "a token is needed", "hint": "h"}', b"401 Unauthorized"
        await stream.send_all(
            b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)
        )

    with trio.fail_after(20):
        async with served(handler) as place:
            link = Link([place], None)
            for _ in range(2):
                await link.upload("app-misc/a-1.gpkg.tar", file, SAYS)
            file.unlink()
            with pytest.raises((Invalid, OSError)):
                await link.upload("app-misc/a-1.gpkg.tar", file, SAYS)
    assert seen == ["POST", "PUT", "PUT", "POST", "PUT"]


async def test_where_tls_is_wanted_nothing_goes_in_clear() -> None:
    async def speaks_plain(stream: trio.SocketStream) -> None:
        assert b"key" not in await stream.receive_some(4096)
        await stream.send_all(OK + b"Content-Length: 0\r\n\r\n")

    async with served(speaks_plain) as plain:
        place = Place.of(plain.url.replace("http://", "https://"))
        with pytest.raises(Unavailable, match="no TLS"):
            await Link([place], "key").register(SAYS)


def test_urls_are_read_with_care() -> None:
    for url, seen in {
        "http://node": "http://node:80", "https://node/": "https://node:443",
        "http://[fd00::1]:8100": "http://[fd00::1]:8100",
        "http://node:8100/swarm/": "http://node:8100/swarm",
    }.items():  # fmt: skip
        assert Place.of(url).url == seen
    for url in (
        "", "node:8100", "ftp://node", "http://", "http://a:b@node", "http://node?x",
        "http://node:99999", "http://no de", "http://node/\x00", "http://[::1",
    ):  # fmt: skip
        with pytest.raises(Invalid, match="write for example"):
            Place.of(url)
