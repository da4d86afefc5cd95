"""Swim as its owner sees it: calls and time go in, datagrams and events come out."""

from __future__ import annotations

import random

import msgspec
import pytest

from mesh.swim import (
    LAN,
    Change,
    Datagram,
    Dropped,
    Knocked,
    MemberChanged,
    NameConflict,
    NotUsable,
    OwnIdTaken,
    Self,
    Settings,
    State,
    Swim,
    SyncWanted,
)
from mesh.swim.messages import (
    INCARNATION_MAX,
    SPOKEN,
    TAGS_BYTES_MAX,
    VERSION,
    Ack,
    Alive,
    Dead,
    Entry,
    Left,
    Message,
    Nack,
    Ping,
    PingFor,
    Suspect,
    SyncAnswer,
    Who,
    encode,
    encode_sync,
    pack,
    unpack,
)

LIFE = 1 << 20
"""The first incarnation of a node's first boot."""


def alive(id: str, incarnation: int = LIFE, **more: object) -> Alive:
    words = {"name": id, "addresses": (id,), "tags": {}, "born": 0, **more}
    return Alive(id, incarnation, version_oldest=1, version=1, **words)  # type: ignore[arg-type]


class One:
    """A Swim called "me", and what it wants done since the last look."""

    def __init__(self, *others: str, settings: Settings = LAN, seeds: tuple[str, ...] = ()) -> None:
        self.now = 0.0
        me = Self(id="me", boot=1, name="me", addresses=("me",))
        self.swim = Swim(settings, me, self.now, random.Random(5), seeds)
        for other in others:
            self.hear(other, alive(other))
        self.swim.take()

    def hear(self, sender: str, *messages: Message) -> None:
        payload = pack(VERSION, [encode(message) for message in messages])
        self.swim.receive(self.now, sender, ("192.0.2.1", 8473), payload)

    def until(self, time: float) -> list[Datagram]:
        """As a loop that is never late."""
        sent: list[Datagram] = []
        while self.swim.next_deadline() <= time:
            self.now = max(self.now, self.swim.next_deadline())
            self.swim.tick(self.now)
            sent += self.swim.take().datagrams
        self.now = time
        return sent

    def state(self, id: str) -> State | None:
        view = self.swim.member(id)
        return None if view is None else view.state

    def said(self) -> list[Message]:
        return [m for datagram in self.swim.take().datagrams for m in unpack(datagram.payload)[0]]

    def changes(self) -> list[tuple[Change, str]]:
        events = self.swim.take().events
        return [(e.change, e.member.id) for e in events if isinstance(e, MemberChanged)]


def messages(sent: list[Datagram], kind: type[Message]) -> list[tuple[object, Message]]:
    return [
        (datagram.to, message)
        for datagram in sent
        for message in unpack(datagram.payload)[0]
        if isinstance(message, kind)
    ]


# Meeting


def test_a_member_is_known_by_its_own_words() -> None:
    one = One()
    one.hear("a", alive("a", tags={"role": "voter"}))
    assert one.changes() == [(Change.JOINED, "a")]
    view = one.swim.member("a")
    assert view is not None
    assert (view.state, view.tags) == (State.ALIVE, {"role": "voter"})
    assert [view.id for view in one.swim.members()] == ["me", "a"]


def test_a_stranger_is_answered_and_asked_who_it_is() -> None:
    one = One()
    one.hear("x", Ping(7, "me"))
    [datagram] = one.swim.take().datagrams
    ack, who, *_ = unpack(datagram.payload)[0]
    assert isinstance(ack, Ack)
    assert ack.number == 7
    assert isinstance(who, Who)
    assert datagram.to == ("192.0.2.1", 8473)


def test_whoever_asks_gets_this_nodes_own_words() -> None:
    one = One("a")
    one.hear("a", Who())
    assert alive("me") in one.said()


def test_a_ping_for_another_is_not_answered() -> None:
    one = One("a")
    one.hear("a", Ping(7, "somebody"))
    assert not [m for m in one.said() if isinstance(m, Ack)]
    assert one.swim.counts.dropped == {"not_for_me": 1}


