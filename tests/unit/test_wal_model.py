"""The durable log against a plain list, through any order of writes, crashes and openings."""

from __future__ import annotations

import itertools
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from unittest import mock

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mesh import wal_file, wal_writer
from mesh.raft.errors import Compacted, Unavailable
from mesh.raft.types import ConfState, Entry, HardState, SnapshotMeta
from mesh.wal import LogSettings, RaftLog, Ticket
from mesh.wal_errors import OutOfOrder
from mesh.wal_sqlite import open_log

T = TypeVar("T")
SMALL = LogSettings(recent_bytes_max=3000, group_bytes_max=3000, idle_s=0.01)


class Host:
    """A log in a Trio of its own, for callers that know no await."""

    def __init__(self) -> None:
        self._ready = threading.Event()
        self._thread = threading.Thread(target=trio.run, args=(self._main,))
        self._thread.start()
        self._ready.wait()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with trio.open_nursery() as self._nursery:
            self._ready.set()
            await self._stop.wait()

    def open(self, path: Path) -> None:
        async def opening() -> None:
            await self._nursery.start(self._serve, path)

        trio.from_thread.run(opening, trio_token=self._token)

    async def _serve(
        self, path: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        self._close, self._closed = trio.Event(), trio.Event()
        async with open_log(path, SMALL, create=True) as self.log:
            task_status.started()
            await self._close.wait()
        self._closed.set()

    def close(self) -> None:
        async def closing() -> None:
            self._close.set()
            await self._closed.wait()

        trio.from_thread.run(closing, trio_token=self._token)

    def end(self) -> None:
        trio.from_thread.run_sync(self._stop.set, trio_token=self._token)
        self._thread.join()

    def call(self, function: Callable[[RaftLog], T]) -> T:
        return trio.from_thread.run_sync(function, self.log, trio_token=self._token)

    def wait(self, ticket: Ticket) -> None:
        async def waiting() -> None:
            with trio.fail_after(20):
                await ticket.wait()

        trio.from_thread.run(waiting, trio_token=self._token)


@pytest.fixture(scope="module", autouse=True)
def _edges_are_near() -> Iterator[None]:
    with (
        mock.patch.object(wal_file, "RUN_ENTRIES_MAX", 4),
        mock.patch.object(wal_file, "RUN_BYTES_MAX", 2000),
        mock.patch.object(wal_file, "READ_RUNS_MAX", 3),
        mock.patch.object(wal_writer, "SLICE_RUNS", 3),
        mock.patch.object(wal_writer, "ROWS_MAX", 3),
        mock.patch.object(wal_writer, "WAL_PAGES_MAX", 12),
    ):
        yield


class LogModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="wal-model-"))
        self.numbers = itertools.count()
        self.path = self.folder / "raft.db"
        self.host = Host()
        self.host.open(self.path)
        self.boot = 1
        self.compacted = SnapshotMeta()
        self.entries: list[Entry] = []
        self.hard = HardState()
        self.waited = True

    def teardown(self) -> None:
        self.host.close()
        self.host.end()
        shutil.rmtree(self.folder)

    @property
    def last(self) -> int:
        return self.compacted.index + len(self.entries)

    @property
    def newest(self) -> int:
        return self.entries[-1].term if self.entries else self.compacted.term

    def term(self, index: int) -> int:
        at = index - self.compacted.index
        return self.compacted.term if at == 0 else self.entries[at - 1].term

    # Writes

    @rule(
        start=st.integers(0, 8), sizes=st.lists(st.integers(0, 900), min_size=1, max_size=12),
        later=st.integers(0, 1), commit=st.integers(0, 12), wait=st.booleans(),
    )  # fmt: skip
    def append(self, start: int, sizes: list[int], later: int, commit: int, wait: bool) -> None:
        """After the last entry, or in the place of some that are not committed."""
        first = max(self.last + 1 - start, self.hard.commit + 1, self.compacted.index + 1)
        term = max(self.newest, self.hard.term, 1) + later
        new = [
            Entry(term, index, bytes([next(self.numbers) % 256]) * size)
            for index, size in enumerate(sizes, first)
        ]
        vote = self.hard.vote if term == self.hard.term else 0
        hard = HardState(term, vote, min(self.hard.commit + commit, new[-1].index))
        del self.entries[first - self.compacted.index - 1 :]
        self.entries += new
        self.hard = hard
        self.write(lambda log: log.append(new, hard), wait)

    @rule(vote=st.integers(1, 3), later=st.integers(1, 2), wait=st.booleans())
    def give_vote(self, vote: int, later: int, wait: bool) -> None:
        self.hard = HardState(self.hard.term + later, vote, self.hard.commit)
        self.write(lambda log: log.append([], self.hard), wait)

    @rule(commit=st.integers(1, 5), wait=st.booleans())
    def move_commit(self, commit: int, wait: bool) -> None:
        commit = min(self.hard.commit + commit, self.last)
        self.hard = HardState(self.hard.term, self.hard.vote, commit)
        self.write(lambda log: log.append([], self.hard), wait)

    @precondition(lambda self: self.hard.commit > self.compacted.index)
    @rule(part=st.floats(0, 1))
    def compact(self, part: float) -> None:
        self.settle()
        kept = self.hard.commit - self.compacted.index
        upto = self.compacted.index + max(1, round(kept * part))
        meta = SnapshotMeta(upto, self.term(upto), ConfState((upto,)))
        del self.entries[: upto - self.compacted.index]
        self.compacted = meta
        self.write(lambda log: log.compact(upto, meta.conf_state, checkpointed=upto), True)

    @rule(ahead=st.integers(1, 20), follow=st.integers(0, 3), wait=st.booleans())
    def restore_another(self, ahead: int, follow: int, wait: bool) -> None:
        """A snapshot of a later term: nothing that the log holds agrees with it."""
        index, term = max(self.hard.commit, self.compacted.index) + ahead, self.hard.term + 1
        meta = SnapshotMeta(index, term, ConfState((1, index)))
        new = [Entry(term, each, b"s") for each in range(index + 1, index + 1 + follow)]
        self.hard = HardState(term, 0, index)
        self.compacted, self.entries = meta, new
        self.write(lambda log: log.append(new, self.hard, meta), wait)

    @precondition(lambda self: self.entries)
    @rule(part=st.floats(0, 1), wait=st.booleans())
    def restore_what_agrees(self, part: float, wait: bool) -> None:
        index = self.compacted.index + max(1, round(len(self.entries) * part))
        meta = SnapshotMeta(index, self.term(index), ConfState((2, index)))
        del self.entries[: index - self.compacted.index]
        self.compacted = meta
        self.hard = HardState(self.hard.term, self.hard.vote, max(self.hard.commit, index))
        self.write(lambda log: log.restore(meta), wait)

    @rule()
    def leave_a_gap(self) -> None:
        term = max(self.newest, self.hard.term)
        with pytest.raises(OutOfOrder):
            self.host.call(lambda log: log.append([Entry(term, self.last + 2)]))

    def write(self, function: Callable[[RaftLog], Ticket], wait: bool) -> None:
        ticket = self.host.call(function)
        self.waited = wait
        if wait:
            self.host.wait(ticket)

    def settle(self) -> None:
        if not self.waited:
            self.host.wait(self.host.call(lambda log: log.append([])))
            self.waited = True

    # Ends and beginnings

    @rule()
    def reopen(self) -> None:
        self.host.close()
        self.open_again()

    @rule()
    def crash(self) -> None:
        """What lies on disk after the last answer is all that there is."""
        self.settle()
        folder = self.folder / str(next(self.numbers))
        folder.mkdir()
        for name, content in self.image().items():
            (folder / name).write_bytes(content)
        self.host.close()
        self.path = folder / "raft.db"
        self.open_again()
        hard = self.host.call(lambda log: log.hard_state)
        assert (hard.term, hard.vote) == (self.hard.term, self.hard.vote)
        # The commit index alone may lag behind. By how much is the disk's doing, so it is told
        # again: what is drawn next may not depend on it.
        assert self.compacted.index <= hard.commit <= self.hard.commit
        self.write(lambda log: log.append([], self.hard), True)

    def image(self) -> dict[str, bytes]:
        """Both files as of one moment: the thread may be writing one back into the other."""

        def look() -> dict[str, bytes]:
            return {n: self.path.with_name(n).read_bytes() for n in ("raft.db", "raft.db-wal")}

        for _ in range(100):
            first = look()
            if look() == first:
                return first
        raise AssertionError("the files never rest")

    def open_again(self) -> None:
        self.host.open(self.path)
        self.boot += 1
        self.waited = True
        assert self.host.call(lambda log: log.boot) == self.boot

    # Reads

    @invariant()
    def all_that_is_done_is_there(self) -> None:
        if self.waited:
            self.host.call(self.compare)

    def compare(self, log: RaftLog) -> None:
        assert log.compacted == self.compacted
        assert log.hard_state == self.hard
        assert (log.first_index(), log.last_index()) == (self.compacted.index + 1, self.last)
        found: list[Entry] = []
        while len(found) < len(self.entries):
            found += log.entries(self.compacted.index + 1 + len(found), self.last + 1)
        assert found == self.entries
        assert log.term(self.compacted.index) == self.compacted.term
        assert [log.term(entry.index) for entry in found] == [entry.term for entry in found]
        with pytest.raises(Unavailable):
            log.term(self.last + 1)
        with pytest.raises(Compacted):
            log.entries(self.compacted.index, self.last + 1)


LogModel.TestCase.settings = settings(max_examples=30, stateful_step_count=30)
TestLogModel = LogModel.TestCase
