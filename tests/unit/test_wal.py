"""The durable log with real files, a real thread and real fsync: order, reads, rules, bounds."""

from __future__ import annotations

import functools
import sqlite3
from pathlib import Path

import pytest
import trio

from mesh.raft.errors import Compacted, SnapshotTemporarilyUnavailable, Unavailable
from mesh.raft.sizes import entries_bytes
from mesh.raft.types import ConfState, Entry, EntryKind, HardState, Snapshot, SnapshotMeta
from mesh.wal import LogSettings, PutBack, RaftLog, find_put_back
from mesh.wal_errors import LogBusy, LogError, LogMissing, OutOfOrder
from mesh.wal_sqlite import open_log

VOTERS = ConfState(voters=(1, 2, 3))
TERM_1, TERM_2, TERM_3 = HardState(1, 1), HardState(2, 2), HardState(3, 3)


def some(first: int, last: int, term: int = 1, size: int = 10) -> list[Entry]:
    return [Entry(term, index, b"%*d" % (size, index)) for index in range(first, last + 1)]


def everything(log: RaftLog) -> list[Entry]:
    found: list[Entry] = []
    at = log.first_index()
    while at <= log.last_index():
        found += log.entries(at, log.last_index() + 1)
        at = found[-1].index + 1
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "raft.db"


async def test_what_is_done_is_there_after_reopening(path: Path) -> None:
    entries = [*some(1, 3), Entry(2, 4, b"\0" * 300_000, EntryKind.CONF_CHANGE_V2), Entry(2, 5)]
    async with open_log(path, create=True) as log:
        assert (log.first_index(), log.last_index(), log.term(0)) == (1, 0, 0)
        assert log.initial_state() == (HardState(), ConfState())
        ticket = log.append(entries, HardState(2, 3, 4))
        assert (ticket.done, log.last_index()) == (False, 0), (
            "nothing is shown before it is on disk"
        )
        await ticket.wait()
        assert ticket.done
        assert everything(log) == entries
    async with open_log(path, create=False) as log:
        assert everything(log) == entries
        assert log.hard_state == HardState(2, 3, 4)
        assert [log.term(index) for index in range(6)] == [0, 1, 1, 1, 2, 2]
        with pytest.raises(Unavailable):
            log.term(6)
        with pytest.raises(Unavailable):
            log.entries(4, 7)


async def test_tickets_are_done_in_the_order_of_the_calls(path: Path) -> None:
    done: list[int] = []
    async with open_log(path, create=True) as log:
        log.append([], TERM_1, on_done=lambda: done.append(0))
        for index in range(1, 500):
            log.append(some(index, index), on_done=functools.partial(done.append, index))
        await log.append([], HardState(1, 1, 7)).wait()
        assert done == list(range(500))
        assert log.hard_state.commit == 7


async def test_the_rest_of_a_conflict_is_gone_with_the_new_term_on_disk(path: Path) -> None:
    async with open_log(path, create=True) as log:
        await log.append(some(1, 100), TERM_1).wait()
        ticket = log.append(some(40, 41, 2), TERM_2)
        assert log.last_index() == 39, "what is replaced vanishes at once"
        await ticket.wait()
        assert everything(log) == some(1, 39) + some(40, 41, 2)
    async with open_log(path, create=False) as log:
        assert everything(log) == some(1, 39) + some(40, 41, 2)
        assert log.hard_state == TERM_2


async def test_a_write_that_is_replaced_while_it_waits_is_never_shown(path: Path) -> None:
    async with open_log(path, create=True) as log:
        seen: list[int] = []
        log.append(some(1, 10), TERM_1, on_done=lambda: seen.append(log.last_index()))
        log.append(some(11, 20), on_done=lambda: seen.append(log.last_index()))
        await log.append(some(6, 7, 2), TERM_2).wait()
        assert set(seen) <= {5, 7}
        assert everything(log) == some(1, 5) + some(6, 7, 2)
    async with open_log(path, create=False) as log:
        assert everything(log) == some(1, 5) + some(6, 7, 2)


@pytest.mark.parametrize("recent_bytes_max", [0, 4000, 32 << 20])
async def test_reads_end_where_the_bytes_end_and_give_at_least_one(
    path: Path, recent_bytes_max: int
) -> None:
    settings = LogSettings(recent_bytes_max=recent_bytes_max)
    entries = [entry for first in range(1, 101, 5) for entry in some(first, first + 4, size=100)]
    async with open_log(path, settings, create=True) as log:
        log.append([], TERM_1)
        for start in range(0, 100, 5):
            ticket = log.append(entries[start : start + 5])
        await ticket.wait()
        one = entries_bytes(entries[:1])
        for low in (1, 3, 60, 95, 100):
            assert list(log.entries(low, 101, 0)) == entries[low - 1 : low]
            assert list(log.entries(low, 101, 4 * one)) == entries[low - 1 : low + 3]
            assert list(log.entries(low, 101, 4 * one - 1)) == entries[low - 1 : low + 2]
            assert list(log.entries(low, 101)) == entries[low - 1 :]
            assert list(log.entries(low, low + 1)) == entries[low - 1 : low]
            assert list(log.entries(low, low)) == []


