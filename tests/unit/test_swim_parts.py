"""The small parts of membership, each by itself."""

from __future__ import annotations

import math
import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.swim import LAN, PROFILES, NotUsable
from mesh.swim.alarms import NEVER, Alarms
from mesh.swim.broadcasts import Broadcasts
from mesh.swim.coordinates import Coordinate, Locator, distance, unpack
from mesh.swim.health import Health
from mesh.swim.rtt import WINDOW, RttWindow
from mesh.swim.suspicion import Suspicion

# Alarms


@given(st.lists(st.tuples(st.sampled_from("sd"), st.integers(0, 9), st.integers(0, 50))))
def test_alarms_go_off_as_a_sorted_dictionary_would(steps: list[tuple[str, int, int]]) -> None:
    alarms: Alarms[int] = Alarms()
    model: dict[int, float] = {}
    for what, key, at in steps:
        if what == "s":
            alarms.set(key, at)
            model[key] = at
        else:
            alarms.drop(key)
            model.pop(key, None)
        assert alarms.next() == min(model.values(), default=NEVER)
    gone_off = []
    while (first := alarms.pop(100)) is not None:
        gone_off.append(model.pop(first))
    assert gone_off == sorted(gone_off)
    assert not model


def test_alarms_that_are_held_are_due_now_and_later_ones_keep_their_time() -> None:
    alarms: Alarms[str] = Alarms()
    alarms.set("a", 1.0)
    alarms.set("b", 2.0)
    alarms.set("c", 9.0)
    alarms.hold(5.0)
    assert alarms.next() == 5.0
    assert {alarms.pop(5.0), alarms.pop(5.0)} == {"a", "b"}
    assert alarms.next() == 9.0


def test_alarms_that_move_without_end_take_no_room() -> None:
    alarms: Alarms[str] = Alarms()
    for n in range(10_000):
        alarms.set("a", float(n))
    assert len(alarms._heap) < 200


# Broadcasts


def test_news_are_told_so_often_and_no_more() -> None:
    news = Broadcasts(10)
    news.add("a", b"first")
    assert [news.take(100, 9, 3) for _ in range(5)] == [[b"first"]] * 3 + [[], []]
    assert "a" not in news


def test_later_news_of_a_member_take_the_place_of_earlier_ones() -> None:
    news = Broadcasts(10)
    news.add("a", b"suspect")
    news.take(100, 9, 5)
    news.add("a", b"alive")
    assert news.take(100, 9, 5) == [b"alive"]


def test_the_least_told_come_first_and_none_is_told_twice_in_one_datagram() -> None:
    news = Broadcasts(10)
    news.add("old", b"o" * 10)
    news.take(100, 9, 9)
    news.add("new", b"n" * 10)
    assert news.take(100, 9, 9) == [b"n" * 10, b"o" * 10]
    news.add("newest", b"w" * 10)
    assert news.take(10, 9, 9) == [b"w" * 10]


def test_what_does_not_fit_lets_smaller_news_pass() -> None:
    news = Broadcasts(10)
    news.add("big", b"b" * 50)
    news.add("small", b"s")
    assert news.take(10, 9, 9) == [b"s"]
    assert news.take(50, 9, 9) == [b"b" * 50]


def test_news_beyond_the_bound_cost_the_most_told_its_place() -> None:
    news = Broadcasts(2)
    news.add("a", b"a")
    news.take(100, 9, 9)
    news.add("b", b"b")
    news.add("c", b"c")
    assert len(news) == 2
    assert "a" not in news
    assert news.dropped == 1


# Suspicion


def suspicion(others: int = 19) -> Suspicion:
    return Suspicion(LAN, 100.0, others)


def test_a_suspicion_is_shorter_with_each_that_confirms_it() -> None:
    it = suspicion()
    deadlines = []
    for accuser in "abc":
        assert it.accuse((accuser,))
        assert not it.accuse((accuser,)), "twice the same is nothing new"
        deadlines.append(it.deadline)
    assert deadlines == sorted(deadlines, reverse=True)
    assert deadlines[0] == 100 + it.longest_s
    assert deadlines[-1] == 100 + it.least_s


def test_with_nobody_else_to_confirm_it_a_suspicion_is_short_at_once() -> None:
    it = suspicion(others=1)
    it.accuse(("a",))
    assert it.deadline == 100 + it.least_s


def test_one_refusal_may_be_a_firewall_and_two_are_none() -> None:
    it = suspicion()
    it.accuse(("a",), refused_by=("a",))
    assert it.deadline > 101
    it.accuse(("b",), refused_by=("b",))
    assert it.deadline == pytest.approx(100 + LAN.refused_s)


