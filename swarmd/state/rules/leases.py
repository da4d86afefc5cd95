"""Rules of leases: work is taken back from nodes that are gone, and held for those that come back.

What is said here of time is a length, never a moment: whoever leads counts it by its own clock."""

from __future__ import annotations

from swarmd.domain.errors import Invalid, NotFound
from swarmd.domain.events import NodeChanged
from swarmd.domain.jobs import HOLD_MS_MAX, AttemptStatus
from swarmd.state.commands import HoldAttempts, LoseAttempts
from swarmd.state.rules.jobs import stop_attempt
from swarmd.state.rules.moves import recover, still_held
from swarmd.state.rules.nodes import find_node
from swarmd.state.rules.spans import Tally
from swarmd.state.tx import Tx

LOST = "its node was not heard of for too long"


def lose(tx: Tx, command: LoseAttempts) -> int:
    row = tx.execute("SELECT revision FROM holds WHERE node_id = ?", (command.node_id,)).fetchone()
    if (0 if row is None else row[0]) != command.hold:
        return 0
    tally = Tally()
    lost = 0
    for job in still_held(tx, command.attempts, tally):
        if job.node_id != command.node_id:
            continue
        stop_attempt(tx, job, AttemptStatus.LOST, LOST)
        recover(tx, job, LOST)
        lost += 1
    tally.write(tx)
    return lost


def hold(tx: Tx, command: HoldAttempts) -> None:
    node_id, for_ms = command.node_id, command.for_ms
    if for_ms is not None and not 0 <= for_ms <= HOLD_MS_MAX:
        raise Invalid(f"work is held for at most {HOLD_MS_MAX} ms, not {for_ms}", field="for_ms")
    if find_node(tx.execute, node_id) is None:
        raise NotFound("no such node", node_id=node_id[:128])
    if for_ms == 0:
        if tx.execute("DELETE FROM holds WHERE node_id = ?", (node_id,)).rowcount:
            tx.emit(NodeChanged(node_id, "work is held no longer"))
        return
    # The revision tells a new hold from the one before, which may have been counted already.
    tx.execute("INSERT OR REPLACE INTO holds VALUES (?,?,?)", (node_id, for_ms, tx.revision))
    tx.emit(NodeChanged(node_id, "work is held"))
