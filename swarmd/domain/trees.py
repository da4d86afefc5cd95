"""Portage trees: what a swarm reads out of one, and how old one is by its own words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from swarmd.domain.build_order import Edge, acyclic
from swarmd.domain.jobs import DEPENDENCIES_MAX

TREE = "tree"
"""The label of a package that was found in a tree: as of when that was."""
TREE_CHARS_MAX = 64
NEEDS_MAX = 16_000
"""Of all packages of a plan together."""
_STAMP = "%a, %d %b %Y %H:%M:%S %z"


class Stands(msgspec.Struct, frozen=True):
    """What one of the wanted stands for, by a tree."""

    packages: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    """What of it stands for nothing, or may not be built there."""
    error: str = ""
    """Why there are no packages."""
    known: bool = True
    """They are in the tree."""


class Plan(msgspec.Struct, frozen=True):
    """What wanted packages are by a tree, and what each of them has to wait for."""

    stands: tuple[Stands, ...]
    tree_at: str = ""
    needs: dict[str, tuple[str, ...]] = {}
    """Of wanted ones: others of them, or of those that are in the queue."""
    notes: tuple[str, ...] = ()


def needs_of(edges: Iterable[Edge], wanted: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Without circles, and without a word to those that are in the queue already: what they wait
    for stays as it is. Of very many needs those for building are kept first."""
    wanted = set(wanted)
    kept, _ = acyclic(edge for edge in edges if edge.after in wanted)
    found: dict[str, list[Edge]] = {}
    for edge in kept:
        found.setdefault(edge.after, []).append(edge)
    needs, left = dict[str, tuple[str, ...]](), NEEDS_MAX
    for after, before in found.items():
        some = sorted(before, key=lambda edge: not edge.build)[: min(left, DEPENDENCIES_MAX)]
        left -= len(some)
        if some:
            needs[after] = tuple(edge.before for edge in some)
    return needs


def in_order(packages: Sequence[str], needs: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """What others need goes before them; else as they came. A circle ends where it began."""
    left, done = dict.fromkeys(packages), list[str]()
    for start in packages:
        if start not in left:
            continue
        del left[start]
        path = [(start, iter(needs.get(start, ())))]
        while path:
            package, rest = path[-1]
            missing = next((need for need in rest if need in left), None)
            if missing is None:
                done.append(package)
                path.pop()
            else:
                del left[missing]
                path.append((missing, iter(needs.get(missing, ()))))
    return tuple(done)


def tree_time(text: str) -> float | None:
    """In seconds since 1970, of `Thu, 12 Feb 2026 00:30:01 +0000`, as trees say it themselves, of
    an ISO time, or of such seconds. None: it says none of these, and nobody can tell."""
    text = text.strip()
    for read in (_seconds, datetime.fromisoformat, _stamp):
        try:
            found = read(text)
        except (ValueError, OverflowError):
            continue
        if isinstance(found, float):
            return found
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    return None


def _seconds(text: str) -> float:
    found = float(text)
    if not math.isfinite(found) or not 1e8 <= found < 1e11:
        raise ValueError  # a date may be written without dashes
    return found


def _stamp(text: str) -> datetime:
    return datetime.strptime(text, _STAMP)


def is_older(text: str, than: str) -> bool:
    """Only where both are told."""
    here, there = tree_time(text), tree_time(than)
    return here is not None and there is not None and here < there
