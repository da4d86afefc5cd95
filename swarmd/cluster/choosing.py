"""Choosing a replica: of those that know how things stand, among the nearest, the one that serves
the fewest; which of equals, by chance, so that many who lost one spread over the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import trio

from mesh.timing import Rng
from mesh.wires import WireError, Wires
from swarmd.cluster import sessions as words
from swarmd.domain.jobs import NodeId

KNOCKS_MAX = 3
"""So many are asked at once; each keeps a connection from then on."""
NEAR_S = 0.002
"""Differences of less are none."""
LATER_S = 0.02
"""Once one has answered, those that are as near are here so soon after."""


@dataclass(frozen=True)
class ChoosingSettings:
    knock_s: float = 0.2
    """For a replica that is near to say that it is there."""
    far_knock_s: float = 3.0
    """For any, where none of the near did: one that is far, or slow, is better than none."""
    avoid_s: float = 2.0
    """One that was left is chosen again only where no other answers."""
    stale_ms_max: int = 2000


Answers = Mapping[NodeId, tuple[float, words.Standing]]
"""How far those are that answer, and how they stand."""


class Chooser:
    def __init__(
        self,
        wires: Wires,
        settings: ChoosingSettings,
        rng: Rng,
        distance_s: Callable[[NodeId], float | None],
    ) -> None:
        self._wires = wires
        self._settings = settings
        self._rng = rng
        self._distance_s = distance_s
        self._avoided: dict[NodeId, float] = {}

    def avoid(self, peer: NodeId) -> None:
        self._avoided[peer] = trio.current_time() + self._settings.avoid_s

    async def choose(
        self, replicas: Sequence[NodeId], cluster_id: str
    ) -> tuple[NodeId, float] | None:  # fmt: skip
        """A replica that answers, and how far it is; those first that are known to be near."""
        now, settings = trio.current_time(), self._settings
        self._avoided = {n: until for n, until in self._avoided.items() if until > now}
        order = sorted(replicas, key=lambda n: (self._distance_s(n) or 0.0, self._chance()))
        fresh = [n for n in order if n not in self._avoided]
        bound_s = settings.knock_s
        for some in (fresh, [n for n in order if n in self._avoided], fresh):
            for start in range(0, len(some), KNOCKS_MAX):
                at_once = some[start : start + KNOCKS_MAX]
                if answers := await self._knock(at_once, cluster_id, bound_s):
                    return self._best(answers)
            bound_s = settings.far_knock_s
        return None

    async def answers(self, peer: NodeId, far_s: float) -> bool:
        """Whether it does, in the time that one so far away needs."""
        return bool(await self._knock([peer], "", self._settings.knock_s + 3 * far_s))

    async def any_well(self, replicas: Sequence[NodeId], cluster_id: str) -> bool:
        """Whether some that are asked know how things stand."""
        some = sorted(replicas, key=lambda _: self._chance())[:KNOCKS_MAX]
        answers = await self._knock(some, cluster_id, self._settings.far_knock_s)
        return any(self.is_well(s.leader, s.staleness_ms) for _, s in answers.values())

    def is_well(self, leader: NodeId | None, staleness_ms: int | None) -> bool:
        known = staleness_ms is not None and staleness_ms <= self._settings.stale_ms_max
        return leader is not None and known

    def _chance(self) -> float:
        return self._rng.uniform(0, 1)

    def _best(self, answers: Answers) -> tuple[NodeId, float]:
        well = {n: a for n, a in answers.items() if self.is_well(a[1].leader, a[1].staleness_ms)}
        good = well or answers
        near_s = 2 * min(far_s for far_s, _ in good.values()) + NEAR_S
        near = sorted(n for n, (far_s, _) in good.items() if far_s <= near_s)
        best = min(near, key=lambda n: (answers[n][1].sessions, self._chance()))
        return best, answers[best][0]

    async def _knock(self, peers: Sequence[NodeId], cluster_id: str, bound_s: float) -> Answers:
        answers: dict[NodeId, tuple[float, words.Standing]] = {}

        async def knock(peer: NodeId) -> None:
            began = trio.current_time()
            try:
                body = await self._wires.call(peer, words.KNOCK, b"", bound_s)
                standing: words.Standing = words.decoded(_decode_standing, body)
            except WireError:
                return
            if cluster_id not in ("", standing.cluster_id):
                return
            now = trio.current_time()
            scope = nursery.cancel_scope
            scope.deadline = min(scope.deadline, now + (now - began) + LATER_S)
            about = self._wires.about(peer)
            far_s = about.rtt_smoothed_s if about is not None else None
            answers[peer] = (now - began if far_s is None else far_s, standing)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(knock, peer)
        return answers


_decode_standing: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(words.Standing)
