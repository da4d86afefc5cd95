"""Connections that are kept: a host is dialled once for all who wait, and of a connection that was
lost nobody hears whose command had not been sent yet."""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from swarmd.domain.errors import Busy, SwarmError, Unavailable
from swarmd.drivers.ssh_targets import Gone, HostKey, Refused, SshSettings, SshTarget, unknown

if TYPE_CHECKING:
    from swarmd.drivers.ssh_channels import Connection
    from swarmd.drivers.ssh_loop import Loop

TRIES = 3
PINNED_MAX = 10_000
STOP_TIMEOUT_S = 10.0
T = TypeVar("T")
KeepKey = Callable[[SshTarget, HostKey], Awaitable[None]]


@dataclass(eq=False)
class _Attempt:
    done: trio.Event = field(default_factory=trio.Event)
    error: SwarmError | None = None


@dataclass(eq=False)
class _Host:
    connections: list[Connection] = field(default_factory=list)
    attempt: _Attempt | None = None

    def free(self) -> Connection | None:
        self.connections = [each for each in self.connections if not each.closed.is_set()]
        for each in self.connections:
            if each.usable and each.users < each.channels_max:
                return each
        return None


class Pool:
    """What it needs of asyncssh is loaded when the first host is reached."""

    def __init__(self, settings: SshSettings, keep_key: KeepKey | None) -> None:
        self._settings = settings
        self._keep_key = keep_key
        self._hosts: dict[SshTarget, _Host] = {}
        self._pinned: dict[tuple[str, int], HostKey] = {}
        self._scopes: set[trio.CancelScope] = set()
        self._starting = trio.Lock()
        self._loop: Loop | None = None
        self._login: Any = None
        """The module, once it is loaded."""
        self._stopping = trio.Event()
        self._closing = False
        self._idle = trio.Event()
        """Closed, and nothing runs any more."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    await self._stop()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def using(
        self, target: SshTarget, opener: Callable[[Connection], AbstractAsyncContextManager[T]]
    ) -> AsyncIterator[T]:
        """What the opener opens on a connection to the target, of those that are kept, else on a
        new one. Ended with Unavailable when ssh is closed."""
        with self._operation():
            async with AsyncExitStack() as stack:
                for trial in range(1, TRIES + 1):
                    connection = await stack.enter_async_context(self._slot(target))
                    try:
                        opened = await stack.enter_async_context(opener(connection))
                        break
                    except Gone:
                        connection.retire()
                        if trial == TRIES:
                            raise
                    except Refused:
                        others = connection.users - 1
                        if others == 0 or trial == TRIES:
                            raise
                        connection.channels_max = others
                    await stack.aclose()
                yield opened

    def forget(self, target: SshTarget) -> None:
        self._pinned.pop((target.host, target.port), None)

    async def scan(self, target: SshTarget) -> HostKey:
        with self._operation():
            loop = await self._running()
            return await self._scan(loop, target)

    @asynccontextmanager
    async def _slot(self, target: SshTarget) -> AsyncIterator[Connection]:
        connection = await self._connection(target)
        try:
            yield connection
        finally:
            connection.users -= 1
            connection.idle_since = trio.current_time()
            if connection.retired and not connection.users:
                connection.abort()

    async def _connection(self, target: SshTarget) -> Connection:
        """One that takes a channel more, with the caller counted among its users."""
        while True:
            host = self._hosts.setdefault(target, _Host())
            free = host.free()
            if free is not None:
                free.users += 1
                return free
            if host.attempt is None:
                made = await self._attempt(target, host)
                made.users += 1
                return made
            attempt = host.attempt
            await attempt.done.wait()
            if attempt.error is not None:
                raise type(attempt.error)(attempt.error.message, **attempt.error.facts)

    async def _attempt(self, target: SshTarget, host: _Host) -> Connection:
        attempt = host.attempt = _Attempt()
        try:
            self._make_room(target, host)
            loop = await self._running()
            pinned = await self._pinned_target(loop, target)
            connection: Connection = await self._login.connect(loop, pinned, self._settings)
            host.connections.append(connection)
            return connection
        except Busy:
            raise  # of this caller alone: one who waited may find a free channel
        except SwarmError as error:
            attempt.error = error
            raise
        finally:
            host.attempt = None
            attempt.done.set()
            if not host.connections:
                self._hosts.pop(target, None)

    async def _pinned_target(self, loop: Loop, target: SshTarget) -> SshTarget:
        """With the key that was seen first, where that is to be taken: once it is kept."""
        if target.host_keys or not target.pin_first:
            return target
        at = (target.host, target.port)
        key = self._pinned.get(at)
        if key is None:
            key = await self._scan(loop, target)
            if self._keep_key is None or len(self._pinned) >= PINNED_MAX:
                raise unknown(target, key)
            await self._keep_key(target, key)
            key = self._pinned.setdefault(at, key)
        return replace(target, host_keys=(key.line,))

    def _make_room(self, target: SshTarget, host: _Host) -> None:
        if len(host.connections) >= self._settings.connections_per_target_max:
            raise Busy(
                f"too much runs on {target.name} over ssh at once; try again when some ended"
            )
        every = [each for host in self._hosts.values() for each in host.connections]
        trying = sum(host.attempt is not None for host in self._hosts.values())
        if len(every) + trying <= self._settings.connections_max:
            return
        idle = min((e for e in every if not e.users), key=lambda e: e.idle_since, default=None)
        if idle is None:
            raise Busy("too many hosts are reached over ssh at once; try again when some ended")
        idle.abort()

    async def _scan(self, loop: Loop, target: SshTarget) -> HostKey:
        key: HostKey = await self._login.scan(loop, target, self._settings)
        return key

    # -- the loop --------------------------------------------------------------------------------

    async def _running(self) -> Loop:
        async with self._starting:
            loop = self._loop
            if loop is None:
                # Whoever comes first may leave; the loop is there for all.
                with trio.CancelScope(shield=True):
                    loop = self._loop = await self._nursery.start(self._run_loop)
            assert loop is not None
            return loop

    async def _run_loop(self, task_status: trio.TaskStatus[Loop]) -> None:
        # Loading takes a tenth of a second, which the loop has not.
        load = importlib.import_module
        self._login = await trio.to_thread.run_sync(load, "swarmd.drivers.ssh_login")
        module = await trio.to_thread.run_sync(load, "swarmd.drivers.ssh_loop")
        # Whoever is cancelled along with us still ends what it left on the far side.
        with trio.CancelScope(shield=True):
            async with module.open_loop() as loop, trio.open_nursery() as nursery:
                nursery.start_soon(self._reap)
                task_status.started(loop)
                await self._stopping.wait()
                nursery.cancel_scope.cancel()

    async def _reap(self) -> None:
        while True:
            await trio.sleep(self._settings.idle_s / 4)
            before = trio.current_time() - self._settings.idle_s
            for target, host in [*self._hosts.items()]:
                for each in host.connections:
                    if not each.users and each.idle_since <= before:
                        each.abort()
                host.connections = [each for each in host.connections if each.usable or each.users]
                if not host.connections and host.attempt is None:
                    del self._hosts[target]

    @contextmanager
    def _operation(self) -> Iterator[None]:
        if self._idle.is_set():
            raise Unavailable("ssh is closed on this node")
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                yield
            finally:
                self._scopes.discard(scope)
                if self._closing and not self._scopes:
                    self._idle.set()
        if scope.cancelled_caught:
            raise Unavailable("ssh was closed on this node before that had ended")

    async def _stop(self) -> None:
        self._closing = True
        with trio.move_on_after(STOP_TIMEOUT_S):
            for scope in [*self._scopes]:
                scope.cancel()
            if self._scopes:
                await self._idle.wait()
        self._idle.set()
        connections = [each for host in self._hosts.values() for each in host.connections]
        for each in connections:
            each.abort()
        with trio.move_on_after(1.0):
            for each in connections:
                await each.closed.wait()
        self._stopping.set()
