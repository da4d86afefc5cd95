"""Nodes: hosts of every kind that the swarm knows, and what they can do."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from swarmd.domain.jobs import Constraint, NodeId, Resources


class NodeKind(StrEnum):
    MEMBER = "member"
    DRONE = "drone"
    EXECUTOR = "executor"
    HOST = "host"
    PROFILER = "profiler"


class AdminState(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    DRAINING = "draining"
    MAINTENANCE = "maintenance"


class TaintEffect(StrEnum):
    NO_SCHEDULE = "NoSchedule"
    PREFER_NO_SCHEDULE = "PreferNoSchedule"
    NO_EXECUTE = "NoExecute"


class Taint(msgspec.Struct, frozen=True):
    key: str
    effect: TaintEffect
    value: str = ""


class Capacity(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node offers. A device is exclusive and named `node:device` once it is granted."""

    slots: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: tuple[str, ...] = ()
    """Such as gpu0, gpu1."""


class Node(msgspec.Struct, frozen=True, omit_defaults=True):
    id: NodeId
    name: str
    kind: NodeKind = NodeKind.MEMBER
    addresses: tuple[str, ...] = ()
    mesh: tuple[str, ...] = ()
    """Where other nodes reach it, `host:port`, the best first."""
    reach: tuple[str, ...] = ("mesh",)
    """Ways to it: mesh, http, ssh."""
    capabilities: tuple[str, ...] = ()
    capacity: Capacity = Capacity()
    labels: dict[str, str] = {}
    taints: tuple[Taint, ...] = ()
    admin: AdminState = AdminState.ACTIVE
    arch: str = ""
    os: str = ""
    version: str = ""
    machine_version: int = 1
    """The newest version of the replicated state that it can apply."""
    public_key: bytes = b""
    """Ed25519: what its certificate is about."""
    box_key: bytes = b""
    """X25519: what is sealed to it only this node opens."""
    tenant: str = "default"
    namespace: str = "default"
    born: int = 0
    """The entry of the log that took it in: of two with one name the older keeps it."""
    revision: int = 0


def attribute(node: Node, key: str) -> str | None:
    """The node's value for a constraint's key, None where it has none."""
    if key.startswith("node.labels."):
        return node.labels.get(key.removeprefix("node.labels."))
    match key:
        case "node.id":
            return node.id
        case "node.name":
            return node.name
        case "node.kind":
            return node.kind.value
        case "node.arch":
            return node.arch
        case "node.os":
            return node.os
    return None


def satisfies(node: Node, constraint: Constraint) -> bool:
    """`!=` holds for a node that lacks the attribute, `==` does not."""
    have = attribute(node, constraint.key)
    return (have == constraint.value) == (constraint.op == "==")


class Usage(msgspec.Struct, frozen=True):
    """What the attempts that a node holds take of its capacity."""

    slots: int = 0
    cpus: float = 0.0
    memory_bytes: int = 0
    devices: frozenset[str] = frozenset()

    def plus(self, need: Resources, devices: tuple[str, ...]) -> Usage:
        return Usage(
            self.slots + 1,
            self.cpus + (need.cpus or 0.0),
            self.memory_bytes + (need.memory_bytes or 0),
            self.devices | frozenset(devices),
        )


def obstacles(node: Node, need: Resources, constraints: tuple[Constraint, ...]) -> list[str]:
    """Why this node can never take such work as it stands, in words for the user."""
    reasons = []
    if node.admin is not AdminState.ACTIVE:
        reasons.append(f"the node is {node.admin.value}")
    if node.capacity.slots == 0:
        reasons.append("the node runs no jobs")
    reasons += [
        f"constraint {c} is not met (here: {attribute(node, c.key) or 'not set'})"
        for c in constraints
        if not satisfies(node, c)
    ]
    reasons += [
        f"taint {t.key}={t.value}:{t.effect.value}"
        for t in node.taints
        if t.effect is not TaintEffect.PREFER_NO_SCHEDULE
    ]
    if need.cpus and need.cpus > node.capacity.cpus:
        reasons.append(f"needs {need.cpus:g} cpus, the node has {node.capacity.cpus:g}")
    if need.memory_bytes and need.memory_bytes > node.capacity.memory_bytes:
        reasons.append(
            f"needs {need.memory_bytes} bytes of memory, the node has {node.capacity.memory_bytes}"
        )
    gpus = sum(d.startswith("gpu") for d in node.capacity.devices)
    if need.gpus > gpus:
        reasons.append(f"needs {need.gpus} gpus, the node has {gpus}")
    return reasons


def shortages(node: Node, used: Usage, need: Resources) -> list[str]:
    """Why this node cannot take such work just now, though it could when others end."""
    reasons = []
    if need.cpus and used.cpus + need.cpus > node.capacity.cpus + 1e-9:
        free = node.capacity.cpus - used.cpus
        reasons.append(f"needs {need.cpus:g} cpus, {free:g} are free")
    if need.memory_bytes and used.memory_bytes + need.memory_bytes > node.capacity.memory_bytes:
        free_bytes = node.capacity.memory_bytes - used.memory_bytes
        reasons.append(f"needs {need.memory_bytes} bytes of memory, {free_bytes} are free")
    if need.gpus and need.gpus > len(free_gpus(node, used)):
        reasons.append(f"needs {need.gpus} gpus, {len(free_gpus(node, used))} are free")
    return reasons


def free_gpus(node: Node, used: Usage) -> tuple[str, ...]:
    """Names of the node's unheld GPUs as `node:gpuN`, in order."""
    named = (f"{node.name}:{d}" for d in node.capacity.devices if d.startswith("gpu"))
    return tuple(d for d in named if d not in used.devices)
