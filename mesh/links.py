"""The one outgoing stream to a peer: idle until somebody wants it, then kept until it is no peer.

While it waits for its next try whoever asks gets the last failure at once; nobody queues behind a
peer that is gone.
"""

from __future__ import annotations

from typing import Protocol

import trio

from mesh.frames import Broken
from mesh.greeting import Dismissed
from mesh.rpc import Asking
from mesh.wires import Refused, TimedOut, Unreachable

WAITERS_MAX = 1024


class Dialer(Protocol):
    """The transport, as a link sees it."""

    async def dial_link(self, link: Link) -> Asking:
        """Raises Broken."""

    async def carry(self, wire: Asking) -> None:
        """Run the connection to its end."""


class Jitter(Protocol):
    """What is needed of a random.Random."""

    def uniform(self, a: float, b: float, /) -> float: ...


class Link:
    def __init__(
        self, peer: str, addresses: tuple[str, ...], backoff_min_s: float, backoff_max_s: float
    ) -> None:
        self.peer = peer
        self._told = addresses
        self._heard: tuple[str, ...] = ()
        self.wire: Asking | None = None
        self._backoff_min_s = backoff_min_s
        self._backoff_max_s = backoff_max_s
        self._scope = trio.CancelScope()
        self._started = False
        self._resting = False
        self._why = "it was not dialed yet"
        self._refused: str | None = None
        self._attempt = trio.Event()
        self._hurry = trio.Event()
        self._waiters = 0

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that were told go before those that were only heard of."""
        return tuple(dict.fromkeys((*self._told, *self._heard)))

    def start(self) -> bool:
        """True the first time: then `keep` is to be run."""
        first, self._started = not self._started, True
        return first

    async def keep(self, dialer: Dialer, rng: Jitter) -> None:
        failures = 0
        with self._scope:
            while True:
                try:
                    wire = await dialer.dial_link(self)
                except Broken as broken:
                    self._why = broken.message
                    self._refused = broken.code if isinstance(broken, Dismissed) else None
                    failures += 1
                else:
                    since = trio.current_time()
                    self.wire = wire
                    self._attempt.set()
                    try:
                        await dialer.carry(wire)
                    finally:
                        self.wire = None
                    self._refused = None
                    self._why = wire.ended.message if wire.ended is not None else "it ended"
                    lived_s = trio.current_time() - since
                    failures = 0 if lived_s > self._backoff_max_s else failures + 1
                self._attempt.set()
                await self._rest(failures, rng)
        self._why = "it is no peer any more"
        self._attempt.set()

    async def stand(self, deadline: float) -> Asking:
        """Its stream, waited for while it is being dialed."""
        if (wire := self.wire) is not None:
            return wire
        if self._resting:
            raise self._unreachable()
        if self._waiters >= WAITERS_MAX:
            raise Refused("busy", f"{self._waiters} wait for a connection to {self.peer}")
        self._waiters += 1
        attempt = self._attempt
        try:
            with trio.move_on_at(deadline):
                await attempt.wait()
        finally:
            self._waiters -= 1
        if (wire := self.wire) is not None:
            return wire
        if attempt.is_set():
            raise self._unreachable()
        raise TimedOut(f"{self.peer} is still being dialed", handed_over=False, peer=self.peer)

    def readdress(self, addresses: tuple[str, ...]) -> None:
        if addresses != self._told:
            self._told = addresses
            self.hurry()

    def also_at(self, addresses: tuple[str, ...]) -> None:
        if addresses != self._heard:
            self._heard = addresses
            if self.wire is None:
                self.hurry()

    def hurry(self) -> None:
        """There is reason to believe that the next try will do better; who asks waits for it."""
        self._hurry.set()
        self._stop_resting()

    def cut(self) -> None:
        self._scope.cancel()
        if self.wire is not None:
            self.wire.close("closing", f"{self.peer} is no peer any more")

    async def _rest(self, failures: int, rng: Jitter) -> None:
        """After a failure longer each time; after a stream that lived well, hardly at all."""
        if failures:
            longest_s = min(self._backoff_max_s, self._backoff_min_s * 2.0 ** min(failures - 1, 30))
            rest_s = longest_s * rng.uniform(0.5, 1.0)
            self._resting = True
        else:
            rest_s = rng.uniform(0.0, self._backoff_min_s)
            self._attempt = trio.Event()
        self._hurry = trio.Event()
        with trio.move_on_after(rest_s):
            await self._hurry.wait()
        self._stop_resting()

    def _stop_resting(self) -> None:
        if self._resting:
            self._resting = False
            self._attempt = trio.Event()

    def _unreachable(self) -> Unreachable:
        failure = Unreachable(f"{self.peer} cannot be reached: {self._why}", peer=self.peer)
        if self._refused is not None:
            failure.facts["refused"] = self._refused
        return failure
