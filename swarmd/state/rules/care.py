"""Rules of care: one builder at a time, none without giving back what it would lose, no reboot of
what may not be rebooted; and a level only for what was done."""

from __future__ import annotations

import msgspec
from msgspec.structs import replace

from swarmd.domain.builds import Builder
from swarmd.domain.care import (
    ACT_MS_MAX,
    DETAIL_CHARS_MAX,
    Care,
    CareAction,
    may_reboot,
)
from swarmd.domain.errors import Conflict, NotFound
from swarmd.domain.events import CareTaken
from swarmd.state.care_commands import BeginCare, EaseCare, EndCare, ResetCare
from swarmd.state.rows import Execute, encode
from swarmd.state.rules.builds import find_builder, give_back, save_builder
from swarmd.state.tx import Tx
from swarmd.state.versions import RESTARTS_SINCE, in_force

decode_care = msgspec.msgpack.Decoder(Care).decode
HELD_BACK_MS = {
    CareAction.RESTART: ACT_MS_MAX, CareAction.KILL_START: 2 * ACT_MS_MAX,
    CareAction.REBOOT: 2 * ACT_MS_MAX,
}  # fmt: skip
"""A builder that is being ended gets nothing for so long."""


def find_care(execute: Execute, node_id: str) -> Care | None:
    row = execute("SELECT body FROM care WHERE node_id = ?", (node_id,)).fetchone()
    return None if row is None else decode_care(row[0])


def begin(tx: Tx, command: BeginCare) -> Care:
    builder = _builder(tx, command.node_id)
    _check(tx, builder, command)
    care = find_care(tx.execute, builder.node_id) or Care(builder.node_id)
    if command.rises and command.action.level <= care.level:
        raise Conflict(f"level {command.action.level} is reached already", level=care.level)
    if _gives_back(tx, command.action):
        give_back(tx, builder.node_id, "its builder is about to be ended")
        until = max(builder.grounded_until or 0, tx.at + HELD_BACK_MS[command.action])
        builder = save_builder(tx, replace(builder, grounded_until=until))
    since = care.failing_since if command.failing_since is None else command.failing_since
    care = _save(tx, replace(
        care, action=command.action, rises=command.rises, begun_at=tx.at, ended_at=None, ok=False,
        detail=command.reason[:DETAIL_CHARS_MAX], attempts=care.attempts + 1,
        failing_since=since, grounded_until=builder.grounded_until,
    ))  # fmt: skip
    level = command.action.level if command.rises else care.level
    tx.emit(CareTaken(builder.node_id, "begun", command.action.value, level, care.detail))
    return care


def _gives_back(tx: Tx, action: CareAction) -> bool:
    if action is CareAction.RESTART and in_force(tx.execute) < RESTARTS_SINCE:
        return False
    return action.loses_builds


def _check(tx: Tx, builder: Builder, command: BeginCare) -> None:
    if command.action is CareAction.REBOOT and not may_reboot(builder.sort, builder.auto_reboot):
        raise Conflict("this builder is not to be rebooted", sort=builder.sort.value)
    for (body,) in tx.execute("SELECT body FROM care ORDER BY node_id").fetchall():
        other = decode_care(body)
        # One whose end nobody told is forgotten in time: its builder may be gone.
        if other.under_way and tx.at <= (other.begun_at or 0) + ACT_MS_MAX:
            raise Conflict("a builder is being cared for", node_id=other.node_id)


def end(tx: Tx, command: EndCare) -> bool:
    care = find_care(tx.execute, command.node_id)
    if care is None or not care.under_way or care.action is None:
        return False
    detail = command.detail[:DETAIL_CHARS_MAX]
    level, level_at = care.level, care.level_at
    if command.ok and care.rises:
        level, level_at = care.action.level, tx.at
    _save(tx, replace(
        care, ended_at=tx.at, ok=command.ok, detail=detail, level=level, level_at=level_at,
        failed_tries=0 if command.ok else care.failed_tries + care.rises,
    ))  # fmt: skip
    what = "done" if command.ok else "failed"
    reached = care.action.level if care.rises else care.level
    tx.emit(CareTaken(care.node_id, what, care.action.value, reached, detail))
    return True


def ease(tx: Tx, command: EaseCare) -> int:
    return sum(_to_the_foot(tx, node_id, "healthy") is not None for node_id in command.node_ids)


def reset(tx: Tx, command: ResetCare) -> int:
    _builder(tx, command.node_id)
    return _to_the_foot(tx, command.node_id, "reset") or 0


def _to_the_foot(tx: Tx, node_id: str, what: str) -> int | None:
    """Where it stood; None: there already. What is under way goes on to its end."""
    care = find_care(tx.execute, node_id)
    if care is None or (
        not care.level and not care.attempts and not care.failed_tries and not care.failing_since
    ):
        return None
    _save(tx, replace(
        care, level=0, attempts=0, failed_tries=0, failing_since=None, rises=False,
    ))  # fmt: skip
    tx.emit(CareTaken(care.node_id, what, "", 0, f"from level {care.level}"))
    return care.level


def _builder(tx: Tx, node_id: str) -> Builder:
    found = find_builder(tx.execute, node_id)
    if found is None:
        raise NotFound("no such builder", node_id=node_id[:128])
    return found


def _save(tx: Tx, care: Care) -> Care:
    care = replace(care, revision=tx.revision)
    tx.execute("INSERT OR REPLACE INTO care VALUES (?,?)", (care.node_id, encode(care)))
    return care
