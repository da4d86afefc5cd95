"""Rules of removal: a node goes for good, and its id with it. What it held the leases give away: it
may run that still, for as long as its last lease, and nothing is to run in two places."""

from __future__ import annotations

from swarmd.domain.errors import NotFound
from swarmd.domain.events import NodeChanged
from swarmd.state.commands import ForgetGone, RemoveNode
from swarmd.state.rules.builds import forget_builder
from swarmd.state.rules.nodes import find_node
from swarmd.state.tx import Tx
from swarmd.state.versions import FORGOTTEN_SINCE, in_force


def remove_node(tx: Tx, command: RemoveNode) -> int:
    """A node that has much goes in several entries: none of them takes long."""
    node = find_node(tx.execute, command.node_id)
    if node is None:
        raise NotFound("no such node", node_id=command.node_id[:128])
    tx.execute(
        "DELETE FROM blob_holders WHERE node_id = ? AND sha256 IN"
        " (SELECT sha256 FROM blob_holders WHERE node_id = ? ORDER BY sha256 LIMIT ?)",
        (node.id, node.id, command.limit),
    )
    left = tx.execute("SELECT count(*) FROM blob_holders WHERE node_id = ?", (node.id,)).fetchone()[
        0
    ]
    if left:
        return int(left)
    tx.execute("DELETE FROM nodes WHERE id = ?", (node.id,))
    tx.execute("DELETE FROM wraps WHERE node_id = ?", (node.id,))
    if in_force(tx.execute) >= FORGOTTEN_SINCE:
        forget_builder(tx, node.id)
    # A hold that ends is waited for; one without an end was the word of a swarm of one.
    tx.execute("DELETE FROM holds WHERE node_id = ? AND for_ms IS NULL", (node.id,))
    tx.execute("INSERT INTO gone VALUES (?,?,?)", (node.id, node.name, tx.at))
    tx.emit(NodeChanged(node.id, "removed"))
    return 0


def forget_gone(tx: Tx, command: ForgetGone) -> int:
    rows = tx.execute(
        "SELECT id FROM gone WHERE at < ? ORDER BY at, id LIMIT ?", (command.before, command.limit)
    ).fetchall()
    tx.executemany("DELETE FROM gone WHERE id = ?", rows)
    tx.executemany("DELETE FROM holds WHERE node_id = ?", rows)
    return len(rows)
