"""Gossip on real sockets of 127.0.0.x, sealed as in a real swarm, beside real wires."""

from __future__ import annotations

import random
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass

import msgspec
import pytest
import trio

from mesh.frames import Broken
from mesh.gossip import SYNC_METHOD, Gossip, open_gossip
from mesh.gossip_sockets import open_sockets
from mesh.keyring import first_ring
from mesh.sealing import Sealing
from mesh.swim import (
    INCARNATION_MAX,
    LAN,
    Change,
    Event,
    MemberChanged,
    NotUsable,
    Self,
    State,
)
from mesh.transport import Transport
from mesh.wires import NotAllowed, Refused
from tests.wires import node, until

QUICK = msgspec.structs.replace(
    LAN, probe_interval_s=0.05, probe_timeout_s=0.1, probe_window_s=0.25, suspicion_min_s=0.4,
    gossip_interval_s=0.03, sync_interval_s=1.0, reconnect_interval_s=0.2, reconnect_sync_s=0.5,
)  # fmt: skip
CALM = msgspec.structs.replace(
    QUICK, probe_interval_s=0.2, probe_timeout_s=0.5, probe_window_s=1.0, gossip_interval_s=0.1,
)  # fmt: skip
"""For many nodes in one process."""
KEYS = bytes(range(32))


def id_of(n: int) -> str:
    return str(uuid.UUID(int=n + 1))


class PlainSealer:
    """No seal at all: the sender's id, and what it says."""

    def __init__(self, me: str) -> None:
        self.session = uuid.UUID(me).bytes
        self._me = me.encode()

    def seal(self, plain: bytes) -> bytes:
        return self._me + plain

    def open(self, packet: bytes) -> tuple[str, bytes]:
        if len(packet) < len(self._me):
            raise Broken("short", "too short for an id")
        return packet[: len(self._me)].decode(errors="replace"), packet[len(self._me) :]

    def allow(self, sender: str, session: bytes, floor: int = 0) -> None:
        assert session == uuid.UUID(sender).bytes

    def forget(self, sender: str) -> None: ...

    def heard(self, sender: str) -> tuple[bytes, int] | None:
        return None


@dataclass
class Node:
    id: str
    wires: Transport
    gossip: Gossip
    sealing: Sealing

    def state(self, of: Node | str) -> State | None:
        view = self.gossip.member(of if isinstance(of, str) else of.id)
        return None if view is None else view.state


@asynccontextmanager
async def gossiping(
    n: int, *, seeds: tuple[str, ...] = (), boot: int = 1, name: str = "", born: int = 0,
) -> AsyncIterator[Node]:  # fmt: skip
    id = id_of(n)
    session = random.Random(n * 1000 + boot).randbytes(16)
    sealing = Sealing(id, session, first_ring(KEYS))
    async with node(id, bind=f"127.0.0.{n + 1}:0") as wires:
        me = Self(id=id, boot=boot, name=name or f"node-{n}", addresses=wires.addresses, born=born)
        rng = random.Random(n)
        async with open_gossip(
            QUICK, me, wires, sealing, binds=wires.addresses, rng=rng, seeds=seeds,
            loopback_only=True,
        ) as gossip:  # fmt: skip
            yield Node(id, wires, gossip, sealing)


@asynccontextmanager
async def swarm(count: int) -> AsyncIterator[tuple[list[Node], list[AsyncExitStack]]]:
    """All have met, and know each other's wires."""
    async with AsyncExitStack() as outer:
        nodes: list[Node] = []
        stacks: list[AsyncExitStack] = []
        for n in range(count):
            seeds = nodes[0].wires.addresses if nodes else ()
            stacks.append(await outer.enter_async_context(AsyncExitStack()))
            nodes.append(await stacks[-1].enter_async_context(gossiping(n, seeds=seeds)))
        addresses = {each.id: each.wires.addresses for each in nodes}
        for each in nodes:
            each.wires.set_peers(addresses)
        await until(lambda: all(a.state(b) is State.ALIVE for a in nodes for b in nodes))
        yield nodes, stacks


async def test_nodes_meet_by_a_seed_and_measure_each_other() -> None:
    async with swarm(3) as (nodes, _):
        a, b, c = nodes
        await until(lambda: a.gossip.rtt(b.id) and a.gossip.rtt(c.id))
        rtt = a.gossip.rtt(b.id)
        assert rtt is not None
        assert 0 < rtt.min_s < 5
        await until(lambda: a.gossip.distance(b.id, c.id) is not None)
        assert {view.name for view in a.gossip.members()} == {"node-0", "node-1", "node-2"}
        assert not a.gossip.counts.dropped.keys() - {"unknown_session"}


