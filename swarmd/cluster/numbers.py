"""Numbers of nodes: the log knows its members by a number that follows from the node's id."""

from __future__ import annotations

import hashlib


def raft_id_of(node_id: str) -> int:
    return int.from_bytes(hashlib.sha256(node_id.encode()).digest()[:8], "big") >> 1 or 1
