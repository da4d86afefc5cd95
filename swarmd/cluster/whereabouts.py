"""What a node without a replica keeps of its own: where those are that have one, and its boot.

Facts of its log, and all that is in it. A log without the first is one of a node with a replica."""

from __future__ import annotations

import msgspec

from mesh.wal import RaftLog, write_patiently
from swarmd.cluster.sessions import Whereabouts, encode

REMOTE = "remote"
BOOT = "boot"


def remembered(raft_log: RaftLog) -> Whereabouts | None:
    """None: it is no node without a replica."""
    kept = raft_log.fact(REMOTE)
    return _decode(kept) if kept else None


async def remember(raft_log: RaftLog, known: Whereabouts) -> None:
    """From the next start on this node is served by these."""
    await _set_fact(raft_log, REMOTE, encode(known))


async def forget_remote(raft_log: RaftLog) -> None:
    """Before this node opens a replica of its own."""
    await _set_fact(raft_log, REMOTE, b"")


async def next_boot(raft_log: RaftLog) -> int:
    """The number of this start, which no earlier one had."""
    boot = max(raft_log.boot, int(raft_log.fact(BOOT) or 0) + 1)
    await keep_boot(raft_log, boot)
    return boot


async def keep_boot(raft_log: RaftLog, boot: int) -> None:
    await _set_fact(raft_log, BOOT, str(boot).encode())


async def _set_fact(raft_log: RaftLog, name: str, value: bytes) -> None:
    await write_patiently(lambda: raft_log.set_fact(name, value))


_decode = msgspec.msgpack.Decoder(Whereabouts).decode
