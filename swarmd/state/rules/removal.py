"""Rules of removal: a node goes for good, and its id with it. What it held goes to others first."""

from __future__ import annotations

from swarmd.domain.errors import NotFound
from swarmd.domain.events import NodeChanged
from swarmd.domain.jobs import AttemptId, AttemptStatus
from swarmd.state.commands import ForgetGone, RemoveNode
from swarmd.state.rules.attempts import recover
from swarmd.state.rules.jobs import held_by_seq, stop_attempt
from swarmd.state.rules.nodes import find_node
from swarmd.state.tx import Tx

_WHY = "its node was removed from the swarm"


def remove_node(tx: Tx, command: RemoveNode) -> int:
    """A node that holds much goes in several entries: none of them takes long."""
    node = find_node(tx.execute, command.node_id)
    if node is None:
        raise NotFound("no such node", node_id=command.node_id[:128])
    rows = tx.execute(
        "SELECT id, job_seq FROM attempts WHERE node_id = ? AND active = 1 ORDER BY id LIMIT ?",
        (node.id, command.limit),
    ).fetchall()
    for attempt_id, job_seq in rows:
        job = held_by_seq(tx, job_seq)
        assert job is not None and job.attempt_id == AttemptId(attempt_id)
        stop_attempt(tx, job, AttemptStatus.LOST, _WHY)
        recover(tx, job, _WHY)
    tx.execute(
        "DELETE FROM blob_holders WHERE node_id = ? AND sha256 IN"
        " (SELECT sha256 FROM blob_holders WHERE node_id = ? ORDER BY sha256 LIMIT ?)",
        (node.id, node.id, command.limit),
    )
    left = tx.execute(
        "SELECT (SELECT count(*) FROM attempts WHERE node_id = ? AND active = 1)"
        " + (SELECT count(*) FROM blob_holders WHERE node_id = ?)",
        (node.id, node.id),
    ).fetchone()[0]
    if left:
        return int(left)
    tx.execute("DELETE FROM nodes WHERE id = ?", (node.id,))
    tx.execute("INSERT INTO gone VALUES (?,?,?)", (node.id, node.name, tx.at))
    tx.emit(NodeChanged(node.id, "removed"))
    return 0


def forget_gone(tx: Tx, command: ForgetGone) -> int:
    rows = tx.execute(
        "SELECT id FROM gone WHERE at < ? ORDER BY at, id LIMIT ?", (command.before, command.limit)
    ).fetchall()
    tx.executemany("DELETE FROM gone WHERE id = ?", rows)
    return len(rows)
