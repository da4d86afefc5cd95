"""A swarm of one: this node leads, for ever, and what is on its disk is the state."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

from swarmd.cluster.feed import Feed, Subscription
from swarmd.cluster.handle import Ask, BlobPort, Leader, Leadership, T
from swarmd.domain.actors import SYSTEM, Actor
from swarmd.domain.errors import NotFound, TooLarge
from swarmd.domain.events import Event
from swarmd.domain.jobs import ENTRY_BYTES_MAX, NodeId
from swarmd.domain.nodes import Node
from swarmd.state.commands import Command, Entry, PutSetting
from swarmd.state.machine import Applied
from swarmd.state.queries import GetStanding, ListEvents, Query
from swarmd.state.store import Store, StoreSettings, encoded_size, open_store

Answer = Callable[[Any], Awaitable[Any]]
TERM = 1


class LocalCluster:
    blobs: BlobPort

    def __init__(
        self, node: Node, store: Store, now_ms: Callable[[], int], new_id: Callable[[], str]
    ) -> None:
        self.node = node
        self.cluster_id = ""
        self._store = store
        self._now_ms = now_ms
        self.new_id = new_id
        self._feed = Feed()
        self._answers: dict[type[Any], Answer] = {}
        self._next_index = store.applied + 1
        self._last_at = store.last_at
        self._last_event_seq = 0
        store.on_applied(self._publish)

    async def propose(self, command: Command[T], actor: Actor) -> T:
        if encoded_size(command) > ENTRY_BYTES_MAX:
            raise TooLarge(
                f"the command is over {ENTRY_BYTES_MAX} bytes; send less at once, or put what is"
                " large into a blob",
                bytes_max=ENTRY_BYTES_MAX,
            )
        self._store.check_room()
        # Time never goes backwards, whatever the host's clock does.
        self._last_at = self.now_ms()
        entry = Entry(self._next_index, TERM, self._last_at, actor, command)  # type: ignore[arg-type]
        self._next_index += 1
        value: T = await self._store.apply(entry)
        return value

    async def read(self, query: Query[T]) -> T:
        return await self._store.read(query)

    def watch(
        self, after: int | None = None, wants: Callable[[Event], bool] | None = None
    ) -> AbstractAsyncContextManager[Subscription]:
        start = self._last_event_seq if after is None else after
        return self._feed.subscribe(self._past(start, self._last_event_seq, wants), start, wants)

    async def _past(
        self, after: int, upto: int, wants: Callable[[Event], bool] | None
    ) -> AsyncIterator[Event]:
        while after < upto:
            events = await self.read(ListEvents(after))
            if not events:
                return
            for event in events:
                if event.seq > upto:
                    return
                after = event.seq
                if wants is None or wants(event):
                    yield event

    async def ask(self, target: NodeId | Leader, request: Ask[T]) -> T:
        if not isinstance(target, Leader) and target != self.node.id:
            raise NotFound("no such node", node_id=target)
        answer = self._answers.get(type(request))
        if answer is None:
            raise NotFound("the node does not answer this", request=type(request).__name__)
        value: T = await answer(request)
        return value

    def answers(self, request: type[Ask[T]], answer: Callable[[Any], Awaitable[T]]) -> None:
        """Have asks of a type answered on this node."""
        assert request not in self._answers, request
        self._answers[request] = answer

    def now_ms(self) -> int:
        return max(self._last_at, self._now_ms())

    def leadership(self) -> Leadership:
        return Leadership(self.node.id, TERM)

    def _publish(self, applied: Sequence[Applied]) -> None:
        for outcome in applied:
            if outcome.events:
                self._last_event_seq = outcome.events[-1].seq
                self._feed.publish(outcome.events)


@asynccontextmanager
async def open_local(
    data_dir: Path, node: Node, settings: StoreSettings, *, now_ms: Callable[[], int],
    new_id: Callable[[], str],
) -> AsyncIterator[LocalCluster]:  # fmt: skip
    """Open the state and be the swarm: the one that it is of, or a new one."""
    async with open_store(data_dir / "state.db", settings) as store:
        cluster = LocalCluster(node, store, now_ms, new_id)
        cluster._last_event_seq = (await cluster.read(GetStanding())).event_seq
        command = PutSetting("cluster_id", new_id().encode(), only_new=True)
        cluster.cluster_id = (await cluster.propose(command, SYSTEM)).decode()
        yield cluster
