"""Whoever connects: garbage, floods, strangers. Nothing leaks, nobody else notices."""

from __future__ import annotations

import functools
import os
import random
import socket
import ssl
import struct

import pytest
import trio

from mesh.frames import (
    Answer,
    Bye,
    Call,
    Cancel,
    Credit,
    Data,
    Decoder,
    End,
    Hello,
    Note,
    Open,
    Ping,
    Reset,
    Stop,
    append,
    encode,
)
from mesh.transport import Me, Tls, Transport, TransportSettings, open_transport
from mesh.wires import ByteStream, NotAllowed, Unreachable
from tests.certificates import Authority, bare_context
from tests.wires import Links, authority, node, nodes, until


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def dial(transport: Transport) -> trio.SocketStream:
    host, _, port = transport.addresses[0].rpartition(":")
    return await trio.open_tcp_stream(host, int(port))


def hello(name: str = "stranger", version: int = 1, oldest: int = 1, purpose: int = 0) -> bytes:
    return bytes(encode(Hello(oldest, version, "", name, 1, purpose, 1 << 20, 1 << 18)))


async def closed(stream: trio.SocketStream) -> bytes:
    """What came until the other side ended it."""
    got = b""
    with trio.fail_after(60):
        try:
            while data := await stream.receive_some():
                got += data
        except trio.BrokenResourceError:
            pass
    return got


async def met(transport: Transport, name: str = "stranger") -> trio.SocketStream:
    stream = await dial(transport)
    await stream.send_all(hello(name))
    [answer] = Decoder(10_000).feed(await stream.receive_some())
    assert isinstance(answer, Hello) and answer.node == transport.me
    return stream


async def test_garbage_of_every_sort_costs_its_connection_alone() -> None:
    before = descriptors()
    rng = random.Random(20)
    async with nodes("a", "b", hello_timeout_s=0.3) as (a, b):
        b.handle_call("echo", lambda peer, body: body)
        assert await a.call("b", "echo", b"1", 5) == b"1"
        links = Links(a)

        async def throw(raw: bytes, *, greet: bool, wait: bool) -> None:
            stream = await dial(b)
            async with stream:
                try:
                    if greet:
                        await stream.send_all(hello(f"n{rng.randrange(5)}"))
                        await stream.receive_some()
                    await stream.send_all(raw)
                    if wait:
                        await closed(stream)
                except trio.BrokenResourceError:
                    pass

        valid = bytearray()
        for frame in (Ping(1), Call(1, "echo", b"x"), Open(3, "s", b""), Data(3, b"y"), Note(b"")):
            append(valid, frame)
        limit = trio.CapacityLimiter(50)

        async def one() -> None:
            async with limit:
                raw = rng.choice(
                    [
                        lambda: rng.randbytes(rng.randrange(1, 300)),
                        lambda: struct.pack(">I", rng.randrange(100)) + rng.randbytes(150),
                        lambda: bytes(valid[: rng.randrange(len(valid))]) + b"\xff" * 40,
                        lambda: bytes(
                            b ^ (rng.random() < 0.05) * rng.randrange(256) for b in valid
                        ),
                        lambda: b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
                    ]
                )()
                await throw(raw, greet=rng.random() < 0.6, wait=False)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(400):
                    nursery.start_soon(one)
        assert await a.call("b", "echo", b"2", 5) == b"2"
        assert not [told for told in links.told if told[0] == "b"]
        await until(lambda: len(b._connections) == 1)
        assert b.counts.drops["garbage"] and b.counts.drops["oversize"]
    await until(lambda: descriptors() == before)


async def test_a_frame_of_four_gigabytes_ends_the_connection_at_its_header() -> None:
    async with node("b") as b:
        for greet in (False, True):
            stream = await (met(b) if greet else dial(b))
            await stream.send_all(b"\xff\xff\xff\xff" + bytes(100))
            await closed(stream)
            await stream.aclose()
        assert b.counts.drops["oversize"] == 2


