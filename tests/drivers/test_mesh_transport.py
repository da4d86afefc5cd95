"""Wires over real sockets: calls, messages, links, and what is told when something is not there."""

from __future__ import annotations

import contextlib
import random
import signal
import socket
import subprocess
import sys
import time

import pytest
import trio
import trio.testing

from mesh.frames import Call, Hello, append, encode
from mesh.pipes import PlainPipe
from mesh.wires import NotAllowed, Refused, TimedOut, TooLarge, Unreachable
from tests.wires import Links, authority, node, nodes, until

WIRES = pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])


async def echo(peer: str, body: bytes) -> bytes:
    await trio.lowlevel.checkpoint()
    return peer.encode() + b":" + body


@WIRES
async def test_a_call_is_answered_and_knows_who_asks(tls: bool) -> None:
    async with nodes("a", "b", tls=tls) as (a, b):
        b.handle_call("echo", echo)
        b.handle_call("plain", lambda peer, body: body[::-1])
        assert await a.call("b", "echo", b"hi", 5) == b"a:hi"
        assert await a.call("b", "plain", b"abc", 5) == b"cba"
        big = bytes(range(256)) * 4096
        assert await a.call("b", "plain", big, 5) == big[::-1]
        assert await a.call("b", "plain", b"", 5) == b""


@WIRES
async def test_five_hundred_calls_at_once_each_get_their_own_answer(tls: bool) -> None:
    async with nodes("a", "b", tls=tls) as (a, b):
        order: list[bytes] = []

        async def slow_first(peer: str, body: bytes) -> bytes:
            if body == b"0":
                await gate.wait()
            order.append(body)
            return body * 3

        gate = trio.Event()
        b.handle_call("x", slow_first)

        async def ask(n: int) -> None:
            body = str(n).encode()
            assert await a.call("b", "x", body, 10) == body * 3
            if len(order) == 499:
                gate.set()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for n in range(500):
                    nursery.start_soon(ask, n)
        assert order[-1] == b"0" and len(order) == 500


async def test_a_refusal_travels_with_code_words_and_facts() -> None:
    async with nodes("a", "b") as (a, b):

        async def refuse(peer: str, body: bytes) -> bytes:
            await trio.lowlevel.checkpoint()
            raise Refused("not_leader", "ask n3", leader="n3", term=7, code_of="x")

        def refuse_at_once(peer: str, body: bytes) -> bytes:
            raise Refused("no", "never", message="m")

        b.handle_call("later", refuse)
        b.handle_call("now", refuse_at_once)
        with pytest.raises(Refused, match="ask n3") as later:
            await a.call("b", "later", b"", 5)
        assert later.value.code == "not_leader"
        assert later.value.facts == {"leader": "n3", "term": 7, "code_of": "x"}
        with pytest.raises(Refused, match="nobody here handles 'none'") as unknown:
            await a.call("b", "none", b"", 5)
        assert unknown.value.code == "unknown_method"


async def test_a_broken_handler_costs_its_call_alone(caplog: pytest.LogCaptureFixture) -> None:
    async with nodes("a", "b") as (a, b):

        async def broken(peer: str, body: bytes) -> bytes:
            raise KeyError("secret")

        b.handle_call("echo", echo)
        b.handle_call("broken", broken)
        with pytest.raises(Refused) as caught:
            await a.call("b", "broken", b"", 5)
        assert caught.value.code == "failed" and "secret" not in caught.value.message
        assert await a.call("b", "echo", b"x", 5) == b"a:x"
    assert "a handler of the wires broke" in caplog.text


async def test_bodies_over_the_bound_are_refused_where_they_arise() -> None:
    async with nodes("a", "b", frame_bytes_max=1000) as (a, b):
        b.handle_call("grow", lambda peer, body: body * 2)
        with pytest.raises(TooLarge, match="1001 bytes"):
            await a.call("b", "grow", bytes(1001), 5)
        with pytest.raises(Refused, match="2000 bytes") as caught:
            await a.call("b", "grow", bytes(1000), 5)
        assert caught.value.code == "too_large"
        with pytest.raises(TooLarge):
            a.send("b", bytes(1001))