def test_older_words_change_nothing_and_newer_ones_do() -> None:
    one = One()
    one.hear("a", alive("a", LIFE + 5, tags={"n": "5"}))
    one.hear("a", alive("a", LIFE + 4, tags={"n": "4"}))
    one.hear("b", alive("a", LIFE + 6, tags={"n": "6"}))
    assert one.changes() == [(Change.JOINED, "a"), (Change.UPDATED, "a")]
    view = one.swim.member("a")
    assert view is not None
    assert view.tags == {"n": "6"}


def test_members_beyond_the_bound_are_not_taken() -> None:
    one = One(settings=msgspec.structs.replace(LAN, members_max=2))
    for id in ("a", "b", "c"):
        one.hear(id, alive(id))
    assert len(one.swim.members()) == 3
    assert one.swim.counts.dropped == {"full": 1}


def test_a_member_of_a_version_that_is_not_understood_is_not_taken() -> None:
    one = One()
    one.hear("a", msgspec.structs.replace(alive("a"), version_oldest=VERSION + 1, version=9))
    assert one.state("a") is None
    assert one.swim.counts.dropped == {"version": 1}


# Probing


def test_every_member_is_probed_once_in_each_round() -> None:
    one = One("a", "b", "c", "d")
    probed: list[object] = []
    for _ in range(8):
        sent = one.until(one.now + LAN.probe_interval_s)
        for to, ping in messages(sent, Ping):
            probed.append(to)
            assert isinstance(ping, Ping)
            one.hear(str(to), Ack(ping.number))
            one.swim.take()
    assert sorted(map(str, probed[:4])) == sorted(map(str, probed[4:8])) == ["a", "b", "c", "d"]


def first_ping(one: One) -> tuple[str, Ping]:
    for _ in range(1000):
        if found := messages(one.until(one.now + 0.01), Ping):
            to, ping = found[0]
            assert isinstance(ping, Ping)
            return str(to), ping
    raise AssertionError("nobody was probed")


def test_round_trips_are_kept_and_tell_a_distance() -> None:
    one = One("a")
    for _ in range(10):
        to, ping = first_ping(one)
        one.now += 0.003
        there = bytes(44)
        one.hear(to, Ack(ping.number, there))
    stats = one.swim.rtt("a")
    assert stats is not None
    assert stats.count == 10
    assert stats.p50_s == pytest.approx(0.003, abs=0.011)
    assert one.swim.distance("me", "a") is not None
    assert one.swim.distance("a", "a") == 0.0
    assert one.swim.distance("a", "nobody") is None


def test_without_an_answer_others_are_asked_and_it_is_knocked_at() -> None:
    one = One("a", "b", "c", "d")
    target, ping = first_ping(one)
    one.now += 1e-6
    began = one.now
    sent: list[Datagram] = []
    knocks = []
    while one.now < began + LAN.probe_timeout_s + 0.01:
        one.now = min(one.swim.next_deadline(), began + LAN.probe_timeout_s + 0.01)
        one.swim.tick(one.now)
        out = one.swim.take()
        sent += out.datagrams
        knocks += [knock for knock in out.knocks if knock.peer == target]
    asked = messages(sent, PingFor)
    helpers = {to for to, message in asked if message == PingFor(ping.number, target)}
    assert helpers == {"a", "b", "c", "d"} - {target}
    assert [knock.number for knock in knocks] == [ping.number]
    # One of them reached it.
    one.hear(str(sorted(map(str, helpers))[0]), Ack(ping.number))
    one.until(one.now + 0.04)
    one.swim.take()
    assert one.state(target) is State.ALIVE


def silent(one: One, duration_s: float, knocked: Knocked | None) -> list[tuple[Change, str]]:
    """Nobody answers; each knock is answered like this."""
    changes: list[tuple[Change, str]] = []
    end = one.now + duration_s
    while one.now < end:
        one.now = min(end, one.swim.next_deadline())
        one.swim.tick(one.now)
        out = one.swim.take()
        changes += [(e.change, e.member.id) for e in out.events if isinstance(e, MemberChanged)]
        for knock in out.knocks:
            if knocked is not None:
                one.swim.knocked(one.now, knock.number, knocked)
    return changes


