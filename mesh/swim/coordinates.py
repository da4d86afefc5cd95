"""Vivaldi coordinates: where a node stands in a space whose distances are round-trip times.

Eight dimensions, a height for the way out of the host, an adjustment for what the space cannot
tell, and gravity toward the origin, as Serf has them. What is no number, or no distance on Earth,
moves nobody.
"""

from __future__ import annotations

import math
import struct

import msgspec

from mesh.swim.settings import Rng

DIMENSIONS = 8
ERROR_MAX = 1.5
_ERROR_SHARE = 0.25
_FORCE_SHARE = 0.25
_HEIGHT_MIN_S = 10e-6
_GRAVITY_RHO_S = 150.0
_ADJUSTMENTS = 20
_RTT_MAX_S = 10.0
_COMPONENT_MAX_S = 60.0
_TINY = 1e-6
_PACKED = struct.Struct(f"<{DIMENSIONS + 3}f")

Vector = tuple[float, ...]
ORIGIN: Vector = (0.0,) * DIMENSIONS


class Coordinate(msgspec.Struct, frozen=True, gc=False):
    vector: Vector = ORIGIN
    height_s: float = _HEIGHT_MIN_S
    adjustment_s: float = 0.0
    error: float = ERROR_MAX

    def pack(self) -> bytes:
        return _PACKED.pack(*self.vector, self.height_s, self.adjustment_s, self.error)


def unpack(packed: bytes) -> Coordinate | None:
    """None where it says nothing that can be."""
    if len(packed) != _PACKED.size:
        return None
    *vector, height_s, adjustment_s, error = _PACKED.unpack(packed)
    # A comparison with what is not a number is false.
    possible = (
        all(-_COMPONENT_MAX_S <= part <= _COMPONENT_MAX_S for part in vector)
        and 0 <= height_s <= _COMPONENT_MAX_S
        and -_COMPONENT_MAX_S <= adjustment_s <= _COMPONENT_MAX_S
        and 0 <= error <= 2 * ERROR_MAX
    )
    return Coordinate(tuple(vector), height_s, adjustment_s, error) if possible else None


def distance(a: Coordinate, b: Coordinate) -> float:
    """The round trip between the two, estimated, in seconds."""
    raw = _raw_distance(a, b)
    adjusted = raw + a.adjustment_s + b.adjustment_s
    return adjusted if adjusted > 0 else raw


class Locator:
    """This node's own coordinate, moved by each round trip that it measures."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self.here = Coordinate()
        self.packed = self.here.pack()
        self._adjustments = [0.0] * _ADJUSTMENTS
        self._at = 0

    def measured(self, other: Coordinate, rtt_s: float) -> None:
        if not 0 < rtt_s <= _RTT_MAX_S:
            return
        here = self._pull(other, rtt_s)
        self._adjustments[self._at] = rtt_s - _raw_distance(here, other)
        self._at = (self._at + 1) % _ADJUSTMENTS
        adjustment_s = sum(self._adjustments) / (2 * _ADJUSTMENTS)
        here = self._fall(here)
        self.here = Coordinate(here.vector, here.height_s, adjustment_s, here.error)
        self.packed = self.here.pack()

    def _pull(self, other: Coordinate, rtt_s: float) -> Coordinate:
        """Nearer or further by a share of what is wrong, more so while this node is less sure."""
        here = self.here
        apart = _raw_distance(here, other)
        wrong = abs(apart - rtt_s) / max(rtt_s, _TINY)
        weight = here.error / max(here.error + other.error, _TINY)
        error = min(
            ERROR_MAX, _ERROR_SHARE * weight * wrong + here.error * (1 - _ERROR_SHARE * weight)
        )
        force = _FORCE_SHARE * weight * (rtt_s - apart)
        return self._pushed(here, force, other, error)

    def _fall(self, here: Coordinate) -> Coordinate:
        """Toward the origin, so that all coordinates together do not drift away."""
        centre = Coordinate()
        apart = _raw_distance(here, centre)
        force = -min((apart / _GRAVITY_RHO_S) ** 2, apart)
        return self._pushed(here, force, centre, here.error) if here.vector != ORIGIN else here

    def _pushed(
        self, here: Coordinate, force: float, other: Coordinate, error: float
    ) -> Coordinate:
        """By so much away from the other."""
        away = [mine - its for mine, its in zip(here.vector, other.vector, strict=True)]
        length = math.hypot(*away)
        if length <= _TINY:
            away = [self._rng.random() - 0.5 for _ in here.vector]
            unit_length, length = max(math.hypot(*away), _TINY), 0.0
        else:
            unit_length = length
        vector = tuple(
            max(-_COMPONENT_MAX_S, min(_COMPONENT_MAX_S, mine + force * part / unit_length))
            for mine, part in zip(here.vector, away, strict=True)
        )
        height_s = here.height_s
        if length > _TINY:
            height_s += (here.height_s + other.height_s) * force / length
        height_s = min(_COMPONENT_MAX_S, max(_HEIGHT_MIN_S, height_s))
        return Coordinate(vector, height_s, here.adjustment_s, error)


def _raw_distance(a: Coordinate, b: Coordinate) -> float:
    return math.dist(a.vector, b.vector) + a.height_s + b.height_s