@pytest.mark.parametrize(
    "frames",
    [
        [Answer(1, b"")],
        [Hello(1, 1, "", "x", 1, 0, 1, 1)],
        [Call(1, "endless", b""), Call(1, "endless", b"")],
        [Open(1, "endless", b""), Open(1, "endless", b"")],
        [Open(1, "endless", b""), *[Data(1, bytes(65536))] * 5],
        [Open(1, "endless", b""), End(1), Data(1, b"x")],
        [Open(1, "endless", b""), Credit(1, 2**31)],
        [Open(1, "endless", b""), Credit(1, -5)],
    ],
    ids=lambda frames: "-".join(type(frame).__name__ for frame in frames[:3]),
)
async def test_breaking_the_rules_ends_the_connection(frames: list[Call]) -> None:
    async with node("b") as b:
        handle_endless(b)
        async with await met(b) as stream:
            raw = bytearray()
            for frame in frames:
                append(raw, frame)
            await stream.send_all(raw)
            await closed(stream)
        await until(lambda: b.counts.drops["violation"] == 1)


async def test_frames_for_what_is_over_are_passed_over() -> None:
    async with node("b") as b:
        b.handle_call("echo", lambda peer, body: body)
        async with await met(b) as stream:
            raw = bytearray()
            for frame in (Cancel(9), Data(9, b"x"), End(9), Stop(9, ""), Reset(9, "", ""),
                          Credit(9, 1), Call(10, "echo", b"there")):  # fmt: skip
                append(raw, frame)
            await stream.send_all(raw)
            decoder, frames = Decoder(1000), []
            with trio.fail_after(60):
                while not any(isinstance(frame, Answer) for frame in frames):
                    frames += decoder.feed(await stream.receive_some())
            assert Answer(10, b"there") in frames


async def test_a_flood_of_connections_without_hello_keeps_no_peer_out() -> None:
    before = descriptors()
    async with nodes("a", "b", strangers_max=10) as (a, b):
        b.handle_call("echo", lambda peer, body: body)
        mute = [await dial(b) for _ in range(100)]
        with trio.fail_after(60):
            assert await a.call("b", "echo", b"x", 5) == b"x"
            await until(lambda: b.counts.drops["flood"] >= 89)
            assert await closed(mute[0]) == b""
        for stream in mute:
            await stream.aclose()
    await until(lambda: descriptors() == before)


async def test_half_a_hello_is_waited_for_only_so_long() -> None:
    async with node("b", hello_timeout_s=0.1) as b, await dial(b) as stream:
        await stream.send_all(hello()[:10])
        assert await closed(stream) == b""
        assert b.counts.drops["hello_timeout"] == 1


async def test_connections_have_a_bound_and_the_refused_are_told() -> None:
    async with node("b", connections_max=3, connections_per_peer_max=2) as b:
        streams = [await met(b, name) for name in ("x", "y", "z")]
        async with await dial(b) as extra:
            await extra.send_all(hello("w"))
            [bye] = Decoder(1000).feed(await closed(extra))
            assert isinstance(bye, Bye) and bye.reason == "busy"
        await streams[2].aclose()
        await until(lambda: len(b._connections) == 2)
        streams.append(await met(b, "x"))
        await until(lambda: len(b._connections) == 3)
        for stream in streams:
            await stream.aclose()


async def test_a_peer_that_dials_again_and_again_replaces_its_own_oldest() -> None:
    async with node("b", connections_per_peer_max=2) as b:
        links = Links(b)
        streams = [await met(b, "x") for _ in range(5)]
        await until(lambda: len(b._connections) == 2)
        await closed(streams[0])
        assert all(up for _, up, _ in links.told)
        for stream in streams:
            await stream.aclose()


async def test_a_version_that_nobody_here_speaks_is_refused_with_words() -> None:
    async with node("b") as b, await dial(b) as stream:
        await stream.send_all(hello(version=9, oldest=8))
        [bye] = Decoder(1000).feed(await closed(stream))
        assert isinstance(bye, Bye) and bye.reason == "version" and "8 to 9" in bye.message


async def test_warnings_come_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async with node("b") as b:
        for _ in range(20):
            async with await dial(b) as stream:
                await stream.send_all(b"\xff" * 10)
                await closed(stream)
        assert b.counts.drops["oversize"] == 20
    assert caplog.text.count("a connection between nodes was dropped") == 1


