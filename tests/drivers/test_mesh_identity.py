"""Nodes that prove who they are, over real TLS: joining, ending, being shut out, and strangers."""

from __future__ import annotations

import os
import random
import ssl
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from mesh.allowances import Allowances, source_of
from mesh.frames import (
    Bye,
    Call,
    Cancel,
    Decoder,
    Hello,
    Note,
    Open,
    Refusal,
    append,
    encode,
)
from mesh.identity.authority import Authority, make_authority
from mesh.identity.boxes import seal_to
from mesh.identity.certificates import DAY_S
from mesh.identity.contexts import applicant_context, tls_of
from mesh.identity.files import Identity, make_identity
from mesh.identity.proofs import Nonces, check_proof
from mesh.pipes import Trust
from mesh.transport import UNPROVEN, Me, Tls, Transport, TransportSettings, open_transport
from mesh.wires import (
    Applicant,
    ByteStream,
    NotAllowed,
    Refused,
    TooLarge,
    Unreachable,
    applicant_of,
)
from tests.certificates import member
from tests.wires import QUICK, until

HOUR_S = 3600.0


@pytest.fixture
def swarm() -> Authority:
    return make_authority(os.urandom(32), time.time())


@asynccontextmanager
async def wires(
    node_id: str, trust: Trust, host: str = "127.0.0.1", **more: Any
) -> AsyncIterator[Transport]:
    admit = more.pop("admit", None)
    settings = TransportSettings(binds=(f"{host}:0",), **{**QUICK, **more})
    async with open_transport(
        settings, Me(node_id), rng=random.Random(node_id), tls=trust, wall=time.time, admit=admit
    ) as transport:
        transport.handle_call("echo", lambda peer, body: body)
        yield transport


@asynccontextmanager
async def running(
    identity: Identity, host: str = "127.0.0.1", **more: Any
) -> AsyncIterator[Transport]:
    async with wires(identity.node_id, tls_of(identity), host, **more) as transport:
        yield transport


def know(*transports: Transport) -> None:
    for each in transports:
        each.set_peers({other.me: other.addresses for other in transports})


class Ask(msgspec.Struct):
    node_id: str
    public_key: bytes
    box_key: bytes


# Joining.


async def test_a_joiner_with_the_pin_gets_a_certificate_and_is_a_peer(swarm: Authority) -> None:
    seed = member(swarm)
    asked: list[Applicant | None] = []

    def join(peer: str, body: bytes) -> bytes:
        asked.append(applicant_of(peer))
        ask = msgspec.msgpack.decode(body, type=Ask)
        certificate = swarm.issue(ask.node_id, ask.public_key, time.time())
        box = seal_to(ask.box_key, "sealing key", b"secret", os.urandom)
        return msgspec.msgpack.encode((certificate, swarm.certificate, box))

    fresh = make_identity(str(uuid.uuid4()), os.urandom)
    async with (
        running(seed) as a,
        wires(fresh.node_id, UNPROVEN, "127.0.0.2") as b,
    ):
        a.handle_call("join", join, applicants=True)
        know(a, b)
        # Its address is known, and nobody is listened to.
        assert not b.listening and not b.addresses[0].endswith(":0")
        with pytest.raises(OSError):
            await trio.open_tcp_stream("127.0.0.2", int(b.addresses[0].rpartition(":")[2]))
        with pytest.raises(Unreachable, match="no certificate yet"):
            await b.call(a.me, "echo", b"", 5)
        with pytest.raises(NotAllowed, match="no certificate yet"):
            await b.call_address(a.addresses[0], "echo", b"", 5)
        ask = msgspec.msgpack.encode(Ask(fresh.node_id, fresh.public_key, fresh.box_key))
        who, answer = await b.call_address(a.addresses[0], "join", ask, 5, pin=swarm.pin)
        assert who == a.me
        [applicant] = asked
        assert applicant is not None and applicant.claimed_id == fresh.node_id
        assert applicant.address.startswith("127.0.0.2:")
        certificate, authority, box = msgspec.msgpack.decode(answer)
        joined = fresh.certified(certificate, authority, time.time())
        assert joined.open_box("sealing key", box) == b"secret"
        b.use(tls_of(joined))
        assert b.listening
        assert await b.call(a.me, "echo", b"1", 5) == b"1"
        assert await a.call(b.me, "echo", b"2", 5) == b"2"
        # The same call as a peer.
        assert await b.call(a.me, "join", ask, 5)
        assert asked[1] is None


