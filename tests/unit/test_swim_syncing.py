"""Syncs at a size: compared as bytes, heard in parts, told of few where many ask."""

from __future__ import annotations

import random
from collections.abc import Iterable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.swim import LAN, Change, Dropped, MemberChanged, Self, Settings, State, Swim, syncing
from mesh.swim.alarms import NEVER, Alarms
from mesh.swim.messages import (
    SPOKEN,
    Alive,
    Dead,
    Entry,
    Left,
    Message,
    Suspect,
    SyncAnswer,
    SyncAsk,
    decode_answer,
    decode_ask,
    encode,
    encode_sync,
    pack,
)
from mesh.swim.roster import Roster
from mesh.swim.seeds import Seeds
from mesh.swim.syncing import AT_ONCE

LIFE = 1 << 20
LONG_S = 3600.0


def alive(id: str, incarnation: int = LIFE, name: str = "", born: int = 0) -> Alive:
    return Alive(id, incarnation, name or id, (id,), {"v": "1"}, born, 1, 1)


def swim(id: str = "me", *, seed: int = 5, settings: Settings = LAN) -> Swim:
    me = Self(id=id, boot=1, name=id, addresses=(id,), tags={"v": "1"})
    return Swim(settings, me, 0.0, random.Random(seed))


def tale(by: str, others: Iterable[Alive], age_s: float = LONG_S) -> bytes:
    entries = [Entry(State.ALIVE, msgspec.Raw(encode(alive(by))))]
    entries += [Entry(State.ALIVE, msgspec.Raw(encode(words)), age_s) for words in others]
    return encode_sync(SyncAnswer(SPOKEN, tuple(entries)))


def some(count: int, first: int = 0) -> list[Alive]:
    return [alive(f"n{n:05}") for n in range(first, first + count)]


def run(one: Swim, start: float, end: float) -> None:
    while one.next_deadline() <= end:
        one.tick(max(start, one.next_deadline()))


def told_of(one: Swim, until: float) -> set[str]:
    """Whom its datagrams speak of, in a swarm of at least one other."""
    said = b""
    while one.next_deadline() <= until:
        one.tick(one.next_deadline())
        said += b"".join(datagram.payload for datagram in one.take().datagrams)
    return {view.id for view in one.members() if encode(alive(view.id))[2:] in said}


# In parts


def test_a_long_tale_is_heard_in_parts_each_in_a_turn_of_its_own() -> None:
    one, count = swim(), 3 * AT_ONCE
    one.take()
    one.sync_done(0.0, "you", tale("you", some(count)))
    parts = []
    while (events := one.take().events) and len(one.members()) < count + 2:
        parts.append(len(events))
        one.tick(one.next_deadline())
    assert max(parts) <= AT_ONCE
    run(one, 0.0, 0.1)
    assert len(one.members()) == count + 2


def test_of_tales_without_end_no_more_is_kept_than_there_may_be_members() -> None:
    one = swim(settings=msgspec.structs.replace(LAN, members_max=500))
    for number in range(20):
        one.sync_done(0.0, "you", tale("you", some(400, 400 * number)))
    run(one, 0.0, 1.0)
    assert len(one.members()) == 501


@pytest.mark.parametrize(
    "raw", [encode(Left("x", 1)), msgspec.msgpack.encode([4, "x"]), msgspec.msgpack.encode(7)]
)
def test_one_member_of_whom_garbage_is_told_spoils_no_more_than_that(raw: bytes) -> None:
    words = [alive("you"), *some(40)]
    entries = [Entry(State.ALIVE, msgspec.Raw(encode(each))) for each in words]
    entries.insert(20, Entry(State.ALIVE, msgspec.Raw(raw)))
    one = swim()
    one.sync_done(0.0, "you", encode_sync(SyncAnswer(SPOKEN, tuple(entries))))
    assert len(one.members()) == 42
    assert one.counts.dropped == {"garbage": 1}
    asked = swim()
    with pytest.raises(Dropped, match="words"):
        asked.sync_answer(0.0, "you", encode_sync(SyncAsk(SPOKEN, tuple(entries))))
    assert len(asked.members()) == 1


# As bytes

MEMBERS = st.lists(
    st.tuples(st.integers(0, 25), st.integers(0, 2), st.sampled_from("asdlx")), max_size=30
)