@WIRES
async def test_a_cancelled_call_cancels_its_handler(tls: bool) -> None:
    async with nodes("a", "b", tls=tls) as (a, b):
        begun, stopped = trio.Event(), trio.Event()

        async def endless(peer: str, body: bytes) -> bytes:
            begun.set()
            try:
                return await trio.sleep_forever()
            finally:
                stopped.set()

        b.handle_call("endless", endless)
        b.handle_call("echo", echo)
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(a.call, "b", "endless", b"", 600)
                await begun.wait()
                nursery.cancel_scope.cancel()
            await stopped.wait()
        # The task that ran the handler is good for others.
        assert await a.call("b", "echo", b"1", 5) == b"a:1"


async def test_a_call_that_is_not_answered_in_time_is_told_and_stopped() -> None:
    async with nodes("a", "b") as (a, b):
        stopped = trio.Event()

        async def endless(peer: str, body: bytes) -> bytes:
            try:
                return await trio.sleep_forever()
            finally:
                stopped.set()

        b.handle_call("endless", endless)
        b.handle_call("echo", echo)
        await a.call("b", "echo", b"", 5)
        start = trio.current_time()
        with pytest.raises(TimedOut) as caught:
            await a.call("b", "endless", b"", 0.1)
        assert 0.09 < trio.current_time() - start < 5 and caught.value.handed_over
        with trio.fail_after(60):
            await stopped.wait()


async def test_a_shorter_deadline_is_met_while_longer_ones_wait() -> None:
    async with nodes("a", "b") as (a, b):

        async def endless(peer: str, body: bytes) -> bytes:
            return await trio.sleep_forever()

        b.handle_call("endless", endless)
        ended: list[float] = []

        async def ask(timeout_s: float) -> None:
            with pytest.raises(TimedOut):
                await a.call("b", "endless", b"", timeout_s)
            ended.append(timeout_s)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for timeout_s in (2.0, 1.5, 1.0, 0.5):
                    nursery.start_soon(ask, timeout_s)
        assert ended == [0.5, 1.0, 1.5, 2.0]


@WIRES
async def test_messages_arrive_in_order_and_few_writes(tls: bool) -> None:
    quiet = {"keepalive_s": 30.0, "silence_s": 60.0}  # no write but those of the messages
    async with nodes("a", "b", tls=tls, **quiet) as (a, b):
        got: list[bytes] = []
        all_there = trio.Event()

        def take(peer: str, body: bytes) -> None:
            assert peer == "a"
            got.append(body)
            if len(got) == 1000:
                all_there.set()

        b.handle_message(take)
        links = Links(a)
        assert not a.send("b", b"too early: this dials")
        await links.wait("b", True)
        writes = a.counts.writes
        assert all(a.send("b", str(n).encode()) for n in range(1000))
        with trio.fail_after(60):
            await all_there.wait()
        assert got == [str(n).encode() for n in range(1000)]
        assert a.counts.writes - writes <= 3


async def test_messages_nobody_handles_are_counted() -> None:
    async with nodes("a", "b") as (a, b):
        links = Links(a)
        a.send("b", b"")
        await links.wait("b", True)
        a.send("b", b"x")
        await until(lambda: b.counts.drops["no_handler"])


