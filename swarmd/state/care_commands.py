"""Commands about the care for builders: see `swarmd.state.commands` for what holds of all."""

from __future__ import annotations

from swarmd.domain.care import Care, CareAction
from swarmd.domain.jobs import NodeId
from swarmd.state.command import Command


class BeginCare(Command[Care], frozen=True):
    """An action is about to be taken on a builder; where that may lose what it holds, it is given
    back first, and the builder gets nothing meanwhile. NotFound: no such builder. Conflict: another
    is being cared for, or such a step is not to be taken on this one. Fenced by term."""

    node_id: NodeId
    action: CareAction
    rises: bool
    """It is a step of the ladder; else it is for a builder that was grounded."""
    failing_since: int | None
    reason: str
    term: int


class EndCare(Command[bool], frozen=True):
    """How the action on a builder ended. Whether one was under way. Fenced by term."""

    node_id: NodeId
    ok: bool
    detail: str
    term: int


class EaseCare(Command[int], frozen=True):
    """These builders are well again: they stand at the foot of the ladder. Answers for how many
    that was new. Fenced by term."""

    node_ids: tuple[NodeId, ...]
    term: int


class ResetCare(Command[int], frozen=True):
    """Somebody says that a builder is to stand at the foot of the ladder. Answers where it stood.
    NotFound: no such builder."""

    node_id: NodeId
