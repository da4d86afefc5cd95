"""Real daemons under faults: whatever their clients were told, there is one order for it.

Reads from any node and writes through any, while one is killed, stands still or is cut off. Three
histories in every run; `SWARMD_HISTORIES=100` records a hundred, as `make soak` does. One that has
no order, or none that could be found in time, is kept as a file for `python -m tests.linearize`.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.histories.faults import (
    KILLS,
    PARTS,
    STOPS,
    STRIKES,
    Blow,
    Place,
    befall,
    expected_s,
    some_blows,
)
from tests.histories.recording import Recording, clients_at_work, histories_of, look_at_all
from tests.histories.things import all_things
from tests.netns import own_network
from tests.parts import is_here, need
from tests.swarms import running_swarm

pytestmark = pytest.mark.xdist_group("swarm")
# Read at import: no test sees settings of whoever runs it.
COUNT = int(os.environ.get("SWARMD_HISTORIES", "0"))
SEED = int(os.environ.get("SWARMD_HISTORIES_SEED", "0")) or random.SystemRandom().getrandbits(20)
FIRST = 181
"""The last number of the first node's address; clients come from another than any node's."""
FEW = {1: Blow("kill-leader", 1.5), 2: Blow("stop-leader", 2.5), 3: Blow("part-leader", 2.5)}
"""Those of every run."""
SHARE_OF_FIVE = 0.3
"""Of many histories so many are of five nodes, two of which follow the log without a vote."""
OPERATIONS_MIN = 40
"""With fewer, nothing was tried."""


class Kept:
    """One swarm for all histories of so many nodes; a new one is made after a failure."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folder = folders.mktemp("histories")
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By kind of the first fault."""
        self._open = ExitStack()
        self._place: Place | None = None
        self._made = 0

    def place(self, nodes: int) -> Place:
        if self._place is None or len(self._place.swarm.nodes) != nodes:
            self.close()
            self._made += 1
            network = self._open.enter_context(own_network()) if is_here("netns") else None
            folder = self.folder / f"swarm{self._made}"
            swarm = self._open.enter_context(running_swarm(folder, nodes, first=FIRST))
            self._place = Place(swarm, network)
        return self._place

    def close(self) -> None:
        self._place = None
        self._open.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    made = Kept(tmp_path_factory)
    try:
        yield made
    finally:
        made.close()
        for name, counts in sorted(made.counts.items()):
            print(f"{name}: {', '.join(f'{n} {what}' for what, n in counts.items())}")


def numbers() -> list[object]:
    return [*range(1, COUNT + 1)] or [pytest.param(n, id=blow.name) for n, blow in FEW.items()]


def drawn(number: int, rng: random.Random) -> list[Blow]:
    """Where there are many, each kind of fault comes first in its turn."""
    if not COUNT:
        return [FEW[number]]
    among = [*KILLS, *STOPS, *(PARTS if is_here("netns") else ())]
    return some_blows([*STRIKES][(SEED + number) % len(STRIKES)], rng, among)


@pytest.mark.parametrize("number", numbers())
def test_what_clients_are_told_has_one_order(kept: Kept, number: int) -> None:
    seed = SEED + number if COUNT else number
    rng = random.Random(seed)
    blows = drawn(number, rng)
    if blows[0].name in PARTS:
        need("netns")
    place = kept.place(5 if number > COUNT * (1 - SHARE_OF_FIVE) > 0 else 3)
    recording, things = Recording(), all_things(f"h{number}")
    try:
        place.swarm.wait_whole()
        doors = place.doors()
        with clients_at_work(doors, things, recording, seed, expected_s(blows)):
            befall(place, blows, rng)
        look_at_all(doors, things, recording)
    except BaseException as failure:
        failure.add_note(f"{told(seed, blows, place)}; the logs end:\n{place.swarm.logs()}")
        kept.close()
        raise
    files = {each.save(kept.folder, f"history{number}"): each
             for each in histories_of(recording, things)}  # fmt: skip
    began = time.monotonic()
    unsound = {path: each for path, each in files.items() if not each.judge()}
    took_s = time.monotonic() - began
    said = "unsound" if unsound else "linearizable"
    print(f"history {number}, seed {seed}, {len(doors)} nodes, {', '.join(map(str, blows))}:"
          f" {recording}; {said}, judged in {took_s:.1f} s")  # fmt: skip
    counts = kept.counts[blows[0].name]
    counts["histories"] += 1
    counts["operations"] += recording.total
    counts.update(recording.counts)
    if unsound:
        counts["rejected or undecided"] += 1
        words = "\n".join(f"kept as {path}\n{each.verdict}" for path, each in unsound.items())
        pytest.fail(f"{told(seed, blows, place)}\n{words}")
    assert not recording.problems, [told(seed, blows, place), *recording.problems]
    assert recording.total > OPERATIONS_MIN, recording


def told(seed: int, blows: list[Blow], place: Place) -> str:
    again = f"; SWARMD_HISTORIES={COUNT} SWARMD_HISTORIES_SEED={SEED}" if COUNT else ""
    return f"seed {seed}{again}; {', '.join(map(str, blows))}; in {place.swarm.folder}"