async def test_a_message_that_is_refused_ends_its_connection_and_the_next_is_heard(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with nodes("a", "b") as (a, b):
        got: list[bytes] = []

        def take(peer: str, body: bytes) -> None:
            if body == b"bad":
                raise Refused("invalid", "this is no message")
            if body == b"bug":
                raise ZeroDivisionError
            got.append(body)

        b.handle_message(take)
        for bad, reason in ((b"bad", "message"), (b"bug", "handler")):
            with trio.fail_after(60):
                while not a.send("b", bad):
                    await trio.sleep(0.005)
                await until(lambda: b.counts.drops[reason])  # noqa: B023
                while not a.send("b", b"good"):
                    await trio.sleep(0.005)
        await until(lambda: len(got) == 2)
    assert caplog.text.count("Traceback") == 1


async def test_who_has_left_is_told_nothing_more() -> None:
    told: list[str] = []
    async with node("b") as b:
        b.handle_call("echo", echo)
        async with node("a") as a:
            a.set_peers({"b": b.addresses})
            await a.call("b", "echo", b"", 5)
            a.on_link(lambda peer, up, reason: told.append(reason))
        assert told == []


async def test_a_queue_that_is_full_takes_no_message_and_loses_none_it_took() -> None:
    async with nodes("a", "b", queue_bytes_max=1024 * 1024, silence_s=30.0) as (a, b):
        got: list[int] = []
        b.handle_message(lambda peer, body: got.append(len(body)))
        links = Links(a)
        a.send("b", b"")
        await links.wait("b", True)
        taken = 0
        while a.send("b", bytes(10_000)):
            taken += 1
        assert taken <= 105
        with trio.fail_after(60):
            while not a.send("b", b"end"):
                await trio.lowlevel.checkpoint()
            await until(lambda: got[-1:] == [3])
        assert got[:-1] == [10_000] * taken


async def test_calls_in_flight_have_a_bound_on_both_sides() -> None:
    async with nodes("a", "b", calls_max=10) as (a, b):
        gate = trio.Event()

        async def wait(peer: str, body: bytes) -> bytes:
            await gate.wait()
            return b""

        b.handle_call("wait", wait)
        b.handle_call("echo", echo)
        await a.call("b", "echo", b"", 5)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(a.call, "b", "wait", b"", 10)
            await trio.testing.wait_all_tasks_blocked(0.05)
            with pytest.raises(Refused) as caught:
                await a.call("b", "echo", b"", 5)
            assert caught.value.code == "busy"
            gate.set()
        assert await a.call("b", "echo", b"", 5) == b"a:"


async def test_held_bodies_have_a_bound_at_the_answering_side() -> None:
    async with node("b", held_bytes_max=100_000) as b, node("a") as a:
        a.set_peers({"b": b.addresses})
        gate = trio.Event()

        async def wait(peer: str, body: bytes) -> bytes:
            await gate.wait()
            return b""

        b.handle_call("wait", wait)
        outcomes: list[str] = []

        async def ask() -> None:
            try:
                await a.call("b", "wait", bytes(40_000), 5)
                outcomes.append("ok")
            except Refused as refusal:
                outcomes.append(refusal.code)
                gate.set()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask)
        assert sorted(outcomes) == ["busy", "ok", "ok"]


async def test_who_does_not_fetch_answers_is_not_read_any_further() -> None:
    """A peer that asks and asks, and reads nothing: memory stays bounded, others are served."""
    bounds = {"queue_bytes_max": 300_000, "frame_bytes_max": 100_000, "silence_s": 0.4}
    async with node("b", **bounds) as b, node("a", silence_s=30.0) as a:
        b.handle_call("big", lambda peer, body: bytes(60_000))
        a.set_peers({"b": b.addresses})
        host, _, port = b.addresses[0].rpartition(":")
        greedy = await trio.open_tcp_stream(host, int(port))
        greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await greedy.send_all(encode(Hello(1, 1, "", "greedy", 1, 0, 100_000, 1000)))
        await greedy.receive_some()
        calls = bytearray()
        for n in range(1000):
            append(calls, Call(n, "big", b""))
        with contextlib.suppress(trio.BrokenResourceError):
            await greedy.send_all(calls)
        with trio.fail_after(60):
            await until(lambda: b.counts.drops["silent"] + b.counts.drops["flood"])
            assert await a.call("b", "big", b"", 5) == bytes(60_000)
        assert b.counts.bytes_out < 20_000_000
        await greedy.aclose()