async def test_another_swarm_is_not_spoken_to(swarm: Authority) -> None:
    other = make_authority(os.urandom(32), time.time())
    heard: list[bytes] = []
    async with running(member(swarm)) as a, wires(str(uuid.uuid4()), UNPROVEN) as b:
        a.handle_call("join", lambda peer, body: heard.append(body) or b"", applicants=True)
        with pytest.raises(Unreachable, match="another swarm than the token's"):
            await b.call_address(a.addresses[0], "join", b"secret", 5, pin=other.pin)
        assert b.counts.drops["pin"] == 1 and not heard


def impostor(swarm: Authority, *, shown: bytes) -> Tls:
    """Its own authority's certificate, and then whichever authority it likes to show."""
    evil = make_authority(os.urandom(32), time.time())
    identity = member(evil)
    assert identity.certificate is not None
    forged = Identity(
        identity.node_id, identity._signing, identity._opening, identity.certificate, shown
    )
    return tls_of(forged)


async def test_somebody_in_between_gets_nothing(swarm: Authority) -> None:
    """It shows the right authority's certificate, which everybody may have, behind its own."""
    heard: list[bytes] = []
    async with (
        wires(str(uuid.uuid4()), impostor(swarm, shown=swarm.certificate)) as evil,
        wires(str(uuid.uuid4()), UNPROVEN) as b,
    ):
        evil.handle_call("join", lambda peer, body: heard.append(body) or b"", applicants=True)
        with pytest.raises(Unreachable, match="not from this swarm's authority"):
            await b.call_address(evil.addresses[0], "join", b"secret", 5, pin=swarm.pin)
        assert not heard and evil.counts.frames_in == 0


async def test_a_pin_asks_for_tls_and_plain_wires_stay_plain(swarm: Authority) -> None:
    async with wires("a", None) as plain, running(member(swarm)) as a:
        with pytest.raises(NotAllowed, match="without TLS"):
            await plain.call_address(a.addresses[0], "x", b"", 5, pin=swarm.pin)
        with pytest.raises(NotAllowed, match="stay without"):
            plain.use(tls_of(member(swarm)))
    with pytest.raises(NotAllowed, match="the first not"):
        async with wires("?a", None):
            raise AssertionError("it was opened")


async def test_a_port_that_somebody_took_meanwhile_is_an_error_of_use(swarm: Authority) -> None:
    identity = member(swarm)
    async with wires(identity.node_id, UNPROVEN) as b:
        port = int(b.addresses[0].rpartition(":")[2])
        with trio.socket.socket() as other:
            other.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_REUSEADDR, 1)
            await other.bind(("127.0.0.1", port))
            other.listen(1)
            with pytest.raises(OSError, match="in use"):
                b.use(tls_of(identity))
            assert not b.listening
        b.use(tls_of(identity))


# Dates.


@pytest.mark.parametrize("apart_s", [-HOUR_S, HOUR_S], ids=["ahead", "behind"])
async def test_a_clock_that_is_an_hour_off_cuts_nobody_off(apart_s: float) -> None:
    """Whoever makes the certificates has a clock that is apart from the nodes'."""
    there = time.time() + apart_s
    swarm = make_authority(os.urandom(32), there)
    one, other = (member(swarm, made=there) for _ in range(2))
    async with (
        running(one) as a,
        running(other, "127.0.0.2") as b,
        wires(str(uuid.uuid4()), UNPROVEN) as c,
    ):
        know(a, b)
        a.handle_call("join", lambda peer, body: body, applicants=True)
        assert await a.call(b.me, "echo", b"x", 5) == b"x"
        assert await c.call_address(a.addresses[0], "join", b"x", 5, pin=swarm.pin) == (a.me, b"x")


