"""Sealed packets: taken once, from sessions that were told of; all else has a reason."""

from __future__ import annotations

import os
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import sealing
from mesh.frames import Broken
from mesh.keyring import first_ring, key_id_of
from mesh.sealing import (
    PACKET_BYTES_MAX,
    PLAIN_BYTES_MAX,
    WINDOW,
    Sealing,
    UnknownSession,
)

A = "aaaaaaaa-0000-4000-8000-000000000001"
B = "bbbbbbbb-0000-4000-8000-000000000002"
C = "cccccccc-0000-4000-8000-000000000003"
KEY, NEXT = b"k" * 32, b"n" * 32
RING = first_ring(KEY)


def pair() -> tuple[Sealing, Sealing]:
    a, b = (Sealing(node, node[:16].encode(), RING) for node in (A, B))
    a.allow(B, b.session)
    b.allow(A, a.session)
    return a, b


def reason(receiver: Sealing, packet: bytes) -> str:
    with pytest.raises(Broken) as caught:
        receiver.open(packet)
    return caught.value.reason


@given(st.binary(max_size=PLAIN_BYTES_MAX))
def test_what_is_sealed_is_opened_once(plain: bytes) -> None:
    a, b = pair()
    packet = a.seal(plain)
    assert len(packet) <= PACKET_BYTES_MAX
    assert b.open(packet) == (A, plain)
    assert reason(b, packet) == "replayed"
    assert a.open(b.seal(plain)) == (B, plain)


@given(st.data())
def test_a_bit_that_changed_a_cut_or_a_tail_is_refused_and_the_true_one_still_taken(
    data: st.DataObject,
) -> None:
    a, b = pair()
    packet = a.seal(b"alive")
    at = data.draw(st.integers(0, len(packet) - 1))
    changed = bytearray(packet)
    changed[at] ^= 1 << data.draw(st.integers(0, 7))
    assert reason(b, bytes(changed)) in {"version", "unknown_key", "forged", "replayed"}
    assert reason(b, packet[:at]) in {"short", "forged"}
    assert reason(b, packet + data.draw(st.binary(min_size=1, max_size=99))) == "forged"
    assert b.open(packet) == (A, b"alive")


@given(st.binary(max_size=1500))
def test_any_bytes_are_dropped(raw: bytes) -> None:
    _, b = pair()
    with pytest.raises(Broken):
        b.open(raw)
    with pytest.raises(Broken):
        b.open(b"\x01" + key_id_of(KEY) + raw)


def test_bounds() -> None:
    a, b = pair()
    assert reason(b, b"") == "short"
    assert reason(b, a.seal(b"")[:-1]) == "short"
    assert reason(b, bytes(PACKET_BYTES_MAX + 1)) == "too_long"
    with pytest.raises(ValueError, match="a packet takes 1339"):
        a.seal(bytes(PLAIN_BYTES_MAX + 1))


def test_packets_may_come_in_any_order_within_the_window() -> None:
    a, b = pair()
    rng = random.Random(3)
    packets = [a.seal(bytes([n % 256])) for n in range(5000)]
    late: list[bytes] = []
    taken = 0
    for at in range(0, len(packets), 500):
        part = packets[at : at + 500]
        rng.shuffle(part)
        late.append(part.pop())
        for packet in part:
            b.open(packet)
            taken += 1
    assert taken == 4990
    outcomes = []
    for packet in late:
        try:
            b.open(packet)
            outcomes.append(True)
        except Broken as broken:
            assert broken.reason == "replayed"
            outcomes.append(False)
    assert outcomes == [False] * 8 + [True] * 2 or outcomes == [False] * 7 + [True] * 3
    for packet in packets:
        assert reason(b, packet) == "replayed"


@given(st.lists(st.integers(1, 3000), max_size=60))
def test_the_window_is_a_set_that_forgets_what_is_far_behind(order: list[int]) -> None:
    session = sealing._Session(b"")
    taken: set[int] = set()
    for counter in order:
        highest = max(taken, default=0)
        assert session.is_new(counter) == (
            counter not in taken and (counter > highest or highest - counter < WINDOW)
        )
        if session.is_new(counter):
            session.take(counter)
            taken.add(counter)


def test_the_window_to_its_last_place() -> None:
    session = sealing._Session(b"")
    for counter in (1, WINDOW):
        session.take(counter)
    assert not session.is_new(1) and session.is_new(2) and not session.is_new(0)
    session.take(WINDOW + 1)
    assert not session.is_new(1) and session.is_new(2)
    session.take(WINDOW + 2)
    assert not session.is_new(2) and session.is_new(3)


