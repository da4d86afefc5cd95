"""Rules of terminals: each begins once and ends once, and the recordings that are kept are within
their bounds after each of either; between these the leader has the old ones forgotten."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import TerminalBegun, TerminalEnded
from swarmd.domain.terminals import (
    KEPT_BYTES_MAX,
    KEPT_MAX,
    KEPT_MS,
    TEXT_CHARS_MAX,
    Terminal,
)
from swarmd.state.rows import Execute, encode
from swarmd.state.rules.blobs import pin, unpin
from swarmd.state.rules.nodes import find_node
from swarmd.state.terminal_commands import BeginTerminal, EndTerminal, ForgetTerminals
from swarmd.state.tx import Tx

decode_terminal = msgspec.msgpack.Decoder(Terminal).decode


def find_terminal(execute: Execute, id: str) -> Terminal | None:
    row = execute("SELECT body FROM terminals WHERE id = ?", (id,)).fetchone()
    return None if row is None else decode_terminal(row[0])


def begin(tx: Tx, command: BeginTerminal) -> Terminal:
    asked, actor = command.terminal, tx.entry.actor
    node = find_node(tx.execute, asked.node_id)
    if node is None:
        raise NotFound("no such node", node_id=asked.node_id[:128])
    for text in (asked.id, asked.host, asked.user, asked.via, asked.via_name):
        if len(text) > TEXT_CHARS_MAX:
            raise Invalid(f"a text of a terminal is over {TEXT_CHARS_MAX} characters")
    if find_terminal(tx.execute, asked.id) is not None:
        raise Conflict("there is a terminal of that id", id=asked.id)
    begun = Terminal(
        asked.id, asked.node_id, node.name, asked.host, asked.user, actor.name, actor.address,
        asked.via, asked.via_name, tx.at,
    )  # fmt: skip
    tx.execute(
        "INSERT INTO terminals(id, via, began_at, size_bytes, body) VALUES (?,?,?,0,?)",
        (begun.id, begun.via, begun.began_at, encode(begun)),
    )
    _make_room(tx)
    tx.emit(TerminalBegun(begun.node_id, begun.id, begun.name, begun.user, begun.via))
    return begun


def end(tx: Tx, command: EndTerminal) -> Terminal:
    known = find_terminal(tx.execute, command.id)
    if known is None:
        raise NotFound("no such terminal", id=command.id[:128])
    if known.end is not None:
        return known
    if command.sha256 is not None:
        row = tx.execute(
            "SELECT size_bytes FROM blobs WHERE sha256 = ?", (command.sha256,)
        ).fetchone()
        if row is None:
            raise NotFound("no such blob; store the recording first", sha256=command.sha256[:128])
        pin(tx, _owner(known.id), command.sha256)
    done = replace(
        known, ended_at=tx.at, end=command.end, exit_code=command.exit_code,
        sha256=command.sha256, size_bytes=0 if command.sha256 is None else row[0],
        cut=command.cut,
    )  # fmt: skip
    tx.execute(
        "UPDATE terminals SET size_bytes = ?, body = ? WHERE id = ?",
        (done.size_bytes, encode(done), done.id),
    )
    tx.emit(TerminalEnded(
        done.node_id, done.id, command.end.value, tx.at - done.began_at, done.exit_code,
        done.sha256 or "",
    ))  # fmt: skip
    _make_room(tx)
    return done


def forget(tx: Tx, command: ForgetTerminals) -> int:
    rows = tx.execute(
        "SELECT n, id FROM terminals WHERE began_at < ? ORDER BY n LIMIT ?",
        (command.before, command.limit),
    ).fetchall()
    for n, id in rows:
        _forget(tx, n, id)
    return len(rows)


def _owner(id: str) -> str:
    return f"terminal {id}"


def _make_room(tx: Tx) -> None:
    """The oldest go; the newest stays, whatever its size."""
    rows = tx.execute(
        "SELECT n, id, began_at, size_bytes FROM terminals ORDER BY n DESC"
    ).fetchall()
    size_bytes = 0
    for place, (n, id, began_at, own_bytes) in enumerate(rows):
        size_bytes += own_bytes
        too_many = place >= KEPT_MAX or size_bytes > KEPT_BYTES_MAX
        if place and (too_many or began_at < tx.at - KEPT_MS):
            _forget(tx, n, id)


def _forget(tx: Tx, n: int, id: str) -> None:
    tx.execute("DELETE FROM terminals WHERE n = ?", (n,))
    unpin(tx, _owner(id))
