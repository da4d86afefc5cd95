"""Pauses that grow."""

from itertools import islice

from swarmd.domain.pauses import doubling


def test_pauses_double_up_to_the_most_and_stay_there() -> None:
    assert [*islice(doubling(2.0, 30.0), 6)] == [2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
