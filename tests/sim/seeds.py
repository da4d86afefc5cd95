"""A seed from its beginning to its end: what it makes of a run of chaos, and what came of that."""

from __future__ import annotations

import faulthandler
import logging
import re
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from swarmd.cluster.opening import OpeningSettings
from swarmd.cluster.replica import ReplicaSettings
from swarmd.sim.bottle import Bottle
from swarmd.sim.faults import EVERY_S, Fault
from swarmd.sim.world import World, run_in
from tests.sim.chaos import EXECUTORS, SMALL, Chaos, Shape, cramped, quick

DENSE_S = 120.0
"""So long a run may be dense all the time."""
PACES = (3.0, 6.0, 9.0)
SORTS: tuple[tuple[tuple[str, ...], tuple[str, ...], int], ...] = (
    (("a", "b", "c", "d"), ("e",), 3),
    (("a",), ("b", "c", "d", "e"), 3),
    (("a", "b", "c", "d"), ("e",), 4),
    (("a", "b", "c"), ("d", "e"), 2),
)
"""Who is there from the beginning, who comes, and how many are to vote."""
ALL = ("a", "b", "c", "d", "e")
FOUR = replace(SMALL, founders=("a", "b", "c", "d"), voters=4)
HANGS_S = 600.0
"""A seed that takes this much longer than it simulates has hung."""


@dataclass
class Outcome:
    """Of one run; plain enough to come from another process."""

    seed: int
    cpu_s: float = 0.0
    simulated_s: float = 0.0
    operations: int = 0
    refused: int = 0
    moves: int = 0
    struck: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    fingerprint: str = ""
    failure: str = ""
    """What was wrong, with where; empty: nothing."""
    kind: str = ""
    """The same without what differs from run to run."""


def shape_of(seed: int, seconds: float) -> Shape:
    """The seed decides about everything. Of four one is small and keeps its members, one is small
    and changes them, and two are of whole nodes, in one of which not all have replicas. Some begin
    as a single node, and some have an even number of voters. Where it takes long there are calmer
    stretches, too."""
    pace = 1.0 if seconds <= DENSE_S else PACES[seed // 16 % len(PACES)]
    if seed % 4 == 0:
        return replace(SMALL if seed % 8 else FOUR, executors=EXECUTORS, pace=pace)
    founders, newcomers, voters = SORTS[seed // 4 % len(SORTS)]
    if seed % 4 == 2:
        founders, newcomers = ALL, ()
    return Shape(founders, newcomers, voters, seed % 4 >= 2, members_change=True, pace=pace)


def chaos_of(seed: int, seconds: float, schedule: Sequence[Fault] | None = None) -> Chaos:
    shape = shape_of(seed, seconds)
    rounds = max(1, round(seconds / (EVERY_S * shape.pace)))
    return Chaos(seed, rounds, shape, schedule)


def settings_of(seed: int) -> OpeningSettings:
    """In some swarms of whole nodes none but those who vote have replicas."""
    replicas_max = SORTS[seed // 4 % len(SORTS)][2] if seed % 4 == 2 else 9
    if seed % 3 == 0:
        return cramped(replicas_max)
    return quick(ReplicaSettings(replicas_max=replicas_max))


def run_seed(seed: int, seconds: float, schedule: Sequence[Fault] | None = None) -> Outcome:
    """What is wrong comes back in the outcome."""
    outcome, began = Outcome(seed), time.process_time()
    chaos = chaos_of(seed, seconds, schedule)

    async def body(world: World) -> None:
        try:
            await chaos.run(world)
            outcome.fingerprint = world.fingerprint()
        finally:
            outcome.simulated_s = trio.current_time()

    with tempfile.TemporaryDirectory(prefix="swarmd-sim-") as place:
        kind = Bottle if chaos.shape.whole else World
        try:
            run_in(kind, seed, Path(place), body, settings_of(seed))
        except Exception as error:
            outcome.failure = "".join(traceback.format_exception(error))
            outcome.kind = kind_of(error)
    outcome.cpu_s = time.process_time() - began
    outcome.operations, outcome.refused = chaos.operations, chaos.users.refused
    outcome.moves = chaos.moves
    outcome.struck, outcome.events = chaos.struck, chaos.events
    return outcome


def run_quietly(seed: int, seconds: float) -> Outcome:
    """In a process of many seeds: a swarm under faults has much to say, and one may hang."""
    logging.disable()
    with ended_if_it_hangs(seconds):
        return run_seed(seed, seconds)


@contextmanager
def ended_if_it_hangs(seconds: float) -> Iterator[None]:
    """The process, with where it stands."""
    faulthandler.dump_traceback_later(HANGS_S + seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def kind_of(error: BaseException) -> str:
    """Two failures of one kind read alike but for names and numbers."""
    while isinstance(error, BaseExceptionGroup):
        error = min(error.exceptions, key=lambda each: type(each).__name__)
    line = next(iter(str(error).splitlines()), "")
    line = re.sub(r"'[^']*'|\b[a-z]\b|\S*\d\S*", "#", line)
    return f"{type(error).__name__}: {line}"[:120]