def knowing(id: str, heard: list[tuple[int, int, str]]) -> Swim:
    one = swim(id)
    for number, life, what in heard:
        words = alive(f"n{number}", LIFE + life)
        said: dict[str, list[Message]] = {
            "a": [words],
            "s": [words, Suspect(words.id, words.incarnation, ("x",))],
            "d": [words, Dead(words.id, words.incarnation, "x")],
            "l": [words, Left(words.id, words.incarnation)],
            "x": [words, Suspect(words.id, words.incarnation + 1, ("x",))],
        }
        payload = pack(SPOKEN, [encode(message) for message in said[what]])
        one.receive(0.0, "other", "other", payload)
    return one


@given(MEMBERS, MEMBERS)
def test_what_is_compared_as_bytes_comes_out_as_what_is_read(
    here: list[tuple[int, int, str]], there: list[tuple[int, int, str]]
) -> None:
    found = []
    for compared_from in (0, 10**9):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(syncing, "_COMPARED_FROM", compared_from)
            asking, asked = knowing("me", here), knowing("you", there)
            answer = asked.sync_answer(1.0, "me", asking.sync_ask(1.0))
            asking.sync_done(1.0, "you", answer)
            told = sorted((e.state, bytes(e.words)) for e in decode_answer(answer, 10**6).entries)
            found.append((
                sorted((v.id, v.state, v.incarnation) for v in asking.members()),
                sorted((v.id, v.state, v.incarnation) for v in asked.members()),
                told,
            ))  # fmt: skip
    assert found[0] == found[1]


def test_what_both_know_is_told_by_neither() -> None:
    one, other = swim("me"), swim("you")
    for each, peer in ((one, "you"), (other, "me")):
        each.sync_done(0.0, peer, tale(peer, some(200)))
        run(each, 0.0, 0.1)
        each.take()
    answer = other.sync_answer(1.0, "me", one.sync_ask(1.0))
    assert len(decode_answer(answer, 10**6).entries) == 1
    one.sync_done(1.0, "you", answer)
    assert not one.take().events and not other.take().events


# Of few


def test_who_told_much_of_late_tells_the_next_of_few() -> None:
    one = swim(settings=msgspec.structs.replace(LAN, sync_answers_bytes_s=20_000))
    one.sync_done(0.0, "you", tale("you", some(500)))
    run(one, 0.0, 0.1)
    lengths = []
    for number in range(6):
        answer = one.sync_answer(1.0, f"new{number}", swim(f"new{number}").sync_ask(1.0))
        lengths.append(len(decode_answer(answer, 10**6).entries))
    assert lengths[0] > 500
    assert 2 <= max(lengths[1:]) <= 33
    later = one.sync_answer(9.0, "late", swim("late").sync_ask(9.0))
    assert len(decode_answer(later, 10**6).entries) > 500


def test_who_learnt_much_asks_on_soon_and_who_did_not_waits() -> None:
    one = swim()
    one.sync_done(0.0, "you", tale("you", some(100)))
    asked = []
    while one.next_deadline() < 20:
        now = one.next_deadline()
        one.tick(now)
        asked += [(now, wanted.peer) for wanted in one.take().syncs if wanted.peer]
        if len(asked) == 1:  # it is told of a hundred more
            asked.append((now, ""))
            one.sync_done(now, "you", tale("you", some(100, 100)))
    at = [when for when, peer in asked if peer]
    assert len(at) == 2, "and then it waits for as long as usual"
    assert at[0] <= 3.0 and 1.0 <= at[1] - at[0] <= 3.1


# What is news


def test_a_newcomer_does_not_tell_of_those_who_were_there_before_it() -> None:
    one = swim()
    one.sync_done(0.0, "you", tale("you", some(60)))
    assert told_of(one, 0.9) <= {"me", "you"}


def test_whom_it_has_long_known_a_node_tells_of_to_nobody() -> None:
    one = swim()
    one.take()
    one.knew(0.0, [*some(60), alive("me")])
    assert len(one.members()) == 61
    assert not one.take().events
    assert told_of(one, 0.9) == {"me"}


def test_of_those_who_joined_just_now_a_newcomer_tells() -> None:
    one = swim()
    one.sync_done(0.0, "you", tale("you", some(60), age_s=1.0))
    assert len(told_of(one, 5.0)) > 50


