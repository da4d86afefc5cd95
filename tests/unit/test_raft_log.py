"""The log: what is cut off, what stays, and what is handed out when."""

from __future__ import annotations

import pytest

from mesh.raft import (
    NO_LIMIT,
    Compacted,
    ConfState,
    Entry,
    LogLost,
    MemoryStorage,
    MessageRefused,
    Snapshot,
    SnapshotMeta,
    Unavailable,
)
from mesh.raft.log import Log, check_run
from mesh.raft.sizes import ENTRY_OVERHEAD_BYTES, fitting


def entries(*terms: int, start: int = 1) -> list[Entry]:
    return [Entry(term, index) for index, term in enumerate(terms, start)]


def log_of(*stable: int, unstable: tuple[int, ...] = (), committed: int = 0) -> Log:
    """Entries of these terms, from index 1."""
    storage = MemoryStorage()
    storage.append(entries(*stable))
    log = Log(storage, applying_bytes_max=NO_LIMIT, listener=None)
    if unstable:
        log.append(entries(*unstable, start=len(stable) + 1))
    log.commit_to(committed)
    return log


def terms(log: Log) -> list[int]:
    return [log.term(index) for index in range(1, log.last_index + 1)]


def test_what_is_there_already_stays_and_so_does_all_behind_it() -> None:
    log = log_of(1, 1, unstable=(1, 2, 2))
    assert log.maybe_append(1, 1, entries(1, start=2), commit=0) == 2
    assert terms(log) == [1, 1, 1, 2, 2]


def test_conflict_cuts_off_what_follows() -> None:
    log = log_of(1, 1, 1, 1)
    assert log.maybe_append(1, 1, entries(1, 2, start=2), commit=0) == 3
    assert terms(log) == [1, 1, 2]
    assert (log.last_index, log.last_term) == (3, 2)
    assert log.unstable.offset == 3, "the stable entry 3 is to be written again"


def test_conflict_among_unstable_entries_is_handed_out_again() -> None:
    log = log_of(1, unstable=(1, 1, 1))
    log.unstable.accept()
    assert not log.unstable.has_new_entries
    log.maybe_append(2, 1, entries(2, start=3), commit=0)
    assert terms(log) == [1, 1, 2]
    assert log.unstable.new_entries() == tuple(entries(2, start=3))


def test_append_after_a_gap_or_another_term_is_refused() -> None:
    log = log_of(1, 1)
    assert log.maybe_append(3, 1, entries(1, start=4), commit=9) is None
    assert log.maybe_append(2, 2, entries(2, start=3), commit=9) is None
    assert terms(log) == [1, 1] and log.committed == 0


def test_commit_goes_no_further_than_what_the_leader_is_known_to_share() -> None:
    log = log_of(1, 1, 1)
    log.maybe_append(1, 1, entries(1, start=2), commit=3)
    assert log.committed == 2


def test_committed_entry_that_differs_stops_the_node() -> None:
    log = log_of(1, 1, 1, committed=2)
    with pytest.raises(LogLost):
        log.maybe_append(1, 1, entries(2, start=2), commit=0)
    assert terms(log) == [1, 1, 1]


def test_commit_beyond_the_log_stops_the_node() -> None:
    with pytest.raises(LogLost):
        log_of(1).commit_to(2)


def test_only_an_entry_of_the_own_term_is_committed_by_counting() -> None:
    log = log_of(1, 2)
    assert not log.maybe_commit(1, 2)
    assert not log.maybe_commit(3, 2)
    assert log.maybe_commit(2, 2) and log.committed == 2
    assert not log.maybe_commit(2, 2)


def test_stable_only_what_was_written_last() -> None:
    log = log_of(1, unstable=(1, 1))
    log.unstable.accept()
    log.maybe_append(1, 1, entries(2, 2, start=2), commit=0)
    log.unstable.accept()
    log.unstable.stable_to(3, 1)  # The first write was done, the second is under way.
    assert log.unstable.offset == 2
    log.unstable.stable_to(3, 2)
    assert log.unstable.offset == 4 and not log.unstable.entries


def test_unstable_entries_are_applied_only_where_that_is_allowed() -> None:
    log = log_of(1, unstable=(1, 1), committed=3)
    assert len(log.next_committed(allow_unstable=False)) == 1
    assert len(log.next_committed(allow_unstable=True)) == 3


