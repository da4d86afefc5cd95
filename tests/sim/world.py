"""Worlds as tests: what fails says how to see it again."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from swarmd.cluster.opening import OpeningSettings
from swarmd.sim.bottle import Bottle
from swarmd.sim.world import W, World, run_in

SEEDS = os.environ.get("SWARMD_SIM_SEEDS")
"""Which seeds of chaos to run instead of the usual: `100-199` or `103,107`."""


def run_world(
    seed: int, place: Path, body: Callable[[World], Awaitable[None]],
    settings: OpeningSettings | None = None,
) -> None:  # fmt: skip
    """Run a body in a world of its own; what it raises says how to see it again."""
    _run(World, seed, place, body, settings)


def run_bottle(
    seed: int, place: Path, body: Callable[[Bottle], Awaitable[None]],
    settings: OpeningSettings | None = None,
) -> None:  # fmt: skip
    """The same with whole nodes."""
    _run(Bottle, seed, place, body, settings)


def _run(
    kind: type[W], seed: int, place: Path, body: Callable[[W], Awaitable[None]],
    settings: OpeningSettings | None,
) -> None:  # fmt: skip
    try:
        run_in(kind, seed, place, body, settings)
    except BaseException as error:
        error.add_note(_again(seed))
        raise


def _again(seed: int) -> str:
    """How to see it again: pytest says in the environment which test this is."""
    test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
    seeds = f"SWARMD_SIM_SEEDS={seed} " if SEEDS else ""
    return f"seed {seed}; again: {seeds}python -m pytest '{test or f'tests/sim -k {seed}'}'"


def bottled(seed: int, settings: OpeningSettings | None = None) -> Callable[..., Any]:
    """`@bottled(seed=7) async def test_it(bottle): ...`: whole nodes."""

    def decorate(body: Callable[[Bottle], Awaitable[None]]) -> Callable[[Path], None]:
        def test(tmp_path: Path) -> None:
            run_bottle(seed, tmp_path, body, settings)

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        return test

    return decorate


def simulated(seed: int, settings: OpeningSettings | None = None) -> Callable[..., Any]:
    """Make a test of a body: `@simulated(seed=7) async def test_it(world): ...`"""

    def decorate(body: Callable[[World], Awaitable[None]]) -> Callable[[Path], None]:
        def test(tmp_path: Path) -> None:
            run_world(seed, tmp_path, body, settings)

        test.__name__, test.__doc__, test.__module__ = body.__name__, body.__doc__, body.__module__
        return test

    return decorate
