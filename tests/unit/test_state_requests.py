"""Requests that were applied: none twice, whatever is sent again, and no more kept than is said."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pytest

from swarmd.domain.actors import Actor
from swarmd.domain.errors import Busy, Conflict, NotFound, SwarmError, Unavailable
from swarmd.domain.events import SettingChanged
from swarmd.domain.groups import Group, GroupKind
from swarmd.domain.jobs import GroupId, Installed, Job, JobId, JobSpec, JobStatus, Result
from swarmd.state import commands as c
from swarmd.state.machine import RULES, Applied, Machine, Place, dump_hash
from swarmd.state.requests import (
    OUTCOME_BYTES_MAX,
    REMEMBERED_MAX,
    Requests,
    _kept,
    find_outcomes,
    outcome_of,
)
from swarmd.state.schema import migrate
from swarmd.state.tx import Tx

ACTOR = Actor("t", "test")
NODE = 1 << 62


def empty() -> sqlite3.Connection:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(conn)
    return conn


class State:
    def __init__(self) -> None:
        self.conn = empty()
        self.machine = Machine(self.conn)
        self.index = 0

    def entry(self, seq: int, boot: int = 1, origin: int = NODE, command: Any = None) -> c.Entry:
        self.index += 1
        command = command or c.PutSetting(f"k{origin}-{boot}-{seq}", str(self.index).encode())
        return c.Entry(self.index, 1, 1000, ACTOR, command, c.RequestId(origin, boot, seq))

    def apply(self, *entries: c.Entry) -> list[Applied]:
        return self.machine.apply(entries)

    def one(self, seq: int, **more: Any) -> Applied:
        return self.apply(self.entry(seq, **more))[0]

    def restart(self) -> None:
        self.machine = Machine(self.conn)

    def sizes(self) -> tuple[int, int]:
        return tuple(
            self.conn.execute(f"SELECT count(*) FROM {t}").fetchone()[0]
            for t in ("sessions", "outcomes")
        )

    def kept(self, *seqs: int, boot: int = 1, origin: int = NODE) -> dict[int, bytes]:
        return dict(find_outcomes(self.conn, origin, boot, seqs))


@pytest.mark.parametrize("restarted", [False, True])
def test_what_comes_again_is_not_done_again(restarted: bool) -> None:
    state = State()
    first = state.one(1)
    assert (first.value, first.refusal, first.repeated) == (b"1", None, False)
    if restarted:
        state.restart()
    again = state.one(1)
    assert again.repeated and again.events == [] and again.value is None
    row = state.conn.execute("SELECT value FROM settings").fetchall()
    assert row == [(b"1",)]
    assert outcome_of(c.PutSetting, state.kept(1)[1]) == b"1"


def test_twice_in_one_batch_is_done_once() -> None:
    state = State()
    found = state.apply(state.entry(1), state.entry(2), state.entry(1), state.entry(2))
    assert [a.repeated for a in found] == [False, False, True, True]


def test_a_refusal_is_an_outcome_too() -> None:
    """Sent again it must not be tried again: by then it might pass."""
    state = State()
    cancel = c.FinishClaim(JobId("none"), "x", True, Result())
    first = state.one(1, command=cancel)
    assert isinstance(first.refusal, NotFound)
    assert state.one(1, command=cancel).repeated
    with pytest.raises(NotFound, match="job"):
        outcome_of(c.FinishClaim, state.kept(1)[1])


def test_any_order_is_taken() -> None:
    state = State()
    for seq in (5, 3, 9, 1):
        assert not state.one(seq).repeated
    for seq in (1, 3, 5, 9):
        assert state.one(seq).repeated


def test_nodes_do_not_know_each_others_requests() -> None:
    state = State()
    for origin in (1, 2, NODE):
        assert not state.one(1, origin=origin).repeated
    assert state.sizes() == (3, 3)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_boot_of_before_is_refused_and_its_outcomes_are_gone(restarted: bool) -> None:
    state = State()
    for seq in range(1, 11):
        state.one(seq)
    assert state.one(1, boot=2).value == b"11"
    if restarted:
        state.restart()
    old = state.one(11, boot=1)
    assert isinstance(old.refusal, Conflict) and not old.repeated
    assert "restarted" in old.refusal.message
    assert isinstance(state.one(1, boot=1).refusal, Conflict)
    assert state.sizes() == (1, 1)
    assert state.kept(1, boot=1) == {} and list(state.kept(1, boot=2)) == [1]
    assert state.conn.execute("SELECT count(*) FROM settings").fetchone() == (11,)


def test_a_new_boot_within_one_batch() -> None:
    state = State()
    found = state.apply(
        state.entry(1), state.entry(2), state.entry(1, boot=2), state.entry(3),
        state.entry(1, boot=2),
    )  # fmt: skip
    assert [(a.repeated, a.refusal is not None) for a in found] == [
        (False, False), (False, False), (False, False), (False, True), (True, False),
    ]  # fmt: skip
    assert state.sizes() == (1, 1)


def fill(state: State, seqs: Sequence[int], batch: int = 256) -> None:
    for start in range(0, len(seqs), batch):
        state.apply(*(state.entry(seq) for seq in seqs[start : start + batch]))


def test_no_more_than_the_last_are_kept() -> None:
    state = State()
    fill(state, range(1, REMEMBERED_MAX + 101))
    assert state.sizes() == (1, REMEMBERED_MAX)
    (session,) = state.machine._requests._sessions.values()  # type: ignore[union-attr]
    assert len(session.known) == len(session.order) == REMEMBERED_MAX
    assert state.one(101).repeated
    forgotten = state.one(100)
    assert isinstance(forgotten.refusal, Conflict) and "older" in forgotten.refusal.message
    assert state.kept(1, 100, 101) .keys() == {101}  # fmt: skip


@pytest.mark.parametrize("restarted", [False, True])
def test_those_go_first_that_were_applied_first(restarted: bool) -> None:
    """In the log's order, which is not that of the sequence: a late one with a small number is
    young, and stays."""
    state = State()
    fill(state, [*range(2, REMEMBERED_MAX + 1), 1])
    if restarted:
        state.restart()
    state.one(REMEMBERED_MAX + 1)  # 2 goes, 1 was applied last but this
    assert state.one(1).repeated
    assert isinstance(state.one(2).refusal, Conflict)
    assert state.one(3).repeated
    assert state.kept(1, 2, 3).keys() == {1, 3}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_number_below_the_forgotten_ones_is_refused(restarted: bool) -> None:
    """It may be one of them."""
    state = State()
    fill(state, range(100, REMEMBERED_MAX + 150))
    if restarted:
        state.restart()
    assert isinstance(state.one(50).refusal, Conflict)
    assert isinstance(state.one(149).refusal, Conflict)
    assert state.one(150).repeated


def test_a_batch_larger_than_what_is_kept() -> None:
    state = State()
    fill(state, range(1, 2 * REMEMBERED_MAX + 11), batch=10**6)
    assert state.sizes() == (1, REMEMBERED_MAX)
    alone = State()
    fill(alone, range(1, 2 * REMEMBERED_MAX + 11), batch=100)
    assert dump_hash(state.conn) == dump_hash(alone.conn)


def test_how_entries_are_batched_leaves_no_trace() -> None:
    """Whatever is repeated, refused, restarted: the same entries, the same dump."""
    rng = random.Random(5)
    script: list[tuple[int, int, int]] = []
    boots = dict.fromkeys((1, 2, 3), 1)
    last = dict.fromkeys((1, 2, 3), 0)
    for _ in range(3000):
        origin = rng.randint(1, 3)
        boot = boots[origin]
        if rng.random() < 0.003:
            boots[origin] = boot = boot + rng.randint(1, 3)
            last[origin] = 0
        if rng.random() < 0.3:
            boot = max(1, boot - rng.randint(0, 1))
        seq = max(1, last[origin] + rng.randint(-5, 4))
        last[origin] = max(last[origin], seq)
        script.append((origin, boot, seq))
    dumps = set()
    for batch_max in (1, 7, 256, 3000):
        state = State()
        entries = [state.entry(seq, boot, origin) for origin, boot, seq in script]
        at = 0
        while at < len(entries):
            size = rng.randint(1, batch_max)
            state.apply(*entries[at : at + size])
            at += size
            if rng.random() < 0.05:
                state.restart()
        dumps.add(dump_hash(state.conn))
    assert len(dumps) == 1


def refused_write(table: str) -> Callable[..., int]:
    """What makes the disk say no to one table."""

    def authorize(action: int, name: str | None, *rest: Any) -> int:
        denied = action == sqlite3.SQLITE_INSERT and name == table
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    return authorize


@pytest.mark.parametrize("table", ["settings", "events", "outcomes", "sessions", "meta"])
def test_a_batch_that_failed_was_never_heard_of(table: str) -> None:
    state = State()
    state.one(1)
    before = dump_hash(state.conn)
    state.conn.set_authorizer(refused_write(table))
    with pytest.raises(sqlite3.DatabaseError, match=r"prohibited|authorized"):
        state.apply(state.entry(2), state.entry(1, boot=2), state.entry(2, boot=2))
    state.conn.set_authorizer(None)
    assert dump_hash(state.conn) == before
    assert not state.one(2).repeated
    assert state.one(1).repeated


def test_the_place_in_the_log_goes_with_what_was_applied() -> None:
    """One transaction: whatever statement fails, either both are there or neither."""
    state = State()
    state.one(1)
    before, place = dump_hash(state.conn), state.machine.place

    state.conn.set_authorizer(refused_write("meta"))
    with pytest.raises(sqlite3.DatabaseError, match=r"prohibited|authorized"):
        state.machine.apply([state.entry(2)], Place(5, 1, b"conf"))
    state.conn.set_authorizer(None)
    assert dump_hash(state.conn) == before
    assert state.machine.place == Machine(state.conn).place == place
    state.machine.apply([], Place(5, 1, b"conf"))
    assert Machine(state.conn).place == Place(5, 1, b"conf")
    state.machine.apply([], Place(6, 1))
    assert Machine(state.conn).place == Place(6, 1, b"conf")  # who votes stays until it changes


def test_what_was_refused_leaves_nothing_but_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a rule did before it refused: rows, events, counts."""

    def refuse(tx: Tx, command: c.CreateGroup) -> Group:
        tx.execute("INSERT INTO settings VALUES ('x', x'00', 1)")
        tx.emit(SettingChanged("x"))
        tx.count("binary", JobStatus.PENDING, 50, "t", 1)
        tx.total("binary", "submitted")
        tx.ready(1, 1)
        raise Conflict("after all")

    rules: dict[type[Any], Any] = RULES
    creates: Any = c.CreateGroup
    monkeypatch.setitem(rules, creates, refuse)
    dumps = set()
    for refused in (False, True):
        state = State()
        state.one(1)
        if refused:
            group = c.CreateGroup(Group(GroupId("g"), GroupKind.BULK))
            entry = c.Entry(2, 1, 1000, ACTOR, group)
            (applied,) = state.apply(entry)
            assert isinstance(applied.refusal, Conflict) and applied.events == []
        state.index = 2
        state.one(2)
        dumps.add(dump_hash(state.conn))
    assert len(dumps) == 1


