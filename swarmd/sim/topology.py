"""Topologies: which nodes a simulated swarm has, the ways between them, and how work comes.

What a person wrote is checked here, wholly, before anything begins; every refusal says what would
be right.
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec

from swarmd.cluster.replica import ReplicaSettings
from swarmd.cluster.serving import ServingSettings
from swarmd.domain.errors import Invalid
from swarmd.domain.jobs import RETRIES_MAX, Constraint, JobKind, Priority, Resources
from swarmd.domain.nodes import Capacity
from swarmd.values import node_name, size_bytes

NODES_MAX = ReplicaSettings().replicas_max * (1 + ServingSettings().sessions_max)
"""Who has no replica is the guest of one that has: more than that never meet."""
WAYS_MAX = 200_000
"""Of the network that differ from the others: each is kept."""
FILE_BYTES_MAX = 1 << 20
SLOTS, CPUS, MEMORY_BYTES = 4, 4.0, 8 << 30
"""What a node offers where nothing else is said."""
JOBS_A_MINUTE_MAX = 60_000.0
PRIORITIES = {
    "foreground": Priority.FOREGROUND,
    "background": Priority.BACKGROUND,
    "best-effort": Priority.BEST_EFFORT,
}
BUSY_SHARE = 0.5
"""How much of all slots the usual load keeps busy."""
USUAL_JOBS_A_MINUTE_MAX = 600.0


@dataclass(frozen=True)
class PlannedNode:
    """One that is to be there from the beginning."""

    name: str
    group: str
    capacity: Capacity
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """Both ways between two sets of nodes."""

    here: tuple[str, ...]
    there: tuple[str, ...]
    delay_s: tuple[float, float]
    loss: float = 0.0

    def ways(self) -> Iterator[tuple[str, str]]:
        for one in self.here:
            for other in self.there:
                if one != other:
                    yield one, other
                    yield other, one


@dataclass(frozen=True)
class Load:
    """Jobs of one sort, which come by chance."""

    name: str
    jobs_a_minute: float
    length_s: tuple[float, float]
    resources: Resources = field(default_factory=Resources)
    constraints: tuple[Constraint, ...] = ()
    priority: int = Priority.BACKGROUND
    retries: int = 0
    kind: JobKind = JobKind.BINARY


@dataclass(frozen=True)
class Topology:
    nodes: tuple[PlannedNode, ...]
    links: tuple[Link, ...] = ()
    load: tuple[Load, ...] = ()

    def choose(
        self, words: Sequence[str], of: str = "", others: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """Nodes by name, by group, or by a label as NAME=VALUE; or others that are not nodes, by
        name. Invalid names what there is."""
        chosen: dict[str, None] = {}
        for word in map(str.strip, words):
            key, equals, value = word.partition("=")
            found = [
                node.name for node in self.nodes
                if word in (node.name, node.group) or (equals and node.labels.get(key) == value)
            ]  # fmt: skip
            found += [name for name in others if name == word and name not in found]
            if not found or not word:
                names = [*(node.name for node in self.nodes), *others]
                raise Invalid(
                    f"{of}{word[:80]!r} is no node, group or label=value of this swarm; there are"
                    f" {listed(names)}"
                )
            chosen |= dict.fromkeys(found)
        return tuple(chosen)


def listed(names: Sequence[str], shown: int = 12) -> str:
    """`a, b, c and 17 more`"""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """`1 node`, `2 nodes`"""
    return f"{count} {noun}{'s' * (count != 1)}"


def equal_nodes(count: int) -> Topology:
    """n1, n2 and so on, each like the others."""
    check_count(count)
    capacity = Capacity(SLOTS, CPUS, MEMORY_BYTES)
    return Topology(tuple(PlannedNode(f"n{i}", "", capacity) for i in range(1, count + 1)))


def check_count(count: int) -> None:
    if not 1 <= count <= NODES_MAX:
        raise Invalid(f"a simulated swarm has 1 to {NODES_MAX} nodes, not {count}")


def usual_load(nodes: Sequence[PlannedNode], length_s: float) -> Load:
    """Jobs that keep about half of the slots busy, and no more than the simulator bears."""
    slots = sum(node.capacity.slots for node in nodes)
    rate = min(USUAL_JOBS_A_MINUTE_MAX, BUSY_SHARE * slots * 60 / length_s)
    return Load("job", round(max(rate, 1.0), 3), (length_s / 2, 1.5 * length_s))


def load_of(jobs_a_minute: float, length_s: float) -> tuple[Load, ...]:
    """None where none are to come."""
    if not 0 <= jobs_a_minute <= JOBS_A_MINUTE_MAX:
        raise Invalid(f"0 to {JOBS_A_MINUTE_MAX:g} jobs come a minute, not {jobs_a_minute:g}")
    if not jobs_a_minute:
        return ()
    return (Load("job", jobs_a_minute, (length_s / 2, 1.5 * length_s)),)


# A topology's file

_Positive = Annotated[float, msgspec.Meta(gt=0, le=1e6)]
_Share = Annotated[float, msgspec.Meta(ge=0, le=0.9)]
_Delay = Annotated[float, msgspec.Meta(ge=0, le=10_000)]
_Seconds = Annotated[float, msgspec.Meta(ge=0.01, le=86_400)]
_Pair = msgspec.Meta(min_length=2, max_length=2)
"""Of a list: a union with a tuple of two makes msgspec 0.22 crash."""
_Word = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _Nodes(_Strict, frozen=True):
    name: _Word
    count: Annotated[int, msgspec.Meta(ge=1, le=NODES_MAX)] | None = None
    slots: Annotated[int, msgspec.Meta(ge=0, le=1024)] = SLOTS
    cpu: _Positive = CPUS
    memory: str | int = MEMORY_BYTES
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    labels: Annotated[dict[_Word, _Word], msgspec.Meta(max_length=64)] = {}


class _Link(_Strict, frozen=True):
    between: tuple[_Word, _Word]
    delay_ms: _Delay | Annotated[list[_Delay], _Pair] = 1.0
    loss: _Share = 0.0


class _Load(_Strict, frozen=True):
    jobs_a_minute: Annotated[float, msgspec.Meta(gt=0, le=JOBS_A_MINUTE_MAX)]
    seconds: _Seconds | Annotated[list[_Seconds], _Pair] = 30.0
    name: Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")] = "job"
    cpu: _Positive | None = None
    memory: str | int | None = None
    gpus: Annotated[int, msgspec.Meta(ge=0, le=64)] = 0
    priority: str | int = "background"
    retries: Annotated[int, msgspec.Meta(ge=0, le=RETRIES_MAX)] = 0
    constraints: Annotated[tuple[_Word, ...], msgspec.Meta(max_length=16)] = ()


class _File(_Strict, frozen=True):
    nodes: Annotated[tuple[_Nodes, ...], msgspec.Meta(min_length=1, max_length=NODES_MAX)]
    links: Annotated[tuple[_Link, ...], msgspec.Meta(max_length=1000)] = ()
    load: _Load | Annotated[tuple[_Load, ...], msgspec.Meta(max_length=100)] = ()


def read_topology(path: Path) -> Topology:
    """Invalid: it cannot be read, or something in it is not as it should be."""
    text = read_text(path)
    try:
        file = msgspec.convert(tomllib.loads(text), _File)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise Invalid(f"{path} is no TOML: {error}") from error
    except msgspec.ValidationError as error:
        raise Invalid(f"{path}: {str(error).replace('`$.', '`')}") from error
    try:
        return _topology(file)
    except Invalid as problem:
        raise Invalid(f"{path}: {problem.message}") from problem


def read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
        if len(data) > FILE_BYTES_MAX:
            raise Invalid(f"{path} is larger than {FILE_BYTES_MAX} bytes")
        return data.decode()
    except OSError as error:
        raise Invalid(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Invalid(f"{path} is no text in UTF-8: {error.reason}") from error


def _topology(file: _File) -> Topology:
    check_count(sum(group.count or 1 for group in file.nodes))
    nodes = tuple(node for group in file.nodes for node in _nodes(group))
    check_names([node.name for node in nodes])
    load = (file.load,) if isinstance(file.load, _Load) else file.load
    check_distinct([each.name for each in load], "load")
    bare = Topology(nodes)
    topology = Topology(
        nodes, tuple(_link(bare, link) for link in file.links), tuple(map(_load, load))
    )
    if (ways := sum(2 * len(li.here) * len(li.there) for li in topology.links)) > WAYS_MAX:
        raise Invalid(
            f"the links are about {ways} ways from a node to another, and at most {WAYS_MAX} may"
            " differ from the rest; link smaller groups"
        )
    return topology


def check_names(names: Sequence[str]) -> None:
    for name in names:
        node_name(name)
    check_distinct(names, "node")


def check_distinct(names: Sequence[str], what: str) -> None:
    if twice := sorted(name for name, count in Counter(names).items() if count > 1):
        raise Invalid(f"there is more than one {what} called {listed(twice)}")


def _nodes(group: _Nodes) -> Iterator[PlannedNode]:
    devices = tuple(f"gpu{i}" for i in range(group.gpus))
    capacity = Capacity(group.slots, group.cpu, _bytes(group.memory), devices)
    names = [group.name]
    if group.count is not None:
        names = [f"{group.name}{i}" for i in range(1, group.count + 1)]
    for name in names:
        yield PlannedNode(name, group.name, capacity, dict(group.labels))


def _link(topology: Topology, link: _Link) -> Link:
    here, there = (topology.choose([word], "links: ") for word in link.between)
    low, high = _range(link.delay_ms, "delay_ms")
    return Link(here, there, (low / 1000, high / 1000), link.loss)


def _load(load: _Load) -> Load:
    priority = load.priority
    if isinstance(priority, str):
        if priority not in PRIORITIES:
            raise Invalid(
                f"load {load.name}: {priority[:40]!r} is no priority; write"
                f" {', '.join(PRIORITIES)} or a whole number"
            )
        priority = PRIORITIES[priority]
    if not -(2**31) <= priority < 2**31:
        raise Invalid(f"load {load.name}: a priority has up to nine digits")
    memory = None if load.memory is None else _bytes(load.memory)
    return Load(
        load.name, load.jobs_a_minute, _range(load.seconds, "seconds"),
        Resources(load.cpu, memory, load.gpus),
        tuple(map(Constraint.parse, load.constraints)), priority, load.retries,
    )  # fmt: skip


def _range(value: float | list[float], what: str) -> tuple[float, float]:
    low, high = value if isinstance(value, list) else (value, value)
    if low > high:
        raise Invalid(f"{what} goes from {low:g} down to {high:g}; write the smaller first")
    return low, high


def _bytes(value: str | int) -> int:
    found = size_bytes(str(value))
    if found > 1 << 50:
        raise Invalid(f"{value} is more memory than a node has")
    return found
