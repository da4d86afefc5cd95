"""What a command is, for those who define some."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Command(msgspec.Struct, Generic[T], frozen=True, tag=True, omit_defaults=True):
    """T is what the rule answers."""


class Refusal(msgspec.Struct, frozen=True):
    """Why one element of a batch was refused, in its place; `code` is a SwarmError's."""

    code: str
    message: str
    facts: dict[str, str] = {}