# What is kept of an outcome


def test_an_answer_that_is_large_is_not_kept() -> None:
    fits = b"x" * (OUTCOME_BYTES_MAX - 100)
    assert outcome_of(c.PutSetting, _kept(fits, None)) == fits
    kept = _kept(b"x" * OUTCOME_BYTES_MAX, None)
    assert len(kept) < 100
    with pytest.raises(Unavailable, match="it was done"):
        outcome_of(c.PutSetting, kept)


def test_a_large_refusal_is_cut() -> None:
    refusal = Conflict("m" * 5000, fact="f" * 10_000)
    kept = _kept(None, refusal)
    assert len(kept) < 2000
    with pytest.raises(Conflict) as found:
        outcome_of(c.PutSetting, kept)
    assert found.value.message == "m" * 1024 and found.value.facts == {}


@pytest.mark.parametrize("refusal", [Conflict("no", job_id="7"), Busy("full"), NotFound("gone")])
def test_a_refusal_comes_back_as_it_was(refusal: SwarmError) -> None:
    with pytest.raises(type(refusal)) as found:
        outcome_of(c.PutSetting, _kept(None, refusal))
    assert (found.value.message, found.value.facts) == (refusal.message, refusal.facts)


def test_a_refusal_of_a_newer_version_is_a_conflict_here() -> None:
    kept = msgspec.msgpack.encode(("refused:unheard_of", "no", {}))
    with pytest.raises(Conflict, match="no"):
        outcome_of(c.PutSetting, kept)


def test_every_commands_answer_can_be_read_back() -> None:
    for command in c.ANSWERS:
        with pytest.raises(Unavailable):
            outcome_of(command, _kept(b"x" * 10_000, None))
    assert outcome_of(c.AddBlob, _kept(None, None)) is None
    assert outcome_of(c.ReportAttempts, _kept((True, False), None)) == (True, False)


def test_one_by_one_a_job_or_a_refusal_comes_back() -> None:
    state = State()
    job = c.NewJob(JobId("j1"), JobSpec("t", Installed("true")))
    mixed = c.SubmitJobs((job, job))
    answer = state.one(1, command=mixed).value
    assert [type(each) for each in answer] == [Job, c.Refusal]
    assert outcome_of(c.SubmitJobs, state.kept(1)[1]) == answer
    answer = state.one(2, command=c.CancelJobs((JobId("j1"), JobId("j2")))).value
    assert [type(each) for each in answer] == [Job, c.Refusal]
    assert outcome_of(c.CancelJobs, state.kept(2)[2]) == answer


def test_a_fresh_table_admits_all() -> None:
    requests = Requests(empty())
    assert requests.admit(c.RequestId(1, 1, 1))
    assert requests.admit(c.RequestId(1, 1, 10**15))
