"""Byte streams between nodes: both directions, their ends, and that one never holds up another."""

from __future__ import annotations

import hashlib
import random

import pytest
import trio
import trio.testing

from mesh.wires import Aborted, ByteStream, Refused, Unreachable
from tests.wires import node, nodes

WIRES = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


async def read_all(stream: ByteStream) -> bytes:
    parts = []
    while part := await stream.receive_some():
        parts.append(part)
    return b"".join(parts)


@WIRES
async def test_megabytes_go_both_ways_at_once(tls: bool) -> None:
    async with nodes("a", "b", tls=tls) as (a, b):
        data = random.Random(1).randbytes(5_000_000)

        async def mirror(peer: str, body: bytes, stream: ByteStream) -> None:
            assert (peer, body) == ("a", b"please")
            while part := await stream.receive_some():
                await stream.send_all(part)

        b.handle_stream("mirror", mirror)
        with trio.fail_after(60):
            async with await a.open_stream("b", "mirror", b"please", 5) as stream:
                async with trio.open_nursery() as nursery:

                    async def send() -> None:
                        await stream.send_all(data)
                        await stream.send_eof()

                    nursery.start_soon(send)
                    got = await read_all(stream)
                assert hashlib.sha256(got).digest() == hashlib.sha256(data).digest()


async def test_one_end_may_be_over_while_the_other_goes_on() -> None:
    async with nodes("a", "b") as (a, b):

        async def count(peer: str, body: bytes, stream: ByteStream) -> None:
            size = len(await read_all(stream))
            await stream.send_all(str(size).encode())

        b.handle_stream("count", count)
        with trio.fail_after(60):
            async with await a.open_stream("b", "count", b"", 5) as stream:
                await stream.send_all(bytes(1000))
                await stream.send_eof()
                with pytest.raises(trio.ClosedResourceError):
                    await stream.send_all(b"more")
                assert await read_all(stream) == b"1000"
                assert await stream.receive_some() == b""


async def test_small_pieces_and_small_reads() -> None:
    async with nodes("a", "b") as (a, b):

        async def dribble(peer: str, body: bytes, stream: ByteStream) -> None:
            for n in range(3000):
                await stream.send_all(bytes([n % 256]))

        b.handle_stream("dribble", dribble)
        with trio.fail_after(60):
            async with await a.open_stream("b", "dribble", b"", 5) as stream:
                got = bytearray()
                while part := await stream.receive_some(7):
                    assert len(part) <= 7
                    got += part
                assert bytes(got) == bytes(n % 256 for n in range(3000))


@WIRES
async def test_who_reads_slowly_holds_up_nobody_else(tls: bool) -> None:
    """While one stream's reader sleeps, others flow and calls overtake; its sender waits."""
    async with nodes("a", "b", tls=tls) as (a, b):
        gate = trio.Event()
        sizes: list[int] = []

        async def sleeper(peer: str, body: bytes, stream: ByteStream) -> None:
            await gate.wait()
            sizes.append(len(await read_all(stream)))

        async def reader(peer: str, body: bytes, stream: ByteStream) -> None:
            await stream.send_all(str(len(await read_all(stream))).encode())

        b.handle_stream("sleeper", sleeper)
        b.handle_stream("reader", reader)
        b.handle_call("echo", lambda peer, body: body)
        sent = trio.Event()

        async def flood(stream: ByteStream) -> None:
            await stream.send_all(bytes(3_000_000))
            await stream.send_eof()
            sent.set()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                asleep = await a.open_stream("b", "sleeper", b"", 5)
                nursery.start_soon(flood, asleep)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert not sent.is_set()
                async with await a.open_stream("b", "reader", b"", 5) as awake:
                    await awake.send_all(bytes(2_000_000))
                    for n in range(20):
                        assert await a.call("b", "echo", b"%d" % n, 5) == b"%d" % n
                    await awake.send_eof()
                    assert await read_all(awake) == b"2000000"
                assert not sent.is_set()
                gate.set()
            assert await read_all(asleep) == b""
        assert sizes == [3_000_000]


async def test_calls_overtake_bulk() -> None:
    async with nodes("a", "b") as (a, b):

        async def sink(peer: str, body: bytes, stream: ByteStream) -> None:
            await read_all(stream)

        b.handle_stream("sink", sink)
        b.handle_call("echo", lambda peer, body: body)
        done: list[str] = []

        async def bulk(number: int) -> None:
            async with await a.open_stream("b", "sink", b"", 5) as stream:
                await stream.send_all(bytes(8_000_000))
            done.append(f"bulk {number}")

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(bulk, number)
                for _ in range(50):
                    await a.call("b", "echo", b"x", 5)
                done.append("calls")
        assert done[0] == "calls"