async def test_a_server_that_answers_nonsense_harms_no_dialing_node() -> None:
    before = descriptors()
    rng = random.Random(4)

    async def nonsense(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                if rng.random() < 0.5:
                    await stream.receive_some()
                    await stream.send_all(hello("b"))
                await stream.send_all(rng.randbytes(100))
            except trio.BrokenResourceError:
                pass

    async with node("a", hello_timeout_s=0.2, backoff_max_s=0.06) as a:
        async with trio.open_nursery() as nursery:
            serve = functools.partial(trio.serve_tcp, nonsense, 0, host="127.0.0.1")
            [listener] = await nursery.start(serve)
            port = listener.socket.getsockname()[1]
            a.set_peers({"b": [f"127.0.0.1:{port}"]})
            for _ in range(60):
                with pytest.raises(Unreachable):
                    await a.call("b", "echo", b"", 5)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    await until(lambda: descriptors() == before)


# With TLS.


async def test_a_stranger_without_a_certificate_gets_nothing() -> None:
    before = descriptors()
    async with nodes("a", "b", tls=True) as (a, b):
        b.handle_call("echo", lambda peer, body: body)
        host, _, port = b.addresses[0].rpartition(":")
        context = bare_context(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_mode = ssl.CERT_NONE
        for what in (hello(), b"garbage"):
            plain = await trio.open_tcp_stream(host, int(port))
            stream = trio.SSLStream(plain, context)
            with pytest.raises(trio.BrokenResourceError):
                await stream.do_handshake()
                await stream.send_all(what)
                await stream.receive_some()
            await trio.aclose_forcefully(stream)
        async with await dial(b) as stream:
            await stream.send_all(hello())
            await closed(stream)
        assert await a.call("b", "echo", b"x", 5) == b"x"
        await until(lambda: b.counts.drops["tls"] == 3)
    await until(lambda: descriptors() == before)


async def test_another_authority_vouches_for_nobody_here() -> None:
    other = Authority("others").tls("a")
    async with node("b", tls=True) as b:
        async with open_transport(
            TransportSettings(), Me("a"), rng=random.Random(1), tls=other
        ) as stranger:
            stranger.set_peers({"b": b.addresses})
            with pytest.raises(Unreachable, match="TLS failed"):
                await stranger.call("b", "echo", b"", 5)


async def test_a_name_that_the_certificate_does_not_have_is_no_use() -> None:
    """b holds a certificate of its own, and says that it is a."""
    keys = authority().tls("b")
    async with node("c", tls=True) as c:
        heard: list[str] = []
        c.handle_message(lambda peer, body: heard.append(peer))
        async with open_transport(
            TransportSettings(), Me("a"), rng=random.Random(1), tls=keys
        ) as liar:
            liar.set_peers({"c": c.addresses})
            with pytest.raises(Unreachable, match="shows the certificate of b"):
                await liar.call("c", "echo", b"", 5)
        assert c.counts.drops["identity"] == 1 and not heard


async def test_contexts_that_trust_anybody_are_not_taken() -> None:
    good = authority().tls("a")
    lax = bare_context(ssl.PROTOCOL_TLS_SERVER)
    old = authority().tls("a").client
    old.minimum_version = ssl.TLSVersion.TLSv1_2
    for keys in (Tls(lax, good.client, good.peer_id_of), Tls(good.server, old, good.peer_id_of)):
        with pytest.raises(NotAllowed):
            async with open_transport(TransportSettings(), Me("a"), rng=random.Random(1), tls=keys):
                raise AssertionError("it was opened")


async def test_a_peer_that_goes_away_in_the_middle_leaves_nothing() -> None:
    before = descriptors()
    async with node("b") as b:
        ended: list[str] = []
        handle_endless(b, ended)
        for n in range(20):
            stream = await met(b, f"n{n}")
            raw = bytearray()
            append(raw, Call(1, "endless", b"x"))
            append(raw, Open(2, "endless", b"x"))
            append(raw, Ping(0))
            await stream.send_all(raw)
            await stream.receive_some()
            # Gone without a word, as after a crash: a reset instead of an end.
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            await stream.aclose()
        await until(lambda: len(ended) == 40 and not b._connections)
    await until(lambda: descriptors() == before)


def handle_endless(transport: Transport, ended: list[str] | None = None) -> None:
    async def call(peer: str, body: bytes) -> bytes:
        try:
            return await trio.sleep_forever()
        finally:
            (ended if ended is not None else []).append(peer)

    async def stream(peer: str, body: bytes, stream: ByteStream) -> None:
        await call(peer, body)

    transport.handle_call("endless", call)
    transport.handle_stream("endless", stream)
