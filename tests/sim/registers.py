"""Histories of registers, and whether their reads were ever stale.

Every value is written once, so the log itself says in which order a register had its values; what
clients saw must fit that order and the times at which they asked.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


class Stale(AssertionError):
    """A client saw what it could not have seen, had there been one register."""


@dataclass(slots=True)
class Write:
    key: str
    value: bytes
    began: float
    ended: float = math.inf
    """When it was acknowledged; inf: it never was, and may have been done at any time."""


@dataclass(slots=True)
class Read:
    key: str
    began: float
    ended: float
    value: bytes | None


@dataclass
class History:
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)

    def check(self, order: Mapping[bytes, int]) -> None:
        """`order`: the place of each value among all that were applied."""
        writes: dict[str, list[Write]] = defaultdict(list)
        reads: dict[str, list[Read]] = defaultdict(list)
        for write in self.writes:
            if write.ended < math.inf and write.value not in order:
                raise Stale(f"{write} was acknowledged, and never applied")
            writes[write.key].append(write)
        for read in self.reads:
            reads[read.key].append(read)
        for key in reads.keys() | writes.keys():
            _check_key(writes[key], reads[key], order)


@dataclass(slots=True)
class Glance:
    """What a register was at one node, between its start and its end: by its own word, or as it
    was vouched for."""

    life: int
    key: str
    began: float
    ended: float
    value: bytes | None
    local: bool = True


def check_glances(glances: Sequence[Glance], order: Mapping[bytes, int]) -> None:
    """What a node has by itself may be old, and is never older than what it showed before."""
    lives: dict[tuple[int, str], list[Glance]] = defaultdict(list)
    for glance in glances:
        lives[glance.life, glance.key].append(glance)
    for mine in lives.values():
        by_end = sorted(mine, key=lambda each: each.ended)
        newest, newest_of, at = -1, None, 0
        for glance in sorted(mine, key=lambda each: each.began):
            while at < len(by_end) and by_end[at].ended < glance.began:
                place = _place_of(by_end[at], order)
                if place > newest:
                    newest, newest_of = place, by_end[at]
                at += 1
            if glance.local and _place_of(glance, order) < newest:
                raise Stale(f"{glance} began after {newest_of} had ended, at the same node")


def _place_of(glance: Glance, order: Mapping[bytes, int]) -> int:
    return -1 if glance.value is None else order[glance.value]


def _check_key(writes: list[Write], reads: list[Read], order: Mapping[bytes, int]) -> None:
    """Each operation takes its place in the order of values; who began after another had ended
    has no earlier one, and a write, whose value is new, has a later one."""
    began = {write.value: write for write in writes}
    seen: list[tuple[float, float, int, bool, object]] = []
    for write in writes:
        if write.value in order:
            seen.append((write.began, write.ended, order[write.value], True, write))
    for read in reads:
        if read.value is None:
            seen.append((read.began, read.ended, -1, False, read))
            continue
        source = began.get(read.value)
        if source is None or source.began > read.ended:
            raise Stale(f"{read} saw what nobody had written yet")
        seen.append((read.began, read.ended, order[read.value], False, read))
    by_end = sorted(seen, key=lambda each: each[1])
    newest, newest_of, at = -2, None, 0
    for start, _, place, writes_it, operation in sorted(seen, key=lambda each: each[0]):
        while at < len(by_end) and by_end[at][1] < start:
            if by_end[at][2] > newest:
                newest, newest_of = by_end[at][2], by_end[at][4]
            at += 1
        if place < newest or (writes_it and place == newest):
            raise Stale(f"{operation} began after {newest_of} had ended, and comes before it")
