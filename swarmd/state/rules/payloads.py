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
    ROLL_MS_MAX,
    ROLLED_MAX,
    TAKES_MAX,
    Deployment,
    Payload,
    PayloadSort,
    Place,
    Rolling,
    Step,
    check_room,
)
from swarmd.state.payload_commands import (
    BeginRoll,
    DropPayload,
    EndRoll,
    ForgetHostKey,
    HoldPayload,
    NoteDeployment,
    NoteRoll,
    PutPayload,
    ReleasePayload,
    TakeRoll,
)
from swarmd.state.rows import Execute, encode
from swarmd.state.rules.blobs import pin, unpin
from swarmd.state.rules.nodes import find_node
from swarmd.state.tx import Tx
from swarmd.state.versions import ROLLS_SINCE, in_force

decode_payload = msgspec.msgpack.Decoder(Payload).decode
decode_place = msgspec.msgpack.Decoder(Place).decode
decode_rolling = msgspec.msgpack.Decoder(Rolling).decode


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
    check_room(count)
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
    if (left := _unended(tx, command.sort)) is not None and left.roll.version == command.version:
        raise Conflict(f"{command.version} is being rolled out; wait for the end of that")
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
        if node_id == "" and _unended(tx, command.sort) is None:
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
        left = _unended(tx, command.sort)
        if left is None:
            tx.emit(PayloadChanged(command.sort.value, "", "", "roll ended"))
        else:
            _tell(tx, left, "roll left")
    return bool(gone)


# Rolls, which outlive the node that is at them


def begin_roll(tx: Tx, command: BeginRoll) -> Rolling:
    roll = command.roll
    _check_holder(tx, roll.sort, command.holder)
    if not 0 < len(roll.node_ids) <= ROLLED_MAX:
        raise Invalid(f"a roll goes to 1 to {ROLLED_MAX} builders", field="node_ids")
    if (left := _unended(tx, roll.sort)) is not None:
        _tell(tx, left, "roll given up")
        _tell(tx, Rolling(roll), "roll begun")
    rolling = Rolling(replace(roll, actor=tx.entry.actor, begun_at=tx.at))
    _keep(tx, rolling)
    return rolling


def take_roll(tx: Tx, command: TakeRoll) -> Rolling | None:
    _check_holder(tx, command.sort, command.holder)
    left = _unended(tx, command.sort)
    if left is None:
        return None
    if left.takes >= TAKES_MAX or left.roll.begun_at + ROLL_MS_MAX <= tx.at:
        _forget(tx, left, "roll given up")
        return None
    taken = replace(left, takes=left.takes + 1)
    _keep(tx, taken)
    _tell(tx, taken, "roll taken over")
    return taken


def note_roll(tx: Tx, command: NoteRoll) -> None:
    _check_holder(tx, command.sort, command.holder)
    known = _unended(tx, command.sort)
    if known is None:
        raise NotFound("no roll of it is under way")
    if not 0 <= command.progress.turn <= len(known.roll.node_ids):
        raise Invalid("nobody has that turn", field="turn")
    _keep(tx, replace(known, progress=command.progress))


def end_roll(tx: Tx, command: EndRoll) -> bool:
    _check_holder(tx, command.sort, command.holder)
    known = _unended(tx, command.sort)
    if known is None:
        return False
    _forget(tx, known, "" if command.whole else "roll stopped")
    return True


def _unended(tx: Tx, sort: PayloadSort) -> Rolling | None:
    if in_force(tx.execute) < ROLLS_SINCE:
        return None
    row = tx.execute("SELECT body FROM payload_rolls WHERE sort = ?", (sort.value,)).fetchone()
    return None if row is None else decode_rolling(row[0])


def _check_holder(tx: Tx, sort: PayloadSort, holder: str) -> None:
    row = tx.execute(
        "SELECT holder, ends_at FROM payload_holds WHERE sort = ? AND node_id = ''", (sort.value,)
    ).fetchone()
    if row is None or row[0] != holder or row[1] <= tx.at:
        raise Conflict("this roll did not go on in time, and another node may be at it")


def _keep(tx: Tx, rolling: Rolling) -> None:
    sort = rolling.roll.sort.value
    tx.execute("INSERT OR REPLACE INTO payload_rolls VALUES (?,?)", (sort, encode(rolling)))


def _forget(tx: Tx, rolling: Rolling, what: str) -> None:
    tx.execute("DELETE FROM payload_rolls WHERE sort = ?", (rolling.roll.sort.value,))
    if what:
        _tell(tx, rolling, what)


def _tell(tx: Tx, rolling: Rolling, what: str) -> None:
    tx.emit(PayloadChanged(rolling.roll.sort.value, rolling.roll.version, "", what))


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
