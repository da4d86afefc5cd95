"""Which version of the machine is in force in a state, and which this program can apply.

A program never goes on with a state that is newer than itself: it would leave out what it does not
know, and be no replica any more."""

from __future__ import annotations

import functools
from collections.abc import Callable
from sqlite3 import Connection, Cursor
from typing import Any

import msgspec
import msgspec.inspect

from swarmd.domain.errors import Unavailable
from swarmd.state.commands import FIELDS_SINCE, SINCE, VERSION, Command

VERSION_KEY = "cluster_version"
BUILDS_SINCE = 3
"""What is there of builds came with it, their tables too."""
ORDER_SINCE = 4
"""Packages that wait for others are let go when those are given up."""
FORGOTTEN_SINCE = 4
"""A builder that goes leaves nothing behind."""
ONCE_SINCE = 4
"""A package is in the queue once. Sessions count what is forgotten of them, and what goes back
leaves nothing in staging and no count of losses once somebody says to try it again."""
TERMINALS_SINCE = 4
ROLLS_SINCE = 4
"""Rolls that outlive their node, and drones' own tokens."""
RESTARTS_SINCE = 5
"""A builder gives back what it holds before it is restarted, too."""
FORGET_SINCE = 5
"""Builders from outside are forgotten by a word of an operator, and their host keys with them."""
FIRST = 1
"""In force until the first is raised."""


class Outdated(Unavailable):
    """The swarm has gone on to a version that this program cannot apply: it must not run here."""


def outdated(in_force: int, known: int) -> Outdated:
    return Outdated(
        f"the swarm works as of version {in_force} of its state, and this swarmd knows no newer"
        f" one than {known}: start the newer swarmd here. There is no way back to this one",
        needs_version=in_force,
    )


def check_known(in_force: int, known: int = VERSION) -> None:
    """Raises Outdated."""
    if in_force > known:
        raise outdated(in_force, known)


def check_since(in_force: int, since: int, what: str) -> None:
    """Unavailable: the version that has it is not in force yet."""
    if in_force < since:
        raise Unavailable(
            f"the swarm works as of version {in_force} of its state, and {what} came with"
            f" {since}: wait until all of its nodes run a newer swarmd"
        )


def in_force(execute: Callable[..., Cursor]) -> int:
    row = execute("SELECT value FROM settings WHERE key = ?", (VERSION_KEY,)).fetchone()
    return FIRST if row is None else int(row[0])


def in_force_in(conn: Connection) -> int:
    """Of a file, which may be empty yet."""
    known = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'settings'"
    return FIRST if conn.execute(known).fetchone() is None else in_force(conn.execute)


def needs(command: Command[Any]) -> int:
    """The version from which on it may be proposed: for its kind, and for the fields it uses."""
    needed = SINCE[type(command)]
    newer = not _parts_of(type(command)).isdisjoint(FIELDS_SINCE)
    return max(needed, _fields_need(command)) if newer else needed


@functools.cache
def _parts_of(kind: type) -> frozenset[type]:
    """What a command of this kind may be made of: most kinds have nothing that came later, and of
    these there are many."""
    return frozenset(_structs_in(msgspec.inspect.type_info(kind), set()))


def _structs_in(info: object, seen: set[type]) -> set[type]:
    """All structs that a value of a type may hold."""
    if isinstance(info, msgspec.inspect.StructType):
        if info.cls in seen:
            return seen
        seen.add(info.cls)
        for field in info.fields:
            _structs_in(field.type, seen)
        return seen
    parts = [getattr(info, name, ()) for name in ("types", "item_types")]
    inner = [getattr(info, name, None) for name in ("item_type", "key_type", "value_type")]
    for part in (*(each for group in parts for each in group), *inner):
        if part is not None:
            _structs_in(part, seen)
    return seen


def _fields_need(value: object) -> int:
    needed = FIRST
    if isinstance(value, msgspec.Struct):
        since = FIELDS_SINCE.get(type(value), {})
        for field in _fields_of(type(value)):
            used = getattr(value, field.name)
            if field.name in since and used != _default(field):
                needed = max(needed, since[field.name])
            needed = max(needed, _fields_need(used))
    elif isinstance(value, tuple | list | frozenset):
        needed = max((_fields_need(each) for each in value), default=FIRST)
    elif isinstance(value, dict):
        needed = max((_fields_need(each) for each in value.values()), default=FIRST)
    return needed


@functools.cache
def _fields_of(kind: type[msgspec.Struct]) -> tuple[msgspec.structs.FieldInfo, ...]:
    """msgspec compiles the words of every annotation anew whenever it is asked."""
    return msgspec.structs.fields(kind)


def _default(field: msgspec.structs.FieldInfo) -> object:
    made = field.default_factory
    return field.default if made is msgspec.NODEFAULT else made()
