"""Rules of payloads: a version that is known is never changed, one deploys at a time, and each step
that was taken is told."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from swarmd.domain.errors import Conflict, Invalid, NotFound
from swarmd.domain.events import PayloadChanged, PayloadMoved, SettingChanged
from swarmd.domain.payloads import (
    DEPLOYMENTS_MAX,
    HOLD_MS_MAX,
    HOLDS_MAX,
    VERSIONS_MAX,
    Deployment,
    Payload,
    PayloadSort,
    Place,
    Step,
)
from swarmd.state.payload_commands import (
    DropPayload,
    ForgetHostKey,
    HoldPayload,
    NoteDeployment,
    PutPayload,
    ReleasePayload,
)
from swarmd.state.rows import Execute, encode
from swarmd.state.rules.binhost import pin, unpin
from swarmd.state.rules.nodes import find_node
from swarmd.state.tx import Tx

decode_payload = msgspec.msgpack.Decoder(Payload).decode
decode_place = msgspec.msgpack.Decoder(Place).decode


def host_key_setting(node_id: str) -> str:
    """Where the first key that a builder's host showed is kept."""
    return f"ssh.host_key {node_id}"


def find_payload(execute: Execute, sort: PayloadSort, version: str) -> Payload | None:
    row = execute(
        "SELECT body FROM payloads WHERE sort = ? AND version = ?", (sort.value, version)
    ).fetchone()
    return None if row is None else decode_payload(row[0])


def put_payload(tx: Tx, command: PutPayload) -> Payload:
    new = command.payload
    known = find_payload(tx.execute, new.sort, new.version)
    if known is not None:
        if known.sha256 != new.sha256:
            raise Conflict(
                f"{new.version} is there already, as another file; a version is never changed:"
                " choose another",
                version=new.version, sha256=known.sha256,
            )  # fmt: skip
        return known
    if tx.execute("SELECT 1 FROM blobs WHERE sha256 = ?", (new.sha256,)).fetchone() is None:
        raise NotFound("no such blob; store the file first", sha256=new.sha256)
    count = tx.execute(
        "SELECT count(*) FROM payloads WHERE sort = ?", (new.sort.value,)
    ).fetchone()[0]
    if count >= VERSIONS_MAX:
        raise Conflict(f"there are {count} versions of it; forget some that nobody has first")
    new = replace(new, created_at=tx.at, id=0)
    added = tx.execute(
        "INSERT INTO payloads(sort, version, body) VALUES (?,?,?)",
        (new.sort.value, new.version, encode(new)),
    )
    new = replace(new, id=added.lastrowid or 0)
    tx.execute("UPDATE payloads SET body = ? WHERE id = ?", (encode(new), new.id))
    pin(tx, _owner(new), new.sha256)
    tx.emit(PayloadChanged(new.sort.value, new.version, new.sha256, "known"))
    return new


def _owner(payload: Payload) -> str:
    return f"payload {payload.sort.value} {payload.version}"


def drop_payload(tx: Tx, command: DropPayload) -> None:
    known = find_payload(tx.execute, command.sort, command.version)
    if known is None:
        raise NotFound("no such version", version=command.version[:64])
    rows = tx.execute(
        "SELECT body FROM payload_places WHERE sort = ? ORDER BY node_id", (command.sort.value,)
    ).fetchall()
    held = [place.node_id for row in rows if (place := decode_place(row[0])).version ==
            command.version]  # fmt: skip
    if held:
        raise Conflict(
            f"{command.version} lies on {len(held)} builders; deploy another one to them first"
        )
    tx.execute("DELETE FROM payloads WHERE id = ?", (known.id,))
    unpin(tx, _owner(known))
    tx.emit(PayloadChanged(known.sort.value, known.version, known.sha256, "forgotten"))


# Who deploys


def hold_payload(tx: Tx, command: HoldPayload) -> int:
    if not 0 < command.for_ms <= HOLD_MS_MAX:
        raise Invalid(f"for_ms must be 1 to {HOLD_MS_MAX}", field="for_ms")
    sort, node_id = command.sort.value, command.node_id
    tx.execute("DELETE FROM payload_holds WHERE ends_at <= ?", (tx.at,))
    held = tx.execute(
        "SELECT node_id, holder, by FROM payload_holds WHERE sort = ? ORDER BY node_id", (sort,)
    ).fetchall()
    if command.again and (node_id, command.holder) not in [row[:2] for row in held]:
        raise Conflict("this deployment did not go on in time, and is no longer the one that may")
    for other, holder, by in held:
        if holder != command.holder and ("" in (node_id, other) or other == node_id):
            what = "a rolling deployment" if other == "" else "a deployment"
            raise Conflict(f"{what} of it is under way, by {by or 'somebody'}; wait for its end")
    if not command.again:
        if len(held) >= HOLDS_MAX:
            raise Conflict(f"{HOLDS_MAX} deployments are under way; wait for the end of some")
        if node_id == "":
            tx.emit(PayloadChanged(sort, "", "", "roll begun"))
    ends_at = tx.at + command.for_ms
    tx.execute(
        "INSERT OR REPLACE INTO payload_holds VALUES (?,?,?,?,?)",
        (sort, node_id, command.holder, tx.entry.actor.name, ends_at),
    )
    return ends_at


def release_payload(tx: Tx, command: ReleasePayload) -> bool:
    gone = tx.execute(
        "DELETE FROM payload_holds WHERE sort = ? AND node_id = ? AND holder = ?",
        (command.sort.value, command.node_id, command.holder),
    ).rowcount
    if gone and command.node_id == "":
        tx.emit(PayloadChanged(command.sort.value, "", "", "roll ended"))
    return bool(gone)


# What was done


def note_deployment(tx: Tx, command: NoteDeployment) -> Deployment:
    step = command.deployment
    node = find_node(tx.execute, step.node_id)
    if node is None:
        raise NotFound("no such node", node_id=step.node_id[:128])
    step = replace(step, node_name=node.name, at=tx.at, id=0)
    if command.place is not None:
        place = replace(command.place, at=tx.at)
        tx.execute(
            "INSERT OR REPLACE INTO payload_places VALUES (?,?,?)",
            (place.sort.value, place.node_id, encode(place)),
        )
    if step.step is not Step.BEGIN:
        step = _log(tx, step)
    tx.emit(PayloadMoved(
        step.node_id, step.sort.value, step.version, step.step.value, step.ok, step.error or ""
    ))  # fmt: skip
    return step


def _log(tx: Tx, step: Deployment) -> Deployment:
    added = tx.execute(
        "INSERT INTO payload_log(sort, node_id, body) VALUES (?,?,?)",
        (step.sort.value, step.node_id, encode(step)),
    ).lastrowid
    step = replace(step, id=added or 0)
    tx.execute("UPDATE payload_log SET body = ? WHERE id = ?", (encode(step), step.id))
    tx.execute("DELETE FROM payload_log WHERE id <= ?", (step.id - DEPLOYMENTS_MAX,))
    return step


def forget_host_key(tx: Tx, command: ForgetHostKey) -> bool:
    key = host_key_setting(command.node_id)
    gone = tx.execute("DELETE FROM settings WHERE key = ?", (key,)).rowcount
    if gone:
        tx.emit(SettingChanged(key))
    return bool(gone)