async def test_a_node_that_is_gone_is_dead_soon_and_the_log_of_changes_says_so() -> None:
    async with swarm(3) as (nodes, stacks):
        a, b, c = nodes
        with a.gossip.changes() as changes:
            await stacks[2].aclose()
            told: list[Change] = []
            with trio.fail_after(60):
                async for event in changes:
                    if isinstance(event, MemberChanged) and event.member.id == c.id:
                        told.append(event.change)
                        if event.change is Change.DIED:
                            break
        assert told[-1] is Change.DIED
        await until(lambda: b.state(c) is State.DEAD)
        assert a.state(b) is not State.DEAD


async def test_a_restarted_node_is_back_with_a_session_of_its_own() -> None:
    async with swarm(3) as (nodes, stacks):
        a, b, c = nodes
        await stacks[2].aclose()
        async with gossiping(2, seeds=a.wires.addresses, boot=2) as again:
            addresses = {each.id: each.wires.addresses for each in (a, b, again)}
            for each in (a, b, again):
                each.wires.set_peers(addresses)
            session = again.sealing.session.hex()

            def know(it: Node) -> bool:
                view = it.gossip.member(c.id)
                return view is not None and view.tags["session"] == session

            await until(lambda: know(a) and know(b))
            await until(lambda: a.state(c) is State.ALIVE)
            before = a.gossip.rtt(c.id)
            await until(lambda: a.gossip.rtt(c.id) != before)


async def test_who_leaves_is_left_to_the_others() -> None:
    async with swarm(3) as (nodes, stacks):
        a, b, c = nodes
        assert await c.gossip.leave(30.0)
        await stacks[2].aclose()
        await until(lambda: a.state(c) is State.LEFT and b.state(c) is State.LEFT)


async def test_alone_a_leave_waits_for_nobody() -> None:
    async with gossiping(0) as only:
        with trio.fail_after(5):
            assert await only.gossip.leave(10.0)


async def test_tags_reach_the_others_and_the_event_of_a_change_tells_of_it() -> None:
    async with swarm(2) as (nodes, _):
        a, b = nodes
        changed = a.gossip.changed
        b.gossip.update_tags({"role": "voter"})
        with trio.fail_after(60):
            await changed.wait()
        view = a.gossip.member(b.id)
        assert view is not None
        assert view.tags["role"] == "voter"
        assert "session" in view.tags
        with pytest.raises(NotUsable, match="session"):
            b.gossip.update_tags({"session": "mine"})
        with pytest.raises(NotUsable, match="512"):
            b.gossip.update_tags({"x": "y" * 600})


async def test_who_was_removed_is_not_heard_any_more() -> None:
    async with swarm(2) as (nodes, _):
        a, b = nodes
        a.gossip.remove(b.id)
        assert a.state(b) is None
        await until(lambda: a.gossip.counts.dropped.get("unknown_session", 0) > 3)
        assert a.state(b) is None


async def test_a_node_whose_datagrams_do_not_pass_lives_by_its_connections() -> None:
    async with swarm(2) as (nodes, _):
        a, b = nodes
        real, b.sealing.seal = b.sealing.seal, lambda plain: b"lost"  # type: ignore[method-assign]
        await until(lambda: a.gossip.counts.udp_silent > 3)
        await until(lambda: a.state(b) is State.ALIVE)
        b.sealing.seal = real  # type: ignore[method-assign]


