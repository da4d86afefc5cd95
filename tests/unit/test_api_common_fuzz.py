"""Five seconds of raw bytes: the server answers afterwards, and nothing is left behind."""

from __future__ import annotations

import gc
import logging
from dataclasses import replace

import pytest
import trio

from tests.fuzz import PATHS, fuzz
from tests.surfaces import QUICK, open_descriptors, serving

OURS = ("/hot/x", "/hot/echo", "/hot/json", "/hot/upload", "/hot/ignore", "/hot/follow",
        "/hot/flood", "/q/x", "/echo", "/small", "/follow", "/flood", "/ws", "/ws/deaf",
        "/ws/refused",
        )  # fmt: skip
LIMITS = replace(QUICK, body_bytes_max=100_000, connections_max=60, requests_max=30, streams_max=8)


@pytest.mark.parametrize("seed", [1, 2])
async def test_raw_bytes_leave_the_server_alive_and_nothing_open(
    seed: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    async with serving(LIMITS) as world:
        await world.get("/q/warm")
        await world.empty()
        gc.collect()
        tasks = trio.lowlevel.current_statistics().tasks_living
        descriptors = open_descriptors()
        counts = await fuzz(("127.0.0.1", world.port), 5, seed, PATHS + OURS)
        assert counts["answered"] > 50
        await world.empty(within_s=10)
        gc.collect()
        assert open_descriptors() == descriptors
        assert trio.lowlevel.current_statistics().tasks_living == tasks
        for path in ("/q/alive", "/hot/alive"):
            assert (await world.get(path)).status == 200
    assert not caplog.records, caplog.text