def test_who_is_no_newcomer_tells_of_a_swarm_that_it_meets() -> None:
    one = swim()
    one.sync_done(0.0, "you", tale("you", some(60)))
    one.sync_done(0.1, "you", tale("you", []))
    one.sync_done(0.2, "they", tale("they", some(60, 60)))
    told = told_of(one, 5.0)
    assert len(told) > 50 and not told & {words.id for words in some(60)}


# Names, seeds, alarms


@given(st.lists(st.tuples(st.sampled_from("awdf"), st.integers(0, 5), st.sampled_from("xyz"))))
def test_shared_names_are_those_that_several_of_the_living_have(
    steps: list[tuple[str, int, str]],
) -> None:
    roster = Roster(alive("me", name="x"), 0.0, 100, random.Random(1))
    for what, number, name in steps:
        id = f"n{number}"
        member = roster.get(id)
        if member is None:
            roster.add(alive(id, name=name, born=number), State.ALIVE, 0.0)
        elif what == "a":
            roster.become(member, State.ALIVE, 0.0)
        elif what == "w":
            roster.reword(member, alive(id, name=name, born=number))
        elif what == "d":
            roster.become(member, State.DEAD, 0.0)
        else:
            roster.forget(member)
        named: dict[str, list[str]] = {}
        for one in (roster.me, *sorted(roster, key=lambda member: member.words.born)):
            if one.living:
                named.setdefault(one.words.name, []).append(one.id)
        for name_of, ids in named.items():
            ids.sort(key=lambda id: (0, id) if id == "me" else (int(id[1:]), id))
            member = roster.me if ids[0] == "me" else roster.get(ids[0])
            assert member is not None
            assert roster.namesakes(member) == ids
            assert roster.name_kept_by(member) is None
            for other in ids[1:]:
                rival = roster.me if other == "me" else roster.get(other)
                assert rival is not None and roster.name_kept_by(rival) == ids[0]
            assert (name_of in roster.shared_names()) == (len(ids) > 1)
        assert set(roster.shared_names()) == {n for n, ids in named.items() if len(ids) > 1}


def test_a_seed_is_met_while_somebody_lives_there() -> None:
    roster = Roster(alive("me"), 0.0, 100, random.Random(1))
    seeds = Seeds(roster, ["a", "me", "b"], random.Random(1))
    assert {seeds.unmet() for _ in range(4)} == {"a", "b"}
    a = roster.add(alive("a"), State.ALIVE, 0.0)
    assert {seeds.unmet() for _ in range(4)} == {"b"}
    b = roster.add(alive("b"), State.ALIVE, 0.0)
    assert seeds.unmet() is None
    roster.become(a, State.DEAD, 1.0)
    assert seeds.unmet() == "a"
    roster.become(a, State.ALIVE, 1.0)
    roster.forget(b)
    assert seeds.unmet() == "b", "though it was alive when it was removed"
    seeds.replace([])
    assert seeds.unmet() is None


def test_an_alarm_may_be_brought_forward_and_not_put_off() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set_by("a", 5.0)
    alarms.set_by("a", 9.0)
    assert alarms.next() == 5.0
    alarms.set_by("a", 2.0)
    assert alarms.pop(9.0) == "a"
    assert alarms.next() == NEVER


def test_a_sync_tells_of_a_member_what_was_last_said_of_it() -> None:
    one = knowing("me", [(1, 0, "x"), (2, 0, "a")])
    entries = {e.state: e for e in decode_ask(one.sync_ask(1.0), 10**6).entries[1:]}
    assert encode(alive("n1", LIFE + 1)) == bytes(entries[State.SUSPECT].words)
    assert encode(alive("n2")) == bytes(entries[State.ALIVE].words)


def test_changes_are_told_once_for_each_of_a_long_tale() -> None:
    one = swim()
    one.take()
    for _ in range(3):
        one.sync_done(0.0, "you", tale("you", some(300)))
    joined: list[str] = []
    while one.next_deadline() < 0.2:
        joined += [e.member.id for e in one.take().events
                   if isinstance(e, MemberChanged) and e.change is Change.JOINED]  # fmt: skip
        one.tick(one.next_deadline())
    joined += [e.member.id for e in one.take().events if isinstance(e, MemberChanged)]
    assert len(joined) == len({*joined}) == 301