async def test_an_ended_certificate_opens_nothing_but_the_way_to_the_next() -> None:
    swarm = make_authority(os.urandom(32), time.time() - 400 * DAY_S)
    good = member(swarm)
    ended = member(swarm, made=time.time() - 100 * DAY_S)
    too_old = member(swarm, made=time.time() - 121 * DAY_S)
    nonces = Nonces(os.urandom(32), os.urandom)

    def renew(peer: str, body: bytes) -> bytes:
        assert applicant_of(peer) is not None
        ask, proof = msgspec.msgpack.decode(body, type=tuple[bytes, bytes])
        at = {"now": time.time(), "now_s": trio.current_time()}
        known = check_proof(proof, swarm.certificate, ask, nonces, **at)
        return swarm.issue(known.node_id, known.public_key, time.time())

    def renew_or_refuse(peer: str, body: bytes) -> bytes:
        try:
            return renew(peer, body)
        except Exception as error:
            raise Refused("identity", str(error)) from None

    async with running(good) as a, running(ended, "127.0.0.2") as b:
        know(a, b)
        a.handle_call("nonce", lambda *_: nonces.fresh(trio.current_time()), applicants=True)
        a.handle_call("renew", renew_or_refuse, applicants=True)
        # Neither as who dials nor as who answers.
        with pytest.raises(Unreachable, match="cannot be reached"):
            await b.call(a.me, "echo", b"", 5)
        with pytest.raises(Unreachable, match="certificate has expired"):
            await a.call(b.me, "echo", b"", 5)
        assert a.counts.drops["tls"] >= 1
        for old, works in ((too_old, False), (ended, True)):
            seed = a.addresses[0]
            _, nonce = await b.call_address(seed, "nonce", b"", 5, pin=old.pin)
            body = msgspec.msgpack.encode((b"renew me", old.prove(nonce, b"renew me")))
            if not works:
                with pytest.raises(Refused, match="30 days after that"):
                    await b.call_address(seed, "renew", body, 5, pin=old.pin)
                continue
            _, certificate = await b.call_address(seed, "renew", body, 5, pin=old.pin)
            renewed = old.certified(certificate, swarm.certificate, time.time())
            b.use(tls_of(renewed))
        with trio.fail_after(60):
            assert await b.call(a.me, "echo", b"1", 5) == b"1"
        # It was told of b's hello, and has not to wait for its own next try.
        assert await a.call(b.me, "echo", b"2", 5) == b"2"


async def test_a_certificate_is_changed_while_streams_run(swarm: Authority) -> None:
    one, other = member(swarm, made=time.time() - 59 * DAY_S), member(swarm)
    got = 0

    async def sink(peer: str, body: bytes, stream: ByteStream) -> None:
        nonlocal got
        while data := await stream.receive_some():
            got += len(data)
        await stream.send_all(str(got).encode())

    async with running(one) as a, running(other, "127.0.0.2") as b:
        b.handle_stream("sink", sink)
        know(a, b)
        chunk = bytes(200_000)
        with trio.fail_after(60):
            async with await a.open_stream(b.me, "sink", b"", 5) as stream:
                await stream.send_all(chunk)
                newer = swarm.issue(one.node_id, one.public_key, time.time())
                a.use(tls_of(one.certified(newer, swarm.certificate, time.time())))
                await stream.send_all(chunk)
                assert await a.call(b.me, "echo", b"on the old one", 5)
                # A connection of its own, with the new one.
                assert (await a.call_address(b.addresses[0], "echo", b"x", 5))[0] == b.me
                assert await a.probe(b.me, 2)
                await stream.send_all(chunk)
                await stream.send_eof()
                assert await stream.receive_some() == b"600000"
        assert a.counts.dialed == 2