def test_who_answers_nobody_is_suspected_and_then_dead() -> None:
    one = One("a")
    changes = silent(one, 20.0, Knocked.SILENT)
    assert changes[:2] == [(Change.SUSPECTED, "a"), (Change.DIED, "a")]


def test_a_connection_that_is_answered_outweighs_lost_datagrams() -> None:
    one = One("a")
    assert silent(one, 20.0, Knocked.ANSWERED) == []
    assert one.swim.counts.udp_silent > 5


def test_a_refused_connection_ends_it_sooner_and_a_held_up_one_later() -> None:
    def died_after(knocked: Knocked) -> float:
        one = One("a")
        began = one.now
        while one.state("a") is not State.DEAD:
            silent(one, 0.05, knocked)
            assert one.now < began + 60
        return one.now - began

    refused, silence, held = map(died_after, (Knocked.REFUSED, Knocked.SILENT, Knocked.HELD))
    assert refused < silence - 0.5
    assert held > silence + 2.0


def test_a_broken_link_is_a_reason_to_probe_at_once_but_no_evidence() -> None:
    one = One("a", "b")
    one.swim.link_broke(one.now, "a")
    out = one.swim.take()
    [(to, ping)] = messages(out.datagrams, Ping)
    assert to == "a"
    assert [knock.peer for knock in out.knocks] == ["a"]
    assert one.state("a") is State.ALIVE
    one.swim.link_broke(one.now, "a")
    assert not one.swim.take().datagrams, "one look at a time"
    assert isinstance(ping, Ping)
    one.hear("a", Ack(ping.number))
    one.swim.link_broke(one.now, "nobody")
    assert not one.swim.take().knocks


def test_a_flood_of_broken_links_brings_a_bounded_number_of_probes() -> None:
    others = [f"n{n}" for n in range(100)]
    one = One(*others)
    for other in others:
        one.swim.link_broke(one.now, other)
    assert len(one.swim.take().knocks) == LAN.probes_max


def test_an_answer_of_another_than_was_asked_is_none() -> None:
    one = One("a", "b")
    one.swim.link_broke(one.now, "a")
    [(_, ping)] = messages(one.swim.take().datagrams, Ping)
    assert isinstance(ping, Ping)
    one.hear("b", Ack(ping.number))
    silent(one, 1.0, Knocked.SILENT)
    assert one.state("a") is State.SUSPECT


def test_a_helper_passes_the_answer_on() -> None:
    one = One("a", "b")
    one.hear("a", PingFor(77, "b"))
    [(to, ping)] = messages(one.swim.take().datagrams, Ping)
    assert to == "b"
    assert isinstance(ping, Ping)
    one.hear("b", Ack(ping.number))
    assert Ack(77) in one.said()


def test_a_helper_says_in_time_that_there_is_no_answer() -> None:
    one = One("a", "b")
    one.hear("a", PingFor(77, "b"))
    one.swim.take()
    sent = one.until(one.now + LAN.probe_timeout_s)
    assert [m for _, m in messages(sent, Nack)] == [Nack(77)]
    one.hear("a", PingFor(78, "nobody"))
    assert Nack(78) in one.said()


def test_a_prober_whose_helpers_are_silent_too_doubts_itself() -> None:
    one = One("a", "b", "c", "d")
    silent(one, 1.5, Knocked.SILENT)
    assert one.swim.health >= 2


def test_a_helper_that_says_so_often_makes_no_prober_better_than_well() -> None:
    """Or it would wait less than nothing for the next probe, and never come out of its turn."""
    one = One("a", "b", "c", "d")
    while one.now < 20.0:
        sent = one.until(one.now + 0.05)
        for to, asked in messages(sent, PingFor):
            assert isinstance(asked, PingFor) and isinstance(to, str)
            one.hear(to, *[Nack(asked.number)] * 20)
        assert one.swim.health >= 0
        assert one.swim.next_deadline() > one.now


# Suspicions of others


