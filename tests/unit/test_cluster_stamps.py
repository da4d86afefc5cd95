"""The time of the log: never backwards, never at a stand, and the day's own again in the end."""

from __future__ import annotations

import trio
import trio.testing

from swarmd.cluster.stamps import Stamps

HOUR_MS = 3600_000
DAY = 1_700_000_000_000


class Wall:
    """A clock on the wall beside Trio's, which somebody may set."""

    def __init__(self) -> None:
        self.off_ms = 0

    def __call__(self) -> int:
        return DAY + self.off_ms + int(trio.current_time() * 1000)


async def test_the_time_is_the_days_where_nothing_is_ahead_of_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wall = Wall()
    stamps = Stamps(wall)
    last = stamps.now_ms(0)
    await trio.sleep(1)
    assert stamps.now_ms(last) == last + 1000 == wall()


async def test_after_a_leap_the_time_goes_on_until_the_day_has_come_so_far(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wall = Wall()
    stamps = Stamps(wall)
    last = leapt = wall() + HOUR_MS
    for _ in range(60):
        await trio.sleep(60)
        told = stamps.now_ms(last)
        assert told >= last
        last = told
    # As good as half of that hour has gone by, and half of the lead is left.
    assert HOUR_MS * 0.48 < last - leapt < HOUR_MS * 0.52
    await trio.sleep(3600)
    assert abs(stamps.now_ms(last) - wall()) < 60_000
    await trio.sleep(120)
    assert stamps.now_ms(last) == wall()


async def test_a_clock_that_is_set_back_does_not_take_the_time_with_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    wall = Wall()
    stamps = Stamps(wall)
    last = stamps.now_ms(0)
    wall.off_ms = -HOUR_MS
    assert stamps.now_ms(last) == last
    await trio.sleep(10)
    assert stamps.now_ms(last) == last + 5000
    wall.off_ms = 0
    assert stamps.now_ms(last) == wall()
