"""Asks: what one node knows in its memory or on its disk and the replicated state does not hold."""

from __future__ import annotations

from typing import Any

import msgspec

from swarmd.cluster.handle import Ask, LogView, RingView, Rotated
from swarmd.domain.actors import Actor
from swarmd.domain.care import CareAction
from swarmd.domain.jobs import AttemptId, JobId, NodeId
from swarmd.domain.probes import Probed, ProbeStatus
from swarmd.domain.trees import Plan


class Beat(Ask[None], frozen=True):
    """An executor's sign of life for the job it runs; the leader keeps it in memory."""

    executor: str
    job_id: JobId


class LastBeat(msgspec.Struct, frozen=True):
    executor: str
    at: int
    """Milliseconds since 1970, by the leader's clock."""


class ListBeats(Ask["list[LastBeat]"], frozen=True):
    """Executors that gave a sign of life lately."""


class BuilderNews(msgspec.Struct, frozen=True):
    """What a builder is told."""

    paused: bool
    stop: str | None
    """It is at this package, and does not hold it."""


class BuilderBeat(Ask[BuilderNews], frozen=True):
    """A builder's sign of life; the leader keeps it in memory."""

    node_id: NodeId
    task: str | None
    """The package that it is at."""
    metrics: dict[str, float] = {}
    version: str = ""


class WantWork(Ask[None], frozen=True):
    """A builder came for work, and there was none for it."""

    node_id: NodeId


class BuilderSign(msgspec.Struct, frozen=True):
    node_id: NodeId
    at: int
    """Milliseconds since 1970, by the leader's clock."""
    task: str | None
    metrics: dict[str, float]
    version: str


class ListSigns(Ask["list[BuilderSign]"], frozen=True):
    """When each builder was last heard of, and what it said."""


class ProbeSign(msgspec.Struct, frozen=True):
    """What came of the last probe of a builder."""

    node_id: NodeId
    way: str
    """ssh or mesh; "" where there is none, and `detail` says why."""
    at: int | None = None
    """When it was asked, in milliseconds since 1970, by the leader's clock."""
    answered_at: int | None = None
    """When it last answered."""
    latency_ms: float | None = None
    status: ProbeStatus | None = None
    found: Probed | None = None
    """What it last said of itself."""
    failures: int = 0
    """In a row."""
    detail: str = ""


class Probes(msgspec.Struct, frozen=True):
    running: bool
    round_at: int | None
    """When all were last probed."""
    signs: tuple[ProbeSign, ...]


class ListProbes(Ask[Probes], frozen=True):
    """What came of the last probes: for the node that leads."""


class ProbeNow(Ask[Probes], frozen=True):
    """Probe these builders at once: for the node that leads. Those with no way to them are passed
    over."""

    node_ids: tuple[NodeId, ...]
    waits: bool
    """For what comes of it."""


class ProbeHost(Ask[Probed], frozen=True):
    """How the host of the node is. Unavailable: it does not come to say it."""


class ActOnHost(Ask[None], frozen=True):
    """Do this to the host of the node, or to its service. It is only begun, where it would end the
    node. Unavailable: it cannot be done there."""

    action: CareAction


class Lease(msgspec.Struct, frozen=True):
    """The node may go on with its work."""

    lease_s: float
    """For so long, counted from when it asked."""
    alone: bool = False
    """It is the whole swarm: it may go on without end, once it has said so to the log."""


class RenewLease(Ask[Lease], frozen=True):
    """May this node go on with its work? For the node that leads, which answers once it is certain
    that it does. NotFound: the swarm does not know the node, or not any more."""

    node_id: NodeId


class ReadLog(Ask["LogChunk"], frozen=True):
    """Bytes of an attempt's output from an offset on. With `wait_s` it waits that long for some."""

    attempt_id: AttemptId
    stream: str
    offset: int
    bytes_max: int = 65536
    wait_s: float = 0.0


class LogChunk(msgspec.Struct, frozen=True):
    data: bytes
    next_offset: int
    """Past `offset` plus the data where a hole was cut out of a log that grew too long."""
    ended: bool
    """The attempt is over and this reaches the end of its log."""


class ReadClock(Ask[int], frozen=True):
    """The node's own clock, in milliseconds since 1970."""


class ReadLogView(Ask[LogView], frozen=True):
    """Where the log of the swarm stands, as the node that is asked sees it."""


class HandOver(Ask[None], frozen=True):
    """Have another voter lead: for the node that leads. Refused as `Cluster.hand_over` is."""

    to: NodeId | None = None


class MemberRemoved(msgspec.Struct, frozen=True):
    name: str
    voters: int
    """So many vote from then on."""
    handed_over: bool = False
    """It was the leader's own removal: another leads now, and has to be asked again."""


