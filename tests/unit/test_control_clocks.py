"""Whose clock is wrong, by what the peers' say."""

from __future__ import annotations

import pytest

from swarmd.control.clocks import wrong_by_ms

HOUR_MS = 3600_000


@pytest.mark.parametrize(
    ("offsets_ms", "wrong"),
    [
        ([], 0),
        ([HOUR_MS], 0),  # of two nobody knows
        ([HOUR_MS, HOUR_MS], HOUR_MS),
        ([-HOUR_MS, -HOUR_MS + 4], -HOUR_MS + 4),
        ([0, HOUR_MS], 0),  # one follower alone is wrong: not this clock
        ([3, -HOUR_MS], 0),
        ([HOUR_MS, HOUR_MS, 5], 5),  # two against two
        ([HOUR_MS, HOUR_MS, HOUR_MS, 0], HOUR_MS),
        ([HOUR_MS, HOUR_MS, 0, 0], 0),
    ],
)
def test_the_middle_of_all_clocks_says_whose_is_wrong(offsets_ms: list[int], wrong: int) -> None:
    assert wrong_by_ms(offsets_ms) == wrong