def test_a_suspicion_confirmed_by_two_more_ends_at_its_least_time() -> None:
    one = One("a", "b", "c", "d", "e")
    for by in ("b", "c", "d"):
        one.hear(by, Suspect("a", LIFE, (by,)))
    assert one.state("a") is State.SUSPECT
    began = one.now
    while one.state("a") is State.SUSPECT and one.now < began + 10:
        one.until(one.now + 0.01)
    looked = LAN.probe_window_s + LAN.lag_s
    assert LAN.suspicion_min_s <= one.now - began <= LAN.suspicion_min_s + looked + 0.05


def test_accusers_nobody_knows_confirm_nothing() -> None:
    one = One("a", "b", "c", "d", "e")
    one.hear("b", Suspect("a", LIFE, ("b", "x1", "x2", "x3"), ("b", "x1", "x2")))
    one.until(one.now + 1.5)
    assert one.state("a") is State.SUSPECT


def test_a_suspicion_of_an_earlier_word_is_void() -> None:
    one = One("a", "b")
    one.hear("a", alive("a", LIFE + 3))
    one.hear("b", Suspect("a", LIFE + 2, ("b",)), Dead("a", LIFE + 2, "b"))
    assert one.state("a") is State.ALIVE


def test_newer_words_clear_a_suspect() -> None:
    one = One("a", "b")
    one.hear("b", Suspect("a", LIFE, ("b",)))
    one.hear("a", alive("a", LIFE + 1))
    assert one.changes() == [(Change.SUSPECTED, "a"), (Change.CLEARED, "a")]


def test_a_suspect_that_is_heard_is_told_and_not_called_dead() -> None:
    one = One("a", "b", "c", "d")
    one.hear("b", Suspect("a", LIFE, ("b", "c", "d")))
    one.until(one.now + 0.5)
    one.hear("a", Ping(1, "me"))
    said = one.said()
    assert any(isinstance(m, Suspect) and m.id == "a" for m in said)
    one.until(one.now + 1.0)
    assert one.state("a") is State.SUSPECT
    silent(one, 20.0, Knocked.SILENT)
    assert one.state("a") is State.DEAD, "hearing nothing further, it gives up"


def test_the_dead_that_are_heard_are_told_so() -> None:
    one = One("a", "b")
    one.hear("b", Dead("a", LIFE, "b"))
    one.swim.take()
    one.now += 1.0
    one.swim.lag(one.now, 0.0)
    one.hear("a", Ping(1, "me"))
    assert any(isinstance(m, Dead) and m.id == "a" for m in one.said())


# What is said of this node


@pytest.mark.parametrize(
    "claim", [Suspect("me", LIFE, ("a",)), Dead("me", LIFE, "a"), Left("me", LIFE)]
)
def test_what_is_said_of_this_node_is_refuted(claim: Message) -> None:
    one = One("a")
    one.hear("a", claim)
    assert one.swim.me.incarnation == LIFE + 1
    sent = one.until(one.now + 0.2)
    assert (alive("me", LIFE + 1)) in [m for _, m in messages(sent, Alive)]
    assert one.swim.counts.refutations == 1
    one.hear("a", claim)
    assert one.swim.counts.refutations == 1, "it was refuted already"


def test_who_missed_a_refutation_is_told_of_it() -> None:
    one = One("a", "b")
    one.hear("b", alive("b", LIFE + 5))
    one.hear("a", Suspect("me", LIFE, ("a",)))
    one.swim.take()
    one.hear("a", Suspect("me", LIFE, ("a",)), Dead("b", LIFE + 4, "a"))
    said = one.said()
    assert alive("me", LIFE + 1) in said
    assert alive("b", LIFE + 5) in said


def test_on_the_word_of_others_alone_nobody_is_dead_without_a_last_look() -> None:
    one = One("a", "b", "c", "d", settings=msgspec.structs.replace(LAN, verifiers=0))
    one.hear("b", Suspect("a", LIFE, ("b", "c", "d")))
    began = one.now
    while not one.swim.take().knocks and one.now < began + 5:
        one.now = one.swim.next_deadline()
        one.swim.tick(one.now)
    assert one.now - began <= LAN.suspicion_min_s + 0.05
    assert one.state("a") is State.SUSPECT