@WIRES
async def test_a_peer_that_is_killed_is_noticed_within_a_second(tls: bool) -> None:
    async with node("a", tls=tls) as a, a_process("b", tls) as (process, address):
        links = Links(a)
        a.set_peers({"b": [address]})
        assert await a.call("b", "echo", b"x", 10) == b"x"
        await links.wait("b", True)
        failures: list[Unreachable] = []

        async def ask() -> None:
            try:
                await a.call("b", "endless", b"", 30)
            except Unreachable as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            start = time.monotonic()
            process.send_signal(signal.SIGKILL)
            await links.wait("b", False, 1.0)
            assert time.monotonic() - start < 1.0
        assert failures[0].handed_over
        assert not await a.probe("b", 1.0)
        with pytest.raises(Unreachable) as caught:
            await a.call("b", "echo", b"", 1.0)
        assert not caught.value.handed_over


async def test_a_stopped_process_is_silent_and_its_probe_fails() -> None:
    async with node("a", silence_s=0.4) as a, a_process("b", False) as (process, address):
        links = Links(a)
        a.set_peers({"b": [address]})
        await a.call("b", "echo", b"x", 10)
        assert await a.probe("b", 5.0)
        process.send_signal(signal.SIGSTOP)
        assert "nothing was heard" in await links.wait("b", False)
        assert not await a.probe("b", 0.2)
        process.send_signal(signal.SIGCONT)
        with trio.fail_after(60):
            while not await a.probe("b", 1.0):
                pass


async def test_a_link_comes_back_by_itself() -> None:
    async with node("a") as a:
        links = Links(a)
        async with node("b") as b:
            address = b.addresses[0]
            b.handle_call("echo", echo)
            a.set_peers({"b": [address]})
            await a.call("b", "echo", b"", 5)
        assert "b is closing" in await links.wait("b", False)
        with pytest.raises(Unreachable):
            while True:
                await a.call("b", "echo", b"", 1)
        links.told.clear()
        async with node("b", bind=address) as b:
            b.handle_call("echo", echo)
            await links.wait("b", True)
            assert await a.call("b", "echo", b"!", 5) == b"a:!"
            assert a.linked("b") and not b.linked("a")


async def test_a_peer_that_says_hello_is_dialed_without_waiting_for_the_next_try() -> None:
    async with node("a", backoff_min_s=600.0, backoff_max_s=600.0) as a:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            port = holder.getsockname()[1]
        a.set_peers({"b": [f"127.0.0.1:{port}"]})
        with pytest.raises(Unreachable):
            await a.call("b", "echo", b"", 5)
        with pytest.raises(Unreachable):
            await a.call("b", "echo", b"", 5)
        links = Links(a)
        async with node("b", bind=f"127.0.0.1:{port}") as b:
            b.set_peers({"a": a.addresses})
            b.send("a", b"")
            with trio.fail_after(60):
                while not a.linked("b"):
                    await links.wait("b", True)
                    await trio.sleep(0.01)


@WIRES
async def test_another_id_at_the_address_is_dropped_before_anything_is_said(tls: bool) -> None:
    async with nodes("a", "b", tls=tls) as (a, b):
        heard: list[str] = []
        b.handle_call("echo", lambda peer, body: heard.append(peer) or b"")  # type: ignore[func-returns-value]
        a.set_peers({"c": b.addresses})
        with pytest.raises(Unreachable, match="b answers"):
            await a.call("c", "echo", b"secret", 5)
        assert not heard and not a.linked("c") and not await a.probe("c", 1.0)


@WIRES
async def test_an_address_alone_is_enough_to_ask(tls: bool) -> None:
    async with nodes("a", "b", tls=tls) as (a, b):
        b.handle_call("echo", echo)
        a.set_peers({})
        links = Links(b)
        assert await a.call_address(b.addresses[0], "echo", b"x", 5) == ("b", b"a:x")
        with pytest.raises(Refused):
            await a.call_address(b.addresses[0], "none", b"", 5)
        assert not links.told
        await until(lambda: not b._connections and not a._connections)
    async with node("a") as a:
        with socket.socket() as mute:
            mute.bind(("127.0.0.1", 0))
            mute.listen()
            address = f"127.0.0.1:{mute.getsockname()[1]}"
            with pytest.raises(TimedOut) as caught:
                await a.call_address(address, "echo", b"", 0.1)
            assert not caught.value.handed_over
        with pytest.raises(Unreachable):
            await a.call_address(address, "echo", b"", 1)