class RemoveMember(Ask[MemberRemoved], frozen=True):
    """Take a node out of the swarm for good: for the node that leads. NotFound: no such node.
    Conflict: it is alive and `force` is not set, or the log would be left without a quorum.
    Unavailable: the swarm does not come to it in time."""

    node_id: NodeId
    actor: Actor
    force: bool = False
    idle: bool = False
    """The node itself says that it runs nothing, and will start nothing."""
    dry: bool = False
    """Only say whether it would be refused."""


class TakePlace(Ask[None], frozen=True):
    """Have a host that was set up anew be what it was, by name: its old self is removed, where that
    is gone and was at the same place. For the node that leads. NotFound: no member has this id.
    Conflict: it is alive, or was elsewhere, or the log would be left without a quorum. Unavailable:
    that is not certain yet."""

    node_id: NodeId
    """Who has the name."""
    mesh: tuple[str, ...]
    """Where the newcomer is reached, as it says."""
    source: str = ""
    """Where it asks from, `host:port`, as the wires say; "" where they do not."""


class MemberPromoted(msgspec.Struct, frozen=True):
    name: str
    voters: int


class PromoteMember(Ask[MemberPromoted], frozen=True):
    """Have a learner vote at once: for the node that leads. NotFound; Conflict: it votes already,
    has no replica, does not answer, or is behind."""

    node_id: NodeId


class ReadRing(Ask[RingView], frozen=True):
    """Which keys of the gossip the node has. One that knows of an older generation than this
    looks for the newer before it answers."""

    generation: int = 0


class RotateKeyring(Ask[Rotated], frozen=True):
    """Change the keys of the gossip: for the node that leads. Unavailable: a node that is there did
    not take a key in time; what was begun is gone on with the next time."""

    actor: Actor


class ReadSigningKey(Ask[bytes], frozen=True):
    """The public half of the key that signs packages, which is made where there is none. For a
    node that can open what the swarm keeps sealed; Unavailable: this one cannot."""


class SignDigest(Ask[bytes], frozen=True):
    """Put the key of packages to a SHA-512. For such a node as above. Unavailable: that is the
    swarm's key no longer. Invalid: it is no SHA-512."""

    fingerprint: str
    digest: bytes


class RotateSigningKey(Ask[bytes], frozen=True):
    """A new key for packages: its public half. For such a node as above. Conflict: another was made
    meanwhile."""

    actor: Actor


class ReadTree(Ask[str | None], frozen=True):
    """As of when the node's Portage tree is, in its own words; None: it has none."""


class PlanBuilds(Ask[Plan], frozen=True):
    """What these names of packages stand for, and which of them wait for which, by the node's
    Portage tree. NotFound: it has none. Busy, Unavailable: Portage does not come to an answer."""

    wants: tuple[str, ...]


class EndWork(Ask[None], frozen=True):
    """End what runs on the node, have the swarm queue it again, and start nothing more. With
    `resume`: take up work again."""

    resume: bool = False


class Trip(msgspec.Struct, frozen=True):
    """One node as another finds it."""

    node_id: NodeId
    times_ms: tuple[float, ...]
    """Of each question that was answered, there and back."""
    lost: int
    clock_ahead_ms: int | None
    """Its clock against that of the node that asked, half the way there and back taken off."""
    why: str = ""
    """Why the last that was lost was."""


class MeasureTrips(Ask["list[Trip]"], frozen=True):
    """How far others are from the node: so many questions to each."""

    node_ids: tuple[NodeId, ...]
    count: int


AnyAsk = (
    Beat
    | ListBeats
    | BuilderBeat
    | WantWork
    | ListSigns
    | ListProbes
    | ProbeNow
    | ProbeHost
    | ActOnHost
    | RenewLease
    | ReadLog
    | ReadClock
    | ReadLogView
    | HandOver
    | RemoveMember
    | TakePlace
    | PromoteMember
    | ReadRing
    | RotateKeyring
    | ReadSigningKey
    | SignDigest
    | RotateSigningKey
    | ReadTree
    | PlanBuilds
    | EndWork
    | MeasureTrips
)

ANSWERS: dict[type[Any], Any] = {
    Beat: None,
    ListBeats: list[LastBeat],
    BuilderBeat: BuilderNews,
    WantWork: None,
    ListSigns: list[BuilderSign],
    ListProbes: Probes,
    ProbeNow: Probes,
    ProbeHost: Probed,
    ActOnHost: None,
    RenewLease: Lease,
    ReadLog: LogChunk,
    ReadClock: int,
    ReadLogView: LogView,
    HandOver: None,
    RemoveMember: MemberRemoved,
    TakePlace: None,
    PromoteMember: MemberPromoted,
    ReadRing: RingView,
    RotateKeyring: Rotated,
    ReadSigningKey: bytes,
    SignDigest: bytes,
    RotateSigningKey: bytes,
    ReadTree: str | None,
    PlanBuilds: Plan,
    EndWork: None,
    MeasureTrips: list[Trip],
}
"""What each is answered with, on the wire too."""
