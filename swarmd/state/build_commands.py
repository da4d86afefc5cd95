"""Commands about builds: see `swarmd.state.commands` for what holds of all."""

from __future__ import annotations

import msgspec

from swarmd.domain.binpkgs import BinPkg
from swarmd.domain.builds import Builder, Control, Controlled, HostSort, Outcome
from swarmd.domain.jobs import AttemptId, Job, NodeId, Result
from swarmd.domain.nodes import Node
from swarmd.state.command import Command


class PutBuilder(Command[Builder], frozen=True):
    """Make a builder known, or change what it says of itself. With a node, that one is put too.
    Proposed only where something changed. NotFound: no such node. Conflict: as for PutNode."""

    node_id: NodeId
    auto_reboot: bool = True
    tree_at: str = ""
    node: Node | None = None


class NoteBuilder(Command[Builder], frozen=True):
    """What somebody decided about a builder; None leaves it. NotFound: no such builder."""

    node_id: NodeId
    paused: bool | None = None
    sort: HostSort | None = None


class ForgetBuilder(Command[int], frozen=True):
    """A builder from outside is no more, nor what is known of it; what it held goes back. How much
    that was. NotFound: no such builder. Conflict: it is there, or a node of the swarm."""

    node_id: NodeId


class NotePresence(Command[int], frozen=True):
    """Builders that came or went, as the leader sees it; those that are gone are passed over.
    Fenced by term."""

    came: tuple[NodeId, ...]
    went: tuple[NodeId, ...]
    term: int


class TakeBuilds(Command[tuple[Job, ...]], frozen=True):
    """Give a builder that holds nothing the packages that are next for it. None where there is
    nothing for it, or it gets no work just now. NotFound: no such builder."""

    node_id: NodeId
    cores: int
    address: str = ""


class StartBuild(Command[bool], frozen=True):
    """A builder from outside says that it is at work on a package. Whether that was news."""

    node_id: NodeId
    package: str


class BuildEnd(msgspec.Struct, frozen=True):
    """What became of a report; `job` is None where the builder does not hold the package: then
    nothing was changed."""

    job: Job | None


class FinishBuild(Command[BuildEnd], frozen=True):
    """A builder's word on a package that it holds."""

    node_id: NodeId
    package: str
    outcome: Outcome
    duration_ms: int | None = None
    result: Result = Result()


class StagePackage(Command[None], frozen=True):
    """A binary package was put in staging; its blob is known. Without a builder it is there for
    whoever reports it built. Conflict: the builder does not hold the package. Busy: too many are
    there."""

    node_id: str
    file: str
    pkg: BinPkg


class DropStaged(Command[int], frozen=True):
    """Forget what is in staging since before a time. Answers how many. Fenced by term."""

    before: int
    limit: int
    term: int


class ReplaceBinPkg(Command[None], frozen=True):
    """The same package, signed anew, in place of the file that it was. NotFound: it is not there.
    Conflict: it is another file by now. Invalid: it is another package."""

    path: str
    replaces: str
    """The hash of that file."""
    pkg: BinPkg


class RemoveBinPkg(Command[None], frozen=True):
    """Take a binary package off the binary host. NotFound: it is not there."""

    path: str


class ReclaimBuilds(Command[int], frozen=True):
    """Take packages back from builders, which are told. Attempts that have ended meanwhile are
    passed over. Fenced by term."""

    attempts: tuple[AttemptId, ...]
    reason: str
    lost: bool
    """It counts as a recovery: the builder is silent, or was for too long."""
    term: int


class TakeRevoked(Command[tuple[str, ...]], frozen=True):
    """What was taken back from a builder since it was last told; now it is."""

    node_id: NodeId
    limit: int


class ControlBuilds(Command[Controlled], frozen=True):
    """An operator's word on the queue of packages, or on one package or builder. Up to `limit` are
    touched. NotFound: the target is none that there is. Conflict: it stands otherwise."""

    action: Control
    limit: int
    target: str | None = None