async def test_memory_is_bounded_and_the_file_knows_the_rest(path: Path) -> None:
    settings = LogSettings(recent_bytes_max=100_000)
    async with open_log(path, settings, create=True) as log:
        log.append([], TERM_1)
        for first in range(1, 20_001, 500):
            await log.append(some(first, first + 499)).wait()
        assert log._recent.memory_bytes <= 100_000  # type: ignore[attr-defined]
        assert everything(log) == some(1, 20_000)
        assert log.term(1) == log.term(20_000) == 1


async def test_compaction_forgets_and_keeps_the_point(path: Path) -> None:
    async with open_log(path, create=True) as log:
        await log.append(some(1, 60) + some(61, 100, 2), TERM_2).wait()
        with pytest.raises(OutOfOrder, match="50 are checkpointed"):
            log.compact(70, VOTERS, checkpointed=50)
        ticket = log.compact(70, VOTERS, checkpointed=90)
        assert log.first_index() == 71
        assert log.term(70) == 2
        with pytest.raises(Compacted):
            log.term(69)
        with pytest.raises(Compacted):
            log.entries(70, 80)
        await ticket.wait()
        assert log.hard_state.commit == 70
        with pytest.raises(OutOfOrder):
            log.compact(70, VOTERS, checkpointed=90)
    async with open_log(path, create=False) as log:
        assert log.compacted == SnapshotMeta(70, 2, VOTERS)
        assert log.initial_state() == (HardState(2, 2, 70), VOTERS)
        assert everything(log) == some(71, 100, 2)


async def test_a_snapshot_replaces_the_log_and_what_follows_is_appended(path: Path) -> None:
    meta = SnapshotMeta(1000, 3, VOTERS)
    async with open_log(path, create=True) as log:
        await log.append(some(1, 100), TERM_1).wait()
        ticket = log.append(some(1001, 1003, 3), HardState(3, 0, 1000), meta)
        assert (log.first_index(), log.last_index()) == (1, 0)
        await ticket.wait()
        assert everything(log) == some(1001, 1003, 3)
        assert log.initial_state() == (HardState(3, 0, 1000), VOTERS)
        with pytest.raises(OutOfOrder):
            log.restore(SnapshotMeta(1000, 3, VOTERS))
    async with open_log(path, create=False) as log:
        assert log.compacted == meta
        assert everything(log) == some(1001, 1003, 3)


async def test_a_snapshot_that_the_log_agrees_with_keeps_what_is_behind_it(path: Path) -> None:
    async with open_log(path, create=True) as log:
        log.append(some(1, 50), TERM_1)
        log.append(some(51, 100))
        await log.restore(SnapshotMeta(70, 1, VOTERS)).wait()
        assert everything(log) == some(71, 100)
        await log.restore(SnapshotMeta(80, 1, VOTERS)).wait()
        assert everything(log) == some(81, 100)
        # A term that the log does not have there: nothing of it can be kept.
        await log.append([], TERM_2, SnapshotMeta(90, 2, VOTERS)).wait()
        assert (log.first_index(), log.last_index(), log.term(90)) == (91, 90, 2)
    async with open_log(path, create=False) as log:
        assert (log.first_index(), log.last_index(), log.term(90)) == (91, 90, 2)


async def test_what_breaks_a_rule_is_refused_and_changes_nothing(path: Path) -> None:
    async with open_log(path, create=True) as log:
        await log.append(some(1, 10, 2), HardState(2, 1, 5)).wait()
        refused: list[tuple[str, dict[str, object]]] = [
            ("does not follow", {"entries": some(12, 13, 2)}),
            ("have a gap", {"entries": [*some(11, 11, 2), *some(13, 13, 2)]}),
            ("term falls", {"entries": some(11, 11, 1)}),
            ("committed", {"entries": some(5, 6, 2)}),
            ("term 3 came", {"entries": some(11, 11, 3)}),
            ("cannot go back", {"hard_state": TERM_1}),
            ("for good", {"hard_state": HardState(2, 2, 5)}),
            ("cannot be committed", {"hard_state": HardState(2, 1, 11)}),
            ("contradicts", {"snapshot": SnapshotMeta(4, 1, VOTERS)}),
        ]
        for words, arguments in refused:
            with pytest.raises(OutOfOrder, match=words):
                log.append(**arguments)  # type: ignore[arg-type]
        for name, value in (("n" * 65, b""), ("n", b"v" * 4097)):
            with pytest.raises(OutOfOrder, match="too large"):
                log.set_fact(name, value)
        await log.append(some(11, 12, 2)).wait()
        assert everything(log) == some(1, 12, 2)
        assert log.hard_state == HardState(2, 1, 5)