def test_who_had_no_look_of_its_own_has_one_before_it_calls_another_dead() -> None:
    seldom = msgspec.structs.replace(LAN, verifiers=0, probe_interval_s=60.0, suspicion_mult=0.01)
    one = One("a", "b", "c", "d", settings=seldom)
    one.hear("b", Suspect("a", LIFE, ("b", "c", "d")))
    looked: list[str] = []
    while one.state("a") is State.SUSPECT and one.now < 20:
        one.now = one.swim.next_deadline()
        one.swim.tick(one.now)
        looked += [knock.peer for knock in one.swim.take().knocks]
    assert one.state("a") is State.DEAD and looked == ["a"]


def test_an_incarnation_at_its_end_is_not_followed_there() -> None:
    one = One("a")
    one.hear("a", Dead("me", INCARNATION_MAX, "a"))
    assert one.swim.me.incarnation == LIFE
    assert one.swim.counts.dropped == {"incarnation": 1}


def test_a_later_life_under_this_id_is_an_event() -> None:
    one = One("a")
    one.hear("a", alive("me", 2 * LIFE, addresses=("elsewhere",)))
    assert one.swim.take().events == [OwnIdTaken(("elsewhere",))]
    assert one.swim.me.incarnation == 2 * LIFE + 1
    one.hear("a", alive("me", 3 * LIFE, addresses=("elsewhere",)))
    assert one.swim.take().events == [], "told once in a while"


def test_a_restarted_node_outdoes_what_was_said_of_its_last_life() -> None:
    one = One("a", "b")
    one.hear("b", Dead("a", LIFE + 9, "b"))
    assert one.state("a") is State.DEAD
    one.hear("a", alive("a", 2 * LIFE))
    assert one.state("a") is State.ALIVE
    one.hear("b", Dead("a", LIFE + 9, "b"))
    assert one.state("a") is State.ALIVE


# Leaving


def test_a_leave_is_told_and_no_claim_brings_it_back() -> None:
    one = One("a", "b")
    one.swim.leave(one.now)
    told_at_once = one.swim.leave_told
    assert not told_at_once
    one.hear("a", Suspect("me", LIFE, ("a",)))
    sent = one.until(one.now + 2.0)
    assert Left("me", LIFE) in [m for _, m in messages(sent, Left)]
    assert not messages(sent, Ping), "it has no further interest in others"
    assert one.swim.leave_told
    assert one.swim.me.state is State.LEFT
    one.hear("a", Ping(3, "me"))
    assert any(isinstance(m, Ack) for m in one.said()), "it answers until it stops"


def test_alone_there_is_nobody_to_tell() -> None:
    one = One()
    one.swim.leave(one.now)
    assert one.swim.leave_told


def test_who_left_is_left_and_not_dead_and_late_words_do_not_bring_it_back() -> None:
    one = One("a", "b")
    one.hear("b", Left("a", LIFE))
    one.hear("b", alive("a", LIFE), Suspect("a", LIFE, ("b",)), Dead("a", LIFE, "b"))
    assert one.state("a") is State.LEFT
    silent(one, 10.0, Knocked.SILENT)
    assert one.state("a") is State.LEFT
    one.hear("a", alive("a", 2 * LIFE))
    assert one.state("a") is State.ALIVE


def test_the_tombstone_of_one_never_met_outlives_late_words() -> None:
    one = One("b")
    one.hear("b", Left("a", LIFE + 4))
    one.hear("b", alive("a", LIFE + 4))
    assert one.state("a") is None
    one.hear("b", alive("a", 2 * LIFE))
    assert one.state("a") is State.ALIVE


def test_who_was_removed_is_not_listened_to_again() -> None:
    one = One("a", "b")
    one.swim.remove(one.now, "a")
    assert one.changes() == [(Change.FORGOTTEN, "a")]
    one.hear("a", alive("a", 9 * LIFE))
    one.hear("b", alive("a", 9 * LIFE))
    assert one.state("a") is None
    assert one.swim.counts.dropped == {"removed": 2}
    with pytest.raises(Dropped):
        one.swim.sync_answer(one.now, "a", b"")


# Names


