"""Frames, hellos and the outbox of a connection: no socket, no clock."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.frames import (
    CHUNK_BYTES_MAX,
    Answer,
    Broken,
    Bye,
    Call,
    Data,
    Decoder,
    Frame,
    Hello,
    Note,
    Ping,
    Refusal,
    agree,
    append,
    encode,
    plain_facts,
)
from mesh.outbox import Outbox, Parcel

FACTS = st.dictionaries(
    st.text(max_size=8),
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(max_size=8),
    max_size=4,
)
IDS = st.integers(0, 2**62)
FRAMES: st.SearchStrategy[Frame] = st.one_of(
    st.builds(Note, st.binary(max_size=200)),
    st.builds(Call, IDS, st.text(min_size=1, max_size=20), st.binary(max_size=200)),
    st.builds(Answer, IDS, st.binary(max_size=200)),
    st.builds(Refusal, IDS, st.text(max_size=10), st.text(max_size=20), FACTS),
    st.builds(Ping, IDS),
)


@given(st.lists(FRAMES, max_size=20), st.data())
def test_frames_survive_any_cut(frames: list[Frame], data: st.DataObject) -> None:
    buffer = bytearray()
    for frame in frames:
        append(buffer, frame)
    decoder = Decoder(4096)
    got: list[Frame] = []
    while buffer:
        size = data.draw(st.integers(1, len(buffer)))
        got += decoder.feed(bytes(buffer[:size]))
        del buffer[:size]
    assert got == frames


@given(st.binary(max_size=300))
def test_garbage_is_told_or_waited_for_and_nothing_else(raw: bytes) -> None:
    decoder = Decoder(1000)
    try:
        for at in range(0, len(raw), 7):
            decoder.feed(raw[at : at + 7])
    except Broken as broken:
        assert broken.reason in ("garbage", "oversize")


def test_a_frame_of_four_gigabytes_is_refused_by_its_header() -> None:
    with pytest.raises(Broken, match="4294967295") as caught:
        Decoder(1024).feed(b"\xff\xff\xff\xff")
    assert caught.value.reason == "oversize"


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", b"\xc0", b"\x92\x63\x01", b"\x91\x03", b"\x92\x04\xa1x", b"\x91" * 5000,
     b"\x94\x08\x01\xa1\xff\xa0"],
)  # fmt: skip
def test_what_is_no_frame_is_garbage(body: bytes) -> None:
    with pytest.raises(Broken) as caught:
        Decoder(10_000).feed(struct.pack(">I", len(body)) + body)
    assert caught.value.reason == "garbage"


def test_fields_that_a_newer_node_adds_are_passed_over() -> None:
    body = b"\x93\x02\x07\xa3new"
    assert Decoder(100).feed(struct.pack(">I", len(body)) + body) == [Ping(7)]


def hello(node: str = "n1", oldest: int = 1, version: int = 1, cluster: str = "") -> Hello:
    return Hello(oldest, version, cluster, node, 1, 0, 1024, 1024)


@pytest.mark.parametrize(
    ("mine", "theirs", "version"),
    [((1, 1), (1, 1), 1), ((1, 2), (2, 3), 2), ((2, 3), (1, 2), 2), ((1, 1), (2, 3), None),
     ((3, 4), (1, 2), None)],
)  # fmt: skip
def test_adjacent_versions_talk_in_the_older(
    mine: tuple[int, int], theirs: tuple[int, int], version: int | None
) -> None:
    if version is not None:
        assert agree(hello("a", *mine), hello("b", *theirs)) == version
        return
    with pytest.raises(Broken) as caught:
        agree(hello("a", *mine), hello("b", *theirs))
    assert caught.value.reason == "version"


def test_swarms_do_not_mix_but_a_newcomer_may_talk() -> None:
    assert agree(hello(cluster="x"), hello("n2")) == 1
    with pytest.raises(Broken) as caught:
        agree(hello(cluster="x"), hello("n2", cluster="y"))
    assert caught.value.reason == "cluster"


def test_facts_travel_flat_short_and_few() -> None:
    facts = plain_facts({"n": 2**70, "list": [1, 2], "long": "x" * 9000, "ok": True, "f": 1.5})
    assert facts["n"] == str(2**70) and facts["list"] == "[1, 2]"
    assert facts["ok"] is True and facts["f"] == 1.5 and len(str(facts["long"])) <= 500
    assert len(plain_facts({str(n): n for n in range(1000)})) == 32


class Bulky:
    """Endless pieces with one name."""

    def __init__(self, number: int) -> None:
        self.number = number

    def fill(self, buffer: bytearray) -> bool:
        append(buffer, Data(self.number, bytes(CHUNK_BYTES_MAX)))
        return True


def taken(outbox: Outbox) -> list[Frame]:
    frames = Decoder(1 << 21).feed(bytes(outbox.take()))
    outbox.written()
    return frames


def test_urgent_frames_leave_together_in_order_and_before_bulk() -> None:
    outbox = Outbox(1 << 20, 1000)
    outbox.push_bulk(Bulky(1))
    for n in range(3):
        outbox.push(Ping(n))
    assert [type(frame) for frame in taken(outbox)] == [Ping, Ping, Ping, Data]
    outbox.push(Ping(9))
    assert taken(outbox)[0] == Ping(9)


def test_bulk_goes_in_turns_one_piece_a_write() -> None:
    outbox = Outbox(1 << 20, 1000)
    for number in (1, 2, 3):
        outbox.push_bulk(Bulky(number))
    order = [frame.id for _ in range(6) for frame in taken(outbox) if isinstance(frame, Data)]
    assert order == [1, 2, 3, 1, 2, 3]


def test_room_ends_with_bytes_or_frames_that_wait_or_are_being_written() -> None:
    outbox = Outbox(1000, 3)
    assert outbox.room(1000) and not outbox.room(1001)
    for _ in range(3):
        outbox.push(Ping(1))
    assert not outbox.room(1)
    outbox.take()
    assert not outbox.room(1)
    outbox.written()
    assert outbox.room(1000)
    parcel = Parcel(Call(1, "x", bytes(900)), 900)
    outbox.push_bulk(parcel)
    assert not outbox.room(200)
    parcel.withdraw()
    assert taken(outbox) == [] and not parcel.taken
    assert outbox.room(1000) and not outbox


def test_numbers_tell_which_urgent_frames_were_handed_over() -> None:
    outbox = Outbox(1000, 100)
    first = outbox.push(Ping(1))
    outbox.take()
    second = outbox.push(Bye("closing", ""))
    assert first <= outbox.taken < second


def test_encode_is_one_frame() -> None:
    assert Decoder(100).feed(bytes(encode(Ping(5)))) == [Ping(5)]
