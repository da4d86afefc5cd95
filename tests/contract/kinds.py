"""Kinds of JSON values, for the tables: what a field may hold, said once and checked everywhere.

A shape names each documented field; an answer may hold more fields, never fewer or other kinds.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    said: str
    holds: Callable[[object], bool]


Shape = Kind | Mapping[str, "Shape"] | list["Shape"] | None
"""A kind, an object with these fields, an array of one shape each, or None for an empty body."""

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")

TEXT = Kind("a text", lambda v: isinstance(v, str))
WHOLE = Kind("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool))
NUMBER = Kind("a number", lambda v: isinstance(v, int | float) and not isinstance(v, bool))
YES_NO = Kind("true or false", lambda v: isinstance(v, bool))
TIME = Kind(
    "a time such as 2024-01-01T12:00:00Z", lambda v: isinstance(v, str) and bool(_TIME.fullmatch(v))
)
COUNT = Kind("a whole number from 0", lambda v: WHOLE.holds(v) and int(str(v)) >= 0)
TEXTS = Kind("an array of texts", lambda v: isinstance(v, list) and all(map(TEXT.holds, v)))
TEXT_MAP = Kind(
    "an object of texts", lambda v: isinstance(v, dict) and all(map(TEXT.holds, v.values()))
)
OBJECT = Kind("an object", lambda v: isinstance(v, dict))


def maybe(kind: Kind) -> Kind:
    return Kind(f"{kind.said} or null", lambda v: v is None or kind.holds(v))


def one_of(*words: str) -> Kind:
    return Kind(f"one of {', '.join(words)}", lambda v: v in words)


def faults(value: object, shape: Shape, at: str = "$") -> list[str]:
    """What is wrong with a value, a line each; nothing where it fits."""
    if isinstance(shape, Kind):
        return [] if shape.holds(value) else [f"{at} should be {shape.said}, is {value!r:.80}"]
    if isinstance(shape, list):
        if not isinstance(value, list):
            return [f"{at} should be an array, is {value!r:.80}"]
        return [f for i, v in enumerate(value) for f in faults(v, shape[0], f"{at}[{i}]")]
    if shape is None:
        return [] if value is None else [f"{at} should be empty, is {value!r:.80}"]
    if not isinstance(value, dict):
        return [f"{at} should be an object, is {value!r:.80}"]
    found = [f"{at}.{name} is missing" for name in shape if name not in value]
    for name, inner in shape.items():
        if name in value:
            found += faults(value[name], inner, f"{at}.{name}")
    return found