def test_of_two_with_one_name_the_older_keeps_it() -> None:
    one = One()
    one.hear("a", alive("a", name="web", born=2))
    one.hear("b", alive("b", name="web", born=1))
    conflicts = [e for e in one.swim.take().events if isinstance(e, NameConflict)]
    assert conflicts == [NameConflict("web", "b", ("a",))]
    views = {view.id: view.name_kept_by for view in one.swim.members()}
    assert views == {"me": None, "a": "b", "b": None}


def test_a_name_is_free_once_its_keeper_is_dead() -> None:
    one = One("c")
    one.hear("b", alive("b", name="web", born=1))
    one.hear("c", Dead("b", LIFE, "c"))
    one.hear("a", alive("a", name="web", born=2))
    assert not [e for e in one.swim.take().events if isinstance(e, NameConflict)]


def test_when_it_was_born_a_node_may_learn_later_than_its_namesakes() -> None:
    one = One()
    one.swim.update(one.now, name="web", born=INCARNATION_MAX)
    one.hear("a", alive("a", name="web", born=9))
    assert one.swim.namesakes() == {"web": ("a", "me")}
    one.swim.update(one.now, born=3)
    assert one.swim.namesakes() == {"web": ("me", "a")}
    one.swim.take()
    one.hear("a", alive("a", LIFE + 1, name="web", born=2))
    conflicts = [e for e in one.swim.take().events if isinstance(e, NameConflict)]
    assert conflicts == [NameConflict("web", "a", ("me",))]
    one.hear("a", alive("a", LIFE + 2, name="other", born=2))
    assert one.swim.namesakes() == {}
    for born in (-1, INCARNATION_MAX + 1):
        with pytest.raises(NotUsable):
            one.swim.update(one.now, born=born)


# What this node says


def test_new_tags_are_told_and_the_same_ones_are_not() -> None:
    one = One("a")
    one.swim.update(one.now, tags={"role": "voter"})
    one.swim.update(one.now, tags={"role": "voter"})
    assert one.swim.me.incarnation == LIFE + 1
    sent = one.until(one.now + 0.2)
    assert alive("me", LIFE + 1, tags={"role": "voter"}) in [m for _, m in messages(sent, Alive)]


def test_tags_over_their_bound_are_refused_and_nothing_has_changed() -> None:
    one = One("a")
    with pytest.raises(NotUsable, match="512"):
        one.swim.update(one.now, tags={"a": "x" * TAGS_BYTES_MAX})
    assert one.swim.me.incarnation == LIFE


@pytest.mark.parametrize(
    "more",
    [{"name": ""}, {"addresses": ()}, {"addresses": ("a",) * 5}, {"name": "n" * 200},
     {"boot": -1}, {"boot": 2**60}, {"tags": {"a": "ü" * 300}}],
)  # fmt: skip
def test_a_node_that_others_would_not_take_does_not_start(more: dict[str, object]) -> None:
    facts: dict[str, object] = {"id": "me", "boot": 1, "name": "me", "addresses": ("me",), **more}
    with pytest.raises(NotUsable):
        Swim(LAN, Self(**facts), 0.0, random.Random(1))  # type: ignore[arg-type]


def test_every_datagram_keeps_within_its_bound() -> None:
    one = One(*(f"node-{n:04d}" for n in range(500)))
    for n in range(500):
        one.hear(f"node-{n:04d}", alive(f"node-{n:04d}", LIFE + 1, tags={"t": "x" * 400}))
    sizes = [len(datagram.payload) for datagram in one.until(one.now + 3.0)]
    assert 900 < max(sizes) <= LAN.payload_bytes_max


# Time


def test_a_node_that_was_stopped_for_10_s_calls_nobody_dead() -> None:
    one = One("a", "b", "c")
    one.hear("b", Suspect("a", LIFE, ("b", "c")))
    silent(one, 0.7, Knocked.SILENT)
    one.now += 10.0
    one.swim.tick(one.now)
    out = one.swim.take()
    assert one.swim.counts.stalls == 1
    assert not [e for e in out.events if isinstance(e, MemberChanged)]
    assert out.syncs, "it asks what it missed"
    states = {one.state(id) for id in ("a", "b", "c")}
    assert State.DEAD not in states
    one.until(one.now + 0.9)
    assert State.DEAD not in {one.state(id) for id in ("a", "b", "c")}