async def test_no_session_is_taken_up_again(swarm: Authority) -> None:
    """A ticket would outlive the certificate that it was given for."""
    identity = member(swarm)
    context = tls_of(member(swarm)).client
    async with running(identity) as a:
        host, _, port = a.addresses[0].rpartition(":")
        for _ in range(2):
            plain = await trio.open_tcp_stream(host, int(port))
            stream = trio.SSLStream(plain, context)
            await stream.do_handshake()
            await stream.send_all(hello(str(uuid.uuid4())))
            with pytest.raises(trio.BrokenResourceError):
                while await stream.receive_some():
                    pass
                raise trio.BrokenResourceError
            session = stream._ssl_object.session  # type: ignore[attr-defined]
            assert session is None or not session.has_ticket
            await trio.aclose_forcefully(stream)


# Removed.


async def test_who_is_shut_out_stays_out_and_is_told(swarm: Authority) -> None:
    removed: set[str] = set()
    one, other = member(swarm), member(swarm)

    def admit(peer: str) -> str | None:
        return f"{peer} was removed from this swarm" if peer in removed else None

    async with running(one, admit=admit) as a, running(other, "127.0.0.2") as b:
        know(a, b)
        begun, ended = trio.Event(), trio.Event()

        async def endless(peer: str, body: bytes) -> bytes:
            begun.set()
            try:
                return await trio.sleep_forever()
            finally:
                ended.set()

        a.handle_call("endless", endless)
        assert await a.call(b.me, "echo", b"x", 5) == b"x"

        async def ask() -> None:
            with pytest.raises(Unreachable):
                await b.call(a.me, "endless", b"", 600)

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                await begun.wait()
                removed.add(b.me)
                a.shut_out(b.me, "it was removed")
                await ended.wait()
            await until(lambda: not a.linked(b.me) and not a._connections)

            async def refusal(ask: Any) -> None:
                while True:
                    with pytest.raises(Unreachable) as caught:
                        await ask()
                    if caught.value.facts.get("refused") == "shut_out":
                        assert "was removed from this swarm" in caught.value.message
                        return
                    await trio.sleep(0.01)

            await refusal(lambda: b.call(a.me, "echo", b"", 5))
            await refusal(lambda: b.call_address(a.addresses[0], "echo", b"", 5))
            # Nor does this side dial it.
            with pytest.raises(Unreachable, match="was removed"):
                await a.call_address(b.addresses[0], "echo", b"", 5)
            assert not await a.probe(b.me, 1) and not await b.probe(a.me, 1)
        assert a.counts.drops["shut_out"] >= 3


# Strangers.


def hello(name: str = "stranger", purpose: int = 1) -> bytes:
    return bytes(encode(Hello(1, 1, "", name, 1, purpose, 1 << 20, 1 << 18)))


async def stranger(transport: Transport, source: str | None = None) -> trio.SSLStream[Any]:
    host, _, port = transport.addresses[0].rpartition(":")
    plain = await trio.open_tcp_stream(host, int(port), local_address=source)
    stream = trio.SSLStream(plain, applicant_context())
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


async def rest_of(stream: trio.SSLStream[Any]) -> list[Any]:
    decoder, frames = Decoder(1 << 20), []
    with trio.fail_after(60):
        try:
            while data := await stream.receive_some():
                frames += decoder.feed(data)
        except trio.BrokenResourceError:
            pass
    await trio.aclose_forcefully(stream)
    return frames


