"""Membership: SWIM with Lifeguard, in memberlist's shape. The core does no I/O of any kind.

Bytes and time go in (`receive`, `tick` at `next_deadline`), datagrams, knocks, syncs and events
come out of `take`. Its owner keeps the promises of `outputs`.
"""

from mesh.swim.core import Self, Swim
from mesh.swim.errors import Dropped, NotUsable
from mesh.swim.messages import INCARNATION_MAX
from mesh.swim.outputs import (
    Change,
    Datagram,
    Event,
    Knock,
    Knocked,
    MemberChanged,
    NameConflict,
    Output,
    OwnIdTaken,
    SockAddr,
    SwimCounts,
    SyncWanted,
    To,
)
from mesh.swim.roster import MemberView, State
from mesh.swim.rtt import RttStats
from mesh.swim.settings import LAN, LOCAL, PROFILES, WAN, Rng, Settings

__all__ = [
    "INCARNATION_MAX",
    "LAN",
    "LOCAL",
    "PROFILES",
    "WAN",
    "Change",
    "Datagram",
    "Dropped",
    "Event",
    "Knock",
    "Knocked",
    "MemberChanged",
    "MemberView",
    "NameConflict",
    "NotUsable",
    "Output",
    "OwnIdTaken",
    "Rng",
    "RttStats",
    "Self",
    "Settings",
    "SockAddr",
    "State",
    "Swim",
    "SwimCounts",
    "SyncWanted",
    "To",
]
