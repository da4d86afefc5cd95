"""Two processes under one id, over real wires: the second is refused while the first answers."""

from __future__ import annotations

import itertools
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio

from mesh.doubles import DOUBLE, WAITING_MAX, Doubles
from mesh.frames import (
    Broken,
    Bye,
    Decoder,
    Frame,
    Hello,
    Ping,
    Pong,
    Purpose,
    encode,
    same_process,
)
from mesh.greeting import Met
from mesh.transport import Me, Transport, TransportSettings, open_transport
from mesh.wires import Unreachable
from tests.wires import QUICK, Links, authority, node, until

WIRES = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
TOKENS = itertools.count(1)
PATIENT: dict[str, Any] = {"double_answer_s_max": 30.0}
AT_ONCE_S = 15.0
"""Far below what a patient node would wait for an answer."""


@asynccontextmanager
async def process(
    name: str, bind: str = "127.0.0.1:0", *, tls: bool = False, boot: int = 7, **more: Any
) -> AsyncIterator[Transport]:
    """As a start of the daemon is one."""
    settings = TransportSettings(binds=(bind,), **{**QUICK, **more})
    me = Me(name, boot, process=next(TOKENS))
    keys = authority().tls(name) if tls else None
    async with open_transport(settings, me, rng=random.Random(name), tls=keys) as wires:
        wires.handle_call("whose", lambda peer, body: wires.addresses[0].encode())
        yield wires


