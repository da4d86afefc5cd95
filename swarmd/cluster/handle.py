"""The four verbs. Whoever holds a Cluster need not know whether one node is behind it or fifty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from contextvars import ContextVar
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import msgspec
import trio

from swarmd.cluster.feed import Subscription
from swarmd.domain.actors import Actor
from swarmd.domain.blobs import BlobInfo
from swarmd.domain.events import Event
from swarmd.domain.jobs import NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Command
from swarmd.state.queries import Query

T = TypeVar("T")


class Ask(msgspec.Struct, Generic[T], frozen=True, tag=True, omit_defaults=True):
    """A question to one node's memory or disk, which the state does not hold. T is the answer."""


class Leader:
    """Whoever leads, as the target of an ask."""


LEADER = Leader()


class Leadership(msgspec.Struct, frozen=True):
    """Who leads, as far as a node knows. `ready` on the leader alone: everything of the terms
    before is applied, so that it can act."""

    leader: NodeId | None
    term: int
    ready: bool = False


class Progress(msgspec.Struct, frozen=True):
    """How far the leader has brought a member."""

    match: int
    state: str
    """probe, replicate or snapshot."""
    active: bool


class LogView(msgspec.Struct, frozen=True):
    """The log as this node sees it. `progress` is known on the leader alone."""

    term: int
    committed: int
    applied: int
    first: int
    last: int
    voters: tuple[NodeId, ...]
    learners: tuple[NodeId, ...]
    joint: bool
    """Between two sets of voters: both must agree."""
    progress: dict[NodeId, Progress]


class StateCopy(msgspec.Struct, frozen=True):
    index: int
    term: int
    size_bytes: int
    sha256: str


class Role(StrEnum):
    VOTER = "voter"
    LEARNER = "learner"
    AGENT = "agent"


class PeerView(msgspec.Struct, frozen=True):
    """What this node sees of a member: its part in the log, and whether it answers."""

    role: Role
    alive: bool
    """Also while it is only suspected."""
    rtt_ms: float | None = None
    state: str = "alive"
    """alive, suspect, dead or left."""


class Doubles(msgspec.Struct, frozen=True):
    """Whoever should not be there twice, as gossip hears it."""

    names: Mapping[str, tuple[tuple[NodeId, str], ...]] = {}
    """Names that several living nodes go by: ids and addresses, the one that keeps it first."""
    me: tuple[str, ...] = ()
    """Where another process runs under this node's own id."""


_local_reads: ContextVar[bool] = ContextVar("local_reads", default=False)


def reads_are_local() -> bool:
    return _local_reads.get()


def read_locally() -> None:
    """From here on in this task, and in those it starts, reads answer from this node's replica as
    it stands: for loops whose commands are checked when they are applied."""
    _local_reads.set(True)


@contextmanager
def local_reads(local: bool = True) -> Iterator[None]:
    """The same for as long as the body runs; or with False not so, whoever calls."""
    token = _local_reads.set(local)
    try:
        yield
    finally:
        _local_reads.reset(token)


class Channel(Protocol):
    """Bytes to and from another node, each way with an end of its own. Leaving it ends it; whoever
    is in the middle of something then gets Unavailable. Refusals of the other side come out of
    `receive` as they were raised there."""

    async def send(self, data: bytes) -> None: ...

    async def send_end(self) -> None: ...

    async def receive(self) -> bytes:
        """At least one byte; b"" at the end."""


ChannelAnswer = Callable[[bytes, Channel], Awaitable[None]]
"""(what was asked for, the channel)"""