def test_no_more_is_handed_out_than_may_be_under_way() -> None:
    storage = MemoryStorage()
    storage.append([Entry(1, index, b"x" * 100) for index in range(1, 6)])
    size = 100 + ENTRY_OVERHEAD_BYTES
    log = Log(storage, applying_bytes_max=2 * size, listener=None)
    log.commit_to(5)
    first = log.next_committed(allow_unstable=False)
    assert [entry.index for entry in first] == [1, 2]
    log.accept_applying(2, 2 * size, allow_unstable=False)
    assert not log.has_next_committed(allow_unstable=False)
    log.applied_to(1, size)
    assert [entry.index for entry in log.next_committed(allow_unstable=False)] == [3]


def test_slice_reaches_from_the_stable_part_into_the_other() -> None:
    log = log_of(1, 1, unstable=(2, 2))
    assert [entry.term for entry in log.slice(1, 5)] == [1, 1, 2, 2]
    assert [entry.term for entry in log.slice(2, 4)] == [1, 2]
    assert [entry.index for entry in log.slice(1, 5, 3 * ENTRY_OVERHEAD_BYTES)] == [1, 2, 3]
    assert [entry.index for entry in log.slice(1, 5, 0)] == [1]
    assert log.tail(5, NO_LIMIT) == (0, (), 0)


def test_compacted_log_says_so() -> None:
    storage = MemoryStorage()
    storage.append(entries(1, 1, 2, 2))
    storage.compact(2)
    log = Log(storage, applying_bytes_max=NO_LIMIT, listener=None)
    assert (log.first_index, log.committed, log.term(2)) == (3, 2, 1)
    with pytest.raises(Compacted):
        log.term(1)
    with pytest.raises(Compacted):
        log.slice(2, 4)
    with pytest.raises(Unavailable):
        log.term(5)
    assert log.term_or_zero(1) == 0 and not log.matches(5, 0)


def test_hint_skips_a_whole_term() -> None:
    log = log_of(1, 1, 2, 2, 5, 5, 5)
    assert log.conflict_by_term(7, 3) == (4, 2)
    assert log.conflict_by_term(7, 5) == (7, 5)
    assert log.conflict_by_term(7, 0) == (0, 0)
    assert log.conflict_by_term(9, 3) == (9, 0)


def test_snapshot_takes_the_place_of_everything() -> None:
    log = log_of(1, 1, unstable=(1,))
    log.restore(Snapshot(SnapshotMeta(10, 4, ConfState((1,)))))
    assert (log.first_index, log.last_index, log.last_term, log.committed) == (11, 10, 4, 10)
    assert log.term(10) == 4
    assert not log.has_next_committed(allow_unstable=True), "not before the snapshot is stable"
    log.append(entries(4, start=11))
    assert log.last_index == 11


def test_at_least_one_entry_fits() -> None:
    some = [Entry(1, index, b"x" * 50) for index in range(1, 5)]
    assert len(fitting(some, 0)) == 1
    assert len(fitting(some, 2 * (50 + ENTRY_OVERHEAD_BYTES))) == 2
    assert len(fitting(some, 2 * (50 + ENTRY_OVERHEAD_BYTES) - 1)) == 1
    assert len(fitting(some, NO_LIMIT, 1, 3)) == 2
    assert fitting([], 0) == ()


def test_append_whose_entries_do_not_follow_on_each_other_is_refused() -> None:
    check_run(1, 1, entries(1, 2, start=2), leader_term=2)
    for broken in (
        entries(1, start=3),
        [Entry(1, 2), Entry(1, 4)],
        entries(3, start=2),
        entries(2, 1, start=2),
    ):
        with pytest.raises(MessageRefused):
            check_run(1, 1, broken, leader_term=2)


def test_memory_storage_overwrites_and_keeps_what_comes_before() -> None:
    storage = MemoryStorage()
    storage.append(entries(1, 1, 1))
    storage.append(entries(2, start=2))
    assert [entry.term for entry in storage.entries(1, 3)] == [1, 2]
    with pytest.raises(Unavailable):
        storage.append(entries(2, start=9))
    storage.compact(1)
    storage.append(entries(1, 3, start=1))
    assert (storage.first_index(), storage.last_index(), storage.term(2)) == (2, 2, 3)
