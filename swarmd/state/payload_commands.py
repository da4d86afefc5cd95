"""Commands about payloads: see `swarmd.state.commands` for what holds of all."""

from __future__ import annotations

from swarmd.domain.jobs import NodeId
from swarmd.domain.payloads import (
    Deployment,
    Payload,
    PayloadSort,
    Place,
    Progress,
    Roll,
    Rolling,
)
from swarmd.state.command import Command


class PutPayload(Command[Payload], frozen=True):
    """Make a version known; answers the one that is there, where it is the same. Conflict: that
    version is another file, or there are too many. NotFound: nobody has such a blob."""

    payload: Payload


class DropPayload(Command[None], frozen=True):
    """Forget a version. NotFound: there is none. Conflict: it lies on a builder."""

    sort: PayloadSort
    version: str


class HoldPayload(Command[int], frozen=True):
    """Be the one who deploys a sort, to one builder or, with none named, to any: for so long, and
    as often again as it takes. Answers until when. Conflict: another is at it, or was and was
    too late to hold on. Invalid: too long."""

    sort: PayloadSort
    node_id: str
    holder: str
    for_ms: int
    again: bool = False


class ReleasePayload(Command[bool], frozen=True):
    """Be it no longer. Whether it still was."""

    sort: PayloadSort
    node_id: str
    holder: str


class BeginRoll(Command[Rolling], frozen=True):
    """Put down what is rolled out, so that it outlives the node that is at it. One of the same sort
    that did not end is given up. Conflict: somebody else holds the sort. Invalid: too many."""

    roll: Roll
    holder: str


class TakeRoll(Command["Rolling | None"], frozen=True):
    """Go on with the roll of a sort where another node left it. None: there is none, or it was left
    too often or too long ago, and is given up. Conflict: somebody else holds the sort."""

    sort: PayloadSort
    holder: str


class NoteRoll(Command[None], frozen=True):
    """How far it has come. Conflict: somebody else holds the sort. NotFound: there is none."""

    sort: PayloadSort
    holder: str
    progress: Progress


class EndRoll(Command[bool], frozen=True):
    """It is over: `whole`, or stopped before all had their turn. Whether there was one. Conflict:
    somebody else holds the sort."""

    sort: PayloadSort
    holder: str
    whole: bool


class NoteDeployment(Command[Deployment], frozen=True):
    """A step of a deployment, for the log, and what lies on the builder from then on, where that
    is to be changed. NotFound: no such node."""

    deployment: Deployment
    place: Place | None = None


class ForgetHostKey(Command[bool], frozen=True):
    """Believe the next key that a builder's host shows first. Whether one was kept."""

    node_id: NodeId
