"""Faults as data: what befalls whom, when, and for how long. A schedule is drawn before the run, so
that any part of it can be run again: no fault knows of another, and each undoes what it did.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from swarmd.domain.errors import Invalid

if TYPE_CHECKING:
    from swarmd.sim.stage import Stage

LEADER = "leader"
"""As a victim: whoever leads when it comes to it."""
EVERY_S = 1.5
"""From one fault to the next, on the average: many begin before the last is over."""
FAULTS_MAX = 10_000
AT_S_MAX = 86_400.0
FOR_S_MAX = 3600.0


class Fault(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    at_s: float
    """Since the first could have come."""
    kind: str
    victim: str = ""
    other: str = ""
    for_s: float = 0.0
    how: dict[str, float] = {}
    """How bad, in the kind's own words."""


def encode_schedule(schedule: Iterable[Fault]) -> str:
    """A line of JSON each."""
    return "".join(msgspec.json.encode(fault).decode() + "\n" for fault in schedule)


def decode_schedule(text: str, kinds: Mapping[str, Kind]) -> list[Fault]:
    """Invalid says which line is wrong, and how."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > FAULTS_MAX:
        raise Invalid(f"a schedule has at most {FAULTS_MAX} faults, not {len(lines)}")
    schedule = []
    for number, line in enumerate(lines, 1):
        try:
            fault = msgspec.json.decode(line, type=Fault)
        except msgspec.DecodeError as error:
            raise Invalid(f"fault {number} cannot be read: {error}") from error
        if fault.kind not in kinds:
            raise Invalid(
                f"fault {number} is of no kind that there is: {fault.kind[:40]!r};"
                f" there are {', '.join(sorted(kinds))}"
            )
        if not (0 <= fault.at_s <= AT_S_MAX and 0 <= fault.for_s <= FOR_S_MAX):
            raise Invalid(
                f"fault {number} comes within {AT_S_MAX:g} s and lasts up to {FOR_S_MAX:g} s,"
                f" not at {fault.at_s:g} for {fault.for_s:g}"
            )
        schedule.append(fault)
    return schedule


# How schedules are drawn


@dataclass(frozen=True)
class Kind:
    strike: Callable[[Stage, Fault], Awaitable[bool]]
    """Do it, wait, undo it. False: there was nothing to do it to."""
    for_s: tuple[float, float] = (0.0, 0.0)
    how: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """What is drawn, and between which bounds."""
    pair: bool = False
    """It is about two hosts."""
    often: int = 2
    """Beside the others."""
    of_members: bool = False
    """It changes who is one."""
    whole: bool | None = None
    """It is for a bottle's whole nodes, or only for a world that has none."""


def draw(
    rng: random.Random, count: int, hosts: Sequence[str], kinds: Mapping[str, Kind], *,
    members_change: bool = False, whole: bool = False, every_s: float = EVERY_S,
) -> list[Fault]:  # fmt: skip
    """So many faults among these hosts, in the order of their time."""
    names = [
        name for name, kind in kinds.items()
        if (members_change or not kind.of_members) and kind.whole in (None, whole)
    ]  # fmt: skip
    weights = [kinds[name].often for name in names]
    schedule, at_s = [], 0.0
    for _ in range(count):
        at_s += rng.uniform(0.1, 2 * every_s - 0.1)
        (name,) = rng.choices(names, weights)
        kind = kinds[name]
        victim = LEADER if rng.random() < 0.3 else rng.choice(hosts)
        other = rng.choice([host for host in hosts if host != victim]) if kind.pair else ""
        schedule.append(Fault(
            round(at_s, 3), name, victim, other, round(rng.uniform(*kind.for_s), 3),
            {word: round(rng.uniform(*bounds), 3) for word, bounds in sorted(kind.how.items())},
        ))  # fmt: skip
    return schedule
