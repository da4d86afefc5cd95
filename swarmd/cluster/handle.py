"""The four verbs. Whoever holds a Cluster need not know whether one node is behind it or fifty."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, Protocol, TypeVar

import msgspec

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
    leader: NodeId | None
    term: int


class BlobPort(Protocol):
    """This node's way to blobs: its own disk, and whoever else has them."""

    async def put(
        self, chunks: AsyncIterator[bytes], *, expected_sha256: str | None = None
    ) -> BlobInfo:
        """Store, fsynced. Invalid: the hash is another; TooLarge; Unavailable: the disk is full."""

    async def put_bytes(self, data: bytes) -> BlobInfo: ...

    def open(self, sha256: str) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """NotFound when nobody has it."""


class Cluster(Protocol):
    node: Node
    cluster_id: str
    blobs: BlobPort

    async def propose(self, command: Command[T], actor: Actor) -> T:
        """Have a command applied everywhere. The refusals are the command's own; Busy when too
        much is under way, Unavailable when nobody leads. Cancelled means: the outcome is unknown.
        """

    async def read(self, query: Query[T]) -> T:
        """Answer from the state, never older than what was acknowledged before."""

    def watch(
        self, after: int | None = None, wants: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[Subscription]:
        """Events after one, or from now on. A subscriber that falls behind is dropped with
        FellBehind, and watches again from its last event."""

    async def ask(self, target: NodeId | Leader, request: Ask[T]) -> T:
        """Ask one node. NotFound: no such node; Unavailable: it cannot be reached."""

    def new_id(self) -> str:
        """An id that nobody else has made or will make."""

    def now_ms(self) -> int:
        """The swarm's time as this node sees it: never before that of the last entry."""

    def leadership(self) -> Leadership:
        """Who leads, as far as this node knows."""