async def test_hostile_packets_are_dropped_and_counted_and_gossip_goes_on() -> None:
    async with swarm(2) as (nodes, _):
        a, b = nodes
        host, _, port = a.wires.addresses[0].rpartition(":")
        rng = random.Random(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            for size in (0, 1, 20, 77, 1000, 1400, 1401, 9000):
                stranger.sendto(rng.randbytes(size), (host, int(port)))
            packet = b.sealing.seal(b"\x01\x90")
            for _ in range(5):
                stranger.sendto(packet, (host, int(port)))
            stranger.sendto(packet[:-1], (host, int(port)))
        await until(lambda: a.gossip.counts.dropped.get("replayed", 0) >= 4)
        dropped = a.gossip.counts.dropped
        assert dropped["short"] >= 3
        assert dropped["too_long"] == 2
        assert {"version", "unknown_key"} & set(dropped)
        before = a.gossip.counts.probes
        await until(lambda: a.gossip.counts.probes > before + 3)
        await until(lambda: a.state(b) is State.ALIVE)


async def test_what_was_recorded_before_a_restart_cannot_be_played_to_it() -> None:
    """Whoever answers its first sync has heard further packets of the same session."""
    async with swarm(3) as (nodes, stacks):
        b, c, _ = nodes
        old = [b.sealing.seal(b"\x01\x90") for _ in range(3)]
        b.sealing.counter += 5_000

        def heard() -> bool:
            of = c.sealing.heard(b.id)
            return of is not None and of[1] > 5_000

        await until(heard)
        await stacks[2].aclose()
        async with gossiping(2, seeds=c.wires.addresses, boot=2) as again:
            await until(lambda: again.state(b) is State.ALIVE)
            host, _, port = again.wires.addresses[0].rpartition(":")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
                for packet in old:
                    stranger.sendto(packet, (host, int(port)))
            await until(lambda: again.gossip.counts.dropped.get("replayed", 0) == 3)


async def test_a_sync_that_is_none_is_refused() -> None:
    async with swarm(2) as (nodes, _):
        a, b = nodes
        for body in (b"", b"\x93", msgspec.msgpack.encode([True, b"\x00"]), bytes(800_000)):
            with pytest.raises(Refused):
                await a.wires.call(b.id, SYNC_METHOD, body, 2.0)


async def test_a_reader_of_changes_who_falls_behind_is_told_by_the_end() -> None:
    async with gossiping(0) as only:
        with only.gossip.changes() as changes:
            event = MemberChanged(Change.UPDATED, only.gossip.me)
            for _ in range(2_000):
                only.gossip._tell(event)
            read: list[Event] = []
            with trio.fail_after(60):
                async for each in changes:
                    read.append(each)
        assert len(read) == 1_024


async def test_readers_of_changes_have_a_bound() -> None:
    async with gossiping(0) as only:
        with ExitStack() as stack:
            for _ in range(64):
                stack.enter_context(only.gossip.changes())
            with pytest.raises(Refused), only.gossip.changes():
                pass
        with only.gossip.changes():
            pass


async def test_a_packet_leaves_only_where_it_may() -> None:
    sockets = open_sockets(["127.0.0.1:0"], loopback_only=True)
    try:
        assert sockets.send("192.0.2.1:9", b"x") == "not_loopback"
        assert sockets.send(("192.0.2.1", 9), b"x") == "not_loopback"
        assert sockets.send("[::1]:9", b"x") == "no_socket"
        assert sockets.send("no.such.name.invalid:9", b"x") == "unresolved"
        assert sockets.send("nonsense", b"x") == "unresolved"
        assert sockets.send("127.0.0.1:9", b"x") is None
    finally:
        sockets.close()


async def test_a_name_is_looked_up_and_then_serves() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver:
        receiver.bind(("127.0.0.1", 0))
        receiver.setblocking(False)
        address = f"localhost:{receiver.getsockname()[1]}"
        sockets = open_sockets(["127.0.0.1:0"], loopback_only=True)
        try:
            async with trio.open_nursery() as nursery:
                sockets.begin(nursery)
                assert sockets.send(address, b"x") == "unresolved"
                await until(lambda: sockets.send(address, b"found") is None)
                with trio.fail_after(60):
                    await trio.lowlevel.wait_readable(receiver)
                assert receiver.recv(10) == b"found"
        finally:
            sockets.close()


@pytest.mark.parametrize("bind", ["192.0.2.1:0", "localhost:0"])
async def test_datagrams_are_bound_to_numbers_and_without_tls_to_loopback(bind: str) -> None:
    with pytest.raises(NotAllowed):
        open_sockets([bind], loopback_only=True)


async def test_ten_nodes_without_seals_meet_and_lose_one() -> None:
    async with AsyncExitStack() as stack:
        gossips: list[Gossip] = []
        last = AsyncExitStack()
        first: tuple[str, ...] = ()
        for n in range(10):
            id = id_of(n)
            inner = last if n == 9 else stack
            wires = await inner.enter_async_context(node(id, bind=f"127.0.0.{n + 1}:0"))
            first = first or wires.addresses
            me = Self(id=id, boot=1, name=id, addresses=wires.addresses)
            opening = open_gossip(
                CALM, me, wires, PlainSealer(id), binds=wires.addresses, rng=random.Random(n),
                seeds=first, loopback_only=True,
            )  # fmt: skip
            gossips.append(await inner.enter_async_context(opening))
        await until(lambda: all(len(gossip.members()) == 10 for gossip in gossips))
        await last.aclose()

        def dead() -> bool:
            views = [gossip.member(id_of(9)) for gossip in gossips[:9]]
            return all(view is not None and view.state is State.DEAD for view in views)

        await until(dead)


async def test_of_two_hosts_of_one_name_all_say_who_keeps_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever does not know yet when it was taken in counts as the youngest, until it does."""
    with trio.fail_after(60):
        async with gossiping(0, name="web", born=INCARNATION_MAX) as a:
            async with gossiping(1, seeds=a.wires.addresses, name="web", born=7) as b:
                both = {"web": (b.id, a.id)}
                for one in (a, b):
                    await until(lambda one=one: one.gossip.namesakes() == both)
                a.gossip.be_born(3)
                both = {"web": (a.id, b.id)}
                for one in (a, b):
                    await until(lambda one=one: one.gossip.namesakes() == both)
                assert a.gossip.double == b.gossip.double == ()
                await b.gossip.leave()
                await until(lambda: a.gossip.namesakes() == {})
    said = [r for r in caplog.records if "several members have one name" in r.message]
    assert {getattr(r, "kept_by", "") for r in said} == {a.id, b.id}
