"""The log as it will be when all that was handed over is on disk, and the rules it must keep.

No gap, no falling term, no second vote, nothing committed replaced: what breaks one of these would
be a lie on disk, so it is refused before it gets there, and it changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from mesh.raft.types import NOBODY, Entry, HardState, SnapshotMeta
from mesh.wal_errors import OutOfOrder
from mesh.wal_file import Found
from mesh.wal_memory import Terms, term_starts
from mesh.wal_writer import Work


class Handed:
    def __init__(self, found: Found) -> None:
        self.hard = found.hard_state
        self.compacted = found.compacted
        self.last = found.last
        self._terms = Terms(found.compacted.index, found.compacted.term)
        self._terms.extend(found.terms)

    def take(self, work: Work) -> None:
        """Check one write as a whole, decide whether a snapshot keeps what is behind it, and count
        it as done."""
        snapshot, entries = work.snapshot, work.entries
        compacted, last, before = self.compacted, self.last, self._terms.newest
        if snapshot is not None:
            work.keep = self._check_snapshot(snapshot)
            compacted = snapshot
            if not work.keep:
                last, before = snapshot.index, snapshot.term
        if entries:
            if not compacted.index < entries[0].index <= last + 1:
                raise OutOfOrder(
                    f"entry {entries[0].index} does not follow:"
                    f" {compacted.index + 1} to {last} are kept"
                )
            if entries[0].index <= last:
                before = self._terms.at(entries[0].index - 1)
            self._check_entries(entries, before)
            last, before = entries[-1].index, entries[-1].term
        hard = self._checked_hard(work.hard_state, last, before)

        if snapshot is not None:
            self._begin_at(snapshot, keep=work.keep)
        if entries:
            self._terms.cut(entries[0].index)
            self._terms.extend(term_starts(entries))
        self.last = last
        self.hard = HardState(hard.term, hard.vote, max(hard.commit, self.hard.commit))

    def compact(self, upto: int, checkpointed: int) -> int:
        """The term of the last entry that goes."""
        if upto > checkpointed:
            raise OutOfOrder(f"entry {upto} is to go, and only {checkpointed} are checkpointed")
        if not self.compacted.index < upto <= self.last:
            raise OutOfOrder(
                f"entry {upto} cannot be compacted: {self.compacted.index + 1} to {self.last} are"
                " kept"
            )
        return self._terms.at(upto)

    def note_compacted(self, meta: SnapshotMeta) -> None:
        self._begin_at(meta, keep=True)

    def _check_snapshot(self, snapshot: SnapshotMeta) -> bool:
        if snapshot.index <= self.compacted.index:
            raise OutOfOrder(
                f"a snapshot at {snapshot.index} is not newer than {self.compacted.index}, where"
                " the log begins"
            )
        if snapshot.index <= self.last and self._terms.at(snapshot.index) == snapshot.term:
            return True
        if snapshot.index <= self.hard.commit:
            raise OutOfOrder(
                f"the snapshot at {snapshot.index} contradicts what is committed, up to"
                f" {self.hard.commit}"
            )
        return False

    def _check_entries(self, entries: Sequence[Entry], before: int) -> None:
        first, last = entries[0], entries[-1]
        if first.index <= self.hard.commit:
            raise OutOfOrder(f"entry {first.index} is committed: nothing may replace it")
        if last.index - first.index != len(entries) - 1:
            raise OutOfOrder(f"entries {first.index} to {last.index} have a gap")
        if not before <= first.term <= last.term:
            raise OutOfOrder(
                f"the term falls: {before}, {first.term}, {last.term} from entry {first.index} on"
            )

    def _checked_hard(self, asked: HardState | None, last: int, newest: int) -> HardState:
        now, after = self.hard, asked or self.hard
        if after.term < now.term:
            raise OutOfOrder(f"the node was in term {now.term}, it cannot go back to {after.term}")
        if after.term == now.term and now.vote not in (NOBODY, after.vote):
            raise OutOfOrder(f"the node gave its vote of term {now.term} to {now.vote} for good")
        if after.commit > last:
            raise OutOfOrder(f"{after.commit} cannot be committed in a log that ends at {last}")
        if after.term < newest:
            raise OutOfOrder(f"entries of term {newest} came while the node is in {after.term}")
        return after

    def _begin_at(self, meta: SnapshotMeta, *, keep: bool) -> None:
        self.compacted = meta
        if keep:
            self._terms.drop(meta.index)
        else:
            self._terms = Terms(meta.index, meta.term)
            self.last = meta.index
        self.hard = HardState(
            self.hard.term, self.hard.vote, max(self.hard.commit, meta.index)
        )  # fmt: skip