async def test_peers_who_are_left_out_are_cut_and_unknown_ones_unreachable() -> None:
    async with nodes("a", "b") as (a, b):
        links = Links(a)
        b.handle_call("echo", echo)
        await a.call("b", "echo", b"", 5)
        a.set_peers({})
        assert "no peer any more" in await links.wait("b", False)
        for who in ("b", "a"):
            with pytest.raises(Unreachable):
                await a.call(who, "echo", b"", 5)
            assert not a.send(who, b"") and not await a.probe(who, 1.0)
        a.set_peers({"b": b.addresses})
        assert await a.call("b", "echo", b"", 5) == b"a:"


async def test_the_second_address_is_tried_where_the_first_is_dead() -> None:
    async with nodes("a", "b") as (a, b):
        with socket.socket() as holder:
            holder.bind(("127.0.0.9", 0))
            dead = f"127.0.0.9:{holder.getsockname()[1]}"
        b.handle_call("echo", echo)
        a.set_peers({"b": [dead, *b.addresses]})
        assert await a.call("b", "echo", b"", 5) == b"a:"
        assert await a.probe("b", 1.0)
        facts = a.about("b")
        assert facts is not None and facts.address == b.addresses[0] and facts.boot == 7


async def test_it_dials_from_the_address_it_binds() -> None:
    async with node("b", bind="127.0.0.2:0") as b, node("a", bind="127.0.0.3:0") as a:
        a.set_peers({"b": b.addresses})
        b.handle_call("echo", echo)
        await a.call("b", "echo", b"", 5)
        [accepted] = b._connections
        assert accepted.met.address.startswith("127.0.0.3:")


@pytest.mark.needs("ipv6")
async def test_ipv6() -> None:
    async with node("b", bind="[::1]:0") as b, node("a", bind="[::1]:0") as a:
        a.set_peers({"b": b.addresses})
        b.handle_call("echo", echo)
        assert await a.call("b", "echo", b"", 5) == b"a:"


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.1:7", "nonsense", "h:99999"])
async def test_without_tls_only_loopback_is_bound_and_dialed(address: str) -> None:
    with pytest.raises(NotAllowed):
        async with node("a", bind=address):
            raise AssertionError("it was bound")
    async with node("a") as a:
        with pytest.raises(NotAllowed):
            await a.call_address(address, "x", b"", 1)
        with pytest.raises(NotAllowed):
            a.set_peers({"b": [address]})


class Foreign(trio.abc.HostnameResolver):
    """Every name stands for an address that is not loopback."""

    async def getaddrinfo(self, *_: object, **__: object) -> list[object]:  # type: ignore[override]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 7))]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


async def test_a_name_may_not_smuggle_in_a_foreign_address() -> None:
    trio.socket.set_custom_hostname_resolver(Foreign())
    with pytest.raises(NotAllowed, match="not a loopback"):
        async with node("a", bind="host.example:0"):
            raise AssertionError("it was bound")
    async with node("a") as a:
        a.set_peers({"b": ["host.example:7"]})
        with pytest.raises(Unreachable, match="not a loopback"):
            await a.call("b", "x", b"", 5)
        with pytest.raises(Unreachable, match="not a loopback"):
            await a.call_address("host.example:7", "x", b"", 5)


async def test_a_link_knows_its_round_trip() -> None:
    async with nodes("a", "b") as (a, b):
        b.handle_call("echo", echo)
        await a.call("b", "echo", b"", 5)
        assert a.about("nobody") is None
        await until(lambda: (facts := a.about("b")) and facts.rtt_smoothed_s is not None)
        facts = a.about("b")
        assert facts is not None and facts.rtt_last_s is not None and 0 < facts.rtt_last_s < 1


