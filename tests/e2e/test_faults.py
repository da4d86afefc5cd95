"""What goes wrong between five hosts: the side that can decide serves on, the other says why not.

Three of the faults in every run, and those that `SWARMD_SOAK_FAULTS` names, or `all` of them, as
in `make soak`. One swarm goes through them, for healing needs no hand: after each, the next begins.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.faults import ENDS_S, HEALS_S, SERVES_S, Five, HostNode, five_hosts
from tests.netns import Host
from tests.swarms import VOTERS, until

pytestmark = [pytest.mark.xdist_group("swarm"), pytest.mark.needs("root", "netns", "cc")]
# Read at import: no test sees settings of whoever runs it.
WANTED = os.environ.get("SWARMD_SOAK_FAULTS", "")
LENIENCE = 1 if WANTED else 3
"""How soon is judged where nothing else runs."""
HELD_S = 5.0 if WANTED else 1.0
"""Longer than a lease, where there is time."""
STOPPED_S = 10.0
FLAPS = 10
FLAP_S = 1.0
HOUR_S = 3600
HANDS_OVER_S = 20.0
LOST = 0.2
LATE_S = 0.1

# -- of one node -------------------------------------------------------------------------------


def crash(five: Five, role: str) -> None:
    node = chosen(five, role)
    five.case(f"crash-{role}", node.kill, node.start, deciding=five.but(node), hold=hold)


def standstill(five: Five, role: str) -> None:
    """Of the daemon: it comes to itself ten seconds later, and knows of nothing."""
    node = chosen(five, role)
    send = partial(os.kill, node.daemon.process.pid)
    five.case(
        f"stop-{role}",
        partial(send, signal.SIGSTOP),
        partial(send, signal.SIGCONT),
        deciding=five.but(node),
        hold=lambda: time.sleep(STOPPED_S),
    )


def half_a_wire(five: Five, role: str, *, mute: bool) -> None:
    """Nothing comes from the node to its peers, or from them to it. A follower's word does not
    depose a leader."""
    node, term = chosen(five, role), five.term()
    others = five.but(node)
    ways = ([node], others) if mute else (others, [node])
    five.case(
        f"{'mute' if mute else 'deaf'}-{role}",
        lambda: five.network.cut(*map(hosts, ways)),
        five.network.heal,
        deciding=others,
        cut_off=[node],
    )
    assert role == "leader" or five.term() == term, "a follower on half a wire disturbed the others"


def flapping(five: Five, role: str) -> None:
    node = chosen(five, role)

    def flap() -> None:
        for _ in range(FLAPS):
            five.network.link(node.host, up=False)
            time.sleep(FLAP_S)
            five.network.link(node.host, up=True)
            time.sleep(FLAP_S)

    thread = threading.Thread(target=flap, daemon=True)
    five.case(
        f"flap-{role}", thread.start, five.network.heal, deciding=five.but(node),
        hold=lambda: thread.join(3 * FLAPS * FLAP_S),
    )  # fmt: skip


def full_disk(five: Five, role: str) -> None:
    """The node says so and ends; with room made, it is started again, as a manager does."""
    node = chosen(five, role)

    def ends() -> None:
        assert node.wait_ended(ENDS_S) == 1
        assert "Free space" in node.log() or "is full" in node.log(), node.log()

    def heal() -> None:
        node.empty_disk()
        node.start()

    five.case(f"full-{role}", node.fill_disk, heal, deciding=five.but(node), hold=ends)


def clock_jump(five: Five, role: str, by_s: int) -> None:
    """A leader whose clock is wrong hands over; a follower's misleads nobody."""
    node, term = chosen(five, role), five.term()

    def settles() -> None:
        if role == "leader":
            until(lambda: five.leader() is not node, "it leads on", HANDS_OVER_S)
        else:
            time.sleep(HANDS_OVER_S)  # for so long nothing may happen

    five.case(
        f"clock-{role}{by_s:+}", lambda: node.clock.jump(by_s), lambda: node.clock.jump(0),
        deciding=five.nodes, hold=settles,
    )  # fmt: skip
    assert role == "leader" or five.term() == term, "a follower's clock deposed the leader"


def no_clients(five: Five) -> None:
    """Its peers reach the leader, and its clients do not: it leads on, for the others' clients."""
    leader, term = five.leader(), five.term()
    others = five.but(leader)

    def leads_on() -> None:
        hold()
        for node in others:
            status = node.status()
            assert (status["leader"], status["term"]) == (leader.name, term)

    five.case(
        "no-clients", lambda: five.network.cut_clients(leader.host), five.network.heal,
        deciding=others, hold=leads_on,
    )  # fmt: skip


# -- of the network ----------------------------------------------------------------------------


