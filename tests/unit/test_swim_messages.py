"""What comes over the network is taken, or dropped with a reason; nothing else comes of it."""

from __future__ import annotations

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.swim import LAN, Dropped, NotUsable, Self, Swim
from mesh.swim.messages import (
    ADDRESS_CHARS_MAX,
    ADDRESSES_MAX,
    ALIVE_BYTES_MAX,
    INCARNATION_MAX,
    VERSION,
    Ack,
    Alive,
    Dead,
    Left,
    Message,
    Nack,
    Ping,
    PingFor,
    Suspect,
    SyncAsk,
    Who,
    check_alive,
    decode_answer,
    decode_ask,
    encode,
    encode_sync,
    pack,
    unpack,
)

ids = st.sampled_from(["me", "a", "b", "c", "x" * 128])
numbers = st.integers(0, 2**32 - 1)
incarnations = st.integers(0, INCARNATION_MAX)
accusers = st.lists(ids, max_size=4).map(tuple)
addresses = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=ADDRESSES_MAX)
tags = st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=4)
alives = st.builds(
    Alive, ids, incarnations, st.text(min_size=1, max_size=20), addresses.map(tuple), tags,
    incarnations, st.integers(0, 3), st.integers(0, 3),
)  # fmt: skip
any_message = st.one_of(
    st.builds(Ping, numbers, ids),
    st.builds(PingFor, numbers, ids),
    st.builds(Ack, numbers, st.binary(max_size=44)),
    st.builds(Nack, numbers),
    alives,
    st.builds(Suspect, ids, incarnations, accusers, accusers, accusers),
    st.builds(Dead, ids, incarnations, ids),
    st.builds(Left, ids, incarnations),
    st.just(Who()),
)


@given(st.lists(any_message, max_size=20))
def test_what_was_packed_is_unpacked(messages: list[Message]) -> None:
    payload = pack(VERSION, [encode(message) for message in messages])
    if len(payload) <= 2_048:
        assert unpack(payload) == (messages, 0)


@given(st.binary(max_size=200))
def test_no_bytes_bring_it_down(noise: bytes) -> None:
    for read in (unpack, lambda it: decode_ask(it, 150), lambda it: decode_answer(it, 150)):
        try:
            read(noise)
        except Dropped as dropped:
            assert dropped.reason in ("size", "version", "garbage")


@given(
    st.lists(
        st.tuples(
            st.floats(0, 3), st.sampled_from(["a", "b", "me", "z"]),
            st.lists(any_message, max_size=4), st.binary(max_size=3),
        ),
        max_size=30,
    ),
    st.integers(0, 100),
)  # fmt: skip
def test_whatever_members_say_the_core_stands_and_stays_within_its_bounds(
    heard: list[tuple[float, str, list[Message], bytes]], seed: int
) -> None:
    me = Self(id="me", boot=1, name="me", addresses=("me",))
    swim = Swim(LAN, me, 0.0, random.Random(seed))
    now = 0.0
    for wait_s, sender, messages, noise in heard:
        now += wait_s
        payload = pack(VERSION, [encode(message) for message in messages]) + noise
        swim.receive(now, sender, sender, payload)
        while swim.next_deadline() <= now:
            swim.tick(now)
        out = swim.take()
        assert all(len(datagram.payload) <= LAN.payload_bytes_max for datagram in out.datagrams)
        assert swim.next_deadline() >= now
        assert swim.me.incarnation <= INCARNATION_MAX
        assert len(swim.members()) <= 10
    decode_ask(swim.sync_ask(now), LAN.sync_bytes_max)


def test_the_largest_member_fits_into_a_datagram() -> None:
    words = Alive("i" * 36, 2**61, "n" * 60, ("a" * 40,) * 4, {"t": "x" * 500}, 2**61, 1, 1)
    assert 600 < len(check_alive(words)) <= ALIVE_BYTES_MAX < LAN.payload_bytes_max


def test_a_member_that_does_not_fit_is_refused() -> None:
    words = Alive(
        "i" * 128, 1, "n" * 128, ("a" * ADDRESS_CHARS_MAX,) * 4, {"t": "x" * 400}, 0, 1, 1
    )
    with pytest.raises(NotUsable, match="together"):
        check_alive(words)


def test_a_sync_over_its_bound_is_dropped_unread() -> None:
    body = encode_sync(SyncAsk(VERSION, ()))
    with pytest.raises(Dropped) as dropped:
        decode_ask(body + bytes(100), 50)
    assert dropped.value.reason == "size"


def test_a_sync_of_another_version_is_dropped() -> None:
    body = msgspec.msgpack.encode([0, VERSION + 1, []])
    with pytest.raises(Dropped) as dropped:
        decode_ask(body, 1000)
    assert dropped.value.reason == "version"
