"""Rules of nodes, settings and the log of events: what changes seldom."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from swarmd.domain.errors import Conflict
from swarmd.domain.events import NodeChanged, SettingChanged
from swarmd.domain.nodes import Node, NodeKind
from swarmd.state.commands import PruneEvents, PutNode, PutSetting, RaiseVersion
from swarmd.state.rows import Execute, encode
from swarmd.state.tx import Tx
from swarmd.state.versions import VERSION_KEY, in_force, outdated

BORN_SINCE = 2
"""Of the machine: an older one does not note when a node was taken in."""

decode_node = msgspec.msgpack.Decoder(Node).decode


def find_node(execute: Execute, node_id: str) -> Node | None:
    row = execute("SELECT body FROM nodes WHERE id = ?", (node_id,)).fetchone()
    return None if row is None else decode_node(row[0])


def put_node(tx: Tx, command: PutNode) -> Node:
    return save_node(tx, command.node)


def save_node(tx: Tx, node: Node) -> Node:
    """Write what changed; a node that says the same again changes nothing."""
    other = tx.execute(
        "SELECT id FROM nodes WHERE name = ? AND id != ?", (node.name, node.id)
    ).fetchone()
    if other is not None:
        raise Conflict(
            f"another node is called {node.name}; give this one a name of its own (node.name)",
            name=node.name,
            node_id=other[0],
        )
    if tx.execute("SELECT 1 FROM gone WHERE id = ?", (node.id,)).fetchone() is not None:
        raise Conflict(
            "this node was removed from the swarm, and its id does not come back: move its data"
            " directory away, and join again as a new node",
            node_id=node.id,
        )
    if node.kind is NodeKind.MEMBER and node.machine_version < (version := in_force(tx.execute)):
        raise Conflict(outdated(version, node.machine_version).message, node_id=node.id)
    known = find_node(tx.execute, node.id)
    # Whatever the proposer says: when it was taken in is no word of its own.
    node = replace(node, born=_taken_in(tx) if known is None else known.born)
    if known is not None and replace(node, revision=known.revision) == known:
        return known
    node = replace(node, revision=tx.revision)
    tx.execute(
        "INSERT INTO nodes(id, name, kind, body, revision) VALUES (?,?,?,?,?) ON CONFLICT(id) DO"
        " UPDATE SET name=excluded.name, kind=excluded.kind, body=excluded.body,"
        " revision=excluded.revision",
        (node.id, node.name, node.kind.value, encode(node), tx.revision),
    )
    tx.emit(NodeChanged(node.id, "joined" if known is None else "changed"))
    return node


def _taken_in(tx: Tx) -> int:
    return tx.revision if in_force(tx.execute) >= BORN_SINCE else 0


def put_setting(tx: Tx, command: PutSetting) -> bytes:
    key, value = command.key, command.value
    if command.only_new:
        row = tx.execute("SELECT value FROM settings WHERE key = ?", (key,)).fetchone()
        if row is not None:
            return bytes(row[0])
    changed = tx.execute(
        "INSERT INTO settings VALUES (?,?,?) ON CONFLICT(key) DO UPDATE SET value=excluded.value,"
        " revision=excluded.revision WHERE value != excluded.value",
        (key, value, tx.revision),
    )
    if changed.rowcount:
        tx.emit(SettingChanged(key))
    return value


def prune_events(tx: Tx, command: PruneEvents) -> int:
    """The newest stays whatever `keep` says: the chain goes on from it."""
    return tx.drop_events(tx.newest_event - max(1, command.keep), command.limit)


def raise_version(tx: Tx, command: RaiseVersion) -> int:
    """Tables that came with it are made in the same step."""
    present = in_force(tx.execute)
    if command.version <= present:
        return present
    tx.migrate_to(command.version)
    value = str(command.version).encode()
    tx.execute("INSERT OR REPLACE INTO settings VALUES (?,?,?)", (VERSION_KEY, value, tx.revision))
    tx.emit(SettingChanged(VERSION_KEY))
    return command.version
