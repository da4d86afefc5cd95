"""Schedules as data, and how few of their faults are left of one that fails."""

from __future__ import annotations

import random

import pytest

from swarmd.domain.errors import Invalid
from swarmd.sim.faults import LEADER, Fault, decode_schedule, draw, encode_schedule
from swarmd.sim.harm import KINDS
from tests.sim.shrink import FOR_S_MIN, Budget, fewest, smaller


@pytest.mark.parametrize("guilty", [{3}, {0, 39}, {5, 6, 7}, {1, 13, 21, 34}, set(range(40))])
def test_none_of_those_that_are_left_can_be_left_out(guilty: set[int]) -> None:
    tries = 0

    def fails(some: list[int]) -> bool:
        nonlocal tries
        tries += 1
        return guilty <= set(some)

    assert set(fewest(range(40), fails, Budget(2000))) == guilty
    assert tries < 500


def test_what_needs_no_fault_at_all_needs_one_try() -> None:
    budget = Budget(10)
    assert fewest([1, 2, 3], lambda some: True, budget) == []
    assert budget.tries == 9


def test_what_was_found_when_the_tries_are_up_still_fails() -> None:
    guilty = {4, 30}
    for tries in range(30):
        found = fewest(range(40), lambda some: guilty <= set(some), Budget(tries))
        assert guilty <= set(found)


def test_no_try_comes_after_the_time_is_up() -> None:
    def fails(some: list[int]) -> bool:
        raise AssertionError("tried")

    assert fewest([1, 2], fails, Budget(10, wall_s=0.0)) == [1, 2]


def test_one_that_fails_by_a_rule_that_is_not_monotone_is_left_failing() -> None:
    """As real runs do: fewer faults may hide what more of them show."""
    rng = random.Random(3)

    def fails(some: list[int]) -> bool:
        return {7, 9} <= set(some) and len(some) % 3 != 0

    for _ in range(20):
        items = sorted([*rng.sample(range(30), 20), 7, 9])
        if fails(items):
            assert fails(fewest(items, fails, Budget(500)))


def test_faults_become_as_short_as_they_may_be() -> None:
    schedule = [Fault(1.0, "crash", "a", for_s=4.0), Fault(2.0, "cut-off", "b", for_s=6.0)]
    short = smaller(schedule, lambda some: some[0].for_s >= 0.7, Budget(100))
    assert 0.7 <= short[0].for_s < 1.4
    assert short[1].for_s <= 2 * FOR_S_MIN


# Schedules


def test_a_schedule_is_the_same_after_it_was_written_and_read() -> None:
    schedule = draw(random.Random(5), 500, "abc", KINDS, members_change=True, whole=True)
    whole = {name for name, kind in KINDS.items() if kind.whole in (None, True)}
    assert {fault.kind for fault in schedule} == whole
    assert decode_schedule(encode_schedule(schedule), KINDS) == schedule
    assert [fault.at_s for fault in schedule] == sorted(fault.at_s for fault in schedule)
    assert {fault.victim for fault in schedule} == {*"abc", LEADER}


def test_members_stay_where_nobody_says_that_they_change() -> None:
    drawn = {fault.kind for fault in draw(random.Random(5), 500, "abc", KINDS)}
    assert drawn == {
        name for name, kind in KINDS.items() if not kind.of_members and kind.whole is None
    }


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("{", "fault 1 cannot be read"),
        ('{"at_s": 1}', "fault 1 cannot be read"),
        ('{"at_s": 1, "kind": "crash", "hosts": "all"}', "fault 1 cannot be read"),
        ('{"at_s": 1, "kind": "meteor"}', "no kind that there is: 'meteor'"),
        ('{"at_s": -1, "kind": "crash"}', "not at -1"),
        ('{"at_s": 1, "kind": "crash", "for_s": 1e9}', "not at 1 for 1e"),
        ('{"at_s": 1e400, "kind": "crash"}', "fault 1"),
        ('{"at_s": 1, "kind": "crash"}\n' * 10_001, "at most 10000"),
    ],
)
def test_a_schedule_that_is_none_is_refused(line: str, wrong: str) -> None:
    with pytest.raises(Invalid, match=wrong):
        decode_schedule(line, KINDS)
