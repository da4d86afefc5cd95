"""Rules of what operators say to the queue of packages: each touches up to so many at a time."""

from __future__ import annotations

from collections.abc import Callable

from msgspec.structs import replace

from swarmd.domain.builds import ASIDE, BLOCKED, Control, Controlled
from swarmd.domain.errors import Conflict, NotFound
from swarmd.domain.events import BuilderChanged, BuildsControlled, SettingChanged
from swarmd.domain.jobs import AttemptId, JobStatus
from swarmd.state.build_commands import ControlBuilds
from swarmd.state.rules import blocking
from swarmd.state.rules.blocking import decode_builder
from swarmd.state.rules.builds import PAUSED, is_paused, revoke, save_builder
from swarmd.state.rules.jobs import Held, end_job, held_by_seq
from swarmd.state.rules.moves import still_held
from swarmd.state.tx import Tx


def control(tx: Tx, command: ControlBuilds) -> Controlled:
    done, left = _ACTIONS[command.action](tx, command)
    if done or not left:
        tx.emit(BuildsControlled(command.action.value, command.target or "", done))
    return Controlled(done, left)


_Done = tuple[int, int]


def _pause(tx: Tx, command: ControlBuilds) -> _Done:
    wanted = command.action is Control.PAUSE
    if is_paused(tx.execute) is wanted:
        return 0, 0
    value = b"1" if wanted else b"0"
    tx.execute("INSERT OR REPLACE INTO settings VALUES (?,?,?)", (PAUSED, value, tx.revision))
    tx.emit(SettingChanged(PAUSED))
    return 1, 0


def _waiting(tx: Tx, command: ControlBuilds, *whys: str) -> tuple[list[Held], int]:
    """Packages that wait for one of these, or the one that is named."""
    marks = ",".join("?" * len(whys))
    where = f"kind = 'package' AND waits IN ({marks})"
    values: tuple[object, ...] = whys
    if command.target is not None:
        where += " AND type = ?"
        values = (*whys, command.target)
    rows = tx.execute(
        f"SELECT seq FROM jobs WHERE {where} ORDER BY seq LIMIT ?", (*values, command.limit + 1)
    ).fetchall()
    if command.target is not None and not rows:
        _refuse_unknown(tx, command.target, "blocked")
    jobs = [held_by_seq(tx, row[0]) for row in rows[: command.limit]]
    return [job for job in jobs if job is not None], len(rows) - len(jobs)


def _refuse_unknown(tx: Tx, package: str, wanted: str) -> None:
    row = tx.execute(
        "SELECT status FROM jobs WHERE kind = 'package' AND type = ? ORDER BY seq DESC LIMIT 1",
        (package,),
    ).fetchone()
    if row is None:
        raise NotFound(f"no package {package[:200]} is in the queue", package=package[:200])
    raise Conflict(f"{package} is not {wanted}", package=package, status=row[0])


def _again(tx: Tx, command: ControlBuilds, *whys: str) -> _Done:
    """What waits for one of these may be built at once."""
    jobs, left = _waiting(tx, command, *whys)
    for job in jobs:
        blocking.unblock(tx, job)
    return len(jobs), left


def _unblock(tx: Tx, command: ControlBuilds) -> _Done:
    return _again(tx, command, BLOCKED)


def _retry(tx: Tx, command: ControlBuilds) -> _Done:
    return _again(tx, command, BLOCKED, ASIDE)


def _clear_failures(tx: Tx, command: ControlBuilds) -> _Done:
    """Out of the queue."""
    jobs, left = _waiting(tx, command, BLOCKED, ASIDE)
    for job in jobs:
        end_job(tx, job, JobStatus.CANCELLED, error="cleared")
        tx.execute("DELETE FROM build_failures WHERE job_seq = ?", (job.seq,))
    return len(jobs), left


