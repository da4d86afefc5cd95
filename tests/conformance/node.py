"""One node of the environment: its disk, its machine, and what its threads have yet to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import msgspec

from mesh.raft import (
    Config,
    Entry,
    HardState,
    Message,
    RawNode,
    Snapshot,
    SnapshotMeta,
    decode_change,
)
from mesh.raft.trace import Event
from tests.conformance.disk import Disk


class Node:
    """The machine appends the data of all entries, and loses it with the power."""

    def __init__(self, config: Config, snapshot: Snapshot, listener: Callable[[Event], None]):
        self.config = config
        self.listener = listener
        self.copy = self.disk = Disk(self._machine_snapshot)
        if not snapshot.empty:
            self.disk.apply_snapshot(snapshot)
            self.disk.sync()
        self.boot()

    def boot(self) -> None:
        self.up = True
        self.append_work: list[Message] = []
        self.apply_work: list[Message] = []
        # Done but for the fsync: what they promise is not true yet.
        self.unsynced: list[Message] = []
        # What the machine was like after each entry.
        self.history = [self.disk.base]
        config = msgspec.structs.replace(self.config, applied=self.disk.base.meta.index)
        self.raw = RawNode(
            config, self.disk, randrange=Random(config.id).randrange, trace=self.listener
        )

    def power_off(self) -> None:
        self.up = False
        self.disk = self.disk.after_power_loss()

    def keep_copy(self) -> None:
        self.copy = self.disk.after_power_loss()

    def put_copy_back(self) -> None:
        self.disk = self.copy

    def write(
        self, state: HardState | None, entries: Sequence[Entry], snap: Snapshot | None
    ) -> None:
        if state is not None:
            self.disk.set_hard_state(state)
        if snap is not None and not snap.empty:
            assert not entries, "a snapshot and entries cannot be written at once"
            self.disk.apply_snapshot(snap)
            return
        self.disk.append(entries)

    def apply(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            last = self.history[-1]
            state, update = last.meta.conf_state, entry.data
            change = decode_change(entry)
            if change is not None:
                state, update = self.raw.apply_conf_change(change), change.context
            meta = SnapshotMeta(entry.index, entry.term, state)
            self.history.append(Snapshot(meta, last.data + update))

    def restore_machine(self, snapshot: Snapshot | None) -> None:
        if snapshot is not None and not snapshot.empty:
            self.history.append(snapshot)

    def _machine_snapshot(self) -> Snapshot:
        return self.history[-1]