def two_three(five: Five) -> None:
    """The leader among the two."""
    voters, learners = five.roles()
    few = [voters[0], *(learners or voters[1:])[:1]]
    parted(five, "two-three", few, five.but(*few))


def one_two_two(five: Five) -> None:
    """So that no part has a majority of those who vote."""
    voters, learners = five.roles()
    (one, two, three), rest = voters[:3], [*voters[3:], *learners]
    parted(five, "one-two-two", [one], [two, rest[0]], [three, rest[1]], deciding=False)


def lossy(five: Five) -> None:
    five.case("lossy", lambda: five.network.lose(LOST), five.network.heal,
              deciding=five.nodes, hold=hold)  # fmt: skip


def late(five: Five) -> None:
    five.case("late", lambda: five.network.delay(LATE_S), five.network.heal,
              deciding=five.nodes, hold=hold)  # fmt: skip


Fault = Callable[[Five], None]
SHORT: dict[str, Fault] = {
    "crash-leader": partial(crash, role="leader"),
    "two-three": two_three,
    "mute-leader": partial(half_a_wire, role="leader", mute=True),
}
FAULTS: dict[str, Fault] = SHORT | {
    "deaf-leader": partial(half_a_wire, role="leader", mute=False),
    "mute-follower": partial(half_a_wire, role="follower", mute=True),
    "deaf-follower": partial(half_a_wire, role="follower", mute=False),
    "crash-follower": partial(crash, role="follower"),
    "stop-leader": partial(standstill, role="leader"),
    "stop-follower": partial(standstill, role="follower"),
    "one-two-two": one_two_two,
    "lossy": lossy,
    "late": late,
    "flap-leader": partial(flapping, role="leader"),
    "flap-follower": partial(flapping, role="follower"),
    "no-clients": no_clients,
    "full-leader": partial(full_disk, role="leader"),
    "full-follower": partial(full_disk, role="follower"),
    "clock-leader-ahead": partial(clock_jump, role="leader", by_s=HOUR_S),
    "clock-leader-behind": partial(clock_jump, role="leader", by_s=-HOUR_S),
    "clock-follower-ahead": partial(clock_jump, role="follower", by_s=HOUR_S),
    "clock-follower-behind": partial(clock_jump, role="follower", by_s=-HOUR_S),
}
"""Where three of the five vote."""
ALL_VOTING: dict[str, Fault] = {
    "two-three-of-voters": two_three,
    "one-two-two-of-voters": one_two_two,
}
"""Where all five do."""


def wanted(faults: dict[str, Fault]) -> list[str]:
    if WANTED in ("", "all"):
        return [name for name in faults if WANTED or name in SHORT]
    named = WANTED.split(",")
    unknown = set(named) - FAULTS.keys() - ALL_VOTING.keys()
    assert not unknown, f"SWARMD_SOAK_FAULTS names {unknown}; there are {[*FAULTS, *ALL_VOTING]}"
    return [name for name in named if name in faults]


class Kept:
    """One swarm goes through it all; a new one is made after a failure."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self._folders = folders
        self._open = ExitStack()
        self._five: Five | None = None

    def five(self, voters: int) -> Five:
        if self._five is None or self._five.broken or self._five.voters != voters:
            self.close()
            folder = self._folders.mktemp("five")
            self._five = self._open.enter_context(five_hosts(folder, voters))
            self._five.serves_s = SERVES_S * LENIENCE
            self._five.heals_s = HEALS_S * LENIENCE
        return self._five

    def close(self) -> None:
        self._five = None
        self._open.close()


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kept]:
    made = Kept(tmp_path_factory)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.parametrize(
    ("voters", "name"),
    [*((VOTERS, name) for name in wanted(FAULTS)), *((5, name) for name in wanted(ALL_VOTING))],
)
def test_a_fault_among_five_hosts_loses_nothing_and_needs_no_hand(
    kept: Kept, voters: int, name: str
) -> None:
    five = kept.five(voters)
    with five.network.entered():
        (FAULTS | ALL_VOTING)[name](five)


# -- what they have in common ------------------------------------------------------------------


def chosen(five: Five, role: str) -> HostNode:
    voters, _ = five.roles()
    return voters[0] if role == "leader" else voters[1]


def hosts(nodes: Iterable[HostNode]) -> list[Host]:
    return [node.host for node in nodes]


def hold() -> None:
    time.sleep(HELD_S)  # how long the fault lasts is what is tried


def parted(five: Five, name: str, *groups: list[HostNode], deciding: bool = True) -> None:
    """Of the groups the last is the side that can decide, where one is."""
    refusing = groups[:-1] if deciding else groups
    five.case(
        name,
        lambda: five.network.part(*map(hosts, groups)),
        five.network.heal,
        deciding=groups[-1] if deciding else (),
        cut_off=[node for group in refusing for node in group],
    )