async def test_applicants_may_call_what_is_open_to_them_and_nothing_else(
    swarm: Authority,
) -> None:
    messages: list[bytes] = []
    async with running(member(swarm)) as a, wires(str(uuid.uuid4()), UNPROVEN) as b:
        a.handle_call("join", lambda peer, body: body, applicants=True)
        a.handle_message(lambda peer, body: messages.append(body))
        seed = a.addresses[0]
        for method in ("echo", "there is none"):
            with pytest.raises(Refused, match="join it first") as caught:
                await b.call_address(seed, method, b"", 5, pin=swarm.pin)
            assert caught.value.code == "no_member"
        body = bytes(64 * 1024)
        assert (await b.call_address(seed, "join", body, 5, pin=swarm.pin))[1] == body
        with pytest.raises(TooLarge):
            await b.call_address(seed, "join", body + b"x", 5, pin=swarm.pin)
        # What the wires of a node would not send.
        for frame in (Note(b"x"), Open(1, "s", b"x")):
            stream = await stranger(a)
            await stream.send_all(hello())
            await stream.receive_some()
            await stream.send_all(encode(frame))
            await rest_of(stream)
        stream = await stranger(a)
        await stream.send_all(hello())
        await stream.receive_some()
        raw = bytearray()
        for n in range(1, 100):
            append(raw, Call(n, "echo", b""))
        await stream.send_all(raw)
        frames = await rest_of(stream)
        assert len(frames) <= 4 and all(isinstance(f, Refusal) for f in frames)
        assert not messages and a.counts.drops["applicant"] >= 2 + 2 + 5


@pytest.mark.parametrize("purpose", [0, 2], ids=["link", "probe"])
async def test_without_a_certificate_there_is_no_link_and_no_probe(
    swarm: Authority, purpose: int
) -> None:
    async with running(member(swarm)) as a:
        stream = await stranger(a)
        await stream.send_all(hello(purpose=purpose))
        [bye] = await rest_of(stream)
        assert isinstance(bye, Bye) and bye.reason == "applicant"


async def test_an_applicant_cannot_pass_for_a_peer(swarm: Authority) -> None:
    """It says another's id, or one with the mark of applicants: the address is all that counts."""
    peers: list[str] = []
    one = member(swarm)
    async with running(one) as a:
        a.handle_call("join", lambda peer, body: peers.append(peer) or b"", applicants=True)
        victim = str(uuid.uuid4())
        stream = await stranger(a)
        await stream.send_all(hello(victim))
        await stream.receive_some()
        await stream.send_all(encode(Call(1, "join", b"")))
        await stream.receive_some()
        await trio.aclose_forcefully(stream)
        [peer] = peers
        assert peer != victim and applicant_of(peer) is not None
        for name in (f"?{victim}", one.node_id, ""):
            stream = await stranger(a)
            await stream.send_all(hello(name))
            assert isinstance((await rest_of(stream))[0], Bye)
        assert len(peers) == 1


async def test_an_applicant_has_so_much_time_and_so_many_bytes(swarm: Authority) -> None:
    async with running(member(swarm), applicant_s=0.3) as a:
        began = trio.current_time()
        stream = await stranger(a)
        await stream.send_all(hello())
        await rest_of(stream)
        assert 0.2 < trio.current_time() - began < 10
    async with running(member(swarm)) as a:
        stream = await stranger(a)
        await stream.send_all(hello())
        raw = bytearray()
        for n in range(10_000):
            append(raw, Cancel(n))
        with trio.fail_after(60):
            try:
                while True:
                    await stream.send_all(raw)
            except trio.BrokenResourceError:
                pass
        await trio.aclose_forcefully(stream)
        await until(lambda: a.counts.drops["flood"] == 1)
        stream = await stranger(a)
        await stream.send_all(hello())
        await stream.receive_some()
        await stream.send_all(encode(Call(1, "join", bytes(100_000))))
        await rest_of(stream)
        await until(lambda: a.counts.drops["oversize"] == 1)