def _block(tx: Tx, command: ControlBuilds) -> _Done:
    if command.target is None:
        raise NotFound("say which package is to be blocked: target")
    rows = tx.execute(
        "SELECT seq FROM jobs WHERE kind = 'package' AND type = ? AND status = 'pending'"
        " AND waits IS NOT 'blocked' ORDER BY seq LIMIT ?",
        (command.target, command.limit),
    ).fetchall()
    if not rows:
        _refuse_unknown(tx, command.target, "waiting to be built")
    for (seq,) in rows:
        job = held_by_seq(tx, seq)
        assert job is not None
        blocking.block(tx, job, "blocked by an operator")
    return len(rows), 0


def _unground(tx: Tx, command: ControlBuilds) -> _Done:
    sql = "SELECT builders.body FROM builders JOIN nodes ON nodes.id = node_id"
    values: tuple[object, ...] = ()
    if command.target is not None:
        sql, values = sql + " WHERE name = ?", (command.target,)
    rows = tx.execute(sql + " ORDER BY node_id", values).fetchall()
    if command.target is not None and not rows:
        raise NotFound(f"no builder is called {command.target[:200]}", name=command.target[:200])
    done = 0
    for (body,) in rows:
        known = decode_builder(body)
        sound = replace(
            known, failures=0, grounded_until=None, groundings=0, upload_failures=0,
            no_work_until=None,
        )  # fmt: skip
        if sound != known:
            save_builder(tx, sound)
            tx.emit(BuilderChanged(known.node_id, "not grounded"))
            done += 1
    return done, 0


def _delegated(tx: Tx, command: ControlBuilds, why: str) -> _Done:
    """Back to the queue; with a target what that builder holds."""
    sql = (
        "SELECT a.id FROM attempts a JOIN jobs j ON j.seq = a.job_seq"
        " JOIN nodes n ON n.id = a.node_id WHERE a.active = 1 AND j.kind = 'package'"
    )
    values: tuple[object, ...] = ()
    if command.target is not None:
        sql, values = sql + " AND n.name = ?", (command.target,)
        known = "SELECT 1 FROM nodes n JOIN builders b ON b.node_id = n.id WHERE n.name = ?"
        if tx.execute(known, values).fetchone() is None:
            name = command.target[:200]
            raise NotFound(f"no builder is called {name}", name=name)
    rows = tx.execute(f"{sql} ORDER BY a.id LIMIT ?", (*values, command.limit + 1)).fetchall()
    some = rows[: command.limit]
    for job in still_held(tx, [AttemptId(row[0]) for row in some]):
        revoke(tx, job, why)
    return len(some), len(rows) - len(some)


def _rebalance(tx: Tx, command: ControlBuilds) -> _Done:
    return _delegated(tx, command, "rebalanced")


def _reclaim(tx: Tx, command: ControlBuilds) -> _Done:
    return _delegated(tx, command, "reclaimed")


def _reset(tx: Tx, command: ControlBuilds) -> _Done:
    """Everything that was not received is needed, and every builder is as good as new."""
    whole = ControlBuilds(command.action, command.limit)
    done, left = _delegated(tx, whole, "reset")
    if left == 0 and done < command.limit:
        rest = ControlBuilds(command.action, command.limit - done)
        again, left = _retry(tx, rest)
        done += again
    if left == 0:
        done += _unground(tx, whole)[0]
    return done, left


def _clear_history(tx: Tx, command: ControlBuilds) -> _Done:
    rows = tx.execute("SELECT id FROM builds ORDER BY id LIMIT ?", (command.limit,)).fetchall()
    tx.executemany("DELETE FROM builds WHERE id = ?", rows)
    left = tx.execute("SELECT count(*) FROM (SELECT 1 FROM builds LIMIT 100000)").fetchone()[0]
    if not left:
        tx.execute("DELETE FROM build_times")
    return len(rows), int(left)


_ACTIONS: dict[Control, Callable[[Tx, ControlBuilds], _Done]] = {
    Control.PAUSE: _pause,
    Control.RESUME: _pause,
    Control.UNBLOCK: _unblock,
    Control.BLOCK: _block,
    Control.UNGROUND: _unground,
    Control.RESET: _reset,
    Control.REBALANCE: _rebalance,
    Control.RECLAIM: _reclaim,
    Control.CLEAR_FAILURES: _clear_failures,
    Control.RETRY_FAILURES: _retry,
    Control.CLEAR_HISTORY: _clear_history,
}