def test_a_datagram_read_before_the_timer_after_a_stop_changes_nothing_of_that() -> None:
    one = One("a", "b", "c")
    one.hear("b", Suspect("a", LIFE, ("b", "c")))
    silent(one, 0.7, Knocked.SILENT)
    one.now += 10.0
    for n in range(50):
        one.hear("c", Ping(n, "me"))
    one.swim.tick(one.now)
    assert one.swim.counts.stalls == 1
    assert one.state("a") is State.SUSPECT


def test_a_little_lag_gives_suspects_as_much_longer_and_worsens_health() -> None:
    one = One("a", "b", "c")
    one.hear("b", Suspect("a", LIFE, ("b", "c")))
    one.until(0.8)
    one.now = 1.4
    one.swim.tick(one.now)
    assert one.state("a") is State.SUSPECT
    assert one.swim.health > 0
    one.until(3.0)
    assert one.state("a") is State.DEAD


def test_a_lag_that_the_owner_measured_counts_too() -> None:
    one = One("a")
    one.now = 0.01
    one.swim.lag(one.now, 0.05)
    assert one.swim.health == 0
    one.swim.lag(one.now, 0.4)
    assert one.swim.health == 1


def test_rounds_that_were_missed_are_not_made_up_for() -> None:
    one = One("a", "b", "c", "d", "e", "f")
    one.now = 60.0
    one.swim.tick(one.now)
    assert len(messages(one.swim.take().datagrams, Ping)) <= 1


# Seeds and the lost


def test_seeds_are_called_until_somebody_is_there() -> None:
    one = One(seeds=("192.0.2.9:8473",))
    one.swim.tick(0.0)
    assert one.swim.take().syncs == [SyncWanted(None, "192.0.2.9:8473")]
    calls = 0
    for _ in range(100):
        one.now = one.swim.next_deadline()
        one.swim.tick(one.now)
        calls += len(one.swim.take().syncs)
    assert calls > 10
    one.hear("a", alive("a", addresses=("192.0.2.9:8473",)))
    end = one.now + 60
    while one.now < end:
        one.now = one.swim.next_deadline()
        one.swim.tick(one.now)
        out = one.swim.take()
        assert SyncWanted(None, "192.0.2.9:8473") not in out.syncs
        for knock in out.knocks:
            one.swim.knocked(one.now, knock.number, Knocked.ANSWERED)


def test_who_is_being_told_who_is_there_asks_no_other_seed_for_a_minute() -> None:
    def asked(one: One, until: float) -> set[str | None]:
        found = set()
        while one.swim.next_deadline() <= until:
            one.now = max(one.now, one.swim.next_deadline())
            one.swim.tick(one.now)
            out = one.swim.take()
            found |= {sync.address for sync in out.syncs if sync.peer is None}
            for knock in out.knocks:
                one.swim.knocked(one.now, knock.number, Knocked.ANSWERED)
        return found

    def met() -> tuple[One, str]:
        one = One(seeds=("x", "y"))
        one.swim.tick(0.0)
        (first,) = one.swim.take().syncs
        one.hear("a", alive("a", addresses=(str(first.address),)))
        return one, "y" if first.address == "x" else "x"

    one, other = met()
    assert asked(one, 55.0) == set()
    assert asked(one, 100.0) == {other}, "its syncs may reach nobody: it asks on"
    one, other = met()
    entry = Entry(State.ALIVE, msgspec.Raw(encode(alive("a"))))
    one.swim.sync_done(0.1, "a", encode_sync(SyncAnswer(SPOKEN, (entry,))))
    assert asked(one, 55.0) == {other}, "it was told, and not of that one"


def test_the_lost_are_pinged_for_a_day_and_then_forgotten() -> None:
    one = One("a", "b")
    one.hear("b", Dead("a", LIFE, "b"), Left("b", LIFE))
    one.swim.take()
    pings = 0
    hours = 0
    while one.state("a") is not None:
        sent = one.until(one.now + 60.0)
        pings += len(messages(sent, Ping))
        hours = int(one.now / 3600)
        assert hours < 26
    assert hours >= 23
    assert pings > 20 * 60 * 60 / 2
    assert (one.state("a"), one.state("b")) == (None, None)
    one.hear("c", alive("a", LIFE))
    assert one.state("a") is None, "the tombstone is left"