async def test_garbage_behind_tls_and_slow_hellos_end_like_any(swarm: Authority) -> None:
    async with running(member(swarm), hello_timeout_s=2.0) as a:
        for raw in (b"\xff\xff\xff\xff" + bytes(100), hello()[:9], b"\0\0\0\x02\xc1\xc1"):
            stream = await stranger(a)
            await stream.send_all(raw)
            await rest_of(stream)
        assert a.counts.drops["oversize"] == 1 and a.counts.drops["hello_timeout"] == 1
        assert a.counts.drops["garbage"] == 1
        # Met, and then a frame of 4 GB.
        stream = await stranger(a)
        await stream.send_all(hello())
        await stream.receive_some()
        await stream.send_all(b"\xff\xff\xff\xff")
        await rest_of(stream)
        await until(lambda: a.counts.drops["oversize"] == 2)
        # Byte by byte, of the handshake already.
        host, _, port = a.addresses[0].rpartition(":")
        async with await trio.open_tcp_stream(host, int(port)) as plain:
            with trio.fail_after(60):
                try:
                    for byte in b"\x16\x03\x01\x02\x00" + bytes(40):
                        await plain.send_all(bytes([byte]))
                        await trio.sleep(0.02)
                    while await plain.receive_some():
                        pass
                except trio.BrokenResourceError:
                    pass
        assert a.counts.drops["hello_timeout"] + a.counts.drops["tls"] >= 2


async def test_a_flood_of_applicants_starves_no_member(swarm: Authority) -> None:
    """Some hundreds at once from one address, mute or asking, while members talk and come."""
    before = len(os.listdir("/proc/self/fd"))
    one, other, late = (member(swarm) for _ in range(3))
    limits = {"strangers_max": 16, "applicants_max": 4}
    async with running(one, **limits) as a, running(other, "127.0.0.2") as b:
        know(a, b)
        begun = 0

        async def slow(peer: str, body: bytes) -> bytes:
            nonlocal begun
            begun += 1
            return await trio.sleep_forever()

        a.handle_call("join", slow, applicants=True)
        assert await b.call(a.me, "echo", b"x", 5) == b"x"

        async def flood(n: int) -> None:
            host, _, port = a.addresses[0].rpartition(":")
            stream: Any = None
            try:
                if n % 2:
                    stream = await trio.open_tcp_stream(host, int(port), local_address="127.0.0.9")
                else:
                    stream = await stranger(a, "127.0.0.9")
                    await stream.send_all(hello(f"s{n}"))
                    await stream.receive_some()
                    await stream.send_all(encode(Call(1, "join", b"")))
                while await stream.receive_some():
                    pass
            except (OSError, trio.BrokenResourceError):
                pass
            finally:
                if stream is not None:
                    await trio.aclose_forcefully(stream)

        slowest = 0.0
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                for n in range(400):
                    nursery.start_soon(flood, n)
                for _ in range(20):
                    began = trio.current_time()
                    assert await b.call(a.me, "echo", b"x", 30) == b"x"
                    slowest = max(slowest, trio.current_time() - began)
                    await trio.sleep(0.01)
                # One that comes anew, and an honest applicant from elsewhere.
                async with running(late, "127.0.0.3") as c:
                    know(a, c)
                    assert await c.call(a.me, "echo", b"y", 30) == b"y"
                async with wires(str(uuid.uuid4()), UNPROVEN, "127.0.0.4") as d:
                    with pytest.raises(Refused, match="join it first"):
                        await d.call_address(a.addresses[0], "other", b"", 30, pin=swarm.pin)
                nursery.cancel_scope.cancel()
        assert slowest < 20
        assert a.counts.drops["flood"] > 0
        assert len(a._accepting._applicants._there) <= 4
    await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 3)


