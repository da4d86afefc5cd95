"""What befalls a swarm while its clients ask on: kill -9, standstill, and cuts of the network.

A fault strikes, is held for a time, and is healed; where a history has two, the second strikes as
soon as the first is over.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from tests.histories.recording import Door, HttpDoor
from tests.netns import Network
from tests.swarms import Node, Swarm

WARM_S = 0.8
"""Before the strike."""
AFTER_S = 1.0
"""Between a healing and whatever comes next."""
HELD_S = (1.5, 4.0)
STOPPED_S = (2.0, 6.0)
LONG_S = 14.0
"""Past what a node waits for a leader before it says no."""
LONG_SHARE = 0.15
STARTS_S = 1.5
"""About what a daemon takes to come back."""

Heal = Callable[[], None]


@dataclass
class Place:
    """A swarm and, where it has one of its own, its network."""

    swarm: Swarm
    network: Network | None

    def doors(self) -> list[Door]:
        return [HttpDoor(node.address, node.daemon.ports) for node in self.swarm.nodes]

    def leader(self) -> Node:
        return self.swarm.leader()

    def follower(self, rng: random.Random) -> Node:
        return rng.choice(self.swarm.followers())

    def heal(self) -> None:
        """Whatever still stands, so that nothing hangs."""
        for node in self.swarm.up():
            os.kill(node.daemon.process.pid, signal.SIGCONT)
        if self.network is not None:
            with contextlib.suppress(AssertionError):
                self.network.heal()


def kill_leader(place: Place, rng: random.Random) -> Heal:
    return _killed(place, place.leader())


def kill_follower(place: Place, rng: random.Random) -> Heal:
    return _killed(place, place.follower(rng))


def kill_two(place: Place, rng: random.Random) -> Heal:
    """Who is left cannot decide anything."""
    return _killed(place, place.leader(), place.follower(rng))


def kill_all(place: Place, rng: random.Random) -> Heal:
    return _killed(place, *place.swarm.nodes)


def stop_leader(place: Place, rng: random.Random) -> Heal:
    """It comes to itself, and takes itself for the leader for an instant."""
    return _stopped(place.leader())


def stop_follower(place: Place, rng: random.Random) -> Heal:
    return _stopped(place.follower(rng))


def part_leader(place: Place, rng: random.Random) -> Heal:
    """Its clients reach it as before."""
    leader = place.leader()
    return _parted(place, (leader, _others(place, leader)))


def part_follower(place: Place, rng: random.Random) -> Heal:
    follower = place.follower(rng)
    return _parted(place, (follower, _others(place, follower)))


def part_pair(place: Place, rng: random.Random) -> Heal:
    """The leader and one other do not reach each other; both reach the third."""
    return _parted(place, (place.leader(), [place.follower(rng)]))


def part_all(place: Place, rng: random.Random) -> Heal:
    return _parted(place, *((node, _others(place, node)) for node in place.swarm.nodes))


Strike = Callable[[Place, random.Random], Heal]
KILLS: dict[str, Strike] = {
    "kill-leader": kill_leader,
    "kill-follower": kill_follower,
    "kill-two": kill_two,
    "kill-all": kill_all,
}
STOPS: dict[str, Strike] = {"stop-leader": stop_leader, "stop-follower": stop_follower}
PARTS: dict[str, Strike] = {
    "part-leader": part_leader,
    "part-follower": part_follower,
    "part-pair": part_pair,
    "part-all": part_all,
}
"""These need a network of the swarm's own."""
STRIKES = KILLS | STOPS | PARTS


@dataclass(frozen=True)
class Blow:
    name: str
    held_s: float

    def __str__(self) -> str:
        return f"{self.name} {self.held_s:.1f} s"


def some_blows(first: str, rng: random.Random, among: Sequence[str]) -> list[Blow]:
    """The first, and every third time another one after it."""
    blows = [_some(first, rng)]
    if rng.random() < 1 / 3:
        blows.append(_some(rng.choice(among), rng))
    return blows


def expected_s(blows: Sequence[Blow]) -> float:
    starts = sum(STARTS_S for blow in blows if blow.name in KILLS)
    return WARM_S + sum(blow.held_s + AFTER_S for blow in blows) + starts


def befall(place: Place, blows: Sequence[Blow], rng: random.Random) -> None:
    """One after the other; what is done was healed."""
    time.sleep(WARM_S)  # that clients work when it strikes, and after it, is what is tried
    for blow in blows:
        with _healed(place, STRIKES[blow.name](place, rng)):
            time.sleep(blow.held_s)
        time.sleep(AFTER_S)


@contextmanager
def _healed(place: Place, heal: Heal) -> Iterator[None]:
    try:
        yield
        heal()
    except BaseException:
        place.heal()
        raise


def _some(name: str, rng: random.Random) -> Blow:
    held_s = rng.uniform(*(STOPPED_S if name in STOPS else HELD_S))
    if (name in PARTS or name == "kill-two") and rng.random() < LONG_SHARE:
        held_s = LONG_S
    return Blow(name, held_s)


def _killed(place: Place, *nodes: Node) -> Heal:
    for node in nodes:
        node.daemon.process.kill()
    for node in nodes:
        node.kill()
    return partial(place.swarm.start, *nodes)


def _stopped(node: Node) -> Heal:
    pid = node.daemon.process.pid
    os.kill(pid, signal.SIGSTOP)
    return partial(os.kill, pid, signal.SIGCONT)


def _parted(place: Place, *cuts: tuple[Node, Sequence[Node]]) -> Heal:
    assert place.network is not None
    for node, others in cuts:
        place.network.cut(node.address, *(other.address for other in others))
    return place.network.heal


def _others(place: Place, node: Node) -> list[Node]:
    return [other for other in place.swarm.nodes if other is not node]