@contextmanager
def apart(name: str, *, tls: bool) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A process of its own, that can be killed or stopped, and where it listens."""
    args = [sys.executable, "-m", "tests.drivers.mesh_peer", name, *(["--tls"] if tls else [])]
    with subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdin and child.stdout
            if tls:
                child.stdin.write(authority().pem(name) + b"\n")
                child.stdin.flush()
            yield child, child.stdout.readline().decode().strip()
        finally:
            child.kill()


async def refused(wires: Transport, peer: str) -> str:
    """The words, and the code is right."""
    with pytest.raises(Unreachable) as caught:
        await wires.call(peer, "whose", b"", 20)
    assert caught.value.facts["refused"] == DOUBLE, caught.value
    return caught.value.message


@WIRES
async def test_a_copy_is_refused_while_the_first_lives(
    tls: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        process("a", tls=tls) as a,
        process("n", "127.0.0.2:0", tls=tls) as first,
        process("n", "127.0.0.3:0", tls=tls, boot=8) as copy,
    ):
        for wires in (first, copy):
            wires.set_peers({"a": a.addresses})
        await first.call("a", "whose", b"", 5)
        links = Links(a)
        # By what it asked alone it is known, and by this node's own link as well.
        for _ in range(2):
            words = await refused(copy, "a")
            assert "another process runs under the id n, and answers at 127.0.0.2:" in words
            assert "was its data directory copied?" in words
            with pytest.raises(Unreachable) as caught:
                await copy.call_address(a.addresses[0], "whose", b"", 5)
            assert caught.value.facts["refused"] == DOUBLE
            a.set_peers({"n": first.addresses})
            assert await a.call("n", "whose", b"", 5) == first.addresses[0].encode()
        told = [r for r in caplog.records if getattr(r, "reason", "") == DOUBLE]
        assert a.counts.drops[DOUBLE] >= 3 and len(told) == 1
        assert not copy.linked("a") and first.linked("a") and a.linked("n")
        assert all(up for _, up, _ in links.told)


@WIRES
async def test_nobody_dials_a_copy_while_the_first_lives(tls: bool) -> None:
    async with (
        process("a", tls=tls) as a,
        process("n", "127.0.0.2:0", tls=tls) as first,
        process("n", "127.0.0.3:0", tls=tls) as copy,
    ):
        first.set_peers({"a": a.addresses})
        await first.call("a", "whose", b"", 5)
        a.set_peers({"n": copy.addresses})
        with pytest.raises(Unreachable, match="another process runs under the id n"):
            await a.call("n", "whose", b"", 5)
        # The next address is the first one's.
        a.set_peers({"n": (*copy.addresses, *first.addresses)})
        await until(lambda: a.linked("n"))
        assert await a.call("n", "whose", b"", 5) == first.addresses[0].encode()


@WIRES
async def test_whoever_is_started_again_is_taken_in_at_once(tls: bool) -> None:
    async with process("a", tls=tls, **PATIENT) as a:
        for boot in (1, 2, 3):
            async with process("n", "127.0.0.2:0", tls=tls, boot=boot) as n:
                n.set_peers({"a": a.addresses})
                a.set_peers({"n": n.addresses})
                with trio.fail_after(AT_ONCE_S):
                    await n.call("a", "whose", b"", 20)
                    await until(lambda: a.send("n", b""))
        assert not a.counts.drops[DOUBLE]


@WIRES
async def test_the_heir_of_a_killed_process_is_taken_in_at_once(tls: bool) -> None:
    async with process("a", tls=tls, **PATIENT) as a:
        with apart("n", tls=tls) as (child, at):
            a.set_peers({"n": (at,)})
            await a.call("n", "echo", b"", 5)
            async with process("n", "127.0.0.2:0", tls=tls) as heir:
                heir.set_peers({"a": a.addresses})
                await refused(heir, "a")
                child.kill()
                child.wait()
                with trio.fail_after(AT_ONCE_S):
                    await until(lambda: heir.send("a", b""))
        assert a.counts.drops["superseded"] <= 1


@WIRES
async def test_a_process_that_does_not_answer_gives_way_within_a_second(tls: bool) -> None:
    async with process("a", tls=tls, silence_s=60.0) as a:
        with apart("n", tls=tls) as (child, at):
            a.set_peers({"n": (at,)})
            await a.call("n", "echo", b"", 5)
            links = Links(a)
            child.send_signal(signal.SIGSTOP)
            async with process("n", "127.0.0.2:0", tls=tls) as heir:
                heir.set_peers({"a": a.addresses})
                began = trio.current_time()
                assert await heir.call("a", "whose", b"", 30)
                assert 0.8 < trio.current_time() - began < 15
                assert "another process now" in await links.wait("n", False)
                ups = [up for _, up, _ in links.told]
                assert ups == [False, True], links.told
                # Who wakes up now is the one that came later.
                child.send_signal(signal.SIGCONT)
                a.set_peers({"n": (at, *heir.addresses)})
                await until(lambda: a.linked("n"))
                assert await a.call("n", "whose", b"", 5) == heir.addresses[0].encode()
        assert a.counts.drops["superseded"] == 1


class Raw:
    """A process under an id that answers pings as the test says."""

    def __init__(self, stream: trio.SocketStream, answers: bool) -> None:
        self._stream = stream
        self._answers = answers
        self.pings = 0

    async def run(self) -> None:
        decoder = Decoder(1 << 20)
        while data := await self._stream.receive_some():
            for frame in decoder.feed(data):
                if isinstance(frame, Ping):
                    self.pings += 1
                    if self._answers:
                        await self._stream.send_all(encode(Pong(frame.nonce)))


Come = Callable[..., Awaitable[trio.SocketStream]]


@pytest.fixture
async def come() -> AsyncIterator[Come]:
    """Connect to a node and say hello; closed behind the test."""
    opened: list[trio.SocketStream] = []

    async def come(to: Transport, token: int, boot: int = 7) -> trio.SocketStream:
        host, _, port = to.addresses[0].rpartition(":")
        opened.append(stream := await trio.open_tcp_stream(host, int(port)))
        hello = Hello(1, 1, "", "n", boot, Purpose.LINK, 1 << 20, 1 << 18, (), token)
        await stream.send_all(encode(hello))
        return stream

    yield come
    for stream in opened:
        await trio.aclose_forcefully(stream)


async def first_of(stream: trio.SocketStream) -> Frame:
    decoder = Decoder(1 << 20)
    with trio.fail_after(60):
        while True:
            data = await stream.receive_some()
            assert data, "it ended"
            for frame in decoder.feed(data):
                return frame


@pytest.mark.parametrize("answers", [False, True], ids=["silent", "alive"])
async def test_a_flood_of_newcomers_asks_once_and_has_a_bound(come: Come, answers: bool) -> None:
    """All at once: those that fit wait for one answer, and of those no two are let in."""
    more = PATIENT if answers else {}
    async with (
        node("a", keepalive_s=30.0, silence_s=60.0, **more) as a,
        trio.open_nursery() as nursery,
    ):
        there = await come(a, 1_000)
        assert isinstance(await first_of(there), Hello)
        raw = Raw(there, answers)
        gate = trio.Event()
        heard: list[Frame] = []

        async def newcomer(token: int) -> None:
            await gate.wait()
            stream = await come(a, token)
            heard.append(await first_of(stream))
            if isinstance(heard[-1], Hello):
                nursery.start_soon(Raw(stream, True).run)

        async with trio.open_nursery() as coming:
            for token in range(1, 41):
                coming.start_soon(newcomer, token)
            if not answers:
                gate.set()
                await until(lambda: len(heard) == 40)
            else:
                nursery.start_soon(raw.run)
                gate.set()
        reasons = [frame.reason for frame in heard if isinstance(frame, Bye)]
        if answers:
            assert len(reasons) == 40 and set(reasons) <= {DOUBLE, "busy"} and DOUBLE in reasons
            assert 0 < raw.pings <= 40
        else:
            assert reasons.count("busy") == 40 - WAITING_MAX
            assert reasons.count(DOUBLE) == WAITING_MAX - 1 and len(reasons) == 39
        assert not a._doubles._questions and not a._doubles._arriving
        # Another id does not wait for it.
        async with node("b") as b:
            b.set_peers({"a": a.addresses})
            a.handle_call("x", lambda peer, body: b"")
            with trio.fail_after(AT_ONCE_S):
                await b.call("a", "x", b"", 20)
        nursery.cancel_scope.cancel()


async def test_a_newcomer_that_goes_takes_the_question_of_the_others_not_with_it(
    come: Come,
) -> None:
    async with node("a", keepalive_s=30.0, silence_s=60.0, strangers_max=1) as a:
        there = await come(a, 1)
        assert isinstance(await first_of(there), Hello)
        impatient = await come(a, 2)
        await until(lambda: a._doubles._questions)
        question = a._doubles._questions["n"]
        # It has to make room for the next, which waits for the same answer.
        patient = await come(a, 2)
        assert isinstance(await first_of(patient), Hello)
        with trio.fail_after(60):
            assert await impatient.receive_some() == b""
        assert question.over.is_set() and not a._doubles._questions
        assert isinstance(await first_of(there), Ping)
        assert await there.receive_some() == b""


async def test_who_is_let_in_counts_before_its_connection_stands() -> None:
    def met(token: int) -> Met:
        hello = Hello(1, 1, "", "n", 7, Purpose.LINK, 1 << 20, 1 << 18, (), token)
        pipe: Any = None
        return Met(pipe, hello, 1, [], Decoder(1), f"127.0.0.{token}:1")

    async with trio.open_nursery() as nursery:
        doubles = Doubles(lambda peer: [], 1.0, nursery)
        with doubles.arriving(met(2)):
            await doubles.let_in(met(2))
            with pytest.raises(Broken, match=r"answers at 127\.0\.0\.2:1") as caught:
                await doubles.let_in(met(3))
            assert caught.value.reason == DOUBLE
        await doubles.let_in(met(3))


async def test_without_a_token_the_boot_tells_processes_apart(come: Come) -> None:
    """As of a version that did not draw one."""
    old = Hello(1, 1, "", "n", 7, 0, 1, 1)
    assert same_process(old, old) and not same_process(old, Hello(1, 1, "", "n", 8, 0, 1, 1))
    new = Hello(1, 1, "", "n", 7, 0, 1, 1, (), 5)
    assert same_process(old, new) and same_process(new, new)
    assert not same_process(new, Hello(1, 1, "", "n", 7, 0, 1, 1, (), 6))
    async with node("a") as a, process("n", "127.0.0.2:0") as first:
        first.set_peers({"a": a.addresses})
        a.handle_call("whose", lambda peer, body: b"")
        await first.call("a", "whose", b"", 5)
        bye = await first_of(await come(a, 0, 8))
        assert isinstance(bye, Bye) and bye.reason == DOUBLE
        assert isinstance(await first_of(await come(a, 0)), Hello)


async def test_a_probe_is_answered_to_any() -> None:
    async with process("a") as a, process("n") as first, process("n", "127.0.0.3:0") as copy:
        for wires in (first, copy):
            wires.set_peers({"a": a.addresses})
        await first.call("a", "whose", b"", 5)
        assert await copy.probe("a", 1.0)


async def test_one_that_only_sends_is_there(come: Come) -> None:
    """It is so slow to fetch that it has not read the question yet, and sends all the time."""
    async with node("a", keepalive_s=30.0, silence_s=60.0) as a:
        a.handle_message(lambda peer, body: None)
        there = await come(a, 1)
        assert isinstance(await first_of(there), Hello)

        async def send() -> None:
            while True:
                await there.send_all(encode(Ping(1)))
                await trio.sleep(0.05)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            bye = await first_of(await come(a, 2))
            assert isinstance(bye, Bye) and bye.reason == DOUBLE
            nursery.cancel_scope.cancel()


async def test_what_was_sent_before_the_question_is_no_answer(come: Come) -> None:
    async with node("a", keepalive_s=30.0, silence_s=60.0) as a:
        there = await come(a, 1)
        assert isinstance(await first_of(there), Hello)
        heir = await come(a, 2)
        assert isinstance(await first_of(there), Ping)
        await there.send_all(encode(Ping(1)))
        assert isinstance(await first_of(heir), Hello)
        assert a.counts.drops["superseded"] == 1