def test_too_many_seeds_are_refused() -> None:
    with pytest.raises(NotUsable):
        One(seeds=tuple(f"192.0.2.1:{n + 1}" for n in range(65)))


# Syncs


def test_a_sync_teaches_both_sides() -> None:
    one, other = One("a", "b"), One("x", "y")
    you = Self(id="you", boot=1, name="you", addresses=("you",))
    other.swim = Swim(LAN, you, 0.0, random.Random(6))
    other.hear("x", alive("x"))
    other.hear("gone", alive("gone"))
    other.hear("x", Left("gone", LIFE))
    answer = other.swim.sync_answer(0.0, "me", one.swim.sync_ask(0.0))
    one.swim.sync_done(0.0, "you", answer)
    assert {view.id for view in one.swim.members()} == {"me", "you", "a", "b", "x", "gone"}
    assert {view.id for view in other.swim.members()} == {"me", "you", "a", "b", "x", "gone"}
    assert one.state("gone") is State.LEFT


def test_the_dead_of_a_sync_are_suspects_here() -> None:
    one = One("a", "b")
    other = One("a", "b")
    other.hear("b", Dead("a", LIFE, "b"))
    ask = other.swim.sync_ask(0.0).replace(b"me", b"yo")
    one.swim.sync_answer(0.0, "yo", ask)
    assert one.state("a") is State.SUSPECT


def test_a_sync_in_anothers_name_is_dropped() -> None:
    one, other = One("a"), One("b")
    with pytest.raises(Dropped) as dropped:
        one.swim.sync_answer(0.0, "a", other.swim.sync_ask(0.0))
    assert dropped.value.reason == "identity"
    assert one.state("b") is None


def test_a_sync_has_a_bound_and_later_ones_tell_the_rest() -> None:
    settings = msgspec.structs.replace(LAN, sync_bytes_max=4_000)
    others = [f"n{n:03d}" for n in range(300)]
    big = One(*others, settings=settings)
    joiner = Self(id="you", boot=1, name="you", addresses=("you",))
    swim = Swim(settings, joiner, 0.0, random.Random(6))
    for _ in range(20):
        answer = big.swim.sync_answer(0.0, "you", swim.sync_ask(0.0))
        assert len(answer) <= 4_000
        swim.sync_done(0.0, "me", answer)
    assert len(swim.members()) == 302


# Hostile datagrams


@pytest.mark.parametrize(
    ("payload", "reason"),
    [(b"", "size"), (b"\x01", "size"), (bytes(3000), "size"), (b"\x63\x90", "version"),
     (b"\x01\xff\xff", "garbage"), (b"\x01\x91\x00", "garbage"), (b"\x01\x91\x91\xa1x", "garbage"),
     (pack(1, [encode(Ack(1))])[:-1], "garbage"), (b"\x01\xdd\xff\xff\xff\xff", "garbage")],
)  # fmt: skip
def test_what_is_no_datagram_is_dropped_with_its_reason(payload: bytes, reason: str) -> None:
    one = One("a")
    one.swim.receive(0.0, "a", "a", payload)
    assert one.swim.counts.dropped == {reason: 1}
    assert not one.said()


def test_this_nodes_own_packets_are_dropped() -> None:
    one = One()
    one.hear("me", Dead("me", LIFE, "me"))
    assert one.swim.counts.dropped == {"self": 1}


def test_a_kind_of_a_later_version_is_passed_over_and_the_rest_is_heard() -> None:
    one = One()
    later = msgspec.msgpack.encode([42, "new"])
    longer = msgspec.msgpack.encode([0, 7, "me", "a later field"])
    one.swim.receive(0.0, "a", "a", pack(VERSION, [later, encode(alive("a")), longer]))
    assert one.state("a") is State.ALIVE
    assert one.swim.counts.unknown_kinds == 1
    assert any(isinstance(m, Ack) for m in one.said())
