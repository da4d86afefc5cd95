"""How one node of the core behaves. Ticks are the only time there is; sizes are in bytes."""

from __future__ import annotations

from enum import IntEnum

import msgspec

from mesh.raft.errors import ConfigRefused
from mesh.raft.types import NO_LIMIT, NOBODY


class ReadOnly(IntEnum):
    SAFE = 0
    """A quorum confirms the leader before a read is answered."""
    LEASE = 1
    """The leader trusts its clock and its lease; wrong where clocks stop. Needs check_quorum."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    election_tick: int = 10
    """Ticks without a leader before an election; the wait is drawn from here up to its double."""
    heartbeat_tick: int = 1
    max_size_per_msg: int = NO_LIMIT
    """Bytes of entries in one append. 0 sends entries one by one."""
    max_committed_size_per_ready: int = 0
    """Bytes of committed entries that are being applied at once; 0 takes max_size_per_msg."""
    max_uncommitted_bytes: int = NO_LIMIT
    """Bytes of the leader's proposals that are not applied yet; more are refused."""
    max_inflight_msgs: int = 256
    """Appends on their way to one peer."""
    max_inflight_bytes: int = 0
    """Bytes on their way to one peer; 0 does not limit them."""
    max_pending_reads: int = 4096
    """Reads that wait for a quorum; more are refused."""
    check_quorum: bool = False
    """A leader that hears no quorum steps down, and a follower that hears one ignores others."""
    pre_vote: bool = False
    """Ask who would vote before the term is raised: who comes back from a partition hurts none."""
    read_only: ReadOnly = ReadOnly.SAFE
    disable_proposal_forwarding: bool = False
    disable_conf_change_validation: bool = False
    step_down_on_removal: bool = False
    """A leader that is no voter any more becomes a follower as soon as it applies that."""
    async_storage_writes: bool = False
    """Ready names the work of storage and of the machine as messages with their answers."""
    applied: int = 0
    """The last entry that the machine has applied already; such are not handed out again."""

    def __post_init__(self) -> None:
        rules = {
            "id must be above 0": self.id > NOBODY,
            "heartbeat_tick must be above 0": self.heartbeat_tick > 0,
            "election_tick must be above heartbeat_tick": self.election_tick > self.heartbeat_tick,
            "max_inflight_msgs must be above 0": self.max_inflight_msgs > 0,
            "max_pending_reads must be above 0": self.max_pending_reads > 0,
            "max_uncommitted_bytes must be above 0": self.max_uncommitted_bytes > 0,
            "sizes and applied must not be below 0": 0
            <= min(
                self.max_size_per_msg,
                self.max_committed_size_per_ready,
                self.max_inflight_bytes,
                self.applied,
            ),
            "max_inflight_bytes must hold one message of max_size_per_msg": (
                self.max_inflight_bytes == 0 or self.max_inflight_bytes >= self.max_size_per_msg
            ),
            "read_only LEASE needs check_quorum": (
                self.read_only is ReadOnly.SAFE or self.check_quorum
            ),
        }
        broken = [rule for rule, holds in rules.items() if not holds]
        if broken:
            raise ConfigRefused("; ".join(broken))