def test_a_member_whose_host_takes_connections_has_all_the_time_there_is() -> None:
    it = suspicion()
    it.accuse(("a", "b"), held_by=("a", "b"))
    assert it.deadline == 100 + it.longest_s
    it.accuse(("c",))
    assert it.deadline == 100 + it.longest_s, "a silence does not outweigh a kernel's answer"


def test_refusals_and_holds_of_those_who_accuse_nobody_count_for_nothing() -> None:
    it = suspicion()
    assert not it.accuse((), refused_by=("x", "y"), held_by=("z",))
    assert it.deadline == 100 + it.longest_s


@given(st.integers(1, 10_000))
def test_a_suspicion_never_ends_before_its_least_time_nor_after_its_longest(others: int) -> None:
    it = suspicion(others)
    for accuser in "abcdef":
        it.accuse((accuser,))
        assert 100 + it.least_s <= it.deadline <= 100 + it.longest_s
    assert len(it.accusers) <= 4


# Health, round trips


def test_health_has_a_worst() -> None:
    health = Health(8)
    health.worsen(100)
    assert health.scale(1.0) == 8.0
    for _ in range(100):
        health.better()
    assert health.scale(1.0) == 1.0


def test_percentiles_are_over_the_last_round_trips_alone() -> None:
    window = RttWindow()
    assert window.stats() is None
    for _ in range(1000):
        window.add(9.0)
    for n in range(WINDOW):
        window.add((n + 1) / 1000)
    stats = window.stats()
    assert stats is not None
    assert stats.count == 1000 + WINDOW
    assert stats.last_s == pytest.approx(WINDOW / 1000)
    assert (stats.min_s, stats.max_s) == pytest.approx((0.001, WINDOW / 1000))
    assert stats.p50_s == pytest.approx(0.033, abs=0.001)
    assert stats.p99_s == pytest.approx(0.064, abs=0.001)


def test_one_slow_answer_does_not_move_the_median_of_the_last() -> None:
    window = RttWindow()
    for rtt_s in [0.001] * (WINDOW + 5) + [5.0]:
        window.add(rtt_s)
    assert window.median_of_last(3) == pytest.approx(0.001)


# Coordinates


def test_coordinates_come_to_tell_distances_that_were_never_measured() -> None:
    """Four sites on a line, 10 ms each from the next: the ends never meet."""
    rng = random.Random(3)
    places = [0.0, 0.010, 0.020, 0.030]
    locators = [Locator(rng) for _ in places]
    for _ in range(3000):
        a, b = rng.sample(range(4), 2)
        if {a, b} != {0, 3}:
            rtt_s = (abs(places[a] - places[b]) + 0.0005) * rng.uniform(0.95, 1.1)
            locators[a].measured(locators[b].here, rtt_s)
    assert distance(locators[0].here, locators[3].here) == pytest.approx(0.030, rel=0.3)
    assert distance(locators[0].here, locators[1].here) == pytest.approx(0.0105, rel=0.3)


def test_a_coordinate_survives_its_packing() -> None:
    locator = Locator(random.Random(1))
    other = Coordinate((0.01,) * 8, 0.001, 0.0, 0.5)
    for _ in range(50):
        locator.measured(other, 0.02)
    there = unpack(locator.packed)
    assert there is not None
    assert distance(there, other) == pytest.approx(distance(locator.here, other), rel=1e-3)


@given(st.binary(max_size=60))
def test_no_packed_coordinate_brings_a_node_out_of_the_world(packed: bytes) -> None:
    locator = Locator(random.Random(1))
    if (there := unpack(packed)) is not None:
        for rtt_s in (0.0, 0.001, math.nan, math.inf, -1.0, 9.0):
            locator.measured(there, rtt_s)
        assert unpack(locator.packed) is not None
        assert math.isfinite(distance(locator.here, there))


# Settings


@pytest.mark.parametrize("name", PROFILES)
def test_profiles_can_work(name: str) -> None:
    msgspec.structs.replace(PROFILES[name])


@pytest.mark.parametrize(
    ("field", "value"),
    [("probe_window_s", 0.1), ("gossip_interval_s", 0.0), ("payload_bytes_max", 100),
     ("suspicion_max_mult", 0.5), ("indirect_probes", -1), ("members_max", 1)],
)  # fmt: skip
def test_settings_that_cannot_work_are_refused(field: str, value: float) -> None:
    with pytest.raises(NotUsable):
        msgspec.structs.replace(LAN, **{field: value})


def test_profiles_are_ordered_by_their_patience() -> None:
    by_patience = [PROFILES[name] for name in ("local", "lan", "wan")]
    for quicker, slower in pairwise(by_patience):
        assert quicker.suspicion_min_s < slower.suspicion_min_s
        assert quicker.probe_window_s < slower.probe_window_s