async def test_a_flood_costs_the_source_that_floods(swarm: Authority) -> None:
    """Who came first, from elsewhere, keeps its place: before the hello, and as an applicant."""
    async with running(member(swarm), strangers_max=4, applicants_max=3) as a:
        there: list[str] = []

        async def join(peer: str, body: bytes) -> bytes:
            there.append(peer)
            try:
                return await trio.sleep_forever()
            finally:
                there.remove(peer)

        a.handle_call("join", join, applicants=True)

        async def come(host: str) -> trio.SSLStream[Any]:
            stream = await stranger(a, host)
            await stream.send_all(hello())
            await stream.receive_some()
            before = a.counts.frames_in
            await stream.send_all(encode(Call(1, "join", b"")))
            await until(lambda: a.counts.frames_in > before)
            return stream

        streams = [await come(host) for host in ("127.0.0.2", *["127.0.0.9"] * 6)]
        await until(lambda: len(there) == 3)
        assert "127.0.0.2:" in there[0] and "127.0.0.9:" in there[1]
        host, _, port = a.addresses[0].rpartition(":")
        early = await trio.open_tcp_stream(host, int(port), local_address="127.0.0.2")
        mute = [
            await trio.open_tcp_stream(host, int(port), local_address="127.0.0.9") for _ in range(8)
        ]
        await until(lambda: a.counts.accepted == 7 + 9)
        late = trio.SSLStream(early, applicant_context())
        await late.do_handshake()
        await late.send_all(hello())
        assert await late.receive_some()
        for stream in (*streams, late, *mute):
            await trio.aclose_forcefully(stream)
    assert not there


async def test_applicants_of_one_address_come_so_often_and_no_more(swarm: Authority) -> None:
    limits = {"applicants_at_once": 2.0, "applicants_per_s": 0.001}
    async with (
        running(member(swarm), **limits) as a,
        wires(str(uuid.uuid4()), UNPROVEN, "127.0.0.2") as b,
        wires(str(uuid.uuid4()), UNPROVEN, "127.0.0.3") as c,
    ):
        a.handle_call("join", lambda peer, body: body, applicants=True)
        for _ in range(2):
            await b.call_address(a.addresses[0], "join", b"", 5, pin=swarm.pin)
        with pytest.raises(Unreachable, match="too many without a certificate") as caught:
            await b.call_address(a.addresses[0], "join", b"", 5, pin=swarm.pin)
        assert caught.value.facts["refused"] == "busy"
        await c.call_address(a.addresses[0], "join", b"", 5, pin=swarm.pin)


async def test_a_source_that_connects_all_the_time_costs_no_handshakes(swarm: Authority) -> None:
    async with running(member(swarm), accepts_at_once=5.0, accepts_per_s=0.001) as a:
        for n in range(8):
            host, _, port = a.addresses[0].rpartition(":")
            async with await trio.open_tcp_stream(host, int(port)) as plain:
                if n >= 5:
                    with trio.fail_after(60):
                        assert await plain.receive_some() == b""
        assert a.counts.drops["flood"] == 3


def test_sources_are_addresses_or_networks() -> None:
    assert source_of("10.0.0.1") == "10.0.0.1" != source_of("10.0.0.2")
    assert source_of("fe80::1%eth0") == source_of("fe80::2") != source_of("2001:db8::1")
    allowances = Allowances(per_s=1.0, burst=2.0, sources_max=3)
    assert [allowances.take("a", now) for now in (0, 0, 0, 0.5, 1.1, 1.2)] == [
        True, True, False, False, True, False,
    ]  # fmt: skip
    assert all(allowances.take(f"s{n}", 2.0) for n in range(10)) and len(allowances._left) == 3


def test_who_an_applicant_is() -> None:
    assert applicant_of("?127.0.0.1:80 me ? you") == Applicant("127.0.0.1:80", "me ? you")
    assert applicant_of("?") == Applicant("", "")
    assert applicant_of("") is None and applicant_of(str(uuid.uuid4())) is None


def test_certificates_are_verified_strictly(swarm: Authority) -> None:
    tls = tls_of(member(swarm))
    assert tls.server.verify_mode == ssl.CERT_OPTIONAL
    assert tls.client.verify_mode == ssl.CERT_REQUIRED
    for context in (tls.server, tls.client):
        assert context.verify_flags & ssl.VerifyFlags.VERIFY_X509_STRICT
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert len(context.get_ca_certs()) == 1
