"""Nodes that are nothing but their wires, for tests that need two or three of them."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import trio

from mesh.transport import Me, Transport, TransportSettings, open_transport
from tests.certificates import Authority

QUICK: dict[str, Any] = {"keepalive_s": 0.1, "silence_s": 3.0, "backoff_max_s": 0.2}


@functools.cache
def authority() -> Authority:
    return Authority()


@asynccontextmanager
async def node(
    name: str, *, bind: str = "127.0.0.1:0", tls: bool = False, cluster: str = "", **more: Any
) -> AsyncIterator[Transport]:
    settings = TransportSettings(binds=(bind,), **{**QUICK, **more})
    keys = authority().tls(name) if tls else None
    rng = random.Random(name)
    async with open_transport(settings, Me(name, boot=7, cluster=cluster), rng=rng, tls=keys) as it:
        yield it


@asynccontextmanager
async def nodes(*names: str, tls: bool = False, **more: Any) -> AsyncIterator[list[Transport]]:
    """Each knows all others, on an address of its own."""
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(node(name, bind=f"127.0.0.{n}:0", tls=tls, **more))
            for n, name in enumerate(names, 1)
        ]
        for each in made:
            each.set_peers({other.me: other.addresses for other in made})
        yield made


class Links:
    """What a transport tells of its links, and a wait for the next of a sort."""

    def __init__(self, transport: Transport) -> None:
        self.told: list[tuple[str, bool, str]] = []
        self._changed = trio.Event()
        transport.on_link(self._tell)

    def _tell(self, peer: str, up: bool, reason: str) -> None:
        self.told.append((peer, up, reason))
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self, peer: str, up: bool, bound_s: float = 60.0) -> str:
        with trio.fail_after(bound_s):
            while True:
                for told in self.told:
                    if told[:2] == (peer, up):
                        return told[2]
                await self._changed.wait()


async def until(holds: Callable[[], object], bound_s: float = 60.0) -> None:
    """For what no event tells: another task's own tidying up."""
    with trio.fail_after(bound_s):
        while not holds():
            await trio.sleep(0.005)