async def test_swarms_that_differ_do_not_talk() -> None:
    async with node("a", cluster="one") as a, node("b", cluster="two") as b:
        a.set_peers({"b": b.addresses})
        with pytest.raises(Unreachable, match="different swarms"):
            await a.call("b", "echo", b"", 5)
        assert b.counts.drops["cluster"] == 1


@WIRES
async def test_under_random_cuts_every_call_ends_and_no_message_comes_twice(tls: bool) -> None:
    rng = random.Random(3)
    async with nodes("a", "b", tls=tls, backoff_min_s=0.001, backoff_max_s=0.005) as (a, b):
        got: list[int] = []
        b.handle_message(lambda peer, body: got.append(int(body)))
        b.handle_call("echo", echo)
        answered = lost = sent = 0
        over = False

        def enough() -> bool:
            return answered > 1000 and lost > 20 and len(got) > 100

        async def ask(number: int) -> None:
            nonlocal answered, lost
            while not over:
                body = b"%d" % number
                try:
                    assert await a.call("b", "echo", body, 60) == b"a:" + body
                    answered += 1
                except Unreachable:
                    lost += 1
                    await trio.lowlevel.checkpoint()

        async def tell() -> None:
            nonlocal sent
            while not over:
                sent += a.send("b", b"%d" % sent)
                await trio.lowlevel.checkpoint()

        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for number in range(20):
                    nursery.start_soon(ask, number)
                nursery.start_soon(tell)
                turns = 0
                while turns < 50 or not enough():
                    await trio.sleep(0.02)
                    turns += 1
                    # A slow machine gets further while there are fewer cuts, and cuts there are.
                    if turns <= 50 or turns % 10 == 0:
                        for connection in rng.choice((a, b))._connections:
                            connection.close("lost", "cut by the test")
                over = True
        assert got == sorted(set(got)) and got[-1] < sent


async def test_leaving_fails_what_is_under_way_and_ends_handlers() -> None:
    ended = trio.Event()

    async def endless(peer: str, body: bytes) -> bytes:
        try:
            return await trio.sleep_forever()
        finally:
            ended.set()

    async with node("b") as b:
        b.handle_call("endless", endless)
        with trio.fail_after(60):
            async with node("a") as a:
                a.set_peers({"b": b.addresses})
                async with trio.open_nursery() as nursery:

                    async def ask() -> None:
                        with pytest.raises(Unreachable):
                            await a.call("b", "endless", b"", 600)

                    nursery.start_soon(ask)
                    await trio.testing.wait_all_tasks_blocked(0.05)
                    for connection in list(b._connections):
                        connection.close("closing", "as if it went")
            await ended.wait()


@contextlib.asynccontextmanager
async def a_process(name: str, tls: bool):  # type: ignore[no-untyped-def]
    """A node in a process of its own, with its address."""
    keys = ["--tls"] if tls else []
    command = [sys.executable, "-m", "tests.drivers.mesh_peer", name, *keys]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as process:  # noqa: ASYNC220
        try:
            assert process.stdin is not None and process.stdout is not None
            if tls:
                process.stdin.write(authority().pem(name))
                process.stdin.write(b"\n")
                process.stdin.flush()
            with trio.fail_after(60):
                line = await trio.to_thread.run_sync(process.stdout.readline)
            yield process, line.decode().strip()
        finally:
            process.kill()


async def test_what_does_not_go_at_once_goes_before_what_follows() -> None:
    left, right = socket.socketpair()
    with left, right:
        left.setblocking(False)
        right.setblocking(False)
        pipe, heard = PlainPipe(left), bytearray()
        first, second = random.Random(3).randbytes(2**21), b"and then this"
        pipe.send_now(first)
        assert pipe.pending
        pipe.send_now(second)

        async def hear() -> None:
            other = PlainPipe(right)
            while len(heard) < len(first) + 2 * len(second):
                heard.extend(await other.receive())

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(hear)
                await pipe.send(second)
        assert not pipe.pending and heard == first + second + second