async def test_over_a_bound_nothing_more_waits(path: Path) -> None:
    settings = LogSettings(waiting_max=5, waiting_bytes_max=100_000)
    async with open_log(path, settings, create=True) as log:
        # All at once: the answers come only when this task waits.
        tickets = [log.append([], HardState(term, 0)) for term in range(1, 6)]
        with pytest.raises(LogBusy):
            log.append([], HardState(6, 0))
        await tickets[-1].wait()
        ticket = log.append(some(1, 1, 5, size=200_000))
        with pytest.raises(LogBusy):
            log.append(some(2, 2, 5))
        await ticket.wait()
        assert log.waiting_bytes == 0
        await log.append(some(2, 2, 5)).wait()
        assert log.last_index() == 2


async def test_facts_and_the_boot_counter_last(path: Path) -> None:
    async with open_log(path, create=True) as log:
        assert (log.boot, log.fact("cluster")) == (1, None)
        log.set_fact("cluster", b"old")
        await log.set_fact("cluster", b"c-1").wait()
        assert log.fact("cluster") == b"c-1"
    for boot in (2, 3):
        async with open_log(path, create=True) as log:
            assert (log.boot, log.fact("cluster")) == (boot, b"c-1")
    async with open_log(path, create=False) as log:
        for number in range(63):
            log.set_fact(f"n{number}", b"")
        with pytest.raises(OutOfOrder, match="at most 64"):
            log.set_fact("one more", b"")
        await log.set_fact("cluster", b"again").wait()


async def test_the_commit_index_costs_no_write_and_still_arrives(path: Path) -> None:
    settings = LogSettings(idle_s=0.02)
    async with open_log(path, settings, create=True) as log:
        await log.append(some(1, 10), TERM_1).wait()
        await log.append([], HardState(1, 1, 9)).wait()
        assert log.hard_state.commit == 9
        with trio.fail_after(5):
            while log._writer.unsettled:  # type: ignore[attr-defined]
                await trio.sleep(0.01)
        assert b"\x09" in _fact(path, "log:hard"), "written when there was nothing else to do"
        await log.append([], HardState(1, 1, 10)).wait()
    async with open_log(path, create=False) as log:
        assert log.hard_state == HardState(1, 1, 10)


def _fact(path: Path, name: str) -> bytes:
    conn = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    try:
        value: bytes = conn.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()[0]
        return value
    finally:
        conn.close()


async def test_a_snapshot_is_answered_while_the_log_goes_on_from_it(path: Path) -> None:
    async with open_log(path, create=True) as log:
        await log.append(some(1, 10), TERM_1).wait()
        with pytest.raises(SnapshotTemporarilyUnavailable):
            log.snapshot()
        offered = Snapshot(SnapshotMeta(5, 1, VOTERS), b"name")
        log.offer_snapshot(offered)
        await log.compact(5, VOTERS, checkpointed=5).wait()
        assert log.snapshot() == offered
        log.compact(6, VOTERS, checkpointed=6)
        with pytest.raises(SnapshotTemporarilyUnavailable):
            log.snapshot()


async def test_an_owner_that_applied_more_may_say_who_votes(path: Path) -> None:
    async with open_log(path, create=True) as log:
        log.use_conf_state(VOTERS)
        assert log.initial_state()[1] == VOTERS


async def test_a_log_that_must_be_there_is_not_made_anew(path: Path) -> None:
    with pytest.raises(LogMissing, match="under a new id"):
        async with open_log(path, create=False):
            pass
    assert not await trio.Path(path).exists()


async def test_a_closed_log_says_so_and_wrote_all_it_was_given(path: Path) -> None:
    async with open_log(path, create=True) as log:
        log.append(some(1, 5000), TERM_1)
        ticket = log.append(some(5001, 5001))
    await ticket.wait()
    with pytest.raises(LogError, match="closed"):
        log.append(some(5002, 5002))
    assert sorted(each.name for each in path.parent.iterdir()) == ["raft.db"]
    async with open_log(path, create=False) as log:
        assert log.last_index() == 5001


async def test_an_older_copy_is_found_by_what_others_know(path: Path) -> None:
    async with open_log(path, create=True) as log:
        await log.append(some(1, 10) + some(11, 20, 2), HardState(2, 1, 20)).wait()
        await log.compact(5, VOTERS, checkpointed=15).wait()
        assert find_put_back(log, applied_index=20, applied_term=2, acknowledged=20) is None
        assert find_put_back(log, applied_index=5, applied_term=1) is None
        for found, which, words in (
            (find_put_back(log, applied_index=21), "log", "was applied"),
            (find_put_back(log, applied_index=9, acknowledged=21), "log", "was acknowledged"),
            (find_put_back(log, applied_index=15, applied_term=1), "log", "with term 2"),
            (find_put_back(log, applied_index=4), "state", "begins after 5"),
        ):
            assert isinstance(found, PutBack)
            assert found.which == which
            assert words in found.why