def test_a_session_that_was_not_told_of_is_authentic_and_not_taken() -> None:
    a, b = pair()
    restarted = Sealing(A, os.urandom(16), RING)
    packet = restarted.seal(b"alive")
    with pytest.raises(UnknownSession) as caught:
        b.open(packet)
    assert (caught.value.sender, caught.value.session) == (A, restarted.session)
    assert caught.value.reason == "unknown_session"
    # Only what is authentic is a reason to ask anybody anything.
    assert reason(b, packet[:-1] + bytes([packet[-1] ^ 1])) == "forged"
    b.allow(A, restarted.session)
    assert b.open(packet) == (A, b"alive")
    assert reason(b, a.seal(b"old")) == "unknown_session"


def test_a_session_that_is_named_again_is_not_taken_twice() -> None:
    a, b = pair()
    packet = a.seal(b"x")
    b.open(packet)
    b.allow(A, os.urandom(16))
    b.allow(A, a.session)
    assert reason(b, packet) == "replayed"
    b.forget(A)
    assert reason(b, a.seal(b"y")) == "unknown_session" and b.heard(A) is None
    b.allow(A, a.session)
    assert reason(b, packet) == "replayed"
    assert b.open(a.seal(b"z")) == (A, b"z")


def test_what_was_recorded_before_a_restart_is_not_played_to_it_again() -> None:
    a, _ = pair()
    c = Sealing(C, os.urandom(16), RING)
    c.allow(A, a.session)
    recorded = [a.seal(bytes([n % 256])) for n in range(3000)]
    for packet in recorded:
        c.open(packet)
    heard = c.heard(A)
    assert heard == (a.session, 3000)
    again = Sealing(B, os.urandom(16), RING)
    again.allow(A, heard[0], floor=heard[1] - WINDOW)
    for packet in recorded[: 3000 - WINDOW]:
        assert reason(again, packet) == "replayed"
    assert again.open(a.seal(b"new")) == (A, b"new")
    # Told later, as with packets that are there already.
    again.allow(A, heard[0], floor=3000)
    assert reason(again, recorded[-1]) == "replayed"
    assert again.open(a.seal(b"newer")) == (A, b"newer")
    # A floor of nothing takes nothing away.
    again.allow(A, heard[0], floor=-WINDOW)
    assert again.open(a.seal(b"newest")) == (A, b"newest")


def test_a_key_is_changed_between_two_packets_and_none_is_lost() -> None:
    a, b = pair()
    both = RING.add(NEXT)
    turned = both.promote(key_id_of(NEXT))
    alone = turned.retire(key_id_of(KEY))
    early = a.seal(b"early")
    b.use(both)
    assert b.open(a.seal(b"1")) == (A, b"1")
    a.use(turned)
    late = a.seal(b"2")
    assert b.open(late) == (A, b"2")
    # What was sealed with the old key and is on its way is taken as long as the key is there.
    assert b.open(early) == (A, b"early")
    assert reason(b, late) == "replayed"
    b.use(alone)
    assert reason(b, early) == "unknown_key"
    assert b.open(a.seal(b"3")) == (A, b"3")
    assert reason(Sealing(C, os.urandom(16), RING), a.seal(b"")) == "unknown_key"
    assert b.keyring is alone


def test_another_swarms_packets_and_ones_own_are_dropped() -> None:
    a, b = pair()
    other = Sealing(A, a.session, first_ring(b"o" * 32))
    assert reason(b, other.seal(b"x")) == "unknown_key"
    assert reason(a, a.seal(b"x")) == "mine"
    # The id of a key alone opens nothing.
    forged = bytearray(other.seal(b"x"))
    forged[1:5] = key_id_of(KEY)
    assert reason(b, bytes(forged)) == "forged"
    assert reason(b, bytes(forged[:5]) + bytes(100)) == "forged"


def test_senders_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "SENDERS_MAX", 10)
    _, b = pair()
    for n in range(100):
        b.allow(f"{n:08x}-0000-4000-8000-000000000000", os.urandom(16))
    assert len(b._known) == 10
    b.allow(B, os.urandom(16))
    assert len(b._known) == 10


def test_only_ids_and_whole_sessions_are_taken() -> None:
    with pytest.raises(ValueError, match="no node id"):
        Sealing("a", bytes(16), RING)
    with pytest.raises(ValueError, match="16 bytes"):
        Sealing(A, b"", RING)
    with pytest.raises(ValueError, match="16 bytes"):
        pair()[0].allow(B, b"short")