class BlobPort(Protocol):
    """This node's way to blobs: its own disk, and whoever else has them."""

    async def put(
        self, chunks: AsyncIterator[bytes], *, expected_sha256: str | None = None
    ) -> BlobInfo:
        """Store, fsynced. OtherContent: the hash is another; TooLarge; Unavailable: the disk is
        full."""

    async def put_bytes(self, data: bytes) -> BlobInfo: ...

    def open(self, sha256: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """NotFound when nobody has it."""


class MadeToken(msgspec.Struct, frozen=True):
    token: str
    """Whoever has it can join: it is shown once, and nowhere else."""
    ends_at: int


class RingView(msgspec.Struct, frozen=True):
    """The keys that seal the swarm's gossip, by their ids: the keys themselves are never shown."""

    generation: int
    primary: str
    keys: tuple[str, ...]


class Rotated(msgspec.Struct, frozen=True):
    ring: RingView
    nodes: int
    """So many were there, and have it."""
    finished: bool
    """It was one that had been cut short."""


class TrustPort(Protocol):
    """Who may come in, and the keys that all share."""

    @property
    def certificate_ends_ms(self) -> int | None:
        """When this node's certificate ends; None: it has none."""

    @property
    def vouches(self) -> bool:
        """Whether this node can open what the swarm keeps sealed."""

    async def make_token(self, ttl_s: float, *, alone: bool, actor: Actor) -> MadeToken:
        """Good for so long; with `alone` no older one is from then on."""

    async def drop_tokens(self, actor: Actor) -> int:
        """Let nobody join by a token any more. NotFound: none is good."""

    async def open_secret(self, name: str) -> tuple[bytes, int] | None:
        """What the swarm keeps sealed by this name, and its revision; None: nothing. Unavailable:
        this node cannot open it."""

    async def put_secret(self, name: str, plain: bytes, replaces: int, actor: Actor) -> int:
        """Seal it, in place of what has the revision `replaces` (0: nothing). Its revision.
        Conflict: another came between. Unavailable: as for open_secret."""


class Cluster(Protocol):
    node: Node
    cluster_id: str
    blobs: BlobPort

    @property
    def trust(self) -> TrustPort | None:
        """None where the wires prove nothing: in a simulated swarm."""

    @property
    def members(self) -> Mapping[NodeId, Node]:
        """Every member, as this node knows them."""

    async def propose(self, command: Command[T], actor: Actor) -> T:
        """Have a command applied everywhere; it is applied here when this returns. The refusals
        are the command's own; Busy when too much is under way (nothing was done), Unavailable when
        nobody leads (the message says whether it may yet be done). A command with a term is
        Conflict unless this node leads in it. Cancelled means: the outcome is unknown.
        """

    async def read(self, query: Query[T]) -> T:
        """Answer from the state, never older than what was acknowledged anywhere before; of this
        node's replica as it stands within `local_reads`. Unavailable when nobody leads."""

    async def vouched(self, *, at_once: bool) -> int:
        """On the leader: a place in the log that is applied here, and behind all that was
        acknowledged before, by the word of a quorum that was asked after this call. Not at once
        means: with the next heartbeat, which costs nothing. Unavailable: it does not lead."""

    def watch(
        self, after: int | None = None, wants: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[Subscription]:
        """Events after one, or from now on. A subscriber that falls behind is dropped with
        FellBehind, and watches again from its last event, here or on another node."""

    async def ask(self, target: NodeId | Leader, request: Ask[T]) -> T:
        """Ask one node. NotFound: no such node; Unavailable: it cannot be reached."""

    def answers(
        self, request: type[Ask[Any]], answer: Callable[[Any], Awaitable[Any]]
    ) -> Callable[[], None]:
        """Have asks of a type answered on this node, until what is returned is called."""

    def open_channel(
        self, target: NodeId, name: str, asked: bytes
    ) -> AbstractAsyncContextManager[Channel]:
        """Bytes too many for an ask. Unavailable: the node cannot be reached."""

    def answers_channel(self, name: str, answer: ChannelAnswer) -> None:
        """Have channels of a name answered on this node."""

    def new_id(self) -> str:
        """An id that nobody else has made or will make."""

    def now_ms(self) -> int:
        """The swarm's time as this node sees it: never before that of the last entry."""

    def clock_ms(self) -> int:
        """This host's own clock, right or wrong."""

    def cluster_version(self) -> int:
        """The version of the machine that is in force."""

    def leadership(self) -> Leadership:
        """Who leads, as far as this node knows."""

    async def leadership_changed(self, seen: Leadership) -> Leadership:
        """Wait until it is another than `seen`."""

    def peer(self, node_id: NodeId) -> PeerView:
        """How a member stands, as far as this node knows."""

    def doubles(self) -> Doubles:
        """Nodes that share a name or an id with another, as far as this node knows."""

    def log_view(self) -> LogView:
        """Where the log stands."""

    async def change_members(
        self, *, learners: tuple[NodeId, ...] = (), voters: tuple[NodeId, ...] = (),
        removed: tuple[NodeId, ...] = (),
    ) -> None:  # fmt: skip
        """Make members learners or voters, or take them out; in one step. Returns when it holds.
        Unavailable: this node does not lead, or the swarm does not come to it."""

    async def hand_over(self, to: NodeId | None = None) -> None:
        """Have another voter lead, the one that is furthest where none is named. Conflict: it is
        no voter; Unavailable: it did not take over in time. Nothing where this node does not lead.
        """

    async def copy_state(self, path: Path) -> StateCopy:
        """Write a copy of the state to a new file."""

    def staleness_ms(self) -> int | None:
        """How long ago this node last knew itself up to date; None: it never did."""


class Hosted(Cluster, Protocol):
    """A cluster as the node that opened it has it: with a replica of its own, or without."""

    introduced: trio.Event
    """The swarm knows this node as it is."""
    removed: trio.Event
    """The swarm takes no word of this node any more."""

    @property
    def acquainted(self) -> Collection[NodeId]:
        """Nodes of the swarm that it knows, from an earlier start too."""