async def test_an_abort_is_told_with_its_reason() -> None:
    async with nodes("a", "b") as (a, b):
        cancelled = trio.Event()

        async def give_up(peer: str, body: bytes, stream: ByteStream) -> None:
            await stream.send_all(b"part")
            stream.abort("the disk is full")

        async def endless(peer: str, body: bytes, stream: ByteStream) -> None:
            try:
                await trio.sleep_forever()
            finally:
                cancelled.set()

        b.handle_stream("give_up", give_up)
        b.handle_stream("endless", endless)
        with trio.fail_after(60):
            stream = await a.open_stream("b", "give_up", b"", 5)
            with pytest.raises(Aborted, match="the disk is full"):
                await read_all(stream)
            with pytest.raises(Aborted):
                await stream.send_all(b"x")
            await stream.aclose()

            stream = await a.open_stream("b", "endless", b"", 5)
            await a.probe("b", 1)
            stream.abort("enough")
            await cancelled.wait()
            with pytest.raises(Aborted):
                await stream.receive_some()


async def test_who_stops_reading_is_told_to_the_sender_and_what_it_sent_arrives() -> None:
    async with nodes("a", "b") as (a, b):
        got: list[int] = []
        stopped = trio.Event()

        async def take_all(peer: str, body: bytes, stream: ByteStream) -> None:
            got.append(len(await read_all(stream)))
            with pytest.raises(Aborted, match="reads no further"):
                while True:
                    await stream.send_all(bytes(100_000))
            stopped.set()

        b.handle_stream("take_all", take_all)
        with trio.fail_after(60):
            async with await a.open_stream("b", "take_all", b"", 5) as stream:
                await stream.send_all(bytes(1_000_000))
            await stopped.wait()
        assert got == [1_000_000]


async def test_refusals_of_streams_have_codes() -> None:
    async with nodes("a", "b", streams_max=2) as (a, b):

        async def refuse(peer: str, body: bytes, stream: ByteStream) -> None:
            raise Refused("gone", "no such blob", sha256="00")

        async def broken(peer: str, body: bytes, stream: ByteStream) -> None:
            raise ValueError("a bug")

        async def endless(peer: str, body: bytes, stream: ByteStream) -> None:
            await trio.sleep_forever()

        b.handle_stream("refuse", refuse)
        b.handle_stream("broken", broken)
        b.handle_stream("endless", endless)
        with trio.fail_after(60):
            for method, code in (("refuse", "gone"), ("broken", "failed"), ("?", "unknown_method")):
                async with await a.open_stream("b", method, b"", 5) as stream:
                    with pytest.raises(Refused) as caught:
                        await stream.receive_some()
                    assert caught.value.code == code
            two = [await a.open_stream("b", "endless", b"", 5) for _ in range(2)]
            with pytest.raises(Refused) as caught:
                await a.open_stream("b", "endless", b"", 5)
            assert caught.value.code == "busy"
            two[0].abort("room for another")
            async with await a.open_stream("b", "refuse", b"", 5) as stream:
                with pytest.raises(Refused, match="no such blob"):
                    await stream.receive_some()


async def test_a_lost_connection_ends_streams_on_both_sides() -> None:
    ended = trio.Event()

    async def endless(peer: str, body: bytes, stream: ByteStream) -> None:
        try:
            await stream.send_all(b"hello")
            await stream.receive_some()
        finally:
            ended.set()

    async with node("a") as a:
        with trio.fail_after(60):
            async with node("b") as b:
                b.handle_stream("endless", endless)
                a.set_peers({"b": b.addresses})
                stream = await a.open_stream("b", "endless", b"", 5)
                assert await stream.receive_some() == b"hello"
            with pytest.raises(Unreachable):
                await stream.receive_some()
            with pytest.raises(Unreachable):
                await stream.send_all(b"x")
            await ended.wait()


async def test_a_cancelled_sender_leaves_no_half_truth() -> None:
    async with nodes("a", "b") as (a, b):
        ends: list[str] = []
        begun, over = trio.Event(), trio.Event()

        async def slow(peer: str, body: bytes, stream: ByteStream) -> None:
            begun.set()
            try:
                await trio.sleep_forever()
            finally:
                ends.append("cancelled")
                over.set()

        b.handle_stream("slow", slow)
        with trio.fail_after(60):
            stream = await a.open_stream("b", "slow", b"", 30)
            await begun.wait()
            with trio.move_on_after(0.1):
                async with stream:
                    await stream.send_all(bytes(10_000_000))
            await over.wait()
        assert ends == ["cancelled"]
