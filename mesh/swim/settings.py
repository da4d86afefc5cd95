"""How soon and how often things happen in membership, and how much of anything there may be.

The three profiles differ in time alone. LAN is quicker than memberlist's own, whose numbers find a
killed node in 5 to 8 s: it probes four times as often, has those who hear of a suspicion look for
themselves, and so may end it sooner. tests/sim/test_gossip_figures.py holds it to its figures.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from mesh.swim.errors import NotUsable


class Rng(Protocol):
    """Where chance comes from: a random.Random, seeded where a run is to be repeated."""

    def random(self) -> float: ...

    def randrange(self, stop: int, /) -> int: ...

    def shuffle(self, x: list[Any], /) -> None: ...


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    probe_interval_s: float
    """One probe in each, of the members in turn; times the local health."""
    probe_timeout_s: float
    """After so long without an answer others are asked, and a connection is tried. Times health."""
    probe_window_s: float
    """After so long the probe has failed. Times health; probes may overlap."""
    indirect_probes: int = 3
    verifiers: int = 4
    """So many, as chance has it, probe a member at once whose suspicion they hear of."""

    suspicion_mult: float = 4.0
    """A suspicion lasts this, times the probe interval, times log10 of the members, at least."""
    suspicion_min_s: float
    """Nor less than this: what a member may be held up for without being called dead."""
    suspicion_max_mult: float = 6.0
    """While nobody confirms a suspicion it lasts this many times longer."""
    confirmations: int = 2
    """Of others, after which a suspicion lasts no longer than it must."""
    refused_s: float
    """A suspicion lasts so long once two hosts had a connection refused: nobody listens there."""

    gossip_interval_s: float
    gossip_nodes: int = 3
    gossip_to_the_dead_s: float
    retransmit_mult: int = 4
    """News are told this many times, times the digits of the number of members, two at least."""

    sync_interval_s: float
    """Push-pull with one member by chance; from 32 members on it doubles as they do."""
    reconnect_interval_s: float
    """One lost member is pinged in each, on average by one of the living."""
    reconnect_sync_s: float
    """So often a seed or a lost member is called on the wires."""
    forget_s: float = 24 * 3600.0
    """Lost members and seeds are called for so long; then the dead are forgotten, and who left."""

    health_max: int = 8
    """Of the local health: 0 is well, and each step makes all probes that much slower."""
    lag_s: float
    """Later than this by its own fault, a node blames itself and no other."""

    payload_bytes_max: int = 1_130
    """Of a datagram before it is sealed: with the seal and the headers under 1,200 + 28."""
    sync_bytes_max: int = 700_000
    sync_answers_bytes_s: int = 2_000_000
    """Who has told others so much of late tells the next of a few members, who tell on."""
    members_max: int = 10_000
    broadcasts_max: int = 4_096
    probes_max: int = 16
    """Probes out of turn at one time."""

    def __post_init__(self) -> None:
        rules = {
            "times must be above 0": min(
                self.probe_interval_s, self.probe_timeout_s, self.suspicion_min_s,
                self.gossip_interval_s, self.sync_interval_s, self.reconnect_interval_s,
                self.reconnect_sync_s, self.forget_s, self.lag_s, self.refused_s,
            ) > 0,
            "probe_window_s must be above probe_timeout_s":
                self.probe_window_s > self.probe_timeout_s,
            "suspicion_max_mult must not be below 1": self.suspicion_max_mult >= 1,
            "payload_bytes_max must hold one member: 1,100 to 60,000":
                1_100 <= self.payload_bytes_max <= 60_000,
            "members_max must be above 1": self.members_max > 1,
            "counts must be above 0": min(
                self.gossip_nodes, self.retransmit_mult, self.broadcasts_max, self.probes_max,
                self.health_max, self.sync_bytes_max, self.sync_answers_bytes_s,
            ) > 0,
            "indirect_probes, verifiers and confirmations must not be below 0":
                min(self.indirect_probes, self.verifiers, self.confirmations) >= 0,
        }  # fmt: skip
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise NotUsable("; ".join(broken))


LAN = Settings(
    probe_interval_s=0.25,
    probe_timeout_s=0.2,
    probe_window_s=0.5,
    suspicion_min_s=1.0,
    suspicion_mult=3.0,
    refused_s=0.3,
    gossip_interval_s=0.1,
    gossip_to_the_dead_s=30.0,
    sync_interval_s=30.0,
    reconnect_interval_s=1.0,
    reconnect_sync_s=10.0,
    lag_s=0.1,
)
"""Hosts in one building, or one rack: a millisecond apart, and busy."""

WAN = Settings(
    probe_interval_s=1.0,
    probe_timeout_s=1.0,
    probe_window_s=3.0,
    suspicion_min_s=5.0,
    suspicion_mult=6.0,
    refused_s=2.0,
    gossip_interval_s=0.5,
    gossip_nodes=4,
    gossip_to_the_dead_s=60.0,
    sync_interval_s=60.0,
    reconnect_interval_s=5.0,
    reconnect_sync_s=30.0,
    lag_s=0.5,
)
"""Hosts on several continents."""

LOCAL = Settings(
    probe_interval_s=0.25,
    probe_timeout_s=0.1,
    probe_window_s=0.3,
    indirect_probes=1,
    suspicion_min_s=0.8,
    suspicion_mult=3.0,
    refused_s=0.2,
    gossip_interval_s=0.1,
    gossip_to_the_dead_s=15.0,
    retransmit_mult=2,
    sync_interval_s=15.0,
    reconnect_interval_s=1.0,
    reconnect_sync_s=5.0,
    lag_s=0.1,
)
"""Several nodes on one host."""

PROFILES = {"lan": LAN, "wan": WAN, "local": LOCAL}
